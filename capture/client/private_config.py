"""The settings by which the owner of the data names what his own client trained on."""

from __future__ import annotations

from dataclasses import dataclass

from ...refusal import Checked
from .label_words import AUTO


@dataclass(frozen=True)
class PrivateConfig(Checked):
    """The truth behind a real client's update."""

    images: str | None = None
    """With update=FILE, or before and after: folder of the images that the client trained on (all of them, no others),
    in order of name; or a .safetensors file of "images" (in [0, 1]) and "labels". private=FOLDER is short for it. Only
    the audit sees them."""
    labels: str = AUTO
    """One label per image in order of name, separated by commas, such as 0,0,3,7; "auto" for those of class folders, or
    of the file."""

    def problems(self) -> list[str]:
        """Every value that cannot be carried out, one sentence each."""
        if self.images is None and self.labels != AUTO:
            return [f"private.labels={self.labels} are labels of no images; give private=FOLDER too"]
        return []
