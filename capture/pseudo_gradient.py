"""A weight delta in the units of a gradient, and the gradient itself where the client made a single step."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from .errors import UpdateError
from .facts import Penalty, Reduction
from .local_training import LocalTraining
from .losses import ClientLoss
from .update import CapturedUpdate
from .update_kind import UpdateKind


def gradient_shares(local: LocalTraining, image_count: int) -> list[float]:
    """How much of each step's gradient the weights have moved by in the end, in learning rates.

    With momentum m the gradient of step t of T works on in all later steps: ``1 + m + ... + m^(T-1-t)``; without, 1.

    Args:
        local: The client's local steps.
        image_count: Images of the client.
    """
    shares: list[float] = []
    for _ in range(local.steps(image_count)):
        shares.append(1 + local.momentum * (shares[-1] if shares else 0.0))
    return shares[::-1]


def mean_gradients(update: CapturedUpdate) -> dict[str, Tensor]:
    """What the update says of the gradient: itself, or a weight delta as the mean of its steps' gradients.

    ``-delta / (lr sum_t c_t)`` with the ``gradient_shares`` c_t, weight decay included: for one step without weight
    decay the gradient, for more an average of gradients at weights that drift away from the server's.

    Raises:
        UpdateError: The client's learning rate is not known.
    """
    local = update.local
    if local is None:
        return update.gradients
    if local.learning_rate is None:
        raise UpdateError("the client's learning rate is not known; estimate it first (estimate_learning_rate)")
    length = -local.learning_rate * sum(gradient_shares(local, update.image_count))
    return {name: delta / length for name, delta in update.gradients.items()}


def as_gradient(update: CapturedUpdate, model: nn.Module) -> CapturedUpdate:
    """The update as the gradient of the mean loss of its images at the server's weights.

    Of a weight delta ``-delta / lr - weight_decay w``: exact for a single step, up to rounding, as the client's weights
    are rounded to their type after the step, so that an entry of the gradient is off by up to ``eps |w| / lr``. For
    more steps it is the mean of the steps' gradients, which is a gradient at no weights at all. A penalty on the
    weights is subtracted and a scale of the loss divided out, as the facts have them; the facts of the result say so.

    Args:
        update: A gradient (returned as it is where it is that of a mean already), or a weight delta with a learning
            rate.
        model: The server's model.

    Raises:
        UpdateError: The client's learning rate is not known.
    """
    found, images = update, update.image_count
    local = update.local
    if local is not None:
        gradients, decay = mean_gradients(update), local.weight_decay
        if decay:
            weights = {name: parameter.detach().cpu() for name, parameter in model.named_parameters()}
            gradients = {name: g - decay * weights[name].to(g) for name, g in gradients.items()}
        facts = replace(update.facts, local=None)
        assert local.learning_rate is not None
        rate = local.learning_rate * sum(gradient_shares(local, update.image_count))
        found = replace(update, gradients=gradients, kind=UpdateKind.GRADIENT, facts=facts, step_rate=rate)
        images = len(local.batches(update.image_count)[0])
    return _of_the_mean(_without_penalty(found, model), images)


def _without_penalty(update: CapturedUpdate, model: nn.Module) -> CapturedUpdate:
    """A gradient without what a penalty on the weights added to it, which the server can compute."""
    penalty = update.facts.penalty.value
    if not penalty:
        return update
    weights = {name: parameter.detach().cpu() for name, parameter in model.named_parameters()}
    gradients = {name: g - penalty.term(name, weights[name].to(g)) for name, g in update.gradients.items()}
    without = replace(update.facts.penalty, value=Penalty())
    return replace(update, gradients=gradients, facts=update.facts.stating(penalty=without))


def _of_the_mean(update: CapturedUpdate, images: int) -> CapturedUpdate:
    """A gradient of the mean loss, where the reduction and the scale of the loss that was sent are known."""
    facts = update.facts
    factor = ClientLoss.of(facts).factor(images)
    # A sum over every output of every image needs the number of outputs, which the loss itself knows.
    if factor == 1 or (facts.reduction.value is Reduction.SUM and ClientLoss.of(facts).elementwise):
        return update
    gradients = {name: g / factor for name, g in update.gradients.items()}
    scale = facts.loss_scale if facts.loss_scale.value is None else replace(facts.loss_scale, value=1.0)
    mean, rate = replace(facts.reduction, value=Reduction.MEAN), update.step_rate
    stated = facts.stating(reduction=mean, loss_scale=scale)
    return replace(update, gradients=gradients, facts=stated, step_rate=None if rate is None else rate * factor)


def as_mean(update: CapturedUpdate) -> CapturedUpdate:
    """The gradient as a mean over the images that came, where the client divided their sum by another number.

    Under Poisson sampling DP-SGD divides by the expected number of images, whatever came: its gradient is the mean
    times ``count / expected``, an exact factor, which is taken out here. The noise, if any, is scaled along.

    Args:
        update: A gradient. A weight delta is returned as it is: see ``as_gradient``.
    """
    divisor = update.facts.sampling.value.expected
    if update.local is not None or divisor is None or divisor == update.image_count:
        return update
    factor = divisor / update.image_count
    sampling = replace(update.facts.sampling, value=replace(update.facts.sampling.value, expected=None))
    gradients, rate = {name: factor * g for name, g in update.gradients.items()}, update.step_rate
    stated = update.facts.stating(sampling=sampling)
    return replace(update, gradients=gradients, facts=stated, step_rate=None if rate is None else rate / factor)


def is_one_step(update: CapturedUpdate) -> bool:
    """Whether the update is, or is as good as, one gradient."""
    return update.local is None or update.local.steps(update.image_count) == 1
