"""Everyday models on a real local Ray: attacked in other processes, or refused without a number of the update."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torchvision  # type: ignore[import-untyped,unused-ignore]
from gradinversion.agents import AgentsConfig
from gradinversion.capture import ModelError, capture_gradient
from gradinversion.cluster import reconstruct
from gradinversion.coordinator import AttackConfig, Phase
from torch import Tensor, nn

IMAGES, LABELS = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)), torch.tensor([3, 7])
CONFIG = AttackConfig(labels="3,7", agents=AgentsConfig(count=1, iterations=3))


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 5, 4, 2), nn.Hardsigmoid(), nn.Flatten(), nn.Linear(128, 10)).eval()


class Everyday(nn.Module):
    """It holds a lock, an open log, and its last activations; one weight is parametrised."""

    def __init__(self, log: object) -> None:
        super().__init__()
        self.layers, self.lock, self.log = layers(), threading.Lock(), log
        nn.utils.parametrizations.weight_norm(self.layers[0])

    def forward(self, images: Tensor) -> Tensor:
        with self.lock:
            print("a pass", file=self.log)  # type: ignore[call-overload]
            self.features = self.layers[:3](images)
            logits: Tensor = self.layers[3](self.features)
        return logits


def test_a_model_with_a_lock_a_log_and_its_activations_is_attacked(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        model = nn.DataParallel(Everyday(log))
        update = capture_gradient(model, IMAGES, LABELS)
        found = reconstruct(update, model, CONFIG)
    assert found.images.shape == IMAGES.shape
    assert found.labels.labels.tolist() == [3, 7]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], nn.Module]]:
    """A class of a module that was found through a folder added to the path, and that uses a package beside it."""
    (tmp_path / "parts_of_the_notebook").mkdir()
    (tmp_path / "parts_of_the_notebook" / "__init__.py").write_text("SCALE = 2.0\n")
    (tmp_path / "net_of_the_notebook.py").write_text(
        "import parts_of_the_notebook\nfrom torch import nn\nclass Net(nn.Sequential):\n"
        "    def forward(self, images):\n        return super().forward(images * parts_of_the_notebook.SCALE)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    from net_of_the_notebook import Net  # type: ignore[import-not-found]

    yield lambda: Net(*layers())
    for name in ("net_of_the_notebook", "parts_of_the_notebook"):
        del sys.modules[name]


def test_a_model_of_a_notebooks_folder_is_attacked(own: Callable[[], nn.Module]) -> None:
    model = own().eval()
    found = reconstruct(capture_gradient(model, IMAGES, LABELS), model, CONFIG)
    assert found.images.shape == IMAGES.shape


def test_what_cannot_be_sent_is_named_and_no_number_is_shown() -> None:
    model = layers()
    model.source = (number for number in range(3))  # type: ignore[assignment]
    update = capture_gradient(model, IMAGES, LABELS)
    with pytest.raises(ModelError, match=r"its attribute 'source' \(a generator\)") as refused:
        reconstruct(update, model, CONFIG)
    assert len(str(refused.value)) < 400
    assert "tensor" not in str(refused.value)


class Deformed(nn.Module):
    """torchvision's deformable convolution has no second derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.warped = layers(), torchvision.ops.DeformConv2d(3, 3, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(self.warped(images, images.new_zeros(len(images), 18, 16, 16)))
        return logits


def test_a_model_whose_gradient_has_no_derivative_is_refused_before_the_agents() -> None:
    model, seen = Deformed(), list[Phase]()
    update = capture_gradient(model, IMAGES, LABELS)
    with pytest.raises(ModelError, match=r"no derivative by the images.*deform_conv2d.*; replace the operation"):
        reconstruct(update, model, CONFIG, watch=lambda status: seen.append(status.phase))
    assert Phase.OPTIMISING not in seen
