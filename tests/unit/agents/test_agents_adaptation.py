"""An attacker who allows for the defence: what is recognised, and that the truth then costs nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from gradinversion.agents import Objective, ObjectiveConfig
from gradinversion.capture import ClientConfig, Defence, capture_gradient, simulate_client, told
from gradinversion.capture.labels.final_layer import find_final_layer
from gradinversion.target import Target
from gradinversion.target.adaptation import Adaptation
from gradinversion.target.defence_evidence import allow_for_defence, image_factors
from gradinversion.target.signatures import pruning_slack
from torch import Tensor, nn

_SIDE = 8


def _target(**settings: Any) -> tuple[Target, Tensor]:
    update, model, private = simulate_client(ClientConfig(image_size=_SIDE, **settings), seed=0)
    return Target(update, model, private.labels), update.normalisation.apply(private.images)


def _losses(target: Target, truth: Tensor) -> tuple[float, float]:
    """At the private images, for the attack that ignores the defence and for the one that allows for it."""
    naive, adaptive = (
        Objective(target, ObjectiveConfig(adaptive=adaptive)).gradient_loss(truth) for adaptive in (False, True)
    )
    return naive, adaptive


@pytest.mark.parametrize(
    ("defence", "strength", "words"),
    [
        ("clip", 0.1, "only the direction"),
        ("prune", 0.9, "as after pruning"),
        ("soteria", 0.2, "is left out of the match"),
        ("dp_sgd", 0.0, "only the direction"),
    ],
)
def test_the_private_images_cost_little_once_the_defence_is_allowed_for(
    defence: str, strength: float, words: str
) -> None:
    target, truth = _target(defence=defence, defence_strength=strength, defence_clip=0.3)
    naive, adaptive = _losses(target, truth)
    assert naive > 0.05
    assert adaptive < (0.1 if defence == "dp_sgd" else 1e-5)
    assert words in "".join(Objective(target, ObjectiveConfig()).messages)
    assert words not in "".join(Objective(target, ObjectiveConfig(adaptive=False)).messages)
    assert Objective(target, ObjectiveConfig()).gradient_loss(truth + 0.3 * torch.randn_like(truth)) > 2 * adaptive


@pytest.mark.parametrize(
    ("defence", "parts"),
    [
        ("prune:0.9+clip:0.1", ("as after pruning", "only the direction")),
        ("clip:0.1+prune:0.9", ("as after pruning", "only the direction")),
        ("soteria:0.2+clip:0.1", ("is left out of the match", "only the direction")),
        ("soteria:0.2+prune:0.8", ("is left out of the match", "as after pruning")),
    ],
)
def test_each_of_several_defences_is_allowed_for(defence: str, parts: tuple[str, ...]) -> None:
    target, truth = _target(defence=defence)
    naive, adaptive = _losses(target, truth)
    assert naive > 0.05
    assert adaptive < 1e-4
    messages = " ".join(Objective(target, ObjectiveConfig()).messages)
    assert all(part in messages for part in parts)
    assert "not allowed for" not in messages


def test_what_is_rounded_after_pruning_is_found_at_the_level_nearest_to_zero() -> None:
    target, truth = _target(defence="prune:0.9+quantise:8")
    naive, adaptive = _losses(target, truth)
    assert naive > 0.4
    assert adaptive < 0.05
    # The client's word is what it rests on.
    silent = replace(target, update=target.update.stating(defences=told(())))
    assert _losses(silent, truth)[1] > 0.4


@pytest.mark.parametrize(
    ("defence", "pooled", "free_scale", "slack", "not_allowed_for"),
    [
        ("clip:0.1+noise:0.1", True, True, False, ()),
        ("noise:0.1+clip:0.1", True, True, False, ()),
        ("prune:0.9+noise:0.5", True, False, False, ("its noise hides which entries are missing",)),
        ("noise:0.5+prune:0.9", True, False, True, ()),
        ("noise:0.5+quantise:4", True, False, False, ("it rounds, which is not allowed for",)),
        ("quantise:4+noise:0.5", True, False, False, ("it rounds, which is not allowed for",)),
        ("clip:0.1+quantise:4", False, True, False, ("it rounds, which is not allowed for",)),
        ("dp_sgd:0.1+quantise:4", True, True, False, ("it rounds, which is not allowed for",)),
        ("dp_sgd:0+quantise:4", False, True, False, ("it rounds, which is not allowed for",)),
        ("noise:0.0001+clip:0.1", False, True, False, ("adds noise, of which the update shows none",)),
        ("prune:0.9+noise:0.5+quantise:4", True, False, False, ("its noise hides", "it rounds")),
    ],
)
def test_what_is_not_allowed_for_is_said(
    defence: str, pooled: bool, free_scale: bool, slack: bool, not_allowed_for: tuple[str, ...]
) -> None:
    target, _ = _target(defence=defence)
    found = allow_for_defence(target.update, target.model, target.labels)
    assert (found.pooled, found.free_scale, bool(found.slack)) == (pooled, free_scale, slack)
    said = [message for message in found.messages if "not allowed for" in message]
    assert len(said) == len(not_allowed_for)
    assert all(part in message for part, message in zip(not_allowed_for, said, strict=True))


def test_pruning_that_the_update_does_not_show_is_not_guessed() -> None:
    target, _ = _target()
    lied = target.update.stating(defences=told((Defence("prune", 0.9), Defence("clip", 1))))
    found = allow_for_defence(lied, target.model, target.labels)
    assert not found.slack
    assert "the update does not show missing entries: pruning is not allowed for" in " ".join(found.messages)


def test_missing_entries_do_not_drag_the_scale_down() -> None:
    found = [torch.tensor([4.0, 1.0, -2.0, 0.5])]
    target = [torch.tensor([0.4, 0.0, -0.2, 0.0])]
    adaptation = Adaptation(free_scale=True, slack={"a": torch.tensor([0.0, 0.2, 0.0, 0.2])})
    (near,), (theirs,) = adaptation.matched(["a"], found, target)
    torch.testing.assert_close(near, theirs)


@pytest.mark.parametrize("settings", [{}, {"bn": "train_private"}, {"model": "resnet18"}, {"clients": 2}])
def test_without_a_defence_nothing_changes(settings: dict[str, Any]) -> None:
    size = 32 if "model" in settings else _SIDE
    update, model, private = simulate_client(ClientConfig(image_size=size, **settings), seed=0)
    assert allow_for_defence(update, model, private.labels) == Adaptation()
    target = Target(update, model, private.labels)
    images = torch.randn(update.image_count, *update.image_shape)
    values = [Objective(target, ObjectiveConfig(adaptive=a)).terms(images.requires_grad_()) for a in (False, True)]
    assert all(torch.equal(values[0][name], values[1][name]) for name in values[0])


def test_noise_is_told_from_rounding_and_from_low_precision() -> None:
    for defence, strength, pooled in (
        ("noise", 0.1, True),
        ("noise", 0.001, False),
        ("quantise", 8, False),
        ("quantise", 2, False),
    ):
        target, _ = _target(defence=defence, defence_strength=strength)
        found = allow_for_defence(target.update, target.model, target.labels)
        assert (found.pooled, bool(found.messages), bool(found.slack)) == (pooled, pooled, False)
    target, _ = _target(defence="dp_sgd", defence_strength=0.05)
    found = allow_for_defence(target.update, target.model, target.labels)
    assert (found.pooled, found.free_scale, len(found.messages)) == (True, True, 2)


def test_noise_is_matched_as_one_vector() -> None:
    found, target = [torch.randn(3, 4), torch.randn(5)], [torch.randn(3, 4), torch.randn(5)]
    (ours,), (theirs,) = Adaptation(pooled=True).matched(["a", "b"], found, target)
    expected = sum((f - t).square().sum() for f, t in zip(found, target, strict=True))
    torch.testing.assert_close((ours - theirs).square().sum(), expected)


def test_a_missing_entry_is_smaller_than_the_smallest_that_was_kept() -> None:
    kept = {"a": torch.tensor([0.0, 3.0, -2.0, 0.0]), "b": torch.zeros(3), "c": torch.tensor([0.0, 0.5])}
    slack = pruning_slack(kept)
    assert {name: value.tolist() for name, value in slack.items()} == {
        "a": [2.0, 0.0, 0.0, 2.0],
        "b": [0.5, 0.5, 0.5],  # all its entries lost their place to those of other tensors
        "c": [0.5, 0.0],
    }
    assert pruning_slack({"a": torch.ones(4), "b": torch.zeros(4), "c": torch.ones(4)}) == {}  # a dead layer
    assert pruning_slack({"a": torch.zeros(4)}) == {}


def test_dead_units_and_taps_that_read_padding_are_no_pruning() -> None:
    kernels, rows = torch.ones(4, 6, 3, 3), torch.ones(5, 8)
    kernels[1], kernels[:, 2], kernels[:, :, 0] = 0, 0, 0
    rows[:, 3:] = 0
    gradients = {"kernels": kernels, "rows": rows, "bias": torch.tensor([0.0, 0.0, 1.0])}
    assert pruning_slack(gradients) == {}
    kernels[2, 3, 1, 1] = kernels[0, 0, 1, 1] = kernels[3, 5, 2, 2] = kernels[3, 1, 1, 0] = 0
    rows[4, 0] = 0
    slack = pruning_slack(gradients)
    assert slack["kernels"][0, 0, 1, 1] == slack["kernels"][1, 0, 0, 0] == 1
    assert slack["kernels"][0, 0, 1, 0] == 0


def test_the_factor_of_each_clipped_image_is_read_off_the_bias() -> None:
    target, _ = _target(defence="dp_sgd", defence_strength=0.0, defence_clip=0.3)
    plain, _ = _target()
    update, model, labels = target.update, target.model, target.labels
    found = image_factors(find_final_layer(update, model), labels)
    assert found is not None
    norms = []
    images = update.normalisation.invert(plain.update.normalisation.apply(_images()))
    for image, label in zip(images, labels, strict=True):
        gradients = capture_gradient(model, image[None], label[None]).gradients.values()
        norms.append(torch.cat([g.flatten() for g in gradients]).norm())
    true = 1 / torch.stack(norms)
    torch.testing.assert_close(found, true / true.mean(), atol=0.1, rtol=0.1)
    assert image_factors(find_final_layer(update, model), torch.tensor([0, 0, 1, 2])) is None
    assert image_factors(find_final_layer(update, model), torch.tensor([5, 6, 7, 8])) is None  # explains nothing


def _images() -> Tensor:
    return simulate_client(ClientConfig(image_size=_SIDE), seed=0)[2].images


def test_what_a_stranger_says_is_only_a_hypothesis() -> None:
    target, _ = _target()
    for name, strength in (("soteria", 0.2), ("dp_sgd", 1), ("clip", 1), ("prune", 0.9), ("quantise", 4)):
        said = (Defence(name, strength),)
        lied = target.update.stating(defences=told(said))
        objective = Objective(replace(target, update=lied), ObjectiveConfig())
        assert torch.isfinite(objective.terms(torch.zeros(4, 3, _SIDE, _SIDE).requires_grad_())["total"])
        believed = any("The client says" in message for message in objective.messages)
        assert believed == (name in ("soteria", "dp_sgd", "clip"))


@pytest.mark.parametrize(
    "adaptation",
    [
        Adaptation(free_scale=True),
        Adaptation(image_weights=torch.tensor([0.5, 1.5])),
        Adaptation(left_out=frozenset({"7.weight"})),
        Adaptation(slack={"0.weight": torch.tensor(1e-3)}),
        Adaptation(pooled=True),
        Adaptation(pooled=True, free_scale=True, slack={"0.weight": torch.tensor(1e-3)}),
    ],
    ids=["scale", "weights", "left out", "slack", "pooled", "combined"],
)
def test_the_derivative_by_the_images(
    smooth_target: Callable[..., Any], adaptation: Adaptation, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, truth = smooth_target(activation=nn.Tanh)
    monkeypatch.setattr("gradinversion.target.target.find_allowance", lambda *_, **__: adaptation)
    objective = Objective(target, ObjectiveConfig())
    images = (truth + 0.3 * torch.randn_like(truth)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: objective.terms(x)["total"], (images,))


def test_the_scale_of_the_update_does_not_matter_when_it_is_free() -> None:
    names, found = ["a", "b"], [torch.randn(3, 4), torch.randn(5)]
    near, target = Adaptation(free_scale=True).matched(names, [7 * f for f in found], [0.1 * f for f in found])
    for ours, theirs in zip(near, target, strict=True):
        torch.testing.assert_close(ours, theirs)
    opposite, _ = Adaptation(free_scale=True).matched(names, found, [-f for f in found])
    assert max(float(f.abs().max()) for f in opposite) < 1e-4
