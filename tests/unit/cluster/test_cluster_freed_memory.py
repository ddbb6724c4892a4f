"""Tests of memory that goes back to the machine."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only the C library of Linux is told")

# One tensor of 25 MB, once whose memory is freed the C library keeps that of smaller ones; then twenty of 12 MB, with
# small things in between that stay.
_SCRIPT = """
import resource
import sys
import torch
from pathlib import Path
from gradinversion.cluster.freed_memory import give_back_what_is_freed
if sys.argv[1] == "back" and not give_back_what_is_freed():
    sys.exit("the C library cannot be told")
def held():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
large = torch.ones(6 * 2**20)
del large
before, many, pins = held(), [], []
for _ in range(20):
    many.append(torch.ones(3 * 2**20))
    pins.append(torch.ones(2**14))
between = held()
del many
print(between - before, held() - before)
"""


def _megabytes(how: str) -> tuple[float, float]:
    done = subprocess.run([sys.executable, "-c", _SCRIPT, how], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    taken, kept = map(float, done.stdout.split())
    return taken, kept


def test_large_tensors_are_given_back() -> None:
    taken, kept = _megabytes("back")
    assert taken > 150
    assert kept < 60


def test_without_they_are_kept_so_that_the_other_test_can_fail() -> None:
    taken, kept = _megabytes("as usual")
    assert taken > 150
    if kept < 60:
        pytest.skip("this C library gives them back by itself")
