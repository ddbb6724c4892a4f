"""The attack in this process: the same call, without Ray."""

from __future__ import annotations

from typing import Any

import gradinversion
import pytest
import ray
from gradinversion.agents import AgentsConfig
from gradinversion.capture import ClientConfig, simulate_client
from gradinversion.coordinator import AttackConfig, CoordinatorConfig, Mode, Status
from gradinversion.refusal import ConfigError

CONFIG = AttackConfig(agents=AgentsConfig(count=2, iterations=20), coordinator=CoordinatorConfig(period=10))


def test_it_finds_the_images_shows_its_way_and_starts_no_ray() -> None:
    settings = ClientConfig(batch_size=2, image_size=16)
    update, model, private = simulate_client(settings, 0)
    seen: list[Status] = []
    found = gradinversion.reconstruct(update, model, CONFIG, in_process=True, watch=seen.append)
    assert not ray.is_initialized()
    assert len(seen) == 2 * 2  # two agents, two rounds
    assert found.outcome.value == "all steps done"
    assert found.labels.labels.sort().values.tolist() == private.labels.sort().values.tolist()
    report = gradinversion.evaluate(found, private)
    assert report.psnr_mean is not None
    assert report.psnr_mean > 30  # peeling determines these images
    lines = repr(found).splitlines()
    assert len(lines) == 3
    assert "2 images of 3 x 16 x 16 from convnet" in lines[0]
    assert max(map(len, lines)) < 130


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"out": "out"}, "saves nothing"), ({"resume": True}, "saves nothing"), ({"restart": True}, "saves nothing")],
)
def test_what_does_not_go_with_it_is_refused(options: dict[str, Any], sentence: str) -> None:
    update, model, _ = simulate_client(ClientConfig(batch_size=1, image_size=16), 0)
    with pytest.raises(ConfigError, match=sentence):
        gradinversion.reconstruct(update, model, CONFIG, in_process=True, **options)


def test_agents_that_never_wait_are_refused() -> None:
    update, model, _ = simulate_client(ClientConfig(batch_size=1, image_size=16), 0)
    config = AttackConfig(coordinator=CoordinatorConfig(mode=Mode.ASYNC))
    with pytest.raises(ConfigError, match="one after the other; give sync"):
        gradinversion.reconstruct(update, model, config, in_process=True)
