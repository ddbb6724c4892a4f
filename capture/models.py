"""The server's model: a small bundled network, any torchvision or timm classifier, or the user's own."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..plugins import PluginError, accepts, import_callable
from .batch_norm import client_mode
from .cifar_resnet import cifar_resnet18
from .facts import BatchNormMode
from .unwrap import unwrap
from .weights import ModelError as ModelError
from .weights import load_state, read_weights

CONVNET_WIDTH = 32
CONVNET_STRIDES = (2, 2, 1, 1)
TIMM_PREFIX = "timm:"


@dataclass(frozen=True)
class ModelSource:
    """How to build a model again on another machine; its weights travel apart."""

    name: str
    classes: int = 10
    image_size: int | tuple[int, int, int] = 32
    """Side of square RGB images, or channels, height and width."""
    seed: int = 0

    def load(self, weights: str | None = None) -> nn.Module:
        """The model in evaluation mode; see `load_model`."""
        return load_model(self.name, self.classes, self.image_size, weights, self.seed)


def load_model(
    name: str, classes: int = 10, image_size: int | Sequence[int] = 32, weights: str | None = None, seed: int = 0
) -> nn.Module:
    """A classifier in evaluation mode. The global random state is left as it was.

    Args:
        name: ``convnet`` or ``cifar_resnet18`` (bundled), a torchvision classification model, ``timm:NAME`` for one of
            timm's (such as ``timm:resnet10t``; never downloaded), or ``module:callable``, called with
            ``num_classes=classes`` when it takes that and with nothing otherwise.
        classes: Number of outputs.
        image_size: Side of square RGB images in pixels, or channels, height and width; the model must accept them.
        weights: A .safetensors, .pt, .pth or .ckpt file with the state dict, see `read_weights`; None for random
            weights.
        seed: Random weights are a function of it.

    Raises:
        ModelError: What cannot be found, built or loaded, in one sentence; all wrong weights at once.
    """
    model = build_model(name, classes, image_size, seed)
    if weights is not None:
        load_state(model, read_weights(weights), repr(weights))
    shape = _shape(image_size)
    found = output_shape(model, name, shape)
    if found != (2, classes):
        hint = f"; give client.classes={found[1]}" if isinstance(found, tuple) and len(found) == 2 else ""
        raise ModelError(f"the model {name!r} returns {found} for 2 images; it must return (2, {classes}) logits{hint}")
    return model


def build_model(name: str, classes: int, image_size: int | Sequence[int], seed: int) -> nn.Module:
    """As `load_model`, with random weights and without a trial of what it returns."""
    shape = _shape(image_size)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if name.lower().startswith(TIMM_PREFIX):
            model = _timm(name, classes, shape)
        elif ":" in name:
            model = build_own(name, num_classes=classes)
        elif name.lower() in _BUNDLED:
            model = _bundled(name.lower(), classes, shape)
        else:
            model = _torchvision(name, classes, shape)
    return model.eval()


def build_skeleton(name: str, classes: int, image_size: int | Sequence[int]) -> nn.Module:
    """As ``build_model``, for the names and shapes of its tensors alone: whatever size of images a stranger's file
    claims, nothing is allocated. The user's own ``module:callable``, which is not told that size, is built whole."""
    if ":" in name and not name.lower().startswith(TIMM_PREFIX):
        return build_model(name, classes, image_size, 0)
    with torch.device("meta"):
        return build_model(name, classes, image_size, 0)


def _bundled(name: str, classes: int, shape: tuple[int, int, int]) -> nn.Module:
    try:
        return _BUNDLED[name](classes, shape)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(
            f"the model {name!r} of {classes} classes cannot be built for {describe_images(shape)} ({reason}); give "
            "fewer classes or smaller images"
        ) from error


def output_shape(model: nn.Module, name: str, image_shape: Sequence[int]) -> tuple[int, ...] | str:
    """The shape of what a model returns for two black images, or the name of its type where that is no tensor.

    Raises:
        ModelError: It has no parameters, or cannot take such images.
    """
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise ModelError(f"the model {name!r} has no parameters, so it has no gradient")
    try:
        with torch.no_grad(), client_mode(model, BatchNormMode.EVAL):
            output = model(parameter.new_zeros(2, *image_shape))
    except ModelError as error:
        raise ModelError(f"the model {name!r} cannot be used: {error}") from None
    except Exception as error:
        raise ModelError(
            f"the model {name!r} cannot take {describe_images(image_shape)} ({type(error).__name__}: {error}); give "
            "the model of such images with client.model, or simulate a client with others, by client.image_size (such "
            "as 64 or 224), client.image_width and client.channels"
        ) from error
    return tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__


def describe_images(image_shape: Sequence[int]) -> str:
    """Images of this shape in words."""
    channels, height, width = image_shape
    kinds = {1: f"{height}x{width} grey images", 3: f"{height}x{width} RGB images"}
    return kinds.get(channels, f"{height}x{width} images of {channels} channels")


def _shape(image_size: int | Sequence[int]) -> tuple[int, int, int]:
    channels, height, width = (3, image_size, image_size) if isinstance(image_size, int) else image_size
    return channels, height, width


def convnet(classes: int = 10, image_size: int | Sequence[int] = 32, width: int = CONVNET_WIDTH) -> nn.Sequential:
    """ConvNet-32: four 5x5 convolutions with batch norm and ReLU (strides 2, 2, 1, 1), flattened into one linear layer.

    Without pooling each pixel keeps its own trace in the gradient, so this network is easy to invert.

    Args:
        classes: Number of outputs.
        image_size: Side of square RGB images in pixels, or channels, height and width.
        width: Channels of every convolution.
    """
    layers: list[nn.Module] = []
    channels, rows, columns = _shape(image_size)
    for stride in CONVNET_STRIDES:
        layers += [nn.Conv2d(channels, width, 5, stride, 2), nn.BatchNorm2d(width), nn.ReLU()]
        channels, rows, columns = width, (rows - 1) // stride + 1, (columns - 1) // stride + 1
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * rows * columns, classes))


_BUNDLED: dict[str, Callable[[int, tuple[int, int, int]], nn.Module]] = {
    "convnet": convnet,
    "cifar_resnet18": lambda classes, shape: cifar_resnet18(classes, shape[0]),
}


def model_names() -> list[str]:
    """Every name that ``load_model`` knows beside ``timm:NAME`` and ``module:callable``."""
    import torchvision  # type: ignore[import-untyped,unused-ignore]

    return [*_BUNDLED, *torchvision.models.list_models(module=torchvision.models)]


def _torchvision(name: str, classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    # Imported where it is used: each agent is a process, and this would cost each of them 90 MB.
    import torchvision  # type: ignore[import-untyped,unused-ignore]

    known = model_names()
    key = name.lower()
    if key not in known:
        near = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ModelError(
            f"no model is called {name!r}: use {', '.join(_BUNDLED)}, a torchvision classification model such as "
            f"resnet18, timm:NAME or module:callable{hint}"
        )
    channels, height, width = image_shape
    if channels != 3:
        raise ModelError(
            f"torchvision's {key!r} takes RGB images, and these are {describe_images(image_shape)}; give convnet, "
            "timm:NAME or your own module:callable"
        )
    options: dict[str, Any] = {"num_classes": classes}
    if key.startswith("vit_"):
        if height != width:
            raise ModelError(f"torchvision's {key!r} takes square images, and these are {height}x{width}")
        options["image_size"] = height
    if key.startswith("maxvit"):
        options["input_size"] = (height, width)
    if key in ("googlenet", "inception_v3"):
        # Auxiliary heads play no part in a client's step here; init_weights keeps torchvision from warning.
        options |= {"aux_logits": False, "init_weights": True}
    try:
        model: nn.Module = torchvision.models.get_model(key, weights=None, **options)
    except (ValueError, AssertionError, RuntimeError) as error:
        raise ModelError(
            f"torchvision cannot build {key!r} for {classes} classes and {describe_images(image_shape)} ({error})"
        ) from error
    return model


def _timm(name: str, classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise ModelError(
            f"the model {name!r} needs the package timm ({error}): pip install 'gradinversion[timm]'"
        ) from None
    key = name[len(TIMM_PREFIX) :].lower()
    architecture = key.partition(".")[0]
    # Only names in timm's own list: others, such as hf-hub:..., make it look on the network.
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(TIMM_PREFIX + other for other in near)}?" if near else ""
        raise ModelError(f"timm {timm.__version__} has no model {architecture!r}{hint}")
    settings = timm.get_pretrained_cfg(architecture)
    # Convolutional networks take images of any size and no such argument.
    channels, height, width = image_shape
    options: dict[str, Any] = {}
    if settings is not None and settings.fixed_input_size:
        options["img_size"] = height if height == width else (height, width)
    if channels != 3:
        options["in_chans"] = channels
    try:
        model: nn.Module = timm.create_model(key, pretrained=False, num_classes=classes, **options)
    except (ValueError, AssertionError, RuntimeError, TypeError) as error:
        raise ModelError(
            f"timm cannot build {key!r} for {classes} classes and {describe_images(image_shape)} ({error})"
        ) from error
    return model


def build_own(name: str, what: str = "model", **offered: Any) -> nn.Module:
    """What the user's own ``module:callable`` builds.

    Args:
        name: ``module:callable``; the module is imported and the callable called, so it is code that is trusted.
        what: For errors: what is built.
        offered: Arguments, of which the callable is given those that it takes.

    Raises:
        ModelError: It cannot be found, fails, or builds no ``torch.nn.Module``.
    """
    try:
        build = import_callable(name, what)
    except PluginError as error:
        raise ModelError(str(error)) from error
    try:
        model = build(**{keyword: value for keyword, value in offered.items() if accepts(build, keyword)})
    # The user's own code may raise anything, and may be a script that ends the process.
    except (Exception, SystemExit) as error:
        raise ModelError(f"building the {what} {name!r} failed with {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{name!r} returned a {type(model).__name__}; it must return a torch.nn.Module")
    return unwrap(model)
