"""The final fully connected layer: its gradient, and what the server knows of its inputs without seeing them.

Cross-entropy gives, for the mean over B images with features f_i, softmax outputs p_i and one-hot labels y_i,

    dL/dW = (1/B) sum_i (p_i - y_i) f_i^T        dL/db = (1/B) sum_i (p_i - y_i)

so that labels are written into both, and each column of either sums to zero over the classes.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ...refusal import Refusal
from ..batch_norm import client_mode
from ..fitting import fit
from ..forward import on_probes
from ..functional_layers import functional_layers_called
from ..update import CapturedUpdate

PROBE_COUNT = 16
# Column sums of a clean float32 gradient stay below this share of its entries (measured: 3e-8 to 6e-7) ...
ROUNDING = 1e-5
# ... unless the model is so sure that p - y is itself of the size of float32's rounding.
SOFTMAX_ROUNDING = 6e-8
# Singular values below this share of the largest are float32's rounding.
_NEGLIGIBLE = 1e-9
# How many noise deviations an entry must lie below zero to count as negative: the minimum of thousands of noise
# entries is around 4.
NOISE_DEVIATIONS = 6.0


class LabelError(Refusal, ValueError):
    """The labels cannot be read off this update."""


class NoFinalGradientError(LabelError):
    """The model ends in a fully connected layer whose gradient the update lacks: it is frozen, or was left out."""


@dataclass(frozen=True)
class FinalLayer:
    """The layer that makes the logits. All tensors in float64 on the CPU; K classes, D features."""

    weight: Float[Tensor, "classes features"]
    bias: Float[Tensor, " classes"]
    """Zeros when the layer has none."""
    weight_gradient: Float[Tensor, "classes features"]
    bias_gradient: Float[Tensor, " classes"] | None
    prior_features: Float[Tensor, "probe features"]
    """The layer's inputs on noise with the spectrum of natural images."""
    non_negative: bool
    """Whether those inputs are never below zero, as after a ReLU."""
    name: str = ""
    """Of the module; empty when the layer is the whole model."""
    smoothing: float = 0.0
    """Of the labels, as the facts have it."""
    stored: torch.dtype = torch.float32
    """In which the gradient was sent: its rounding is that of this type."""

    @property
    def sent(self) -> Float[Tensor, "classes features"]:
        """The weight gradient as it was sent."""
        return self.weight_gradient.to(self.stored)

    @property
    def noise(self) -> float:
        """Deviation of the noise in one gradient entry, from the column sums, which are zero in a clean gradient."""
        sums = self.weight_gradient.sum(dim=0)
        return float((sums.square().mean() / self.weight.shape[0]).sqrt())

    @property
    def clean(self) -> bool:
        """Whether the column sums are zero to rounding."""
        gradient, features = self.weight_gradient.square().mean().sqrt(), self.prior_features.square().mean().sqrt()
        return self.noise <= max(ROUNDING * float(gradient), SOFTMAX_ROUNDING * float(features))

    @property
    def present(self) -> Bool[Tensor, " classes"]:
        """Classes whose row has a negative entry. With non-negative features only a label of that class makes one."""
        threshold = 0.0 if self.clean else NOISE_DEVIATIONS * self.noise
        return self.weight_gradient.min(dim=1).values < -threshold

    def probabilities(self, features: Float[Tensor, "*some features"]) -> Float[Tensor, "*some classes"]:
        """Softmax outputs of these features."""
        return (features @ self.weight.T + self.bias).softmax(dim=-1)

    @property
    def signs_prove(self) -> bool:
        """Whether a negative entry proves that its class is in the batch. Smoothed labels make one of any class."""
        return self.non_negative and self.clean and not self.smoothing

    def compressed(self) -> FinalLayer:
        """The same layer in the few directions of feature space that the gradient and the mean prior feature span.

        Everything that is computed from those rows alone stays the same and costs less; signs lose their meaning.
        """
        _, sizes, directions = torch.linalg.svd(self.weight_gradient, full_matrices=False)
        kept = directions[sizes > _NEGLIGIBLE * sizes[0]]
        prior = self.prior_features.mean(dim=0, keepdim=True)
        basis = torch.linalg.qr(torch.cat([kept, prior]).T).Q
        return replace(
            self,
            weight=self.weight @ basis,
            weight_gradient=self.weight_gradient @ basis,
            prior_features=prior @ basis,
        )

    def scaled(self, factor: float) -> FinalLayer:
        """The same layer with its gradients multiplied by a factor, to undo clipping."""
        bias_gradient = None if self.bias_gradient is None else self.bias_gradient * factor
        return replace(self, weight_gradient=self.weight_gradient * factor, bias_gradient=bias_gradient)


@dataclass(frozen=True)
class TracedLayer:
    """The layer as the server's model has it, whatever gradient it got. All tensors in float64 on the CPU."""

    name: str
    """Of the module; empty when the layer is the whole model."""
    weight: Float[Tensor, "classes features"]
    bias: Float[Tensor, " classes"] | None
    prior_features: Float[Tensor, "probe features"]
    """See `FinalLayer`."""

    def read(self, update: CapturedUpdate) -> FinalLayer:
        """The layer with its gradient in an update.

        Raises:
            NoFinalGradientError: The update does not hold it.
        """
        prefix = f"{self.name}." if self.name else ""
        gradient = update.gradients.get(f"{prefix}weight")
        if gradient is None or gradient.shape != self.weight.shape:
            raise NoFinalGradientError(
                f"the update lacks the gradient of the final layer {prefix}weight in shape {tuple(self.weight.shape)}; "
                "labels are read off that tensor, so give the labels, or an update of this model that holds it"
            )
        bias_gradient = update.gradients.get(f"{prefix}bias") if self.bias is not None else None
        return FinalLayer(
            weight=self.weight,
            bias=self.weight.new_zeros(len(self.weight)) if self.bias is None else self.bias,
            weight_gradient=_wide(gradient),
            bias_gradient=None if bias_gradient is None else _wide(bias_gradient),
            prior_features=self.prior_features,
            non_negative=bool((self.prior_features >= 0).all()),
            name=self.name,
            smoothing=update.facts.label_smoothing.value,
            stored=gradient.dtype,
        )


def find_final_layer(update: CapturedUpdate, model: nn.Module) -> FinalLayer:
    """The linear layer whose output is the model's output, together with its gradient.

    Raises:
        LabelError: There is no such layer, or the update does not hold its gradient.
        ModelError: The model does not take the client's batch.
    """
    update, model = fit(update, model)
    traced = trace_final_layer(update, model)
    if traced is None:
        raise no_final_layer()
    return traced.read(update)


def no_final_layer() -> LabelError:
    """That the model ends in no fully connected layer."""
    return LabelError(
        "the model's logits are not the output of a fully connected layer (torch.nn.Linear), so labels cannot be "
        "read off its gradient; use a model that ends in one"
    )


def trace_final_layer(update: CapturedUpdate, model: nn.Module) -> TracedLayer | None:
    """The linear layer whose output is the model's output; None where there is no such layer.

    Args:
        update: Of this model and under its names; of it only the client's batch and batch norm's mode count.
        model: The server's model, out of its wrappers.

    Raises:
        ModelError: The model does not take the client's batch.
    """

    def trace(size: int) -> list[tuple[Tensor, str]]:
        passes = [_trace(update, model, part) for part in _probes(update, size)]
        return [found for found in passes if found is not None]

    passes = on_probes(trace, update.image_shape, PROBE_COUNT, update.image_count)
    if not passes:
        return None
    inputs, name = torch.cat([inputs for inputs, _ in passes]), passes[0][1]
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    # typed as a tensor, but None where the layer has none
    bias: Tensor | None = layer.bias
    return TracedLayer(name, _wide(layer.weight), None if bias is None else _wide(bias), _wide(inputs))


def _probes(update: CapturedUpdate, size: int) -> tuple[Tensor, ...]:
    """At least ``PROBE_COUNT`` images, so many at a time."""
    passes = -(-PROBE_COUNT // size)
    return torch.split(natural_noise(passes * size, update.image_shape), size)


def _trace(
    update: CapturedUpdate, model: nn.Module, images: Tensor
) -> tuple[Float[Tensor, "probe features"], str] | None:
    """Input and name of the linear layer that makes the logits, found by running probes through the model, or None.

    A logarithm of the softmax at the end changes no derivative of the loss; nor does it matter whether the layer is
    called as a module or its weights are handed to a function.
    """
    found = _watch(update, model, images, nullcontext(model))
    return found or _watch(update, model, images, functional_layers_called(model))


def _watch(
    update: CapturedUpdate, model: nn.Module, images: Tensor, calling: AbstractContextManager[nn.Module]
) -> tuple[Float[Tensor, "probe features"], str] | None:
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):

            def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:
                seen[name] = (inputs[0].detach(), output.detach())

            handles.append(module.register_forward_hook(note))
    like = next(model.parameters())
    try:
        with torch.no_grad(), client_mode(model, update.batch_norm), calling:
            logits = model(images.to(like))
    finally:
        for handle in handles:
            handle.remove()
    for name, (inputs, output) in reversed(seen.items()):
        if inputs.ndim == 2 and output.shape == logits.shape and makes_outputs(output, logits):
            return inputs, name
    return None


def makes_outputs(logits: Tensor, outputs: Tensor) -> bool:
    """Whether a model's outputs are these logits, or the logarithm of their softmax."""
    return torch.equal(logits, outputs) or torch.equal(F.log_softmax(logits, dim=1), outputs)


def natural_noise(count: int, shape: tuple[int, int, int], seed: int = 0) -> Float[Tensor, "count channel h w"]:
    """Normalised noise with the amplitude spectrum of natural images, 1/f (Field 1987), colours correlated.

    Args:
        count: How many.
        shape: Channels, height, width.
        seed: The noise is a function of it; the global random state is left alone.
    """
    generator = torch.Generator().manual_seed(seed)
    channels, height, width = shape
    rows, columns = torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)[None, :]
    frequency = (rows.square() + columns.square()).sqrt().clamp_min(1 / max(height, width))
    white = torch.randn(count, channels, height, width, generator=generator)
    pink = torch.fft.ifft2(torch.fft.fft2(white) / frequency).real
    pink = pink - pink.mean(dim=(2, 3), keepdim=True)
    pink = pink / pink.square().mean(dim=(1, 2, 3), keepdim=True).sqrt().clamp_min(1e-6)
    grey = pink.mean(dim=1, keepdim=True)
    brightness = torch.randn(count, 1, 1, 1, generator=generator)
    mixed: Tensor = 0.4 * pink + 0.8 * grey + 0.7 * brightness
    return mixed


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().double()
