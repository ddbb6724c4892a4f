"""An audit over two nodes, one of which is lost in the middle: every cell ends, and what had ended is not run again."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray
from gradinversion.settings.run import RunConfig, load_config
from gradinversion.sweep import grid
from gradinversion.sweep.audit import run_audit
from rich.console import Console

from .nodes import Nodes, wait_until

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds a node's processes through /proc")
TINY = (
    "sweep.batch_sizes=1",
    "sweep.defences=none,noise:1,clip:0.1",
    "sweep.bn=eval",
    "sweep.side_by_side=2",
    "client.image_size=16",
    "agents.count=1",
    "agents.iterations=30",
    "agents.cpus=1",
    "agents.patience=1e6",
    "coordinator.period=10",
    "peeling.enabled=false",
)


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[Nodes]:
    nodes = Nodes()
    for _ in range(2):
        nodes.add(cpus=2)
    yield nodes
    nodes.close()


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """Three cells, each of an attack and one control: the others would only take longer."""
    monkeypatch.setattr(grid, "CONTROLS", ("constant_image", "other_images"))
    return load_config([f"out={tmp_path}/out", *TINY])


def finished(config: RunConfig) -> dict[str, int]:
    """When each cell that has ended wrote its result."""
    return {path.parent.name: path.stat().st_mtime_ns for path in Path(config.out).glob("cells/*/cell.json")}


def begun(config: RunConfig) -> set[str]:
    """The cells of which an attack or a control has a checkpoint, and no more."""
    places = Path(config.out).glob("cells/*/**/checkpoints/*/manifest.json")
    return {path.relative_to(Path(config.out) / "cells").parts[0] for path in places} - set(finished(config))


def busiest(nodes: Nodes) -> Any:
    """The worker node with most of the coordinators, then of the agents, of cells; None while there is none."""
    alive = ray._private.state.actors(actor_state_name="ALIVE").values()
    at = [(actor["Address"]["NodeID"], actor["ActorClassName"].rpartition(".")[2]) for actor in alive]

    def load(node: Any) -> tuple[int, int]:
        return at.count((node.node_id, "CoordinatorProcess")), at.count((node.node_id, "AgentProcess"))

    found = max(nodes.workers(), key=load)
    return found if any(load(found)) else None


@pytest.mark.slow
def test_a_node_is_lost_in_the_middle_of_a_grid(local_ray: Nodes, config: RunConfig) -> None:
    text = io.StringIO()
    with ThreadPoolExecutor(1) as thread:
        audit = thread.submit(run_audit, config, Console(file=text, width=200, color_system=None))

        def amid() -> Any:
            assert not audit.done(), text.getvalue()
            return busiest(local_ray) if finished(config) and begun(config) else None

        node = wait_until(amid, "one cell has ended and one is at work")
        before = finished(config)
        local_ray.kill(node)
        wait_until(audit.done, "the audit ends")
        audit.result()
    out = Path(config.out)
    cells = json.loads((out / "audit.json").read_text())["cells"]
    assert [(cell["state"], cell["problems"]) for cell in cells] == [("done", [])] * 3, text.getvalue()
    assert [cell["iterations"] for cell in cells] == [30] * 3
    assert all(cell["label_scores"] is not None and cell["control"] is not None for cell in cells)
    assert (out / "audit.html").read_text().count("cells/") >= 3
    assert all((out / cell["folder"] / "report.html").exists() for cell in cells)
    after = finished(config)
    assert {name: after[name] for name in before} == before, "a cell that had ended was run again"
    assert text.getvalue().count("[1/3]") == text.getvalue().count("[3/3]") == 1
