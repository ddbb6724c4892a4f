"""Each private image of a cell against its strongest control, and pictures of the one that leaked most."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ..audit import AuditReport, Control, ImageResult, constant_images
from ..audit.comparison import HIGHEST_DB
from ..audit.controls import NULL_CONTROLS, TITLES
from ..audit.pictures import data_uri
from ..capture import PrivateBatch
from ..coordinator import Reconstruction
from .results import Risk, Worst

_LARGEST_PICTURE = 128


def strongest(image: ImageResult) -> tuple[str, float | None]:
    """The control that came closest to an image without knowing it, and its PSNR in dB."""
    known = [(name, value) for name, value in null_controls(image).items() if math.isfinite(value)]
    return max(known, key=lambda pair: pair[1]) if known else ("constant_image", None)


def null_controls(image: ImageResult) -> dict[str, float]:
    """PSNR in dB of the controls that know nothing of the private image."""
    return {name: score.psnr for name, score in image.controls.items() if name in NULL_CONTROLS}


def find_worst(
    report: AuditReport, found: Reconstruction, controls: Sequence[Control], private: PrivateBatch
) -> Worst | None:
    """The image that is furthest above its strongest control; None where nothing can be compared."""
    margins = {image.index: _margin(image) for image in report.images}
    if all(margin == -math.inf for margin in margins.values()):
        return None
    image = max(report.images, key=lambda image: margins[image.index])
    name, value = strongest(image)
    picture = _control_picture(name, image, controls, private)
    return Worst(
        name=image.name,
        original=data_uri(private.images[image.index], _LARGEST_PICTURE),
        reconstruction=data_uri(found.images[image.position], _LARGEST_PICTURE),
        psnr=finite(image.psnr),
        control=None if picture is None else data_uri(picture, _LARGEST_PICTURE),
        control_name=TITLES[name],
        control_psnr=value,
        ssim=finite(image.ssim),
        control_ssim=finite(image.controls[name].ssim) if name in image.controls else None,
        identified=image.identified,
    )


def find_risk(image: ImageResult) -> Risk:
    """How a private image fared."""
    margin = _margin(image)
    return Risk(
        image.name,
        image.verdict.leak.value,
        finite(margin),
        finite(image.loss),
        finite(image.gradient_share),
    )


def finite(value: float | None) -> float | None:
    """None for what JSON and a reader can do nothing with."""
    return value if value is not None and math.isfinite(value) else None


def _margin(image: ImageResult) -> float:
    if image.flat:
        return -math.inf  # of one flat colour: nothing can be held against anything
    value, (_, control) = image.psnr, strongest(image)
    if value is None or math.isnan(value) or value == -math.inf:
        return -math.inf
    # An image that is equal in every bit is ahead of all.
    return min(value, HIGHEST_DB) - (control or 0.0)


def _control_picture(
    name: str, image: ImageResult, controls: Sequence[Control], private: PrivateBatch
) -> Tensor | None:
    if name == "constant_image":
        return constant_images(private.images.detach().cpu())[image.index]
    found = next((control.reconstruction for control in controls if control.name == name), None)
    position = image.controls[name].position
    return None if found is None or position is None else found.images[position].detach().cpu()
