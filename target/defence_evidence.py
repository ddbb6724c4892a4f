"""What the attacker assumes about a defence, from the update itself and from what the client says.

A defence that is only tested against an attack that ignores it proves nothing. What can be read off the update is read
off it; what the client says (``CapturedUpdate.defences``, which nobody checks) is a hypothesis for the rest. An update
without a defence gives an ``Adaptation`` that changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..capture import CapturedUpdate, Defence, LabelError, OneLook, is_softmax
from ..capture.labels.final_layer import FinalLayer
from .adaptation import Adaptation
from .scale import scale_evidence
from .signatures import is_pruned, is_rounded, pruning_slack, without_lowest_level

# How well one factor per image must explain the final layer's bias gradient to be believed.
_EXPLAINED = 0.1
# Factors of clipped images that differ by more are taken for a misfit of the model's outputs.
_SPREAD = 5.0
# Noise below this share of the final layer's gradient is that of low precision.
_NOTICED = 0.01


def allow_for_defence(
    update: CapturedUpdate, model: nn.Module, labels: Int[Tensor, " batch"], look: OneLook | None = None
) -> Adaptation:
    """The adaptation to this update.

    - Pruning, seen by its zeros: an entry that is missing only says that it was smaller than the smallest one kept.
      Where the client says that it rounds after pruning, the level nearest to zero takes the place of the zeros.
    - Soteria, said by the client: the final layer's gradient, the only one that the defence changes, is left out, with
      which the defence falls (Balunovic et al., ICLR 2022).
    - Clipping, said by the client: only the direction counts. For DP-SGD, which clips each image, each image's factor
      is first read off the final layer's bias gradient.
    - Noise, seen by the column sums of the final layer's gradient, which are zero without it: as all entries carry the
      same noise, their likelihood is a function of one distance over all of them, which takes the place of the sum over
      tensors. Where pruning or rounding hides it, the client's word stands for it.

    Quantisation is left as it is: allowing half a step for each entry measured worse than matching the rounded values.

    Of several defences each is allowed for that can be; the messages tell which could not, and why.

    Args:
        update: What the client sent.
        model: The server's model.
        labels: The batch's labels, one per image.
        look: At the final layer, where others ask it too.
    """
    told = update.defences
    names = [one.name for one in told]
    try:
        layer = (look or OneLook()).final_layer(update, model)
    except LabelError:
        layer = None
    found = Adaptation()
    if "soteria" in names and layer is not None:
        found = _without_final_layer(layer)
        if len(told) == 1:
            return found
    # Pruning, rounding and noise leave no column of the final layer's gradient summing to zero, as a softmax has them.
    softmax = layer if layer is not None and is_softmax(update, model) else None
    clean = softmax is not None and softmax.clean
    pruned = Adaptation() if clean else _pruned(update, names)
    if "clip" in names or "dp_sgd" in names:
        found = found.and_also(_clipped(layer, labels, names))
    found = found.and_also(pruned)
    if not clean:
        hidden = bool(pruned.slack) or is_rounded(update.gradients)
        found = found.and_also(_noise_as_told(told) if hidden else _noise(softmax))
    # Where the scale is already open, that has been said.
    if not found.free_scale and softmax is not None and update.facts.loss_scale.value is not None:
        found = found.and_also(_scaled(softmax, labels, update.facts.label_smoothing.value))
    return found if len(told) < 2 else found.and_also(Adaptation(messages=_not_allowed_for(told, found)))


def _scaled(layer: FinalLayer, labels: Tensor, smoothing: float) -> Adaptation:
    evidence = scale_evidence(layer, labels, smoothing)
    if evidence is None:
        return Adaptation()
    size = "" if evidence.estimate is None else f", {evidence.estimate:.3g} times as large"
    message = f"The gradient is not that of a mean over the batch{size}: it is matched up to one common factor."
    return Adaptation(free_scale=True, messages=(message,))


def _pruned(update: CapturedUpdate, names: Sequence[str]) -> Adaptation:
    gradients = update.gradients
    told = "prune" in names
    shown = told or is_pruned(gradients, update.facts.clients.value)
    slack = {} if shown is False else pruning_slack(gradients)
    if slack:
        zeros = sum(int((g == 0).sum()) for g in gradients.values())
        share = zeros / sum(g.numel() for g in gradients.values())
        why = "as after pruning" if shown else "by pruning or by units that were closed, which does not show"
        message = (
            f"{share:.1%} of the update's entries are zero, {why}: a missing entry is only taken to be smaller than "
            "the smallest one kept in its tensor."
        )
        return Adaptation(slack=slack, messages=(message,))
    if not _comes_before(names, "prune", "quantise") or _comes_before(names, "prune", "noise"):
        return Adaptation()
    message = (
        "The client says that it rounds what it has pruned: an entry at the level nearest to zero is only taken to be "
        "smaller than the smallest one at another level of its tensor."
    )
    slack = pruning_slack(without_lowest_level(gradients))
    return Adaptation(slack=slack, messages=(message,)) if slack else Adaptation()


def _comes_before(names: Sequence[str], first: str, second: str) -> bool:
    return first in names and second in names and names.index(first) < names.index(second)


def _noise(layer: FinalLayer | None) -> Adaptation:
    if layer is None or layer.noise < _NOTICED * float(layer.weight_gradient.square().mean().sqrt()):
        return Adaptation()
    message = (
        f"By the column sums of the final layer's gradient every entry carries noise of deviation {layer.noise:.2g}, "
        "so all entries are matched as one vector."
    )
    return Adaptation(pooled=True, messages=(message,))


def _noise_as_told(told: Sequence[Defence]) -> Adaptation:
    """For an update whose column sums pruning or rounding has changed too."""
    if len(told) < 2 or not _adds_noise(told):
        return Adaptation()
    message = (
        "The client says that it adds noise, which its other defences keep from being measured: all entries are "
        "matched as one vector."
    )
    return Adaptation(pooled=True, messages=(message,))


def _adds_noise(told: Sequence[Defence]) -> bool:
    return any(one.name in ("noise", "dp_sgd") and one.strength != 0 for one in told)


def _not_allowed_for(told: Sequence[Defence], allowed: Adaptation) -> tuple[str, ...]:
    """One sentence for each of several defences that the match takes no account of."""
    found, names = [], [one.name for one in told]
    if "prune" in names and not allowed.slack:
        noisy = _comes_before(names, "prune", "noise")
        why = "its noise hides which entries are missing" if noisy else "the update does not show missing entries"
        found.append(f"The client says that it prunes, but {why}: pruning is not allowed for.")
    if _adds_noise(told) and not allowed.pooled:
        found.append("The client says that it adds noise, of which the update shows none: it is not allowed for.")
    if "soteria" in names and not allowed.left_out:
        found.append(
            "The client says that it perturbs the representation, but the final layer is not known, so this is not "
            "allowed for."
        )
    if "quantise" in names:
        found.append(
            "The client says that it rounds, which is not allowed for: entries are matched with their rounded values."
        )
    return tuple(found)


def _without_final_layer(layer: FinalLayer) -> Adaptation:
    name = f"{layer.name}.weight" if layer.name else "weight"
    message = (
        f"The client says that it perturbs the representation (Soteria), so the gradient of {name}, the one made from "
        "it, is left out of the match."
    )
    return Adaptation(left_out=frozenset({name}), messages=(message,))


def _clipped(layer: FinalLayer | None, labels: Tensor, names: Sequence[str]) -> Adaptation:
    told = "The client says that it clips, so only the direction of the whole gradient is matched"
    factors = image_factors(layer, labels) if "dp_sgd" in names and layer is not None else None
    if factors is None:
        return Adaptation(free_scale=True, messages=(f"{told}.",))
    message = (
        f"{told}; by the final layer's bias gradient its images count {float(factors.min()):.2f} to "
        f"{float(factors.max()):.2f} times their mean."
    )
    return Adaptation(free_scale=True, image_weights=factors, messages=(message,))


def image_factors(layer: FinalLayer, labels: Int[Tensor, " batch"]) -> Float[Tensor, " batch"] | None:
    """How much each image counts in ``(1/B) sum_i s_i g_i``, with mean 1; None where the gradient cannot tell.

    ``B dL/db = sum_i s_i (p_i - y_i)`` is linear in the factors; the mean output on noise stands for each p_i. They are
    believed where they explain the gradient, are positive, and of one size: so on networks with random weights.
    """
    if layer.bias_gradient is None or len(labels) >= len(layer.bias) - 1 or len(set(labels.tolist())) < len(labels):
        return None
    outputs = layer.probabilities(layer.prior_features).mean(dim=0)
    rows = outputs - F.one_hot(labels.cpu(), len(layer.bias)).double()
    sums = len(labels) * layer.bias_gradient
    factors = torch.linalg.lstsq(rows.T, sums[:, None]).solution[:, 0]
    misfit = float((rows.T @ factors - sums).norm() / sums.norm().clamp_min(1e-300))
    if misfit > _EXPLAINED or float(factors.min()) * _SPREAD < float(factors.max()):
        return None
    return (factors / factors.mean()).float()
