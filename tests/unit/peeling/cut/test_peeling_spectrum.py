from __future__ import annotations

import pytest
import scipy.fft
import torch
from gradinversion.peeling.cut.spectrum import Spectrum

CPU = torch.device("cpu")


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 8, 12), (4, 5, 7)])
def test_images_come_back_from_their_coefficients(shape: tuple[int, int, int]) -> None:
    images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    spectrum = Spectrum.of(*shape, CPU)
    coefficients = spectrum.coefficients(images)
    assert coefficients.shape == images.shape
    torch.testing.assert_close(spectrum.images(coefficients), images, atol=1e-5, rtol=0)
    # Amplitudes taken away, the transform is orthogonal.
    torch.testing.assert_close((coefficients * spectrum.amplitudes).norm(), images.norm(), atol=1e-4, rtol=0)


def test_a_grey_image_is_a_cosine_transform_of_its_brightness() -> None:
    grey = torch.rand(1, 1, 8, 12, generator=torch.Generator().manual_seed(0)).expand(1, 3, 8, 12)
    spectrum = Spectrum.of(3, 8, 12, CPU)
    brightness, *colours = (spectrum.coefficients(grey) * spectrum.amplitudes)[0]
    expected = scipy.fft.dctn(grey[0, 0].double().numpy(), norm="ortho")
    torch.testing.assert_close(brightness.double(), 3**0.5 * torch.from_numpy(expected), atol=1e-5, rtol=0)
    assert all(float(colour.abs().max()) < 1e-5 for colour in colours)


def test_what_is_fine_and_what_is_colour_is_small_in_photos() -> None:
    amplitudes = Spectrum.of(3, 16, 16, CPU).amplitudes
    assert bool((amplitudes[:, 1:] < amplitudes[:, :-1]).all())
    assert bool((amplitudes[:, :, 1:] < amplitudes[:, :, :-1]).all())
    assert bool((amplitudes[1:] < amplitudes[:1]).all())
