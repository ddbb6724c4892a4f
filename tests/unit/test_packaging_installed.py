"""What a release is: built from a tag, installed where nothing of the checkout is, and run there, without a network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TAG = "v7.8.9"
BUILD = "import sys; from setuptools import build_meta as b; b.build_{0}(sys.argv[1])"
GIT = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "init.defaultBranch=main"]
RUN = """
import sys
import torch
import gradinversion
from gradinversion.capture import ClientConfig, load_batch
assert sys.argv[1] in gradinversion.__file__, gradinversion.__file__
private = load_batch(ClientConfig(batch_size=2))
model = gradinversion.load_model("convnet")
update = gradinversion.capture_gradient(model, private.images, private.labels)
config = gradinversion.AttackConfig(agents=gradinversion.AgentsConfig(count=1, iterations=2))
found = gradinversion.reconstruct(update, model, config, in_process=True)
gradinversion.write_report(gradinversion.evaluate(found, private), found, private, "out")
"""


@dataclass(frozen=True)
class Release:
    """The two files of a release, and a copy of the repository that they were built in."""

    copy: Path
    sdist: Path
    wheel: Path


def call(*command: str, where: Path, **environment: str) -> str:
    left_out = {"PYTHONPATH", "GIT_DIR"}
    known = {name: value for name, value in os.environ.items() if name not in left_out} | environment
    done = subprocess.run(command, cwd=where, env=known, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build(kind: str, folder: Path) -> Path:
    call(sys.executable, "-c", BUILD.format(kind), "dist", where=folder, **extra_path())
    (made,) = (folder / "dist").glob("*.tar.gz" if kind == "sdist" else "*.whl")
    return made


def extra_path() -> dict[str, str]:
    """Where setuptools-scm is, if the environment has it in another place than its packages."""
    import setuptools_scm

    place = str(Path(setuptools_scm.__file__).parents[1])
    return {} if place == sysconfig.get_path("purelib") else {"PYTHONPATH": place}


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    pytest.importorskip("setuptools_scm")
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("there is no git, or no repository, to read the version from")
    copy = tmp_path_factory.mktemp("release") / "checkout"
    for name in call(*GIT, "ls-files", "--cached", "--others", "--exclude-standard", where=ROOT).splitlines():
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "all"], ["tag", TAG]):
        call(*GIT, *words, where=copy)
    return Release(copy, build("sdist", copy), build("wheel", copy))


def held(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as file:
        return {name: file.read(name) for name in file.namelist() if ".dist-info/" not in name}


def test_the_version_is_that_of_the_tag(release: Release) -> None:
    assert release.wheel.name.startswith("gradinversion-7.8.9-")
    assert release.sdist.name == "gradinversion-7.8.9.tar.gz"


def test_after_a_tag_the_version_is_the_next_one_in_the_making(release: Release, tmp_path: Path) -> None:
    copy = tmp_path / "later"
    call(*GIT, "clone", "-q", str(release.copy), str(copy), where=tmp_path)
    (copy / "new.txt").write_text("new")
    for words in (["add", "new.txt"], ["commit", "-q", "-m", "new"]):
        call(*GIT, *words, where=copy)
    version = call(sys.executable, "-m", "setuptools_scm", where=copy, **extra_path()).strip()
    assert version.startswith("7.8.10.dev1+g")


def test_the_source_that_is_released_holds_the_tests_and_makes_the_same_wheel(release: Release, tmp_path: Path) -> None:
    with tarfile.open(release.sdist) as file:
        file.extractall(tmp_path, filter="data")
    folder = tmp_path / "gradinversion-7.8.9"
    assert (folder / "tests" / "unit" / Path(__file__).name).is_file()
    assert (folder / "Makefile").is_file()
    again = build("wheel", folder)
    assert again.name == release.wheel.name
    assert held(again) == held(release.wheel)


def test_the_wheel_holds_the_package_alone(release: Release) -> None:
    folders = {name.split("/")[1] for name in held(release.wheel) if name.count("/") > 1}
    assert folders.isdisjoint({"docs", "tests", "benchmarks", "build"})
    assert {name.split("/")[0] for name in held(release.wheel)} == {"gradinversion"}


def test_it_runs_where_nothing_of_the_checkout_is(release: Release, tmp_path: Path) -> None:
    """What it needs is taken from this environment; the package and its command are those of the wheel."""
    pytest.importorskip("pip", reason="uv makes environments without pip, which installs the wheel here")
    place = tmp_path / "environment"
    venv.create(place, with_pip=False)
    python = place / "bin" / "python"
    install = ["-m", "pip", f"--python={python}", "install", "--quiet", "--no-index", "--no-deps", str(release.wheel)]
    call(sys.executable, *install, where=tmp_path)
    (packages,) = (place / "lib").glob("python*/site-packages")
    (packages / "needed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    command = str(place / "bin" / "gradinversion")
    assert call(command, "--version", where=tmp_path) == "gradinversion 7.8.9\n"
    assert "client.batch_size" in call(command, "--help", "all", where=tmp_path)
    call(str(python), "-c", RUN, str(packages), where=tmp_path)
    assert "gradinversion" in (tmp_path / "out" / "report.html").read_text()
    call(command, "export", "out=out", where=tmp_path)
    assert len((tmp_path / "out" / "images.csv").read_text().splitlines()) == 3
