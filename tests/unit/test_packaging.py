from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import gradinversion
import pytest

ROOT = Path(__file__).resolve().parents[2]
NOT_SHIPPED = {"benchmarks", "build", "dist", "docs", "out", "runs", "tests"}


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def folders() -> list[Path]:
    """The folders of the package that lie in its root, found in the checkout."""
    return sorted(path.parent for path in ROOT.glob("*/__init__.py") if path.parent.name not in NOT_SHIPPED)


def packages() -> set[str]:
    """Every package below the root, by its dotted name."""
    inits = [path for folder in folders() for path in folder.rglob("__init__.py")]
    return {".".join(["gradinversion", *path.parent.relative_to(ROOT).parts]) for path in inits}


def shipped_files() -> set[str]:
    """What the wheel must hold: the root's modules, and all that lies in the folders of the package."""
    found = {f"gradinversion/{path.name}" for path in [*ROOT.glob("*.py"), ROOT / "py.typed"]}
    for folder in folders():
        for path in folder.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts and path.suffix not in {".pyc", ".md"}:
                found.add(f"gradinversion/{path.relative_to(ROOT).as_posix()}")
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of this checkout, built offline from a copy that git knows nothing of."""
    pytest.importorskip("setuptools_scm")
    copy = tmp_path_factory.mktemp("package") / "a-folder-of-any-name"
    copy.mkdir()
    for path in [*ROOT.glob("*.py"), *(ROOT / name for name in ("pyproject.toml", "README.md", "LICENSE", "py.typed"))]:
        shutil.copy(path, copy)
    for folder in folders():
        shutil.copytree(folder, copy / folder.name, ignore=shutil.ignore_patterns("__pycache__"))
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    # Else git would look above the copy.
    alone = os.environ | {"GIT_CEILING_DIRECTORIES": str(copy.parent)}
    command = [sys.executable, "-c", build, "dist"]
    made = subprocess.run(command, cwd=copy, env=alone, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    (path,) = (copy / "dist").glob("gradinversion-*.whl")
    return zipfile.ZipFile(path)


def test_every_folder_with_code_is_a_listed_package() -> None:
    listed = set(project()["tool"]["setuptools"]["packages"])
    assert listed == {"gradinversion", *packages()}


def test_every_folder_with_code_has_an_init() -> None:
    with_code = {path.parent for path in ROOT.glob("*/*.py") if not path.parent.name.startswith(".")}
    assert {path.name for path in with_code} - NOT_SHIPPED == {path.name for path in folders()}


def test_every_folder_below_with_code_has_an_init_too() -> None:
    nested = {path.parent for folder in folders() for path in folder.rglob("*.py")}
    assert [path for path in nested if not (path / "__init__.py").is_file()] == []


def test_the_wheel_holds_the_whole_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == shipped_files()


def test_the_wheel_holds_presets_templates_and_the_type_marker(wheel: zipfile.ZipFile) -> None:
    held = set(wheel.namelist())
    assert "gradinversion/py.typed" in held
    assert "gradinversion/presets/gradinversion.yaml" in held
    assert any(name.startswith("gradinversion/audit/") and name.endswith(".j2") for name in held)


def test_the_wheel_says_what_it_is(wheel: zipfile.ZipFile) -> None:
    (info,) = {name.partition("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    assert info == "gradinversion-0.1.0.dev0.dist-info"
    metadata = wheel.read(f"{info}/METADATA").decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Python: >=3.11" in metadata
    assert "Apache License" in wheel.read(f"{info}/licenses/LICENSE").decode()
    assert "gradinversion = gradinversion.run:main" in wheel.read(f"{info}/entry_points.txt").decode()


def test_requirements_are_ranges_and_never_pins() -> None:
    declared = project()["project"]
    extras = declared["optional-dependencies"].values()
    pinned = [text for text in sum(extras, declared["dependencies"]) if "==" in text or "<" in text]
    assert pinned == []


def test_what_the_adapters_need_is_an_extra_and_is_there_to_be_tested() -> None:
    extras = project()["project"]["optional-dependencies"]
    for name in ("flower", "opacus", "timm"):
        assert set(extras[name]) <= set(extras["dev"])


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'torchvision', 'ray', 'numpy', 'omegaconf', 'kornia', 'scipy'}"
    code = f"import sys, gradinversion; print(sorted({heavy} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


def test_the_public_names_are_those_of_their_folders_and_loaded_when_they_are_used() -> None:
    assert set(gradinversion.__all__) == set(gradinversion._HOME)
    assert set(gradinversion.__all__) <= set(dir(gradinversion))
    for name in gradinversion.__all__:
        place = importlib.import_module(f"gradinversion.{gradinversion._HOME[name]}")
        assert getattr(gradinversion, name) is getattr(place, name)
    with pytest.raises(AttributeError, match="no attribute 'reconstuct'"):
        gradinversion.reconstuct  # noqa: B018


def test_the_process_of_an_agent_imports_no_library_that_it_does_not_use() -> None:
    """Each costs half a second of a core, in every agent of every run."""
    unused = (
        "{'torchvision', 'kornia', 'torchmetrics', 'skimage', 'scipy.optimize', 'scipy.stats', 'jinja2', 'omegaconf'}"
    )
    code = f"import sys, gradinversion.cluster.agent_actor; print(sorted({unused} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"
