"""Models as people have them: taken out of what is wrapped around them, so that names are those of the plain model."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from .copying import copy_model
from .weights import ModelError

# By package and class, so that nothing is imported to look for it: under which name a wrapper holds the model.
_HELD_AS = {
    ("torch", "DataParallel"): "module",
    ("torch", "DistributedDataParallel"): "module",
    ("torch", "AveragedModel"): "module",
    ("torch", "OptimizedModule"): "_orig_mod",
    ("opacus", "DifferentiallyPrivateDistributedDataParallel"): "module",
    ("opacus", "AbstractGradSampleModule"): "_module",
}
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def inside(model: nn.Module) -> nn.Module:
    """The model itself, whatever is wrapped around it, however often; not a copy.

    Args:
        model: Possibly inside ``DataParallel``, ``DistributedDataParallel``, ``torch.compile``, the averaged model of
            ``torch.optim.swa_utils``, or what Opacus puts around a model.

    Raises:
        ModelError: It is no model at all.
    """
    while True:
        if not isinstance(model, nn.Module):
            raise ModelError(f"the model is a {type(model).__name__}; give a torch.nn.Module, with its weights loaded")
        attribute = _attribute(model)
        if attribute is None:
            return model
        model = getattr(model, attribute)


def unwrap(model: nn.Module) -> nn.Module:
    """The model itself, ready to be run: see `inside`.

    Opacus leaves hooks on the layers of its model, which take a gradient per image wherever a derivative is taken; of
    such a model a copy without them comes back.

    Args:
        model: With or without wrappers.

    Raises:
        ModelError: It is no model at all, or one of TorchScript.
    """
    plain = inside(model)
    if isinstance(plain, torch.jit.ScriptModule):
        raise ModelError(
            f"the model is a {type(plain).__name__}, into which nobody can look; give the torch.nn.Module that it was "
            "made of, with the same weights"
        )
    if not any(_is_foreign(hook) for module in plain.modules() for kind in _HOOKS for hook in _hooks(module, kind)):
        return plain
    plain = copy_model(plain)
    for module in plain.modules():
        for kind in _HOOKS:
            hooks = getattr(module, kind)
            for key in [key for key, hook in hooks.items() if _is_foreign(hook)]:
                del hooks[key]
    return plain


def _attribute(model: nn.Module) -> str | None:
    """Under which name a wrapper holds its model; None for anything that is no wrapper."""
    ancestry = ((kind.__module__.partition(".")[0], kind.__name__) for kind in type(model).__mro__)
    return next((_HELD_AS[known] for known in ancestry if known in _HELD_AS), None)


def _hooks(module: nn.Module, kind: str) -> list[object]:
    return list(getattr(module, kind).values())


def _is_foreign(hook: object) -> bool:
    """Whether it takes gradients per image for Opacus."""
    called = hook.func if isinstance(hook, partial) else hook
    return str(getattr(called, "__module__", "")).partition(".")[0] == "opacus"
