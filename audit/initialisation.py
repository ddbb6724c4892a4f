"""Whether weights are those of a fresh initialisation: decided by the weights, whatever file they came from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum

import numpy as np
import scipy
import torch
from torch import Tensor, nn

from ..capture import ClientConfig, ModelError, load_model

_SEEDS = (1_000_003, 1_000_033)
"""Of the fresh models that the given one is compared with."""
_MOST_ENTRIES = 20_000
"""Of one tensor that are compared, evenly spread."""
_CHANCE = 1e-9
"""Below this chance two samples are not of one distribution; a network has hundreds of tensors."""
_TIGHT = 20.0
"""A uniform sample of n entries reaches its bound to within a few times 1/n."""
_ROUNDING = 1e-6


class WeightState(StrEnum):
    """What is known of a model's weights, as the end of a sentence that begins with the model."""

    RANDOM = " with random weights (untrained), which usually leak more than trained ones"
    FRESH = (
        " with weights that cannot be told from a fresh initialisation (as random ones, which usually leak more than "
        "trained ones); a very short training would not show"
    )
    RUN = (
        " with weights that cannot be told from a fresh initialisation, and batch-norm statistics that are not: images "
        "went through it, and whether it was trained is not known"
    )
    TRAINED = (
        " with trained weights: they are no fresh initialisation, and its batch-norm statistics are not either; for "
        "how long it was trained is not known"
    )
    CHANGED = " with weights that are no fresh initialisation; whether they are trained is not known"
    TOLD = " with trained weights, as told"
    UNKNOWN = "; whether its weights are trained or random is not known"

    @staticmethod
    def told(trained: bool | None) -> WeightState:
        """What somebody said of the weights."""
        if trained is None:
            return WeightState.UNKNOWN
        return WeightState.TOLD if trained else WeightState.RANDOM


def weight_state(model: nn.Module, client: ClientConfig, image_size: int) -> WeightState:
    """What a client's model shows of its own weights, beside fresh models of the same kind.

    Args:
        model: as the client started from it.
        client: how it was made: without a file of weights the bundled, torchvision's and timm's models are random.
        image_size: side of the images in pixels.
    """
    if client.weights is None and client.trained is False:
        return WeightState.RANDOM

    def build(seed: int) -> nn.Module:
        return load_model(client.model, client.classes, image_size, None, seed)

    try:
        return compare_weights(model, build)
    except ModelError:
        return WeightState.UNKNOWN


def compare_weights(model: nn.Module, build: Callable[[int], nn.Module]) -> WeightState:
    """What a model's weights are beside two fresh ones.

    - Tensors that hold one value in every fresh model (the scales of batch norm, many biases) must hold it still.
    - Of tensors with the bound of torch's default initialisation, ``1/sqrt(fan in)``, no entry may be beyond it.
    - All others must not differ in distribution (two samples, Kolmogorov and Smirnov).

    Args:
        model: whose weights are asked about.
        build: a model of the same kind with fresh weights from a seed.
    """
    fresh = [build(seed) for seed in _SEEDS]
    own = dict(model.named_parameters())
    others = [dict(one.named_parameters()) for one in fresh]
    if any({name: p.shape for name, p in one.items()} != {name: p.shape for name, p in own.items()} for one in others):
        return WeightState.UNKNOWN
    random = [name for name in own if not torch.equal(others[0][name], others[1][name])]
    if not random:
        return WeightState.UNKNOWN  # whoever builds the model fixes its weights: nothing tells what they are
    run = _statistics_moved(model, fresh[0])
    if _is_fresh(own, others, random) and not _leaves_a_bound(model, fresh):
        return WeightState.RUN if run else WeightState.FRESH
    return WeightState.TRAINED if run else WeightState.CHANGED


def _is_fresh(own: Mapping[str, Tensor], others: Sequence[Mapping[str, Tensor]], random: Sequence[str]) -> bool:
    for name, given in own.items():
        first, second = (one[name] for one in others)
        if name in random:
            sample = np.concatenate([_entries(first), _entries(second)])
            if scipy.stats.ks_2samp(_entries(given), sample, method="asymp").pvalue < _CHANCE:
                return False
        elif not torch.equal(given.detach().cpu().to(first.dtype), first.detach()):
            return False
    return True


def _entries(tensor: Tensor) -> np.ndarray:
    flat = tensor.detach().cpu().double().flatten()
    found: np.ndarray = flat[:: -(-len(flat) // _MOST_ENTRIES)].numpy()
    return found


def _leaves_a_bound(model: nn.Module, fresh: Sequence[nn.Module]) -> bool:
    """Whether some entry is beyond the bound that torch's default initialisation keeps."""
    for given, first, second in zip(_layers(model), _layers(fresh[0]), _layers(fresh[1]), strict=True):
        bound = 1 / given.weight[0].numel() ** 0.5
        if not all(_is_uniform(one.weight, bound) for one in (first, second)):
            continue
        for name in ("weight", "bias"):
            tensors = [getattr(one, name) for one in (given, first, second)]
            if any(tensor is None for tensor in tensors):
                continue
            largest, *usual = (float(tensor.detach().abs().max()) for tensor in tensors)
            if max(usual) <= bound * (1 + _ROUNDING) < largest:
                return True
    return False


def _layers(model: nn.Module) -> Iterator[nn.Linear | nn.Conv2d]:
    """Layers whose fan in is the number of entries behind each output."""
    return (layer for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d))


def _is_uniform(weight: Tensor, bound: float) -> bool:
    largest = float(weight.detach().abs().max())
    return largest <= bound * (1 + _ROUNDING) and weight.numel() * (1 - largest / bound) < _TIGHT


def _statistics_moved(model: nn.Module, fresh: nn.Module) -> bool:
    """Whether running statistics, not their counter, are others than at the start."""
    usual = dict(fresh.named_buffers())
    return any(
        name.rpartition(".")[2] in ("running_mean", "running_var")
        and name in usual
        and not torch.equal(buffer.detach().cpu().to(usual[name].dtype), usual[name])
        for name, buffer in model.named_buffers()
    )
