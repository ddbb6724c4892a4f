"""The images themselves, where a gradient determines so much of a network's features that they follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..capture import CapturedUpdate, read
from ..capture.image_files import ImageError
from .config import PeelingConfig
from .cut import (
    Cut,
    Decoded,
    NoCut,
    Projected,
    Stem,
    find_cut,
    find_projections,
    find_stem,
    images_by_winners,
    is_open_question,
    winners_operations,
)
from .decoded_start import decoded_start, smooth_start
from .fewer_images import derive_from, derive_shown, faint_images, repeats_of
from .graph import Graph, Node, NoGraph, network_graph
from .image_search import FEWEST_EVALUATIONS, Descended, ImageSearch
from .kinds import CopiedPadding, Identity
from .known import known_by_rules
from .own_gradients import without_own_gradient
from .own_statistics import statistics_off
from .progress import Tell, steps_told, unheard
from .record import Contrast, FoundImages, ImagesBy, PeelingRecord
from .recording import record_derivation
from .recovered import Recovery
from .refusals import Why
from .rules import Derivation
from .rules.image_labels import CLEAR, ImageLabels, image_labels
from .rules.input_labels import labels_by_input
from .rules.rule import Setting
from .shared_contrast import CONTRAST_HIDDEN, WIDEST, contrast_of, on_shared_statistics, with_contrast
from .wording import ended, reached

# What tells the number of images where they are fewer than stated.
_RANK = "the rank of the convolutions' gradients"
_SHOWN = "statistics of the batch that follow from the gradient"
# Why there are no images where a maximum stands in front, or where features are few.
_HIDDEN = "max-pooling in front of these features hides all pixels but those that won"
_FEWER = "these features are fewer than an image has pixel values"
# What `peeling.operations` may leave out then.
_START = "a start at what a decoder makes of the features"
_DESCENT = "a descent from what the decoder makes to images that have these features"
_WINNERS = "a start at images whose winners of the max-pooling have the values that are known"


def recover_images(
    update: CapturedUpdate,
    model: nn.Module,
    config: PeelingConfig | None = None,
    pictures: Sequence[Float[Tensor, "channel _ _"]] | None = None,
    device: torch.device | None = None,
    tell: Tell = unheard,
) -> Recovery:
    """Write the model as a graph, derive what the gradient determines on it, and go from there to the images.

    Args:
        update: A gradient.
        model: The server's model; it is not changed.
        config: Tolerance, effort, and where the public photos are that the decoder is fitted on.
        pictures: Public photos in [0, 1] in place of those.
        device: For the descent; by default the CPU.
        tell: Told what it is at.

    Raises:
        ModelError: The model takes no batch, or has no gradient.
    """
    config = config or PeelingConfig()
    if update.local is not None:
        return Recovery("Peeling by taps needs a gradient, and the update is a weight delta.")
    tell("the network as a graph")
    graph = network_graph(model, update.image_shape, update.batch_norm, update.image_count)
    if isinstance(graph, NoGraph):
        return Recovery(f"Peeling by taps is left out: {graph.why}.")
    derivation, shown = derive_shown(graph, update, config, steps_told(tell, graph))
    search = ImageSearch(update, config, pictures, device, tell)
    found = _recovered(derivation, shown, search, model)
    faint = faint_images(derivation)
    if not faint or shown != update.image_count or _all_known(found, config.tolerance):
        return found
    # What is small in one image alone must not hide the others.
    fewer = shown - len(faint)
    rest = derive_from(graph, update, fewer, config, steps_told(tell, graph))
    if not rest.steps:
        return found
    without = _recovered(rest, fewer, search, model, apart=len(faint))
    if not _all_known(without, config.tolerance):
        return found
    start = None if found.start is None else found.start.images
    best = found.images if found.images is not None else start
    return replace(without, faint=None if best is None else best[faint], known=found.known)


def _all_known(found: Recovery, tolerance: float) -> bool:
    return found.images is not None and found.error is not None and float(found.error.max()) <= tolerance


def _recovered(derivation: Derivation, shown: int, search: ImageSearch, model: nn.Module, apart: int = 0) -> Recovery:
    """What follows from a derivation of so many images; `apart` more of the batch are known to be others."""
    # Statistics of some images alone are not the batch's.
    off = statistics_off(derivation, search.update, model) if shown == search.update.image_count else None
    if off is None:
        return _with_buffers(derivation, shown, search, model, apart)
    if not off.kept:
        search = replace(search, update=search.update.without_buffers(_SHOWN))
    return _with_buffers(derivation, shown, search, model, apart).on_statistics_off(off)


def _with_buffers(derivation: Derivation, shown: int, search: ImageSearch, model: nn.Module, apart: int) -> Recovery:
    """As `_recovered`, on the statistics that the client sent, if any."""
    graph, config, tell, update = derivation.graph, search.config, search.tell, search.update
    stated, update = update, update if shown > update.image_count else update.stating(image_count=read(shown, _RANK))
    record = record_derivation(derivation, update.image_count, config.tolerance)
    record = replace(record, contrast=contrast_of(graph, update))
    if not derivation.steps:
        blocked = without_own_gradient(graph, update.gradients)
        message = f"{reached(record)[:-1]}; {blocked}." if blocked else reached(record)
        if blocked:
            said = f"{blocked[0].upper()}{blocked[1:]}."
            record = replace(record, reason=" ".join(filter(None, (record.reason, said))))
        padded = any(one.why is Why.PADDED for one in derivation.refused)
        more = shown if shown > update.image_count else None
        return Recovery(message, record=record, blocked=bool(blocked) or padded, shown=more)
    final = _final(graph, update, derivation)
    if shown < stated.image_count:
        record = replace(record, repeats=repeats_of(final, derivation, stated, apart))
    labels = final.labels if final is not None and float(final.off.max()) <= CLEAR else None
    module = first_module(graph, model)
    known = known_by_rules(record, derivation, model)
    whole = derivation.knowledge.complete(graph.images)
    if whole is not None:
        record = replace(record, found=FoundImages(ImagesBy.EQUATIONS, tuple(whole.error.tolist())))
        found = Recovery(reached(record), derivation.steps, labels=labels, final=final, module=module, record=record)
        return replace(found, images=whole.values, error=whole.error, known=known)
    cut = find_cut(derivation)
    found = Recovery(f"{reached(record)} {ended(record)}", derivation.steps, labels=labels, final=final, record=record)
    found = replace(found, known=known)
    if isinstance(cut, NoCut):
        return replace(found, message=f"{reached(record)} No images follow: {cut.why}.")
    cut = on_shared_statistics(update, model, cut)
    found = replace(found, module=module, cut=cut)
    search = replace(search, update=update)
    tell("a decoder from the features to pixels")
    stem = find_stem(derivation, update.gradients) if cut.is_pooled else None
    fits = stem is not None and winners_operations(stem) <= config.operations
    guessed = not fits and (cut.is_pooled or (not cut.is_coupled and is_open_question(cut)))
    left_out: tuple[str, ...] = () if stem is None or fits else (_WINNERS,)
    try:
        if guessed:
            sums = partial(find_projections, derivation, update, shown, config.operations)
            return _smooth(found, search, cut, left_out, sums)
        found = _with_start(found, search, cut)
    except ImageError as error:
        return replace(found, message=f"{reached(record)} No images follow: {error}.")
    if fits and stem is not None and found.start is not None:
        tell("images whose winners of the max-pooling have the values that are known")
        return _by_winners(update, found, stem, found.start)
    if cut.is_pooled:
        left_out += (_START,) if found.start is None else ()
        return replace(found, message=_none_looked_for(record, config, _HIDDEN, left_out))
    evaluations = search.evaluations(cut, update.image_count)
    if evaluations < FEWEST_EVALUATIONS or found.start is None:
        why = f"the descent on them would take more than peeling.operations={config.operations:g}"
        return replace(found, message=_none_looked_for(record, config, why))
    return _descended(found, search, cut, found.start.images, evaluations)


def _none_looked_for(record: PeelingRecord, config: PeelingConfig, why: str, left_out: Sequence[str] = ()) -> str:
    """How far it came, why no images are looked for, and what else takes more operations than are allowed."""
    message = f"{reached(record)} No images are looked for: {why}."
    if not left_out:
        return message
    what = " and ".join(left_out)
    each, was = (" each", "were") if len(left_out) > 1 else ("", "was")
    return (
        f"{message} {what[:1].upper()}{what[1:]} would{each} take more than peeling.operations={config.operations:g} "
        f"and {was} left out."
    )


def _smooth(
    found: Recovery, search: ImageSearch, cut: Cut, left_out: tuple[str, ...], projected: Projected
) -> Recovery:
    """With a start that is smooth where the features leave it open; it is never taken for the private images.

    Args:
        found: Up to the cut.
        search: Effort, and the photos.
        cut: With the features.
        left_out: What takes more operations than are allowed.
        projected: Finds what is known of values in front of the cut.

    Raises:
        ImageError: The photos cannot be had.
    """
    assert found.record is not None
    start = smooth_start(search, cut, projected)
    why = f"{_HIDDEN if cut.is_pooled else _FEWER}, and many images have them"
    if start is None:
        return replace(found, message=_none_looked_for(found.record, search.config, why, (*left_out, _START)))
    why += ". The attack starts at what a decoder fitted on public photos makes of the features"
    why += start.said
    if start.misfit is None and not start.is_faint:
        left_out += (_DESCENT,)
    if start.widened:
        why += f". {CONTRAST_HIDDEN}: {WIDEST}"
    elif start.misfit is None and found.record.contrast is Contrast.HIDDEN:
        why += f". {CONTRAST_HIDDEN}: that of the start is what the decoder learnt of public photos"
    record = found.record if start.photos is None else replace(found.record, photos=start.photos)
    message = _none_looked_for(record, search.config, why, left_out)
    return replace(found, message=message, start=start.decoded, record=record)


def _with_start(found: Recovery, search: ImageSearch, cut: Cut) -> Recovery:
    """With images at which a descent starts; without where even that is more than is affordable.

    Raises:
        ImageError: The photos cannot be had.
    """
    start, photos = decoded_start(search, cut)
    if start is None:
        return found
    assert found.record is not None
    record = found.record if photos is None else replace(found.record, photos=photos)
    return replace(found, start=start, record=record)


def _descended(features: Recovery, search: ImageSearch, cut: Cut, start: Tensor, evaluations: int) -> Recovery:
    found = search.descend(cut, start, evaluations)
    shown = with_contrast(cut, found.images, found.error, search.bounds)
    assert features.record is not None
    record = replace(features.record, found=FoundImages(ImagesBy.DESCENT, tuple(shown.error.tolist())))
    record = replace(record, contrast=shown.contrast)
    message = (
        f"{reached(record)} From there a descent, started by a decoder fitted on public photos, met the features of "
        f"{int(found.met.sum())} of {len(found.met)} images (misfit {float(found.misfit.max()):.1g} at most); "
        f"{_left_open(found)}."
    )
    message = f"{message} {shown.said}".rstrip()
    return replace(features, message=message, images=shown.images, error=shown.error, record=record)


def _left_open(found: Descended) -> str:
    """What stands in an image where its features say nothing."""
    if not found.begun_again:
        return "what the features leave open of an image is what the start had there"
    return (
        f"at {found.begun_again} of the {len(found.met)} images the descent got stuck and began again where it had "
        "ended, blurred; what the features leave open of an image is what the descent that led to it began with there, "
        "the start or such a blurred image"
    )


def _by_winners(update: CapturedUpdate, features: Recovery, stem: Stem, start: Decoded) -> Recovery:
    """A start whose winners have the values behind max-pooling; it is never taken for the private images."""
    lowest, highest = update.normalisation.bounds(dtype=torch.float64)
    images = images_by_winners(stem, start.images, lowest, highest)
    assert features.record is not None
    message = (
        f"{reached(features.record)} No images are looked for: max-pooling in front of these features hides all pixels "
        f"but those that won, which give at most {100 * stem.seen:.0f} per cent as many numbers as an image has pixel "
        "values. The attack starts at images whose winners have the values that are known and which are as smooth as "
        "that allows."
    )
    return replace(features, message=message, start=replace(start, images=images, fitted=True))


def _final(graph: Graph, update: CapturedUpdate, derivation: Derivation) -> ImageLabels | None:
    setting = Setting(graph, update.gradients, update.image_count, 1.0)
    known, smoothing = derivation.knowledge, float(update.facts.label_smoothing.value)
    found, weight = image_labels(setting, known, smoothing), graph.by_name[graph.output].tensors.get("weight", "")
    sent = update.gradients.get(weight)
    if found is not None or (sent is not None and bool(sent.any())):
        return found
    return labels_by_input(setting, known, smoothing)


def first_module(graph: Graph, model: nn.Module) -> str | None:
    """A module that is given the images as they are."""
    names = {name for name, _ in model.named_modules()}
    same = {graph.images}
    for node in graph.nodes:
        if any(value in same for value in node.inputs):
            if node.name in names:
                return node.name
            if isinstance(node.kind, Identity):
                same.add(node.name)
            own = _padded_within(graph, model, node)
            if own is not None:
                return own
    return None


def _padded_within(graph: Graph, model: nn.Module, node: Node) -> str | None:
    """The convolution that pads its input with the input's own numbers: two operations, and one module."""
    kind, names = node.kind, {name for name, _ in model.named_modules()}
    if not isinstance(kind, CopiedPadding):
        return None
    for reader in graph.readers(node.name):
        module = model.get_submodule(reader.name) if reader.name in names else None
        if isinstance(module, nn.Conv2d) and module.padding_mode == kind.mode:
            return reader.name
    return None
