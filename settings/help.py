"""The text behind ``--help``: verbs, presets, and every key with its default and meaning."""

from __future__ import annotations

import ast
import inspect
import textwrap
from functools import cache
from itertools import pairwise

from .keys import Key, format_value, keys
from .run import RunConfig, preset_names, preset_text

VERBS = {
    "attack": "reconstruct the images behind one update and write the report (the default)",
    "audit": "attack a grid of batch sizes, defences, BN modes and model states, and say what stops the leak",
    "capture": "save what the simulated client would send, without attacking it",
    "watch": "look on again at the run in out, on a cluster where it goes on by itself, and write its report",
    "stop": "end the run in out at its next round, with what it has found",
    "report": "write the report of the ended run in out again",
}

EXAMPLES = (
    ("python run.py", "four agents on a simulated client with the bundled network and photos"),
    ("python run.py client.batch_size=8 client.defence=prune client.defence_strength=0.9", "does pruning stop it?"),
    ("python run.py audit budget=10m out=runs/audit", "which change of settings stops it? In at most ten minutes"),
    ("python run.py update=captured.safetensors client.model=resnet18 client.weights=model.pt", "your own update"),
    (
        "python run.py update=captured.safetensors client.model=resnet18 client.weights=model.pt private=FOLDER",
        "with the images behind it, one folder per class: what of them leaked?",
    ),
    ("python run.py preset=inverting_gradients agents.iterations=1000 out=runs/peer", "another published attack"),
    ("python run.py preset=latent_projection agents.generator=my.module:build", "within the range of your generator"),
    (
        "python run.py preset=inverting_gradients agents.iterations=1000 out=runs/peer resume=true",
        "the same again, to go on after an interruption",
    ),
    ("python run.py watch out=s3://bucket/run", "look on again at a long run on a cluster"),
)

_WIDTH = 110
_COLUMN = 42


def help_text() -> str:
    """All that a user may write on the command line, as plain text."""
    sections = [_usage(), _presets()]
    known = list(keys(RunConfig).values())
    for group in dict.fromkeys(_group(key) for key in known):
        members = [key for key in known if _group(key) == group]
        heading = f"{group}: {_summary(members[0].owner)}" if group else _summary(RunConfig)
        sections.append("\n".join([heading, *(_entry(key) for key in members)]))
    return "\n\n".join(sections) + "\n"


def meaning(key: Key) -> str:
    """What a key means: the string below its field, in the dataclass that declares it; empty when there is none."""
    leaf = key.name.rpartition(".")[2]
    for owner in key.owner.__mro__:
        if leaf in inspect.get_annotations(owner):
            return _field_docs(owner).get(leaf, "")
    return ""


@cache
def _field_docs(owner: type) -> dict[str, str]:
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for line, below in pairwise(definition.body):
        match line, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = _plain_words(text)
    return found


def _usage() -> str:
    verbs = "\n".join(_columns(verb, text, 11) for verb, text in VERBS.items())
    examples = "\n".join(f"  {command}\n      {purpose}" for command, purpose in EXAMPLES)
    return f"""What does an averaged gradient reveal of the private images behind it?

Usage: python run.py [{"|".join(VERBS)}] [preset=NAME] [key=value ...]
(once the package is installed, `gradinversion` stands for `python run.py`)

{verbs}

Values are plain words, without quotes or spaces; several are separated by commas:
audit.controls=constant_image,no_gradient.

Examples:
{examples}"""


def _presets() -> str:
    lines = [_columns(f"preset={name}", _preset_summary(name), _COLUMN) for name in preset_names()]
    return "\n".join(["Presets (each sets some of the keys below; words override them):", *lines])


def _preset_summary(name: str) -> str:
    """The second line of the file; the first is the command that runs it."""
    return preset_text(name).splitlines()[1].removeprefix("#").strip()


def _entry(key: Key) -> str:
    return _columns(f"{key.name}={format_value(key.default)}", meaning(key), _COLUMN)


def _group(key: Key) -> str:
    return key.name.rpartition(".")[0]


def _summary(owner: type) -> str:
    return _plain_words(inspect.getdoc(owner) or "").partition(". ")[0].partition(";")[0].removesuffix(".") + "."


def _plain_words(text: str) -> str:
    return " ".join(text.replace("`", "").split())


def _columns(left: str, right: str, column: int) -> str:
    gap = " " * column
    wrapped = textwrap.wrap(right, _WIDTH, initial_indent=gap, subsequent_indent=gap, break_on_hyphens=False) or [gap]
    if len(left) + 3 > column:
        return "\n".join([f"  {left}", *wrapped])
    wrapped[0] = f"  {left}".ljust(column) + wrapped[0][column:]
    return "\n".join(wrapped)
