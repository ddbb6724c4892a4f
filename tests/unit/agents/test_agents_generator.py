"""The contract of a user's generator: each way of breaking it is one sentence, found before the first step."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from gradinversion.agents import AgentsConfig, load_generator
from gradinversion.agents.generator import generate, latent_shape
from gradinversion.capture import ModelError
from safetensors.torch import save_file
from torch import nn

SOURCE = """
import torch
from torch import nn

class Good(nn.Module):
    latent_shape = (6,)
    def __init__(self, image_shape=(1, 4, 4)):
        super().__init__()
        self.image_shape = image_shape
        self.decode = nn.Linear(6, image_shape[0] * image_shape[1] * image_shape[2])
    def forward(self, z):
        return self.decode(z).sigmoid().unflatten(1, self.image_shape)

def good(image_shape):
    return Good(image_shape)

class Conditional(Good):
    def forward(self, z, labels):
        return super().forward(z) * (labels == 1).float()[:, None, None, None]

class Nameless(Good):
    latent_shape = None
class Odd(Good):
    latent_shape = (6.0,)
class Narrow(Good):
    latent_shape = (5,)
class Flat(Good):
    def forward(self, z):
        return super().forward(z).flatten(1)
class Single(Good):
    def forward(self, z):
        return super().forward(z)[:1]
class Pair(Good):
    def forward(self, z):
        return super().forward(z), z
class Broken(Good):
    def forward(self, z):
        return super().forward(z) / 0 * 0
class Centred(Good):
    def forward(self, z):
        return 2 * super().forward(z) - 1
class Noisy(Good):
    def forward(self, z):
        return (super().forward(z) + 1e-3 * torch.rand(1)) / 2
class Detached(Good):
    def forward(self, z):
        return super().forward(z).detach()
class Unlucky(Good):
    def __init__(self):
        raise OSError("no such disk")
def nothing():
    return None
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "a_generator.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield "a_generator"
    sys.modules.pop("a_generator", None)


def _load(name: str, weights: str | None = None) -> nn.Module:
    return load_generator(name, weights, 3, (1, 4, 4))


def test_a_generator_is_built_for_the_images_and_frozen(module: str) -> None:
    generator = load_generator(f"{module}:good", None, 2, (3, 5, 7))
    assert latent_shape(generator) == (6,)
    assert generate(generator, torch.zeros(2, 6), torch.zeros(2)).shape == (2, 3, 5, 7)
    assert not generator.training
    assert not any(parameter.requires_grad for parameter in generator.parameters())


def test_what_it_draws_is_the_same_every_time_and_leaves_the_global_numbers_alone(module: str) -> None:
    before = torch.get_rng_state()
    one, other = (_load(f"{module}:Good") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_one_that_takes_labels_is_given_them(module: str) -> None:
    generator = _load(f"{module}:Conditional")
    images = generate(generator, torch.zeros(3, 6), torch.tensor([0, 1, 2]))
    assert [float(image.amax()) > 0 for image in images] == [False, True, False]


@pytest.mark.wrong_shapes
@pytest.mark.parametrize(
    ("attribute", "sentence"),
    [
        ("Nameless", "has no latent_shape: give it the shape of one latent"),
        ("Odd", r"has the latent_shape \(6\.0,\)"),
        ("Narrow", r"cannot take latents of shape \(3, 5\) \(RuntimeError"),
        ("Flat", r"returns \(3, 16\) for 3 latents; it must return images of shape \(3, 1, 4, 4\)"),
        ("Single", r"returns \(1, 1, 4, 4\) for 3 latents"),
        ("Pair", "returns a tuple for 3 latents"),
        ("Broken", "returns pixels that are not finite"),
        ("Centred", r"returns pixels from -0\.\d+ to 0\.\d+; they must lie in \[0, 1\]"),
        ("Noisy", "returns other images for the same latents"),
        ("Detached", "have no derivative by the latents"),
        ("Unlucky", "building the generator .* failed with OSError: no such disk"),
        ("nothing", "returned a NoneType; it must return a torch.nn.Module"),
        ("god", "has no callable 'god'; did you mean good"),
    ],
)
def test_a_broken_contract_is_one_sentence(module: str, attribute: str, sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence) as caught:
        _load(f"{module}:{attribute}")
    assert "\n" not in str(caught.value)


def test_a_module_that_is_not_there() -> None:
    with pytest.raises(ModelError, match="the generator 'nowhere_at_all:build' cannot be imported"):
        _load("nowhere_at_all:build")


def test_weights_from_a_file(module: str, tmp_path: Path) -> None:
    wanted = {"decode.weight": torch.full((16, 6), 0.5), "decode.bias": torch.zeros(16)}
    save_file(wanted, tmp_path / "weights.safetensors")
    generator = _load(f"{module}:Good", str(tmp_path / "weights.safetensors"))
    assert torch.equal(generator.state_dict()["decode.weight"], wanted["decode.weight"])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"decode.bias": torch.zeros(16)}, "the weights in .* do not fit the generator"),
        ({"decode.weight": torch.full((16, 6), float("nan")), "decode.bias": torch.zeros(16)}, "not finite"),
        (None, "does not exist"),
    ],
)
def test_weights_that_do_not_fit(
    module: str, tmp_path: Path, content: dict[str, torch.Tensor] | None, sentence: str
) -> None:
    path = tmp_path / "weights.safetensors"
    if content is not None:
        save_file(content, path)
    with pytest.raises(ModelError, match=sentence):
        _load(f"{module}:Good", str(path))


def test_weights_are_never_unpickled(module: str, tmp_path: Path) -> None:
    torch.save({"decode.weight": object()}, tmp_path / "weights.pt")
    with pytest.raises(ModelError, match="which are never loaded"):
        _load(f"{module}:Good", str(tmp_path / "weights.pt"))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"generator": "?"}, "agents.generator is missing: this preset projects onto a generator of yours"),
        ({"generator": "stylegan"}, "agents.generator=stylegan: give module:callable"),
        ({"generator": "module:"}, "agents.generator=module:: give module:callable"),
        ({"generator_weights": "g.pt"}, "agents.generator_weights=g.pt are the weights of no generator"),
    ],
)
def test_settings_that_name_no_generator_are_refused(settings: dict[str, str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence.replace("?", r"\?")):
        AgentsConfig(**settings)  # type: ignore[arg-type]
