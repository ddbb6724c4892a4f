"""The images behind a captured update, where the owner of the data names them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Int
from torch import Tensor

from ...storage.safetensors_reader import FormatError, read_safetensors_file
from ..update import CapturedUpdate
from .images import class_labels, count_images, load_images
from .label_words import AUTO, ClientError, folder_labels, parse_labels
from .private_batch import PrivateBatch
from .private_config import PrivateConfig


def load_private(config: PrivateConfig, update: CapturedUpdate, classes: int) -> PrivateBatch | None:
    """The images that the settings name, at the update's own shape, with their labels; None where they name none.

    Args:
        config: Of the owner of the data.
        update: That these images are behind.
        classes: Each label must lie in 0 .. classes - 1.

    Raises:
        ImageError, ClientError: They cannot be read, or are not as many as the update's, in one sentence.
    """
    if config.images is None:
        return None
    if config.images.endswith(".safetensors"):
        return _from_file(Path(config.images).expanduser(), config.labels, update, classes)
    _require_count(count_images(config.images), update, config.images)
    images, names = load_images(config.images, update.image_count, update.image_shape)
    found = class_labels(config.images, update.image_count)
    return PrivateBatch(images, _labels(config, found, update.image_count, classes), names)


def _require_count(found: int, update: CapturedUpdate, source: str) -> None:
    if found != update.image_count:
        raise ClientError(
            f"private.images={source} holds {found} images, and the update is of {update.image_count}; give those that "
            "the client trained on, all of them and no others"
        )


def _labels(config: PrivateConfig, found: Sequence[int] | None, count: int, classes: int) -> Int[Tensor, " batch"]:
    if config.labels != AUTO:
        return parse_labels(config.labels, count, classes, "private.labels")
    if found is None:
        raise ClientError(
            f"nothing tells the labels of private.images={config.images}; give private.labels with one per image in "
            "order of name, such as private.labels=0,0,3, or a folder of class folders"
        )
    return folder_labels(found, classes, str(config.images))


def _from_file(path: Path, words: str, update: CapturedUpdate, classes: int) -> PrivateBatch:
    try:
        tensors = read_safetensors_file(path)
    except (OSError, FormatError) as error:
        raise ClientError(f"private.images={path} cannot be read ({error}); give a .safetensors file") from None
    wanted = {"images", "labels"} if words == AUTO else {"images"}
    if not wanted <= tensors.keys():
        raise ClientError(
            f"private.images={path} holds {', '.join(sorted(tensors)) or 'nothing'}; give the tensors 'images' (in "
            "[0, 1]) and 'labels', or the latter by private.labels"
        )
    images = tensors["images"]
    expected = (update.image_count, *update.image_shape)
    if tuple(images.shape) != expected:
        raise ClientError(f"private.images={path} holds images {tuple(images.shape)}, and the update is of {expected}")
    labels = parse_labels(_words(tensors["labels"]) if words == AUTO else words, len(images), classes, "private.labels")
    return PrivateBatch(images.float(), labels, tuple(f"image {index + 1}" for index in range(len(images))))


def _words(labels: Tensor) -> str:
    return ",".join(str(label) for label in labels.flatten().tolist())
