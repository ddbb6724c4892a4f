"""An update and a model brought together: the model out of its wrappers, the update under the model's names."""

from __future__ import annotations

from torch import nn

from .unwrap import unwrap
from .update import CapturedUpdate


def fit(update: CapturedUpdate, model: nn.Module) -> tuple[CapturedUpdate, nn.Module]:
    """Both as the attack takes them; whether they belong together is for ``require_match`` to say.

    Args:
        update: Possibly made inside a wrapper, such as DataParallel.
        model: Possibly inside one.

    Raises:
        ModelError: The model is none.
    """
    plain = unwrap(model)
    return update.fitted(plain), plain
