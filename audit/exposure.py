"""How much of the client's gradient each private image makes. An average shows most of what weighs most in it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..capture import BatchNormMode, CapturedUpdate, PrivateBatch, client_mode
from ..capture.fitting import fit

DOMINANT = 1.5
"""From so many times an equal share of the gradient norm on, an image is called dominant."""


@dataclass(frozen=True)
class Exposure:
    """What each private image adds to the gradient, in the order of the private batch."""

    losses: tuple[float, ...]
    """Cross-entropy of each image, in nats, at the weights that the client started from."""
    norms: tuple[float, ...]
    """L2 norm over all trained parameters of the gradient of each image's own loss (not divided by the batch)."""

    @property
    def shares(self) -> tuple[float, ...]:
        """Each norm over the sum of all, in [0, 1]; equal shares where no image has a gradient."""
        total = sum(self.norms)
        return tuple(norm / total if total > 0 else 1 / len(self.norms) for norm in self.norms)


def measure_exposure(model: nn.Module, private: PrivateBatch, update: CapturedUpdate) -> Exposure:
    """Loss and gradient norm of each private image, with batch norm as the client ran it.

    With batch statistics the loss of one image depends on the others; its gradient is then that of its own loss within
    the batch. A defence comes after this gradient and changes no share here.

    Args:
        model: in the state that the client started from; it is left as it was.
        private: the true images in [0, 1] and their labels.
        update: of this batch.

    Raises:
        ValueError: the update is of another loss than cross-entropy.
    """
    if update.loss != "cross_entropy":
        raise ValueError(f"the exposure is that of cross-entropy, and the update names the loss {update.loss!r}")
    update, model = fit(update, model)
    named = dict(model.named_parameters())
    parameters = [named[name] for name in update.gradients]
    like = parameters[0]
    inputs, labels = update.normalisation.apply(private.images.to(like)), private.labels.to(like.device)
    losses, norms = [], []
    with client_mode(model, update.batch_norm), torch.enable_grad():
        for loss in _losses(model, inputs, labels, update.batch_norm):
            found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            squares = sum(float(gradient.double().square().sum()) for gradient in found if gradient is not None)
            losses.append(float(loss.detach()))
            norms.append(math.sqrt(squares))
    return Exposure(tuple(losses), tuple(norms))


def _losses(model: nn.Module, inputs: Tensor, labels: Tensor, mode: BatchNormMode) -> Iterator[Tensor]:
    if mode is BatchNormMode.EVAL and _takes_one(model, inputs):
        # Images do not meet, so none has to wait for the others' graphs.
        for image, label in zip(inputs, labels, strict=True):
            yield F.cross_entropy(model(image[None]), label[None])
    else:
        yield from F.cross_entropy(model(inputs), labels, reduction="none")


def _takes_one(model: nn.Module, inputs: Tensor) -> bool:
    """Whether the model takes a batch of one image: some are written for one batch size."""
    try:
        with torch.no_grad():
            model(inputs[:1])
    # The user's own code may raise anything.
    except Exception:
        return False
    return True


def rank_correlation(values: Sequence[float], others: Sequence[float]) -> float | None:
    """Spearman's rank correlation, in [-1, 1]; None for fewer than three pairs or where one side does not vary."""
    pairs = [(a, b) for a, b in zip(values, others, strict=True) if math.isfinite(a) and math.isfinite(b)]
    if len(pairs) < 3:
        return None
    ranks = [scipy.stats.rankdata(side) for side in zip(*pairs, strict=True)]
    if any(np.ptp(side) == 0 for side in ranks):
        return None
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])
