"""Which layers count as one straight chain. A chain that is not the model would give wrong anchors, silently."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gradinversion.capture import BatchNormMode
from gradinversion.peeling import peel
from gradinversion.peeling.chain import trace_chain
from gradinversion.peeling.check import confirm_chain
from torch import Tensor, nn

_SHAPE = (3, 8, 8)


class _Net(nn.Module):
    """Convolution, ReLU, convolution, ReLU, linear; the subclasses join them in other ways."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.relu1 = nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU()
        self.conv2, self.relu2 = nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU()
        self.flatten, self.head, self.side = nn.Flatten(), nn.Linear(512, 10), nn.Linear(512, 10)

    def lower(self, x: Tensor) -> Tensor:
        return self.relu1(self.conv1(x))

    def upper(self, x: Tensor) -> Tensor:
        return self.relu2(self.conv2(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.upper(self.lower(x)).flatten(1))


class _Modules(_Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.flatten(self.upper(self.lower(x))))


class _Transposed(_Net):  # the same memory, number of values and version
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.upper(self.lower(x).transpose(2, 3)).flatten(1))


class _TransposedHead(_Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.upper(self.lower(x)).permute(0, 2, 3, 1).flatten(1))


class _Flipped(_Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.upper(self.lower(x).flip(3)).flatten(1))


class _Folded(_Net):  # half images, twice as many
    def __init__(self) -> None:
        super().__init__()
        self.conv2 = nn.Conv2d(4, 4, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.upper(self.lower(x).view(-1, 4, 8, 8)).view(len(x), -1))


class _FunctionalRelu(_Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.conv2(F.relu(self.conv1(x)))).flatten(1))


class _FunctionalReluInPlace(_Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.conv2(self.lower(x)), inplace=True).flatten(1))


class _Scaled(_Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head((0.5 * self.upper(self.lower(x))).flatten(1))


class _ScaledInPlace(_Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.upper(self.relu1(self.conv1(x).mul_(0.5))).flatten(1))


class _ScaledBehindTheScenes(_Net):  # .data leaves no trace in the version
    def forward(self, x: Tensor) -> Tensor:
        x = self.lower(x)
        x.data.mul_(3.0)
        return self.head(self.upper(x).flatten(1))


class _Residual(_Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.lower(x)
        return self.head((self.upper(x) + x).flatten(1))


class _ResidualInPlace(_Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.lower(x)
        y = self.conv2(x)
        y += x
        return self.head(self.relu2(y).flatten(1))


class _Detached(_Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.upper(self.lower(x)).detach().flatten(1))


class _SharedRelu(_Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.relu1(self.conv2(self.lower(x))).flatten(1))


class _UnusedSide(_Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.upper(self.lower(x)).flatten(1)
        self.side(x)
        return self.head(x)


class _UnusedSideLast(_Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.upper(self.lower(x)).flatten(1)
        logits = self.head(x)
        self.side(x)
        return logits


class _Keyword(_Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.upper(self.relu1(self.conv1(input=x))).flatten(1))


class _Pooled(_Net):
    def __init__(self) -> None:
        super().__init__()
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.upper(self.pool(self.lower(x))).flatten(1))


class _Recurrent(nn.Module):  # a leaf that returns a tuple
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(24, 16, batch_first=True), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x.transpose(1, 2).flatten(2))[0][:, -1])


class _Scalar(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x.mean().tanh()


class _Gated(_Net):  # a leaf that returns a single number for the whole batch
    def __init__(self) -> None:
        super().__init__()
        self.gate = _Scalar()

    def forward(self, x: Tensor) -> Tensor:
        x = self.upper(self.lower(x)).flatten(1)
        return self.head(x * self.gate(x))


class _HalfConv(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(input, 0.5 * self.weight, self.bias, self.stride, self.padding)


class _SameConv(nn.Conv2d):  # a subclass that changes nothing
    pass


def _with_conv2(layer: type[nn.Conv2d]) -> _Net:
    net = _Net()
    net.conv2 = layer(8, 8, 3, 1, 1)
    return net


def _hooked() -> _Net:
    net = _Net()
    net.conv2.register_forward_hook(lambda module, inputs, output: 2 * output)
    return net


def _tied() -> _Net:
    net: Any = _Net()
    net.conv3 = nn.Conv2d(8, 8, 3, 1, 1)
    net.conv3.weight = net.conv2.weight
    net.forward = lambda x: net.head(F.relu(net.conv3(net.upper(net.lower(x)))).flatten(1))
    return net


def _tied_neighbours() -> nn.Sequential:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1), nn.Flatten(), nn.Linear(512, 10)
    )
    net[2].weight = net[1].weight
    return net


def _channels_last() -> nn.Module:
    return _Modules().to(memory_format=torch.channels_last)


# Each network with the modules of its chain. Where two are named, the chain begins at one of them.
_CHAINS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "plain": (_Net, "conv1"),
    "modules": (_Modules, "conv1"),
    "subclass that changes nothing": (lambda: _with_conv2(_SameConv), "conv1"),
    "transposed": (_Transposed, "conv2"),
    "transposed before the head": (_TransposedHead, "head"),
    "flipped": (_Flipped, "conv2"),
    "folded": (_Folded, "head"),
    "functional relu": (_FunctionalRelu, "head"),
    "functional relu in place": (_FunctionalReluInPlace, "head"),
    "scaled": (_Scaled, "head"),
    "scaled in place": (_ScaledInPlace, "relu1"),
    "scaled behind the scenes": (_ScaledBehindTheScenes, "conv2"),
    "residual": (_Residual, "head"),
    "residual in place": (_ResidualInPlace, "relu2"),
    "shared relu": (_SharedRelu, "head"),
    "two heads on one layer": (_UnusedSide, "head"),
    "two heads on one layer, the other last": (_UnusedSideLast, "head"),
    "keyword argument": (_Keyword, "relu1"),
    "pooling": (_Pooled, "conv2"),
    "recurrent": (_Recurrent, "head"),
    "gated": (_Gated, "head"),
    "another forward": (lambda: _with_conv2(_HalfConv), "relu2"),
    "hook": (_hooked, "relu2"),
    "one weight for two layers": (_tied, "head"),
    "one weight for two neighbours": (_tied_neighbours, "3"),
    "detached": (_Detached, "head"),
    "channels last": (_channels_last, "conv1"),
}


def _chain(model: nn.Module, mode: BatchNormMode = BatchNormMode.EVAL) -> list[str]:
    traced = trace_chain(model.eval(), _SHAPE, mode)
    return [link.name for link in confirm_chain(traced, model, _SHAPE, mode)]


@pytest.mark.parametrize("name", _CHAINS)
def test_the_chain_begins_where_the_model_stops_being_one(name: str) -> None:
    build, first = _CHAINS[name]
    assert _chain(build())[0] == first


@pytest.mark.parametrize("name", _CHAINS)
@pytest.mark.parametrize("labels", [[3], [2, 7]])
def test_no_anchor_is_silently_wrong(capture: Callable[..., Any], name: str, labels: list[int]) -> None:
    case = capture(_CHAINS[name][0](), labels)
    anchor = peel(case.update, case.model, case.labels).anchor
    assert anchor is not None
    if name == "detached" and anchor.module != "head":
        pytest.fail("nothing before the detach has a gradient")
    activations, cotangent = case.errors(anchor)
    assert activations < 1e-4
    assert cotangent < 1e-4
    assert anchor.error < 1e-4


def test_watching_alone_is_not_enough() -> None:
    # What confirm_chain is for: these chains look straight and are not what the model computes.
    for name in ("another forward", "hook", "scaled behind the scenes", "one weight for two neighbours"):
        model = _CHAINS[name][0]().eval()
        assert len(_chain(model)) < len(trace_chain(model, _SHAPE, BatchNormMode.EVAL)), name


def test_watching_tells_a_view_of_other_order_from_a_reshape() -> None:
    names = [link.name for link in trace_chain(_Transposed().eval(), _SHAPE, BatchNormMode.EVAL)]
    assert names == ["conv2", "relu2", "head"]


class _LogitsScaled(_Net):
    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * super().forward(x)


class _TwoHeadsAdded(_Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.upper(self.lower(x)).flatten(1)
        return self.side(x) + self.head(x)


class _LogitsOfManyPlaces(nn.Module):  # a linear layer on every pixel, averaged
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(2).transpose(1, 2)).mean(1)


class _DoubledHead(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, 2 * self.weight, self.bias)


def _weight_normed() -> nn.Module:
    return nn.Sequential(nn.Flatten(), torch.nn.utils.parametrizations.weight_norm(nn.Linear(192, 10)))


@pytest.mark.parametrize(
    "build",
    [
        _LogitsScaled,
        _TwoHeadsAdded,
        _LogitsOfManyPlaces,
        _weight_normed,
        lambda: nn.Sequential(nn.Flatten(), _DoubledHead(192, 10)),
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 10), nn.Softplus()),
        lambda: nn.Sequential(nn.Conv2d(3, 10, 8), nn.Flatten()),
    ],
)
def test_a_model_that_does_not_end_in_a_plain_linear_layer_is_refused(
    capture: Callable[..., Any], build: Callable[[], nn.Module]
) -> None:
    case = capture(build(), [0, 1])
    peeling = peel(case.update, case.model, case.labels)
    assert peeling.anchor is None
    assert "ends in a plain fully connected layer" in peeling.message


@pytest.mark.parametrize("width", [3, 5])
def test_a_linear_layer_on_every_row_ends_the_chain(capture: Callable[..., Any], width: int) -> None:
    model = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Flatten(), nn.Linear(24 * width, 10))
    case = capture(model, [4, 0])
    peeling = peel(case.update, case.model, case.labels)
    assert peeling.anchor is not None
    assert peeling.anchor.module == "1"
    assert max(case.errors(peeling.anchor)) < 1e-4
    assert "not of a kind that can be solved" in peeling.message


def _with_batch_norm(**options: Any) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8, **options), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)
    )


@pytest.mark.parametrize("mode", [BatchNormMode.TRAIN_SHARED, BatchNormMode.TRAIN_PRIVATE])
def test_batch_statistics_end_the_chain(capture: Callable[..., Any], mode: BatchNormMode) -> None:
    assert _chain(_with_batch_norm()) == ["0", "1", "2", "3", "4"]
    assert _chain(_with_batch_norm(), mode) == ["1", "2", "3", "4"]
    case = capture(_with_batch_norm(), [1, 4], batch_norm=mode)
    anchor = peel(case.update, case.model, case.labels).anchor
    assert anchor is not None
    assert anchor.module == "2"
    assert max(case.errors(anchor)) < 1e-4


def test_batch_norm_without_running_statistics_ends_the_chain_in_eval_too(capture: Callable[..., Any]) -> None:
    assert _chain(_with_batch_norm(track_running_stats=False)) == ["1", "2", "3", "4"]
    case = capture(_with_batch_norm(track_running_stats=False), [1, 4])
    assert max(case.errors(peel(case.update, case.model, case.labels).anchor)) < 1e-4


def test_shapes_are_those_of_one_image() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 10)).eval()
    links = trace_chain(model, _SHAPE, BatchNormMode.EVAL)
    assert [(link.input_shape, link.output_shape) for link in links] == [
        ((3, 8, 8), (4, 3, 3)),
        ((4, 3, 3), (4, 3, 3)),
        ((4, 3, 3), (36,)),
        ((36,), (10,)),
    ]


def test_the_model_and_the_random_numbers_are_left_as_they_were() -> None:
    model = _with_batch_norm().train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    before = torch.get_rng_state()
    for mode in BatchNormMode:
        confirm_chain(trace_chain(model, _SHAPE, mode), model, _SHAPE, mode)
    assert bool((torch.get_rng_state() == before).all())
    assert all(module.training for module in model.modules())
    assert all(bool((value == state[name]).all()) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
