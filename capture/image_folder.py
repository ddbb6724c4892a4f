"""The image files of a folder, or of the class folders in it; none is left out in silence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .image_files import PHOTOS, SUFFIXES, ImageError, looks_like_an_image

_MOST_LISTED = 5


@dataclass(frozen=True)
class ImageFile:
    """One image of a folder."""

    path: Path
    label: int | None = None
    """The place of its class folder among all of them in order of name; None where there are none."""


def list_images(folder: Path) -> list[ImageFile]:
    """The folder's images in order of name, at least one.

    Where the images lie in folders of it, one per class (as torchvision's ``ImageFolder`` has them), those of the
    first class come first, and each has its class. Hidden files and files that are no images are passed over.

    Raises:
        ImageError: The folder is missing or unreadable, holds no image, one whose type is not read, or images both
            beside and inside folders.
    """
    if not folder.is_dir():
        reason = "is a file" if folder.exists() else "does not exist"
        raise ImageError(f"the image folder {str(folder)!r} {reason}; give a folder of images, or the word {PHOTOS!r}")
    try:
        direct = _images_in(folder)
        inside = {part: _images_in(part) for part in _visible(folder, Path.is_dir)}
    except OSError as error:
        raise ImageError(f"the image folder {str(folder)!r} cannot be read ({error.strerror})") from error
    classes = [part for part, files in inside.items() if files]
    if direct and classes:
        raise ImageError(
            f"the image folder {str(folder)!r} holds images beside folders of images ({_listed(classes)}); give a "
            "folder of images, or of folders with one class each"
        )
    if classes and len(classes) < len(inside):
        empty = [part for part in inside if part not in classes]
        raise ImageError(
            f"the image folder {str(folder)!r} holds folders with images and others without ({_listed(empty)}), so the "
            "numbers of the classes are not known; remove those without"
        )
    if not direct and not classes:
        raise ImageError(f"the image folder {str(folder)!r} holds no image ({', '.join(sorted(SUFFIXES))})")
    labelled = [ImageFile(path, label) for label, part in enumerate(classes) for path in inside[part]]
    return labelled or [ImageFile(path) for path in direct]


def image_names(files: Sequence[ImageFile]) -> tuple[str, ...]:
    """One name for each file, all different: without its ending where that is enough, behind that of its class."""
    for name in (_stem, _file_name):
        names = tuple(name(file) for file in files)
        if len(set(names)) == len(files):
            break
    return names


def _stem(file: ImageFile) -> str:
    return file.path.stem if file.label is None else f"{file.path.parent.name}/{file.path.stem}"


def _file_name(file: ImageFile) -> str:
    return file.path.name if file.label is None else f"{file.path.parent.name}/{file.path.name}"


def _images_in(folder: Path) -> list[Path]:
    files = _visible(folder, Path.is_file)
    unread = [path for path in files if path.suffix.lower() not in SUFFIXES and looks_like_an_image(path)]
    if unread:
        raise ImageError(
            f"the folder {str(folder)!r} holds files that look like images and whose type is not read "
            f"({_listed(unread)}); convert them to one of {', '.join(sorted(SUFFIXES))}, or move them away"
        )
    return [path for path in files if path.suffix.lower() in SUFFIXES]


def _visible(folder: Path, of_kind: Callable[[Path], bool]) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and of_kind(path))


def _listed(paths: Sequence[Path]) -> str:
    more = f" and {len(paths) - _MOST_LISTED} more" if len(paths) > _MOST_LISTED else ""
    return ", ".join(path.name for path in paths[:_MOST_LISTED]) + more
