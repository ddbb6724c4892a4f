"""The batch's own statistics where they follow from the gradient, held against those that the client sent."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..capture import BatchNormMode, CapturedUpdate
from ..capture.sent_statistics import ROUNDED, SentStatistics, sent_statistics
from .graph import Node
from .kinds import BatchStatisticsNorm, Convolution, Linear
from .rules import Derivation
from .rules.knowledge import Known

# Statistics that are nearer to each other than this, or than so many stated errors, are the same.
_SAME, _ERRORS = 2e-3, 10.0
# Roundings in the buffers' own type of what the server had and of what came: more than PyTorch's update leaves.
_ROUNDINGS = 2.0
# Statistics that are off by more than this, of the deviation of all channels, are not used as the batch's.
_TELLS = 0.25
# A channel that is the same everywhere has no deviation to measure by: this share of all channels' stands in.
_LEAST = 1e-3


@dataclass(frozen=True)
class StatisticsOff:
    """The layer at which both are farthest apart."""

    layer: str
    share: float
    """The larger one of two differences: of the means, in deviations of the batch's values, and of the deviations
    themselves, relative; each a root mean square over the channels."""
    rounded: bool
    """Whether no layer's buffers are farther than rounding to bfloat16 from what the batch makes of the server's."""
    whole: float
    """As `share`, of the layer where it is largest, with the deviation of all channels together in place of each one's:
    channels that hardly deviate count little."""

    @property
    def kept(self) -> bool:
        """Whether they are the batch's own all the same, known roughly: rounded, and not off by so much that they say
        nothing of the batch, as where rounding makes more than it moves them by."""
        return self.rounded and self.whole <= _TELLS


def statistics_off(derivation: Derivation, update: CapturedUpdate, model: nn.Module) -> StatisticsOff | None:
    """How far statistics that were sent are from the batch's own; None where they are the same, or none were sent, or
    none of the batch's follow.

    Args:
        derivation: What follows from the gradient.
        update: What the client sent.
        model: The server's, before the client's step.
    """
    if update.batch_norm is not BatchNormMode.TRAIN_SHARED:
        return None
    sent, found = sent_statistics(update, model), list[StatisticsOff]()
    for node in derivation.graph.nodes:
        known = _entering(derivation, node)
        if node.name in sent and known is not None:
            values, error = known
            one = _apart(node.name, sent[node.name], values, _ERRORS * error)
            found += [one] if one.share > _SAME + _ERRORS * error else []
    if not found:
        return None
    farthest = max(found, key=lambda one: one.share)
    return replace(farthest, rounded=all(one.rounded for one in found), whole=max(one.whole for one in found))


def _entering(derivation: Derivation, node: Node) -> tuple[Tensor, float] | None:
    """What enters a batch norm, with its relative error; None where that is not known."""
    if not isinstance(node.kind, BatchStatisticsNorm):
        return None
    graph, knowledge = derivation.graph, derivation.knowledge
    known = knowledge.complete(node.inputs[0])
    if known is not None:
        return known.values, _worst(known)
    behind = graph.by_name.get(node.inputs[0])
    if behind is None or not isinstance(behind.kind, Convolution | Linear):
        return None
    known = knowledge.complete(behind.inputs[0])
    if known is None:
        return None
    return behind.kind.forward([known.values], graph.tensors_of(behind)), _worst(known)


def _worst(known: Known) -> float:
    return float(known.error.max())


def _apart(layer: str, sent: SentStatistics, values: Tensor, allowed: float) -> StatisticsOff:
    """How far those of one layer are from what came.

    Args:
        layer: Whose statistics they are.
        sent: What came of them.
        values: The batch's, that enter it.
        allowed: Relative difference that these values' errors may make.
    """
    over = [0, *range(2, values.dim())]
    share, own = sent.share, (values.mean(dim=over), values.var(dim=over))
    before, after = ((one.mean.double().cpu(), one.var.double().cpu()) for one in (sent.before, sent.after))
    told = [one.cpu() for one in sent.batch]
    made = [old + share * (batch - old) for old, batch in zip(before, own, strict=True)]
    rounded = all(
        float((new - one).norm()) <= (ROUNDED + allowed) * float(torch.maximum(new.abs(), one.abs()).norm())
        for new, one in zip(after, made, strict=True)
    )
    left = [
        _ROUNDINGS * _epsilon(sent) * (old.abs() + new.abs()) / share for old, new in zip(before, after, strict=True)
    ]
    mean, variance = (
        (one - batch).abs().sub(rest).clamp_min(0) for one, batch, rest in zip(told, own, left, strict=True)
    )
    deviation, said = own[1].sqrt(), told[1].clamp_min(0).sqrt()
    whole = float(deviation.square().mean().sqrt())
    size = deviation.clamp_min(_LEAST * whole)
    # A variance that would be below zero is taken for zero: no deviation is off by more than all of itself then.
    apart = torch.stack([mean, variance.clamp_max(own[1].maximum(told[1])) / (deviation + said).clamp_min(1e-300)])
    own_share, whole_share = (float((apart / one).square().mean(dim=1).sqrt().max()) for one in (size, whole or 1.0))
    return StatisticsOff(layer, own_share, rounded, whole_share)


def _epsilon(sent: SentStatistics) -> float:
    """Of the coarser one of the types in which the server had its buffers and in which they came."""
    return max(torch.finfo(one.dtype).eps for part in (sent.before, sent.after) for one in (part.mean, part.var))
