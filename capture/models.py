"""The server's model: a small bundled network, any torchvision or timm classifier, or the user's own."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .batch_norm import client_mode
from .facts import BatchNormMode
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
    image_size: int = 32
    seed: int = 0

    def load(self, weights: str | None = None) -> nn.Module:
        """The model in evaluation mode; see `load_model`."""
        return load_model(self.name, self.classes, self.image_size, weights, self.seed)


def load_model(
    name: str, classes: int = 10, image_size: int = 32, weights: str | None = None, seed: int = 0
) -> nn.Module:
    """A classifier in evaluation mode. The global random state is left as it was.

    Args:
        name: ``convnet`` (bundled), a torchvision classification model, ``timm:NAME`` for one of timm's (such as
            ``timm:resnet10t``; never downloaded), or ``module:callable``, called with ``num_classes=classes`` when it
            takes that and with nothing otherwise.
        classes: Number of outputs.
        image_size: Side of the images in pixels; the model must accept it.
        weights: A .safetensors, .pt or .pth file with the model's state dict, see `read_weights`; None for random
            weights.
        seed: Random weights are a function of it.

    Raises:
        ModelError: What cannot be found, built or loaded, in one sentence; all wrong weights at once.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if name.lower().startswith(TIMM_PREFIX):
            model = _timm(name, classes, image_size)
        elif ":" in name:
            model = build_own(name, num_classes=classes)
        elif name.lower() == "convnet":
            model = convnet(classes, image_size)
        else:
            model = _torchvision(name, classes, image_size)
    if weights is not None:
        load_state(model, read_weights(weights), repr(weights))
    model.eval()
    _check_output(model, name, classes, image_size)
    return model


def convnet(classes: int = 10, image_size: int = 32, width: int = CONVNET_WIDTH) -> nn.Sequential:
    """ConvNet-32: four 5x5 convolutions with batch norm and ReLU (strides 2, 2, 1, 1), flattened into one linear layer.

    Without pooling each pixel keeps its own trace in the gradient, so this network is easy to invert.

    Args:
        classes: Number of outputs.
        image_size: Side of the images in pixels.
        width: Channels of every convolution.
    """
    layers: list[nn.Module] = []
    channels, side = 3, image_size
    for stride in CONVNET_STRIDES:
        layers += [nn.Conv2d(channels, width, 5, stride, 2), nn.BatchNorm2d(width), nn.ReLU()]
        channels, side = width, (side - 1) // stride + 1
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * side * side, classes))


def model_names() -> list[str]:
    """Every name that ``load_model`` knows beside ``timm:NAME`` and ``module:callable``."""
    import torchvision  # type: ignore[import-untyped,unused-ignore]

    return ["convnet", *torchvision.models.list_models(module=torchvision.models)]


def _torchvision(name: str, classes: int, image_size: int) -> nn.Module:
    # Imported where it is used: each agent is a process, and this would cost each of them 90 MB.
    import torchvision  # type: ignore[import-untyped,unused-ignore]

    known = model_names()
    key = name.lower()
    if key not in known:
        near = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ModelError(
            f"no model is called {name!r}: use convnet, a torchvision classification model such as resnet18, "
            f"timm:NAME or module:callable{hint}"
        )
    options: dict[str, Any] = {"num_classes": classes}
    if key.startswith("vit_"):
        options["image_size"] = image_size
    if key.startswith("maxvit"):
        options["input_size"] = (image_size, image_size)
    if key in ("googlenet", "inception_v3"):
        # Auxiliary heads play no part in a client's step here; init_weights keeps torchvision from warning.
        options |= {"aux_logits": False, "init_weights": True}
    try:
        model: nn.Module = torchvision.models.get_model(key, weights=None, **options)
    except (ValueError, AssertionError, RuntimeError) as error:
        raise ModelError(
            f"torchvision cannot build {key!r} for {classes} classes and {image_size} px images ({error})"
        ) from error
    return model


def _timm(name: str, classes: int, image_size: int) -> nn.Module:
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
    options: dict[str, Any] = {"img_size": image_size} if settings is not None and settings.fixed_input_size else {}
    try:
        model: nn.Module = timm.create_model(key, pretrained=False, num_classes=classes, **options)
    except (ValueError, AssertionError, RuntimeError, TypeError) as error:
        raise ModelError(
            f"timm cannot build {key!r} for {classes} classes and {image_size} px images ({error})"
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
    module_name, _, attribute = name.partition(":")
    build = _find(name, module_name, attribute, what)
    try:
        model = build(**{keyword: value for keyword, value in offered.items() if accepts(build, keyword)})
    # The user's own code may raise anything.
    except Exception as error:
        raise ModelError(f"building the {what} {name!r} failed with {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{name!r} returned a {type(model).__name__}; it must return a torch.nn.Module")
    return model


def _find(name: str, module_name: str, attribute: str, what: str) -> Callable[..., Any]:
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ModelError(
            f"the {what} {name!r} cannot be imported ({type(error).__name__}: {error}); give module:callable, with the "
            "module's folder on PYTHONPATH"
        ) from error
    found = getattr(module, attribute, None) if attribute else None
    if not callable(found):
        near = difflib.get_close_matches(attribute, [key for key, value in vars(module).items() if callable(value)])
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ModelError(f"the module {module_name!r} has no callable {attribute!r}{hint}")
    build: Callable[..., Any] = found
    return build


def accepts(build: Callable[..., Any], keyword: str) -> bool:
    """Whether a callable takes an argument of this name."""
    try:
        parameters = inspect.signature(build).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(p.kind is p.VAR_KEYWORD or (p.name == keyword and p.kind is not p.POSITIONAL_ONLY) for p in parameters)


def _check_output(model: nn.Module, name: str, classes: int, image_size: int) -> None:
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise ModelError(f"the model {name!r} has no parameters, so it has no gradient")
    try:
        with torch.no_grad(), client_mode(model, BatchNormMode.EVAL):
            output = model(parameter.new_zeros(2, 3, image_size, image_size))
    except Exception as error:
        raise ModelError(
            f"the model {name!r} cannot take {image_size}x{image_size} RGB images ({type(error).__name__}: {error}); "
            "try another client.image_size, such as 64 or 224"
        ) from error
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if shape != (2, classes):
        raise ModelError(f"the model {name!r} returns {shape} for 2 images; it must return (2, {classes}) logits")
