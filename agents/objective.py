"""What a candidate batch is scored by: the match with the captured gradient, and the priors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..capture import BatchNormMode, ClientLoss, batch_norm_layers, client_mode, mean_gradients
from ..capture.copying import copy_model
from ..priors import InputStatistics, Statistics
from ..refusal import ConfigError
from ..target import Target
from ..target.adaptation import Adaptation
from ..target.known_statistics import KnownStatistics
from ..target.second_derivative import client_batch, needs_composing, twice_differentiable
from .local_steps import LocalSteps
from .matches import Anchored, BehindCut, Comparison, Inside, Match, Parted, Plain, Retraced
from .objective_config import PRIORS, HeldAgainst, ObjectiveConfig
from .own_priors import OwnPriors

Whole = TypeVar("Whole", Plain, Retraced)

# The share of the descent before total variation begins to fade.
_FADES_FROM = 0.5
# What a model may make otherwise of a batch in parts, relative: rounding.
_SAME = 1e-3


class Objective:
    """``a_G L_grad + a_A L_activation + a_TV R_TV + a_l2 R_l2 + a_BN R_BN + a_group R_group`` (Yin et al. 2021, eq. 2
    and 8), each term in the configured form, and the priors of the user's own.

    With an anchor (see ``peeling``) the gradient loss covers the layers before it, with the exact cotangent, and
    ``L_activation`` is the relative distance to the recovered activations. With a cut there is no gradient loss.

    Args:
        target: The captured update, the model it was made with, labels, anchor or cut. The model is copied.
        config: Terms and weights.
        device: Where to compute.
        images_at_once: Images whose graph is held at once, where images do not depend on each other; 0: all of them.

    Raises:
        ConfigError: No term is left that a batch can be scored by.
        PluginError: A prior of the user's own that cannot be had, or does not keep its protocol.
    """

    def __init__(
        self,
        target: Target,
        config: ObjectiveConfig,
        device: torch.device | str = "cpu",
        images_at_once: int = 0,
    ) -> None:
        update, model = target.update, target.model
        self.config, self.device, self.update = config, torch.device(device), update
        self._model = copy_model(model).to(self.device)
        self._dtype = self._model.get_parameter(next(iter(update.gradients))).dtype
        self._composed = config.gradient_weight > 0 and needs_composing(self._model, update)
        self.labels: Int[Tensor, " batch"] = target.labels.to(self.device)
        """Of the batch, on the device."""
        self.joint_labels = target.joint_labels
        self.start = target.start
        self.generator = copy_model(target.generator).to(self.device) if target.generator is not None else None
        allowed = target.adaptive_allowance if config.allows_for_defences else target.allowance
        known = target.statistics if config.batch_norm_weight else KnownStatistics({})
        layers = batch_norm_layers(self._model)
        self._statistics = {name: (m.to(self.device), v.to(self.device)) for name, (m, v) in known.targets.items()}
        self._observed = {name: layers[name] for name in known.targets}
        self.messages = [*allowed.messages, *known.messages]
        self._inside, self._match = self._matches(target, allowed, images_at_once)
        batch = (update.image_count, *update.image_shape)
        self._own = OwnPriors(config.own_priors, batch, self.device)
        self._require_a_term()

    def _matches(self, target: Target, allowed: Adaptation, at_once: int) -> tuple[Inside | None, Match]:
        """The match by activations that are known, if there are any, and the match that is descended."""
        model, update = self._model, target.update
        loss = self.config.gradient_loss
        gradients = Comparison.of(model, mean_gradients(update), loss, allowed, target.scale_known)
        plain = Plain(model, self.labels, ClientLoss.of(update.facts), gradients)
        if update.local is not None:
            steps = LocalSteps(model, gradients.names, self.labels, update)
            if at_once:
                self.messages.append(
                    f"agents.images_at_once={at_once} has no effect: several local steps are made again as a whole."
                )
            return self._behind(target, Retraced(steps, gradients), gradients)
        inside, match = self._behind(target, plain, gradients)
        if not 0 < at_once < update.image_count:
            return inside, match
        reason = self._one_graph(target, at_once)
        if reason:
            self.messages.append(f"agents.images_at_once={at_once} has no effect: {reason}, so the batch is one graph.")
            return inside, match
        return inside, Parted(match, plain, at_once, self._observed, self._as_the_client)

    def _one_graph(self, target: Target, at_once: int) -> str:
        """Why a batch cannot be taken in parts, if it cannot."""
        if target.joint_labels:
            return "labels are optimised with the images"
        if target.update.batch_norm is not BatchNormMode.EVAL and batch_norm_layers(self._model):
            return "batch norm in train mode makes images depend on each other"
        if not self._takes_parts(at_once):
            return "the model does not make of some images what it makes of these among others"
        return ""

    def _takes_parts(self, at_once: int) -> bool:
        """Whether the model makes the same of a batch in parts, tried on noise."""
        shape = (self.update.image_count, *self.update.image_shape)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(self.device, self._dtype)
        with torch.no_grad(), self._as_the_client():
            whole = self._model(noise)
            try:
                found = torch.cat([self._model(part) for part in torch.split(noise, at_once)])
            # Somebody's own model may raise anything.
            except Exception:
                return False
        # Without numbers, where shapes alone are run, they are taken for equal.
        return found.shape == whole.shape and bool(found.is_meta or (found - whole).norm() <= _SAME * whole.norm())

    def _behind(
        self, target: Target, whole: Whole, gradients: Comparison
    ) -> tuple[Inside | None, Anchored | BehindCut | Whole]:
        """The matches inside the network where something is known there; the last one is descended."""
        model, config = self._model, self.config
        if target.cut is not None:
            cut = BehindCut(target.cut, whole, bool(self._observed), self.device, self._dtype)
            return cut, cut
        if target.anchor is None:
            return None, whole
        anchor = target.anchor.to(self.device, self._dtype)
        anchored = Anchored(model, anchor, whole, gradients, config.jump_weight)
        return anchored, anchored

    def _require_a_term(self) -> None:
        weights = ["gradient_weight"]
        weights += [f"{name}_weight" for name, prior in PRIORS.items() if prior.target is HeldAgainst.NOTHING]
        others = self._statistics or self._own.weights or self.generator is not None
        if others or any(getattr(self.config, name) for name in weights):
            return
        raise ConfigError(
            [
                "the objective has no term that a batch can be scored by: give objective."
                f"{', '.join(weights)} or, for a model with running statistics, batch_norm_weight above 0."
            ]
        )

    @property
    def peeled(self) -> bool:
        """Whether the gradient is matched from recovered activations on."""
        return self._inside is not None

    @property
    def determined(self) -> bool:
        """Whether the `residual` has an equation for each pixel, or more: at its root no prior is needed."""
        weighed = self.config.gradient_weight > 0 and self.config.activation_weight > 0
        return self._inside is not None and self.generator is None and weighed and self._inside.determines(self._pixels)

    @property
    def _pixels(self) -> int:
        return self.update.image_count * math.prod(self.update.image_shape)

    @property
    def classes(self) -> int:
        """Of the model."""
        with torch.no_grad(), client_mode(self._model, BatchNormMode.EVAL):
            shape = (client_batch(self.update), *self.update.image_shape)
            return int(self._model(torch.zeros(shape, dtype=self._dtype, device=self.device)).shape[1])

    def terms(
        self,
        images: Float[Tensor, "batch channel height width"],
        consensus: Float[Tensor, "batch channel height width"] | None = None,
        labels: Float[Tensor, "batch classes"] | None = None,
        progress: float = 0.0,
    ) -> dict[str, Float[Tensor, ""]]:
        """Each term before its weight, and ``total``. Terms whose weight is 0 are left out.

        Args:
            images: Normalised pixels; the derivative of ``total`` by them can be taken.
            consensus: Target of group consistency, normalised pixels, or None before there is one.
            labels: The probability of each class where labels are optimised with the images, else None.
            progress: The share of the descent that is over, in [0, 1]; total variation may fade with it.
        """
        terms, found = self._matched(images, self.labels if labels is None else labels)
        looked_at: dict[HeldAgainst, tuple[object, ...] | None] = {
            HeldAgainst.NOTHING: (images,),
            HeldAgainst.STATISTICS: (found, self._statistics) if self._statistics else None,
            HeldAgainst.CONSENSUS: (images, consensus) if consensus is not None else None,
        }
        for name, prior in PRIORS.items():
            arguments = looked_at[prior.target]
            if self.config.weight(name) > 0 and arguments is not None:
                terms[name] = prior.equation(self.config)(*arguments)
        terms |= self._own.terms(images)
        terms["total"] = self._total(terms, progress)
        return terms

    def _matched(self, images: Tensor, labels: Tensor) -> tuple[dict[str, Tensor], Mapping[str, Statistics]]:
        """The terms of the match, and the statistics of the batch at the layers where they are known."""
        if self.config.gradient_weight == 0 and not self._statistics:
            return {}, {}
        images = images.to(self._dtype)
        with InputStatistics(self._observed) as statistics, self._as_the_client():
            if self.config.gradient_weight == 0:
                self._match.observe(images, statistics)
                return {}, statistics.found
            return self._match.terms(images, labels, statistics), statistics.found

    def residual(self, images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, " equations"]:
        """What a batch leaves of what is known inside the network; see `Inside.residual`. Only where `peeled`."""
        assert self._inside is not None
        with torch.enable_grad(), self._as_the_client():
            return self._inside.residual(images.to(self._dtype))

    def _as_the_client(self) -> AbstractContextManager[None]:
        return twice_differentiable(self._model, self.update.batch_norm, self._composed)

    def _total(self, terms: Mapping[str, Tensor], progress: float) -> Tensor:
        total = torch.zeros((), device=self.device)
        for name in ("gradient", "activation", *PRIORS):
            if name in terms:
                share = self._fade(progress) if name in PRIORS and PRIORS[name].fades else 1.0
                total = total + share * self.config.weight(name) * terms[name]
        for name, weight in self._own.weights.items():
            total = total + weight * terms[name]
        return total

    def _fade(self, progress: float) -> float:
        """The share of a fading prior's weight at this progress."""
        spared = self._inside is not None and self._inside.outnumbers(self._pixels)
        if not spared or progress <= _FADES_FROM:
            return 1.0
        share = (progress - _FADES_FROM) / (1 - _FADES_FROM)
        return 1 + (self.config.total_variation_end - 1) * min(share, 1.0)

    def evidence(self, images: Float[Tensor, "batch channel height width"]) -> float:
        """How far a batch is from what was captured, the lower the better: the weighted gradient and activation terms,
        or, where the gradient counts for nothing, the priors.
        """
        # The gradient loss is itself a derivative, so the graph is needed even though nothing is descended.
        found = self.terms(images.to(self.device).detach().requires_grad_())
        terms = {name: float(value.detach()) for name, value in found.items()}
        if "gradient" not in terms and "activation" not in terms:
            return terms["total"]
        config = self.config
        return config.gradient_weight * terms.get("gradient", 0.0) + config.activation_weight * terms.get(
            "activation", 0.0
        )

    def gradient_loss(self, images: Float[Tensor, "batch channel height width"]) -> float:
        """The attacker's own measure of a batch: the relative layer norm over *all* parameters, in the client's mode;
        for a weight delta, of the delta that the batch gives in the client's local steps.

        Zero to rounding at the private images, whatever loss the agents descend; comparable between candidates. What
        the attack allows for in a defended update is allowed for here too.
        """
        with client_mode(self._model, self.update.batch_norm):
            return self._match.gradient_loss(images.to(self.device, self._dtype))
