"""One update under audit: what is derived of it, once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gradinversion.audit import AuditConfig, Case, LpipsError, simulated
from gradinversion.audit import case as module
from gradinversion.capture import CapturedUpdate, ClientConfig, ImageError, PrivateBatch, simulate_client
from gradinversion.coordinator import AttackConfig
from PIL import Image
from torch import nn

SMALL = ClientConfig(batch_size=2, image_size=16)
Client = tuple[CapturedUpdate, nn.Module, PrivateBatch]


@pytest.fixture(scope="module")
def client() -> Client:
    return simulate_client(SMALL, 0)


def case_of(client: Client, audit: AuditConfig | None = None, **facts: Any) -> Case:
    update, model, private = client
    return Case(update, model, AttackConfig(), private, simulated(SMALL, 0), SMALL, audit or AuditConfig(), **facts)


def counted(monkeypatch: pytest.MonkeyPatch, name: str) -> list[object]:
    """The calls of one of the functions by which a case makes what it derives."""
    calls: list[object] = []
    made: Callable[..., object] = getattr(module, name)

    def count(*arguments: object, **more: object) -> object:
        calls.append(arguments)
        return made(*arguments, **more)

    monkeypatch.setattr(module, name, count)
    return calls


def test_what_is_derived_is_made_once_and_only_when_it_is_wanted(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("load_pool", "make_embedding", "tell_truth")
    calls = {name: counted(monkeypatch, name) for name in names}
    case = case_of(client, AuditConfig(pool="photos"), captured=True)
    assert not any(calls.values())
    for _ in range(2):
        case.require_comparisons()
        assert case.pool is case.pool is not None
        assert case.embedding is case.embedding
        assert case.evidence.startswith("The private images give this update")
    assert {name: len(found) for name, found in calls.items()} == dict.fromkeys(names, 1)


def test_images_of_a_simulated_client_need_no_evidence(client: Client) -> None:
    assert case_of(client).evidence == ""


def test_other_images_than_those_behind_a_captured_update_are_told(client: Client) -> None:
    update, model, private = client
    other = replace(private, images=private.images.flip(0))
    case = case_of((update, model, other), captured=True)
    assert case.evidence.startswith("The private images do not give this update")


def test_without_the_private_images_nothing_is_compared(client: Client) -> None:
    case = replace(case_of(client, AuditConfig(pool="photos"), captured=True), private=None)
    case.require_comparisons()
    assert (case.pool, case.pool_problem, case.evidence) == (None, "", "")


def test_a_pool_that_nobody_wants_is_none(client: Client) -> None:
    assert (case_of(client).pool, case_of(client).pool_problem) == (None, "")


def test_a_pool_that_cannot_be_had_is_told_or_refused(client: Client, tmp_path: Path) -> None:
    case = case_of(client, AuditConfig(pool=str(tmp_path / "none")))
    assert case.pool is None
    assert str(tmp_path / "none") in case.pool_problem
    with pytest.raises(ImageError, match="none"):
        case.require_comparisons()


def test_too_few_images_beside_the_private_ones_are_refused_only_where_they_are_wanted(
    client: Client, tmp_path: Path
) -> None:
    update, model, private = client
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    for name, image in zip("ab", pixels, strict=True):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    own = torch.from_numpy(pixels[0].copy()).permute(2, 0, 1).float() / 255
    mine = replace(private, images=torch.stack([own, private.images[1]]))
    case_of((update, model, mine), AuditConfig(pool=str(tmp_path))).require_comparisons()
    wanted = case_of((update, model, mine), AuditConfig(("other_images",), str(tmp_path)))
    with pytest.raises(ImageError, match="1 images beside the private ones"):
        wanted.require_comparisons()


def test_features_that_cannot_be_had_are_refused(client: Client, tmp_path: Path) -> None:
    audit = AuditConfig(embedding="lpips", lpips_weights=str(tmp_path / "none.pt"))
    with pytest.raises(LpipsError, match=r"none\.pt"):
        case_of(client, audit).require_comparisons()
