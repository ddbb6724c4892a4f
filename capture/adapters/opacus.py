"""Opacus: what a DP-SGD client sends, as `CapturedUpdate`. It needs ``pip install 'gradinversion[opacus]'``."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils.data import BatchSampler

from ..batch_norm import batch_norm_layers
from ..decisive import draws
from ..defences import Defence
from ..errors import UpdateError
from ..facts import BatchNormMode, ClientFacts, Fact, Penalty, Reduction, Sampling, assumed, read, told
from ..hashing import weight_hash
from ..normalisation import IMAGENET, Normalisation
from ..update import CapturedUpdate


@dataclass
class PrivateSteps:
    """The steps that were taken while `record_private_steps` looked on."""

    updates: list[CapturedUpdate] = field(default_factory=list)
    """One per recorded step: the clipped, noisy, averaged gradient, as the optimiser was about to apply it."""
    servers: list[dict[str, Tensor]] = field(default_factory=list)
    """The plain model's state dict before each of them, to which the update belongs."""
    problems: list[str] = field(default_factory=list)
    """Why a step could not be recorded, one sentence each; the training went on."""

    @property
    def update(self) -> CapturedUpdate:
        """The last one.

        Raises:
            UpdateError: No step was recorded, and why.
        """
        if not self.updates:
            why = self.problems[-1] if self.problems else "call optimizer.step() after backward() while recording"
            raise UpdateError(f"no private step was recorded: {why}")
        return self.updates[-1]


@contextmanager
def record_private_steps(
    model: nn.Module,
    optimizer: Any,
    engine: Any = None,
    *,
    image_shape: tuple[int, int, int],
    normalisation: Normalisation | tuple[Sequence[float], Sequence[float]] | None = None,
    delta: float = 1e-5,
    image_count: int | None = None,
    most_steps: int = 1,
    model_id: str | None = None,
    loader: Any = None,
    poisson: bool | None = None,
    stated: Mapping[str, Fact[Any]] | None = None,
) -> Iterator[PrivateSteps]:
    """Record real steps of a private training: ``with record_private_steps(...) as steps: ... optimizer.step()``.

    The training itself is not changed: Opacus clips each image's gradient, adds its noise and accounts for it, and the
    optimiser steps, as without this. What is recorded is the sum of the clipped gradients with the noise, divided by
    the expected batch size, as Opacus does it.

    Args:
        model: As ``PrivacyEngine.make_private`` returned it.
        optimizer: As it returned it.
        engine: The privacy engine, for epsilon; None when its accountant is out of reach.
        image_shape: Channels, height, width.
        normalisation: Mean and deviation per channel; the model is fed ``(images - mean) / std``. None: nobody said,
            and ImageNet's is assumed.
        delta: At which epsilon is told.
        image_count: How many images a step used; None to count the gradients per image, which is possible unless the
            batch was split (``BatchMemoryManager``) or ghost clipping is used.
        most_steps: Later ones are not recorded.
        model_id: What ``load_model`` takes to build the plain model; by default its class.
        loader: The data loader that ``make_private`` returned, from whose sampler it is read whether batches are drawn
            by Poisson sampling.
        poisson: Whether they are, where no loader is at hand; None and no loader: nobody said, and it is assumed.
        stated: Further facts about the client by their names in `ClientFacts`, which win over what Opacus tells.

    Raises:
        UpdateError: The optimiser is not private. A step that cannot be recorded (an empty batch, an unknown number of
            images) is a sentence in ``problems``.
    """
    _require_private(optimizer)
    normalisation = None if normalisation is None else Normalisation.of(normalisation)
    plain = _plain(model)
    sampled = _sampled(loader, poisson)
    accounting = optimizer.step_hook
    recorded = PrivateSteps()

    def hook(stepping: Any) -> None:
        if accounting is not None:
            accounting(stepping)
        if len(recorded.updates) >= most_steps:
            return
        try:
            _require_no_batch_statistics(plain)
            count = _images(stepping) if image_count is None else image_count
            update = CapturedUpdate(
                gradients=_gradients(plain, stepping, count),
                image_shape=image_shape,
                model_id=model_id or type(plain).__name__,
                weight_hash=weight_hash(plain),
                facts=_facts(
                    stepping, plain, engine, delta, count, normalisation, sampled, _dropout(plain, image_shape)
                ).stating(**(stated or {})),
            )
        except UpdateError as error:
            recorded.problems.append(str(error))
            return
        recorded.updates.append(update)
        recorded.servers.append({name: value.detach().cpu().clone() for name, value in plain.state_dict().items()})

    optimizer.attach_step_hook(hook)
    try:
        yield recorded
    finally:
        optimizer.step_hook = accounting


def _require_private(optimizer: Any) -> None:
    try:
        from opacus.optimizers import DPOptimizer
    except ImportError as error:
        raise UpdateError(
            f"recording a private step needs the package opacus ({error}): pip install 'gradinversion[opacus]'"
        ) from None
    if not isinstance(optimizer, DPOptimizer):
        raise UpdateError(
            f"the optimiser is a {type(optimizer).__name__}; give the one that PrivacyEngine.make_private returned"
        )


def _plain(model: nn.Module) -> nn.Module:
    """The model inside the wrappers of Opacus and DataParallel: its names carry no ``_module.``."""
    from opacus.distributed import DifferentiallyPrivateDistributedDataParallel
    from opacus.grad_sample import AbstractGradSampleModule

    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel, DifferentiallyPrivateDistributedDataParallel)
    while isinstance(model, (AbstractGradSampleModule, *parallel)):
        inner: nn.Module = model._module if isinstance(model, AbstractGradSampleModule) else model.module
        model = inner
    return model


def _images(optimizer: Any) -> int:
    """How many images went into this step."""
    if getattr(optimizer, "_is_last_step_skipped", False):
        raise UpdateError("the batch of the step was split, so its images cannot be counted; give image_count")
    try:
        count = len(optimizer.grad_samples[0])
    except (ValueError, AttributeError, IndexError, TypeError):
        raise UpdateError("the step keeps no gradient per image to count; give image_count") from None
    if count == 0:
        raise UpdateError("the batch of the step is empty, as Poisson sampling allows; take another step")
    return count


def _gradients(plain: nn.Module, optimizer: Any, count: int) -> dict[str, Tensor]:
    trained = {name: p for name, p in plain.named_parameters() if p.requires_grad}
    lacking = [name for name, p in trained.items() if p.grad is None]
    if lacking:
        raise UpdateError(f"the private step has no gradient for {lacking[0]!r}; give the optimiser all parameters")
    # With reduction "sum" Opacus does not divide; an update holds an average.
    divisor = 1 if optimizer.loss_reduction == "mean" else count
    return {name: (p.grad.detach() / divisor).cpu().clone() for name, p in trained.items() if p.grad is not None}


def _require_no_batch_statistics(plain: nn.Module) -> None:
    """Opacus refuses batch norm in training mode, since it mixes images; what is left runs on running statistics."""
    if any(layer.training for layer in batch_norm_layers(plain).values()):
        raise UpdateError(
            "the private model has batch norm in training mode, which has no gradient per image; replace it "
            "(opacus.validators.ModuleValidator.fix) or run it in evaluation mode"
        )


def _facts(
    optimizer: Any,
    plain: nn.Module,
    engine: Any,
    delta: float,
    count: int,
    normalisation: Normalisation | None,
    sampled: Fact[bool],
    dropout: Fact[bool],
) -> ClientFacts:
    """What the optimiser, the engine and the model as it was trained tell of the step."""
    import opacus

    source = f"Opacus {opacus.__version__}"
    return ClientFacts(
        image_count=told(count, source),
        normalisation=assumed(IMAGENET) if normalisation is None else told(normalisation, "the user"),
        batch_norm=read(BatchNormMode.EVAL, "the model, which has no batch norm in training mode"),
        # What is recorded is a mean over a batch, whatever the client's loss was summed by.
        reduction=told(Reduction.MEAN, source),
        # A penalty has no gradient per image, and the optimiser's own decay comes after what is recorded.
        penalty=told(Penalty(), source),
        dropout=dropout,
        defences=told((Defence("dp_sgd", _noise_multiplier(optimizer), _clip(optimizer, plain)),), source),
        sampling=Fact(
            Sampling(sampled.value, _divisor(optimizer, count, sampled.value)), sampled.provenance, sampled.source
        ),
        clients=told(1, source),
        privacy=_privacy(engine, delta),
    )


def _dropout(plain: nn.Module, image_shape: tuple[int, int, int]) -> Fact[bool]:
    """Dropout as the private model runs it."""
    if draws(plain, image_shape):
        return read(True, "the private model, whose outputs are random")
    return read(False, "the private model, whose outputs are not random")


def _clip(optimizer: Any, plain: nn.Module) -> tuple[float, ...]:
    """Largest norm of one image's gradient, or of each parameter's with clipping by layer, in the model's order."""
    norms = getattr(optimizer, "max_grad_norms", None)
    if norms is None:
        # A tensor where it is adapted.
        return (float(optimizer.max_grad_norm),)
    of = {id(parameter): float(norm) for parameter, norm in zip(optimizer.params, norms, strict=True)}
    return tuple(of[id(p)] for p in plain.parameters() if id(p) in of)


def _noise_multiplier(optimizer: Any) -> float:
    """Deviation of the noise on the sum, in clipping norms, as it is drawn.

    Adaptive clipping (Andrew et al., NeurIPS 2021, theorem 1) spends a part of the privacy on its count of unclipped
    images, and adds more noise to the gradient for it than its multiplier says.
    """
    told_one = float(optimizer.noise_multiplier)
    deviation = getattr(optimizer, "unclipped_num_std", None)
    if deviation is None or told_one == 0:
        # Set by the engine for adaptive ghost clipping alone.
        return float(getattr(optimizer, "_adjusted_noise_multiplier", told_one))
    return float((told_one**-2 - (2 * float(deviation)) ** -2) ** -0.5)


def _divisor(optimizer: Any, count: int, poisson: bool) -> float | None:
    """By what the sum over the images was divided; None where it is their number."""
    if optimizer.loss_reduction != "mean":
        return None
    # Opacus divides by the expected size of each batch whose gradients wait for this step.
    divisor = float(optimizer.expected_batch_size * optimizer.accumulated_iterations)
    return divisor if poisson or divisor != count else None


def _sampled(loader: Any, poisson: bool | None) -> Fact[bool]:
    """Whether batches are drawn by Poisson sampling."""
    if poisson is not None:
        return told(poisson, "the user")
    sampler: Any = getattr(loader, "batch_sampler", None)
    # BatchMemoryManager wraps the sampler in one that splits batches.
    while type(sampler).__name__ == "BatchSplittingSampler":
        sampler = sampler.sampler
    if type(sampler).__name__ in ("UniformWithReplacementSampler", "DistributedUniformWithReplacementSampler"):
        return read(True, "the sampler of the data loader")
    if type(sampler) is BatchSampler:
        return read(False, "the sampler of the data loader")
    return assumed(False, "nobody gave the data loader")


def _privacy(engine: Any, delta: float) -> str:
    if engine is None:
        return "epsilon not known"
    steps = sum(history[-1] for history in engine.accountant.history)
    return f"epsilon {_epsilon(engine, delta)} at delta {delta:g} after {steps} step{'s' * (steps != 1)}"


def _epsilon(engine: Any, delta: float) -> str:
    # Without noise there is no privacy, and accountants divide by it.
    if any(history[0] == 0 for history in engine.accountant.history):
        return "infinite"
    with warnings.catch_warnings():
        # It suggests other orders of the Renyi divergence; the bound that it gives is valid.
        warnings.simplefilter("ignore")
        try:
            epsilon = float(engine.accountant.get_epsilon(delta=delta))
        except (ValueError, RuntimeError, ArithmeticError):
            return "not known (the accountant refuses these settings)"
    return f"{epsilon:.3g}" if math.isfinite(epsilon) else "infinite"
