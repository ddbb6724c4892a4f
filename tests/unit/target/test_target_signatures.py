"""Zeros of pruning are told from those of units that are closed, on small networks of many shapes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from gradinversion.capture import apply_defence
from gradinversion.target.signatures import is_pruned, pruning_slack
from torch import Tensor, nn

_WIDTHS = ((8,), (8, 8), (16, 8), (32, 16, 8), (16, 16, 16, 16))
_SEEDS = range(3)
_CLASSES = 10


def _dense(widths: tuple[int, ...]) -> nn.Module:
    sizes = (192, *widths)
    layers = [part for one in zip(sizes, widths, strict=False) for part in (nn.Linear(*one), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(widths[-1], _CLASSES))


def _convolutional(widths: tuple[int, ...], *, pooled: bool = False) -> nn.Module:
    sizes, layers = (3, *widths[:3]), list[nn.Module]()
    for entering, leaving in zip(sizes, widths[:3], strict=False):
        layers += [nn.Conv2d(entering, leaving, 3, 1 if pooled else 2, 1), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if pooled else []
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(sizes[-1], _CLASSES))


def _pooled(widths: tuple[int, ...]) -> nn.Module:
    return _convolutional(widths, pooled=True)


@cache
def _gradients(make: object, batch: int, steps: int = 1) -> list[dict[str, Tensor]]:
    """Of every width and seed; of several steps of one network the sum, as in a weight delta."""
    found = []
    for widths in _WIDTHS:
        for seed in _SEEDS:
            torch.manual_seed(seed)
            model = make(widths)  # type: ignore[operator]
            images, labels = torch.rand(batch * steps, 3, 8, 8), torch.randint(_CLASSES, (batch * steps,))
            losses = [
                F.cross_entropy(model(some), own)
                for some, own in zip(images.split(batch), labels.split(batch), strict=True)
            ]
            gradients = torch.autograd.grad(sum(losses, torch.zeros(())), list(model.parameters()))
            found.append(dict(zip(dict(model.named_parameters()), gradients, strict=True)))
    return found


def _live(gradients: Mapping[str, Tensor]) -> int:
    """Entries of matrices and kernels that are not zero."""
    return sum(int((one != 0).sum()) for one in gradients.values() if one.dim() > 1)


def _kept(gradients: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """The largest entries of all tensors together."""
    sizes = torch.cat([one.flatten() for one in gradients.values()]).abs().sort(descending=True).values
    least = sizes[max(1, int(share * len(sizes))) - 1]
    return {name: torch.where(one.abs() >= least, one, 0.0) for name, one in gradients.items()}


def _dropped(gradients: Mapping[str, Tensor], share: float, seed: int = 0) -> dict[str, Tensor]:
    """Each entry is kept with a chance, whatever its size."""
    random = torch.Generator().manual_seed(seed)
    return {name: g * (torch.rand(g.shape, generator=random) < share) for name, g in gradients.items()}


def _shuffled(gradient: Tensor, random: torch.Generator) -> Tensor:
    return gradient.flatten()[torch.randperm(gradient.numel(), generator=random)].reshape(gradient.shape)


@pytest.mark.parametrize("make", [_dense, _convolutional, _pooled])
@pytest.mark.parametrize(("batch", "steps"), [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2)])
def test_closed_units_are_never_taken_for_pruning(make: object, batch: int, steps: int) -> None:
    assert not any(is_pruned(one) for one in _gradients(make, batch, steps))


def test_their_zeros_lie_off_whole_rows_and_columns_too() -> None:
    of_many = [one for batch, steps in ((2, 1), (1, 2)) for one in _gradients(_convolutional, batch, steps)]
    assert sum(bool(pruning_slack(one)) for one in of_many) >= 5


@pytest.mark.parametrize("make", [_dense, _convolutional, _pooled])
@pytest.mark.parametrize("kept", [0.01, 0.1, 0.5])
def test_pruning_is_never_taken_for_closed_units(make: object, kept: float) -> None:
    both = [(one, apply_defence(one, "prune", 1 - kept)) for one in _gradients(make, 2)]
    # Half of the entries may be the zeros that were there before; and few that are left tell nothing.
    found = [is_pruned(pruned) for one, pruned in both if _live(pruned) < 0.9 * _live(one)]
    assert len(found) >= len(both) // 2
    assert False not in found
    assert found.count(True) >= len(found) // 3


@pytest.mark.parametrize("make", [_dense, _convolutional, _pooled])
@pytest.mark.parametrize("kept", [0.01, 0.1])
def test_nor_are_the_largest_entries_of_the_whole_update(make: object, kept: float) -> None:
    found = [is_pruned(_kept(one, kept)) for one in _gradients(make, 2)]
    assert False not in found
    assert found.count(True) >= len(found) // 4


def test_an_average_of_two_pruned_updates_does_not_show_that_nothing_was_dropped() -> None:
    for one in _gradients(_dense, 1):
        noise = torch.Generator().manual_seed(0)
        other = {
            name: g.flatten()[torch.randperm(g.numel(), generator=noise)].reshape(g.shape) for name, g in one.items()
        }
        pruned = [apply_defence(some, "prune", 0.5) for some in (one, other)]
        average = {name: (pruned[0][name] - pruned[1][name]) / 2 for name in one}
        assert is_pruned(average, clients=2) is not False


@pytest.mark.parametrize("make", [_dense, _convolutional, _pooled])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.95])
def test_entries_that_are_dropped_at_random_are_never_taken_for_closed_units(make: object, kept: float) -> None:
    for batch in (1, 2, 4):
        assert not any(is_pruned(_dropped(one, kept)) is False for one in _gradients(make, batch))


def _mlp(depth: int, width: int, images: int, seed: int = 0) -> dict[str, Tensor]:
    """Gradients of a mean square, with nothing dropped."""
    torch.manual_seed(seed)
    layers = [nn.Linear(width, width) for _ in range(depth)]
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight)
    body = nn.Sequential(*[part for layer in layers for part in (layer, nn.ReLU())], nn.Linear(width, 10))
    body(torch.rand(images, width)).square().mean().backward()
    return {name: one.grad for name, one in body.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("depth", [2, 9, 30, 45])
def test_zeros_of_many_layers_are_told_from_pruning(depth: int) -> None:
    for seed in range(3):
        gradients = _mlp(depth, 128, 2, seed)
        assert any(bool((one == 0).any()) for one in gradients.values())
        assert is_pruned(gradients) is False
        assert is_pruned(apply_defence(gradients, "prune", 0.9)) is True
        assert is_pruned(_dropped(gradients, 0.95)) is None
