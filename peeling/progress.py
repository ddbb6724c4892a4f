"""What peeling is at, told while it works: a line for a person, at every step that may take a while."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .graph import Graph
from .recording import place_words
from .rules import Knowledge, Step

Tell = Callable[[str], None]
"""Given a few words, small letters and no full stop: they follow what a run is at."""

# A descent is told of so often at most.
_PARTS = 10


def unheard(words: str) -> None:
    """For nobody."""


def steps_told(tell: Tell, graph: Graph) -> Callable[[Step, Knowledge], None]:
    """Tells each value that the rules recovered, and how many these are."""
    values: dict[str, None] = {}

    def on_step(step: Step, known: Knowledge) -> None:
        if step.value in values:
            return  # known better than before
        values[step.value] = None
        shape = " x ".join(map(str, step.shape))
        many = f"{len(values)} places known, last " if len(values) > 1 else "one place known, "
        tell(f"{many}{place_words(graph, step.value)} ({shape}, estimated error {max(step.error):.1g})")

    return on_step


def descent_told(tell: Tell, most: int) -> Callable[[int, Tensor], None]:
    """Tells which part of the evaluations that a descent may make are made.

    Args:
        tell: See `Tell`.
        most: Evaluations of single images, all of them together.
    """
    told = -1

    def on_evaluation(made: int, images: Tensor) -> None:
        nonlocal told
        part = _PARTS * made // max(most, 1)
        if part > told:
            told = part
            tell(f"a descent on the features, {made:,} of at most {most:,} evaluations")

    return on_evaluation
