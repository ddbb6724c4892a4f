"""The first screen of ``--help``: verbs, examples and presets; imports nothing that takes time."""

from __future__ import annotations

import textwrap
from importlib import resources

from .. import presets

DEFAULT_PRESET = "gradinversion"

VERBS = {
    "attack": "reconstruct the images behind one update and write the report (the default)",
    "audit": "attack a grid of batch sizes, defences, BN modes and model states, and say what stops the leak",
    "capture": "save what the simulated client would send, without attacking it",
    "watch": "look on again at the run in out, on a cluster where it goes on by itself, and write its report",
    "stop": "end the run in out at its next round, with what it has found",
    "report": "write the report of the ended run in out again",
    "export": "write the numbers of the ended run in out as tables (export=csv), for TensorBoard or for W&B",
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

# What most runs set; `--help all` has the rest, with their defaults.
USUAL = {
    "out=FOLDER": "where the report goes; a folder or a URL",
    "client.model=resnet18": "a torchvision name, timm:NAME, a bundled network, or module:callable of yours",
    "client.weights=FILE": "the server's weights (.safetensors, .pt, .pth)",
    "client.images=FOLDER": "the images of the simulated client",
    "client.batch_size=8": "how many of them are averaged",
    "client.image_size=64": "height in pixels, and width unless client.image_width is given",
    "client.defence=noise:1": "a defence with its strength; several: clip:0.5+noise:0.1",
    "update=FILE": "attack a captured update in place of a simulated client's",
    "agents.count=4": "seeds that are optimised side by side",
    "resume=true": "go on with the run in out; restart=true begins it anew",
}

WIDTH = 110
COLUMN = 42
_FIRST_EXAMPLES = 4


def preset_names() -> list[str]:
    """The presets that ship with the package, the default one first."""
    files = resources.files(presets).iterdir()
    names = sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))
    return sorted(names, key=lambda name: name != DEFAULT_PRESET)


def preset_text(name: str) -> str:
    """The yaml file of a preset."""
    return resources.files(presets).joinpath(f"{name}.yaml").read_text(encoding="utf-8")


def preset_summary(name: str) -> str:
    """What a preset is, in a line: the second one of its file; the first is the command that runs it."""
    return preset_text(name).splitlines()[1].removeprefix("#").strip()


def first_screen(program: str) -> str:
    """What ``--help`` prints: what most people need, on one screen.

    Args:
        program: How the command is called, such as ``gradinversion`` or ``python run.py``.
    """
    listed = textwrap.fill(
        f"Presets (preset=NAME, or preset=FILE.yaml of yours): {', '.join(preset_names())}.",
        WIDTH,
        break_on_hyphens=False,
    )
    usual = "\n".join(columns(word, text, 26) for word, text in USUAL.items())
    return f"""{_question_and_verbs(program)}

Settings that most runs need:
{usual}

Examples:
{_examples(program, EXAMPLES[:_FIRST_EXAMPLES])}

{listed}

More: --help all lists every key with its default; --help KEY tells one key, one group such as agents, or one preset;
--version; --completion bash writes what makes the Tab key complete keys.
"""


def whole_usage(program: str) -> str:
    """The beginning of ``--help all``: verbs, presets and all examples."""
    lines = [columns(f"preset={name}", preset_summary(name), COLUMN) for name in preset_names()]
    listed = "\n".join(["Presets (each sets some of the keys below; words override them):", *lines])
    return f"""{_question_and_verbs(program)}

Values are plain words, without quotes or spaces; several are separated by commas:
audit.controls=constant_image,no_gradient.

Examples:
{_examples(program, EXAMPLES)}

{listed}"""


def _question_and_verbs(program: str) -> str:
    verbs = "\n".join(columns(verb, text, 11) for verb, text in VERBS.items())
    return f"""What does an averaged gradient reveal of the private images behind it?

Usage: {program} [{"|".join(VERBS)}] [preset=NAME] [key=value ...]

{verbs}"""


def _examples(program: str, examples: tuple[tuple[str, str], ...]) -> str:
    return "\n".join(
        f"  {command.replace('python run.py', program, 1)}\n      {purpose}" for command, purpose in examples
    )


def columns(left: str, right: str, column: int) -> str:
    """Two columns, the right one wrapped; on lines of its own where the left one is too wide."""
    gap = " " * column
    wrapped = textwrap.wrap(right, WIDTH, initial_indent=gap, subsequent_indent=gap, break_on_hyphens=False) or [gap]
    if len(left) + 3 > column:
        return "\n".join([f"  {left}", *wrapped])
    wrapped[0] = f"  {left}".ljust(column) + wrapped[0][column:]
    return "\n".join(wrapped)
