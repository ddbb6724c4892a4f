"""Which gradients move smoothly with the images: those that no kink lies behind."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from ..capture import BatchNormMode, client_mode
from ..capture.functional_layers import functional_layers_called

# Operations of automatic differentiation with a continuous derivative, as torch names their nodes. A ReLU, its
# relatives and a maximum are not among them, nor is what is not known.
_LAYERS = {"Convolution", "CudnnConvolution", "MkldnnConvolution", "Linear", "Addmm", "Mm", "Bmm", "Baddbmm"}
_NORMS = {"NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm", "NativeGroupNorm", "NativeLayerNorm"}
_ACTIVATIONS = {"Tanh", "Sigmoid", "LogSigmoid", "Gelu", "Silu", "Mish", "Softplus", "Softmax", "Erf", "Exp"}
_POOLS = {"AvgPool2D", "AdaptiveAvgPool2D", "Mean", "Sum", "UpsampleBilinear2D", "UpsampleNearest2D"}
_SUMS = {"Add", "Sub", "Mul", "Div", "Neg", "AccumulateGrad"}
_SHAPES = {"View", "UnsafeView", "ReshapeAlias", "AsStrided", "Alias", "Clone", "ToCopy", "T", "Transpose", "Permute"}
_PIECES = {"Expand", "Squeeze", "Unsqueeze", "Select", "Slice", "Split", "Cat", "Stack", "ConstantPadNd"}
_SMOOTH = _LAYERS | _NORMS | _ACTIVATIONS | _POOLS | _SUMS | _SHAPES | _PIECES


def is_smooth_before(
    model: nn.Module, image_shape: tuple[int, ...], mode: BatchNormMode, module: str, count: int = 2
) -> bool:
    """Whether the input of a module, by name, is a function of image and parameters without a kink.

    Read off the graph of one pass over zeros, so that functions are seen that are no modules. False where in doubt.
    """
    reached: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        reached.append(inputs[0])

    parameter = next(model.parameters())
    images = parameter.new_zeros((count, *image_shape)).requires_grad_()
    handle = model.get_submodule(module).register_forward_pre_hook(keep)
    try:
        with torch.enable_grad(), client_mode(model, mode):
            model(images)
            if not reached:
                with functional_layers_called(model, (module,)):
                    model(images)
    finally:
        handle.remove()
    return len(reached) == 1 and _operations(reached[0]) <= _SMOOTH


def _operations(output: Tensor) -> set[str]:
    """The names of the nodes in the graph of a tensor, without what torch appends to them."""
    names, left, seen = set[str](), [output.grad_fn], set[object]()
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        names.add(re.sub(r"(Backward)?\d*$", "", node.name().rpartition("::")[2]))
        left += [following for following, _ in node.next_functions]
    return names
