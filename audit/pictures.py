"""Pixels to PNG: data URIs for the page, and the labelled grid that is saved beside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .figures import psnr_in_words

_CELL = 128
_GAP = 10
_TEXT = 16
_COLUMNS = 8
_INK, _PAPER = (28, 32, 38), (255, 255, 255)


@dataclass(frozen=True)
class GridRow:
    """One band of the grid: the same images in the same order as every other band."""

    title: str
    images: Float[Tensor, "batch channel height width"]
    """In [0, 1]."""
    captions: Sequence[str]


def difference(
    images: Float[Tensor, "batch channel height width"], others: Float[Tensor, "batch channel height width"]
) -> tuple[float, Float[Tensor, "batch channel height width"]]:
    """``images - others`` around mid-grey, and how many times enlarged: so that the largest step fills the range.

    One factor for all images, between 1 and 50, so that they can be compared.
    """
    steps = torch.nan_to_num(images - others)
    gain = float((0.5 / steps.abs().amax().clamp_min(1e-6)).clamp(1, 50))
    return gain, 0.5 + gain * steps


def encode_png(image: Float[Tensor, "channel height width"]) -> bytes:
    """The image as a PNG at its own size: RGB for three channels, else the mean as grey. Not-a-number is mid-grey."""
    return _png(Image.fromarray(_bytes(image)))


def data_uri(image: Float[Tensor, "channel height width"], largest: int | None = None) -> str:
    """The image as a ``data:`` URI, shrunk so that its longer side is at most ``largest`` pixels."""
    longer = max(image.shape[-2:])
    if largest is not None and longer > largest:
        height, width = (max(1, round(side * largest / longer)) for side in image.shape[-2:])
        image = F.interpolate(image[None].float(), (height, width), mode="area")[0]
    return "data:image/png;base64," + base64.b64encode(encode_png(image)).decode()


def picture_cell(
    kind: str,
    picture: Float[Tensor, "channel height width"],
    caption: str | float | None,
    largest: int,
    chosen: bool = False,
) -> dict[str, Any]:
    """A picture as the page's tables take it.

    Args:
        kind: of the column.
        picture: in [0, 1].
        caption: words, or a PSNR in dB.
        largest: longest side in pixels.
        chosen: whether the answer took its pixels from here.
    """
    words = caption if isinstance(caption, str) else "" if caption is None else psnr_in_words(caption)
    return {"kind": kind, "uri": data_uri(picture, largest), "caption": words, "chosen": chosen}


def draw_grid(rows: Sequence[GridRow]) -> bytes:
    """A PNG of the rows under each other, each picture enlarged by a whole number of times with its caption below.

    Wide batches go on in further blocks of eight columns. Every row holds the same number of images.
    """
    count, _, height, width = rows[0].images.shape
    zoom = max(1, round(_CELL / max(height, width)))
    cell_width, cell_height = max(width * zoom, 96) + _GAP, height * zoom + _TEXT + _GAP + 4
    font = ImageFont.load_default(_TEXT - 3)
    margin = round(max(font.getlength(row.title) for row in rows)) + 2 * _GAP
    columns, blocks = min(count, _COLUMNS), -(-count // _COLUMNS)
    block_height = len(rows) * cell_height + _GAP
    canvas = Image.new("RGB", (margin + columns * cell_width + _GAP, blocks * block_height + _GAP), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for index in range(count):
        block, column = divmod(index, _COLUMNS)
        for line, row in enumerate(rows):
            left, top = margin + column * cell_width, _GAP + block * block_height + line * cell_height
            if column == 0:
                draw.text((_GAP, top + height * zoom / 2), row.title, fill=_INK, font=font, anchor="lm")
            picture = Image.fromarray(_bytes(row.images[index]))
            canvas.paste(picture.resize((width * zoom, height * zoom), Image.Resampling.NEAREST), (left, top))
            draw.text((left, top + height * zoom + 3), _fit(row.captions[index], cell_width - 4, font), _INK, font)
    return _png(canvas)


def _bytes(image: Tensor) -> NDArray[np.uint8]:
    image = torch.nan_to_num(image.detach().cpu().float(), nan=0.5, posinf=1.0, neginf=0.0).clamp(0, 1)
    if len(image) != 3:
        image = image.mean(0, keepdim=True).expand(3, -1, -1)
    return np.ascontiguousarray((image * 255).round().byte().permute(1, 2, 0).numpy())


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _fit(text: str, width: float, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """``text`` cut to ``width`` pixels, with an ellipsis where it was cut."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"
