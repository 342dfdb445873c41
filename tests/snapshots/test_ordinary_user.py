"""Run the tests of sandboxes, CRIU and replicas as an ordinary user: rootless mode needs no privilege of root."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import ROOT
from tests.snapshots.conftest import SMALL_DISK_BYTES, SMALL_DISK_VARIABLE
from torpor.snapshots.before_capture.lasting_folders import LASTING_VARIABLE
from torpor.snapshots.criu.program import PREFIX_VARIABLE
from torpor.testing.ports import WORKER_VARIABLE

if TYPE_CHECKING:
    from torpor.snapshots.criu.program import Criu

pytestmark = [pytest.mark.criu, pytest.mark.slow]

UID = 1500
MARKED = "criu and not sglang and not alone"
REPOSITORY = ROOT
PARTS = (
    ("tests/snapshots", "--ignore=tests/snapshots/sandbox", "--ignore=tests/snapshots/criu"),
    ("tests/platforms/local",),
    ("tests/snapshots/criu",),
    ("tests/snapshots/sandbox",),
)
"""What one run of pytest gets; the parts run side by side."""
ENTER = f"""
set -eu
stash=$1; blocked=$2; needed=$3; small=$4; shift 4
n=0; for path in $needed; do n=$((n + 1)); mkdir "$stash/$n"; mount --bind "$path" "$stash/$n"; done
for folder in $blocked; do mount -t tmpfs -o mode=755 none "$folder"; done
n=0; for path in $needed; do n=$((n + 1)); mkdir -p "$path"; mount --move "$stash/$n" "$path"; done
mount -t tmpfs -o size={SMALL_DISK_BYTES},uid={UID},gid={UID},mode=700 none "$small"
exec setpriv --reuid {UID} --regid {UID} --clear-groups "$@"
"""
"""In a mount namespace of its own: makes what lies in closed folders (an interpreter under /root) reachable."""


def closed_ancestor(path: Path) -> Path | None:
    """The first parent of a path that others may not enter."""
    for folder in [*reversed(path.parents), path]:
        if not folder.stat().st_mode & 0o001:
            return folder
    return None


@pytest.mark.skipif(os.geteuid() != 0, reason="we are an ordinary user already")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", PARTS, ids=lambda part: part[0])
def test_all_of_it_holds_for_an_ordinary_user(criu: Criu, part: tuple[str, ...]) -> None:
    """The same tests, run by pytest under another uid without any capability."""
    needed = {Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve(), REPOSITORY, criu.program.parents[2]}
    blocked = {path: ancestor for path in needed if (ancestor := closed_ancestor(path))}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        for path in (Path(folder) / "stash", home, home / "small"):
            path.mkdir()
        for path in (home, home / "small"):
            os.chown(path, UID, UID)
        Path(folder).chmod(0o755)
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "PYTHONDONTWRITEBYTECODE": "1",
            SMALL_DISK_VARIABLE: str(home / "small"),
            WORKER_VARIABLE: str(8 + PARTS.index(part)),  # its ports are not those of the workers beside it
            LASTING_VARIABLE: str(home / ".cache"),  # a home in a temporary folder would be refused
            **{name: value for name, value in os.environ.items() if name.startswith(("TORPOR_REQUIRE", "OPENBLAS"))},
        }
        if criu.program.parts[-4:] == ("root", "usr", "sbin", "criu"):
            env[PREFIX_VARIABLE] = str(criu.program.parents[3])
        enter = ["unshare", "--mount", "--propagation", "private", "sh", "-c", ENTER, "sh", f"{folder}/stash"]
        closed = " ".join(sorted(map(str, set(blocked.values()))))
        options = ["-p", "no:cacheprovider", "-q", "--basetemp", f"{home}/tmp", "-m", MARKED, "--ignore", __file__]
        result = subprocess.run(
            [
                *(*enter, closed, " ".join(map(str, blocked)), f"{home}/small"),
                *(sys.executable, "-m", "pytest", *options, *part),
            ],
            cwd=REPOSITORY,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=880,
            check=False,
        )
        shutil.rmtree(home / "tmp", ignore_errors=True)
    assert result.returncode == 0, result.stdout + result.stderr
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed, result.stdout
    assert int(passed.group(1)) > 30
