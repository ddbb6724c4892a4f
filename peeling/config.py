"""Settings of layer peeling."""

from __future__ import annotations

from dataclasses import dataclass

from ..plugins import PluginKind, is_plugin
from ..refusal import Checked

LINEAR = "linear"
"""The decoder of the package: ridge regression, mended by a small network where features are fewer than pixels."""


@dataclass(frozen=True)
class PeelingConfig(Checked):
    """Which layers are solved in closed form before the agents start."""

    enabled: bool = True
    """Solve for the activations of the last layers where the gradient determines them; the agents invert the rest."""
    taps: bool = True
    """Where that ends at once, take the weight gradient of a convolution apart by its taps: on residual networks it
    gives every image's features away."""
    operations: float = 1e13
    """Floating-point operations, at most, of what follows from taps, and again of the descent from there to the images;
    each about four minutes of one core. A gradient that shows another number of images than the facts state is taken
    apart once more, and again where a faint image hides the others, each time with as many; so is the descent then.
    Local steps with momentum that show other rates than the facts are taken apart
    up to two times more, each time with as many. Where taps tell nothing of local steps, single places are looked for
    at 1x1 convolutions, with as many again. 0 leaves all of it out."""
    photos: str = "photos"
    """Public photos that the decoder is fitted on at whose images that descent starts: a folder, or "photos" for those
    that come with scikit-image. Private images among them are left out."""
    photos_without: tuple[str, ...] = ()
    """Names of photos that are left out, such as astronaut; those of the client that are known are added by
    themselves."""
    decoder: str = LINEAR
    """What makes images of features to start that descent at: linear, or one of your own that is fitted on these photos
    (module:callable)."""
    tolerance: float = 3e-2
    """Largest estimated relative error at which activations count as recovered; a strong defence exceeds it."""

    def problems(self) -> list[str]:
        """Every value that cannot be carried out, one sentence each."""
        found = []
        if not 0 < self.tolerance < 1:
            found.append(f"peeling.tolerance={self.tolerance}: give a number above 0 and below 1.")
        if not self.operations >= 0:
            found.append(f"peeling.operations={self.operations}: give 0, or a number above it.")
        if not self.photos:
            found.append("peeling.photos= is empty: give a folder of public photos, or the word photos.")
        if self.own_decoder is not None and not is_plugin(PluginKind.DECODER, self.own_decoder):
            found.append(f"peeling.decoder={self.decoder}: give {LINEAR}, or module:callable.")
        return found

    @property
    def own_decoder(self) -> str | None:
        """The name of a decoder of the user's own; None for the package's."""
        return None if self.decoder == LINEAR else self.decoder
