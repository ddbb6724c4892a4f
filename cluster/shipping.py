"""A model on its way to another process: by Ray's serialisation, or refused in a sentence before anything begins."""

from __future__ import annotations

import importlib.util
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import ray
from ray import cloudpickle
from ray.exceptions import RayError
from torch import nn

from ..capture import CapturedUpdate, ModelError
from ..capture.copying import copy_model, refuse_to_copy
from ..capture.fitting import fit
from ..capture.forward import first_line

_PACKAGE = __package__.partition(".")[0]


def put_inputs(update: CapturedUpdate, model: nn.Module) -> Any:
    """A reference to both, on the Ray that is connected; the model may be of a class that only this process knows.

    Args:
        update: What is attacked.
        model: The server's model; what goes is a copy, see `copy_model`.

    Raises:
        ModelError: The model cannot be sent, with the attribute that keeps it from it.
    """
    update, model = fit(update, model)
    model = copy_model(model)
    with _by_value(model):
        return put((update, model), model)


def put(value: object, model: nn.Module) -> Any:
    """A reference to a value that holds a model.

    Raises:
        ModelError: The model cannot be sent. (Ray's own error prints what it was given, and that holds the update.)
    """
    try:
        return ray.put(value)
    # The user's own classes may raise anything.
    except Exception as error:
        raise refuse_to_copy(model, cloudpickle.dumps, error) from None


def get_inputs(reference: Any) -> tuple[CapturedUpdate, nn.Module]:
    """What `put_inputs` sent, in another process.

    Raises:
        ModelError: The model cannot be built here.
    """
    try:
        update, model = ray.get(reference)
    except (RayError, ImportError, AttributeError) as error:
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise ModelError(
            f"the model cannot be built where the attack runs ({first_line(cause)}): install the module that its class "
            "is in there too, or name it as client.model=module:callable on the command line"
        ) from None
    return update, model


@contextmanager
def _by_value(model: nn.Module) -> Iterator[None]:
    """Send the code of modules that the workers do not find: of a notebook's folder, or of a path that was added."""
    own = _own_modules(model)
    missing = ray.get(_not_found.remote([module.__name__ for module in own])) if own else []
    modules = [module for module in own if module.__name__ in missing]
    for module in modules:
        cloudpickle.register_pickle_by_value(module)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)  # type: ignore[no-untyped-call]


def _own_modules(model: nn.Module) -> list[ModuleType]:
    """Modules and packages that are not installed and lie beside one that a class of the model is in."""
    homes = {type(module).__module__.partition(".")[0] for module in model.modules()} - {_PACKAGE, "__main__"}
    folders = {folder for home in homes if (folder := _folder(sys.modules.get(home))) is not None}
    top = [module for name, module in list(sys.modules.items()) if "." not in name and name != _PACKAGE]
    return [module for module in top if _folder(module) in folders] if folders else []


def _folder(module: ModuleType | None) -> Path | None:
    """Where a module was found, if it is not installed."""
    places = [getattr(module, "__file__", None), *getattr(module, "__path__", [])]
    place = next((place for place in places if isinstance(place, str)), None)
    if module is None or place is None or module.__name__ == "__main__":
        return None
    path = Path(place).resolve()
    is_package = hasattr(module, "__path__")
    folder = (path.parent if path.suffix else path).parent if is_package else path.parent
    installed = {Path(installed).resolve() for installed in sysconfig.get_paths().values()}
    return None if any(folder == one or one in folder.parents for one in installed) else folder


def _find(names: list[str]) -> list[str]:
    """Those of these modules that this process does not find."""
    return [name for name in names if importlib.util.find_spec(name) is None]


# Ray adds .remote at run time, which its types only tell for decorated names.
_not_found: Any = ray.remote(num_cpus=0)(_find)
