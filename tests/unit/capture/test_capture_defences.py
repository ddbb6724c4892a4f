"""Defences: known values and naive oracles."""

from __future__ import annotations

import pytest
import torch
from gradinversion.capture import apply_defence
from gradinversion.capture.defences import DefenceError
from torch import Tensor


@pytest.fixture
def gradients() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"a": torch.randn(40, 50, generator=generator), "b": 5 * torch.randn(100, generator=generator)}


def test_every_defence_leaves_its_input_alone_and_keeps_names_and_shapes(gradients: dict[str, Tensor]) -> None:
    before = {name: g.clone() for name, g in gradients.items()}
    for name, strength in (("none", 0.0), ("noise", 0.1), ("clip", 1.0), ("prune", 0.5), ("quantise", 4)):
        after = apply_defence(gradients, name, strength, torch.Generator().manual_seed(0))
        for key, g in before.items():
            assert torch.equal(gradients[key], g)
            assert after[key].shape == g.shape
            assert torch.equal(after[key], g) == (name == "none")
            assert after[key].data_ptr() != gradients[key].data_ptr()


def test_noise_has_the_conventional_scale_and_is_reproducible(gradients: dict[str, Tensor]) -> None:
    first = apply_defence(gradients, "noise", 0.5, torch.Generator().manual_seed(7))
    second = apply_defence(gradients, "noise", 0.5, torch.Generator().manual_seed(7))
    added = torch.cat([(first[name] - g).flatten() for name, g in gradients.items()])
    everything = torch.cat([g.abs().flatten() for g in gradients.values()])
    assert float(added.std()) == pytest.approx(0.5 * float(everything.quantile(0.95)), rel=0.05)
    assert abs(float(added.mean())) < 0.1
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_clip_scales_the_whole_update_to_the_norm(gradients: dict[str, Tensor]) -> None:
    clipped = apply_defence(gradients, "clip", 2.0)
    flat = torch.cat([g.flatten() for g in clipped.values()])
    assert float(flat.norm()) == pytest.approx(2.0, rel=1e-5)
    torch.testing.assert_close(clipped["a"] / clipped["a"].norm(), gradients["a"] / gradients["a"].norm())
    untouched = apply_defence(gradients, "clip", 1e6)
    assert all(torch.equal(untouched[name], g) for name, g in gradients.items())
    assert torch.equal(apply_defence({"z": torch.zeros(3)}, "clip", 1.0)["z"], torch.zeros(3))


def test_prune_zeroes_the_smallest_of_each_tensor() -> None:
    known = {"a": torch.tensor([[3.0, -1.0], [0.5, -4.0]]), "b": torch.tensor([1.0, 1.0, 1.0, 1.0])}
    pruned = apply_defence(known, "prune", 0.5)
    assert pruned["a"].tolist() == [[3.0, 0.0], [0.0, -4.0]]
    assert int((pruned["b"] == 0).sum()) == 2


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_quantise_keeps_the_ends_and_at_most_that_many_levels(bits: int, gradients: dict[str, Tensor]) -> None:
    quantised = apply_defence(gradients, "quantise", bits)
    for name, g in gradients.items():
        q = quantised[name]
        assert len(q.unique()) <= 2**bits
        torch.testing.assert_close(torch.stack([q.min(), q.max()]), torch.stack([g.min(), g.max()]))
        half_step = (g.max() - g.min()) / (2**bits - 1) / 2
        assert float((q - g).abs().max()) <= float(half_step) * 1.001
    assert torch.equal(apply_defence({"c": torch.full((3,), 2.0)}, "quantise", 3)["c"], torch.full((3,), 2.0))


@pytest.mark.parametrize(
    ("name", "strength"),
    [
        ("none", 0.1),
        ("noise", 0.0),
        ("noise", -1.0),
        ("noise", float("nan")),
        ("clip", 0.0),
        ("clip", float("inf")),
        ("prune", 0.0),
        ("prune", 1.0),
        ("quantise", 0),
        ("quantise", 2.5),
        ("quantise", 64),
        ("dp_sgd", -0.1),
        ("dp_sgd", float("inf")),
        ("soteria", 0.0),
        ("soteria", 1.0),
    ],
)
def test_impossible_strengths_are_refused(name: str, strength: float) -> None:
    with pytest.raises(DefenceError, match=f"the defence '{name}' is .*must be"):
        apply_defence({"a": torch.ones(2)}, name, strength)


def test_unknown_defence_lists_the_known_ones() -> None:
    with pytest.raises(DefenceError, match="none, noise, clip, prune, quantise, dp_sgd, soteria"):
        apply_defence({"a": torch.ones(2)}, "fog", 1.0)


@pytest.mark.parametrize("name", ["dp_sgd", "soteria"])
def test_defences_that_need_the_images_are_refused_on_gradients(name: str) -> None:
    with pytest.raises(DefenceError, match=f"'{name}' needs the images"):
        apply_defence({"a": torch.ones(2)}, name, 0.5)
