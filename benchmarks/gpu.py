"""Everything about GPUs that BENCHMARKS.md lists as not measured, in under ten minutes on one of today's.

    python -m benchmarks.gpu                        # on the first GPU; json in benchmarks/results/gpu.json
    python -m benchmarks.gpu --device cpu --quick   # the same code on a processor, to see that it runs

Parts, each by itself so that one that fails leaves the others: *equal*, the objective and its derivative on the device
beside the processor's; *step*, seconds and memory of a step of ResNet-50 at 224 px, whole and in parts; *register*,
seconds of a consensus of eight seeds; *attack*, a small attack to its end on the device beside the processor;
*sharing*, how many agents' steps one device makes in all when they share it (threads of one process). Agents in
processes of their own are measured by `benchmarks.scaling`, and the floor of a step by `benchmarks.step_cost`.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from gradinversion.agents import Agent, AgentsConfig, Objective, ObjectiveConfig
from gradinversion.audit import psnr
from gradinversion.capture import capture_gradient, load_images, load_model
from gradinversion.capture.forward import differentiable
from gradinversion.registration import register
from gradinversion.target import Target
from torch import Tensor, nn

RESULTS = Path(__file__).parent / "results" / "gpu.json"
_ALONE = ObjectiveConfig(group_weight=0.0)
Line = dict[str, Any]


def small(batch: int = 4) -> tuple[Target, Tensor]:
    """ConvNet-32 and photos, with the private images."""
    images, labels = load_images("photos", batch, 32)[0], torch.arange(batch)
    model = load_model("convnet", seed=0).eval()
    return Target(capture_gradient(model, images, labels), model, labels), images


def large(batch: int, size: int) -> Target:
    """ResNet-50 with random weights; the update is that of the first image, which costs as much to match."""
    torch.manual_seed(0)
    model: nn.Module = torchvision.models.resnet50(weights=None).eval()
    images, labels = torch.rand(batch, 3, size, size), torch.arange(batch)
    return Target(capture_gradient(model, images, labels), model, labels)


def timed(run: Callable[[], object], device: torch.device, times: int = 3) -> float:
    """The least of so many seconds, after one run that is not counted."""
    taken = []
    for _ in range(times + 1):
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - began)
    return min(taken[1:])


def derivative(objective: Objective, images: Tensor) -> Tensor:
    """Of the objective by the images."""
    entered = images.to(objective.device).requires_grad_()
    return torch.autograd.grad(objective.terms(entered)["total"], entered)[0]


def equal(device: torch.device, quick: bool) -> Line:
    """How far the device's numbers are from the processor's, relative."""
    target, _ = small()
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    ours, theirs = (derivative(Objective(target, _ALONE, place), images).cpu() for place in (device, "cpu"))
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    return {"derivative": float((ours - theirs).norm() / theirs.norm()), "tf32": tf32}


def step(device: torch.device, quick: bool) -> Line:
    """Seconds and memory of a step."""
    found: Line = {}
    for batch, at_once in ((2, 0), (2, 1)) if quick else ((8, 0), (8, 2), (16, 0), (48, 0), (48, 8)):
        objective = Objective(large(batch, 64 if quick else 224), _ALONE, device, at_once)
        images = torch.randn(batch, *objective.update.image_shape)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        seconds = timed(lambda: derivative(objective, images), device)  # noqa: B023 - called here alone
        peak = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
        found[f"batch {batch}, at once {at_once or batch}"] = {"seconds": seconds, "peak_mib": peak}
        del objective
    return found


def consensus(device: torch.device, quick: bool) -> Line:
    """Seconds of a consensus of eight seeds."""
    found: Line = {}
    for size, batch in ((64, 1),) if quick else ((64, 8), (224, 1), (224, 8)):
        candidates = torch.rand(8, batch, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
        found[f"{size} px, batch {batch}"] = timed(lambda: register(candidates), device)  # noqa: B023 - as above
    return found


def whole_attack(device: torch.device, quick: bool) -> Line:
    """A descent to its end on the device and on the processor."""
    target, private = small()
    steps, found = 20 if quick else 500, {}
    for place in dict.fromkeys((str(device), "cpu")):
        agent = Agent(target, _ALONE, AgentsConfig(iterations=steps), 0, place)
        began = time.perf_counter()
        agent.run(steps)
        images = target.update.normalisation.invert(agent.images).clamp(0, 1)
        found[place] = {"seconds": time.perf_counter() - began, "psnr": float(psnr(images, private).mean())}
    return found


def sharing(device: torch.device, quick: bool) -> Line:
    """Steps per second of several agents together."""
    target, _ = small()
    steps, found = 5 if quick else 100, {}
    for count in (1, 2) if quick else (1, 2, 4, 8):
        agents = [Agent(target, _ALONE, AgentsConfig(iterations=2 * steps), seed, device) for seed in range(count)]
        for agent in agents:
            agent.run(steps)
        threads = [threading.Thread(target=agent.run, args=(2 * steps,)) for agent in agents]
        # Each thread switches compilation and fused attention off and on again for all of them: at the end they are as
        # they were before.
        with differentiable(nn.Identity()):
            began = time.perf_counter()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            found[f"{count} agents"] = count * steps / (time.perf_counter() - began)
    return found


PARTS = {"equal": equal, "step": step, "register": consensus, "attack": whole_attack, "sharing": sharing}


def main(arguments: list[str] | None = None) -> None:
    """Print each part's figures and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="small sizes: to see that it runs")
    parser.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=list(PARTS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("There is no GPU that torch can use here: give --device cpu --quick to see that it runs.")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "processor"
    found: Line = {"device": name, "torch": torch.__version__, "quick": options.quick}
    for part in options.parts:
        began = time.perf_counter()
        try:
            found[part] = PARTS[part](device, options.quick)
        # Memory that runs out in one part says nothing about the others.
        except RuntimeError as error:
            found[part] = {"problem": str(error).splitlines()[0]}
        print(part, json.dumps(found[part]), f"({time.perf_counter() - began:.0f} s)", flush=True)
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
