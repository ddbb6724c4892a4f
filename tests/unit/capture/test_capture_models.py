"""Models by name, and weights from files."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from gradinversion.capture import ModelError, ModelSource, load_model, weight_hash
from gradinversion.capture.models import model_names
from torch import nn


def test_convnet_is_the_standard_cell_network() -> None:
    model = load_model("convnet")
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert [type(layer).__name__ for layer in model.children()] == [
        *["Conv2d", "BatchNorm2d", "ReLU"] * 4,
        "Flatten",
        "Linear",
    ]
    assert [layer.stride[0] for layer in model.children() if isinstance(layer, nn.Conv2d)] == [2, 2, 1, 1]
    assert shapes["0.weight"] == (32, 3, 5, 5)
    assert shapes["9.weight"] == (32, 32, 5, 5)
    assert shapes["13.weight"] == (10, 32 * 8 * 8)
    torch.manual_seed(0)
    first = nn.Conv2d(3, 32, 5, 2, 2)
    assert torch.equal(model.get_parameter("0.weight"), first.weight)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_bundled_resnet_keeps_small_images_large(channels: int) -> None:
    model = load_model("cifar_resnet18", 7, (channels, 32, 32))
    images = torch.zeros(2, channels, 32, 32)
    assert model(images).shape == (2, 7)
    assert model.get_submodule("layer1")(model.get_submodule("conv1")(images)).shape == (2, 64, 32, 32)
    assert "cifar_resnet18" in model_names()


@pytest.mark.parametrize("size", [4, 30, 33, 64])
def test_convnet_takes_any_size(size: int) -> None:
    assert load_model("convnet", 7, size)(torch.zeros(1, 3, size, size)).shape == (1, 7)


def test_weights_are_a_function_of_the_seed_and_the_global_state_stays() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    hashes = [weight_hash(load_model("resnet18", seed=seed)) for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_torchvision_names_are_found_in_any_case() -> None:
    model = load_model("ResNet18", 100, 64)
    assert not model.training
    assert model.get_submodule("fc").out_features == 100


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("resnet81", "did you mean .*resnet18"),
        ("convnett", "did you mean convnet"),
        ("fcn_resnet50", "no model is called 'fcn_resnet50'"),
        ("raft_small", "no model is called"),
        ("", "no model is called ''"),
    ],
)
def test_unknown_names_get_the_nearest_ones(name: str, sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        load_model(name)


def test_a_model_that_the_memory_cannot_hold_is_a_sentence() -> None:
    with pytest.raises(ModelError, match="give fewer classes or smaller images"):
        load_model("convnet", 10**14, 32)


def test_image_size_that_does_not_fit_is_a_sentence() -> None:
    with pytest.raises(ModelError, match="cannot take 32x32 RGB images"):
        load_model("alexnet", 10, 32)


OWN = """
from torch import nn
def build(num_classes): return nn.Sequential(nn.Flatten(), nn.Linear(48, num_classes))
def fixed(): return nn.Sequential(nn.Flatten(), nn.Linear(48, 10))
class Net(nn.Sequential):
    def __init__(self, **options): super().__init__(nn.Flatten(), nn.Linear(48, options["num_classes"]))
def wrong(): return 3
def broken(): raise OSError("no such thing")
def features(): return nn.Flatten()
number = 4
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_models_for_test.py").write_text(OWN)
    (tmp_path / "own_broken_for_test.py").write_text("import a_package_that_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_models_for_test", raising=False)
    return "own_models_for_test"


@pytest.mark.parametrize("attribute", ["build", "fixed", "Net"])
def test_own_models_by_import_path(own_module: str, attribute: str) -> None:
    model = load_model(f"{own_module}:{attribute}", 10, 4)
    assert model(torch.zeros(2, 3, 4, 4)).shape == (2, 10)


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("own_models_for_test:biuld", "no callable 'biuld'; did you mean build"),
        ("own_models_for_test:number", "no callable 'number'"),
        ("own_models_for_test:", "no callable ''"),
        ("own_models_for_test:wrong", "returned a int; it must return a torch.nn.Module"),
        ("own_models_for_test:broken", "failed with OSError: no such thing"),
        ("own_models_for_test:features", "has no parameters"),
        ("own_broken_for_test:build", "a_package_that_is_not_there"),
        ("own_absent_for_test:build", "cannot be imported"),
        (":build", "cannot be imported"),
    ],
)
def test_own_models_that_fail_are_a_sentence(own_module: str, path: str, sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        load_model(path, 10, 4)


def test_own_model_with_other_classes_is_refused(own_module: str) -> None:
    with pytest.raises(ModelError, match=r"returns \(2, 10\) .* must return \(2, 7\)"):
        load_model(f"{own_module}:fixed", 7, 4)


@pytest.mark.parametrize("kind", ["safetensors", "pt", "nested", "parallel"])
def test_weights_from_files(tmp_path: Path, kind: str) -> None:
    source = load_model("convnet", seed=5)
    state = source.state_dict()
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "safetensors":
        safetensors.torch.save_file(state, path)
    elif kind == "nested":
        torch.save({"state_dict": state, "epoch": 3}, path)
    else:
        torch.save({f"module.{name}": t for name, t in state.items()} if kind == "parallel" else state, path)
    assert weight_hash(load_model("convnet", weights=str(path))) == weight_hash(source)


def test_all_wrong_weights_are_listed_at_once(tmp_path: Path) -> None:
    state = load_model("convnet").state_dict()
    del state["0.bias"], state["1.num_batches_tracked"]
    state["extra.weight"] = torch.zeros(1)
    state["13.bias"] = torch.zeros(12)
    state["3.bias"] = torch.full((32,), float("nan"))
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ModelError) as caught:
        load_model("convnet", weights=str(tmp_path / "w.pt"))
    for part in ("'0.bias' is missing", "'extra.weight' is not in", "(12,) in the file and (10,)", "'3.bias' holds"):
        assert part in str(caught.value)
    assert "num_batches_tracked" not in str(caught.value)


class _Opaque:
    pass


def test_weights_files_that_cannot_be_used_are_a_sentence(tmp_path: Path) -> None:
    for name, content in (("a.pt", b""), ("b.pt", b"garbage" * 50), ("c.safetensors", b"garbage" * 50)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match=name):
            load_model("convnet", weights=str(tmp_path / name))
    torch.save(_Opaque(), tmp_path / "object.pt")
    with pytest.raises(ModelError, match="never loaded"):
        load_model("convnet", weights=str(tmp_path / "object.pt"))
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    with pytest.raises(ModelError, match="no state dict"):
        load_model("convnet", weights=str(tmp_path / "list.pt"))
    with pytest.raises(ModelError, match="does not exist"):
        load_model("convnet", weights=str(tmp_path / "absent.pt"))
    (tmp_path / "w.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="must end in"):
        load_model("convnet", weights=str(tmp_path / "w.bin"))


@pytest.mark.parametrize("shape", [(1, 28, 28), (4, 28, 28), (3, 24, 40), (1, 5, 9)])
def test_models_are_built_for_images_of_any_shape(shape: tuple[int, int, int]) -> None:
    assert load_model("convnet", 7, shape)(torch.zeros(2, *shape)).shape == (2, 7)
    assert ModelSource("convnet", 7, shape).load()(torch.zeros(1, *shape)).shape == (1, 7)


def test_a_shape_of_square_rgb_images_is_the_same_as_their_side() -> None:
    assert weight_hash(load_model("convnet", 10, (3, 16, 16))) == weight_hash(load_model("convnet", 10, 16))


@pytest.mark.parametrize("shape", [(1, 32, 32), (4, 32, 48)])
def test_models_of_timm_are_built_for_the_channels(shape: tuple[int, int, int]) -> None:
    pytest.importorskip("timm")
    assert load_model("timm:resnet10t", 5, shape)(torch.zeros(1, *shape)).shape == (1, 5)


@pytest.mark.parametrize(
    ("name", "shape", "sentence"),
    [
        ("resnet18", (1, 32, 32), "torchvision's 'resnet18' takes RGB images, and these are 32x32 grey images"),
        ("resnet18", (4, 32, 24), "these are 32x24 images of 4 channels"),
        ("vit_b_16", (3, 32, 48), "'vit_b_16' takes square images, and these are 32x48"),
        ("own_models_for_test:build", (1, 8, 8), "cannot take 8x8 grey images"),
        ("own_models_for_test:build", (4, 2, 8), r"cannot take 2x8 images of 4 channels .*client\.channels"),
    ],
)
def test_a_shape_that_does_not_fit_is_named(
    own_module: str, name: str, shape: tuple[int, int, int], sentence: str
) -> None:
    with pytest.raises(ModelError, match=sentence):
        load_model(name, 10, shape)


def test_classes_that_do_not_fit_come_with_the_key_to_set(own_module: str) -> None:
    with pytest.raises(ModelError, match=r"returns \(2, 10\) for 2 images; .*\(2, 7\) logits; give client\.classes=10"):
        load_model(f"{own_module}:fixed", 7, 4)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    return tmp_path


def test_a_module_of_the_current_folder_is_found(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "own_of_here_for_test", raising=False)
    (elsewhere / "own_of_here_for_test.py").write_text(OWN)
    assert load_model("own_of_here_for_test:build", 5, 4)(torch.zeros(2, 3, 4, 4)).shape == (2, 5)
    assert sys.path[-1] == str(elsewhere)


def test_the_current_folder_hides_nothing_that_is_installed(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    (elsewhere / "colorsys.py").write_text(OWN)
    with pytest.raises(ModelError, match="'colorsys' has no callable 'build'"):
        load_model("colorsys:build", 10, 4)
