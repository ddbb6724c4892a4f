"""What an agent descends on: the pixels of its batch, with or without its labels, or the latents of a generator."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from .adam import Adam
from .generator import generate, latent_shape
from .objective import Objective

# Steps, and their size in units of a latent's standard deviation, that bring latents near given images.
_PROJECTION_STEPS = 100
_PROJECTION_RATE = 0.1


class Parametrisation(Protocol):
    """From the variables that are descended to a batch of images."""

    name: str
    """Of the variables, in a state."""

    def begin(self, random: torch.Generator, start: Tensor | None, spread: float | Tensor) -> Tensor:
        """Variables to begin with, on the device.

        Args:
            random: The seed's random numbers, drawn on the CPU.
            start: Normalised images to begin near, or None.
            spread: How far from them, in normalised pixels; of each image where it is a tensor.
        """

    def images(self, variables: Tensor) -> Float[Tensor, "batch channel height width"]:
        """Normalised images, differentiable by the variables."""

    def labels(self, variables: Tensor) -> Float[Tensor, "batch classes"] | None:
        """The probability of each class, differentiable; None where the labels are known."""

    def confine(self, variables: Tensor) -> None:
        """Bring the images back into [0, 1], in place."""


class Pixels:
    """The variables are the normalised pixels; they begin at ``x ~ N(0, 1)``."""

    name = "images"

    def __init__(self, objective: Objective) -> None:
        update = objective.update
        self._shape, self._device = (update.image_count, *update.image_shape), objective.device
        low, high = update.normalisation.bounds()
        self._low, self._high = low.to(self._device), high.to(self._device)

    def begin(self, random: torch.Generator, start: Tensor | None, spread: float | Tensor) -> Tensor:
        images = torch.randn(self._shape, generator=random)
        if start is not None:
            images = start.cpu() + spread * images
        return images.to(self._device)

    def images(self, variables: Tensor) -> Tensor:
        return variables

    def labels(self, variables: Tensor) -> Tensor | None:
        return None

    def confine(self, variables: Tensor) -> None:
        variables.copy_(torch.maximum(torch.minimum(variables, self._high), self._low))


class PixelsAndLabels:
    """The variables are the normalised pixels of each image and, behind them, a logit for each class: the joint
    optimisation of Zhu, Liu & Han 2019 (DLG), algorithm 1. All begin at ``N(0, 1)``, the logits also beside a given
    start, which says nothing of labels.
    """

    name = "images_and_labels"

    def __init__(self, objective: Objective) -> None:
        self._pixels = Pixels(objective)
        self._shape, self._classes = objective.update.image_shape, objective.classes
        self._size = math.prod(self._shape)

    def begin(self, random: torch.Generator, start: Tensor | None, spread: float | Tensor) -> Tensor:
        images = self._pixels.begin(random, start, spread)
        logits = torch.randn(len(images), self._classes, generator=random)
        return torch.cat([images.flatten(1), logits.to(images.device)], dim=1)

    def images(self, variables: Tensor) -> Tensor:
        return variables[:, : self._size].view(-1, *self._shape)

    def labels(self, variables: Tensor) -> Tensor | None:
        return variables[:, self._size :].softmax(1)

    def confine(self, variables: Tensor) -> None:
        self._pixels.confine(self.images(variables))


class Latents:
    """The variables are latents ``z`` of a generator G, which begin at ``z ~ N(0, 1)``; the images are ``G(z)``.

    The latent projection of Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020
    (section 5 and appendix D), onto the range of the generator, by whatever the objective says of the images.

    To begin near given images (a consensus) is to project them: some steps of Adam on the mean square of their
    distance to ``G(z)``, from the seed's own random latents, so that seeds stay different.
    """

    name = "latents"

    def __init__(self, objective: Objective) -> None:
        assert objective.generator is not None
        self._generator, self._labels = objective.generator, objective.labels
        self._normalisation, self._device = objective.update.normalisation, objective.device
        self._shape = (objective.update.image_count, *latent_shape(self._generator))

    def begin(self, random: torch.Generator, start: Tensor | None, spread: float | Tensor) -> Tensor:
        latents = torch.randn(self._shape, generator=random).to(self._device)
        return latents if start is None else self._project(latents, start.to(self._device))

    def images(self, variables: Tensor) -> Tensor:
        return self._normalisation.apply(generate(self._generator, variables, self._labels))

    def labels(self, variables: Tensor) -> Tensor | None:
        return None

    def confine(self, variables: Tensor) -> None:
        """The generator's pixels are in [0, 1] already."""

    def _project(self, latents: Tensor, images: Tensor) -> Tensor:
        latents.requires_grad_()
        adam = Adam(latents.detach())
        for _ in range(_PROJECTION_STEPS):
            distance = (self.images(latents) - images).square().mean()
            (derivative,) = torch.autograd.grad(distance, latents)
            adam.step(latents, derivative, _PROJECTION_RATE)
        return latents.detach()


def parametrisation_of(objective: Objective) -> Parametrisation:
    """Latents where the attack has a generator, else pixels, with the labels where these are not known."""
    if objective.generator is not None:
        return Latents(objective)
    return PixelsAndLabels(objective) if objective.joint_labels else Pixels(objective)
