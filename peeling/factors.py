"""The factors by which images count in a gradient: which are told apart from 1, and what each kind of them means."""

from __future__ import annotations

from collections.abc import Sequence

# Factors are told apart where they differ by so many estimated errors, and by so much.
_ERRORS, _LEAST = 3.0, 1e-3


def distinct_from_one(factors: Sequence[float], error: float) -> tuple[float, ...]:
    """The factors, or none where all are 1 within their error.

    Args:
        factors: One per image.
        error: Relative error of what they were found with.
    """
    return tuple(factors) if max(abs(factor - 1) for factor in factors) > _apart(error) else ()


def describe(factors: Sequence[float], error: float) -> str:
    """One sentence on the factors, each of which is that of an image; empty for none.

    Clipping cannot enlarge, so that a factor above 1 has another reason.
    """
    if not factors:
        return ""
    least, largest, undone = min(factors), max(factors), "which was found with the activations and undone."
    if largest - least <= _apart(error) * largest:
        factor = sum(factors) / len(factors)
        reasons = (
            "a sum over the batch, batches that were accumulated, or a loss scaler that was not undone"
            if factor > 1
            else "clipping of the whole, or a loss that was divided once more"
        )
        return f"The gradient is {factor:.3g} times that of the mean loss ({reasons}), {undone}"
    if largest <= 1 + _apart(error):
        return (
            f"The gradient is clipped image by image: they count {least:.3g} to {largest:.3g} times what they would in "
            f"the mean loss, {undone}"
        )
    return (
        f"The images count {least:.3g} to {largest:.3g} times what they would in the mean loss (clipping image by "
        f"image, and a factor above 1 on all of them, such as a sum over the batch or a loss scaler), {undone}"
    )


def _apart(error: float) -> float:
    return max(_LEAST, _ERRORS * error)
