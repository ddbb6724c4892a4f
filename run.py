"""The command; what it does is in ``command``. Here is only what must be said where Python or a package is missing."""

from __future__ import annotations

import sys

# What is imported by the package itself: a user's model may lack packages of its own.
_NEEDED = {"gradinversion", "fsspec", "jaxtyping", "jinja2", "kornia", "numpy", "omegaconf", "PIL", "ray", "rich"}
_NEEDED |= {"safetensors", "scipy", "skimage", "torch", "torchmetrics", "torchvision", "yaml"}


def main(argv: list[str] | None = None) -> int:
    """Run one verb; the exit status is that of `gradinversion.command.entry.run`."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        from gradinversion.command.entry import run

        return run(words)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _NEEDED:
            raise
        print(_not_installed(error.name or ""), file=sys.stderr)
        return 2


def _not_installed(name: str) -> str:
    return (
        f"This Python ({sys.executable}) lacks the package {name}: in the checkout run `make demo`, which sets up "
        ".venv, and then `.venv/bin/python run.py`; or `pip install -e .` with Python 3.11 or newer."
    )


if __name__ == "__main__":
    sys.exit(main())
