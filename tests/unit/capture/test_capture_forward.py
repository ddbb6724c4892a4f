"""What a model may do in its forward pass, and what is refused in a sentence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gradinversion.capture import (
    BatchNormMode,
    LocalTraining,
    ModelError,
    capture_gradient,
    client_mode,
    find_final_layer,
    recover_labels,
    train_locally,
)
from gradinversion.peeling import peel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

GENERATOR = torch.Generator().manual_seed(0)
IMAGES, LABELS = torch.rand(2, 3, 32, 32, generator=GENERATOR), torch.tensor([3, 7])


class Net(nn.Module):
    """A small network, with something before its layers and something after."""

    def __init__(
        self, before: Callable[[Tensor], Tensor] = lambda x: x, after: Callable[[Tensor], Any] = lambda x: x
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, 16, 3, 1, 1), nn.ReLU(), nn.Flatten()]
        self.layers = nn.Sequential(*layers, nn.Linear(16 * 256, 10)).eval()
        self.before, self.after = before, after

    def forward(self, images: Tensor) -> Any:
        return self.after(self.layers(self.before(images)))


class Checkpointed(Net):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant

    def forward(self, images: Tensor) -> Tensor:
        middle: Tensor = checkpoint(self.layers[1:4], self.layers[:1](images), use_reentrant=self.reentrant)
        logits: Tensor = self.layers[4:](middle)
        return logits


def same_gradient(one: nn.Module, other: nn.Module, images: Tensor = IMAGES) -> None:
    ours, theirs = (capture_gradient(model, images, LABELS).gradients for model in (one, other))
    for name, gradient in ours.items():
        assert torch.allclose(gradient, theirs[name], atol=1e-7), name


def in_place(images: Tensor) -> Tensor:
    return images.mul_(2).sub_(0.1)


def test_a_model_that_writes_on_its_input_has_the_same_gradient_and_leaves_the_input() -> None:
    images = IMAGES.clone()
    for mode in BatchNormMode:
        capture_gradient(Net(in_place), images, LABELS, batch_norm=mode)
    assert torch.equal(images, IMAGES)
    same_gradient(Net(in_place), Net(lambda x: x * 2 - 0.1))
    update = capture_gradient(Net(in_place), IMAGES, LABELS)
    assert recover_labels(update, Net(in_place)).labels.tolist() == [3, 7]
    ours, theirs = (peel(update, Net(before), LABELS) for before in (in_place, lambda x: x * 2 - 0.1))
    assert ours.anchor is not None
    assert ours.message == theirs.message


def test_a_derivative_by_the_pixels_can_be_taken_of_a_model_that_writes_on_them() -> None:
    model, images = Net(in_place), IMAGES.clone().requires_grad_()
    with client_mode(model, BatchNormMode.EVAL):
        (found,) = torch.autograd.grad(model(images).sum(), images)
    (expected,) = torch.autograd.grad(model.layers(images * 2 - 0.1).sum(), images)
    assert torch.allclose(found, expected)
    assert torch.equal(images.detach(), IMAGES)


def test_a_model_of_a_fixed_batch_size_is_asked_with_the_clients() -> None:
    fixed = Net(lambda x: x.view(2, 3, 32, 32))
    update = capture_gradient(fixed, IMAGES, LABELS)
    assert recover_labels(update, fixed).labels.tolist() == [3, 7]
    assert len(find_final_layer(update, fixed).prior_features) == 16
    ours, theirs = peel(update, fixed, LABELS), peel(update, Net(), LABELS)
    assert ours.message == theirs.message
    images, labels = torch.rand(3, 3, 32, 32), torch.tensor([0, 1, 2])
    odd = Net(lambda x: x.view(3, 3, 32, 32))
    update = capture_gradient(odd, images, labels)
    assert len(find_final_layer(update, odd).prior_features) == 18
    assert recover_labels(update, odd).labels.tolist() == [0, 1, 2]
    assert peel(update, odd, labels).anchor is not None


@dataclass
class Output:
    logits: Tensor


@pytest.mark.parametrize(
    ("after", "told", "hook"),
    [
        (lambda x: (x, x), "a tuple of 2", lambda model, inputs, output: output[0]),
        (lambda x: [x], "a list of 1", lambda model, inputs, output: output[0]),
        (lambda x: {"logits": x, "loss": 1}, "a dictionary of 'logits', 'loss'", lambda m, i, output: output["logits"]),
        (lambda x: {"out": x}, r"a dictionary of 'out'", lambda model, inputs, output: output["out"]),
        (Output, "a Output", lambda model, inputs, output: output.logits),
    ],
)
def test_outputs_that_are_no_logits_are_refused_with_the_way_to_them(
    after: Callable[[Tensor], Any], told: str, hook: Any
) -> None:
    model = Net(after=after)
    with pytest.raises(ModelError, match=f"returns {told}; it must return its logits alone") as refused:
        capture_gradient(model, IMAGES, LABELS, loss=lambda output, labels: F.cross_entropy(output[0], labels))
    words = str(refused.value).split("output: ")[1].split(") makes")[0]
    assert torch.equal(eval(words, {"output": after(IMAGES)}), IMAGES)
    update = capture_gradient(Net(), IMAGES, LABELS)
    with pytest.raises(ModelError, match="logits alone"):
        recover_labels(update, model)
    with pytest.raises(ModelError, match="logits alone"):
        peel(update, model, LABELS)
    model.register_forward_hook(hook)
    same_gradient(model, Net())
    assert peel(update, model, LABELS).message == peel(update, Net(), LABELS).message


def test_checkpointed_activations_of_the_reentrant_kind_are_refused_and_the_others_are_not() -> None:
    with pytest.raises(ModelError, match="use_reentrant=False, which makes the same gradient"):
        capture_gradient(Checkpointed(True), IMAGES, LABELS)
    whole = Net(before=lambda x: x.requires_grad_())
    inner = whole.layers.forward
    whole.layers.forward = lambda x: checkpoint(inner, x, use_reentrant=True)  # type: ignore[method-assign]
    with pytest.raises(ModelError, match="use_reentrant=False"):  # and not a gradient of zero
        capture_gradient(whole, IMAGES, LABELS)
    same_gradient(Checkpointed(False), Net())
    update = capture_gradient(Net(), IMAGES, LABELS)
    with pytest.raises(ModelError, match="use_reentrant=False"), pytest.warns(UserWarning, match="requires_grad"):
        peel(update, Checkpointed(True), LABELS)
    assert peel(update, Checkpointed(False), LABELS).anchor is not None


@pytest.mark.parametrize("send", [capture_gradient, partial(train_locally, local=LocalTraining(0.1))])
def test_a_batch_that_the_model_does_not_take_is_a_sentence(send: Callable[..., object]) -> None:
    told = r"cannot take a batch of 2 images of shape \(3, 20, 20\) \(RuntimeError: mat1"
    with pytest.raises(ModelError, match=told):
        send(Net(), torch.rand(2, 3, 20, 20), LABELS)
    update = capture_gradient(Net(), IMAGES, LABELS)
    with pytest.raises(ModelError, match="cannot take a batch of 2 images"):
        recover_labels(update, Net(lambda x: x[:, :, 4:]))


def test_compiled_parts_run_as_they_are_written() -> None:
    # Of a module's call that other tests had compiled often enough, torch compiles nothing more.
    torch.compiler.reset()
    calls: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        calls.append(1)
        return graph.forward

    outside = Net()
    outside.layers = torch.compile(outside.layers, backend=backend)  # type: ignore[assignment]
    capture_gradient(outside, IMAGES, LABELS)
    within = Net()
    within.compile(backend=backend)
    same_gradient(within, Net())
    assert calls == []
    within(IMAGES)
    assert calls == [1]  # what the client compiled stays compiled


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches, self.cells, self.head = nn.Conv2d(3, 8, 8, 8), nn.LSTM(8, 16, batch_first=True), nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        steps, _ = self.cells(self.patches(images).flatten(2).mT)
        logits: Tensor = self.head(steps[:, -1])
        return logits


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=pytest.mark.skipif(
                not torch.cuda.is_available(),
                reason="needs a GPU, where cuDNN's recurrent layers have no second derivative",
            ),
        ),
    ],
)
def test_the_gradient_of_a_recurrent_layer_has_a_derivative(device: str) -> None:
    model = Recurrent().to(device)
    images = IMAGES.to(device).requires_grad_()
    with client_mode(model, BatchNormMode.EVAL):
        loss = F.cross_entropy(model(images), LABELS.to(device))
        found = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    (second,) = torch.autograd.grad(torch.stack([g.square().sum() for g in found]).sum(), images)
    assert bool(second.any())
    assert torch.backends.cudnn.enabled
