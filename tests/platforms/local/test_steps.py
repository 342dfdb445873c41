"""Build steps on this machine: they run before the first start, are skipped once done, and leave no process."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.conftest import is_running
from tests.platforms.small import Patch, a_deployment
from torpor import BuildStep, BuildStepError, ImagePatch, Recipe
from torpor.build_steps.command import run_step
from torpor.platforms.local.server import LocalServer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def a_step(code: str, **values: object) -> BuildStep:
    """A step that runs Python code."""
    fields = {"name": "make", "argv": (sys.executable, "-c", code), "order": 10, "timeout_s": 60.0, **values}
    return BuildStep(**fields)  # type: ignore[arg-type]


def server_of(root: Path, *steps: BuildStep, on_step: Callable[[str], None] | None = None) -> LocalServer:
    """A server with these build steps; its volumes are under the root."""
    return LocalServer(a_deployment(Patch(steps=steps)), root=root, on_step=on_step)


def test_a_step_gets_its_environment_and_its_volume(tmp_path: Path) -> None:
    """A mount path becomes a folder under the cache root, created if missing."""
    code = "import os; print(os.environ['WHO'], file=open(os.environ['OUT'], 'w'))"
    step = a_step(code, env={"WHO": "me", "OUT": "/vol/w/who"}, volumes={"/vol/w": "weights"})
    server_of(tmp_path, step).build()
    assert (tmp_path / "volumes" / "weights" / "who").read_text() == "me\n"


def test_a_step_whose_outputs_exist_is_not_run_again(tmp_path: Path) -> None:
    """A step without outputs runs each time: nothing shows whether it was done."""
    runs, made = tmp_path / "runs", tmp_path / "made"
    code = f"print('x', file=open({str(runs)!r}, 'a')); print('y', file=open({str(made)!r}, 'w'))"
    told: list[str] = []
    for _ in range(2):
        server_of(tmp_path, a_step(code, outputs=(str(made),)), on_step=told.append).build()
    assert (runs.read_text(), told) == ("x\n", ["make"])
    for _ in range(2):
        server_of(tmp_path, a_step(code)).build()
    assert runs.read_text() == "x\n" * 3


def test_what_a_step_prints_goes_to_standard_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Standard output is for a command's result, such as an answer or JSON."""
    server_of(tmp_path, a_step("import sys; print('one'); print('two', file=sys.stderr)")).build()
    shown = capfd.readouterr()
    assert shown.out == ""
    assert {"one", "two"} <= set(shown.err.splitlines())


def test_a_failed_step_is_named_with_its_code_and_its_command(tmp_path: Path) -> None:
    """No step after it runs."""
    later = tmp_path / "later"
    steps = (a_step("raise SystemExit(3)"), a_step(f"open({str(later)!r}, 'w')", name="later", order=20))
    with pytest.raises(
        BuildStepError, match=r"Build step 'make' failed with exit code 3; its output stands above\. The"
    ):
        server_of(tmp_path, *steps).build()
    assert not later.exists()


def test_an_interruption_ends_the_step_and_what_it_started(tmp_path: Path) -> None:
    """Ctrl-C reaches the framework's process alone. It signals the runner and waits for it."""
    pids = tmp_path / "pids"
    code = f"""
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
open({str(pids)!r} + ".new", "w").write(f"{{os.getpid()}} {{child.pid}}")
os.rename({str(pids)!r} + ".new", {str(pids)!r})
time.sleep(600)
"""
    ended = threading.Event()

    def interrupt() -> None:
        while not pids.exists() and not ended.wait(0.02):
            pass
        if not ended.is_set():
            os.kill(os.getpid(), signal.SIGINT)

    watching = threading.Thread(target=interrupt)
    watching.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            server_of(tmp_path, a_step(code)).build()
    finally:
        ended.set()
        watching.join()
    assert [pid for pid in map(int, pids.read_text().split()) if is_running(pid)] == []


@pytest.mark.slow
@pytest.mark.fault("the runner of a build step hangs itself", area="build steps", outcome="refused")
def test_a_runner_that_misses_its_own_deadline_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hanging disk could block the runner. Here its own step stops it with a signal."""
    monkeypatch.setattr("torpor.build_steps.command._RUNNER_SPARE_S", 0.5)
    code = "import os, signal, time; os.kill(os.getppid(), signal.SIGSTOP); time.sleep(600)"
    step = BuildStep(name="stop", argv=(sys.executable, "-c", code), order=1, timeout_s=0.5)
    began = time.monotonic()
    with pytest.raises(BuildStepError, match="'stop' did not end, and neither did its runner"):
        run_step(step, Recipe(image=ImagePatch()))
    assert time.monotonic() - began < 20
