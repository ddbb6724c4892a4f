"""How right recovered labels are: which classes, how often each, how many instances."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from jaxtyping import Int
from torch import Tensor

from .metrics import label_accuracy


@dataclass(frozen=True)
class LabelScores:
    """All in [0, 1]; a gradient holds no order, so labels are compared as sets and multisets."""

    precision: float
    """Class presence: share of the recovered classes that are in the batch."""
    recall: float
    """Class presence: share of the batch's classes that were recovered."""
    class_count: float
    """Share of the classes on either side whose count is right."""
    instances: float
    """Share of the private labels that were recovered (``label_accuracy``)."""

    def to_dict(self) -> dict[str, Any]:
        """As reports tell them."""
        presence = {"precision": self.precision, "recall": self.recall}
        return {"class_presence": presence, "class_count": self.class_count, "instances": self.instances}


def score_labels(recovered: Int[Tensor, " found"], true: Int[Tensor, " batch"]) -> LabelScores:
    """The scores of recovered labels against the private ones.

    Args:
        recovered: Class indices, at least 0.
        true: Class indices, at least one and no more than were recovered: an update may show more images than somebody
            told.

    Raises:
        ValueError: The batch is empty, fewer labels were recovered, or a label is below zero.
    """
    instances = label_accuracy(recovered, true)
    if len(recovered) < len(true):
        raise ValueError(f"{len(recovered)} labels were recovered for {len(true)} private ones; give one for each.")
    lowest = min(int(recovered.min()), int(true.min()))
    if lowest < 0:
        raise ValueError(f"A label is {lowest}; classes are numbered from 0.")
    found, private = Counter(recovered.tolist()), Counter(true.tolist())
    both = found.keys() & private.keys()
    either = found.keys() | private.keys()
    return LabelScores(
        precision=len(both) / len(found),
        recall=len(both) / len(private),
        class_count=sum(found[label] == private[label] for label in either) / len(either),
        instances=instances,
    )
