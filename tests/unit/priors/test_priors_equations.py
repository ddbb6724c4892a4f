"""Each prior against its equation written out in loops, its derivative, and what it must not depend on."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from gradinversion.priors import (
    anisotropic_total_variation,
    batch_norm_distance,
    colour_total_variation,
    group_distance,
    l2_norm,
    mean_square,
    relative_batch_norm_distance,
    relative_group_distance,
    total_variation,
)
from torch import Tensor

OfImages = Callable[[Tensor], Tensor]
OF_IMAGES: list[OfImages] = [
    total_variation,
    anisotropic_total_variation,
    colour_total_variation,
    l2_norm,
    mean_square,
]
OF_PAIRS = [group_distance, relative_group_distance]
OF_STATISTICS = [batch_norm_distance, relative_batch_norm_distance]


def _images(batch: int = 2, channels: int = 3, height: int = 4, width: int = 5) -> Tensor:
    return torch.randn(batch, channels, height, width, dtype=torch.float64)


def _steps(images: Tensor, along: str) -> list[float]:
    """|x[i+1,j] - x[i,j]| or |x[i,j+1] - x[i,j]| of every pixel that has such a neighbour."""
    batch, channels, height, width = images.shape
    found = []
    for b in range(batch):
        for c in range(channels):
            for i in range(height):
                for j in range(width):
                    m, n = (i + 1, j) if along == "height" else (i, j + 1)
                    if m < height and n < width:
                        found.append(abs(float(images[b, c, m, n] - images[b, c, i, j])))
    return found


def test_total_variation_is_the_sum_of_all_steps_per_image() -> None:
    images = _images()
    expected = (sum(_steps(images, "height")) + sum(_steps(images, "width"))) / 2
    assert float(total_variation(images)) == pytest.approx(expected, rel=1e-12)


def test_anisotropic_total_variation_is_the_mean_step_in_each_direction() -> None:
    images = _images()
    down, right = _steps(images, "height"), _steps(images, "width")
    expected = sum(down) / len(down) + sum(right) / len(right)
    assert float(anisotropic_total_variation(images)) == pytest.approx(expected, rel=1e-12)


def test_colour_total_variation_is_the_mean_gradient_magnitude_over_channels() -> None:
    images = _images()
    batch, channels, height, width = images.shape
    magnitudes = []
    for b in range(batch):
        for i in range(height):
            for j in range(width):
                squared = 0.0
                for c in range(channels):
                    here = float(images[b, c, i, j])
                    below = float(images[b, c, min(i + 1, height - 1), j])
                    right = float(images[b, c, i, min(j + 1, width - 1)])
                    squared += (below - here) ** 2 + (right - here) ** 2
                magnitudes.append(math.sqrt(squared / channels))
    expected = sum(magnitudes) / len(magnitudes)
    assert float(colour_total_variation(images)) == pytest.approx(expected, rel=1e-4)  # a smoothed root at the border


@pytest.mark.parametrize("prior", [total_variation, anisotropic_total_variation, colour_total_variation])
def test_every_pixel_belongs_to_it(prior: OfImages) -> None:
    # A corner without a difference would be left to noise, which shows as a stray pixel in the reconstruction.
    for row in (0, -1):
        for column in (0, -1):
            images = torch.zeros(1, 3, 4, 5, dtype=torch.float64)
            images[..., row, column] = 1.0
            assert float(prior(images)) > 0.05


def test_known_total_variations_of_a_step_edge() -> None:
    images = torch.zeros(1, 1, 3, 4, dtype=torch.float64)
    images[..., 2:] = 2.0
    assert float(total_variation(images)) == pytest.approx(3 * 2.0)  # three rows, one step of 2 in each
    assert float(anisotropic_total_variation(images)) == pytest.approx(2.0 / 3)  # one of three steps of each row
    assert float(colour_total_variation(images)) == pytest.approx(2.0 / 4, rel=1e-3)  # one of four pixels of each row


def test_edges_on_the_same_pixels_in_all_colours_cost_less() -> None:
    together, apart = torch.zeros(1, 2, 8, 8), torch.zeros(1, 2, 8, 8)
    together[:, :, :, 4:] = 1.0
    apart[:, 0, :, 4:], apart[:, 1, :, 2:] = 1.0, 1.0
    assert float(colour_total_variation(together)) < 0.8 * float(colour_total_variation(apart))
    assert float(anisotropic_total_variation(together)) == pytest.approx(float(anisotropic_total_variation(apart)))


def test_l2_norm_and_mean_square() -> None:
    images = _images()
    values = [[float(v) for v in image.flatten()] for image in images]
    expected = sum(math.sqrt(sum(v * v for v in image)) for image in values) / len(values)
    assert float(l2_norm(images)) == pytest.approx(expected, rel=1e-12)
    flat = [v for image in values for v in image]
    assert float(mean_square(images)) == pytest.approx(sum(v * v for v in flat) / len(flat), rel=1e-12)


def test_group_distances() -> None:
    images, consensus = _images(), _images()
    lengths = []
    for image, centre in zip(images, consensus, strict=True):
        pairs = zip(image.flatten(), centre.flatten(), strict=True)
        lengths.append(math.sqrt(sum(float(a - b) ** 2 for a, b in pairs)))
    expected = sum(lengths) / len(lengths)
    assert float(group_distance(images, consensus)) == pytest.approx(expected, rel=1e-9)
    per_pixel = expected / math.sqrt(images[0].numel())
    assert float(relative_group_distance(images, consensus)) == pytest.approx(per_pixel, rel=1e-9)


@pytest.mark.parametrize("distance", OF_PAIRS)
def test_no_derivative_flows_into_the_consensus(distance: Callable[[Tensor, Tensor], Tensor]) -> None:
    images, consensus = _images().requires_grad_(), _images().requires_grad_()
    distance(images, consensus).backward()
    assert images.grad is not None
    assert consensus.grad is None


def _statistics(features: dict[str, int]) -> dict[str, tuple[Tensor, Tensor]]:
    return {
        name: (torch.randn(size, dtype=torch.float64), torch.rand(size, dtype=torch.float64) + 0.1)
        for name, size in features.items()
    }


def _length(values: Tensor) -> float:
    return math.sqrt(sum(float(v) ** 2 for v in values))


def test_batch_norm_distances() -> None:
    found, target = _statistics({"a": 4, "b": 3}), _statistics({"a": 4, "b": 3})
    absolute, relative = 0.0, 0.0
    for name in ("a", "b"):
        layer = _length(found[name][0] - target[name][0]) + _length(found[name][1] - target[name][1])
        absolute += layer
        relative += layer / (_length(target[name][0]) + _length(target[name][1])) / 2
    assert float(batch_norm_distance(found, target)) == pytest.approx(absolute, rel=1e-12)
    assert float(relative_batch_norm_distance(found, target)) == pytest.approx(relative, rel=1e-12)


@pytest.mark.parametrize("distance", OF_STATISTICS)
def test_layers_that_did_not_run_are_left_out(distance: Callable[..., Tensor]) -> None:
    found, target = _statistics({"a": 4, "b": 3}), _statistics({"a": 4, "b": 3})
    first = {"a": found["a"]}
    assert float(distance(first, target)) == pytest.approx(float(distance(first, {"a": target["a"]})))
    assert float(distance({}, target)) == 0.0
    assert float(distance({}, {})) == 0.0


@pytest.mark.parametrize("prior", OF_IMAGES)
def test_derivative_by_the_images(prior: OfImages) -> None:
    assert torch.autograd.gradcheck(prior, (_images().requires_grad_(),))


@pytest.mark.parametrize("distance", OF_PAIRS)
def test_derivative_of_the_group_distance(distance: Callable[[Tensor, Tensor], Tensor]) -> None:
    consensus = _images()
    assert torch.autograd.gradcheck(lambda images: distance(images, consensus), (_images().requires_grad_(),))


@pytest.mark.parametrize("distance", OF_STATISTICS)
def test_derivative_of_the_batch_norm_distance(distance: Callable[..., Tensor]) -> None:
    target = _statistics({"a": 4, "b": 3})

    def of(*tensors: Tensor) -> Tensor:
        return distance({"a": (tensors[0], tensors[1]), "b": (tensors[2], tensors[3])}, target)

    found = _statistics({"a": 4, "b": 3})
    leaves = [t.requires_grad_() for name in ("a", "b") for t in found[name]]
    assert torch.autograd.gradcheck(of, leaves)


@pytest.mark.parametrize("prior", OF_IMAGES)
@pytest.mark.parametrize("level", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_flat_images_have_a_finite_derivative(prior: OfImages, level: float, dtype: torch.dtype) -> None:
    images = torch.full((2, 3, 4, 4), level, dtype=dtype, requires_grad=True)
    (derivative,) = torch.autograd.grad(prior(images), images)
    assert bool(torch.isfinite(derivative).all())
    if level == 0 or "variation" in prior.__name__:
        assert float(derivative.abs().max()) == 0.0  # nowhere is better nearby


@pytest.mark.parametrize("distance", OF_PAIRS)
def test_at_the_consensus_itself_the_derivative_is_zero(distance: Callable[[Tensor, Tensor], Tensor]) -> None:
    images = torch.randn(2, 3, 4, 4, requires_grad=True)
    value = distance(images, images.detach().clone())
    (derivative,) = torch.autograd.grad(value, images)
    assert float(value.detach()) < 1e-5
    assert float(derivative.abs().max()) == 0.0


@pytest.mark.parametrize("distance", OF_STATISTICS)
def test_at_the_target_statistics_the_derivative_is_zero(distance: Callable[..., Tensor]) -> None:
    target = _statistics({"a": 4})
    mean, var = (t.clone().requires_grad_() for t in target["a"])
    value = distance({"a": (mean, var)}, target)
    assert float(value.detach()) == 0.0
    assert all(float(d.abs().max()) == 0.0 for d in torch.autograd.grad(value, (mean, var)))


@pytest.mark.parametrize("prior", [anisotropic_total_variation, colour_total_variation])
def test_scale_free_variations_do_not_depend_on_the_size(prior: OfImages) -> None:
    def ramp(batch: int, height: int, width: int) -> Tensor:
        down, right = torch.arange(height, dtype=torch.float64), torch.arange(width, dtype=torch.float64)
        return (0.1 * down[:, None] + 0.2 * right).expand(batch, 3, height, width)

    # The border has one difference less, a share of the pixels that shrinks with the size.
    assert float(prior(ramp(1, 32, 32))) == pytest.approx(float(prior(ramp(5, 128, 96))), rel=0.02)


def test_the_mean_square_does_not_depend_on_the_size() -> None:
    assert float(mean_square(torch.full((1, 3, 8, 8), 0.5))) == 0.25
    assert float(mean_square(torch.full((5, 3, 64, 31), 0.5))) == 0.25


def test_the_relative_group_distance_does_not_depend_on_the_size() -> None:
    small, large = torch.zeros(2, 3, 8, 8), torch.zeros(5, 3, 64, 64)
    assert float(relative_group_distance(small, small + 0.3)) == pytest.approx(0.3, rel=1e-5)
    assert float(relative_group_distance(large, large + 0.3)) == pytest.approx(0.3, rel=1e-5)


def test_the_relative_batch_norm_distance_is_free_of_scale_and_depth() -> None:
    found, target = _statistics({"a": 4}), _statistics({"a": 4})
    once = float(relative_batch_norm_distance(found, target))
    scaled = [{"a": (1000 * s["a"][0], 1000 * s["a"][1])} for s in (found, target)]
    assert float(relative_batch_norm_distance(scaled[0], scaled[1])) == pytest.approx(once, rel=1e-9)
    deeper = [dict.fromkeys("abcdef", s["a"]) for s in (found, target)]
    assert float(relative_batch_norm_distance(deeper[0], deeper[1])) == pytest.approx(once, rel=1e-9)
