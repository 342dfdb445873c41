"""`Container`: Modal's real container entrypoint, run on the files of a deployed function."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Self

import psutil
from modal_proto import api_pb2

from tests.modal_plane.store import ENVIRONMENT, Task

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.modal_plane.plane import ModalPlane
    from tests.modal_plane.reader import DeployedFunction

__all__ = ["Container"]

_RESTORE_VARIABLE = "MODAL_RESTORE_STATE_PATH"
_WAIT_S = 60.0
_POLL_S = 0.02


class Container:
    """One container of a deployed function; a context manager that always ends its processes.

    The process is Modal's `modal._container_entrypoint`, unmodified, and gets what the runtime would give it, by the same
    file and variables. No snapshot is taken: the process waits where it would be restored until `restore` continues it.

    Args:
        plane: the control plane that it talks to.
        function: what it runs.
        root: an empty folder, for the files that are mounted under `/` on the platform.
        snapshot: whether the platform takes a snapshot in this container, as it does in the first ones of a deployment.
        calls: number of calls without arguments that it gets.
    """

    def __init__(
        self, plane: ModalPlane, function: DeployedFunction, root: Path, *, snapshot: bool = False, calls: int = 0
    ) -> None:
        self.plane = plane
        self.root = root
        self.task = Task(calls=calls)
        self.output = root / "output.txt"
        self._function = function
        self._snapshot = snapshot
        self._restored = root / "restore-state.json"
        self._task_id = plane.store.new_id("ta")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._function.write_files(self.root)
        arguments = self.root / "arguments.bin"
        arguments.write_bytes(self._arguments().SerializeToString())
        self.plane.store.tasks[self._task_id] = self.task
        variables = {
            "MODAL_SERVER_URL": f"http://127.0.0.1:{self.plane.port}",
            "MODAL_IS_REMOTE": "1",
            "MODAL_TASK_ID": self._task_id,
            "MODAL_CONTAINER_ARGUMENTS_PATH": str(arguments),
            _RESTORE_VARIABLE: str(self._restored),
            "MODAL_DISABLE_API_PROXY": "1",
            "PYTHONPATH": str(self.root / "root"),
            "HOME": str(self.plane.home),
        }
        if self._snapshot:
            variables["MODAL_ENABLE_SNAP_RESTORE"] = "1"
        with self.output.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "modal._container_entrypoint"],
                cwd=self.root / "root",
                env=self.plane.clean_environment() | variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        return self

    def __exit__(self, *failure: object) -> None:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(_RESTORE_VARIABLE) == str(self._restored):
                    process.kill()
        if self._process:
            self._process.wait()

    def wait_for_snapshot(self) -> None:
        """Wait until it asks for a snapshot, after the enter methods before the snapshot."""
        self._wait(lambda: self.task.snapshots > 0, "ask for a snapshot")

    def restore(self, *, task_id: str = "") -> None:
        """Continue it as the runtime does after a restore: write a file with the changes.

        Args:
            task_id: the container in which it is restored; by default the one in which it was captured.
        """
        beside = self._restored.with_suffix(".tmp")
        beside.write_text(json.dumps({"task_id": task_id or self._task_id, "snapshot_debug": "0"}))
        beside.rename(self._restored)

    def wait_until_ready(self) -> None:
        """Wait until all enter methods have run and the web server's port is open."""
        self._wait(lambda: self.task.ready, "get ready")

    def kill_switch(self) -> int:
        """Tell it to end, as the platform does when it scales down; return the exit code."""
        self.task.kill = True
        return self.wait()

    def interrupt(self) -> int:
        """Send it SIGINT; return the exit code."""
        if self._process:
            self._process.send_signal(signal.SIGINT)
        return self.wait()

    def wait(self) -> int:
        """Wait for its end; return the exit code."""
        if self._process is None:
            raise RuntimeError("the container was not started")
        return self._process.wait(_WAIT_S)

    def log(self) -> str:
        """Its output so far."""
        return self.output.read_text(errors="replace")

    def _wait(self, happened: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _WAIT_S
        while not happened():
            if time.monotonic() > deadline or (self._process and self._process.poll() is not None):
                raise AssertionError(f"the container did not {what}; it printed:\n{self.log()}")
            time.sleep(_POLL_S)

    def _arguments(self) -> api_pb2.ContainerArguments:
        stored = self.plane.store.functions[self._function.function_id]
        definition = api_pb2.Function()
        definition.CopyFrom(stored.definition)
        definition.is_checkpointing_function = definition.checkpointing_enabled
        arguments = api_pb2.ContainerArguments(
            task_id=self._task_id,
            function_id=stored.function_id,
            app_id=stored.app_id,
            function_def=definition,
            environment_name=ENVIRONMENT,
            app_layout=self.plane.store.layout(stored.app_id),
        )
        if self._snapshot:
            arguments.checkpoint_id = "ch-0000000000000000000001"
        return arguments
