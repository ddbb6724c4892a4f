"""Taps: the input of a convolution at every place of every image, from its weight gradient alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gradinversion.capture import capture_gradient
from gradinversion.peeling.images_apart import tell_apart
from gradinversion.peeling.tap_cut import TapCut, find_tap_cut
from gradinversion.peeling.tap_solution import fit_lengths
from gradinversion.peeling.taps import Factors, factor_taps
from torch import Tensor, nn


def rectified(*shape: int, seed: int) -> Tensor:
    """Like what comes out of a ReLU: half of it zero."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).clamp_min(0)


def gradient_of(
    inputs: Tensor, cotangents: Tensor, kernel: tuple[int, int], dtype: torch.dtype = torch.float64
) -> Tensor:
    """By automatic differentiation, which knows nothing of taps."""
    outputs, channels = cotangents.shape[1], inputs.shape[1]
    weight = torch.zeros(outputs, channels, *kernel, dtype=torch.float64, requires_grad=True)
    result = F.conv2d(inputs, weight, padding=(kernel[0] // 2, kernel[1] // 2))
    return torch.autograd.grad(result, weight, cotangents)[0].to(dtype)


def off(found: Tensor, true: Tensor) -> Tensor:
    """Relative distance of each true row to the nearest found one, both of length 1."""
    found, true = (rows.flatten(1) / rows.flatten(1).norm(dim=1, keepdim=True) for rows in (found, true))
    return torch.cdist(true, found).min(dim=1).values


def up_to_mixing(found: Tensor, true: Tensor) -> float:
    found, true = found.flatten(1), true.flatten(1)
    mixing = torch.linalg.lstsq(found.T, true.T).solution
    return float((found.T @ mixing - true.T).norm() / true.norm())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("batch", "size", "kernel"),
    [(1, (4, 4), (3, 3)), (3, (3, 3), (3, 3)), (2, (2, 5), (3, 3)), (2, (3, 4), (5, 5)), (5, (1, 1), (3, 3))],
)
def test_inputs_and_cotangents_come_back_up_to_the_mixing_of_the_images(
    batch: int, size: tuple[int, int], kernel: tuple[int, int], seed: int
) -> None:
    places = batch * size[0] * size[1]
    inputs, cotangents = (
        rectified(batch, places + 6, *size, seed=seed),
        torch.randn(batch, places + 3, *size, generator=torch.Generator().manual_seed(100 + seed), dtype=torch.float64),
    )
    found = factor_taps(gradient_of(inputs, cotangents, kernel), batch, size)
    assert found is not None
    true = inputs.flatten(2).transpose(1, 2)
    assert up_to_mixing(found.inputs, true) < 1e-6
    assert up_to_mixing(found.cotangents, cotangents.flatten(2).transpose(1, 2)) < 1e-6
    assert found.misfit < 1e-9


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("noise", [0.0, 1e-5, 1e-3])
def test_the_images_are_told_apart_and_the_stated_misfit_is_no_lie(seed: int, noise: float) -> None:
    batch, size = 4, (3, 3)
    inputs = rectified(batch, 64, *size, seed=seed)
    cotangents = torch.randn(batch, 80, *size, generator=torch.Generator().manual_seed(50 + seed), dtype=torch.float64)
    exact = gradient_of(inputs, cotangents, (3, 3))
    disturbed = exact + noise * exact.square().mean().sqrt() * torch.randn(
        exact.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    factors = factor_taps(disturbed.float(), batch, size)
    assert factors is not None
    apart = tell_apart(factors)
    assert apart is not None
    true = off(apart.inputs, inputs.flatten(2).transpose(1, 2))
    assert float(true.max()) < max(1e-5, 30 * noise)
    assert float(true.max()) < 10 * max(3 * factors.misfit, float(apart.error.max()), 1e-6)


def _with_a_faint_image(noise: float, faint: float, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs, and the gradient of a batch whose first image adds little to it."""
    inputs = rectified(4, 64, 3, 3, seed=seed)
    cotangents = torch.randn(4, 80, 3, 3, generator=torch.Generator().manual_seed(50 + seed), dtype=torch.float64)
    cotangents[0] *= faint
    gradient = gradient_of(inputs, cotangents, (3, 3))
    random = torch.Generator().manual_seed(seed)
    off = torch.randn(gradient.shape, generator=random, dtype=torch.float64)
    return inputs, gradient + noise * gradient.square().mean().sqrt() * off


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("noise", "faint"), [(1e-7, 1.0), (1e-7, 1e-3), (1e-3, 1.0), (1e-5, 1e-2)])
def test_units_are_shut_up_to_each_image_s_own_noise(noise: float, faint: float, seed: int) -> None:
    inputs, gradient = _with_a_faint_image(noise, faint, seed)
    factors = factor_taps(gradient, 4, (3, 3))
    assert factors is not None
    apart = tell_apart(factors)
    assert apart is not None
    true = inputs.flatten(2).transpose(1, 2)
    found = apart.inputs.flatten(1)
    order = torch.cdist(true.flatten(1) / true.flatten(1).norm(dim=1, keepdim=True), found).argmin(dim=1)
    assert sorted(order.tolist()) == [0, 1, 2, 3]
    wrong = (apart.is_open[order] != (true > 0)).flatten(1).sum(dim=1)
    assert int(wrong.max()) <= 0.02 * true[0].numel()
    if faint < 1:
        # The faint image's noise is its own.
        assert float(apart.shut[order[0]]) > 10 * float(apart.shut[order[1:]].max())
        assert int(wrong[1:].max()) <= 1


def test_an_image_that_adds_little_is_told_apart_as_well_as_its_noise_allows() -> None:
    inputs, gradient = _with_a_faint_image(1e-6, 1e-3, 0)
    factors = factor_taps(gradient, 4, (3, 3))
    assert factors is not None
    apart = tell_apart(factors)
    assert apart is not None
    true = inputs.flatten(2).transpose(1, 2).flatten(1)
    mixed = factors.inputs.flatten(1)
    best = torch.linalg.lstsq(mixed.T, true.T).solution
    least = (mixed.T @ best - true.T).norm(dim=0) / true.norm(dim=1)
    assert bool((off(apart.inputs, inputs.flatten(2).transpose(1, 2)) < 1.5 * least).all())


def test_more_places_than_channels_are_refused_and_a_wrong_number_of_images_is_seen() -> None:
    inputs, cotangents = rectified(2, 30, 3, 3, seed=0), rectified(2, 40, 3, 3, seed=1)
    gradient = gradient_of(inputs, cotangents, (3, 3))
    assert factor_taps(gradient, 4, (3, 3)) is None
    assert factor_taps(gradient, 1, (3, 3)) is None
    three = factor_taps(gradient, 3, (3, 3))
    assert three is None or three.misfit > 1e-6
    assert factor_taps(torch.full_like(gradient, torch.nan), 2, (3, 3)) is None


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_rounding_to_bfloat16_hides_no_faint_place(seed: int) -> None:
    inputs = rectified(4, 48, 3, 3, seed=seed)
    cotangents = torch.randn(4, 48, 3, 3, generator=torch.Generator().manual_seed(50 + seed), dtype=torch.float64)
    cotangents[:, :, 0, 0] *= 0.08
    factors = factor_taps(gradient_of(inputs, cotangents, (3, 3)).bfloat16(), 4, (3, 3))
    assert factors is not None
    assert factors.leak > 0.05
    apart = tell_apart(factors)
    assert apart is not None
    true = float(off(apart.inputs, inputs.flatten(2).transpose(1, 2)).max())
    assert true < 0.05
    assert true < 10 * max(3 * factors.misfit, float(apart.error.max()))


def test_noise_as_large_as_the_gradient_is_refused() -> None:
    noise = torch.randn(40, 30, 3, 3, generator=torch.Generator().manual_seed(0))
    assert factor_taps(noise, 2, (3, 3)) is None


def test_the_same_image_twice_is_not_told_apart() -> None:
    inputs = rectified(1, 40, 3, 3, seed=0).repeat(2, 1, 1, 1)
    cotangents = torch.randn(2, 40, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = factor_taps(gradient_of(inputs, cotangents, (3, 3)), 2, (3, 3))
    assert found is None or tell_apart(found) is None


def test_a_factor_that_is_not_finite_is_not_told_apart() -> None:
    nothing = torch.full((2, 4, 5), torch.nan, dtype=torch.float64)
    assert tell_apart(Factors(nothing, nothing, 0.0, 0.0)) is None


class Residual(nn.Module):
    """A small residual network with pooling before its head."""

    def __init__(self, width: int = 48, bias_free: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 2, 1, bias=False)
        self.stem_norm = nn.BatchNorm2d(width)
        self.first = nn.Conv2d(width, width, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(width, affine=not bias_free)
        self.relu = nn.ReLU(inplace=True)
        self.second = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.skip = nn.Conv2d(width, width, 1, 2, bias=False)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem_norm(self.stem(x)))
        x = torch.relu(self.second(self.relu(self.norm(self.first(x)))) + self.skip(x))
        pooled: Tensor = self.head(x.mean(dim=(2, 3)))
        return pooled


def residual(seed: int, **settings: Any) -> Residual:
    torch.manual_seed(seed)
    model = Residual(**settings).eval()
    generator = torch.Generator().manual_seed(seed)
    for norm in (model.stem_norm, model.norm):
        # Away from 1 and 0, as in a trained network.
        if norm.affine:
            norm.weight.data.uniform_(0.5, 1.5, generator=generator)
            norm.bias.data.normal_(0, 0.2, generator=generator)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_var.uniform_(0.5, 1.5, generator=generator)
        norm.running_mean.normal_(0, 0.1, generator=generator)
    return model


def attack(model: Residual, seed: int, batch: int = 3) -> tuple[TapCut | None, Tensor]:
    images = torch.rand(batch, 3, 12, 12, generator=torch.Generator().manual_seed(seed))
    update = capture_gradient(model, images, torch.arange(batch))
    with torch.no_grad():
        inputs = update.normalisation.apply(images)
        true = model.norm(model.first(model.relu(model.stem_norm(model.stem(inputs))))).relu()
    return find_tap_cut(update, model), true


@pytest.mark.parametrize("seed", range(8))
def test_a_residual_network_gives_its_features_away_whatever_lies_behind(seed: int) -> None:
    model = residual(seed)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found, true = attack(model, seed)
    assert found is not None
    assert (found.convolution, found.batch_norm) == ("second", "norm")
    distance = torch.cdist(true.flatten(1).double(), found.activations.flatten(1).double())
    relative = distance.min(dim=1).values / true.flatten(1).norm(dim=1)
    assert float(relative.max()) < 1e-4
    assert float(relative.max()) < 10 * found.error
    assert sorted(distance.argmin(dim=1).tolist()) == [0, 1, 2]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_without_a_batch_norm_whose_bias_is_trained_the_lengths_are_not_known() -> None:
    found, _ = attack(residual(0, bias_free=True), 0)
    assert found is None


def test_a_convolution_that_is_not_the_only_reader_is_passed_over() -> None:
    class Twice(Residual):
        def forward(self, x: Tensor) -> Tensor:
            x = self.relu(self.stem_norm(self.stem(x)))
            middle = self.relu(self.norm(self.first(x)))
            pooled: Tensor = self.head((self.second(middle) + middle).mean(dim=(2, 3)))
            return pooled

    torch.manual_seed(0)
    model = Twice().eval()
    images = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    assert find_tap_cut(capture_gradient(model, images, torch.arange(2)), model) is None


@pytest.mark.parametrize("seed", range(12))
def test_an_image_that_the_network_is_sure_of_has_no_length_that_is_believed_wrongly(seed: int) -> None:
    model = residual(seed, width=64)
    images = torch.rand(3, 3, 12, 12, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        inputs = capture_gradient(model, images, torch.arange(3)).normalisation.apply(images)
        before = model.relu(model.stem_norm(model.stem(inputs)))
        true = model.norm(model.first(before)).relu()
        features = torch.relu(model.second(true) + model.skip(before)).mean(dim=(2, 3))
        direction = features[0] - features[1:].mean(dim=0)
        model.head.weight.normal_(0, 0.05, generator=torch.Generator().manual_seed(seed))
        model.head.weight[0] += 10 * direction / direction.square().sum()
    found = find_tap_cut(capture_gradient(model, images, torch.arange(3)), model, tolerance=10.0)
    if found is None:
        return
    distance = torch.cdist(true.flatten(1).double(), found.activations.flatten(1).double()).min(dim=1).values
    assert float((distance / true.flatten(1).norm(dim=1)).max()) < 10 * found.error


class ByKeyword(Residual):
    """Calls a convolution by the name of its argument."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem_norm(self.stem(x)))
        x = torch.relu(self.second(input=self.relu(self.norm(self.first(input=x)))) + self.skip(x))
        pooled: Tensor = self.head(x.mean(dim=(2, 3)))
        return pooled


def test_a_convolution_that_is_called_by_keyword_is_passed_over() -> None:
    torch.manual_seed(0)
    model = ByKeyword().eval()
    images = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    assert find_tap_cut(capture_gradient(model, images, torch.arange(2)), model) is None


def test_padding_may_be_given_by_name() -> None:
    model = residual(0)
    expected, _ = attack(model, 0)
    model.second.padding = "same"
    found, _ = attack(model, 0)
    assert found is not None
    assert expected is not None
    torch.testing.assert_close(found.activations, expected.activations)


def test_more_images_than_can_be_told_apart_cost_nothing() -> None:
    model = residual(0)
    images = torch.rand(65, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert find_tap_cut(capture_gradient(model, images, torch.arange(65) % 10), model) is None


def test_lengths_are_fitted_by_the_channels_that_say_something() -> None:
    """Channels in which no unit is open are zero on both sides, and would make any fit look good in the median."""
    generator = torch.Generator().manual_seed(0)
    columns = torch.randn(64, 3, generator=generator, dtype=torch.float64)
    lengths = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    target = columns @ (1 / lengths)
    noisy = target + 0.05 * target.std() * torch.randn(64, generator=generator, dtype=torch.float64)
    alive = torch.arange(64) >= 40
    found, misfit, uncertain = fit_lengths(columns * alive[:, None], noisy * alive)
    alone = fit_lengths(columns[alive], noisy[alive])
    assert torch.equal(found, alone[0])
    assert misfit == alone[1]
    assert torch.equal(uncertain, alone[2])
    assert bool(((found * lengths - 1).abs() <= 2 * uncertain).all())


def test_too_few_channels_that_say_something_are_no_fit() -> None:
    columns = torch.zeros(64, 3, dtype=torch.float64)
    columns[:2] = 1.0
    _, misfit, uncertain = fit_lengths(columns, columns.sum(dim=1))
    assert misfit == float("inf")
    assert bool(uncertain.isposinf().all())
