"""The panels of the report on controls, identification and exposure."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gradinversion.audit import Control, Exposure, Pool, evaluate, write_report
from gradinversion.capture import PrivateBatch
from gradinversion.coordinator import Reconstruction

Attack = Callable[..., tuple[Reconstruction, PrivateBatch]]
HOSTILE = "<script>alert(1)</script>"


def _text(page: Path) -> str:
    source = page.read_text(encoding="utf-8")
    assert "<script" not in source
    return html.unescape(re.sub(r"<[^>]+>", "", source[source.index("<body>") :]))


def _audited(attack: Attack, out: Path, *controls: Control) -> tuple[dict[str, Any], str]:
    reconstruction, private = attack(batch=4, seeds=3)
    pool = Pool(torch.rand(9, 3, 16, 16, generator=torch.Generator().manual_seed(0)), ("other",) * 9, HOSTILE)
    exposure = Exposure((9.0, 0.1, 0.2, 3.0), (40.0, 1.0, 2.0, 12.0))
    report = evaluate(reconstruction, private, controls=controls, pool=pool, exposure=exposure)
    write_report(report, reconstruction, private, out, controls)
    return json.loads((out / "report.json").read_text()), _text(out / "report.html")


def test_the_page_and_the_json_show_every_control(attack: Attack, tmp_path: Path) -> None:
    blind, alone = attack(noise=0.4)[0], attack(noise=0.03, seeds=1)[0]
    failed = Control("other_images", None, f"All seeds diverged {HOSTILE}")
    values, page = _audited(attack, tmp_path, Control("no_gradient", blind), failed, Control("one_agent", alone))
    shown = page[page.index("What can be shown without") : page.index("Who leaks")]
    for words in (
        "constant image",
        "no gradient",
        "one agent",
        "The control “other images' gradient” could not be run:",
        HOSTILE,
        "closest control:",
        "among 13 images",
        "8 x 8",
        "An image counts as leaked when",
    ):
        assert words in shown, words
    # The pictures of the result and of registration as ever; then original, answer and three controls of each image.
    assert (tmp_path / "report.html").read_text(encoding="utf-8").count("<img ") == 4 * (6 + 4 + 5)
    first = values["images"][0]
    score = first["controls"]["no_gradient"]
    caption = f"{score['psnr']:.1f} dB · {score['ssim']:.2f}"
    assert f"{caption}{first['psnr'] - score['psnr']:+.1f} dB [{score['low']:+.1f}," in shown
    assert len(score["seeds"]) == 3
    assert first["no_gradient_psnr"] == score["psnr"]
    assert first["reason"].startswith("closest control")
    assert [(control["name"], bool(control["problem"])) for control in values["controls"]] == [
        ("no_gradient", False),
        ("other_images", True),
        ("one_agent", False),
    ]
    assert [control["decides"] for control in values["controls"]] == [True, True, False]
    assert (values["iip"], values["iip_gallery"]) == (1.0, 13)
    assert values["rdlv_mean"] > 0


def test_the_page_and_the_json_tell_who_leaks(attack: Attack, tmp_path: Path) -> None:
    values, page = _audited(attack, tmp_path)
    shown = page[page.index("Who leaks") : page.index("Loss curves")]
    assert "Far more than their share of the gradient norm: photo0.png." in shown
    assert shown.index("1 · photo0.png") < shown.index("4 · photo3.png") < shown.index("3 · photo2.png")
    assert "73% · heavy" in shown
    assert [image["loss"] for image in values["images"]] == [9.0, 0.1, 0.2, 3.0]
    assert [image["gradient_norm"] for image in values["images"]] == [40.0, 1.0, 2.0, 12.0]
    assert sum(image["gradient_share"] for image in values["images"]) == pytest.approx(1.0)
    assert values["at_risk"] == [image["name"] for image in values["images"] if image["leak"] == "leaked"]
    assert values["risk"][0].startswith("All images are at risk")
    # Alone, the constant image is told in the table of the images.
    assert "What can be shown without" not in page
    assert "No other control was run" in page


def test_a_page_without_a_pool_or_exposure_has_no_empty_panels(attack: Attack, tmp_path: Path) -> None:
    reconstruction, private = attack()
    write_report(evaluate(reconstruction, private), reconstruction, private, tmp_path)
    values, page = json.loads((tmp_path / "report.json").read_text()), _text(tmp_path / "report.html")
    for words in ("Who leaks", "What can be shown without", "IIP", "RDLV", "recognised"):
        assert words not in page, words
    assert (values["iip"], values["rdlv_mean"], values["controls"], values["risk"]) == (None, None, [], [])
