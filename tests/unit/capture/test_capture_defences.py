"""Defences: known values and naive oracles."""

from __future__ import annotations

import pytest
import torch
from gradinversion.capture import ClientConfig, apply_defence, simulate_client
from gradinversion.capture.defences import Defence, DefenceError, defence_names, defence_words, parse_defences
from gradinversion.refusal import ConfigError
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


def test_one_defence_or_several_in_order_are_read() -> None:
    assert parse_defences("none") == (Defence("none", 0.0),)
    assert parse_defences("noise", 0.1) == parse_defences("noise:0.1") == (Defence("noise", 0.1),)
    assert parse_defences("prune:0.9+quantise:4+clip:1e-2") == (
        Defence("prune", 0.9),
        Defence("quantise", 4.0),
        Defence("clip", 0.01),
    )


@pytest.mark.parametrize(
    ("text", "strength", "part"),
    [
        ("clip+noise", 0.0, "gives no number as the strength of 'clip'; give each one as name:number"),
        ("clip:1+noise:", 0.0, "gives no number as the strength of 'noise'"),
        ("clip:1+noise:lots", 0.0, "gives no number as the strength of 'noise'"),
        ("clip:1+noise:0.1", 0.5, "gives its own strength, and client.defence_strength is 0.5"),
        ("noise:0.1", 0.5, "gives its own strength"),
        ("clip:1+fog:2", 0.0, "the defence is 'fog'; use one of none, noise"),
        ("clip:1+", 0.0, "the defence is ''; use one of"),
        ("clip:1+prune:3", 0.0, "the strength of the defence 'prune' is 3; it must be"),
        ("noise:1+clip:1+noise:2", 0.0, "names 'noise' twice"),
        ("none+clip:1", 0.0, "combines 'none' with others"),
        ("clip:1+dp_sgd:0.1", 0.0, "has 'dp_sgd' after others, .* put it first"),
        ("prune:0.5+soteria:0.1", 0.0, "has 'soteria' after others, .* put it first"),
        ("dp_sgd:0.1+soteria:0.1", 0.0, "both make the gradient from the images"),
    ],
)
def test_defences_that_do_not_go_together_are_one_sentence(text: str, strength: float, part: str) -> None:
    with pytest.raises(DefenceError, match=part) as refused:
        parse_defences(text, strength)
    assert "\n" not in str(refused.value)
    with pytest.raises(ConfigError, match=part):
        ClientConfig(defence=text, defence_strength=strength)


def test_a_combination_is_applied_in_its_order() -> None:
    plain, _, _ = simulate_client(ClientConfig(image_size=8), 0)
    for order in (("clip", "noise"), ("noise", "clip"), ("prune", "quantise"), ("quantise", "prune")):
        strengths = {"clip": 0.2, "noise": 0.5, "prune": 0.9, "quantise": 3}
        text = "+".join(f"{name}:{strengths[name]}" for name in order)
        update, _, _ = simulate_client(ClientConfig(image_size=8, defence=text), 0)
        expected, generator = dict(plain.gradients), torch.Generator().manual_seed(0)
        for name in order:
            expected = apply_defence(expected, name, strengths[name], generator)
        assert all(torch.equal(update.gradients[name], g) for name, g in expected.items())
        assert update.defences == tuple(Defence(name, strengths[name]) for name in order)
    norm = torch.cat([g.flatten() for g in simulate_both("noise:0.5+clip:0.2")]).norm()
    assert float(norm) == pytest.approx(0.2, rel=1e-5)


def simulate_both(text: str) -> list[Tensor]:
    return list(simulate_client(ClientConfig(image_size=8, defence=text), 0)[0].gradients.values())


def test_what_needs_the_images_comes_first_and_the_rest_is_done_to_its_gradient() -> None:
    for text, told in (
        ("dp_sgd:0.1+quantise:4", (Defence("dp_sgd", 0.1, (1.0,)), Defence("quantise", 4))),
        ("soteria:0.2+prune:0.5", (Defence("soteria", 0.2), Defence("prune", 0.5))),
    ):
        first, second = text.split("+")
        name, strength = first.split(":")
        alone, _, _ = simulate_client(ClientConfig(image_size=8, defence=name, defence_strength=float(strength)), 0)
        update, _, _ = simulate_client(ClientConfig(image_size=8, defence=text), 0)
        after, number = second.split(":")
        expected = apply_defence(alone.gradients, after, float(number))
        assert all(torch.equal(update.gradients[key], g) for key, g in expected.items())
        assert update.defences == told
        assert bool(update.facts.privacy) == (name == "dp_sgd")


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"defence": "dp_sgd:1+clip:1", "bn": "train_private"}, "use client.bn=eval"),
        ({"defence": "soteria:0.1+clip:1", "local_epochs": 1}, "use client.local_epochs=0"),
    ],
)
def test_what_a_defence_forbids_it_forbids_in_a_combination(settings: dict[str, object], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        ClientConfig(**settings)  # type: ignore[arg-type]


def test_a_combination_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(DefenceError, match="leaves nothing of the update but zeros"):
        simulate_client(ClientConfig(image_size=8, defence="clip:1e-46+quantise:1"), 0)


def test_defences_are_told_in_words() -> None:
    assert defence_words(()) == "none"
    assert defence_words((Defence("clip", 0.5), Defence("noise", 0.1))) == "clip 0.5 + noise 0.1"
    assert defence_words((Defence("dp_sgd", 1.1, (1.0,)),)) == "dp_sgd 1.1, clip 1"
    assert defence_words((Defence("dp_sgd", 1.1, (0.5, 2.0)),)) == "dp_sgd 1.1, clip 0.5 to 2 by layer"


@pytest.mark.parametrize("name", defence_names())
def test_every_defence_that_has_a_name_is_carried_out(name: str) -> None:
    strength = {"none": 0.0, "quantise": 4.0}.get(name, 0.5)
    update, model, private = simulate_client(ClientConfig(image_size=8, batch_size=2), 0)
    defended, _, _ = simulate_client(
        ClientConfig(image_size=8, batch_size=2, defence=name, defence_strength=strength), 0, private
    )
    assert defended.mismatches(model) == []
    same = all(torch.equal(g, update.gradients[key]) for key, g in defended.gradients.items())
    assert same == (name == "none")
