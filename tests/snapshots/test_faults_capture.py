"""The framework ends while CRIU works: no sandbox lives on, and half a snapshot never counts as one."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import uuid
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Literal

import psutil
import pytest

from tests.conftest import is_running
from tests.engine.test_lifeline import children_first
from tests.snapshots.conftest import MODES, wait_for
from tests.snapshots.kept import chat, write_app
from torpor import SnapshotError
from torpor.platforms.local.snapshots import inspect_snapshot
from torpor.snapshots.criu.program import PREFIX_VARIABLE
from torpor.testing.ports import unused_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torpor.snapshots.criu.program import Criu

pytestmark = [pytest.mark.criu, pytest.mark.slow]

Moment = Literal["begun", "halted", "done", "free"]
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)

WRAPPER = """#!/bin/sh
# CRIU, held at a moment of its work on a snapshot: before it, stopped in the middle of it, or right after it.
moment=free
read -r moment held < {moment}
case "$1 $*" in
    "dump "*.partial-*/images*|"restore "*{run}*) ;;
    *) moment=free ;;
esac
hold() {{ touch "$held"; sleep 600; }}
case "$moment" in
    begun) hold ;;
    halted)
        {criu} "$@" &
        criu=$!
        sleep 0.02
        kill -STOP "$criu"
        hold ;;
    done) {criu} "$@"; hold ;;
    *) exec {criu} "$@" ;;
esac
"""


class Held:
    """An app, the place of its snapshot, and a CRIU that can be paused.

    Args:
        folder: for everything of it.
        criu: the real one.
    """

    def __init__(self, folder: Path, criu: Criu) -> None:
        self.cache, self.snapshot = folder / "c", folder / "kept"
        self.port = unused_port()
        self.app = write_app(folder / "app", port=self.port)
        self._moment = folder / "moment"  # and where to say so, a file of each run's own: another's may end late
        self._moment.write_text("free -\n")
        program = folder / "prefix" / "sbin" / "criu"
        program.parent.mkdir(parents=True)
        names = {"moment": self._moment, "run": self.cache / "run"}
        program.write_text(
            WRAPPER.format(criu=shlex.join(criu.argv), **{name: shlex.quote(str(path)) for name, path in names.items()})
        )
        program.chmod(0o755)
        self.env = {
            **os.environ,
            "TORPOR_CACHE": str(self.cache),
            PREFIX_VARIABLE: str(folder / "prefix"),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }

    def argv(self, *words: str) -> list[str]:
        """A command line of `torpor snapshot`."""
        return [sys.executable, "-m", "torpor.cli", "snapshot", *words]

    def freed(self) -> dict[str, str]:
        """The environment with a CRIU that is not paused."""
        self._moment.write_text("free -\n")
        return self.env

    def create(self) -> None:
        """Take the snapshot without a pause."""
        command = self.argv("create", str(self.app), str(self.snapshot), "--mode", MODES[-1])
        ran = subprocess.run(command, env=self.freed(), capture_output=True, text=True, timeout=120, check=False)
        assert ran.returncode == 0, ran.stderr

    @contextmanager
    def running(self, moment: Moment, *words: str) -> Iterator[tuple[subprocess.Popen[bytes], list[psutil.Process]]]:
        """A command and its processes, once CRIU is paused or the command serves."""
        held = self._moment.with_name(f"held-{uuid.uuid4().hex}")
        self._moment.write_text(f"{moment} {held}\n")
        with (
            (self.app.parent / "said").open("wb") as said,
            subprocess.Popen(self.argv(*words), env=self.env, stdout=subprocess.DEVNULL, stderr=said) as process,
        ):
            below: list[psutil.Process] = []
            try:
                there = self._serves if moment == "free" else held.exists
                assert wait_for(lambda: there() or process.poll() is not None, 120.0)
                assert process.poll() is None, (self.app.parent / "said").read_text()
                below = psutil.Process(process.pid).children(recursive=True)
                yield process, below
            finally:
                process.kill()
                for one in below:
                    with suppress(psutil.NoSuchProcess):
                        one.kill()

    def _serves(self) -> bool:
        """Whether the command says that it serves, and does. Before that a signal ends it at once."""
        if "Ctrl-C ends it" not in (self.app.parent / "said").read_text():
            return False
        try:
            return bool(chat(self.port, tokens=1))
        except (OSError, AssertionError):
            return False


@pytest.fixture
def held(criu: Criu, tmp_path: Path) -> Held:
    """An app and a CRIU for this test only."""
    return Held(tmp_path, criu)


@pytest.fixture(scope="module")
def kept(criu: Criu, tmp_path_factory: pytest.TempPathFactory) -> Held:
    """The same with a snapshot, for tests that do not change it."""
    made = Held(tmp_path_factory.mktemp("kept"), criu)
    made.create()
    return made


def end(
    process: subprocess.Popen[bytes], below: list[psutil.Process], number: signal.Signals, *, code: int = 130
) -> None:
    """Send a signal: the command must end by it, with this code if it can, and all of its processes with it."""
    assert len(below) >= 3  # outer, pid 1 and something in the sandbox
    process.send_signal(number)
    assert process.wait(30) == (-signal.SIGKILL if number == signal.SIGKILL else code)
    assert wait_for(lambda: not [one for one in below if is_running(one)], 10.0), below


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("moment", ["begun", pytest.param("halted", marks=pytest.mark.ordinary_user), "done"])
def test_a_capture_that_is_ended_leaves_no_sandbox_and_no_snapshot(
    held: Held, moment: Moment, number: signal.Signals
) -> None:
    """CRIU is at its start, in the middle, or done before the manifest is written. The next capture clears up."""
    with held.running(moment, "create", str(held.app), str(held.snapshot), "--mode", MODES[-1]) as (process, below):
        (partial,) = held.snapshot.parent.glob(".kept.partial-*")
        end(process, below, number)
    assert not held.snapshot.exists()
    assert partial.exists() is (number == signal.SIGKILL)  # that one left no time to clear up
    for folder in (held.snapshot, partial):
        with pytest.raises(SnapshotError, match="holds no snapshot"):
            inspect_snapshot(folder)
    held.create()
    assert not partial.exists()
    assert inspect_snapshot(held.snapshot).served_name == "standin"


@pytest.mark.parametrize("number", SIGNALS[:2], ids=lambda number: number.name)
def test_an_older_snapshot_stays_when_the_capture_of_a_new_one_is_ended(held: Held, number: signal.Signals) -> None:
    """It is replaced by a complete one or not at all."""
    held.create()
    before = inspect_snapshot(held.snapshot)
    with held.running("done", "create", str(held.app), str(held.snapshot), "--mode", MODES[-1]) as (process, below):
        end(process, below, number)
    assert inspect_snapshot(held.snapshot) == before


RESTORES: list[tuple[Moment, signal.Signals]] = [
    ("begun", signal.SIGTERM),
    ("done", signal.SIGKILL),
    *(("halted", number) for number in SIGNALS),
    *(("free", number) for number in SIGNALS),
]


@pytest.mark.parametrize(("moment", "number"), RESTORES, ids=lambda value: getattr(value, "name", value))
def test_a_restore_that_is_ended_leaves_no_replica_and_the_snapshot_as_it_was(
    kept: Held, moment: Moment, number: signal.Signals
) -> None:
    """During CRIU's work, which is not waited for, and while replicas serve. The same snapshot serves afterwards."""
    words = ("restore", str(kept.snapshot), "--replicas", "2", "--port", str(kept.port))
    with kept.running(moment, *words) as (process, below):
        end(process, below, number, code=0 if moment == "free" else 130)
    with kept.running("free", *words) as (process, below):
        assert chat(kept.port)
        end(process, below, signal.SIGTERM, code=0)


@pytest.mark.fault(
    "a supervisor kills the children of a capture or restore, then the command", area="snapshots", outcome="held"
)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.ordinary_user
def test_a_sandbox_ends_when_the_children_of_its_owner_are_killed_first(criu: Criu, mode: str, tmp_path: Path) -> None:
    """While CRIU captures, while it restores, and while the replica serves."""
    held = Held(tmp_path, criu)
    create = ("create", str(held.app), str(held.snapshot), "--mode", mode)
    with held.running("halted", *create) as (process, below):
        children_first(psutil.Process(process.pid))
        assert wait_for(lambda: not [one for one in below if is_running(one)], 10.0), below
    ran = subprocess.run(held.argv(*create), env=held.freed(), capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    moments: tuple[Moment, ...] = ("halted", "free")
    for moment in moments:
        with held.running(moment, "restore", str(held.snapshot)) as (process, below):
            assert len(below) >= 3
            children_first(psutil.Process(process.pid))
            assert wait_for(lambda: not [one for one in below if is_running(one)], 10.0), below
