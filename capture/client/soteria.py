"""Soteria: the representation that enters the final fully connected layer, perturbed where it tells most."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..batch_norm import client_mode
from ..facts import BatchNormMode

# Features whose derivatives are taken in one call; each needs the memory of one backward pass.
_CHUNK = 64


def soteria_gradient(
    model: nn.Module,
    inputs: Float[Tensor, "batch channel height width"],
    labels: Int[Tensor, " batch"],
    share: float,
    mode: BatchNormMode | str = BatchNormMode.EVAL,
) -> tuple[str, Float[Tensor, "classes features"]]:
    """Name and defended gradient of the final layer's weight (Sun et al., CVPR 2021, section 4).

    The layer's gradient is ``(1/B) sum_i (p_i - y_i) r_i^T`` with the representation r_i of image i. The defence puts
    ``r'_i`` in its place, with a share of the features set to zero: those of the largest ``|r_ij| / ||dr_ij/dx_i||_2``,
    the paper's solution for "as few features as possible, and a reconstruction from them as far off as possible" (its
    eq. 8). Every image is perturbed on its own; the other layers' gradients are those of the undefended step.

    In the train modes of batch norm the derivative of ``sum_k r_kj`` by x_i stands for ``dr_ij/dx_i``.

    Args:
        model: Ends in a fully connected layer.
        inputs: Normalised pixels.
        labels: One per image.
        share: Of each image's features, above 0 and below 1.
        mode: How the client runs batch norm.

    Raises:
        ValueError: The logits are not the output of a fully connected layer that runs on one vector per image.
    """
    inputs = inputs.detach().requires_grad_()
    with client_mode(model, mode), torch.enable_grad():
        name, features, logits = _representation(model, inputs)
        loss = torch.nn.functional.cross_entropy(logits, labels.to(logits.device))
        (by_logits,) = torch.autograd.grad(loss, logits, retain_graph=True)
        sensitivity = _sensitivity(features, inputs)
    kept = ~most_telling(features.detach(), sensitivity, share)
    return f"{name}.weight" if name else "weight", by_logits.T @ (features.detach() * kept)


def most_telling(
    features: Float[Tensor, "batch features"], sensitivity: Float[Tensor, "batch features"], share: float
) -> Bool[Tensor, "batch features"]:
    """The share of each image's features (rounded down, at least one) with the largest ``|r| / ||dr/dx||``.

    A feature that is zero is never among them before one that is not.
    """
    count = max(1, math.floor(share * features.shape[1]))
    # A positive feature without a derivative (a saturated unit) has the largest ratio there is.
    ratio = features.abs() / sensitivity.clamp_min(torch.finfo(features.dtype).tiny)
    chosen = ratio.argsort(dim=1, descending=True, stable=True)[:, :count]
    return torch.zeros_like(ratio, dtype=torch.bool).scatter(1, chosen, True)


def _representation(model: nn.Module, inputs: Tensor) -> tuple[str, Tensor, Tensor]:
    """Name of the layer that makes the logits, what enters it, and the logits."""
    seen: list[tuple[str, Tensor, Tensor]] = []
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):

            def note(layer: nn.Module, given: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:
                seen.append((name, given[0], output))

            handles.append(module.register_forward_hook(note))
    try:
        logits = model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    for name, entering, output in reversed(seen):
        if output is logits and entering.ndim == 2:
            return name, entering, output
    raise ValueError(
        "the defence 'soteria' perturbs what enters the final fully connected layer, and this model's logits are not "
        "the output of one (torch.nn.Linear); use a model that ends in one, or another defence"
    )


def _sensitivity(features: Tensor, inputs: Tensor) -> Float[Tensor, "batch features"]:
    """``||dr_ij/dx_i||_2`` for each image and feature."""
    summed = features.sum(dim=0)
    if not summed.requires_grad:
        return torch.zeros_like(features)
    columns = []
    for start in range(0, len(summed), _CHUNK):
        picks = torch.eye(len(summed), dtype=summed.dtype, device=summed.device)[start : start + _CHUNK]
        (derivatives,) = torch.autograd.grad(
            summed, inputs, picks, retain_graph=True, is_grads_batched=True, materialize_grads=True
        )
        columns.append(derivatives.flatten(2).norm(dim=2))
    return torch.cat(columns).T
