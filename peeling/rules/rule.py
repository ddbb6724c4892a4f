"""What a rule is: it looks at what is known and derives one thing more, or nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from ..graph import Graph
from ..local_steps import LocalSteps
from ..refusals import Refused
from .effort import Effort
from .knowledge import Knowledge


@dataclass(frozen=True)
class Setting:
    """What rules work on."""

    graph: Graph
    gradients: Mapping[str, Tensor]
    """Captured, by parameter; those that the update lacks are missing."""
    image_count: int
    tolerance: float
    """The largest estimated relative error of what may be believed."""
    effort: Effort = field(default_factory=Effort, compare=False)
    """What it may still cost."""
    steps: LocalSteps | None = None
    """Of a client that trained: then images are visits, in the order of the steps, and gradients are the sums of all
    steps' gradients (`LocalSteps.summed`). None for a gradient."""
    step_rate: float | None = None
    """Of a gradient that was read off the weight delta of one step (`CapturedUpdate.step_rate`)."""
    foothold: str | None = None
    """The convolution whose taps are taken apart; None for whichever has the fewest places."""
    _shown: dict[str, bool] = field(init=False, repr=False, compare=False, default_factory=dict)
    """Whether a gradient has an entry that is not zero: rules ask for it thousands of times."""

    def gradient(self, node: str, role: str) -> Tensor | None:
        """A captured gradient that is this operation's alone. One that is zero everywhere was left out or hidden."""
        name = self.graph.gradient_of(self.graph.by_name[node], role)
        found = None if name is None else self.gradients.get(name)
        if name is None or found is None:
            return None
        if name not in self._shown:
            self._shown[name] = bool(found.any())
        return found if self._shown[name] else None

    def deviation(self, node: str, role: str) -> Tensor | None:
        """Of each entry of such a gradient, where they are not all known as well: the weights of a client that trained
        were rounded, each to its own size."""
        name, found = self.graph.gradient_of(self.graph.by_name[node], role), self.gradient(node, role)
        steps = self.steps
        if steps is None and self.step_rate is not None:
            steps = LocalSteps((self.image_count,), self.step_rate)
        if steps is None or name is None or found is None:
            return None
        return steps.deviation(self.graph.tensors[name].detach().cpu(), found.detach().cpu())


@dataclass(frozen=True)
class Derived:
    """One thing that a rule found."""

    rule: str
    value: str
    """Name of the value that it is about."""
    knowledge: Knowledge
    """With what was found."""
    checks: Mapping[str, float] = field(default_factory=dict)
    """Figures that show whether it is right, such as the misfit of a gradient."""
    notable: bool = False
    """Whether it rests on the gradient; what only follows from what is known is not."""


class Rule(Protocol):
    """One way to derive."""

    def __call__(self, setting: Setting, known: Knowledge) -> Iterator[Derived | Refused]:
        """What follows, one thing after another; only the first that is derived is used before rules are asked anew.

        A rule that tries something costly yields a refusal where it fails, and is not asked about that value again
        until more is known there.
        """
        ...
