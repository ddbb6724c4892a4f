"""What is made of a module: its closed form, and the way back through it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from gradinversion.peeling.kinds import (
    MODULES,
    BatchNorm,
    BatchStatisticsNorm,
    Convolution,
    Identity,
    Kind,
    Layer,
    Linear,
    ModuleCall,
    Needs,
    Rectifier,
    Reshape,
    Sum,
    Told,
    kind_of,
    read_module,
)
from torch import Tensor, nn

_IMAGES = (4, 6, 6)
_UNEVEN = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


def _norm(module: nn.Module) -> nn.Module:
    """As after training."""
    for name, tensor in {**dict(module.named_parameters()), **dict(module.named_buffers())}.items():
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 2.0) if name == "running_var" else nn.init.normal_(tensor, 0.5, 0.3)
    return module


# Each module with the shape of one image's input, and the kind that it is read as.
_READ: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], type[Kind]]] = {
    "linear": (lambda: nn.Linear(6, 5), (6,), Linear),
    "linear without a bias": (lambda: nn.Linear(6, 5, bias=False), (6,), Linear),
    "convolution": (lambda: nn.Conv2d(4, 8, 3, 2, 1, groups=2), _IMAGES, Convolution),
    "dilated": (lambda: nn.Conv2d(4, 8, (3, 1), 1, (2, 0), dilation=2, bias=False), _IMAGES, Convolution),
    "same": (lambda: nn.Conv2d(4, 8, (5, 3), padding="same", dilation=(1, 2)), _IMAGES, Convolution),
    "valid": (lambda: nn.Conv2d(4, 8, 4, padding="valid"), _IMAGES, Convolution),
    "nothing to reflect": (lambda: nn.Conv2d(4, 8, 3, padding_mode="reflect"), _IMAGES, Convolution),
    "relu": (nn.ReLU, _IMAGES, Rectifier),
    "relu in place": (lambda: nn.ReLU(inplace=True), _IMAGES, Rectifier),
    "batch norm": (lambda: _norm(nn.BatchNorm2d(4)), _IMAGES, BatchNorm),
    "batch norm of vectors": (lambda: _norm(nn.BatchNorm1d(6)), (6,), BatchNorm),
    "batch norm without weights": (lambda: _norm(nn.BatchNorm2d(4, affine=False)), _IMAGES, BatchNorm),
    "batch norm without statistics": (
        lambda: nn.BatchNorm2d(4, track_running_stats=False),
        _IMAGES,
        BatchStatisticsNorm,
    ),
    "dropout": (nn.Dropout, _IMAGES, Identity),
    "dropout of channels": (nn.Dropout2d, _IMAGES, Identity),
    "identity": (nn.Identity, _IMAGES, Identity),
    "flatten": (nn.Flatten, _IMAGES, Reshape),
    "flatten in part": (lambda: nn.Flatten(2), _IMAGES, Reshape),
}


def _read(module: nn.Module, shape: tuple[int, ...], batch_statistics: bool = False) -> tuple[Layer | None, Tensor]:
    """What is made of the module, and its output for two images."""
    output = module.double().train(batch_statistics)(_images(shape))
    return read_module(ModuleCall(module, batch_statistics, tuple(output.shape[1:]))), output


def _images(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _tensors(module: Any, layer: Layer) -> Mapping[str, Tensor]:
    return {role: getattr(module, name) for role, name in layer.tensors.items()}


@pytest.mark.parametrize("name", _READ)
def test_a_module_is_read_as_what_it_does(name: str) -> None:
    build, shape, kind = _READ[name]
    module = build()
    layer, output = _read(module, shape)
    assert layer is not None
    assert type(layer.kind) is kind
    tensors = _tensors(module, layer)
    torch.testing.assert_close(layer.kind.forward([_images(shape)], tensors), output)
    entering = _images(shape).requires_grad_()
    arriving = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (expected,) = torch.autograd.grad(module(entering.clone()), entering, arriving)
    seen = layer.kind.seen([_images(shape)], output)
    (found,) = layer.kind.cotangents(arriving, seen, tensors)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", [name for name in _READ if getattr(_READ[name][0](), "bias", None) is not None])
def test_the_gradient_of_the_bias_is_a_sum_along_its_axis(name: str) -> None:
    build, shape, _ = _READ[name]
    module = build()
    layer, output = _read(module, shape)
    assert layer is not None
    tensors = _tensors(module, layer)
    (found,) = layer.kind.gradients(torch.ones_like(output), [_images(shape)], tensors, ["bias"])
    kept = layer.kind.bias_axis % output.dim()
    expected = torch.ones_like(output).sum(dim=[axis for axis in range(output.dim()) if axis != kept])
    torch.testing.assert_close(found, expected)


def test_every_module_of_the_table_is_tried() -> None:
    assert {kind_of(build()) for build, _, _ in _READ.values()} == set(MODULES.values())


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        pytest.param(nn.Conv2d(4, 8, 4, padding="same"), _IMAGES, marks=_UNEVEN),
        (nn.Conv2d(4, 8, 3, padding=1, padding_mode="reflect"), _IMAGES),
        (nn.Conv2d(4, 8, 3, padding="same", padding_mode="circular"), _IMAGES),
        (nn.Linear(6, 5), _IMAGES),
        (torch.nn.utils.parametrizations.weight_norm(nn.Linear(6, 5)), (6,)),
        (torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 8, 3)), _IMAGES),
        (nn.LeakyReLU(), _IMAGES),
        (nn.ReLU6(), _IMAGES),
    ],
    ids=["uneven", "reflected", "circular", "on every row", "computed weight", "computed kernel", "leaky", "capped"],
)
def test_what_has_no_closed_form_here_is_not_read(module: nn.Module, shape: tuple[int, ...]) -> None:
    assert _read(module, shape)[0] is None


def test_a_subclass_is_read_as_what_it_inherits_from() -> None:
    class Own(nn.ReLU):
        pass

    assert kind_of(Own()) is Rectifier
    assert kind_of(nn.Sequential()) is None


def test_batch_norm_on_the_batchs_own_statistics_has_no_way_back() -> None:
    module = _norm(nn.BatchNorm2d(4))
    layer, output = _read(module, _IMAGES, batch_statistics=True)
    assert layer is not None
    assert layer.kind.needs is Needs.INPUTS
    tensors = _tensors(module, layer)
    torch.testing.assert_close(layer.kind.forward([_images(_IMAGES)], tensors), output)
    assert layer.kind.inverse(output, torch.ones_like(output), tensors) is None


@pytest.mark.parametrize(
    "name", ["batch norm", "batch norm of vectors", "batch norm without weights", "identity", "flatten"]
)
def test_the_output_tells_the_input(name: str) -> None:
    build, shape, _ = _READ[name]
    module = build()
    layer, output = _read(module, shape)
    assert layer is not None
    spread = torch.full_like(output, 1e-3)
    found = layer.kind.inverse(output, spread, _tensors(module, layer))
    assert found is not None
    images = _images(shape)
    torch.testing.assert_close(found.values.reshape(images.shape), images)
    assert bool(found.heard.all())
    # An error of the output as large as the spread is one of the input as large as the new spread.
    off = layer.kind.inverse(output + spread, spread, _tensors(module, layer))
    assert off is not None
    torch.testing.assert_close((off.values - found.values).abs(), found.spread)


def test_a_channel_that_batch_norm_silences_is_not_heard() -> None:
    module = _norm(nn.BatchNorm2d(4))
    with torch.no_grad():
        module.get_parameter("weight")[1] = 0.0
    layer, output = _read(module, _IMAGES)
    assert layer is not None
    found = layer.kind.inverse(output, torch.ones_like(output), _tensors(module, layer))
    assert found is not None
    assert found.heard.flatten().tolist() == [True, False, True, True]
    assert bool(torch.isfinite(found.values).all())
    assert bool(torch.isfinite(found.spread).all())


def test_units_are_told_open_from_shut_by_a_relu_alone() -> None:
    output = _images(_IMAGES).clamp_min(0)
    uncertainty = torch.full_like(output, 1e-9)
    units = Rectifier().units(output, uncertainty)
    assert units is not None
    assert torch.equal(units.is_open, output > 0)
    assert Identity().units(output, uncertainty) is None


def test_one_part_of_a_sum_is_what_the_other_leaves() -> None:
    one, other = _images(_IMAGES), 2 * _images(_IMAGES).flip(1)
    heard = other > 0
    spread = torch.full_like(one, 3e-3)
    assert Sum().inverse(one + other, spread, {}) is None
    found = Sum().inverse(one + other, spread, {}, [Told(other, heard, torch.full_like(one, 4e-3))])
    assert found is not None
    torch.testing.assert_close(found.values, one)
    assert torch.equal(found.heard, heard)
    torch.testing.assert_close(found.spread, torch.full_like(one, 5e-3))


@pytest.mark.parametrize("name", ["batch norm", "batch norm of vectors", "identity", "flatten"])
def test_the_derivative_in_front_tells_that_behind(name: str) -> None:
    build, shape, _ = _READ[name]
    module = build()
    layer, output = _read(module, shape)
    assert layer is not None
    tensors = _tensors(module, layer)
    arriving = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (before,) = layer.kind.cotangents(arriving, layer.kind.seen([_images(shape)], output), tensors)
    found = layer.kind.carried(before, torch.ones_like(before), tensors)
    assert found is not None
    assert bool(found.heard.all())
    torch.testing.assert_close(found.values.reshape(arriving.shape), arriving)


def test_a_relu_and_a_layer_with_a_kernel_do_not_tell_the_derivative_behind() -> None:
    image = _images(_IMAGES)
    for kind in (Rectifier(), Convolution((3, 3), (1, 1), (1, 1), (1, 1), 1)):
        assert kind.carried(image, image, {}) is None
        assert kind.inverse(image, image, {}) is None


def test_where_an_operation_is_open() -> None:
    output = torch.tensor([[0.0, 1.0, 6.0]])
    assert Rectifier().is_open(output).tolist() == [[False, True, True]]
    assert Rectifier(6.0).is_open(output).tolist() == [[False, True, False]]
    assert Identity().is_open(output).tolist() == [[True, True, True]]


@pytest.mark.parametrize(
    ("module", "has_taps"),
    [
        (nn.Conv2d(4, 8, 3, 1, 1), True),
        (nn.Conv2d(4, 8, (1, 3), 1, (0, 1)), True),
        (nn.Conv2d(4, 8, 5, padding="same"), True),
        (nn.Conv2d(4, 8, 1), False),
        (nn.Conv2d(4, 8, 3, 2, 1), False),
        (nn.Conv2d(4, 8, 3), False),
        (nn.Conv2d(4, 8, 3, 1, 2, dilation=2), False),
        (nn.Conv2d(4, 8, 3, 1, 1, groups=2), True),
        (nn.BatchNorm2d(4), False),
        (nn.ReLU(), False),
    ],
)
def test_which_layers_have_taps(module: nn.Module, has_taps: bool) -> None:
    layer, _ = _read(module, _IMAGES)
    assert layer is not None
    assert layer.kind.has_taps == has_taps
