"""What a release and its image say, held against each other."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
IMAGES = re.compile(r"rayproject/ray:(\d+\.\d+\.\d+)-(py\d+)")


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["cluster/gpu.yaml", "cluster/gpu-gcp.yaml"])
def test_the_image_has_the_ray_and_the_python_of_the_cluster_files(name: str) -> None:
    assert set(IMAGES.findall(text("Dockerfile"))) == set(IMAGES.findall(text(name)))


def test_the_image_has_the_ray_that_kuberay_is_told() -> None:
    told = yaml.safe_load(next(iter(text("cluster/kuberay.yaml").split("\n---"))))
    ((version, _),) = set(IMAGES.findall(text("Dockerfile")))
    assert told["spec"]["rayClusterSpec"]["rayVersion"] == version


def test_the_image_is_built_of_the_package_and_nothing_else() -> None:
    packages = tomllib.loads(text("pyproject.toml"))["tool"]["setuptools"]["packages"]
    folders = {name.split(".")[1] for name in packages if "." in name}
    taken = {line[1:] for line in text(".dockerignore").splitlines() if line.startswith("!")}
    assert text(".dockerignore").splitlines()[1] == "*"
    assert folders <= taken
    assert taken - folders == {"*.py", "pyproject.toml", "README.md", "LICENSE", "py.typed"}


def test_what_the_image_is_built_from_is_there() -> None:
    taken = [line[1:] for line in text(".dockerignore").splitlines() if line.startswith("!")]
    copied = re.findall(r"cp /home/ray/source/(\S+)", text("Dockerfile"))
    assert copied
    assert [name for name in [*taken, *copied] if not list(ROOT.glob(name))] == []
    assert re.findall(r"^COPY .*$", text("Dockerfile"), re.MULTILINE) == ["COPY --chown=ray:users . /home/ray/source"]


def test_the_image_runs_as_no_root_keeps_no_cache_and_pins_its_base() -> None:
    lines = [line for line in text("Dockerfile").splitlines() if line and not line.startswith("#")]
    assert [line for line in lines if line.startswith("USER")] == ["USER 1000:100"]
    assert not any(":latest" in line for line in lines)
    installs = [line for line in lines if "pip install" in line]
    assert installs
    assert all("--no-cache-dir" in line for line in installs)
    assert not any(line.startswith("ADD ") or "sudo" in line for line in lines)


def test_what_is_said_of_python_is_one_thing() -> None:
    project = tomllib.loads(text("pyproject.toml"))["project"]
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    assert named == ["3.11", "3.12", "3.13"]
    assert project["requires-python"] == f">={named[0]}"


def test_who_finds_a_hole_is_told_what_to_do() -> None:
    found = text("SECURITY.md")
    assert "Privately" in found
    assert "docs/files.md" in found


def test_the_citation_is_of_this_package() -> None:
    found = yaml.safe_load(text("CITATION.cff"))
    project = tomllib.loads(text("pyproject.toml"))["project"]
    assert found["title"] == project["name"]
    assert found["license"] == project["license"]
