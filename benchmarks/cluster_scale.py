"""What the coordinator has to do for many agents, and when registration in parts beside the agents pays."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from gradinversion.cluster.registering import count_parts, form_in_parts
from gradinversion.coordinator import Coordinator, Itinerary, Leg, Storage, form_consensus, parts_by_label
from gradinversion.registration import RegistrationConfig

from .cluster_attack import Size, make_attack
from .cluster_machine import load, local_ray, rounded
from .cluster_simulation import AgentHost, SimulatedGroup

# Large enough for each image to travel through the object store, as the real ones do: Ray puts results of less than
# 100 KiB into its messages.
SIMULATED = Size(images=16, side=96)
REAL = Size()
# Of one candidate image of 224 px on one core; `benchmarks.registration` measures it.
_REGISTRATION_SECONDS = 0.027
_LINK_BYTES_PER_SECOND = 10e9 / 8


def scale(
    agents: Sequence[int] = (8, 64, 512),
    size: Size = SIMULATED,
    rounds: int = 6,
    sharding_seeds: Sequence[int] = (2, 4, 8, 16, 32),
    sharding_images: int = 8,
) -> dict[str, Any]:
    """Rounds of many simulated agents, whole in the coordinator and in parts; the same on paper for real images; and
    both ways of forming a consensus on the same candidates.
    """
    measured = []
    for count in agents:
        for parts in (1, size.images):
            measured.append(_simulate(count, parts, size, rounds))
            print(measured[-1], flush=True)
    return {
        "batch_mb": rounded(size.batch_bytes / 1e6),
        "measured": measured,
        "paper": [_on_paper(count, whole) for count in agents for whole in (True, False)],
        "sharding": sharding(sharding_seeds, sharding_images),
    }


def _simulate(agents: int, parts: int, size: Size, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name, local_ray(size.object_store(agents)):
        update, model, config = make_attack(size, Path(name), agents, rounds)
        storage = Storage(name)
        group = SimulatedGroup(config, storage, parts, (size.images, 3, size.side, size.side))
        try:
            Coordinator(update, model, config, group, storage).run()
        finally:
            group.close()
        costs = group.costs
    # The first two rounds import and warm up.
    gaps = [after - before for before, after in pairwise(costs.rounds[2:])]
    processor = [after - before for before, after in pairwise(costs.processor[2:])]
    order, reply = message_bytes(agents, size)
    return {
        "agents": agents,
        "parts": parts,
        "round_seconds": rounded(statistics.median(gaps)),
        "processor_seconds": rounded(statistics.median(processor)),
        "consensus_seconds": rounded(statistics.median(costs.consensus[2:])),
        "images_mb": rounded((statistics.median(costs.received) + size.batch_bytes) / 1e6),
        "messages_mb": rounded(agents * (order + reply) / 1e6),
        "load": load(),
    }


def message_bytes(agents: int, size: Size) -> tuple[int, int]:
    """Of an order and of a reply without its images, as text: what Ray sends is of about that size."""
    itinerary = Itinerary(1)
    itinerary.enter(0, 0)
    order = itinerary.order(0, Leg(0, size.period, None, tuple(range(size.images))), 0)
    reply = AgentHost((1, 3, 1, 1), agents).run_round(0, order, [], [])[0]
    order_text, reply_text = (json.dumps(asdict(message), default=str) for message in (order, reply))
    return len(order_text), len(reply_text)


def _on_paper(agents: int, whole: bool) -> dict[str, Any]:
    """Real images: what comes into the coordinator and leaves it, and what a link and a core need for it."""
    order, reply = message_bytes(agents, REAL)
    images = REAL.batch_bytes * (agents if whole else 1)
    moved = images + REAL.batch_bytes + agents * (order + reply)
    registered = agents * REAL.images * _REGISTRATION_SECONDS
    parts = 1 if whole else min(REAL.images, count_parts(agents, REAL.batch_bytes))
    return {
        "agents": agents,
        "parts": parts,
        "coordinator_mb": rounded(moved / 1e6),
        "coordinator_memory_mb": rounded((2 * images + REAL.batch_bytes) / 1e6),
        "link_seconds_at_10_gbit": rounded(moved / _LINK_BYTES_PER_SECOND),
        "worker_mb": rounded(agents * REAL.batch_bytes / parts / 1e6) if not whole else 0.0,
        "registration_seconds_one_core_each": rounded(registered / parts),
    }


def sharding(seeds: Sequence[int], images: int, side: int = 224, repeats: int = 3) -> list[dict[str, Any]]:
    """Seconds to form a consensus whole in one process, and in parts over tasks, of the same candidates."""
    rows = []
    size = Size(images=images, side=side)
    with local_ray(size.object_store(max(seeds))):
        for method in ("none", "coarse_to_fine"):
            for count in seeds:
                # Registration takes its time: two sizes say what there is to say.
                if method == "none" or count in (seeds[0], seeds[min(2, len(seeds) - 1)]):
                    rows.append(_compare(method, count, size, repeats))
                    print(rows[-1], flush=True)
    return rows


def _compare(method: str, seeds: int, size: Size, repeats: int) -> dict[str, Any]:
    labels, config = torch.arange(size.images), RegistrationConfig(method=method)
    names = list(range(seeds))
    parts = parts_by_label(labels, size.images)
    generator = np.random.default_rng(0)
    base = generator.random((size.images, 3, size.side, size.side), dtype=np.float32)
    candidates = [base + 0.1 * generator.standard_normal(base.shape, dtype=np.float32) for _ in names]
    references = [[ray.put(batch[list(part)]) for part in parts] for batch in candidates]

    def whole() -> None:
        batches = []
        for row in references:
            arrays = ray.get(row)
            batch = torch.empty(size.images, *arrays[0].shape[1:])
            for part, array in zip(parts, arrays, strict=True):
                batch[list(part)] = torch.from_numpy(array.copy())
            batches.append(batch)
        form_consensus(torch.stack(batches), names, labels, 0, config)

    def in_parts() -> None:
        form_in_parts(parts, references, [], names, labels, 0, config)

    return {
        "method": method,
        "seeds": seeds,
        "mb": rounded(seeds * size.batch_bytes / 1e6),
        "whole_seconds": _median(whole, repeats),
        "parts_seconds": _median(in_parts, repeats),
        "load": load(),
    }


def _median(work: Callable[[], None], repeats: int) -> float:
    work()  # imports, and the tasks' processes
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return rounded(statistics.median(taken))
