"""The shipped cluster files: valid for Ray and KubeRay, secure by default, with commands that work."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from gradinversion.refusal import ConfigError
from gradinversion.settings.run import load_config
from packaging.version import Version
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parents[3]
FIELDS = json.loads((Path(__file__).parent / "rayjob_fields.json").read_text())
LAUNCHED = ("gpu.yaml", "gpu-gcp.yaml", "local.yaml")
CLOUDS = ("gpu.yaml", "gpu-gcp.yaml")
FILES = (*LAUNCHED, "kuberay.yaml")
VERBS = ("attack", "watch", "stop", "report")
HEALTH = ("RAY_health_check_period_ms=", "RAY_health_check_timeout_ms=", "RAY_health_check_failure_threshold=")
_KNOWS_PRIORITY = Version("2.56")
TYPES: dict[str, Any] = {"string": str, "integer": int, "number": int | float, "boolean": bool, "object": dict}


def text_of(name: str) -> str:
    return (ROOT / "cluster" / name).read_text(encoding="utf-8")


def documents(text: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(text))


def commands(text: str) -> list[str]:
    """The commands in the comment that opens the file."""
    opening = text[: text.index("\n\n")].splitlines()
    return [line.removeprefix("#").strip() for line in opening if line.startswith("#   ")]


def words_given(text: str) -> Iterator[tuple[str, list[str]]]:
    """Verb and ``key=value`` words of every run that the file starts or looks at."""
    lines = commands(text) + [part["spec"]["entrypoint"] for part in documents(text) if part.get("kind") == "RayJob"]
    for line in lines:
        found = re.search(r"(?:run\.py(?: --)?|gradinversion) ((?:\w+ )?out=[^']*)", line)
        if found:
            first, *rest = shlex.split(found[1])
            yield ("attack", [first, *rest]) if "=" in first else (first, rest)


def problems_of_words(text: str) -> list[str]:
    found = []
    for verb, words in words_given(text):
        if verb not in VERBS:
            found.append(f"{verb} is not a verb")
        try:
            load_config(words)
        except ConfigError as error:
            found += error.problems
    return found


def problems_of_schema(text: str) -> list[str]:
    """What Ray's own preparation and schema say against a file of the cluster launcher."""
    config = yaml.safe_load(text)
    if Version(ray.__version__) < _KNOWS_PRIORITY and isinstance(config, dict):
        for kind in config.get("available_node_types", {}).values():
            kind.pop("priority", None)  # which the files say must go with an older one
    try:
        validate_config(prepare_config(config))
    except (jsonschema.ValidationError, ValueError, AssertionError, KeyError) as error:
        return [str(error)]
    return []


def problems_of_launch(text: str) -> list[str]:
    """What is not secure, not installed or not recoverable in a file of the cluster launcher."""
    config, found = yaml.safe_load(text), []
    mounts, setup = config["file_mounts"], "\n".join(config["setup_commands"])
    if mounts.get("~/gradinversion") != "." or not {".git", ".venv", "out"} <= set(config.get("rsync_exclude", ())):
        found.append("the repository is not mounted, or with what does not belong to it")
    if not re.search(r"pip install .*gradinversion", setup):
        found.append("the package is not installed")
    if "~/.ray/auth_token" not in mounts.values() or "RAY_AUTH_MODE=token" not in setup:
        found.append("the token is not mounted, or shells are not in token mode")
    for role in ("head", "worker"):
        started = [command for command in config[f"{role}_start_ray_commands"] if "ray start" in command]
        if len(started) != 1 or "export RAY_AUTH_MODE=token" not in started[0].partition("ray start")[0]:
            found.append(f"token authentication is off on the {role}")
    head = next(command for command in config["head_start_ray_commands"] if "ray start" in command)
    if "--dashboard-host=127.0.0.1" not in head or "0.0.0.0" in text:
        found.append("the dashboard listens publicly")
    if not all(name in head.partition("ray start")[0] for name in HEALTH):
        found.append("dead nodes are noticed late")
    return found


def problems_of_type(value: Any, declared: Any, path: str) -> Iterator[str]:
    """Where a value departs from a tree of fields such as those of rayjob_fields.json."""
    if isinstance(declared, dict) and "$ref" in declared:
        declared = FIELDS["definitions"][declared["$ref"]]
    if isinstance(declared, list):
        if not isinstance(value, list):
            yield f"{path} is not a list"
            return
        for number, item in enumerate(value):
            yield from problems_of_type(item, declared[0], f"{path}[{number}]")
    elif isinstance(declared, dict):
        yield from problems_of_object(value, declared, path)
    elif declared.startswith("="):
        if value not in declared[1:].split("|"):
            yield f"{path} is {value!r}, allowed are {declared[1:]}"
    else:
        kinds = tuple(TYPES[name] for name in declared.split("|"))
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            yield f"{path} is {value!r}, not {declared}"


def problems_of_object(value: Any, declared: dict[str, Any], path: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{path} is not an object"
        return
    fields = {name.removesuffix("!"): kind for name, kind in declared.items()}
    for name in declared:
        if name.endswith("!") and name[:-1] not in value:
            yield f"{path}.{name[:-1]} is missing"
    for name, item in value.items():
        if name in fields or "*" in fields:
            yield from problems_of_type(item, fields.get(name, fields.get("*")), f"{path}.{name}")
        else:
            yield f"{path}.{name} is not a field"


def declared_kinds() -> dict[str, Any]:
    """The trees of the kinds in kuberay.yaml: a RayJob's own, and the others' from parts of it."""
    head = {"apiVersion!": "string", "kind!": "string", "metadata!": {"$ref": "metadata"}}
    selector = {"$ref": "labelSelector"}
    policy = {"podSelector!": selector, "policyTypes": ["=Ingress|Egress"], "ingress": [{"$ref": "ingressRule"}]}
    deployment = {"replicas": "integer", "selector!": selector, "template!": {"$ref": "podTemplate"}}
    return {
        "ray.io/v1 RayJob": FIELDS["RayJob"],
        "networking.k8s.io/v1 NetworkPolicy": head | {"spec!": policy},
        "v1 Service": head | {"spec!": {"$ref": "serviceSpec"}},
        "apps/v1 Deployment": head | {"spec!": deployment},
    }


def problems_of_kubernetes(text: str) -> list[str]:
    found, kinds = list[str](), declared_kinds()
    parts = documents(text)
    for part in parts:
        kind = f"{part['apiVersion']} {part['kind']}"
        found += problems_of_type(part, kinds[kind], part["kind"]) if kind in kinds else [f"{kind} is unknown"]
    job = next(part["spec"] for part in parts if part["kind"] == "RayJob")
    cluster = job["rayClusterSpec"]
    pods = [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    pods += [part["spec"]["template"]["spec"] for part in parts if part["kind"] == "Deployment"]
    if cluster.get("authOptions", {}).get("mode") != "token" or "secretName" not in cluster["authOptions"]:
        found.append("token authentication is off")
    if not all(is_confined(pod) for pod in pods):
        found.append("a pod may run as root")
    if not any(part["kind"] == "NetworkPolicy" for part in parts) or "0.0.0.0" in text:
        found.append("the pods are open to every other")
    if not cluster.get("enableInTreeAutoscaling") or "redisAddress" not in cluster.get("gcsFaultToleranceOptions", {}):
        found.append("no autoscaling, or no Redis")
    if "resume=true" not in job["entrypoint"] or not job.get("backoffLimit"):
        found.append("a cluster that is lost is not made again")
    return found + [line for pod in pods for line in problems_of_grace(pod)]


def is_confined(pod: dict[str, Any]) -> bool:
    inner = [container.get("securityContext", {}) for container in pod["containers"]]
    return pod.get("securityContext", {}).get("runAsNonRoot") is True and all(
        context.get("allowPrivilegeEscalation") is False and context["capabilities"] == {"drop": ["ALL"]}
        for context in inner
    )


def problems_of_grace(pod: dict[str, Any]) -> Iterator[str]:
    """A worker that drains longer than Kubernetes waits is killed while it does."""
    environment = {entry["name"]: entry.get("value") for entry in pod["containers"][0].get("env", ())}
    drain = float(environment.get("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", 0))
    if drain >= pod.get("terminationGracePeriodSeconds", 30):
        yield "the pod is killed before it has drained"


def problems(name: str, text: str) -> list[str]:
    """All that is wrong with one of the files."""
    found = problems_of_words(text)
    if name == "kuberay.yaml":
        return found + problems_of_kubernetes(text)
    schema = problems_of_schema(text)
    return found + (schema or problems_of_launch(text))


@pytest.mark.parametrize("name", FILES)
def test_a_shipped_file_has_no_problem(name: str) -> None:
    assert problems(name, text_of(name)) == []


@pytest.mark.parametrize("name", FILES)
def test_a_file_opens_with_every_command_that_uses_it(name: str) -> None:
    shown = "\n".join(commands(text_of(name)))
    assert "ray get-auth-token --generate" in shown
    assert {verb for verb, _ in words_given(text_of(name))} >= {"attack", "watch", "stop"}
    used = ("kubectl apply -f", "kubectl delete -f") if name == "kuberay.yaml" else ("ray up -y", "ray down -y")
    assert all(f"{command} cluster/{name}" in shown for command in used)


@pytest.mark.parametrize("name", LAUNCHED)
def test_words_of_a_submission_survive_unquoted(name: str) -> None:
    """`ray submit` joins them with spaces and a shell on the head reads them again."""
    submitted = [line.split(" -- ")[1] for line in commands(text_of(name)) if line.startswith("ray submit")]
    assert len(submitted) == 3
    assert [word for line in submitted for word in line.split() if shlex.quote(word).strip("'") != word] == []


@pytest.mark.parametrize("name", CLOUDS)
def test_a_cloud_has_a_head_without_work_and_spot_workers_before_others(name: str) -> None:
    types = yaml.safe_load(text_of(name))["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    assert types["gpu_spot"]["resources"] == types["gpu_on_demand"]["resources"] == {"CPU": 8, "GPU": 1}
    assert types["gpu_spot"]["priority"] > types["gpu_on_demand"]["priority"]
    spot, other = (json.dumps(types[kind]["node_config"]).lower() for kind in ("gpu_spot", "gpu_on_demand"))
    assert ("spot" in spot, "spot" in other) == (True, False)


Change = Callable[[str], str]


def replaced(old: str, new: str) -> Change:
    def change(text: str) -> str:
        assert old in text, f"the file no longer has {old!r}"
        return text.replace(old, new)

    return change


LAUNCH_BREAKS = [
    (replaced("idle_timeout_minutes", "idle_timeout"), "Additional properties"),
    (replaced("agents.count", "agents.cuont"), "did you mean agents.count?"),
    (replaced("-- watch", "-- wach"), "wach is not a verb"),
    (replaced("=127.0.0.1", "=0.0.0.0"), "listens publicly"),
    (replaced("export RAY_AUTH_MODE=token", "export RAY_AUTH_MODE=disabled"), "off on the head"),
    (replaced('"~/.ray/auth_token"\n', '"~/token"\n'), "the token is not mounted"),
    (replaced(".venv, ", ""), "the repository is not mounted"),
    (replaced("pip install", "pip download"), "not installed"),
    (replaced("RAY_health_check_period_ms", "RAY_health_check_ms"), "noticed late"),
]
BREAKS = [(name, *broken) for name in CLOUDS for broken in LAUNCH_BREAKS]
BREAKS += [("local.yaml", *broken) for broken in LAUNCH_BREAKS[1:]]
BREAKS += [
    ("local.yaml", replaced("cluster_name:", "cluster:"), "Additional properties"),
    ("gpu.yaml", replaced("head_node_type: head", "head_node_type: boss"), "must be one of"),
    ("gpu.yaml", replaced("GPU: 1", "GPU: one"), "is not of type 'integer'"),
    ("kuberay.yaml", replaced("agents.count", "agents.cuont"), "did you mean agents.count?"),
    ("kuberay.yaml", replaced("maxReplicas", "maximumReplicas"), "maximumReplicas is not a field"),
    ("kuberay.yaml", replaced("maxReplicas: 8", "maxReplicas: eight"), "maxReplicas is 'eight', not integer"),
    ("kuberay.yaml", replaced("        minReplicas: 0\n", ""), "minReplicas is missing"),
    ("kuberay.yaml", replaced("mode: token", "mode: password"), "allowed are disabled|token"),
    ("kuberay.yaml", replaced("mode: token", "mode: disabled"), "token authentication is off"),
    ("kuberay.yaml", replaced("runAsNonRoot: true", "runAsNonRoot: false"), "may run as root"),
    ("kuberay.yaml", replaced("NetworkPolicy", "NetPolicy"), "NetPolicy is unknown"),
    ("kuberay.yaml", replaced('value: "40"', 'value: "90"'), "killed before it has drained"),
    ("kuberay.yaml", replaced(" resume=true", ""), "is not made again"),
]


@pytest.mark.parametrize(("name", "change", "told"), BREAKS)
def test_a_broken_file_is_refused(name: str, change: Change, told: str) -> None:
    found = problems(name, change(text_of(name)))
    assert any(told in line for line in found), found


def preemption_watch(name: str) -> str:
    (command,) = [line for line in yaml.safe_load(text_of(name))["worker_start_ray_commands"] if "drain-node" in line]
    return command


@pytest.mark.parametrize(("name", "answer"), [("gpu.yaml", "{}"), ("gpu-gcp.yaml", "TRUE")])
def test_a_notice_becomes_a_drain(name: str, answer: str, tmp_path: Path) -> None:
    """The watch as shipped, with a metadata address that says nothing twice and then gives notice."""
    scripts = {
        "curl": f'case "$*" in *PUT*) echo secret; exit;; esac; echo "$*" >> {tmp_path}/asked; '
        f"[ \"$(wc -l < {tmp_path}/asked)\" -ge 3 ] && echo '{answer}' || exit 22",
        "ray": f'for word in "$@"; do echo "$word"; done > {tmp_path}/part; mv {tmp_path}/part {tmp_path}/drained',
    }
    (tmp_path / "bin").mkdir()
    for program, body in scripts.items():
        (tmp_path / "bin" / program).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / "bin" / program).chmod(0o755)
    environment = {"HOME": str(tmp_path), "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "POLL_SECONDS": "0.01"}
    # The watch goes into the background: once it asks, it holds its lock until it ends.
    wait = "for _ in {1..3000}; do [ -e ~/asked ] && break; sleep 0.01; done; flock ~/preemption.lock true"
    subprocess.run(["bash", "-c", f"{preemption_watch(name)}\n{wait}"], env=environment, check=True)
    drained = (tmp_path / "drained").read_text().splitlines()
    assert drained[:3] == ["drain-node", "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    assert drained[3:5] == ["--reason-message", "spot interruption"]
    assert (drained[5], int(drained[6]) > 0) == ("--deadline-remaining-seconds", True)
    assert len((tmp_path / "asked").read_text().splitlines()) == 3
