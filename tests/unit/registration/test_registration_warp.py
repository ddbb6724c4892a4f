from __future__ import annotations

import numpy as np
import pytest
import torch
from gradinversion.registration.warp import (
    Warp,
    base_grid,
    homography_from_corners,
    homography_grid,
    inside,
    remove_shared_displacement,
    remove_shared_homography,
    resize_field,
    sample,
    to_pixels,
    transform,
)
from scipy.ndimage import map_coordinates

CORNERS = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])


def some_homographies(count: int, size: float = 0.1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return homography_from_corners(CORNERS, CORNERS + size * torch.randn(count, 4, 2, generator=generator))


def test_sample_is_linear_interpolation_in_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 3, 11, 17, generator=generator)
    displacement = 0.3 * torch.randn(2, 3, 11, 17, 2, generator=generator)
    ours = sample(images, base_grid(11, 17, images) + displacement)
    pixels = to_pixels(displacement).numpy()
    rows, columns = np.mgrid[0:11, 0:17]
    for i, j, c in np.ndindex(2, 3, 3):
        places = [rows + pixels[i, j, 1], columns + pixels[i, j, 0]]
        expected = map_coordinates(images[i, j, c].numpy(), places, order=1, mode="nearest")
        np.testing.assert_allclose(ours[i, j, c].numpy(), expected, atol=1e-4)


def test_homography_from_corners_sends_the_corners_there() -> None:
    target = CORNERS + torch.tensor([[0.1, 0.0], [0.0, -0.1], [0.2, 0.1], [0.0, 0.05]])
    homography = homography_from_corners(CORNERS, target[None])[0]
    torch.testing.assert_close(transform(homography, CORNERS), target)


def test_homography_grid_equals_the_plain_matrix_product() -> None:
    homographies = some_homographies(6).reshape(2, 3, 3, 3)
    points = torch.cat([base_grid(9, 13, homographies), torch.ones(9, 13, 1)], dim=-1)
    projected = torch.einsum("nbij,hwj->nbhwi", homographies, points)
    torch.testing.assert_close(homography_grid(homographies, 9, 13), projected[..., :2] / projected[..., 2:])


def test_a_folding_homography_gives_finite_places() -> None:
    homography = torch.eye(3)
    homography[2, 0] = 2.0
    assert torch.isfinite(homography_grid(homography, 8, 8)).all()


def test_one_homography_means_the_same_at_every_size() -> None:
    homography = some_homographies(1)[0]
    small, large = homography_grid(homography, 8, 8), homography_grid(homography, 24, 24)
    torch.testing.assert_close(small, large[1::3, 1::3])


def test_inside_marks_the_frame() -> None:
    grid = torch.tensor([[[0.0, 0.0], [1.01, 0.0], [0.0, -1.01], [-1.0, 1.0]]])
    assert inside(grid).tolist() == [[1.0, 0.0, 0.0, 1.0]]


def test_resize_field_keeps_a_linear_field() -> None:
    field = base_grid(8, 8, torch.zeros(1))[None]
    resized = resize_field(field, 32, 32)
    torch.testing.assert_close(resized[0, 4:-4, 4:-4], base_grid(32, 32, field)[4:-4, 4:-4])
    assert resize_field(field, 8, 8) is field


def test_shared_homography_is_removed_and_relative_warps_stay() -> None:
    homographies = some_homographies(4)[:, None]
    centred = remove_shared_homography(homographies)
    moved = transform(centred[..., None, :, :], CORNERS) - CORNERS
    assert moved.mean(0).abs().max() < 0.02
    before = homographies[1, 0] @ torch.linalg.inv(homographies[0, 0])
    after = centred[1, 0] @ torch.linalg.inv(centred[0, 0])
    torch.testing.assert_close(after / after[2, 2], before / before[2, 2], atol=1e-5, rtol=1e-4)


def test_a_wild_homography_does_not_make_the_frame_degenerate() -> None:
    homographies = torch.eye(3).repeat(2, 1, 1, 1)
    homographies[0, 0, :2, :2] *= -1e4
    assert torch.isfinite(remove_shared_homography(homographies)).all()


def test_shared_displacement_is_removed_and_points_stay() -> None:
    displacement = Warp(some_homographies(4, 0.05)[:, None]).displacement(32, 32)
    shifted = displacement + torch.tensor([0.06, -0.04])
    centred = remove_shared_displacement(shifted)
    assert centred.mean(0)[:, 4:-4, 4:-4].abs().max() < 5e-3
    # What two candidates show at one place of the frame must still be the same pair of places.
    separate = (shifted[0] - shifted[1])[0, 16, 16]
    torch.testing.assert_close((centred[0] - centred[1])[0, 16, 16], separate, atol=1e-2, rtol=0)


def test_flow_is_applied_before_the_homography() -> None:
    homographies = some_homographies(1)[:, None]
    flow = torch.full((1, 1, 4, 4, 2), 0.1)
    places = base_grid(16, 16, flow) + 0.1
    expected = transform(homographies[..., None, None, :, :], places)
    torch.testing.assert_close(Warp(homographies, flow).grid(16, 16), expected)


@pytest.mark.parametrize(("height", "width"), [(10, 30), (30, 10)])
def test_to_pixels_scales_each_axis(height: int, width: int) -> None:
    pixels = to_pixels(torch.ones(1, height, width, 2))
    assert pixels[0, 0, 0, 0] == width / 2
    assert pixels[0, 1, 0, 0] == height / 2
