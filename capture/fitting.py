"""An update and a model brought together: the model out of its wrappers, the update under the model's names."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from .unwrap import inside, unwrap
from .update import CapturedUpdate, weight_hash
from .weights import fit_names


def fit(update: CapturedUpdate, model: nn.Module) -> tuple[CapturedUpdate, nn.Module]:
    """Both as the attack takes them; whether they belong together is for ``require_match`` to say.

    Args:
        update: Possibly made inside a wrapper, such as DataParallel.
        model: Possibly inside one.

    Raises:
        ModelError: The model is none.
    """
    plain = unwrap(model)
    return fit_update(update, plain), plain


def fit_update(update: CapturedUpdate, model: nn.Module) -> CapturedUpdate:
    """The update under the names of the plain model, where it was made inside a wrapper; else the update itself.

    Args:
        update: Its names may all begin with ``module.``, ``_orig_mod.``, ``_module.``, or several of them.
        model: Its names are the ones that count.
    """
    model = inside(model)
    gradients = fit_names(update.gradients, dict(model.named_parameters()))
    if gradients.keys() == update.gradients.keys():
        return update
    # Names are only ever shortened, and all by the same beginning.
    prefix = next(iter(update.gradients)).removesuffix(next(iter(gradients)))
    buffers = update.buffers
    if buffers is not None:
        buffers = {name.removeprefix(prefix): buffer for name, buffer in buffers.items()}
    theirs = update.weight_hash
    same = theirs in (weight_hash(model), weight_hash(model, prefix))
    return replace(update, gradients=gradients, buffers=buffers, weight_hash=weight_hash(model) if same else theirs)
