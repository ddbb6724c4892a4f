"""Images of a weight delta, step after step: those of one step give the weights before the next.

What is known behind a cut are the features of every visit, and the derivative by them; the layers in front of it have
known weights before the first step alone. A descent finds the images of its visits. Pushed through these layers they
give, with the derivatives that are known, the gradient of the step, and so the weights that the next step's visits went
through; images that show themselves to be 8-bit files are rounded for it. An image that was seen before is recognised
by its features under the new weights and not looked for again.

What all steps' gradients make of the layers in front is held against the delta that was sent: nothing else has used it.

Behind batch norm on batch statistics no derivative by the network's output is known. With the images of a step, which
are found together, the derivative at the cut tells their labels (`batch_labels`), and these the gradient of the step
for the whole network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..graph import Graph, Node
from ..layers import relative, worst
from ..local_steps import LocalSteps
from ..rules import Knowledge
from .batch_labels import LabelReader
from .places import Cut
from .step_again import feature_misfits, gradients_by_output

# Features of an image that was seen before are nearer than this, relative, and ten times nearer than those of others.
_SAME, _CLEARLY = 0.03, 0.1
# An image is known as well as its features where it makes them up to so many of their errors: as it was found; and
# rounded to the levels of an 8-bit file, which makes it exact or visibly worse: one value on a wrong level is 3e-4 of
# an image of 32 px.
_AS_WELL, _ROUNDED, _EXACT = 2.0, 10.0, 1e-4


@dataclass(frozen=True)
class Found:
    """What a descent made of some visits."""

    images: Float[Tensor, "visit channel height width"]
    error: Float[Tensor, " visit"]
    """Relative; infinite where the features were not met."""
    retraced: Float[Tensor, "visit channel height width"]
    """The same, as the step is made again with them: where they show that they were 8-bit files, rounded to these. What
    an image is off by opens and shuts units near zero, and each of them throws the next step's weights off."""


@dataclass(frozen=True)
class VisitImages:
    """All images, and which of them each visit was of."""

    images: Float[Tensor, "image channel height width"]
    """In the order in which the client first visited them."""
    error: Float[Tensor, " image"]
    visits: Int[Tensor, " visit"]
    """Which image each visit was of, in the order of the steps."""
    disagreement: float
    """How far the delta that they make in front of the cut is from the one that was sent, relative, in the weight where
    it is farthest; infinite where the steps were not followed to the end."""
    labels: Int[Tensor, " image"] | None = None
    """Where they were read off the derivative at the cut."""


@dataclass(frozen=True)
class StepByStep:
    """What images are found from."""

    cut: Cut
    """With the features of every visit, in the order of the steps."""
    known: Knowledge
    gradients: dict[str, Tensor]
    """Sums of all steps' gradients, by parameter."""
    steps: LocalSteps
    tell: Callable[[str], None] = lambda words: None
    """Told which step's images are looked for."""
    reader: LabelReader | None = None
    """Of labels, where the derivatives by the network's output are not known otherwise; see `batch_labels`."""

    def run(self, find: Callable[[Cut, bool], Found | None]) -> VisitImages | None:
        """Every step's images, as far as they follow; None where not even the first step's do.

        Args:
            find: Images of visits by their features, told whether these are of the first step, whose weights are
                exact; None where that is more than is affordable.
        """
        images, errors, who, retraced = list[Tensor](), list[Tensor](), list[int](), list[Tensor]()
        names = self._front if self.reader is None else [one for one in self.gradients if one in self.cut.graph.tensors]
        made: dict[str, list[Tensor]] = {name: [] for name in names}
        labels = dict[int, int]()
        for step, visits in enumerate(self.steps.slices):
            cut = _of_visits(self._under(step, made), list(range(visits.start, visits.stop)))
            seen: list[int | None] = [None] * self.steps.visits[step]
            if images and not cut.is_coupled:
                seen = _recognised(cut, images)
            new = [visit for visit, one in enumerate(seen) if one is None]
            if new:
                self.tell(f"images of step {step + 1} of {self.steps.count}")
                found = find(_of_visits(cut, new), self.steps.is_first(step))
                if found is None:
                    break
                for place, visit in enumerate(new):
                    # Behind batch statistics the features of an image hang on its batch: it shows in its pixels.
                    seen[visit] = _same(found.images[place], images) if cut.is_coupled else None
                    if seen[visit] is not None:
                        continue
                    seen[visit] = len(images)
                    images.append(found.images[place].double())
                    errors.append(found.error[place])
                    retraced.append(found.retraced[place].double())
            who += [one for one in seen if one is not None]
            rounded, unrounded = (torch.stack([some[one] for one in who[visits]]) for some in (retraced, images))
            own, exact = _nearer(cut, rounded, unrounded)
            if self.reader is None:
                gradients = self._gradients(cut, own, exact, step)
            else:
                gradients = self._by_labels(cut, own, step, who[visits], labels)
            if gradients is None:
                break
            for name, gradient in gradients.items():
                made[name].append(gradient)
        if not images:
            return None
        disagreement = self._disagreement(made) if len(who) == self.steps.visit_count else float("inf")
        shown = torch.tensor([labels[one] for one in range(len(images))]) if len(labels) == len(images) else None
        return VisitImages(torch.stack(images), torch.stack(errors), torch.tensor(who), disagreement, shown)

    @property
    def _nodes(self) -> list[Node]:
        """Operations in front of the places."""
        graph = self.cut.graph
        needed = frozenset[str]().union(*(graph.before(place.before) for place in self.cut.places))
        return [node for node in graph.nodes if node.name in needed]

    @property
    def _front(self) -> list[str]:
        """Parameters that move; of some the values before each step are known already, and serve as a check."""
        names = dict.fromkeys(name for node in self._nodes for name in node.tensors.values())
        return [name for name in names if name in self.gradients]

    def _under(self, step: int, made: dict[str, list[Tensor]]) -> Cut:
        """The cut with the weights before a step."""
        graph = self.cut.graph
        tensors = dict(graph.tensors)
        known = {name: weights[step] for name, weights in self.known.weights.items()}
        found = {name: self.steps.weights(graph.tensors[name], gradients) for name, gradients in made.items()}
        # Where the whole step is made again, its weights are known better so.
        tensors |= found | known if self.reader is None else known | found
        return replace(self.cut, graph=replace(graph, tensors=tensors))

    def _gradients(self, cut: Cut, images: Tensor, exact: Tensor, step: int) -> Mapping[str, Tensor] | None:
        """Of one step, of the parameters in front: of visits whose images are exact through the whole network; None
        where a derivative is not known."""
        through_all = self._by_output(cut, images, exact, step) if bool(exact.any()) else None
        if through_all is None:
            return self._by_places(cut, images, torch.ones_like(exact), step)
        if bool(exact.all()):
            return through_all
        others = self._by_places(cut, images, ~exact, step)
        return None if others is None else {name: one + others[name] for name, one in through_all.items()}

    def _by_output(self, cut: Cut, images: Tensor, which: Tensor, step: int) -> Mapping[str, Tensor] | None:
        """Through the whole network; None where its output's derivative or some of its weights are not known."""
        graph, front, arriving = cut.graph, self._front, self.known.arriving.get(cut.graph.output)
        moved = {name for node in graph.nodes for name in node.tensors.values() if name in self.gradients}
        if arriving is None or not arriving.complete or moved - {*front, *self.known.weights}:
            return None
        visits, count = self.steps.slices[step], float(self.steps.counts[step])
        return gradients_by_output(graph, front, images[which], arriving.values[visits][which] / count)

    def _by_labels(
        self, cut: Cut, images: Tensor, step: int, who: Sequence[int], labels: dict[int, int]
    ) -> Mapping[str, Tensor] | None:
        """Through the whole network, by labels that are read and noted; None where none fit, or an image had others."""
        assert self.reader is not None
        given = self._arriving(cut, step)
        found = None if given is None else self.reader.read(cut, images, given)
        if found is None:
            return None
        for image, label in zip(who, found.labels.tolist(), strict=True):
            if labels.setdefault(image, label) != label:
                return None
        names = [name for name in self.gradients if name in cut.graph.tensors]
        return gradients_by_output(cut.graph, names, images, found.derivative)

    def _arriving(self, cut: Cut, step: int) -> list[Tensor] | None:
        """The derivative of a step's own loss in front of each place; None where one is not known."""
        arriving = [self.known.arriving.get(place.before) for place in cut.places]
        if any(one is None or not one.complete for one in arriving):
            return None
        visits, count = self.steps.slices[step], float(self.steps.counts[step])
        return [one.values[visits] / count for one in arriving if one is not None]

    def _by_places(self, cut: Cut, images: Tensor, which: Tensor, step: int) -> Mapping[str, Tensor] | None:
        """From the derivatives at the places; None where one is not known."""
        arriving = self._arriving(cut, step)
        if arriving is None:
            return None
        given = [one[which] for one in arriving]
        own = _of_visits(cut, which.nonzero()[:, 0].tolist())
        return _front_gradients(own, self._nodes, self._front, images[which], given)

    def _disagreement(self, made: dict[str, list[Tensor]]) -> float:
        off = [0.0]
        for name, gradients in made.items():
            sent = self.gradients[name].detach().cpu().double()
            if sent.dim() > 1 and bool(sent.any()) and len(gradients) == self.steps.count:
                summed = torch.stack(gradients) * self.steps.counts.reshape(-1, *(1 for _ in sent.shape))
                off.append(relative(summed.sum(dim=0) - sent, sent))
        return worst(*off) if len(off) > 1 else float("inf")


def _nearer(cut: Cut, rounded: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
    """Of each visit an image, and whether it makes the features as well as they are known: rounded, unless only the one
    that was found does."""
    misfits, known = torch.stack([feature_misfits(cut, some) for some in (rounded, found)]), _known(cut)
    on_levels = misfits[0] <= (_ROUNDED * known).clamp_min(_EXACT)
    # Where no levels showed both are the same image, which was not rounded.
    on_levels &= (rounded != found).flatten(1).any(dim=1)
    as_found = misfits[1] <= _AS_WELL * known
    own = torch.where((as_found & ~on_levels)[:, None, None, None], found, rounded)
    return own, on_levels | as_found


def _known(cut: Cut) -> Tensor:
    """Relative error of each visit's features."""
    return torch.stack([place.error for place in cut.places]).amax(dim=0)


def _of_visits(cut: Cut, visits: Sequence[int]) -> Cut:
    return replace(cut, places=tuple(place.in_order(torch.tensor(visits)) for place in cut.places))


def _recognised(cut: Cut, images: Sequence[Tensor]) -> list[int | None]:
    """Which of the images each visit is of, by its features; None for one that was not seen before."""
    features_of = cut.features(torch.float64, torch.device("cpu"))
    with torch.no_grad():
        values = [value.flatten(1) for value in features_of(torch.stack(list(images)))]
    candidates = torch.cat(values, dim=1)
    features = torch.cat([(place.values * place.is_open).flatten(1) for place in cut.places], dim=1)
    apart = torch.cdist(features, candidates) / features.norm(dim=1, keepdim=True).clamp_min(1e-300)
    found: list[int | None] = []
    for row in apart:
        nearest = int(row.argmin())
        others = torch.cat([row[:nearest], row[nearest + 1 :]])
        clear = not len(others) or float(row[nearest]) < _CLEARLY * float(others.min())
        found.append(nearest if float(row[nearest]) < _SAME and clear else None)
    return found


def _same(image: Tensor, images: Sequence[Tensor]) -> int | None:
    """Which of the images this one is; None where it is none of them."""
    apart = [relative(image.double() - one, one) for one in images]
    return apart.index(min(apart)) if apart and min(apart) < _SAME else None


def _front_gradients(
    cut: Cut, nodes: Sequence[Node], names: Sequence[str], images: Tensor, arriving: Sequence[Tensor]
) -> dict[str, Tensor]:
    """The gradients of parameters in front of a cut, by the derivatives that arrive there.

    What one place hands to the next is in the derivative by it already, so that places are constants for what reads
    them.
    """
    graph: Graph = cut.graph
    free = {name: graph.tensors[name].detach().double().requires_grad_() for name in names}
    places = {place.rectifier: place for place in cut.places}
    wanted = {place.before: derivative for place, derivative in zip(cut.places, arriving, strict=True)}
    values, total = {graph.images: images.double()}, torch.zeros((), dtype=torch.float64)
    with torch.enable_grad():
        for node in nodes:
            tensors = graph.tensors_of(node) | {role: free[name] for role, name in node.tensors.items() if name in free}
            values[node.name] = node.kind.forward([values[name] for name in node.inputs], tensors)
            if node.name in wanted:
                total = total + (values[node.name] * wanted[node.name]).sum()
            if node.name in places:
                values[node.name] = places[node.name].values
        found = torch.autograd.grad(total, list(free.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(free, found, strict=True))
