from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "gradinversion"

# Modules of the root that everything may import, since they import nothing of the package but each other.
GROUND = {"foreign_text", "plugins", "refusal", "time_span"}
# What each folder may import of the package, beside itself, the ground, and the root's docstring and version.
ALLOWED = {
    "storage": set(),
    "forking": set(),
    "exporting": {"storage"},
    "capture": {"storage"},
    "priors": set(),
    "registration": set(),
    "peeling": {"capture", "priors"},
    "target": {"capture", "peeling"},
    "agents": {"capture", "peeling", "priors", "target"},
    "coordinator": {"agents", "capture", "peeling", "priors", "registration", "storage", "target"},
    "cluster": {
        "agents",
        "capture",
        "coordinator",
        "forking",
        "peeling",
        "priors",
        "registration",
        "storage",
        "target",
    },
    "audit": {"agents", "capture", "coordinator", "peeling", "registration", "storage", "target"},
    "settings": {"agents", "audit", "capture", "coordinator", "exporting", "presets", "storage"},
    "sweep": {"agents", "audit", "capture", "cluster", "coordinator", "settings", "storage"},
    "presets": set(),
    "command": {"audit", "capture", "cluster", "coordinator", "exporting", "forking", "settings", "storage", "sweep"},
}
# Folders in which the attack runs: the private images are out of their reach.
ATTACK = {"priors", "registration", "peeling", "target", "agents", "coordinator", "cluster"}
PRIVATE_NAMES = {"PrivateBatch", "PrivateConfig", "simulate_client", "ClientConfig", "load_images", "load_private"}
PRIVATE_MODULES = {"gradinversion.capture.client", "gradinversion.audit"}
PICKLES = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
LONGEST_FILE, LONGEST_TEST = 320, 400


@dataclass(frozen=True)
class Imported:
    """One imported name: ``from module import name``, or ``import module`` with no name."""

    module: str
    name: str | None

    @property
    def paths(self) -> tuple[str, ...]:
        """The module, and what the name would be if it is a module too."""
        return (self.module,) if self.name is None else (self.module, f"{self.module}.{self.name}")

    @property
    def folder(self) -> str | None:
        """The folder of the package that this reaches into: None outside the package, "" for the root itself."""
        parts = self.module.split(".")
        if parts[0] != PACKAGE:
            return None
        if len(parts) > 1:
            return parts[1]
        return self.name if self.name is not None and not self.name.startswith("__") else ""


def module_name(path: Path) -> str:
    parts = [PACKAGE, *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source: str, module: str, is_package: bool) -> Iterator[Imported]:
    """Every import in a source, relative ones resolved."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (Imported(alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")
            above = node.level - is_package
            start = base[: len(base) - above] if node.level else []
            origin = ".".join([*start, *([node.module] if node.module else [])])
            yield from (Imported(origin, alias.name) for alias in node.names)


def imports_at_run_time(source: str, module: str, is_package: bool) -> Iterator[Imported]:
    """Those that are carried out, be it in a function: not the ones for the type checker alone."""

    class WithoutTypes(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
            self.generic_visit(node)
            return node.orelse if "TYPE_CHECKING" in ast.unparse(node.test) else node

    yield from imports(ast.unparse(WithoutTypes().visit(ast.parse(source))), module, is_package)


def imports_of(path: Path) -> list[Imported]:
    return list(imports(path.read_text(encoding="utf-8"), module_name(path), path.name == "__init__.py"))


def forbidden_folders(folder: str, found: list[Imported]) -> list[str]:
    allowed = {folder, "", None} | GROUND | ALLOWED[folder]
    return [".".join(one.paths[-1:]) for one in found if one.folder not in allowed]


def private_names(source: str, found: list[Imported]) -> set[str]:
    """How a source reaches for the private images: by import, by attribute, or by importing everything."""
    reached = {
        path
        for one in found
        for path in one.paths
        if any(path == private or path.startswith(f"{private}.") for private in PRIVATE_MODULES)
    }
    reached |= {one.name for one in found if one.name in PRIVATE_NAMES}
    reached |= {f"{one.module}.*" for one in found if one.name == "*" and one.folder is not None}
    for node in ast.walk(ast.parse(source)):
        named = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else None
        if named in PRIVATE_NAMES:
            reached.add(named)
    return reached


def unsafe_loads(source: str) -> list[int]:
    """Lines that could unpickle: a pickling module, ``torch.load`` without ``weights_only=True``, ``allow_pickle``.

    The error that ``torch.load`` raises for a refused file, ``pickle.UnpicklingError``, is the one thing of pickle's
    that may be named.
    """
    return [
        node.lineno for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt | ast.expr) and unsafe(node)
    ]


def unsafe(node: ast.stmt | ast.expr) -> bool:
    match node:
        case ast.Import(names=names):
            return any(
                alias.name.split(".")[0] in PICKLES and (alias.name, alias.asname) != ("pickle", None)
                for alias in names
            )
        case ast.ImportFrom(module="torch", names=names):
            return any(alias.name == "load" for alias in names)
        case ast.ImportFrom(module=str(module), names=names) if module.split(".")[0] in PICKLES:
            return any(alias.name != "UnpicklingError" for alias in names)
        case ast.Attribute(value=ast.Name(id="pickle"), attr=name):
            return name != "UnpicklingError"
        case ast.Call(func=function, keywords=keywords):
            true = {word.arg for word in keywords if isinstance(word.value, ast.Constant) and word.value.value is True}
            return "allow_pickle" in true or (ast.unparse(function) == "torch.load" and "weights_only" not in true)
    return False


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def everything() -> list[Path]:
    return sorted([*ROOT.glob("*.py"), *sources(*ALLOWED, "benchmarks", "tests")])


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_every_folder_of_the_package_has_its_place_in_the_order() -> None:
    found = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"build", "tests", "benchmarks", "docs"}
    assert found == set(ALLOWED)


@pytest.mark.parametrize("folder", ALLOWED)
def test_a_folder_imports_only_what_lies_before_it(folder: str) -> None:
    wrong = {name_of(path): forbidden_folders(folder, imports_of(path)) for path in sources(folder)}
    assert {path: found for path, found in wrong.items() if found} == {}


@pytest.mark.parametrize("module", sorted(GROUND))
def test_the_ground_imports_nothing_of_the_package(module: str) -> None:
    assert {one.folder for one in imports_of(ROOT / f"{module}.py")} <= GROUND | {None}


def test_no_folder_lies_before_itself() -> None:
    placed: set[str] = set()
    while ready := {folder for folder, before in ALLOWED.items() if before <= placed} - placed:
        placed |= ready
    assert placed == set(ALLOWED)


def modules() -> dict[str, Path]:
    return {module_name(path): path for path in [*ROOT.glob("*.py"), *sources(*ALLOWED)]}


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Modules that reach each other, one set for each circle that they are in."""
    reached = {name: set(near) for name, near in graph.items()}
    for through in graph:
        for near in reached.values():
            if through in near:
                near |= reached[through]
    found = ({other for other in reached[name] if name in reached[other]} for name in sorted(graph))
    return [set(one) for one in dict.fromkeys(frozenset(one) for one in found if len(one) > 1)]


def test_no_modules_import_each_other_in_a_circle() -> None:
    known = modules()
    graph = {}
    for name, path in known.items():
        found = imports_at_run_time(path.read_text(encoding="utf-8"), name, path.name == "__init__.py")
        # A name is a module if there is one; otherwise it lies in the module that it is imported from.
        graph[name] = {next((p for p in reversed(one.paths) if p in known), name) for one in found} - {name}
    assert circles(graph) == []


def test_circles_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a", "e"}, "e": {"d"}, "f": {"a"}}
    assert circles(graph) == [{"a", "b", "c"}, {"d", "e"}]
    assert circles({"a": {"b"}, "b": set()}) == []


def test_imports_for_types_alone_make_no_circle() -> None:
    source = (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..agents import Agent\n"
        "else:\n    import torch\ndef run():\n    from ..audit import judge"
    )
    found = [one.module for one in imports_at_run_time(source, "gradinversion.target.loss", is_package=False)]
    assert found == ["typing", "torch", "gradinversion.audit"]


@pytest.mark.parametrize("folder", sorted(ATTACK))
def test_the_attack_cannot_reach_the_private_images(folder: str) -> None:
    reached = {name_of(p): private_names(p.read_text(encoding="utf-8"), imports_of(p)) for p in sources(folder)}
    assert {path: names for path, names in reached.items() if names} == {}


def test_ray_is_imported_only_by_the_cluster_and_what_measures_it() -> None:
    elsewhere = [
        path
        for path in everything()
        if path.relative_to(ROOT).parts[0] not in {"cluster", "tests"}
        and not name_of(path).startswith("benchmarks/cluster")
    ]
    assert [
        name_of(path) for path in elsewhere if any(one.module.split(".")[0] == "ray" for one in imports_of(path))
    ] == []


def test_omegaconf_stays_in_the_configuration() -> None:
    elsewhere = [path for path in everything() if name_of(path) != "settings/run.py"]
    assert [
        name_of(p) for p in elsewhere if any(one.module.split(".")[0] == "omegaconf" for one in imports_of(p))
    ] == []


def test_nothing_is_unpickled() -> None:
    shipped = [path for path in everything() if path.relative_to(ROOT).parts[0] != "tests"]  # tests make hostile files
    found = {name_of(path): unsafe_loads(path.read_text(encoding="utf-8")) for path in shipped}
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_no_module_is_a_drawer() -> None:
    drawers = {"utils", "util", "helpers", "helper", "misc", "common"}
    assert [name_of(path) for path in everything() if path.stem in drawers] == []


def test_files_stay_short() -> None:
    lengths = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in everything()}
    too_long = {
        path: lines
        for path, lines in lengths.items()
        if lines > (LONGEST_TEST if path.startswith("tests/") else LONGEST_FILE)
    }
    assert too_long == {}


@pytest.mark.parametrize(
    ("line", "folder"),
    [
        ("from ..audit import evaluate", "audit"),
        ("from .. import audit", "audit"),
        ("from .other import name", "agents"),
        ("from ..priors.l2 import l2", "priors"),
        ("import gradinversion.audit.metrics", "audit"),
        ("from gradinversion.audit import psnr", "audit"),
        ("from .. import __version__", ""),
        ("import torch", None),
        ("from torch import nn", None),
    ],
)
def test_imports_are_traced_to_their_folder(line: str, folder: str | None) -> None:
    (found,) = imports(line, "gradinversion.agents.inverter", is_package=False)
    assert found.folder == folder
    assert bool(forbidden_folders("agents", [found])) == (folder == "audit")


def test_imports_of_an_init_are_relative_to_its_own_folder() -> None:
    (found,) = imports("from .config import AgentsConfig", "gradinversion.agents", is_package=True)
    assert found.module == "gradinversion.agents.config"


@pytest.mark.parametrize(
    "source",
    [
        "from ..capture import PrivateBatch",
        "from ..capture.client import capture_gradient",
        "from ..capture.client import images",
        "import gradinversion.capture.client.images",
        "from ..capture import *",
        "from .. import capture\ncapture.simulate_client(config, 0)",
        "def attack():\n    from gradinversion.capture import client",
    ],
)
def test_reaching_for_the_private_images_is_noticed(source: str) -> None:
    assert private_names(source, list(imports(source, "gradinversion.agents.inverter", is_package=False)))


def test_using_the_captured_update_is_not_reaching_for_images() -> None:
    source = "from ..capture import CapturedUpdate, client_mode\nupdate.image_count"
    assert private_names(source, list(imports(source, "gradinversion.agents.inverter", is_package=False))) == set()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import pickle\npickle.loads(data)", True),
        ("import pickle as p", True),
        ("from pickle import loads", True),
        ("import joblib", True),
        ("import pickle\ntry:\n    pass\nexcept pickle.UnpicklingError:\n    pass", False),
        ("from cloudpickle import dumps", True),
        ("from torch import load", True),
        ("torch.load(path)", True),
        ("torch.load(path, weights_only=False)", True),
        ("numpy.load(path, allow_pickle=True)", True),
        ("torch.load(path, weights_only=True)", False),
        ("json.load(file)", False),
    ],
)
def test_unpickling_is_noticed(source: str, expected: bool) -> None:
    assert bool(unsafe_loads(source)) == expected
