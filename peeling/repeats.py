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
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .rules.image_labels import fit_labels

# How far the counts of labels may be from whole numbers: at most, in errors that the logits' relative error makes of
# them, and at least. How many times the best counts' distance others may have, or what rounding makes of them, before
# they count as excluded.
_CLEAR, _ERRORS, _LEAST, _WORSE, _ROUNDED = 0.1, 10.0, 1e-2, 10.0, 1e-3


@dataclass(frozen=True)
class Repeats:
    """Of each image that was recovered, how often it is in the batch."""

    stated: int
    """B, as the facts have it."""
    times: tuple[int, ...]
    labels: tuple[tuple[int, ...], ...]
    """Of the copies of each image, in rising order; empty where they do not follow."""
    sure: bool
    """Whether no other numbers of copies would do; else there may be more copies of them."""
    factor: float = 1.0
    """By what every image's loss counts beside what it would in the mean."""
    counted: bool = True
    """Whether the derivatives tell the numbers; else each image stands there once, and how often it is open."""

    @property
    def unseen(self) -> int:
        """Images of the batch that are none of those recovered, or more copies of them where the numbers are not
        sure."""
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
    error: float = 0.0,
    apart: int = 0,
) -> Repeats | None:
    """How often each image is there, and with which labels; None where no whole numbers fit.

    Where several do, each image is there as often as it is by all of them, and what is left of the batch is open.

    Args:
        derivative: Of the loss of the batch by the logits, the sum over the copies of each image.
        logits: Of each image.
        stated: B, no fewer than there are images.
        smoothing: Of the labels, in [0, 1).
        error: Relative, of the logits as it is estimated.
        apart: Images of the batch that are known to be others than these.
    """
    clear = min(_CLEAR, max(_LEAST, _ERRORS * error * stated))
    batch = _Batch(derivative, logits, stated, smoothing, stated - apart, clear)
    plain, best = batch.fit(1.0), None
    for factor in batch.factors():
        found = batch.fit(factor)
        # With a factor that nobody stated all images have to be accounted for.
        accounts = found is not None and sum(found.times) == batch.most
        if found is not None and accounts and (best is None or found.off < best.off):
            best = found
    if plain is None or (best is not None and plain.off > max(_WORSE * best.off, _ROUNDED)):
        # Half as many copies of each and twice the factor make the same gradient, and leave images without a part.
        return None if best is None else batch.repeats(best, sure=best.sure and math.gcd(*best.times) == 1)
    return batch.repeats(plain, sure=plain.sure and (best is None or best.times == plain.times))


@dataclass(frozen=True)
class _Fit:
    """The fewest copies that fit with one factor."""

    factor: float
    times: tuple[int, ...]
    counts: Int[Tensor, "image times class"]
    off: float
    """How far the best numbers of copies are from whole counts of labels."""
    sure: bool


@dataclass(frozen=True)
class _Batch:
    """What is known of the images; with the largest number of copies in all, and how far counts may be from whole."""

    derivative: Tensor
    logits: Tensor
    stated: int
    smoothing: float
    most: int
    clear: float

    @property
    def _each(self) -> int:
        """Copies of one image at most."""
        return self.most - len(self.logits) + 1

    def factors(self) -> Iterator[float]:
        """Those with which some image is there a whole number of times, each once."""
        own = fit_labels(self.derivative, self.logits, self.smoothing).scales * self.stated / len(self.logits)
        every = own[:, None] / torch.arange(1, self._each + 1, dtype=own.dtype)
        # Those of one batch differ by rounding alone.
        yield from {f"{one:.4g}": one for one in every.flatten().tolist() if one > 0}.values()

    def fit(self, factor: float) -> _Fit | None:
        off, counts = _counts(self.derivative / factor, self.logits, self.stated, self.smoothing, self._each)
        best = float(off.amin(dim=1).max())
        if best > self.clear:
            return None
        fits = off <= min(self.clear, max(_WORSE * best, _ROUNDED))
        choices = [row.nonzero().flatten().add(1).tolist() for row in fits]
        fewest = tuple(map(min, choices))
        left = self.most - sum(fewest)
        if left < 0:
            return None
        sure = all(len(own) == 1 or sorted(own)[1] - own[0] > left for own in choices)
        return _Fit(factor, fewest, counts, best, sure)

    def repeats(self, fit: _Fit, *, sure: bool) -> Repeats:
        classes = torch.arange(fit.counts.shape[2])
        labels = tuple(
            tuple(classes.repeat_interleave(fit.counts[image, times - 1]).tolist())
            for image, times in enumerate(fit.times)
        )
        return Repeats(self.stated, fit.times, labels, sure, fit.factor)


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
