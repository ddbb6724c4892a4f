"""The settings of the simulated client."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ...refusal import Checked
from ..defences import FROM_IMAGES, Defence, DefenceError, parse_defences
from ..errors import UpdateError
from ..facts import BatchNormMode
from ..image_files import PHOTOS
from ..local_training import LocalTraining
from ..models import TIMM_PREFIX
from ..normalisation import Normalisation, usual_normalisation
from ..update import LARGEST_CHANNEL_COUNT, LARGEST_IMAGE_COUNT, LARGEST_IMAGE_SIDE
from .label_words import AUTO, UNIQUE, parse_labels
from .label_words import ClientError as ClientError

LARGEST_CLASS_COUNT = 1_000_000


@dataclass(frozen=True)
class ClientConfig(Checked):
    """The simulated client."""

    model: str = "convnet"
    """The bundled "convnet" or "cifar_resnet18" (ResNet-18 for small images), a torchvision classification model by
    name, "timm:NAME", or "module:callable"."""
    weights: str | None = None
    """File with the model's weights (.safetensors, .pt, .pth or .ckpt); without it they are random, from the seed."""
    classes: int = 10
    """Number of classes that the model tells apart."""
    images: str = "photos"
    """Folder of images, or of folders with one class each, taken in order of name; or "photos" for the natural photos
    that scikit-image ships."""
    batch_size: int = 4
    """Images that the client averages its gradient over."""
    image_size: int = 32
    """Side in pixels to which each image's largest centred square is resized; the height, with client.image_width."""
    image_width: int = 0
    """Width in pixels of images that are not square; 0: they are."""
    channels: int = 3
    """Of the images: 1 grey, 3 RGB, 4 RGB with alpha from files that have it."""
    mean: tuple[float, ...] = ()
    """Of the normalisation, one number per channel, or one for all of them; none: ImageNet's for RGB, else 0."""
    std: tuple[float, ...] = ()
    """Deviation of the normalisation, one number per channel, or one for all of them; none: ImageNet's for RGB, else
    1."""
    labels: str = "auto"
    """"unique" for 0, 1, 2, ...; one label per image separated by commas, such as 0,0,3,7; or "auto" for the classes of
    class folders, and "unique" where there are none."""
    bn: str = "eval"
    """Batch norm in the client: "eval", "train_shared" (statistics sent along) or "train_private" (kept)."""
    local_epochs: int = 0
    """Epochs that the client trains before it sends its weight delta; 0: it sends the gradient of one batch instead."""
    local_batch_size: int = 0
    """Images in each of its local steps; 0: all of client.batch_size."""
    learning_rate: float = 0.01
    """Of its local steps (plain SGD)."""
    learning_rate_known: bool = True
    """Whether the server knows that learning rate; false: the attack has to estimate it."""
    momentum: float = 0.0
    """Of its local steps."""
    weight_decay: float = 0.0
    """Of its local steps."""
    shuffled: bool = False
    """Whether each local epoch has an order of its own, which the server does not know."""
    defence: str = "none"
    """What the client does to its gradient: "none", "noise", "clip", "prune", "quantise", "dp_sgd" or "soteria"; or
    several in order, each with its strength, as in clip:0.5+noise:0.1."""
    defence_strength: float = 0.0
    """noise: multiple of the 95th percentile of |gradient|; clip: largest L2 norm; prune: share; quantise: bits;
    dp_sgd: noise multiplier; soteria: share of the features. Left out where client.defence gives strengths."""
    defence_clip: float = 1.0
    """dp_sgd: largest L2 norm of one image's gradient."""
    dp_sample_rate: float = 0.01
    """dp_sgd: chance of each image to be in a step of the whole training, for the epsilon in the report."""
    dp_steps: int = 1000
    """dp_sgd: steps of the whole training, for the epsilon in the report."""
    dp_delta: float = 1e-5
    """dp_sgd: the delta that goes with the epsilon in the report."""
    clients: int = 1
    """Clients of batch_size images each whose updates are averaged before the server sees them: secure aggregation."""

    def problems(self) -> list[str]:
        """Every setting that cannot be carried out, one sentence each."""
        found = []
        for key, lowest in (("classes", 2), ("batch_size", 1), ("image_size", 4), ("clients", 1), ("dp_steps", 1)):
            if getattr(self, key) < lowest:
                found.append(f"client.{key} is {getattr(self, key)}; it must be at least {lowest}")
        ceilings = {"image_size": LARGEST_IMAGE_SIDE, "image_width": LARGEST_IMAGE_SIDE, "classes": LARGEST_CLASS_COUNT}
        for key, largest in ceilings.items():
            if getattr(self, key) > largest:
                found.append(f"client.{key} is {getattr(self, key)}; it must be at most {largest}")
        if self.image_count > LARGEST_IMAGE_COUNT:
            found.append(
                f"client.batch_size={self.batch_size} of client.clients={self.clients} are {self.image_count} images; "
                f"an update is of at most {LARGEST_IMAGE_COUNT}"
            )
        found += self._image_problems()
        if self.bn not in list(BatchNormMode):
            found.append(f"client.bn is {self.bn!r}; use one of {', '.join(BatchNormMode)}")
        try:
            names = [one.name for one in self.defences]
        except DefenceError as error:
            found.append(f"client.defence={self.defence}: {error}")
            names = []
        found += self._local_problems() + self._privacy_problems() + self._combination_problems(names)
        # What "auto" gives is known with the images.
        if not found and self.labels != AUTO:
            try:
                parse_labels(self.labels, self.image_count, self.classes)
            except ClientError as error:
                found.append(str(error))
        return found

    def require_labels(self) -> None:
        """Return quietly when the images that a client is simulated with can have their labels.

        Raises:
            ClientError: There are more images than classes, and nothing names their labels.
        """
        if self.labels == AUTO and self.images == PHOTOS:
            parse_labels(UNIQUE, self.image_count, self.classes)

    def _image_problems(self) -> list[str]:
        found = []
        if self.image_width != 0 and self.image_width < 4:
            found.append(f"client.image_width is {self.image_width}; it must be at least 4, or 0 for square images")
        if not 1 <= self.channels <= LARGEST_CHANNEL_COUNT:
            # What belongs to so many channels is not made.
            return [*found, f"client.channels is {self.channels}; it must be from 1 to {LARGEST_CHANNEL_COUNT}"]
        counts = {len(self.mean), len(self.std)}
        if not counts <= {1, self.channels} and counts != {0}:
            found.append(
                f"client.mean has {len(self.mean)} numbers and client.std {len(self.std)}; give one per channel "
                f"(client.channels={self.channels}), or one for all of them, in both, or neither"
            )
        elif self.mean:
            try:
                self._told_normalisation()
            except UpdateError as error:
                found.append(f"client.mean and client.std: {error}")
        return found

    def _local_problems(self) -> list[str]:
        found = []
        if self.local_epochs < 0:
            found.append(f"client.local_epochs is {self.local_epochs}; it must be at least 1, or 0 to send a gradient")
        if not 0 <= self.local_batch_size <= self.batch_size:
            found.append(
                f"client.local_batch_size is {self.local_batch_size}; it must be between 1 and "
                f"client.batch_size={self.batch_size}, or 0 for all images in one batch"
            )
        elif self.local_batch_size and not self.local_epochs:
            found.append(
                f"client.local_batch_size={self.local_batch_size} is of local training alone; give client.local_epochs "
                "of at least 1 too"
            )
        for key, value, most in (("momentum", self.momentum, 1.0), ("weight_decay", self.weight_decay, math.inf)):
            if not 0 <= value < most:
                found.append(f"client.{key} is {value}; it must be at least 0 and below {most:g}")
        if not 0 < self.learning_rate < math.inf:
            found.append(f"client.learning_rate is {self.learning_rate}; it must be a finite number above 0")
        if not found and self.local_epochs and self.batch_size > 0:
            try:
                self.local_training()
            except UpdateError as error:
                found.append(f"client.local_epochs={self.local_epochs}: {error}")
        return found

    @property
    def defences(self) -> tuple[Defence, ...]:
        """What the client does to its gradient, in order; one of the name "none" where it does nothing."""
        return parse_defences(self.defence, self.defence_strength)

    @property
    def applied_defences(self) -> tuple[Defence, ...]:
        """Those defences, with all their parameters; none where it does nothing."""
        return tuple(
            replace(one, clip=(self.defence_clip,)) if one.name == "dp_sgd" else one
            for one in self.defences
            if one.name != "none"
        )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of each image."""
        return self.channels, self.image_size, self.image_width or self.image_size

    @property
    def normalisation(self) -> Normalisation:
        """What the model is fed in place of pixels in [0, 1]."""
        return self._told_normalisation() if self.mean else usual_normalisation(self.channels)

    def _told_normalisation(self) -> Normalisation:
        mean, std = (part * self.channels if len(part) == 1 else part for part in (self.mean, self.std))
        return Normalisation(mean, std)

    @property
    def image_count(self) -> int:
        """Images behind the update that the server sees: those of all clients."""
        return self.batch_size * self.clients

    @property
    def trained(self) -> bool | None:
        """Whether the model has trained weights; None where the user's own code decides it."""
        if self.weights is not None:
            return True
        return None if ":" in self.model and not self.model.lower().startswith(TIMM_PREFIX) else False

    def _privacy_problems(self) -> list[str]:
        found = []
        if not 0 < self.defence_clip < math.inf:
            found.append(f"client.defence_clip is {self.defence_clip:g}; it must be a finite norm above 0")
        if not 0 < self.dp_sample_rate <= 1:
            found.append(f"client.dp_sample_rate is {self.dp_sample_rate:g}; it must be above 0 and at most 1")
        if not 0 < self.dp_delta < 1:
            found.append(f"client.dp_delta is {self.dp_delta:g}; it must be above 0 and below 1")
        return found

    def _combination_problems(self, defences: list[str]) -> list[str]:
        found = []
        if "dp_sgd" in defences and self.bn != BatchNormMode.EVAL:
            found.append(
                f"client.defence is 'dp_sgd' and client.bn is {self.bn!r}: with the batch's statistics no gradient "
                "belongs to one image alone; use client.bn=eval"
            )
        if self.clients > 1 and self.bn != BatchNormMode.EVAL:
            found.append(
                f"client.clients is {self.clients} and client.bn is {self.bn!r}: every client's batch statistics would "
                "differ, and an average of their gradients belongs to no single batch; use client.bn=eval"
            )
        if set(defences) & set(FROM_IMAGES) and self.local_epochs:
            found.append(
                f"client.defence is {self.defence!r} and client.local_epochs is {self.local_epochs}: this defence is "
                "simulated for a gradient, not within local steps; use client.local_epochs=0"
            )
        return found

    def local_training(self) -> LocalTraining | None:
        """The client's local steps with their learning rate; None when it sends a gradient.

        Raises:
            UpdateError: There are more steps than can be retraced.
        """
        if not self.local_epochs:
            return None
        local = LocalTraining(
            self.learning_rate,
            self.local_epochs,
            self.local_batch_size or None,
            self.momentum,
            self.weight_decay,
            self.shuffled,
        )
        local.require_images(self.batch_size)
        return local
