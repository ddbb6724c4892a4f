"""LPIPS from a local file. The weights here are random: what is tested is the wiring, not perception."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchmetrics
import torchvision
from gradinversion.audit import LpipsError, load_lpips
from safetensors.torch import save_file
from torch import Tensor


@pytest.fixture(scope="module")
def alexnet() -> dict[str, Tensor]:
    torch.manual_seed(0)
    state = torchvision.models.alexnet(weights=None).features.state_dict()
    return {f"features.{name}": tensor for name, tensor in state.items()}


@pytest.fixture(scope="module")
def weights(alexnet: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lpips") / "alexnet.safetensors"
    save_file(alexnet, path)
    return path


def _slow_lpips(alexnet: dict[str, Tensor], x: Tensor, y: Tensor) -> float:
    """Zhang et al., equation 1, layer by layer."""
    layers = torchvision.models.alexnet(weights=None).features
    layers.load_state_dict({name.removeprefix("features."): tensor for name, tensor in alexnet.items()})
    package = Path(torchmetrics.__file__).parent
    heads = torch.load(package / "functional/image/lpips_models/alex.pth", "cpu", weights_only=True)
    shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    x, y, total, depth = (2 * x - 1 - shift) / scale, (2 * y - 1 - shift) / scale, 0.0, 0
    for index in range(12):
        x, y = layers[index](x), layers[index](y)
        if index in (1, 4, 7, 9, 11):
            difference = (x / x.norm(dim=0) - y / y.norm(dim=0)).nan_to_num().square()
            total += float((heads[f"lin{depth}.model.1.weight"][0] * difference).sum(0).mean())
            depth += 1
    return total


@torch.no_grad()
def test_lpips_against_the_definition(alexnet: dict[str, Tensor], weights: Path) -> None:
    metric = load_lpips(weights)
    images, true = torch.rand(2, 3, 40, 40), torch.rand(2, 3, 40, 40)
    assert metric.backbone == "alex"
    expected = [_slow_lpips(alexnet, x, y) for x, y in zip(images, true, strict=True)]
    assert metric(images, true).tolist() == pytest.approx(expected, rel=1e-3)
    assert metric(true, true).tolist() == [0.0, 0.0]
    assert min(expected) > 0


def test_the_published_pth_form_is_read_too(alexnet: dict[str, Tensor], weights: Path, tmp_path: Path) -> None:
    torch.save(alexnet, tmp_path / "alexnet.pth")
    images, true = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32)
    assert torch.equal(load_lpips(tmp_path / "alexnet.pth")(images, true), load_lpips(weights)(images, true))


def test_images_that_lpips_cannot_take_are_named(weights: Path) -> None:
    metric = load_lpips(weights)
    with pytest.raises(LpipsError, match="1 x 64 x 64"):
        metric(torch.rand(1, 1, 64, 64), torch.rand(1, 1, 64, 64))
    with pytest.raises(LpipsError, match="at least 32 pixels"):
        metric(torch.rand(1, 3, 31, 64), torch.rand(1, 3, 31, 64))


def test_bad_files_get_a_sentence(alexnet: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(LpipsError, match="does not exist"):
        load_lpips(tmp_path / "none.pth")
    (tmp_path / "noise.pth").write_bytes(b"not weights")
    with pytest.raises(LpipsError, match="cannot be read"):
        load_lpips(tmp_path / "noise.pth")
    (tmp_path / "noise.safetensors").write_bytes(b"not weights")
    with pytest.raises(LpipsError, match="cannot be read"):
        load_lpips(tmp_path / "noise.safetensors")
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(LpipsError, match="neither AlexNet"):
        load_lpips(tmp_path / "other.safetensors")
    part = {name: tensor for name, tensor in alexnet.items() if not name.startswith("features.10")}
    save_file(part, tmp_path / "part.safetensors")
    with pytest.raises(LpipsError, match=r"features\.10\.weight is missing"):
        load_lpips(tmp_path / "part.safetensors")


def test_code_in_a_weights_file_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (Path(tmp_path / "ran"),)  # type: ignore[return-value]

    torch.save({"features.0.weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(LpipsError, match="cannot be read"):
        load_lpips(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()
