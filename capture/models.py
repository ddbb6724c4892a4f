"""The server's model: a small bundled network, any torchvision classifier, or the user's own."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from .batch_norm import client_mode
from .update import BatchNormMode

CONVNET_WIDTH = 32
CONVNET_STRIDES = (2, 2, 1, 1)
_MOST_LISTED = 20


class ModelError(ValueError):
    """A model or weights that cannot be loaded."""


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
        name: ``convnet`` (bundled), a torchvision classification model, or ``module:callable``, called with
            ``num_classes=classes`` when it takes that and with nothing otherwise.
        classes: Number of outputs.
        image_size: Side of the images in pixels; the model must accept it.
        weights: A .safetensors, .pt or .pth file with the model's state dict; None for random weights.
        seed: Random weights are a function of it.

    Raises:
        ModelError: What cannot be found, built or loaded, in one sentence; all wrong weights at once.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if ":" in name:
            model = build_own(name, num_classes=classes)
        elif name.lower() == "convnet":
            model = convnet(classes, image_size)
        else:
            model = _torchvision(name, classes, image_size)
    if weights is not None:
        load_weights(model, Path(weights).expanduser())
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
    """Every name that ``load_model`` knows beside ``module:callable``."""
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
            f"or module:callable{hint}"
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


def load_weights(model: nn.Module, path: Path, what: str = "model") -> None:
    """Copy the tensors of a .safetensors, .pt or .pth file into a module, all of them or none; nothing is unpickled.

    Raises:
        ModelError: The file cannot be read, or does not fit; all wrong weights at once. ``what`` names the module.
    """
    found = _without_prefix(_read_weights(path))
    expected = model.state_dict()
    optional = {name for name in expected if name.rpartition(".")[2] == "num_batches_tracked"}
    problems = [f"{name!r} is missing" for name in expected if name not in found and name not in optional]
    problems += [f"{name!r} is not in the {what}" for name in found if name not in expected]
    for name in expected.keys() & found.keys():
        theirs, ours = tuple(found[name].shape), tuple(expected[name].shape)
        if theirs != ours:
            problems.append(f"{name!r} has shape {theirs} in the file and {ours} in the {what}")
        elif not bool(torch.isfinite(found[name]).all()):
            problems.append(f"{name!r} holds values that are not finite")
    if problems:
        listed = "".join(f"\n  - {line}" for line in sorted(problems)[:_MOST_LISTED])
        more = f"\n  - and {len(problems) - _MOST_LISTED} more" if len(problems) > _MOST_LISTED else ""
        raise ModelError(f"the weights in {str(path)!r} do not fit the {what}:{listed}{more}")
    model.load_state_dict(found, strict=False)


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ModelError(f"the weights file {str(path)!r} does not exist")
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise ModelError(f"the weights file {str(path)!r} must end in .safetensors, .pt or .pth")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"the weights file {str(path)!r} holds Python objects other than tensors, which are never loaded; "
            "save model.state_dict() instead"
        ) from error
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, safetensors.SafetensorError) as error:
        raise ModelError(f"the weights file {str(path)!r} is damaged or of another format ({error})") from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ModelError(f"the weights file {str(path)!r} holds no state dict; save model.state_dict()")
    return {str(key): value for key, value in content.items()}


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names as before wrapping in DataParallel, which puts ``module.`` in front of all of them."""
    if state and all(name.startswith("module.") for name in state):
        return {name.removeprefix("module."): value for name, value in state.items()}
    return state


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
