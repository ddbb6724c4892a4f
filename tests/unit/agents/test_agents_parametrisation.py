"""Descending the latents of a generator that is trained here, on crops of photos."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gradinversion.agents import Agent, AgentsConfig, Objective, ObjectiveConfig, Outcome
from gradinversion.agents.parametrisation import Latents, Pixels, parametrisation_of
from gradinversion.capture import capture_gradient, load_model
from gradinversion.target import Target
from skimage import data
from torch import Tensor, nn

_GRADIENT_ALONE = ObjectiveConfig(total_variation_weight=0.0, group_weight=0.0)
_STEPS = 80


def _after(descends: Agent, *run: Any) -> Tensor:
    """The images after a run."""
    descends.run(*run)
    return descends.images


class _Decoder(nn.Module):
    """A small decoder: latents to a coarse picture, then two convolutions."""

    latent_shape = (24,)

    def __init__(self) -> None:
        super().__init__()
        self.grow = nn.Linear(24, 8 * 8 * 8)
        self.paint = nn.Sequential(nn.Conv2d(8, 16, 3, 1, 1), nn.ELU(), nn.Conv2d(16, 3, 3, 1, 1))

    def forward(self, latents: Tensor) -> Tensor:
        coarse = F.interpolate(self.grow(latents).unflatten(1, (8, 8, 8)), scale_factor=2.0, mode="bilinear")
        return self.paint(coarse).sigmoid()


@pytest.fixture(scope="module")
def generator() -> _Decoder:
    """Trained for a second to give back 16 px crops of a photo from their codes."""
    photo = torch.from_numpy(data.astronaut().copy()).permute(2, 0, 1)[None].float() / 255
    random = torch.Generator().manual_seed(0)
    corners = torch.randint(0, 64 - 16, (256, 2), generator=random).tolist()
    small = F.interpolate(photo, (64, 64), mode="area")[0]
    crops = torch.stack([small[:, i : i + 16, j : j + 16] for i, j in corners])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        decoder, encoder = _Decoder(), nn.Linear(3 * 16 * 16, 24)
    optimizer = torch.optim.Adam([*decoder.parameters(), *encoder.parameters()], lr=3e-3)
    for _ in range(300):
        batch = crops[torch.randint(0, 256, (16,), generator=random)]
        codes = encoder(batch.flatten(1))
        spread = codes.square().mean() - 1 - codes.square().mean().log()  # about N(0, 1)
        loss = (decoder(codes) - batch).square().mean() + 1e-3 * spread
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.02
    return decoder.eval().requires_grad_(False)


def _target(generator: nn.Module | None, truth: Tensor) -> Target:
    model, labels = load_model("convnet", image_size=16), torch.arange(len(truth))
    return Target(capture_gradient(model, truth, labels), model, labels, generator=generator)


@pytest.fixture(scope="module")
def truth(generator: _Decoder) -> Tensor:
    """Two images of the generator."""
    return generator(torch.randn(2, 24, generator=torch.Generator().manual_seed(7)))


def _psnr(target: Target, images: Tensor, truth: Tensor) -> float:
    shown = target.update.normalisation.invert(images).clamp(0, 1)
    return -10 * math.log10(float((shown - truth).square().mean()))


def _config(**changes: Any) -> AgentsConfig:
    return AgentsConfig(**({"iterations": _STEPS, "warmup": 5, "sign": False, "box": False, "noise": 0.2} | changes))


def test_images_of_the_generator_are_found_far_better_by_latents_than_by_pixels(
    generator: _Decoder, truth: Tensor
) -> None:
    found = {}
    for kind, known in (("latents", generator), ("pixels", None)):
        target = _target(known, truth)
        signed = AgentsConfig(iterations=_STEPS, warmup=5)
        config = _config(noise=0.0) if known is not None else signed
        objective = _GRADIENT_ALONE if known is not None else ObjectiveConfig(group_weight=0.0)
        found[kind] = _psnr(target, _after(Agent(target, objective, config, seed=1), _STEPS), truth)
    assert found["latents"] > found["pixels"] + 5, found
    assert found["latents"] > 25, found


def test_candidates_are_images_of_the_generator_in_normalised_pixels(generator: _Decoder, truth: Tensor) -> None:
    target = _target(generator, truth)
    agent = Agent(target, _GRADIENT_ALONE, _config(), seed=1)
    latents = torch.randn(2, 24, generator=torch.Generator().manual_seed(1_000_003))
    expected = target.update.normalisation.apply(generator(latents))
    torch.testing.assert_close(agent.images, expected)
    agent.run(10)
    shown = target.update.normalisation.invert(agent.images)
    assert -1e-6 <= float(shown.min()) <= float(shown.max()) <= 1 + 1e-6


def test_a_restored_agent_goes_on_bit_for_bit(generator: _Decoder, truth: Tensor) -> None:
    target = _target(generator, truth)
    objective = ObjectiveConfig(total_variation_weight=0.1, group_weight=0.1)
    consensus = target.update.normalisation.apply(truth)
    whole, before, after = (Agent(target, objective, _config(iterations=20), seed=4) for _ in range(3))
    whole.run(10)
    last = whole.run(20, consensus)
    before.run(10)
    state = before.state()
    assert state["latents"].shape == state["first_moment"].shape == (2, 24)
    assert "images" not in state
    before.run(12)  # must not reach into the state that was taken
    after.restore(state)
    account = after.run(20, consensus)
    assert torch.equal(after.images, whole.images)
    assert account.losses == last.losses
    assert account.outcome is Outcome.FINISHED


def test_the_group_term_pulls_the_latents(generator: _Decoder, truth: Tensor) -> None:
    target = _target(generator, truth)
    consensus = target.update.normalisation.apply(truth)
    objective = ObjectiveConfig(gradient_weight=0.0, total_variation_weight=0.0, group_weight=1.0)
    agent = Agent(target, objective, _config(noise=0.0), seed=3)
    before = _psnr(target, agent.images, truth)
    assert _psnr(target, _after(agent, _STEPS, consensus), truth) > before + 6


def test_a_seed_joins_near_the_consensus_with_latents_of_its_own(generator: _Decoder, truth: Tensor) -> None:
    target = _target(generator, truth)
    consensus = target.update.normalisation.apply(truth)
    agents = [Agent(target, _GRADIENT_ALONE, _config(), seed) for seed in (1, 1, 2)]
    for agent in agents:
        agent.join(30, consensus)
        assert agent.step == 30
    assert _psnr(target, agents[0].images, truth) > 20
    states = [agent.state()["latents"] for agent in agents]
    assert torch.equal(states[0], states[1])
    assert float((states[0] - states[2]).abs().mean()) > 0.01
    assert agents[0].run(_STEPS).outcome is Outcome.FINISHED


def test_a_start_of_another_shape_is_refused(generator: _Decoder, truth: Tensor) -> None:
    agent = Agent(_target(generator, truth), _GRADIENT_ALONE, _config(), seed=1)
    with pytest.raises(ValueError, match=r"the start has shape \(1, 3, 16, 16\)"):
        agent.join(3, torch.zeros(1, 3, 16, 16))


def test_a_state_of_pixels_is_none_of_latents(generator: _Decoder, truth: Tensor) -> None:
    pixels = Agent(_target(None, truth), ObjectiveConfig(), _config(), seed=1)
    latents = Agent(_target(generator, truth), ObjectiveConfig(), _config(), seed=1)
    with pytest.raises(ValueError, match="it has no latents"):
        latents.restore(pixels.state())
    with pytest.raises(ValueError, match="it has no images"):
        pixels.restore(latents.state())


def test_with_no_term_at_all_images_are_random_ones_of_the_generator(generator: _Decoder, truth: Tensor) -> None:
    target = _target(generator, truth)
    nothing = ObjectiveConfig(gradient_weight=0.0, total_variation_weight=0.0, batch_norm_weight=0.0)
    agent = Agent(target, nothing, _config(noise=0.0), seed=1)
    before = agent.images
    account = agent.run(_STEPS)
    assert torch.equal(agent.images, before)
    assert account.outcome is Outcome.FINISHED
    assert Objective(target, nothing).evidence(before) == 0.0


def test_without_a_generator_no_term_is_refused(truth: Tensor) -> None:
    nothing = ObjectiveConfig(gradient_weight=0.0, total_variation_weight=0.0, batch_norm_weight=0.0)
    with pytest.raises(ValueError, match="no term"):
        Objective(_target(None, truth), nothing)


def test_a_generator_that_fails_on_the_way_is_an_outcome(generator: _Decoder, truth: Tensor) -> None:
    class Fragile(nn.Module):
        latent_shape = (24,)

        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, latents: Tensor) -> Tensor:
            self.calls += 1
            return generator(latents) * (float("nan") if self.calls > 4 else 1.0)

    agent = Agent(_target(Fragile(), truth), _GRADIENT_ALONE, _config(restarts=1), seed=1)
    account = agent.run(20)
    assert account.outcome is Outcome.DROPPED
    assert len(account.failures) == 2


def test_pixels_unless_there_is_a_generator(formula_objective: Callable[..., Any], generator: _Decoder) -> None:
    objective = formula_objective(lambda images, call: images.sum())
    assert isinstance(parametrisation_of(objective), Pixels)
    objective.generator, objective.labels = generator, torch.arange(2)
    assert isinstance(parametrisation_of(objective), Latents)
