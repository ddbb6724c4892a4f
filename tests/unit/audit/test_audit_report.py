"""The four files: complete, honest, safe to open, and never half written."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import math
import os
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gradinversion.agents import Outcome
from gradinversion.audit import ReportError, evaluate, write_report
from gradinversion.audit.pictures import GridRow, difference, draw_grid, encode_png
from gradinversion.capture import PrivateBatch
from gradinversion.coordinator import Reconstruction, Source
from gradinversion.storage.folders import Storage, StorageError
from PIL import Image
from safetensors.torch import load_file

Attack = Callable[..., tuple[Reconstruction, PrivateBatch]]
FILES = ["reconstruction.png", "reconstruction.safetensors", "report.html", "report.json"]
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7 * 7 }}"


class _Page(HTMLParser):
    """Collects tags, what they would fetch, and the text that a reader sees."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "img", "br", "link", "line", "rect", "circle", "path"):
            self.open.append(tag)
        named = dict(attrs)
        self.references += [named[name] or "" for name in ("src", "href", "data", "action", "srcset") if name in named]
        assert not [name for name in named if name.startswith("on")]

    def handle_endtag(self, tag: str) -> None:
        if tag in ("line", "rect", "circle", "path"):
            return
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


def _write(out: Path, reconstruction: Reconstruction, private: PrivateBatch | None) -> tuple[dict[str, Any], _Page]:
    page = write_report(evaluate(reconstruction, private), reconstruction, private, out)
    assert page == out / "report.html"
    assert sorted(path.name for path in out.iterdir()) == FILES

    def refuse(constant: str) -> float:
        raise AssertionError(f"bare {constant} in report.json")

    values = json.loads((out / "report.json").read_text(), parse_constant=refuse)
    return values, _Page(page.read_text(encoding="utf-8"))


def test_json_has_the_keys_that_other_tools_rely_on(attack: Attack, tmp_path: Path) -> None:
    reconstruction, private = attack(batch=4, seeds=3)
    values, _ = _write(tmp_path, reconstruction, private)
    report = evaluate(reconstruction, private)
    assert values["psnr_mean"] == report.psnr_mean
    assert values["ssim_mean"] == report.ssim_mean
    assert values["constant_image_psnr"] == report.constant_image_psnr
    assert values["consensus_psnr"] == report.consensus_psnr
    assert values["agents_psnr"] == [agent.psnr_mean for agent in report.agents]
    assert values["agents_psnr_mean"] == report.agents_psnr_mean
    assert values["label_accuracy"] == 1.0
    assert values["labels"]["class_presence"] == {"precision": 1.0, "recall": 1.0}
    assert (values["labels"]["class_count"], values["labels"]["instances"]) == (1.0, 1.0)
    assert [(found["label"], found["count"]) for found in values["labels"]["counts"]] == [(k, 1) for k in range(4)]
    assert all(0.9 < found["confidence"] < 1 for found in values["labels"]["counts"])
    assert (values["agents"], values["iterations"], values["rounds"], values["restarts"]) == (3, 1000, 10, 1)
    assert (values["seconds"], values["gradient_loss"]) == (83.4, 0.0389)
    assert values["outcome"] == "all steps done"
    assert values["verdict"].startswith("All 4 images leaked. Mean PSNR")
    assert values["messages"] == list(reconstruction.messages)
    assert values["config"]["agents"]["iterations"] == 1000
    assert len(values["registration"]) == 10
    assert len(values["assumptions"]) >= 6
    assert "torch" in values["provenance"]
    assert [image["name"] for image in values["images"]] == list(private.names)
    assert {"psnr", "ssim", "fft2d", "constant_image_psnr", "gain", "label", "source"} <= values["images"][0].keys()
    assert values["images"][1]["verdict"].startswith("leaked")


def test_numbers_that_json_lacks_become_null(attack: Attack, tmp_path: Path) -> None:
    reconstruction, private = attack()
    perfect = dataclasses.replace(
        reconstruction,
        images=private.images,
        gradient_loss=math.nan,
        config={
            "a": math.inf,
            "b": torch.tensor([1.0, math.nan]),
            "c": np.float32(0.5),
            "d": Path("x"),
            "e": (1, True),
        },
    )
    values, page = _write(tmp_path, perfect, private)
    assert values["psnr_mean"] is None
    assert values["images"][0]["psnr"] is None
    assert values["gradient_loss"] is None
    assert values["config"] == {"a": None, "b": [1.0, None], "c": 0.5, "d": "x", "e": [1, True]}
    assert "∞ dB" in page.text


@pytest.mark.parametrize("known", [True, False])
def test_the_page_fetches_nothing(attack: Attack, tmp_path: Path, known: bool) -> None:
    reconstruction, private = attack()
    _, page = _write(tmp_path, reconstruction, private if known else None)
    # The pictures of the result, then those of what registration changed.
    assert len(page.references) == 4 * (6 + 4 if known else 5 + 3)
    assert all(reference.startswith("data:image/png;base64,") for reference in page.references)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"url\(|@import|https?://|//[a-z]", re.sub(r"data:image/png;base64,[^\"]*", "", source))
    assert "default-src 'none'" in source


def test_the_page_says_what_leaked(attack: Attack, tmp_path: Path) -> None:
    _, page = _write(tmp_path, *attack(batch=4, seeds=3))
    for words in (
        "All 4 images leaked",
        "Labels: 4 of 4 recovered",
        "pixels from seed 0",
        "pixels from consensus",
        "gradient loss (log scale)",
        "total loss (log scale)",
        "consensus renewed (10 times)",
        "seed 1 was restarted at step 500",
        "LPIPS not computed: no weights file given",
        "whether its weights are trained or random is not known",
        "agents.iterations=1000",
        "10 consensus rounds",
    ):
        assert words in page.text, words
    assert page.tags.count("path") == 2 * 3 + 2


def test_the_page_shows_what_registration_changed(attack: Attack, tmp_path: Path) -> None:
    reconstruction, private = attack(batch=4, seeds=3)
    blurred = reconstruction.consensus.clone()
    blurred[2] = 0.5 * blurred[2] + 0.25
    values, page = _write(tmp_path, dataclasses.replace(reconstruction, consensus=blurred), private)
    shown = page.text[page.text.index("What the consensus changed") :]
    # The image that changed most comes first.
    names = [name for _, name in sorted((shown.index(name), name) for name in private.names)]
    changes = [image["registration_change"] for image in values["images"]]
    assert names[0] == "photo2.png"
    assert changes[2] == max(changes)
    assert f"consensus above plain mean: {values['images'][2]['consensus_gain']:+.1f} dB" in shown
    assert f"{values['plain_mean_psnr']:.1f} dB before, {values['consensus_psnr']:.1f} dB after" in shown


@pytest.mark.parametrize(
    "changes",
    [{"seeds": 1}, {"registration": ()}, {"config": {"registration": {"method": "none"}}}],
    ids=["one agent", "no consensus", "no registration"],
)
def test_a_run_without_registration_shows_no_change(attack: Attack, tmp_path: Path, changes: dict[str, Any]) -> None:
    _, page = _write(tmp_path, *attack(batch=4, **changes))
    assert "What the consensus changed" not in page.text


def test_of_many_images_those_that_changed_most_are_shown(attack: Attack, tmp_path: Path) -> None:
    _, page = _write(tmp_path, *attack(batch=20, seeds=2))
    assert "The 12 images of 20 that changed most" in page.text


def test_a_difference_is_enlarged_by_one_factor_and_grey_where_there_is_none() -> None:
    before = torch.full((2, 3, 4, 4), 0.4)
    after = before.clone()
    after[0, :, 0, 0] += 0.1
    after[1, :, 1, 1] -= 0.05
    gain, pictures = difference(after, before)
    assert gain == pytest.approx(5)
    assert pictures[0, 0, 0, 0].item() == pytest.approx(1.0)
    assert pictures[1, 0, 1, 1].item() == pytest.approx(0.25)
    assert torch.all(pictures[0, :, 1:] == 0.5)
    assert difference(before, before)[0] == 50
    assert torch.isfinite(difference(before / 0, before)[1]).all()


def test_the_page_calls_a_failure_a_failure(attack: Attack, tmp_path: Path) -> None:
    _, page = _write(tmp_path, *attack(noise=0.7))
    assert "Not better than a constant image: no image leak shown" in page.text
    assert "leaked:" not in page.text


def test_the_page_without_ground_truth(attack: Attack, tmp_path: Path) -> None:
    values, page = _write(tmp_path, attack()[0], None)
    assert "No ground truth: judge the pictures and the gradient loss" in page.text
    assert "PSNR" not in page.text
    assert "original" not in page.text
    assert values["psnr_mean"] is None
    assert values["constant_image_psnr"] is None
    assert len(values["images"]) == 4


@pytest.mark.parametrize(
    ("batch", "seeds", "size", "rounds"), [(1, 1, 8, 1), (13, 2, 6, 3), (2, 64, 8, 2), (1, 2, 224, 2)]
)
def test_the_page_at_the_ends_of_its_range(
    attack: Attack, tmp_path: Path, batch: int, seeds: int, size: int, rounds: int
) -> None:
    _, page = _write(tmp_path, *attack(batch=batch, seeds=seeds, size=size, rounds=rounds))
    changed = 4 * min(batch, 12) if seeds > 1 else 0
    assert len(page.references) == batch * (3 + min(seeds, 8)) + changed
    assert ("The other 1 images" in page.text) == (batch == 13)
    assert ("The first 8 of 64 agents are pictured" in page.text) == (seeds == 64)
    assert ("56 further seeds" in page.text) == (seeds == 64)


def test_a_run_without_survivors_or_history_still_has_a_page(attack: Attack, tmp_path: Path) -> None:
    _, private = attack()
    reconstruction, _ = attack(
        candidates=(),
        history=(),
        registration=(),
        messages=(),
        images=torch.full_like(private.images, torch.nan),
        outcome=Outcome.ALL_SEEDS_FAILED,
        seeds=1,
    )
    values, page = _write(tmp_path, reconstruction, private)
    assert "No reconstruction" in page.text
    assert Outcome.ALL_SEEDS_FAILED.value in page.text
    assert not re.search(r"\bnan\b", page.text)
    assert "No loss was recorded." in page.text
    assert values["psnr_mean"] is None
    assert values["agents"] == 0


def test_an_early_end_is_said_at_the_top(attack: Attack, tmp_path: Path) -> None:
    _, page = _write(tmp_path, *attack(outcome=Outcome.INTERRUPTED))
    assert f"The attack did not run to its end: {Outcome.INTERRUPTED.value}." in page.text


def test_hostile_text_stays_text(attack: Attack, tmp_path: Path) -> None:
    reconstruction, private = attack(
        batch=2, messages=(HOSTILE,), model_id=HOSTILE, defence=HOSTILE, batch_norm=HOSTILE
    )
    labels = dataclasses.replace(reconstruction.labels, method=HOSTILE, assumption=HOSTILE, warnings=(HOSTILE,))
    candidate = dataclasses.replace(reconstruction.candidates[0], losses={HOSTILE: 1.0, "gradient": 0.1})
    reconstruction = dataclasses.replace(
        reconstruction,
        labels=labels,
        candidates=(candidate, *reconstruction.candidates[1:]),
        config={HOSTILE: HOSTILE, "registration": {"method": HOSTILE}},
        registration=({HOSTILE: 1.0, "step": 5},),
    )
    private = dataclasses.replace(private, names=(HOSTILE, HOSTILE))
    _, page = _write(tmp_path, reconstruction, private)
    assert "script" not in page.tags
    assert page.tags.count("img") == 2 * (6 + 4)
    assert page.text.count(HOSTILE) >= 9


def test_tensors_are_the_answer_in_its_own_order(attack: Attack, tmp_path: Path) -> None:
    reconstruction, private = attack()
    _write(tmp_path, reconstruction, dataclasses.replace(private, labels=private.labels.flip(0), images=private.images))
    tensors = load_file(tmp_path / "reconstruction.safetensors")
    assert torch.equal(tensors["images"], reconstruction.images)
    assert torch.equal(tensors["labels"], reconstruction.labels.labels)


def test_a_full_disk_leaves_the_old_report(attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path, *attack())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    real, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    reconstruction, private = attack(noise=0.5)
    with pytest.raises(ReportError, match=r"No space left on device.*still whole.*out=FOLDER"):
        write_report(evaluate(reconstruction, private), reconstruction, private, tmp_path)
    assert len(calls) == 3
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_cannot_be_made_is_one_sentence(attack: Attack, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    reconstruction, private = attack()
    with pytest.raises(ReportError, match="cannot be written") as error:
        write_report(evaluate(reconstruction, private), reconstruction, private, tmp_path / "file" / "out")
    assert "\n" not in str(error.value)
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_report_in_a_bucket_is_the_one_on_the_disk(attack: Attack, tmp_path: Path) -> None:
    reconstruction, private = attack()
    report = evaluate(reconstruction, private)
    write_report(report, reconstruction, private, tmp_path / "out")
    url = write_report(report, reconstruction, private, "memory://reports/one/")
    assert url == "memory://reports/one/report.html"
    storage = Storage("memory://reports/one")
    assert storage.names() == FILES
    for name in FILES:
        assert storage.read(name, 2**30) == (tmp_path / "out" / name).read_bytes()
    page = _Page(storage.read("report.html", 2**30).decode())
    assert page.references
    assert all(reference.startswith("data:") for reference in page.references)


def test_a_file_url_is_a_folder_on_the_disk(attack: Attack, tmp_path: Path) -> None:
    reconstruction, private = attack()
    report = evaluate(reconstruction, private)
    page = write_report(report, reconstruction, private, f"file://{tmp_path}/out")
    assert page == tmp_path / "out" / "report.html"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES


def test_a_relative_folder_stays_relative(attack: Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    reconstruction, private = attack()
    page = write_report(evaluate(reconstruction, private), reconstruction, private, "out")
    assert page == Path("out/report.html")
    assert page.exists()


def test_a_bucket_that_fails_is_one_sentence(attack: Attack, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Storage, name: str, content: bytes) -> str:
        raise StorageError(f"{self.locate(name)} cannot be written: no connection.")

    monkeypatch.setattr(Storage, "write", fail)
    reconstruction, private = attack()
    with pytest.raises(ReportError, match=r"memory://reports/two is not complete.*no connection.*out=FOLDER") as error:
        write_report(evaluate(reconstruction, private), reconstruction, private, "memory://reports/two")
    assert "\n" not in str(error.value)


def test_a_url_of_an_unknown_kind_is_one_sentence(attack: Attack) -> None:
    reconstruction, private = attack()
    with pytest.raises(ReportError, match=r"'ftp' is not supported"):
        write_report(evaluate(reconstruction, private), reconstruction, private, "ftp://host/out")


@pytest.mark.parametrize("channels", [1, 3])
def test_png_holds_the_pixels(channels: int) -> None:
    image = torch.linspace(0, 1, channels * 20).reshape(channels, 4, 5)
    pixels = np.asarray(Image.open(io.BytesIO(encode_png(image))))
    expected = (image * 255).round().byte().expand(3, -1, -1).permute(1, 2, 0).numpy()
    assert np.array_equal(pixels, expected)


def test_grid_enlarges_pixels_and_wraps_after_eight() -> None:
    images = torch.zeros(9, 3, 32, 32)
    images[8, 0] = 1.0
    rows = [GridRow("original", images, ["a"] * 9), GridRow("reconstruction", images, ["a very long caption" * 9] * 9)]
    pixels = np.asarray(Image.open(io.BytesIO(draw_grid(rows))))
    red = (pixels == (255, 0, 0)).all(2)
    assert red.sum() == 2 * 128 * 128
    assert red[: pixels.shape[0] // 2].sum() == 0


def test_where_each_image_came_from_is_told_in_words_and_as_a_number(attack: Attack, tmp_path: Path) -> None:
    reconstruction, private = attack(sources=(Source(2), Source(), Source(0), Source()))
    report, page = _write(tmp_path, reconstruction, private)
    places = [image["position"] for image in report["images"]]
    words = ("seed 2", "consensus", "seed 0", "consensus")
    assert [image["source"] for image in report["images"]] == [words[place] for place in places]
    assert [image["source_seed"] for image in report["images"]] == [(2, None, 0, None)[place] for place in places]
    assert page.text.count("pixels from seed 2") == 1
