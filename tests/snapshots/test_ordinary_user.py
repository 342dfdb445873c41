"""Run tests as an ordinary user, under another uid and without any capability: rootless mode needs no privilege of root.

The marker `ordinary_user` stands at tests for which the user makes a difference, some for each mechanism:

* sandbox: namespaces, network, private and moved folders, clocks, commands, orphans, owners that end, what a user may not have;
* trial of CRIU: it works, rootless comes first, root mode is refused;
* dump and restore: trees, images for their owner alone, clocks, a refusal of CRIU, a killed CRIU, a deadline, a full disk;
* mapped memory: replicas share it, and so do forks;
* what a capture accepts or refuses: processes of other users, priorities, escapes from the sandbox, io_uring;
* what a restored tree has again: log, pidfds, permission for tiles, tensor-parallel ranks, owners of side files;
* snapshot's folder: owners and modes, remainders of another user, a new snapshot in place of an old one;
* ends: a capture that is ended, a sandbox whose owner is killed, CRIU killed in a capture;
* replicas: restored, replaced, restored again after a kill, watched by a listener, private, behind the gateway;
* `torpor serve`: to zero and back, an engine and the gateway killed.

What is computed from values, or read over HTTP, is the same for each user. Its tests run as one user only.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import ROOT
from tests.snapshots.conftest import SMALL_DISK_BYTES, SMALL_DISK_VARIABLE
from torpor.snapshots.before_capture.lasting_folders import LASTING_VARIABLE
from torpor.snapshots.criu.program import PREFIX_VARIABLE
from torpor.testing.ports import WORKER_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torpor.snapshots.criu.program import Criu

pytestmark = [pytest.mark.criu, pytest.mark.slow]

UID = 1500
MARKED = "ordinary_user"
PARTS = ("tests/snapshots", "tests/platforms/local")
"""What one run of pytest gets; the parts run side by side."""
TIMEOUT_S = 600.0
"""Of one run; what failed gets a second one."""
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


@dataclass(frozen=True, kw_only=True)
class Home:
    """What an ordinary user needs to run these tests.

    Attributes:
        enter: the words of a command that runs what follows them as that user.
        env: its environment.
        folder: its home.
    """

    enter: tuple[str, ...]
    env: dict[str, str]
    folder: Path

    def pytest(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run pytest as that user."""
        options = ["-q", "--basetemp", f"{self.folder}/tmp", "-o", f"cache_dir={self.folder}/kept", "-m", MARKED]
        return subprocess.run(
            [*self.enter, sys.executable, "-m", "pytest", *options, *words],
            cwd=ROOT,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )


@pytest.fixture
def home(criu: Criu, request: pytest.FixtureRequest) -> Iterator[Home]:
    """The home of user 1500 for one part of the tests."""
    needed = {Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve(), ROOT, criu.program.parents[2]}
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
            WORKER_VARIABLE: str(8 + request.node.callspec.indices["part"]),  # its ports are not those of the workers
            LASTING_VARIABLE: str(home / ".cache"),  # a home in a temporary folder would be refused
            **{name: value for name, value in os.environ.items() if name.startswith(("TORPOR_REQUIRE", "OPENBLAS"))},
        }
        if criu.program.parts[-4:] == ("root", "usr", "sbin", "criu"):
            env[PREFIX_VARIABLE] = str(criu.program.parents[3])
        enter = ("unshare", "--mount", "--propagation", "private", "sh", "-c", ENTER, "sh", f"{folder}/stash")
        closed = " ".join(sorted(map(str, set(blocked.values()))))
        yield Home(enter=(*enter, closed, " ".join(map(str, blocked)), f"{home}/small"), env=env, folder=home)
        shutil.rmtree(home / "tmp", ignore_errors=True)


def failures_first(output: str) -> str:
    """What pytest wrote, from its first failure or error on; all of it if there is none."""
    found = re.search(r"^=+ (FAILURES|ERRORS) =+$", output, re.MULTILINE)
    return output[found.start() :] if found else output


@pytest.mark.skipif(os.geteuid() != 0, reason="we are an ordinary user already")
@pytest.mark.timeout(2 * TIMEOUT_S + 20)
@pytest.mark.parametrize("part", PARTS)
def test_what_depends_on_the_user_works_for_an_ordinary_one(home: Home, part: str) -> None:
    """Pytest runs the marked tests as that user. What failed runs once more by itself, as in `make test`."""
    first = home.pytest(part)
    if first.returncode == pytest.ExitCode.TESTS_FAILED:
        again = home.pytest("--last-failed", "--last-failed-no-failures", "none", part)
        if again.returncode:
            pytest.fail(
                f"{failures_first(again.stdout)}\n\nThe first time:\n{failures_first(first.stdout)}", pytrace=False
            )
    elif first.returncode:
        pytest.fail(failures_first(first.stdout), pytrace=False)
    passed = re.search(r"(\d+) passed", first.stdout)
    assert passed, first.stdout
    assert int(passed.group(1)) >= 15, first.stdout


def test_the_failures_of_a_run_come_first_in_what_is_shown() -> None:
    """Progress and headers before them are left out; a run that ended before its first test is shown whole."""
    assert (
        failures_first("...F\n=== FAILURES ===\n__ test_a __\nE  boom\n") == "=== FAILURES ===\n__ test_a __\nE  boom\n"
    )
    assert failures_first("ERROR: no such option\n") == "ERROR: no such option\n"
