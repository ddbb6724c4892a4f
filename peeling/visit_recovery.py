"""The images behind a weight delta of several local steps, by taps and what follows from them in every visit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..capture import BatchNormMode, CapturedUpdate
from ..capture.facts import CROSS_ENTROPY
from ..capture.image_files import ImageError
from ..capture.losses import ClientLoss
from .config import PeelingConfig
from .cut import Cut, NoCut, find_cut, grid_evidence
from .cut.batch_labels import LabelReader
from .cut.visit_images import Found, StepByStep, VisitImages
from .decoded_start import decoded_start
from .graph import NoGraph, network_graph
from .image_search import FEWEST_EVALUATIONS, MET, ImageSearch
from .kinds import Linear
from .layers import sizes
from .local_steps import LocalSteps
from .progress import Tell, steps_told, unheard
from .record import Contrast, FoundImages, ImagesBy, PeelingRecord
from .recording import record_derivation
from .recovery import first_module
from .rules import Derivation, Step, derive
from .shared_contrast import with_contrast
from .step_sizes import StepSizes, agree, step_sizes
from .visit_rows import rows_of_visits
from .wording import ended, loosely, reached

# What a descent may leave of a later step's features: the weights in front are known as well as the images before.
_MET_LATER = 0.02
# How often steps are taken apart again under the learning rates that they showed.
_PASSES = 2
# Rates are believed that leave less than this share of what the visits left before; noise makes some rates fit as well.
_BETTER = 0.5
# Of the negative part of a visit's derivative by the logits, the least share that lies at its label.
_LABEL = 0.9


@dataclass(frozen=True)
class VisitRecovery:
    """What came of it. Images are in the order in which they were first visited: of several clients those of each one's
    first step stand before those of any second one, and the clients are in no order."""

    message: str
    steps: tuple[Step, ...] = ()
    """Each value that the delta gave, in every visit."""
    record: PeelingRecord | None = None
    derivation: Derivation | None = None
    images: Float[Tensor, "image channel height width"] | None = None
    """As the model is given them; None where they do not follow."""
    error: Float[Tensor, " image"] | None = None
    """Estimated, relative."""
    labels: Int[Tensor, " image"] | None = None
    visits: Int[Tensor, " visit"] | None = None
    """Which image each visit was of, in the order of the steps."""
    clients: Int[Tensor, " image"] | None = None
    """Which of several clients each image is of, by any number; None where that does not show."""
    disagreement: float = float("inf")
    """See `VisitImages`."""
    module: str | None = None
    """Name of a module whose input the images are."""
    sizes: StepSizes | None = None
    """The learning rate of each step, where the steps show it."""

    @property
    def confirmed_record(self) -> PeelingRecord | None:
        """The record, where the images are taken for known."""
        if self.record is None or self.record.found is None:
            return self.record
        return replace(self.record, found=replace(self.record.found, confirmed=True))


def recover_visits(
    update: CapturedUpdate,
    model: nn.Module,
    config: PeelingConfig | None = None,
    pictures: Sequence[Float[Tensor, "channel _ _"]] | None = None,
    device: torch.device | None = None,
    tell: Tell = unheard,
) -> VisitRecovery:
    """Features of every visit of every image, each under the weights of its own step, and from there the images.

    Args:
        update: A weight delta with a learning rate that is known; of several clients with batch norm on running
            statistics.
        model: The server's model; it is not changed.
        config: See `recover_images`.
        pictures: Public photos in [0, 1] in place of the configured ones.
        device: For the descent; by default the CPU.
        tell: Told what it is at.
    """
    config = config or PeelingConfig()
    local = update.local
    clients, by_batch = update.facts.clients.value, update.batch_norm is not BatchNormMode.EVAL
    if local is None or local.learning_rate is None or (by_batch and clients > 1):
        return VisitRecovery(
            "Peeling the steps of a weight delta needs a learning rate that is known and, of several clients, batch "
            "norm on running statistics."
        )
    each, rest = divmod(update.image_count, clients)
    if rest:
        return VisitRecovery(
            "Peeling the steps of a weight delta takes as many images for each client, and "
            f"{update.image_count} images are not as many for each of {clients}."
        )
    assert update.facts.local is not None
    steps = LocalSteps.of(update.facts.local.training, each, clients)
    tell("the network as a graph")
    graph = network_graph(model, update.image_shape, update.batch_norm, steps.visit_count)
    if isinstance(graph, NoGraph):
        return VisitRecovery(f"Peeling by taps is left out: {graph.why}.")

    def summed(steps: LocalSteps) -> dict[str, Tensor]:
        delta = {name: one for name, one in update.gradients.items() if name in graph.tensors}
        return {name: steps.summed(graph.tensors[name], one) for name, one in delta.items()}

    def under(steps: LocalSteps) -> Derivation:
        told = steps_told(tell, graph)
        return derive(graph, summed(steps), steps.visit_count, config.tolerance, told, config.operations, steps)

    derivation, steps, sizes = _under_own_rates(update, steps, under)
    record = record_derivation(derivation, steps.visit_count, config.tolerance, steps.count)
    if not derivation.steps and not by_batch:
        tell("the places of a 1x1 convolution")
        # With as many operations as the derivation had (`PeelingConfig.operations`).
        loose = rows_of_visits(graph, summed(steps), steps, config.tolerance, config.operations)
        record = replace(record, loose=None if loose is None else loose.recorded)
    message = f"{reached(record)} {loosely(record)}".strip()
    found = VisitRecovery(message, derivation.steps, record, derivation, sizes=sizes)
    if not derivation.steps:
        return found
    found = replace(found, message=f"{reached(record)} {ended(record)}".strip())
    cut = find_cut(derivation)
    if isinstance(cut, NoCut) or cut.is_pooled:
        return found
    search = ImageSearch(update, config, pictures, device, tell)
    try:
        looked_for = _Finder(search, update.image_count, search.evaluations(cut, update.image_count))
        reader = _reader(update, cut, summed(steps)) if by_batch else None
        images = StepByStep(cut, derivation.knowledge, summed(steps), steps, tell, reader).run(looked_for)
    except ImageError as error:
        return replace(found, message=f"{found.message} No images follow: {error}.")
    if images is None:
        return found
    found = _with_images(found, steps, images, first_module(graph, model))
    if not by_batch:
        return found
    assert found.record is not None
    record = replace(found.record, contrast=looked_for.contrast)
    return replace(found, record=record, message=f"{found.message} {looked_for.said}".strip())


def _reader(update: CapturedUpdate, cut: Cut, summed: Mapping[str, Tensor]) -> LabelReader | None:
    """Of labels among the classes that the final layer's shift shows; None where that, or the loss, is not known."""
    loss, final = ClientLoss.of(update.facts), cut.graph.by_name[cut.graph.output]
    shift = summed.get(final.tensors.get("bias", ""))
    if update.loss != CROSS_ENTROPY or update.facts.loss_scale.value is None or shift is None:
        return None
    shown = tuple((shift < 0).nonzero()[:, 0].tolist())
    return LabelReader(shown, loss)


def _under_own_rates(
    update: CapturedUpdate, steps: LocalSteps, under: Callable[[LocalSteps], Derivation]
) -> tuple[Derivation, LocalSteps, StepSizes | None]:
    """What follows under the learning rate of each step, which the steps themselves show."""
    derivation = under(steps)
    sizes = _sizes(update, derivation, steps)
    for _ in range(_PASSES):
        # Without momentum the weights of each step follow from what they moved by, whatever the rates.
        rests = bool(steps.momentum or steps.weight_decay)
        common = None if sizes is None or not rests or agree(sizes, steps) else sizes.common
        if common is None:
            break
        other = replace(steps, sizes=common)
        again = under(other)
        shown = _sizes(update, again, other)
        if shown is None or not _own_step(again) < _BETTER * _own_step(derivation):
            break
        derivation, steps, sizes = again, other, shown
    return derivation, steps, sizes


def _sizes(update: CapturedUpdate, derivation: Derivation, steps: LocalSteps) -> StepSizes | None:
    loss = ClientLoss.of(update.facts)
    if update.loss != CROSS_ENTROPY or update.facts.loss_scale.value is None:
        return None
    factors = [loss.factor(size) for size in steps.visits]
    return step_sizes(derivation, steps, factors, float(update.facts.label_smoothing.value))


def _own_step(derivation: Derivation) -> float:
    """What the worst visit leaves of its features under the weights of its step."""
    return float(derivation.steps[0].checks.get("own step", float("inf"))) if derivation.steps else float("inf")


class _Finder:
    """Images of some visits by a descent from a decoded start."""

    def __init__(self, search: ImageSearch, image_count: int, evaluations: int) -> None:
        self._search = search
        self._missing = image_count
        # Each image is looked for once, whatever the number of its visits, and what one step's leave is for the next.
        self._left = evaluations * image_count
        self.contrast = Contrast.SEEN
        """That of the batch of which least is known."""
        self.said = ""
        """Of that contrast, in one sentence."""

    def __call__(self, cut: Cut, first: bool) -> Found | None:
        count = len(cut.places[0].values)
        share = self._left // max(count, self._missing)
        start, _ = decoded_start(self._search, cut) if share >= FEWEST_EVALUATIONS else (None, None)
        if start is None:
            return None
        found = self._search.descend(cut, start.images, share, MET if first else _MET_LATER)
        self._left -= found.evaluations
        self._missing -= count
        shown = with_contrast(cut, found.images, found.error, self._search.bounds)
        if self.contrast is not Contrast.HIDDEN and shown.said:
            self.contrast, self.said = shown.contrast, shown.said
        wider = sizes(shown.images) / sizes(found.images).clamp_min(1e-300)
        return Found(shown.images, shown.error, self._rounded(shown.images, found.off * wider, found.met))

    def _rounded(self, images: Tensor, off: Tensor, met: Tensor) -> Tensor:
        """Images whose pixels show that they are those of 8-bit files, as these have them."""
        normalisation = self._search.update.normalisation
        pixels = normalisation.invert(images).clamp(0, 1)
        deviation = sum(normalisation.std) / len(normalisation.std)
        on_grid = grid_evidence(pixels, off * deviation).on_grid & met
        levels = normalisation.apply((255 * pixels).round() / 255)
        return torch.where(on_grid[:, None, None, None], levels, images)


def _with_images(found: VisitRecovery, steps: LocalSteps, images: VisitImages, module: str | None) -> VisitRecovery:
    assert found.record is not None
    assert found.derivation is not None
    labels = images.labels if images.labels is not None else _labels(found.derivation, images)
    record = replace(found.record, found=FoundImages(ImagesBy.DESCENT, tuple(images.error.tolist())))
    count, whole = int(images.error.isfinite().sum()), len(images.images)
    followed = (
        f"the layers in front move with them as the client's did up to {images.disagreement:.1g}"
        if images.disagreement < float("inf")
        else f"{len(images.visits)} of the {steps.visit_count} visits were followed, and what the layers in front made "
        "of them could not be held against the delta"
    )
    message = (
        f"{found.message} Step after step, each giving the weights before the next one, a descent met the features of "
        f"{count} of {whole} images; {followed}."
    )
    return replace(
        found,
        message=message,
        record=record,
        images=images.images,
        error=images.error,
        labels=labels,
        visits=images.visits,
        clients=_clients(steps, images),
        disagreement=images.disagreement,
        module=module,
    )


def _clients(steps: LocalSteps, images: VisitImages) -> Tensor | None:
    """Whose each image is: after one step each, all of them are as good as one batch."""
    if steps.clients == 1 or steps.each == 1 or len(images.visits) != steps.visit_count:
        return None
    found = torch.full((len(images.images),), -1)
    for step, part in enumerate(steps.slices):
        found[images.visits[part]] = step % steps.clients
    return found


def _labels(derivation: Derivation, images: VisitImages) -> Tensor | None:
    """Of each image, where the derivatives by the logits of all of its visits agree."""
    final = derivation.graph.by_name[derivation.graph.output]
    arriving = derivation.knowledge.arriving.get(final.name)
    if not isinstance(final.kind, Linear) or arriving is None or not arriving.complete:
        return None
    if len(images.visits) != len(arriving.values):
        return None
    negative = arriving.values.clamp_max(0)
    lowest, labels = negative.min(dim=1)
    if not bool((lowest <= _LABEL * negative.sum(dim=1)).all()):
        return None
    of_image = [labels[images.visits == image] for image in range(len(images.images))]
    if any(len(set(one.tolist())) != 1 for one in of_image):
        return None
    return torch.stack([one[0] for one in of_image])
