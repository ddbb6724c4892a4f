"""How often each image is in a batch whose gradient is a sum over fewer images than the facts state.

Equal images have equal features. Whatever takes a gradient apart sees one image there, whose derivative is the sum of
all copies': with the probabilities p that its logits give, and of the mean cross-entropy over B images,

    B d = m p - n,    n_k of the m copies with label k, whole numbers that are not negative and add up to m.

Every class that is nobody's label tells m by itself, and what then is left are the labels, which may differ from copy
to copy. An image that is there once and whose loss counts m times makes the same gradient: that is not told apart. Of
an image that the network is sure of (p near 1 at its label) the derivative says nothing of m.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .rules.image_labels import fit_labels

# How far the counts of labels may be from whole numbers; and how many times the best counts' distance others may have,
# or what rounding makes of them, before they count as excluded.
_CLEAR, _WORSE, _ROUNDED = 0.1, 10.0, 1e-3
# Ways to share copies among images that are looked through.
_MOST_WAYS = 20_000


@dataclass(frozen=True)
class Repeats:
    """Of each image that was recovered, how often it is in the batch."""

    stated: int
    """B, as the facts have it."""
    times: tuple[int, ...]
    labels: tuple[tuple[int, ...], ...]
    """Of the copies of each image, in rising order; empty where they do not follow."""
    sure: bool
    """Whether no other numbers of copies would do."""
    factor: float = 1.0
    """By what every image's loss counts beside what it would in the mean."""
    counted: bool = True
    """Whether the derivatives tell the numbers; else each image stands there once, and how often it is open."""

    @property
    def unseen(self) -> int:
        """Images of the batch that are none of those recovered."""
        return self.stated - sum(self.times)

    @property
    def which(self) -> Int[Tensor, " copy"]:
        """For each image of the batch that is seen, the one recovered that it is."""
        return torch.repeat_interleave(torch.arange(len(self.times)), torch.tensor(self.times))

    @property
    def all_labels(self) -> Int[Tensor, " copy"] | None:
        """One label for each of these; None where they do not follow."""
        if not all(self.labels):
            return None
        return torch.tensor(list(itertools.chain(*self.labels)))


def once_each(labels: Sequence[int | None], stated: int) -> Repeats:
    """Where nothing tells how often each image is there.

    Args:
        labels: Of the images, as far as they follow.
        stated: B.
    """
    known = tuple(() if label is None else (label,) for label in labels)
    return Repeats(stated, (1,) * len(labels), known, sure=False, counted=False)


def find_repeats(
    derivative: Float[Tensor, "image class"],
    logits: Float[Tensor, "image class"],
    stated: int,
    smoothing: float = 0.0,
) -> Repeats | None:
    """How often each image is there, and with which labels; None where no whole numbers fit.

    Args:
        derivative: Of the loss of the batch by the logits, the sum over the copies of each image.
        logits: Of each image.
        stated: B, no fewer than there are images.
        smoothing: Of the labels, in [0, 1).
    """
    # As the facts have the loss; else up to one factor for all, that of an image that is there once.
    own = fit_labels(derivative, logits, smoothing).scales * stated / len(logits)
    for factor in (1.0, *own.tolist()):
        found = _shared_out(derivative / factor, logits, stated, smoothing)
        # With a factor that nobody stated all images have to be accounted for.
        if found is not None and (factor == 1.0 or not found.unseen):
            return replace(found, factor=factor)
    return None


def _shared_out(derivative: Tensor, logits: Tensor, stated: int, smoothing: float) -> Repeats | None:
    most = stated - len(logits) + 1
    off, counts = _counts(derivative, logits, stated, smoothing, most)
    ways = [way for way in _ways(off, stated) if max(_off(off, way)) <= _CLEAR]
    if not ways:
        return None
    best = min(ways, key=lambda way: (max(_off(off, way)), -sum(way)))
    # What fits the best as well as it may: of several, the one that accounts for all images.
    bound = max(_WORSE * max(_off(off, best)), _ROUNDED)
    fitting = [way for way in ways if max(_off(off, way)) <= bound]
    chosen = min(fitting, key=lambda way: (stated - sum(way), max(_off(off, way))))
    labels = tuple(
        tuple(torch.arange(counts.shape[2]).repeat_interleave(counts[image, times - 1]).tolist())
        for image, times in enumerate(chosen)
    )
    return Repeats(stated, chosen, labels, sure=len(fitting) == 1)


def _counts(
    derivative: Tensor, logits: Tensor, stated: int, smoothing: float, most: int
) -> tuple[Float[Tensor, "image times"], Int[Tensor, "image times class"]]:
    """For every number of copies how often each label is there, and how far that is from a whole number."""
    expected = logits.softmax(dim=1) - smoothing / logits.shape[1]
    times = torch.arange(1, most + 1, dtype=expected.dtype)
    seen = (times[:, None] * expected[:, None, :] - stated * derivative[:, None, :]) / (1 - smoothing)
    whole = seen.round().clamp_min(0)
    off = (seen - whole).abs().amax(dim=2)
    return torch.where(whole.sum(dim=2) == times, off, torch.inf), whole.long()


def _ways(off: Tensor, stated: int) -> list[tuple[int, ...]]:
    """Numbers of copies of each image that fit it and are no more than all images together."""
    choices: Sequence[list[int]] = [
        [times + 1 for times, one in enumerate(row) if one <= _CLEAR] for row in off.tolist()
    ]
    some = itertools.islice(itertools.product(*choices), _MOST_WAYS)
    return [way for way in some if sum(way) <= stated]


def _off(off: Tensor, way: Sequence[int]) -> list[float]:
    return [float(off[image, times - 1]) for image, times in enumerate(way)]
