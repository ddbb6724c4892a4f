"""What a candidate batch is scored by: the match with the captured gradient, and the priors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..capture import (
    BatchNormMode,
    ClientLoss,
    as_gradient,
    batch_norm_layers,
    client_mode,
    mean_gradients,
)
from ..capture.copying import copy_model
from ..capture.fitting import fit
from ..peeling import Anchor
from ..priors import (
    InputStatistics,
    anisotropic_total_variation,
    batch_norm_distance,
    colour_total_variation,
    group_distance,
    l2_norm,
    mean_square,
    relative_batch_norm_distance,
    relative_group_distance,
    total_variation,
)
from ..refusal import ConfigError
from ..target import Target
from ..target.adaptation import Adaptation
from ..target.defence_evidence import allow_for_defence
from .config import Form, ObjectiveConfig, TotalVariation
from .gradient_losses import GRADIENT_LOSSES, relative_l2
from .known_statistics import Known, known_statistics
from .local_steps import LocalSteps, fit_scale
from .penalty_evidence import allow_for_penalty
from .second_derivative import client_batch, forward_to, needs_composing, twice_differentiable

# Estimated error of an anchor up to which a prior can be spared at the end.
_EXACT = 0.015
# The share of the descent before total variation begins to fade.
_FADES_FROM = 0.5


class Objective:
    """``a_G L_grad + a_A L_activation + a_TV R_TV + a_l2 R_l2 + a_BN R_BN + a_group R_group`` (Yin et al. 2021, eq. 2
    and 8), each term in the configured form.

    With an anchor (see ``peeling``) the gradient loss covers the layers before it, with the exact cotangent, and
    ``L_activation`` is the relative distance to the recovered activations.

    Args:
        target: The captured update, the model it was made with, labels, anchor. The model is copied.
        config: Terms and weights.
        device: Where to compute.
    """

    def __init__(self, target: Target, config: ObjectiveConfig, device: torch.device | str = "cpu") -> None:
        update, model = fit(target.update, target.model)
        update.require_match(model)
        if update.local is None:
            update = as_gradient(update, model)
        target = replace(target, update=update, model=model)
        self.config = config
        self.device = torch.device(device)
        self.update = update
        self.messages: list[str] = []
        self._model = copy_model(model).to(self.device)
        self._composed = config.gradient_weight > 0 and needs_composing(self._model, update)
        self._labels = target.labels.to(self.device)
        self.joint_labels = target.joint_labels
        self.generator = copy_model(target.generator).to(self.device) if target.generator is not None else None
        parameters = dict(self._model.named_parameters())
        self._dtype = parameters[next(iter(update.gradients))].dtype
        self._anchor = target.anchor.to(self.device, self._dtype) if target.anchor is not None else None
        explained = set(self._anchor.explained) if self._anchor is not None else set()
        gradients = mean_gradients(update)
        local = update.local is not None
        self._steps = LocalSteps(self._model, list(gradients), self._labels, update) if local else None
        self._scale_known = target.scale_known
        self._client_loss = ClientLoss.of(update.facts)
        self._adaptation = self._allowance(target)
        self.messages += self._adaptation.messages
        self._names, self._open_names = list(gradients), [name for name in gradients if name not in explained]
        self._all = [parameters[name] for name in gradients]
        self._all_targets = [gradient.to(self.device) for gradient in gradients.values()]
        self._open = [parameters[name] for name in self._open_names]
        self._open_targets = [gradients[name].to(self.device) for name in self._open_names]
        self._open_weights = self._continuity(config.jump_weight)
        self._fades = self._enough_equations()
        known = known_statistics(update, target.model, self.device) if config.batch_norm_weight else Known({})
        self._statistics_targets = known.targets
        self.messages += known.messages
        layers = batch_norm_layers(self._model)
        self._statistics_layers = {name: layers[name] for name in self._statistics_targets}
        if (
            not (
                config.gradient_weight or config.total_variation_weight or config.l2_weight or self._statistics_targets
            )
            and self.generator is None
        ):
            raise ConfigError(
                [
                    "the objective has no term that a batch can be scored by: give objective.gradient_weight, "
                    "total_variation_weight, l2_weight or, for a model with running statistics, batch_norm_weight "
                    "above 0."
                ]
            )

    def _loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The client's, with what its defence left of each image."""
        return self._client_loss(outputs, labels, self._adaptation.image_weights)

    def _allowance(self, target: Target) -> Adaptation:
        update, found = target.update, allow_for_penalty(target.update, target.model)
        if target.anchor is not None and target.anchor.scales:
            # Peeling found the factors of clipping exactly, and its cotangent holds them.
            return found.and_also(Adaptation(image_weights=torch.tensor(target.anchor.scales)))
        if update.facts.loss_scale.value is None:
            found = found.and_also(Adaptation(free_scale=True))
        # Deltas of several steps give no such evidence, and without labels there is nothing to hold it against.
        blind = update.local is not None or target.joint_labels
        if not self.config.adaptive or self.config.gradient_weight == 0:
            return found
        if blind:
            # What the client says needs no evidence: after clipping only the direction counts.
            clips = any(one.name in ("clip", "dp_sgd") for one in update.defences)
            return found.and_also(Adaptation(free_scale=True)) if clips else found
        return found.and_also(allow_for_defence(update, target.model, target.labels))

    @property
    def peeled(self) -> bool:
        """Whether the gradient is matched from recovered activations on."""
        return self._anchor is not None

    @property
    def determined(self) -> bool:
        """Whether the `residual` has an equation for each pixel, or more: at its root no prior is needed."""
        weighed = self.config.gradient_weight > 0 and self.config.activation_weight > 0
        return self._fades and self.generator is None and weighed and self._equations(shut=False) >= self._pixels()

    @property
    def labels(self) -> Int[Tensor, " batch"]:
        """Of the batch, on the device."""
        return self._labels

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
        config = self.config
        terms = self._evidence(images, self._labels if labels is None else labels)
        terms |= self._priors(images)
        if config.group_weight > 0 and consensus is not None:
            group = group_distance if config.form is Form.PAPER else relative_group_distance
            terms["group"] = group(images, consensus)
        terms["total"] = self._total(terms, progress)
        return terms

    def _evidence(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        config = self.config
        terms: dict[str, Tensor] = {}
        if config.gradient_weight == 0 and not self._statistics_layers:
            return terms
        images = images.to(self._dtype)
        with InputStatistics(self._statistics_layers) as statistics, self._as_the_client():
            if self._steps is not None:
                found = self._steps.run(images, create_graph=True, statistics=statistics)
                if config.gradient_weight > 0:
                    terms["gradient"] = self._distance(self._names, found, self._all_targets)
            elif self._anchor is None or config.gradient_weight == 0:
                logits = self._model(images)
                if config.gradient_weight > 0:
                    found = _derivatives(self._loss(logits, labels), self._all, create_graph=True)
                    terms["gradient"] = self._distance(self._names, found, self._all_targets)
            else:
                terms |= self._at_anchor(images, self._anchor)
        if self._statistics_targets:
            distance = batch_norm_distance if config.form is Form.PAPER else relative_batch_norm_distance
            terms["batch_norm"] = distance(statistics.found, self._statistics_targets)
        return terms

    def _at_anchor(self, images: Tensor, anchor: Anchor) -> dict[str, Tensor]:
        reached = forward_to(self._model, images, anchor.module)
        terms = {"activation": _off(reached, anchor).norm() / anchor.activations.norm().clamp_min(1e-30)}
        if self._open:
            found = _derivatives(reached, self._open, grad_outputs=anchor.cotangent, create_graph=True)
            terms["gradient"] = self._distance(self._open_names, found, self._open_targets, self._open_weights)
        return terms

    def residual(self, images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, " equations"]:
        """What a batch leaves of the peeled layers' activations and of the gradients that are continuous in the images,
        each relative to what was captured; zero to rounding at the private images. Only behind an anchor.
        """
        anchor = self._anchor
        assert anchor is not None
        smooth = [k for k, name in enumerate(self._open_names) if name in anchor.continuous]
        names, targets = [self._open_names[k] for k in smooth], [self._open_targets[k] for k in smooth]
        with torch.enable_grad(), self._as_the_client():
            reached = forward_to(self._model, images.to(self._dtype), anchor.module)
            parts = [_off(reached, anchor).flatten() / anchor.activations.norm().clamp_min(1e-30)]
            if smooth:
                open_ = [self._open[k] for k in smooth]
                found = _derivatives(reached, open_, grad_outputs=anchor.cotangent, create_graph=True)
                ours, theirs = self._adaptation.matched(names, found, targets)
                size = torch.cat([target.flatten() for target in theirs]).norm().clamp_min(1e-30)
                parts += [(a - b).flatten() / size for a, b in zip(ours, theirs, strict=True)]
        return torch.cat(parts)

    def _continuity(self, jump_weight: float) -> tuple[float, ...] | None:
        """One weight for each gradient behind the anchor: 1 where it is continuous in the images; None: all are alike.

        Where a ReLU lies in between, the gradient jumps with every unit that opens or shuts, which a descent can
        neither see nor follow: such gradients say more of the noise of the way than of the way.
        """
        continuous = self._anchor.continuous if self._anchor is not None else ()
        if jump_weight == 1 or not any(name in continuous for name in self._open_names):
            return None
        return tuple(1.0 if name in continuous else jump_weight for name in self._open_names)

    def _distance(
        self,
        names: Sequence[str],
        found: Sequence[Tensor],
        target: Sequence[Tensor],
        weights: Sequence[float] | None = None,
    ) -> Tensor:
        if not self._scale_known:
            found = fit_scale(found, target)
        return GRADIENT_LOSSES[self.config.gradient_loss](*self._adaptation.matched(names, found, target, weights))

    def _as_the_client(self) -> AbstractContextManager[None]:
        return twice_differentiable(self._model, self.update.batch_norm, self._composed)

    def _priors(self, images: Tensor) -> dict[str, Tensor]:
        config = self.config
        terms: dict[str, Tensor] = {}
        if config.total_variation_weight > 0:
            if config.total_variation is TotalVariation.COLOUR:
                terms["total_variation"] = colour_total_variation(images)
            elif config.form is Form.PAPER:
                terms["total_variation"] = total_variation(images)
            else:
                terms["total_variation"] = anisotropic_total_variation(images)
        if config.l2_weight > 0:
            terms["l2"] = l2_norm(images) if config.form is Form.PAPER else mean_square(images)
        return terms

    def _total(self, terms: dict[str, Tensor], progress: float) -> Tensor:
        config = self.config
        match = torch.zeros((), device=self.device)
        if "gradient" in terms:
            match = match + config.gradient_weight * terms["gradient"]
        if "activation" in terms:
            match = match + config.activation_weight * terms["activation"]
        for name in ("total_variation", "l2", "batch_norm", "group"):
            if name in terms:
                faded = self._fade(progress) if name == "total_variation" else 1.0
                match = match + faded * getattr(config, f"{name}_weight") * terms[name]
        return match

    def _enough_equations(self) -> bool:
        """Whether exact activations and continuous gradients are at least as many as pixels: little prior is needed
        then but on the way there, where a unit that was shut tells as much as one that was open.
        """
        exact = self._anchor is not None and self._anchor.error <= _EXACT
        return exact and self._equations(shut=True) >= self._pixels()

    def _equations(self, shut: bool) -> int:
        """Activations and continuous gradients that are known; with or without units that are only known to be shut."""
        anchor = self._anchor
        if anchor is None:
            return 0
        smooth = (t for n, t in zip(self._open_names, self._open_targets, strict=True) if n in anchor.continuous)
        known = anchor.activations.numel() if shut or not anchor.one_sided else int((anchor.activations > 0).sum())
        return known + sum(target.numel() for target in smooth)

    def _pixels(self) -> int:
        return self.update.image_count * math.prod(self.update.image_shape)

    def _fade(self, progress: float) -> float:
        """The share of total variation's weight at this progress."""
        if not self._fades or progress <= _FADES_FROM:
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
        images = images.to(self.device, self._dtype)
        with client_mode(self._model, self.update.batch_norm):
            if self._steps is not None:
                found = self._steps.run(images, create_graph=False)
            else:
                found = _derivatives(self._loss(self._model(images), self._labels), self._all)
        if not self._scale_known:
            found = fit_scale(found, self._all_targets)
        return float(relative_l2(*self._adaptation.matched(self._names, found, self._all_targets)))


def _off(reached: Tensor, anchor: Anchor) -> Tensor:
    """How far the anchor's input is from what it was; where a ReLU was shut only a positive input is wrong."""
    if not anchor.one_sided:
        return reached - anchor.activations
    return torch.where(anchor.activations > 0, reached - anchor.activations, reached.clamp_min(0))


def _derivatives(
    output: Tensor, parameters: Sequence[Tensor], grad_outputs: Tensor | None = None, create_graph: bool = False
) -> tuple[Tensor, ...]:
    """One derivative for each parameter, zero for one that the output does not depend on: as a client captures it."""
    if not output.requires_grad:
        return tuple(torch.zeros_like(parameter) for parameter in parameters)
    return torch.autograd.grad(
        output, parameters, grad_outputs, create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
