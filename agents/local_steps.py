"""The client's local steps, retraced by a candidate batch: a weight delta that has a derivative by the images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..capture import CapturedUpdate, ClientLoss, call_with, gradient_shares, step_shares
from ..priors import InputStatistics, Statistics
from ..target.assumed_epoch import assumed_epoch


class LocalSteps:
    """Trains a candidate batch as the client trained its images, differentiably (Dimitrov et al., *Data Leakage in
    Federated Averaging*, TMLR 2022, simulate the client in this way).

    Image k is in step ``k // batch_size`` of every epoch. Where the client draws an order that the server does not know
    (``local.shuffled``), each step is made on all images instead: the mean over the orders. With one step this is the
    gradient.

    Args:
        model: The server's model; run it in the client's mode (``client_mode``).
        names: Of the parameters in the update, in its order.
        labels: One per image.
        update: A weight delta whose learning rate is a number.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str],
        labels: Int[Tensor, " batch"],
        update: CapturedUpdate,
    ) -> None:
        assert update.local is not None
        assert update.local.learning_rate is not None
        self._model, self._labels, self._local = model, labels, update.local
        self._rate = update.local.learning_rate
        self._loss, self._penalty = ClientLoss.of(update.facts), update.facts.penalty.value
        parameters = dict(model.named_parameters())
        self._start = {name: parameters[name].detach() for name in names}
        self._epoch = assumed_epoch(update)
        self._whole = sum(gradient_shares(update.local, update.image_count))
        self._statistic_shares = step_shares(update, model)
        self._images_per_epoch = sum(map(len, self._epoch))

    def run(
        self,
        images: Float[Tensor, "batch channel height width"],
        create_graph: bool,
        statistics: InputStatistics | None = None,
    ) -> tuple[Tensor, ...]:
        """The mean of the steps' gradients, ``-delta / (lr sum_t c_t)`` as in ``mean_gradients``, one per name.

        Args:
            images: Normalised pixels.
            create_graph: Whether the result has a derivative by the images.
            statistics: Entered around this call; what it holds afterwards are the statistics over all steps.
        """
        weights = {name: weight.clone().requires_grad_() for name, weight in self._start.items()}
        moved = {name: torch.zeros_like(weight) for name, weight in self._start.items()}
        velocity: dict[str, Tensor] = {}
        seen: list[dict[str, Statistics]] = []
        for batch in self._epoch * self._local.epochs:
            chosen = slice(batch.start, batch.stop)
            logits = call_with(self._model, weights, images[chosen])
            loss = self._loss(logits, self._labels[chosen])
            found = torch.autograd.grad(
                loss, list(weights.values()), create_graph=create_graph, allow_unused=True, materialize_grads=True
            )
            for name, gradient in zip(self._start, found, strict=True):
                step = gradient + self._local.weight_decay * weights[name] if self._local.weight_decay else gradient
                if self._penalty:
                    step = step + self._penalty.term(name, weights[name])
                if self._local.momentum and name in velocity:
                    step = self._local.momentum * velocity[name] + step
                velocity[name] = step = step if create_graph else step.detach()
                moved[name] = moved[name] + step
                following = self._start[name] - self._rate * moved[name]
                weights[name] = following if create_graph else following.requires_grad_()
            if statistics is not None:
                seen.append(dict(statistics.found))
        if statistics is not None:
            statistics.found.update(self._over_steps(seen))
        return tuple(step / self._whole for step in moved.values())

    def _over_steps(self, seen: Sequence[Mapping[str, Statistics]]) -> dict[str, Statistics]:
        """Statistics as ``batch_norm_targets`` has them: weighed as they move the running buffers over all steps, or,
        where the target is the server's own statistics, of the images of the first epoch taken together."""
        found: dict[str, Statistics] = {}
        for name in seen[0]:
            if name in self._statistic_shares:
                shares = self._statistic_shares[name]
                mean = _sum(share * step[name][0] for (share, _), step in zip(shares, seen, strict=True))
                var = _sum(share * step[name][1] for (_, share), step in zip(shares, seen, strict=True))
            else:
                weights = [len(batch) / self._images_per_epoch for batch in self._epoch]
                first = [(weight, step[name]) for weight, step in zip(weights, seen, strict=False)]
                mean = _sum(share * step[0] for share, step in first)
                var = _sum(share * (step[1] + (step[0] - mean).square()) for share, step in first)
            found[name] = (mean, var)
        return found


def fit_scale(found: Sequence[Tensor], targets: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The gradients times the one factor with which they are nearest to the targets (least squares over all of them).

    For a learning rate that is only estimated: it scales a delta as a whole, and that scale is then left open.
    """
    product = torch.stack([(a * b).sum() for a, b in zip(found, targets, strict=True)]).sum()
    square = torch.stack([a.square().sum() for a in found]).sum()
    factor = product / square.clamp_min(1e-30)
    return tuple(factor * gradient for gradient in found)


def _sum(values: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(values)).sum(dim=0)
