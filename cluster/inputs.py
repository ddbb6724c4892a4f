"""The update and the model of a run, kept beside its checkpoints: whoever submitted the run may be gone."""

from __future__ import annotations

import tempfile
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from ..capture import CapturedUpdate, ModelError, ModelSource, UpdateError
from ..coordinator import Storage

_UPDATE, _WEIGHTS = "checkpoints/update.safetensors", "checkpoints/model.safetensors"
_LARGEST_BYTES = 16 * 2**30


def store_inputs(storage: Storage, update: CapturedUpdate, model: nn.Module) -> None:
    """Keep what the attack is made on.

    Raises:
        StorageError: It cannot be written.
    """
    with tempfile.TemporaryDirectory() as folder:
        update.save(Path(folder) / "update.safetensors")
        storage.write(_UPDATE, (Path(folder) / "update.safetensors").read_bytes())
        # Copies: safetensors refuses tensors that share memory.
        state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
        save_file(state, Path(folder) / "model.safetensors")
        storage.write(_WEIGHTS, (Path(folder) / "model.safetensors").read_bytes())


def load_inputs(storage: Storage, source: ModelSource) -> tuple[CapturedUpdate, nn.Module]:
    """What ``store_inputs`` kept, read as the files of strangers that they may be.

    Args:
        storage: Of the run.
        source: How the model is built.

    Raises:
        StorageError, UpdateError, ModelError: A file is missing, torn, or does not fit.
    """
    with tempfile.TemporaryDirectory() as folder:
        update, weights = Path(folder) / "update.safetensors", Path(folder) / "model.safetensors"
        update.write_bytes(storage.read(_UPDATE, _LARGEST_BYTES))
        weights.write_bytes(storage.read(_WEIGHTS, _LARGEST_BYTES))
        try:
            return CapturedUpdate.load(update), source.load(str(weights))
        except (UpdateError, ModelError) as error:
            # Nobody finds the copy that was read: the file in the storage is meant.
            named = str(error).replace(str(update), storage.locate(_UPDATE))
            raise type(error)(named.replace(str(weights), storage.locate(_WEIGHTS))) from None
