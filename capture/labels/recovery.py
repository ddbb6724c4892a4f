"""Labels read off the gradient of the final fully connected layer. Only the update and the model are looked at."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ...plugins import PluginKind, is_plugin
from ..facts import read
from ..fitting import fit
from ..losses import BINARY
from ..pseudo_gradient import as_gradient, is_one_step
from ..update import CapturedUpdate
from ..update_kind import UpdateKind
from .counts import ClassCounts, estimate_counts
from .final_layer import FinalLayer, LabelError
from .learning_rate import estimate_learning_rate
from .one_look import OneLook
from .own_rule import by_own_rule
from .recovered import RecoveredLabels
from .separation import MOST_IMAGES, Separation, separable, separate
from .sign import REVERSED, Sign, read_sign
from .softmax import is_softmax
from .unmixing import MOST_IMAGES as MOST_UNMIXED

METHODS = ("auto", "minimum", "counts", "separation", "unmixing")
_DOUBTFUL = 0.9
# The confidence in a label where the sign of the update, the number of images or the smoothing must be another.
_OPEN_SIGN = 0.5
# The minimum of some thousand noise entries scatters by about half a deviation around its own mean near -3.5.
_EXTREME_SCATTER = 0.5
_MINIMUM_ASSUMPTION = (
    "Every image has a label of its own, and the final layer's inputs are never negative (as after a ReLU)."
)
_COUNTS_ASSUMPTION = "Images of one class have similar inputs to the final layer, as in a network with random weights."
_SEPARATION_ASSUMPTION = "The gradient is exact to float32, and there are more than twice as many classes as images."
_UNMIXING_ASSUMPTION = "The final layer reads the output of a ReLU, and there are fewer images than classes."
# What the images found leave of the gradient, in units of the noise, where further images must be.
_LEFT_OVER = -5.0
_LEFT_OVER_CONFIDENCE = 0.5


def recover_labels(
    update: CapturedUpdate, model: nn.Module, method: str = "auto", look: OneLook | None = None
) -> RecoveredLabels:
    """The batch's labels from the gradient of the final layer; neither images nor labels are needed.

    - ``minimum``: the B classes whose row of dL/dW has the lowest minimum (Yin et al. 2021, section 3.2, eq. 5).
    - ``counts``: how often each class occurs, repeats included (see ``estimate_counts``).
    - ``separation``: the batch taken apart image by image (see ``separate``); also on trained models.
    - ``unmixing``: the batch taken apart by the units that are shut (see ``unmix``), whatever the labels and the state
      of training; needs a layer that reads a ReLU, and fewer images than classes.
    - ``auto``: ``minimum`` where the gradient's signs prove that every label is different; else ``unmixing`` where it
      finds every image; else ``counts`` where they are clearly whole numbers; else ``separation`` where there are more
      than twice as many classes as images; else ``counts``.

    Args:
        update: A gradient; with a defence the result may be wrong, and the confidence says so. A weight delta stands
            for the mean of its steps' gradients, which is a gradient exactly only for one step.
        model: The model that the update belongs to.
        method: See above; or a plug-in's name (`LabelRule`), which is imported and run.
        look: At the final layer, where others ask it too.

    Raises:
        LabelError: An unknown method, a learning rate that is neither known nor to be estimated, a model that does not
            end in a fully connected layer, or images that ``minimum``, ``separation`` or ``unmixing`` cannot
            tell apart.
        ModelError: The model does not take the client's batch.
        PluginError: A plug-in that cannot be had, or does not keep its protocol.
    """
    update, model = fit(update, model)
    look = look or OneLook()
    if method not in METHODS and not is_plugin(PluginKind.LABEL_RULE, method):
        raise LabelError(f"the label method is {method!r}; use one of {', '.join(METHODS)}, or module:callable")
    if update.kind is UpdateKind.WEIGHT_DELTA:
        return _from_weight_delta(update, model, method, look)
    update = as_gradient(update, model)
    if not is_softmax(update, model):
        if method not in METHODS:
            return by_own_rule(method, look.final_layer(update, model), update.image_count)
        return _by_signs(update, model, look)
    layer = look.final_layer(update, model)
    sign = read_sign(layer, update.image_count)
    if sign is Sign.REVERSED:
        turned = replace(update, gradients={name: -gradient for name, gradient in update.gradients.items()})
        found = recover_labels(turned, model, method, look)
        return replace(found, warnings=(REVERSED, *found.warnings))
    found = _by_method(layer, update, method, look)
    if sign is Sign.OPEN and found.method != "unmixing":
        # Signs prove nothing where more of them are negative than can be.
        return replace(found, confidence=found.confidence.clamp_max(_OPEN_SIGN))
    return found


def _by_method(layer: FinalLayer, update: CapturedUpdate, method: str, look: OneLook) -> RecoveredLabels:
    if method not in METHODS:
        return by_own_rule(method, layer, update.image_count)
    present = int(layer.present.sum())
    proven = layer.signs_prove and present == update.image_count
    if method == "minimum" or (method == "auto" and proven):
        return _by_minimum(layer, update)
    if method == "separation":
        return _by_separation(layer, update)
    if method in ("auto", "unmixing"):
        unmixed = _by_unmixing(layer, update, look)
        if unmixed is not None:
            return unmixed
        if method == "unmixing":
            raise LabelError(
                f"the method 'unmixing' cannot tell {update.image_count} images apart: it needs fewer images than the "
                f"{layer.weight.shape[0]} classes, at most {MOST_UNMIXED}, all different, a final layer that reads a "
                "ReLU, and little noise; use the method 'counts'"
            )
    counted = _by_counts(layer, update)
    clear = float(counted.confidence.min()) >= _DOUBTFUL
    if method == "counts" or clear or not separable(layer, update.image_count):
        return counted
    separated = _by_separation(layer, update)
    return separated if float(separated.confidence.mean()) > float(counted.confidence.mean()) else counted


def _by_signs(update: CapturedUpdate, model: nn.Module, look: OneLook) -> RecoveredLabels:
    """Labels under one-hot binary cross-entropy, where only a class with an image has a negative entry, if every image
    has a class of its own; the rules for cross-entropy do not hold for another loss.

    Raises:
        LabelError: The loss, the layer or the batch does not allow it.
    """
    if update.loss == BINARY and not update.facts.label_smoothing.value:
        layer = look.final_layer(update, model)
        present = (layer.weight_gradient.min(dim=1).values < 0).nonzero().flatten()
        if layer.non_negative and len(present) == update.image_count < len(layer.weight):
            certain = torch.ones(len(present))
            return RecoveredLabels(present, certain, "minimum", _MINIMUM_ASSUMPTION)
    raise LabelError(
        f"labels are read off a gradient by rules for cross-entropy, and the client's loss is {update.loss!r}; give "
        "the labels themselves, such as labels=0,3"
    )


def _from_weight_delta(update: CapturedUpdate, model: nn.Module, method: str, look: OneLook) -> RecoveredLabels:
    assert update.local is not None
    warnings = []
    if update.local.learning_rate is None:
        rate = estimate_learning_rate(update, model, look)
        update = update.stating(learning_rate=read(rate, "the final layer"))
        warnings.append(f"labels were read with an estimated learning rate of {rate:.3g}")
    found = recover_labels(as_gradient(update, model), model, method, look)
    if not is_one_step(update):
        assert update.local is not None
        warnings.append(
            f"labels were read off the mean gradient of {update.local.steps(update.image_count)} local steps as if it "
            "were one gradient, which is an approximation"
        )
    return replace(found, warnings=(*warnings, *found.warnings))


def _by_minimum(layer: FinalLayer, update: CapturedUpdate) -> RecoveredLabels:
    count, classes = update.image_count, layer.weight.shape[0]
    if count > classes:
        raise LabelError(
            f"the method 'minimum' names each class at most once, and there are {count} images of {classes} classes; "
            "use the method 'counts'"
        )
    minima = layer.weight_gradient.min(dim=1).values
    labels = minima.topk(count, largest=False).indices.sort().values
    warnings = _shared_warnings(layer, update)
    present = int(layer.present.sum())
    if present < count:
        warnings.append(
            f"only {present} classes have a negative gradient entry for {count} images, so labels repeat and the "
            f"assumption of 'minimum' fails: {count - present} of the labels named are wrong; use the method 'counts'"
        )
    if present > count:
        warnings.append(
            f"{present} classes have a negative gradient entry for {count} images, which the assumption of 'minimum' "
            "does not allow"
        )
    if not layer.non_negative:
        warnings.append("the final layer's inputs can be negative, which the assumption of 'minimum' does not allow")
    confidence = _minimum_confidence(layer, minima, labels)
    return RecoveredLabels(labels, confidence, "minimum", _MINIMUM_ASSUMPTION, tuple(warnings))


def _minimum_confidence(
    layer: FinalLayer, minima: Float[Tensor, " classes"], labels: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """1 for a class that its sign proves to be present; otherwise how far its minimum lies below the best class left
    out, in deviations of the noise; and no more than the share of classes that can be right."""
    left_out = torch.ones_like(minima, dtype=torch.bool)
    left_out[labels] = False
    next_best = minima[left_out].min() if bool(left_out.any()) else minima.new_zeros(())
    if layer.signs_prove:
        return layer.present[labels].float()
    noise = max(layer.noise, 1e-300)
    margin = torch.special.erf((next_best - minima[labels]).clamp_min(0) / (2 * _EXTREME_SCATTER * noise))
    excess = min(1.0, len(labels) / max(int((minima < 0).sum()), 1))
    confidence: Tensor = margin * excess * layer.present[labels]
    return confidence.float()


def _by_unmixing(layer: FinalLayer, update: CapturedUpdate, look: OneLook) -> RecoveredLabels | None:
    if not layer.non_negative:
        return None
    found = look.unmix(layer.sent, update.image_count, layer.smoothing)
    if found is None:
        return None
    labels, order = found.labels.sort(stable=True)
    confidence = found.purity[order].float()
    return RecoveredLabels(labels, confidence, "unmixing", _UNMIXING_ASSUMPTION, tuple(_shared_warnings(layer, update)))


def _by_counts(layer: FinalLayer, update: CapturedUpdate) -> RecoveredLabels:
    found = estimate_counts(layer, update.image_count)
    counts = found.counts.long()
    confidence = _count_confidence(layer, found, update.image_count)
    warnings = _shared_warnings(layer, update)
    if found.scale > 1:
        warnings.append(
            f"the gradient looks {found.scale:.3g} times too small, as after clipping; the counts were read off the "
            "rescaled gradient"
        )
    if layer.signs_prove and int(layer.present.sum()) > update.image_count:
        warnings.append("more classes than images have a negative gradient entry, so the image count cannot be right")
    if float(confidence.min()) < _DOUBTFUL:
        warnings.append(
            "the class counts are not clearly whole numbers; on a trained or defended model expect wrong labels"
        )
    labels = torch.arange(len(counts)).repeat_interleave(counts)
    return RecoveredLabels(labels, confidence, "counts", _COUNTS_ASSUMPTION, tuple(warnings))


def _count_deviation(layer: FinalLayer, found: ClassCounts, image_count: int) -> float:
    """Deviation of the unrounded counts in images, from the fit's spread and residual and the noise in the column
    sums."""
    noise = image_count * layer.noise * found.scale
    # A fit that is worse than no fit at all knows nothing, however much worse it is.
    misfit = min(found.residual, 1.0) * float(found.counts.max())
    return max(math.hypot(found.spread, noise, misfit), 1e-12)


def _count_confidence(layer: FinalLayer, found: ClassCounts, image_count: int) -> Float[Tensor, " batch"]:
    """How likely each class count is the right whole number: P(|N(0, s)| < distance to the next one). One image of
    each class that its sign proves to be present is certain."""
    margin = (0.5 - found.error.abs()).clamp_min(0)
    per_class = torch.special.erf(margin / (_count_deviation(layer, found, image_count) * math.sqrt(2)))
    certain = layer.present & layer.signs_prove
    entries = []
    for label in found.counts.nonzero().flatten().tolist():
        entries.append(torch.full((int(found.counts[label]),), float(per_class[label])))
        if certain[label]:
            entries[-1][0] = 1.0
    return torch.cat(entries)


def _by_separation(layer: FinalLayer, update: CapturedUpdate) -> RecoveredLabels:
    count, classes = update.image_count, layer.weight.shape[0]
    if not separable(layer, count):
        raise LabelError(
            f"the method 'separation' needs more than twice as many classes as images and at most {MOST_IMAGES} "
            f"images, and there are {count} images of {classes} classes; use the method 'counts'"
        )
    found = separate(layer, count)
    pairs = list(zip(found.labels.tolist(), (1 - (found.scale - 1).abs()).clamp(0, 1).tolist(), strict=True))
    unseen = count - len(pairs)
    pairs += _guess_unseen(layer, found, unseen)
    warnings = _shared_warnings(layer, update)
    if unseen:
        warnings.append(
            f"{unseen} of {count} images could not be told apart from the others or from rounding (the model is too "
            "sure of them, or the gradient is not exact); their labels are guesses"
        )
    labels, confidence = zip(*sorted(pairs), strict=True)
    return RecoveredLabels(
        torch.tensor(labels), torch.tensor(confidence), "separation", _SEPARATION_ASSUMPTION, tuple(warnings)
    )


def _guess_unseen(layer: FinalLayer, found: Separation, unseen: int) -> list[tuple[int, float]]:
    """Labels for the images that were not found, with confidences: first classes that must have one more, then those
    that occur most."""
    counts = found.labels.bincount(minlength=layer.weight.shape[0])
    proven = ((layer.present & layer.signs_prove) & (counts == 0)).nonzero().flatten().tolist()
    guesses = [(label, 1.0) for label in proven]
    for label in found.left_over.argsort().tolist():
        if float(found.left_over[label]) < _LEFT_OVER and label not in proven:
            guesses.append((label, _LEFT_OVER_CONFIDENCE))
    by_frequency = counts.sort(descending=True, stable=True).indices.tolist()
    return (guesses + [(label, 0.0) for label in by_frequency])[:unseen]


def _shared_warnings(layer: FinalLayer, update: CapturedUpdate) -> list[str]:
    warnings = []
    if not layer.clean:
        warnings.append(
            "the final layer's gradient does not sum to zero over the classes, so it was changed after it was computed "
            "(noise, pruning, quantisation, low precision or the rounding of trained weights)"
        )
    return warnings
