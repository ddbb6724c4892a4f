"""`ray up` and `ray submit` on three hosts that are namespaces of this machine, undisturbed and under faults."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("ray_submit.sh")
# Tools by the Debian package that has them and that a small system may lack.
TOOLS = {"openssh-server": ("sshd", "ssh", "ssh-keygen"), "rsync": ("rsync",), "iproute2": ("ip",)}
SYSTEM_TOOLS = ("unshare", "nsenter", "setpriv", "mount", "getent")
# What the hosts are made of: a container may be root and still not be allowed these.
PROBE = """
mount -t tmpfs probe /mnt && ip link add probe type bridge && ip netns add probe &&
ip link add one type veth peer name two netns probe
"""


def found(tool: str) -> bool:
    # Debian keeps sshd where a user's PATH does not lead.
    return shutil.which(tool, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])) is not None


def missing() -> list[str]:
    return [tool for tools in (*TOOLS.values(), SYSTEM_TOOLS) for tool in tools if not found(tool)]


def install() -> None:
    """Packages of missing tools, where the machine exists for tests alone."""
    packages = [package for package, tools in TOOLS.items() if not all(map(found, tools))]
    if not packages or not os.environ.get("CI") or not found("apt-get"):
        return
    quiet: dict[str, Any] = {
        "env": os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
        "capture_output": True,
        "check": False,
    }
    subprocess.run(["apt-get", "update"], **quiet)
    subprocess.run(["apt-get", "install", "-y", "--no-install-recommends", *packages], **quiet)


def obstacle() -> str | None:
    """Why the hosts cannot be made here, in one sentence; None where they can."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "three hosts on one machine need root on Linux"
    install()
    if tools := missing():
        return f"missing {', '.join(tools)} (Debian: apt install {' '.join(TOOLS)})"
    namespaces = ("unshare", "--mount", "--net", "--ipc", "--uts", "--pid", "--fork", "--mount-proc")
    # A private /run takes the name of the probe's network away with it.
    probe = subprocess.run(
        [*namespaces, "sh", "-c", f"mount -t tmpfs probe /run && {PROBE}"], capture_output=True, text=True, check=False
    )
    if probe.returncode:
        return f"namespaces cannot be made here: {probe.stderr.strip() or f'unshare ended with {probe.returncode}'}"
    return None


@pytest.fixture
def _hosts_can_be_made() -> None:
    if reason := obstacle():
        pytest.skip(reason)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    """What the script prints; shown also where the time limit of a test ends it."""
    path = tmp_path / "log"
    yield path
    print(path.read_text(errors="replace") if path.exists() else "")


@pytest.mark.slow
@pytest.mark.usefixtures("_hosts_can_be_made")
def test_ray_submit_on_three_hosts_survives_the_loss_of_laptop_link_and_host(log: Path) -> None:
    with log.open("w") as output:
        done = subprocess.run(
            [SCRIPT], env=os.environ | {"PYTHON": sys.executable}, stdout=output, stderr=subprocess.STDOUT, check=False
        )
    printed = log.read_text(errors="replace")
    assert done.returncode == 0, printed
    passed = [line for line in printed.splitlines() if line.startswith("PASS")]
    for phase in ("partition", "death"):
        assert any(f"{phase}: images bit-equal" in line for line in passed), printed
