"""What answers at once, and with what it is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gradinversion
import pytest
from gradinversion.command import entry, verbs
from gradinversion.run import main
from gradinversion.settings.usage import USUAL, VERBS

ROOT = Path(__file__).resolve().parents[3]
HEAVY = {"torch", "numpy", "ray", "omegaconf", "scipy", "PIL", "jinja2", "fsspec", "jaxtyping"}


def printed(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> str:
    assert main(list(words)) == status
    found = capsys.readouterr()
    return found.out if status == 0 else found.err


@pytest.mark.parametrize(
    ("words", "status"),
    [
        *[
            ("--help", 0),
            ("--version", 0),
            ("help", 0),
            ("client.batch_size = 8", 2),
            ("atack", 2),
            ("audit --help", 0),
        ],
        *[("--help all", 0), ("--help agents.count", 0), ("--help client", 0), ("--help nothing.there", 2)],
        *[("agents.cuont=3", 2), ("audit agents.count=four", 2), ("--completion bash", 0)],
        *[("preset=nope", 2), ("fail_on=leaks", 2), ("export=csv,excel", 2), ("audit budget=ten", 2)],
    ],
)
def test_what_needs_no_package_imports_none(words: str, status: int) -> None:
    """A process of its own: in this one everything is loaded."""
    code = (
        "import sys; from gradinversion.run import main; code = main(sys.argv[1:]); "
        f"assert code == {status}, code; found = {HEAVY!r} & set(sys.modules); assert not found, found; "
        "assert len(sys.modules) < 400, len(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words.split()], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_first_screen_is_one_screen_and_names_the_verbs_and_what_most_runs_need(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = printed(capsys, "--help")
    assert len(text.splitlines()) < 48
    assert all(word in text for word in [*VERBS, *USUAL, "--help all", "preset=FILE.yaml", "gradinversion_paper"])
    assert "python run.py" not in text  # under pytest the program is not called so
    assert max(map(len, text.splitlines())) <= 120


def test_what_most_runs_need_are_keys_that_there_are() -> None:
    from gradinversion.settings.keys import keys
    from gradinversion.settings.run import RunConfig

    assert {word.partition("=")[0] for word in USUAL} <= set(keys(RunConfig))


def test_help_on_everything_a_key_a_group_and_a_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert "agents.count=4" in printed(capsys, "--help", "all")
    one = printed(capsys, "--help", "agents.count=9")
    assert "agents.count=4" in one
    assert "Give a whole number." in one
    assert "agents.iterations" not in one
    group = printed(capsys, "agents", "--help")
    assert "agents.iterations" in group
    assert "client." not in group.partition("agents.generator")[0]
    assert "objective:" in printed(capsys, "-h", "gradinversion_paper")
    assert printed(capsys, "--help", "preset=dlg") == printed(capsys, "--help", "dlg")


def test_help_on_what_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "--help", "agents.cuont", "seed", status=2)
    assert "agents.count" in text
    assert "seed is" not in text
    assert "did you mean agents?" in printed(capsys, "--help", "agnts", status=2)
    assert "did you mean gradinversion_paper?" in printed(capsys, "--help", "gradinversion_papr", status=2)


def test_a_grid_without_its_verb_is_refused_before_anything_is_loaded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entry, "_carry_out", lambda *_: pytest.fail("the package is loaded"))
    assert "write audit sweep.bn=eval" in printed(capsys, "sweep.bn=eval", status=2)


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, "--version") == f"gradinversion {gradinversion.__version__}\n"


def test_every_verb_of_the_help_can_be_carried_out() -> None:
    assert tuple(VERBS) == tuple(verbs.VERBS)


def test_bash_completes_verbs_keys_and_presets(capsys: pytest.CaptureFixture[str]) -> None:
    script = printed(capsys, "--completion", "bash")

    def completed(typed: str) -> list[str]:
        asked = f'{script}\nCOMP_LINE="gradinversion {typed}"; COMP_POINT=${{#COMP_LINE}}; _gradinversion; '
        asked += 'printf "%s\\n" "${COMPREPLY[@]}"'
        done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True)
        return done.stdout.split()

    assert completed("aud") == ["audit", *[word for word in completed("aud") if word.startswith("audit.")]]
    assert "audit.controls=" in completed("aud")
    assert "client.batch_size=" in completed("attack client.b")
    assert "gradinversion_paper" in completed("preset=grad")
    assert "give bash" in printed(capsys, "--completion", "fish", status=2)


def test_without_its_packages_one_line_says_what_to_do() -> None:
    code = "import sys, runpy; sys.path = [p for p in sys.path if 'site-packages' not in p]; sys.argv = ['run.py']; "
    code += f"runpy.run_path({str(ROOT / 'run.py')!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "lacks the package gradinversion" in line
    assert "make demo" in line
