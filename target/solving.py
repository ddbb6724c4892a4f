"""Labels, and layer peeling with them; again where what they show of the client's loss changes what they rest on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from ..capture import CapturedUpdate, NoFinalGradientError, OneLook, RecoveredLabels, read, recover_labels
from ..peeling import Anchor, KnownFeatures, peel
from ..peeling.factors import describe
from ..peeling.progress import Tell, unheard
from ..peeling.record import PeelingRecord, joined
from .evidence import Evidence
from .finding import Finding
from .image_count import at_least, fewer_shown, in_one_batch, unseen, unsure
from .labels import AUTO, labels_left_out, unread_labels
from .pixels import check_pixels
from .request import Request
from .scale import check_scale, confirmed_loss, found_scale
from .shared_statistics import BUFFERS
from .shown_images import peel_shown
from .smoothing import check_smoothing
from .tap_images import TapImages, images_by_taps
from .visit_images import images_by_visits
from .weight_deltas import Attackable, as_attackable, refine

# Peeling that ends in front of one of these, with more than one layer behind, has passed the final layer.
_NOT_HEADS = (nn.Conv2d, nn.ReLU)
# Estimated error above which a final layer may not be solved but only nearly fit.
_SOLVED = 1e-3


@dataclass(frozen=True)
class Solved:
    """What is known before the first step."""

    evidence: Evidence
    found: Attackable
    labels: RecoveredLabels
    anchor: Anchor | None
    messages: tuple[str, ...]
    record: PeelingRecord | None = None
    """What peeling did; None where it was left out."""
    known: KnownFeatures | None = None
    """Features of every image that follow from taps."""
    taps: TapImages | None = None
    """What taps gave."""
    given: bool = False
    """Whether the labels are those that the user states."""
    scales_fitted: bool = False
    """Whether by what each image counts was looked for, so that an anchor without factors says that each counts as in
    the mean."""

    @property
    def begins(self) -> bool:
        """Whether seeds have something of every image to go by."""
        return self.anchor is not None or (self.taps is not None and self.taps.cut is not None)

    @property
    def by_taps(self) -> bool:
        """Whether the anchor is the images, as they follow from taps."""
        return self.taps is not None and self.taps.anchor is not None


def solve(
    evidence: Evidence,
    found: Attackable,
    model: nn.Module,
    request: Request,
    given: RecoveredLabels | None,
    look: OneLook,
    tell: Tell = unheard,
) -> Solved:
    """Labels and anchor, with the scale and the smoothing of the loss that they show.

    Args:
        evidence: The update with what was read off it so far.
        found: From ``as_attackable``.
        model: The server's model.
        request: What the attack asks for.
        given: Labels that the user states, or None.
        look: At the final layer.
        tell: Told what it is at.

    Raises:
        LabelError: Labels cannot be recovered.
    """
    solver = _Solver(model, request, given, look)
    solved = solver.with_smoothing(evidence, found)
    if not request.gradient or passes_head(solved.anchor, model):
        return _settled(solved)
    solved = solver.with_images(solved, tell)
    if solved.taps is None or "image_count" not in solved.taps.finding.facts:
        return _settled(solved)
    # Labels too were looked for in too few images.
    told, finding = evidence.update, solved.taps.finding
    count = finding.facts["image_count"].value
    evidence = evidence.without_limit(at_least(told.image_count))
    evidence = evidence.and_also(replace(finding, facts={**finding.facts, **in_one_batch(told, count)}))
    request, left_out = labels_left_out(request, told, evidence.update)
    evidence = evidence.and_also(Finding(messages=tuple(filter(None, [left_out]))))
    solver = replace(solver, request=request, given=None if left_out else given)
    again = solver.with_smoothing(evidence, as_attackable(evidence.update, model, look))
    return _settled(solver.with_images(again, tell))


def _settled(solved: Solved) -> Solved:
    """Without the doubt that images may repeat, where it was found how often each of them is there."""
    solved = _counted(solved)
    repeats = None if solved.record is None else solved.record.repeats
    if repeats is None or not solved.begins:
        return solved
    evidence = solved.evidence
    if repeats.sure and repeats.counted:
        evidence = evidence.without_limit(fewer_shown(len(repeats.times), repeats.stated))
    if repeats.unseen:
        evidence = evidence.and_also(Finding(limits=(unseen(repeats),)))
    elif not repeats.sure:
        evidence = evidence.and_also(Finding(limits=(unsure(repeats),)))
    return replace(solved, evidence=evidence)


def _counted(solved: Solved) -> Solved:
    """Without the doubt that there are more images than the update shows, where each of them counts as in a mean over
    so many."""
    anchor, update = solved.anchor, solved.evidence.update
    if anchor is None or anchor.scales or not solved.scales_fitted or anchor.error > _SOLVED:
        return solved
    evidence = solved.evidence.without_limit(at_least(update.image_count))
    return replace(solved, evidence=evidence)


@dataclass(frozen=True)
class _Solver:
    """What stays as it is while an attack's facts are learnt."""

    model: nn.Module
    request: Request
    given: RecoveredLabels | None
    look: OneLook

    def with_smoothing(self, evidence: Evidence, found: Attackable) -> Solved:
        solved = self._once(evidence, found)
        exact = solved.anchor is not None and solved.anchor.error <= _SOLVED
        if exact or not self.request.gradient:
            return solved
        smoothed = check_smoothing(evidence.update, self.model, solved.labels.labels, self.look)
        if not smoothed.facts:
            return solved
        evidence = evidence.and_also(smoothed)
        return self._once(evidence, as_attackable(evidence.update, self.model, self.look))

    def _once(self, evidence: Evidence, found: Attackable) -> Solved:
        labels = self.given or self._labels(found.update)
        before = evidence.update
        evidence = evidence.and_also(check_scale(before, self.model, labels.labels, self.look))
        if evidence.update is not before:
            found = as_attackable(evidence.update, self.model, self.look)
        found = refine(found, evidence.update, self.model, labels.labels, self.look)
        evidence = with_rate_read(evidence, found)
        solved = Solved(evidence, found, labels, None, tuple(labels.warnings), given=self.given is not None)
        if not self.request.gradient:
            return solved
        if self.request.allows_for_defences and any(one.name == "soteria" for one in before.defences):
            message = (
                "Layer peeling begins at the final layer's gradient, which the client says that it perturbs (Soteria), "
                "so it is left out."
            )
            return replace(solved, messages=(*solved.messages, message))
        peeling = peel(
            found.update,
            self.model,
            labels.labels,
            self.request.peeling,
            scaled=self.request.allows_for_defences,
            look=self.look,
        )
        if peeling.anchor is None:
            copies = peel_shown(
                found.update, self.model, labels, self.given is not None, self.request.peeling, self.look
            )
            if copies is not None:
                solved, peeling = replace(solved, labels=copies.labels), copies.peeling
        if peeling.anchor is not None and before.local is None:
            evidence = evidence.and_also(found_scale(peeling.anchor.scales, evidence.update))
            evidence = evidence.and_also(check_pixels(evidence.update, peeling.anchor))
            if peeling.anchor.error <= _SOLVED:
                evidence = evidence.and_also(confirmed_loss(evidence.update))
        messages = (*solved.messages, peeling.message)
        fitted = self.request.allows_for_defences
        solved = replace(solved, evidence=evidence, messages=messages, record=peeling.record)
        return replace(solved, anchor=peeling.anchor, scales_fitted=fitted)

    def _labels(self, update: CapturedUpdate) -> RecoveredLabels:
        """As the final layer has them; unread where its gradient was not sent, which taps may make up for."""
        try:
            return recover_labels(update, self.model, self.request.labels, self.look)
        except NoFinalGradientError:
            # Without the gradient in the objective there is nothing that labels could be optimised by.
            if update.local is not None or self.request.labels != AUTO or not self.request.gradient:
                raise
            return unread_labels(update.image_count)

    def with_images(self, solved: Solved, tell: Tell) -> Solved:
        """With the images as the anchor, where they follow from the taps."""
        given = self.given is not None
        request = self.request
        look = images_by_taps if solved.found.update.local is None else images_by_visits
        found = look(solved.found.update, self.model, solved.labels, given, request.peeling, request.seed, tell)
        if found is None:
            return solved
        solved = replace(
            solved,
            messages=(*solved.messages, *filter(None, [found.message])),
            record=joined(found.record, solved.record, found.message),
            known=found.known,
            taps=found,
            evidence=solved.evidence.and_also(found.finding),
            found=_restated(solved.found, found.finding),
        )
        if found.cut is not None:
            same = torch.equal(found.labels.labels.cpu(), solved.labels.labels.cpu())
            return replace(solved, labels=found.labels, anchor=solved.anchor if same else None)
        if found.anchor is None:
            # The images of an anchor are in the order of the labels that it was found with.
            return solved if solved.anchor is not None else replace(solved, labels=found.labels)
        if solved.found.update.local is None and (solved.anchor is None or not solved.anchor.scales):
            said = describe(found.anchor.scales, found.anchor.error)
            evidence = solved.evidence.and_also(found_scale(found.anchor.scales, solved.evidence.update))
            solved = replace(solved, evidence=evidence, messages=(*solved.messages, *filter(None, [said])))
        return replace(solved, labels=found.labels, anchor=found.anchor, scales_fitted=found.scales_fitted)


def _restated(found: Attackable, finding: Finding) -> Attackable:
    """What is attacked, with the facts about its local steps that these themselves show, and without buffers that are
    none of it."""
    update = found.update.without_buffers(BUFFERS) if finding.buffers_left_out else found.update
    stated = finding.facts if update.local is not None else {}
    return replace(found, update=update.stating(**stated))


def with_rate_read(evidence: Evidence, found: Attackable) -> Evidence:
    """The evidence with the learning rate, where it was estimated."""
    if found.rate is None:
        return evidence
    return evidence.and_also(Finding({"learning_rate": read(found.rate, "the final layer's gradient")}))


def passes_head(anchor: Anchor | None, model: nn.Module) -> bool:
    """Whether layer peeling came further than the final layer and what pools in front of it."""
    if anchor is None:
        return False
    layers = {name.rpartition(".")[0] for name in anchor.explained}
    return len(layers) > 1 and isinstance(model.get_submodule(anchor.module), _NOT_HEADS)
