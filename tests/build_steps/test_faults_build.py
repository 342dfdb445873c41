"""The framework ends during a build step or a check: nothing keeps running, and half a result never counts as complete."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.conftest import is_running
from torpor import BuildStepError, PreflightError
from torpor.app_file import load_app
from torpor.platforms.local.server import LocalServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

APP = textwrap.dedent("""
    import sys
    from dataclasses import dataclass
    from torpor import BuildPlan, BuildStep, Deployment, Model, Plugin, Preflight, hookimpl
    from torpor.testing import StandIn

    @dataclass(frozen=True, kw_only=True)
    class Made(Plugin):
        plugin_name = "made"

        @hookimpl
        def compile_kernels(self, deployment):
            command = (sys.executable, {program!r}, {folder!r})
            if {stage!r} == "preflight":
                check = Preflight(name="look", argv=command, timeout_s=60, cure="Wait.")
                return BuildPlan(preflight=(check,))
            step = BuildStep(name="make", argv=command, order=10, timeout_s=60, outputs=({folder!r} + "/made",))
            return BuildPlan(steps=(step,))

    deployment = Deployment(name="x", model=Model(path="/m"), plugins=(Made(), StandIn()), port={port})
""")

PROGRAM = textwrap.dedent("""
    import os, signal, subprocess, sys, time
    from pathlib import Path

    folder = Path(sys.argv[1])
    with (folder / "made").open("a") as made:
        made.write("half ")
        made.flush()
        if (folder / "go").exists():
            made.write("whole")
            sys.exit()
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN); " if (folder / "deaf").exists() else ""
    nap = [sys.executable, "-c", f"import signal, time; {deaf}print('up', flush=True); time.sleep(600)"]
    children = [subprocess.Popen(nap, start_new_session=apart, stdout=subprocess.PIPE) for apart in (False, True)]
    for child in children:
        child.stdout.readline()
    (folder / "new").write_text(" ".join(str(pid) for pid in (os.getppid(), os.getpid(), *(one.pid for one in children))))
    (folder / "new").rename(folder / "pids")
    time.sleep(600)
""")
"""Makes half of a result, starts two children (one in a session of its own) and waits. With `go` it makes all of it."""


class Work:
    """An app whose build step, or check, is the program above.

    Args:
        folder: holds all its files.
        port: the port of its engine, which never starts.
        stage: build or preflight.
    """

    def __init__(self, folder: Path, port: int, stage: str) -> None:
        self.folder, self.app, self.cache = folder / "work", folder / "app.py", folder / "cache"
        self.folder.mkdir()
        program = folder / "program.py"
        program.write_text(PROGRAM)
        self.app.write_text(APP.format(program=str(program), folder=str(self.folder), stage=stage, port=port))

    @property
    def pids(self) -> list[int]:
        """Pids of the program's parent (a step's runner), the program and its two children; empty until all of them run."""
        with suppress(FileNotFoundError):
            return [int(pid) for pid in (self.folder / "pids").read_text().split()]
        return []

    def left(self) -> list[int]:
        """Those that still run."""
        return [pid for pid in self.pids if is_running(pid)]

    def server(self) -> LocalServer:
        """A server of the app in this process."""
        return LocalServer(load_app(str(self.app)).deployment, root=self.cache)

    @contextmanager
    def up(self) -> Iterator[subprocess.Popen[bytes]]:
        """`torpor up` as the leader of a process group, as in a terminal, while the program runs."""
        with subprocess.Popen(
            [sys.executable, "-m", "torpor.cli", "up", str(self.app), "--backend", "none"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "TORPOR_CACHE": str(self.cache), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        ) as process:
            try:
                assert seen(lambda: self.pids or process.poll() is not None, 60.0)
                assert len(self.left()) == 4
                yield process
            finally:
                process.kill()
                for pid in self.pids[1:]:
                    with suppress(psutil.NoSuchProcess):
                        psutil.Process(pid).kill()


def seen(look: Callable[[], object], timeout_s: float) -> bool:
    """Whether something becomes true before the time-out."""
    deadline = time.monotonic() + timeout_s
    while not (found := look()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(found)


def _ends() -> list[object]:
    """Signals to the framework's process alone, and to its group, as when Ctrl-C is pressed or the terminal closes."""
    found: list[object] = []
    for stage in ("build", "preflight"):
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            for whole_group in (False, True):
                quick = (stage, number, whole_group) == ("build", signal.SIGKILL, False)
                name = f"{stage}-{number.name}{'-to-the-group' if whole_group else ''}"
                marks = () if quick else pytest.mark.slow
                found.append(pytest.param(stage, number, whole_group, id=name, marks=marks))
    return found


@pytest.mark.parametrize(("stage", "number", "whole_group"), _ends())
def test_the_frameworks_end_ends_the_step_and_the_next_start_builds_again(
    tmp_path: Path, free_port: int, stage: str, number: signal.Signals, whole_group: bool
) -> None:
    """Program and children end within seconds, even after a SIGKILL and even if they ignore SIGTERM."""
    work = Work(tmp_path, free_port, stage)
    if number == signal.SIGKILL:
        (work.folder / "deaf").touch()
    with work.up() as process:
        (os.killpg if whole_group else os.kill)(process.pid, number)
        assert process.wait(20) == (130 if number in (signal.SIGINT, signal.SIGTERM) else -number)
        assert seen(lambda: not work.left(), 10.0), work.left()
    assert (work.folder / "made").read_text() == "half "
    if stage == "preflight":
        return
    (work.folder / "go").touch()
    for _ in range(2):
        work.server().build()
        assert (work.folder / "made").read_text() == "half half whole"


def test_a_failed_step_runs_again_even_if_it_left_a_result(tmp_path: Path, free_port: int) -> None:
    """Here SIGKILL hits the runner alone, as when memory runs out. Everything that the step started ends too."""
    work = Work(tmp_path, free_port, "build")

    def kill_the_runner(name: str) -> None:
        assert name == "make"

        def kill() -> None:
            if seen(lambda: work.pids, 60.0):
                os.kill(work.pids[0], signal.SIGKILL)

        threading.Thread(target=kill, daemon=True).start()

    server = LocalServer(load_app(str(work.app)).deployment, root=work.cache, on_step=kill_the_runner)
    with pytest.raises(BuildStepError, match="'make' failed with exit code -9"):
        server.build()
    assert work.left() == []
    (work.folder / "go").touch()
    work.server().build()
    assert (work.folder / "made").read_text() == "half half whole"


@pytest.mark.slow
def test_a_check_past_its_deadline_is_ended_with_all_that_it_started(tmp_path: Path, free_port: int) -> None:
    """Its children end too, even in a session of their own."""
    work = Work(tmp_path, free_port, "preflight")
    work.app.write_text(work.app.read_text().replace("timeout_s=60", "timeout_s=8"))
    with pytest.raises(PreflightError, match=r"'look' took longer than 8 s\. Wait\."):
        work.server().boot.cold_start()
    assert len(work.pids) == 4
    assert [pid for pid in work.pids[1:] if is_running(pid)] == []


def test_if_two_processes_build_the_same_the_second_waits_and_uses_the_result(tmp_path: Path, free_port: int) -> None:
    """Nothing is built twice, and no result is used before it is complete."""
    work = Work(tmp_path, free_port, "build")
    with work.up():
        second = threading.Thread(target=work.server().build)
        second.start()
        second.join(0.5)
        assert second.is_alive()
        os.kill(work.pids[1], signal.SIGKILL)
        (work.folder / "go").touch()
        second.join(30)
        assert not second.is_alive()
    assert (work.folder / "made").read_text() == "half half whole"


def test_a_step_that_cannot_be_noted_is_not_begun(tmp_path: Path, free_port: int) -> None:
    """Something else is in the note's place."""
    work = Work(tmp_path, free_port, "build")
    work.cache.mkdir()
    (work.cache / "steps").write_text("a file")
    with pytest.raises(BuildStepError, match=r"'make' was not begun: no note of it can be made in .*/steps"):
        work.server().build()
    assert not (work.folder / "made").exists()
