"""Whether images were recovered bit for bit: to the very values of the 8-bit files that they were.

Where the private images are there, that is counted: the recovered values, rounded to 8 bits, against theirs. Beside it
stands what the server can tell without them, from how near all values are to multiples of 1/255 (`grid_evidence`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from ..coordinator import Reconstruction
from ..peeling.cut import grid_evidence
from .bit_match import BitMatch
from .figures import share_not_rounded_up
from .image_result import ImageResult

_LEVELS = 255
# How far, in steps, a value of an 8-bit file may be off its level by float32 arithmetic on the way.
_ROUNDING = 1e-2


def add_bits(
    results: Sequence[ImageResult],
    reconstruction: Reconstruction,
    images: Float[Tensor, "batch channel height width"],
    true: Float[Tensor, "batch channel height width"] | None,
) -> tuple[ImageResult, ...]:
    """The results with what was recovered to the last bit.

    Args:
        results: one per image.
        reconstruction: of which the record of peeling states how well the images are known.
        images: the answer in the order of the results, in [0, 1].
        true: the private images in that order; None without ground truth.
    """
    evidence = grid_evidence(images, _errors(reconstruction, len(images)))
    found = []
    for row, result in enumerate(results):
        original, exact = (None, None) if true is None else _against(images[row], true[row])
        bits = BitMatch(
            exact_share=exact,
            original_on_grid=original,
            seen=bool(evidence.exact[row]),
            seen_share=float(evidence.share[row]),
            cost=float(evidence.cost[row]),
            other_cost=float(evidence.other_cost[row]),
        )
        found.append(replace(result, bits=bits))
    return tuple(found)


def _against(image: Tensor, true: Tensor) -> tuple[bool, float]:
    """Whether the private image is one of 8 bits, and the share of its values that the recovered one rounds to."""
    levels = true.double() * _LEVELS
    on_grid = bool(((levels - levels.round()).abs() <= _ROUNDING).all())
    return on_grid, float(((image.double() * _LEVELS).round() == levels.round()).double().mean())


def _errors(reconstruction: Reconstruction, count: int) -> Tensor | None:
    """The largest stated error of any image, in pixels; None where the images do not follow from the gradient."""
    record = reconstruction.peeling
    if record is None or not record.whole or record.nearest is None:
        return None
    stated = record.found.errors if record.found is not None else record.nearest.errors
    pixels = reconstruction.normalisation.apply(reconstruction.images.detach().cpu().double())
    size = float(pixels.square().mean().sqrt()) * max(reconstruction.normalisation.std)
    return torch.full((count,), max(stated) * size, dtype=torch.float64)


def bit_note(images: Sequence[ImageResult]) -> str:
    """What was recovered to the last bit, in sentences; empty where nobody looked."""
    bits = [image.bits for image in images if image.bits is not None]
    if not bits:
        return ""
    seen, total = sum(one.seen for one in bits), len(bits)
    if any(one.exact_share is None for one in bits):
        if not seen:
            return "From the recovered values alone no image can be told to be exact to the bit."
        return (
            f"By how near their values are to the levels of an 8-bit file, {seen} of {total} images are recovered bit "
            "for bit."
        )
    files = [one for one in bits if one.original_on_grid]
    if not files:
        return (
            "No private image is on the 256 levels of an 8-bit file (it was resized or drawn in floating point, say), "
            "so that none can be recovered bit for bit."
        )
    exact = sum(one.exact for one in files)
    share = sum(one.exact_share or 0.0 for one in files) / len(files)
    never = total - len(files)
    left = f" {never} {'was' if never == 1 else 'were'} never on the levels of an 8-bit file." if never else ""
    told = f" The server can tell it of {seen} by how near their values are to 8-bit levels." if exact or seen else ""
    which = "of the values are" if not never else "of the values of the 8-bit files are"
    # Where nothing is exact some values are by chance.
    return f"Recovered bit for bit: {exact} of {total} images; {share_not_rounded_up(share)} {which} exact.{left}{told}"
