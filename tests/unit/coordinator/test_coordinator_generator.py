"""Runs whose agents descend the latents of a user's generator."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gradinversion.agents import ObjectiveConfig
from gradinversion.capture import CapturedUpdate, ModelError
from gradinversion.coordinator import AttackConfig, CheckpointError
from gradinversion.coordinator.identity import find_generator, identity
from safetensors.torch import save_file
from torch import Tensor

SOURCE = """
from torch import nn

class Decoder(nn.Module):
    latent_shape = (5,)
    def __init__(self):
        super().__init__()
        self.decode = nn.Linear(5, 192)
    def forward(self, latents):
        return self.decode(latents).sigmoid().unflatten(1, (3, 8, 8))
"""


def _weights(scale: float) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    return {"decode.weight": scale * torch.randn(192, 5, generator=random), "decode.bias": torch.zeros(192)}


@pytest.fixture
def config(config: AttackConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AttackConfig]:
    (tmp_path / "some_decoder.py").write_text(SOURCE)
    save_file(_weights(1.0), tmp_path / "decoder.safetensors")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    agents = replace(
        config.agents,
        generator="some_decoder:Decoder",
        generator_weights=str(tmp_path / "decoder.safetensors"),
        patience=0.0,
        noise=0.2,
    )
    yield replace(config, agents=agents, objective=ObjectiveConfig(group_weight=0.1))
    sys.modules.pop("some_decoder", None)


class _Killed(KeyboardInterrupt):
    pass


def kill() -> None:
    raise _Killed


@pytest.mark.parametrize("killed_before", [1, 3])
def test_a_resumed_run_gives_the_same_images(run: Callable[..., Any], tmp_path: Path, killed_before: int) -> None:
    whole = run()()
    with pytest.raises(_Killed):
        run(out=tmp_path / "out", before={killed_before: kill})()
    again = run(out=tmp_path / "out", resume=True)()
    assert torch.equal(again.images, whole.images)
    assert all(
        torch.equal(one.images, other.images) for one, other in zip(again.candidates, whole.candidates, strict=True)
    )


def test_seeds_are_images_of_the_generator_and_a_late_one_joins(
    run: Callable[..., Any], config: AttackConfig, update: CapturedUpdate
) -> None:
    one = run()
    one.group.here = {0, 1}
    one.before = {3: lambda: None}
    one.at_presence(lambda looks: one.group.here.add(2) if len(one.group.rounds) == 3 else None)
    result = one()
    assert one.group.rounds[3][2].origin.start is not None
    generator = find_generator(config, update)
    assert generator is not None
    for candidate in result.candidates:
        # A linear decoder: the logits of its images lie in the span of its five directions.
        logits = update.normalisation.invert(candidate.images).clamp(1e-6, 1 - 1e-6).logit().flatten(1)
        directions = _weights(1.0)["decode.weight"]
        latents = torch.linalg.lstsq(directions, logits.T).solution
        torch.testing.assert_close(directions @ latents, logits.T, rtol=1e-3, atol=2e-2)


def test_a_run_with_other_weights_of_the_same_name_is_not_continued(
    run: Callable[..., Any], tmp_path: Path, config: AttackConfig
) -> None:
    with pytest.raises(_Killed):
        run(out=tmp_path / "out", before={2: kill})()
    save_file(_weights(0.5), tmp_path / "decoder.safetensors")
    with pytest.raises(CheckpointError, match="generator"):
        run(out=tmp_path / "out", resume=True)()


def test_the_same_weights_may_lie_elsewhere(config: AttackConfig, update: CapturedUpdate, tmp_path: Path) -> None:
    save_file(_weights(1.0), tmp_path / "copy.safetensors")
    moved = replace(config, agents=replace(config.agents, generator_weights=str(tmp_path / "copy.safetensors")))
    known = [identity(one, update, find_generator(one, update)) for one in (config, moved)]
    assert known[0] == known[1]
    assert known[0]["generator"]


def test_a_generator_that_does_not_fit_is_refused_before_any_work(
    run: Callable[..., Any], config: AttackConfig
) -> None:
    with pytest.raises(ModelError, match="has no callable 'Decoded'; did you mean Decoder"):
        run(replace(config, agents=replace(config.agents, generator="some_decoder:Decoded")))
