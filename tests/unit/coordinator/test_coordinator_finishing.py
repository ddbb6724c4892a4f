"""From the last round to the answer, where seeds began at images that fit more than what they descend on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from gradinversion.agents import Candidate, Outcome
from gradinversion.capture import CapturedUpdate
from gradinversion.coordinator import AttackConfig, Reconstruction
from gradinversion.coordinator.finishing import conclude
from gradinversion.coordinator.progress import Progress
from gradinversion.registration import Consensus
from gradinversion.target.preparation import prepare
from gradinversion.target.start import Start
from torch import Tensor, nn


def _concluded(
    update: CapturedUpdate, model: nn.Module, config: AttackConfig, begun: Tensor, ended: Tensor, fitted: bool
) -> Reconstruction:
    """The answer of two seeds that began and ended at these images (normalised)."""
    prepared = prepare(update, model, config.request)
    start = Start(begun, torch.full((3,), 0.3), fitted=fitted)
    prepared = replace(prepared, target=replace(prepared.target, start=start))
    consensus = Consensus(ended, torch.ones(3), (0, 1), 3, None, torch.zeros(2, 3, dtype=torch.bool), ())
    orders = torch.arange(3).expand(2, 3).clone()
    seeds = [Candidate(seed, 0, 40, {}, Outcome.FINISHED, images=ended) for seed in (0, 1)]
    return conclude(update, config, prepared, Progress(consensus=consensus), seeds, orders, True)


@pytest.fixture
def truth(update: CapturedUpdate) -> Tensor:
    """The images of the update, normalised."""
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return update.normalisation.apply(images)


def test_a_start_that_fits_the_gradient_is_not_given_up_for_what_seeds_made_of_it(
    update: CapturedUpdate, model: nn.Module, config: AttackConfig, truth: Tensor
) -> None:
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(2))
    found = _concluded(update, model, config, truth + 0.01 * noise, truth + 0.3 * noise, fitted=True)
    assert [str(source) for source in found.sources] == ["start"] * 3
    assert all(source.of_one_seed for source in found.sources)
    expected = update.normalisation.invert(truth + 0.01 * noise).clamp(0, 1)
    assert torch.equal(found.images, expected)


def test_seeds_that_made_it_better_are_the_answer(
    update: CapturedUpdate, model: nn.Module, config: AttackConfig, truth: Tensor
) -> None:
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(2))
    found = _concluded(update, model, config, truth + 0.3 * noise, truth + 0.01 * noise, fitted=True)
    assert [str(source) for source in found.sources] == ["consensus"] * 3


def test_images_are_exchanged_one_by_one(
    update: CapturedUpdate, model: nn.Module, config: AttackConfig, truth: Tensor
) -> None:
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(2))
    worse = torch.tensor([1.0, 1.0, 0.0])[:, None, None, None]
    begun, ended = truth + 0.3 * (1 - worse) * noise, truth + 0.3 * worse * noise
    found = _concluded(update, model, config, begun, ended, fitted=True)
    assert [str(source) for source in found.sources] == ["start", "start", "consensus"]


def test_a_start_that_was_only_decoded_is_no_answer(
    update: CapturedUpdate, model: nn.Module, config: AttackConfig, truth: Tensor
) -> None:
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(2))
    found = _concluded(update, model, config, truth + 0.01 * noise, truth + 0.3 * noise, fitted=False)
    assert [str(source) for source in found.sources] == ["consensus"] * 3
