"""Batch norm as the client ran it: the gradient at the true images is the captured one in every mode."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from gradinversion.capture import (
    IMAGENET,
    BatchNormMode,
    CapturedUpdate,
    RunningStatistics,
    UpdateError,
    batch_norm_layers,
    batch_norm_targets,
    capture_gradient,
    client_mode,
    load_images,
    load_model,
    recover_batch_statistics,
)
from torch import Tensor, nn

MODES = list(BatchNormMode)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return load_images("photos", 4, 32)[0]


def relative_distance(model: nn.Module, images: Tensor, update: CapturedUpdate, mode: str) -> Tensor:
    """Differentiable distance between the gradient at the images and the captured one."""
    with client_mode(model, mode):
        loss = F.cross_entropy(model(IMAGENET.apply(images)), torch.arange(len(images)))
        found = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    target = list(update.gradients.values())
    distance = sum(((a - b).square().sum() for a, b in zip(found, target, strict=True)), torch.zeros(()))
    return distance / sum(float(b.square().sum()) for b in target)


@pytest.mark.parametrize("name", ["convnet", "resnet18"])
@pytest.mark.parametrize("mode", MODES)
def test_gradient_at_the_true_images_is_the_captured_one(name: str, mode: BatchNormMode, images: Tensor) -> None:
    model = load_model(name)
    labels = torch.arange(4)
    update = capture_gradient(model, images, labels, batch_norm=mode)
    assert float(relative_distance(model, images, update, mode).detach()) < 1e-10
    other = BatchNormMode.TRAIN_PRIVATE if mode is BatchNormMode.EVAL else BatchNormMode.EVAL
    assert float(relative_distance(model, images, update, other).detach()) > 0.1


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "densenet121", "in-place", "attention"])
@pytest.mark.parametrize("mode", [BatchNormMode.EVAL, BatchNormMode.TRAIN_PRIVATE])
def test_second_derivatives_exist(name: str, mode: BatchNormMode, images: Tensor) -> None:
    if name == "attention":
        model: nn.Module = _TinyAttention()
    elif name == "in-place":
        model = _InplaceConvnet()
    else:
        model = load_model(name)
    update = capture_gradient(model, images, torch.arange(4), batch_norm=mode)
    candidate = (images * 0.9 + 0.05).requires_grad_()
    (gradient,) = torch.autograd.grad(relative_distance(model, candidate, update, mode), candidate)
    assert bool(torch.isfinite(gradient).all())
    assert float(gradient.abs().max()) > 0


class _TinyAttention(nn.Module):
    """One layer of self-attention over patches."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 8, 8)
        self.attention = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.1)
        self.head = nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patch(images).flatten(2).transpose(1, 2)
        logits: Tensor = self.head(self.attention(tokens).mean(dim=1))
        return logits


class _InplaceConvnet(nn.Sequential):
    """The layers of a VGG block: in-place ReLU, max pooling, dropout."""

    def __init__(self) -> None:
        layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2, 2)]
        head = [nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(392, 20), nn.ReLU(inplace=True), nn.Dropout()]
        super().__init__(*layers, *head, nn.Linear(20, 10))


@pytest.mark.parametrize("mode", MODES)
def test_client_mode_leaves_no_trace(mode: BatchNormMode, images: Tensor) -> None:
    model = load_model("resnet18")
    model.get_submodule("layer1").train()
    flags = [module.training for module in model.modules()]
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    with client_mode(model, mode):
        model(images)
        # A candidate that diverged must not poison the running statistics.
        model(images * float("nan"))
        assert [layer.training for layer in batch_norm_layers(model).values()] == [mode is not BatchNormMode.EVAL] * 20
        assert not any(m.training for m in model.modules() if not isinstance(m, nn.BatchNorm2d))
    with pytest.raises(RuntimeError, match="stop"), client_mode(model, mode):
        raise RuntimeError("stop")
    assert [module.training for module in model.modules()] == flags
    assert all(layer.track_running_stats for layer in batch_norm_layers(model).values())
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[name]), name


@pytest.mark.parametrize("momentum", [0.1, 0.9, 1.0, None])
@pytest.mark.parametrize("warm_steps", [0, 3])
def test_shared_statistics_give_the_batch_back(momentum: float | None, warm_steps: int, images: Tensor) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=momentum), nn.ReLU(), nn.Flatten())
    model.append(nn.Linear(3600, 10))
    for _ in range(warm_steps):
        model.train()(torch.randn(5, 3, 32, 32))
    model.eval()
    before = {name: b.clone() for name, b in model.named_buffers()}
    update = capture_gradient(model, images, torch.arange(4), batch_norm="train_shared")
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())
    inputs = model[0](IMAGENET.apply(images)).detach()
    target = batch_norm_targets(update, model)["1"]
    assert target.exact
    torch.testing.assert_close(target.mean, inputs.mean(dim=(0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(target.var, inputs.var(dim=(0, 2, 3), correction=0), rtol=1e-4, atol=1e-5)


def test_recovery_is_the_exact_inverse_in_double_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(6, 3, 2, 2, dtype=torch.float64, generator=generator)
    layer = nn.BatchNorm2d(3, momentum=0.3).double()
    before = RunningStatistics(torch.zeros(3).double(), torch.ones(3).double(), 0)
    layer(batch)
    assert layer.running_mean is not None
    assert layer.running_var is not None
    found = recover_batch_statistics(before, RunningStatistics(layer.running_mean, layer.running_var, 1), 0.3, 24)
    torch.testing.assert_close(found.mean, batch.mean(dim=(0, 2, 3)), rtol=0, atol=1e-14)
    torch.testing.assert_close(found.var, batch.var(dim=(0, 2, 3), correction=0), rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("momentum", "count", "sentence"), [(0.0, 8, "momentum 0.0"), (1.5, 8, "momentum 1.5"), (0.1, 1, "at least 2")]
)
def test_statistics_that_cannot_be_recovered_are_an_error(momentum: float, count: int, sentence: str) -> None:
    statistics = RunningStatistics(torch.zeros(2), torch.ones(2))
    with pytest.raises(UpdateError, match=sentence):
        recover_batch_statistics(statistics, statistics, momentum, count)


@pytest.mark.parametrize("mode", [BatchNormMode.EVAL, BatchNormMode.TRAIN_PRIVATE])
def test_unshared_statistics_fall_back_to_the_servers(mode: BatchNormMode, images: Tensor) -> None:
    model = load_model("convnet")
    targets = batch_norm_targets(capture_gradient(model, images, torch.arange(4), batch_norm=mode), model)
    assert list(targets) == ["1", "4", "7", "10"]
    for name, target in targets.items():
        assert not target.exact
        assert torch.equal(target.mean, batch_norm_layers(model)[name].get_buffer("running_mean"))


def test_a_layer_used_twice_is_not_called_exact(images: Tensor) -> None:
    norm = nn.BatchNorm2d(3)
    model = nn.Sequential(norm, nn.ReLU(), norm, nn.Flatten(), nn.Linear(3072, 10))
    update = capture_gradient(model, images, torch.arange(4), batch_norm="train_shared")
    assert [target.exact for target in batch_norm_targets(update, model).values()] == [False]


def test_a_model_without_batch_norm_has_no_targets(images: Tensor) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
    for mode in MODES:
        update = capture_gradient(model, images, torch.arange(4), batch_norm=mode)
        assert batch_norm_targets(update, model) == {}


def test_one_value_per_feature_is_refused_before_the_run() -> None:
    model = load_model("resnet18")
    with pytest.raises(UpdateError, match=r"'layer4\.0\.bn1' sees 1 at 1 image"):
        capture_gradient(model, torch.rand(1, 3, 32, 32), torch.tensor([0]), batch_norm="train_private")
