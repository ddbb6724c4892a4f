"""Local steps as linear algebra, against the optimiser itself."""

import pytest
import torch
from gradinversion.capture.local_training import LocalTraining
from gradinversion.peeling.local_steps import LocalSteps

_SETTINGS = [(0.1, 0.0, 0.0), (0.05, 0.9, 0.0), (0.05, 0.0, 0.3), (0.02, 0.8, 0.1)]


def _trained(rate: float, momentum: float, decay: float, gradients: list[torch.Tensor]) -> list[torch.Tensor]:
    """The weights before each step, and after the last, by torch's own optimiser."""
    weight = torch.nn.Parameter(torch.linspace(-1, 2, 5, dtype=torch.float64))
    optimiser = torch.optim.SGD([weight], lr=rate, momentum=momentum, weight_decay=decay)
    found = [weight.detach().clone()]
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimiser.step()
        found.append(weight.detach().clone())
    return found


@pytest.mark.parametrize(("rate", "momentum", "decay"), _SETTINGS)
def test_weights_before_each_step_are_the_optimisers(rate: float, momentum: float, decay: float) -> None:
    gradients = list(torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    trained = _trained(rate, momentum, decay, gradients)
    steps = LocalSteps((2, 2, 2, 1), rate, momentum, decay)
    torch.testing.assert_close(steps.every(trained[0], gradients), torch.stack(trained[:-1]), rtol=1e-12, atol=1e-12)
    summed = sum(count * gradient for count, gradient in zip(steps.counts, gradients, strict=True))
    torch.testing.assert_close(steps.summed(trained[0], trained[-1] - trained[0]), summed, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("rate", "momentum", "decay"), _SETTINGS)
def test_rates_that_change_on_the_way_are_the_optimisers(rate: float, momentum: float, decay: float) -> None:
    gradients = list(torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2)))
    sizes = (1.0, 0.1, 2.0)
    weight = torch.nn.Parameter(torch.linspace(-1, 2, 5, dtype=torch.float64))
    optimiser = torch.optim.SGD([weight], lr=rate, momentum=momentum, weight_decay=decay)
    trained = [weight.detach().clone()]
    for gradient, size in zip(gradients, sizes, strict=True):
        optimiser.param_groups[0]["lr"] = rate * size
        weight.grad = gradient.clone()
        optimiser.step()
        trained.append(weight.detach().clone())
    steps = LocalSteps((1, 1, 1), rate, momentum, decay, sizes=sizes)
    torch.testing.assert_close(steps.every(trained[0], gradients), torch.stack(trained[:-1]), rtol=1e-12, atol=1e-12)
    summed = sum(count * gradient for count, gradient in zip(steps.counts, gradients, strict=True))
    torch.testing.assert_close(steps.summed(trained[0], trained[-1] - trained[0]), summed, rtol=1e-9, atol=1e-9)


def test_visits_stand_in_the_order_of_the_steps() -> None:
    steps = LocalSteps.of(LocalTraining(0.1, epochs=2, batch_size=2), image_count=5)
    assert steps.visits == (2, 2, 1, 2, 2, 1)
    assert (steps.count, steps.visit_count) == (6, 10)
    assert steps.slices[2] == slice(4, 5)
    assert steps.slices[-1] == slice(9, 10)


def test_one_step_counts_once() -> None:
    assert LocalSteps((3,), 0.1, momentum=0.9).counts.tolist() == pytest.approx([1.0])


@pytest.mark.parametrize(("rate", "momentum", "decay"), _SETTINGS)
def test_the_average_over_clients_has_each_ones_own_steps(rate: float, momentum: float, decay: float) -> None:
    random = torch.Generator().manual_seed(1)
    gradients = [list(torch.randn(3, 5, dtype=torch.float64, generator=random)) for _ in range(2)]
    trained = [_trained(rate, momentum, decay, own) for own in gradients]
    steps = LocalSteps((2, 2, 2, 2, 1, 1), rate, momentum, decay, clients=2)
    in_order = [one for step in zip(*gradients, strict=True) for one in step]
    before = torch.stack([one for step in zip(*trained, strict=True) for one in step][:-2])
    torch.testing.assert_close(steps.every(trained[0][0], in_order), before, rtol=1e-12, atol=1e-12)
    summed = sum(count * gradient for count, gradient in zip(steps.counts, in_order, strict=True))
    delta = (trained[0][-1] + trained[1][-1]) / 2 - trained[0][0]
    torch.testing.assert_close(steps.summed(trained[0][0], delta), summed, rtol=1e-9, atol=1e-9)


def test_visits_of_clients_stand_step_by_step() -> None:
    steps = LocalSteps.of(LocalTraining(0.1, epochs=1, batch_size=2), image_count=3, clients=2)
    assert steps.visits == (2, 2, 1, 1)
    assert (steps.count, steps.each, steps.visit_count) == (4, 2, 6)
    assert [steps.is_first(step) for step in range(4)] == [True, True, False, False]


@pytest.mark.parametrize("clients", [1, 3])
def test_sums_are_off_by_the_rounding_of_each_weight(clients: int) -> None:
    random = torch.Generator().manual_seed(2)
    before = torch.randn(20_000, generator=random)
    steps = LocalSteps((1,) * 4 * clients, 0.01, 0.9, clients=clients)
    gradients = 1e-3 * torch.randn(4 * clients, len(before), generator=random)
    moved = torch.zeros_like(before)
    for client in range(clients):
        weight = torch.nn.Parameter(before.clone())
        optimiser = torch.optim.SGD([weight], lr=0.01, momentum=0.9)
        for gradient in gradients[client::clients]:
            weight.grad = gradient.clone()
            optimiser.step()
        moved += (weight.detach() - before) / clients
    found = steps.summed(before, moved)
    exact = (steps.counts[:, None] * gradients.double()).sum(dim=0)
    deviation = steps.deviation(before, found)
    off = (found.double() - exact) / deviation
    assert 0.5 < float(off.square().mean().sqrt()) < 2
    near = before.abs() < 0.01
    assert 0.3 < float(off[near].square().mean().sqrt()) < 3
    assert float(deviation[near].square().mean().sqrt()) < 0.1 * float(deviation.square().mean().sqrt())


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_a_delta_in_half_precision_is_of_weights_in_single(kind: torch.dtype) -> None:
    """It is off by its own rounding and theirs, whatever type the weights are held in here."""
    random = torch.Generator().manual_seed(3)
    before = torch.randn(20_000, generator=random)
    steps = LocalSteps((1, 1), 0.01)
    gradients = 0.1 * torch.randn(2, len(before), generator=random)
    exact = gradients.double().sum(dim=0)
    found = steps.summed(before, (-0.01 * exact).to(kind))
    deviation = steps.deviation(before.double(), found)
    off = float(((found.double() - exact) / deviation).square().mean().sqrt())
    assert 0.2 < off < 2
    # Rounding of the weights to this type would be a hundred times as much.
    share = float(deviation.square().mean().sqrt() / exact.square().mean().sqrt())
    assert share < 3 * torch.finfo(kind).eps


def test_weights_in_half_precision_are_rounded_to_it() -> None:
    before = torch.randn(20_000, generator=torch.Generator().manual_seed(4)).bfloat16()
    steps = LocalSteps((1,), 0.1)
    exact = torch.full((len(before),), 0.3, dtype=torch.float64)
    after = (before.double() - 0.1 * exact).bfloat16()
    found = steps.summed(before, after - before)
    off = (found.double() - exact) / steps.deviation(before.double(), found)
    assert 0.3 < float(off.square().mean().sqrt()) < 3
