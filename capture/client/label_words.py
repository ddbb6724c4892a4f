"""The labels of a batch, from the words of a setting or from the class folders that its images lie in."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from ...refusal import Refusal

AUTO, UNIQUE = "auto", "unique"


class ClientError(Refusal, ValueError):
    """A client setting that cannot be carried out."""


def parse_labels(text: str, count: int, classes: int, key: str = "client.labels") -> Int[Tensor, " batch"]:
    """One label per image from a setting.

    Args:
        text: ``"unique"`` for 0, 1, ..., count - 1, or labels separated by commas.
        count: How many labels there must be.
        classes: Each label must lie in 0 .. classes - 1.
        key: Of the setting, for errors.

    Raises:
        ClientError: What is wrong with the text, in one sentence.
    """
    if text.strip() == UNIQUE:
        if count > classes:
            raise ClientError(
                f"{key}={UNIQUE} needs as many classes as images, but there are {count} images and {classes} classes; "
                f"raise client.classes or list the labels, such as {key}=0,0,1,1"
            )
        return torch.arange(count)
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() for word in words):
        raise ClientError(f"{key} is {text!r}; use {UNIQUE}, or whole numbers separated by commas, such as 0,0,3")
    labels = [int(word) for word in words]
    if len(labels) != count:
        raise ClientError(f"{key} lists {len(labels)} labels for {count} images; list one per image")
    if max(labels) >= classes:
        raise ClientError(
            f"{key} names class {max(labels)}, but with {classes} classes the labels are 0 to {classes - 1}"
        )
    return torch.tensor(labels)


def folder_labels(found: Sequence[int], classes: int, source: str) -> Int[Tensor, " batch"]:
    """The classes of images that lie in class folders.

    Args:
        found: The place of each image's folder among all of them.
        classes: That the model tells apart.
        source: The folder of the class folders, for errors.

    Raises:
        ClientError: There are more class folders than classes.
    """
    if max(found) >= classes:
        raise ClientError(
            f"the class folders in {source!r} go up to class {max(found)}, but with {classes} classes the labels are 0 "
            f"to {classes - 1}; raise client.classes, or list the labels"
        )
    return torch.tensor(found)
