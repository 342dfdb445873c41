"""`ModalPlane`: the control plane in a thread, and the real client in subprocesses that use it."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from grpclib.server import Server
from modal_proto import api_pb2

from tests.modal_plane.blobs import BlobServer
from tests.modal_plane.reader import DeployedApp
from tests.modal_plane.service import control_plane
from tests.modal_plane.store import App, Outcome, Store

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tests.modal_plane.store import LogEntry

__all__ = ["Finished", "ModalPlane"]

_START_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Finished:
    """A command that ended: its exit code and its output on both streams."""

    code: int
    output: str


class ModalPlane:
    """A loopback Modal control plane; a context manager.

    Args:
        home: an empty folder, the client's home: no configuration and no credentials of this machine are seen.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.store = Store()
        self.port = 0
        self._blobs = BlobServer(self.store)
        self._loop = asyncio.new_event_loop()
        self._stop: asyncio.Event | None = None
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._started.wait(_START_TIMEOUT_S):
            raise TimeoutError("the loopback control plane did not start")
        return self

    def __exit__(self, *failure: object) -> None:
        if self._stop:
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_START_TIMEOUT_S)
        self._blobs.close()

    # --- what a test sets ---------------------------------------------------------------------------------------------

    def add_secret(self, name: str) -> None:
        """Create a named secret; any other name gets NOT_FOUND."""
        self.store.secrets[name] = self.store.new_id("st")

    def serve_web_at(self, url: str) -> None:
        """From now on, give every web server of a deployed or running app this URL."""
        self.store.web_url = url

    def fail_builds_with(self, part: str) -> None:
        """Fail the build of every layer that has `part` in one of its commands."""
        self.store.failing_command = part

    def answer_calls(self, function: str, value: object) -> None:
        """End calls of a function with `value`. Without it they fail, because there are no containers."""
        self.store.outcomes[function] = Outcome(value=value)

    def publish(self, name: str) -> str:
        """Publish an app without functions that nobody deployed here; return its id."""
        app = App(self.store.new_id("ap"), name, state=api_pb2.APP_STATE_DEPLOYED)
        self.store.apps[app.app_id] = app
        return app.app_id

    def add_logs(self, app_id: str, *entries: LogEntry) -> None:
        """Add entries to an app's log, in the order of their times."""
        self.store.logs.setdefault(app_id, []).extend(entries)

    # --- what a test reads --------------------------------------------------------------------------------------------

    def app(self, name: str) -> DeployedApp:
        """The deployed app of that name.

        Raises:
            KeyError: it is not deployed.
        """
        app = self.store.deployed(name)
        if app is None:
            raise KeyError(name)
        return DeployedApp(self.store, app.app_id)

    @property
    def ephemeral(self) -> DeployedApp:
        """The app of the latest `modal run`."""
        return DeployedApp(self.store, list(self.store.apps)[-1])

    # --- the real client ----------------------------------------------------------------------------------------------

    def environment(self) -> dict[str, str]:
        """Environment variables that point the real client here and hide this machine's configuration."""
        config = self.home / "modal.toml"
        config.touch()
        return self.clean_environment() | {
            "MODAL_SERVER_URL": f"http://127.0.0.1:{self.port}",
            "MODAL_TOKEN_ID": "ak-loopback",
            "MODAL_TOKEN_SECRET": "as-loopback",
            "MODAL_CONFIG_PATH": str(config),
            "MODAL_DISABLE_API_PROXY": "1",
            "MODAL_BUILD_VALIDATION": "ignore",  # saving a file while the tests run breaks no deployment
            "HOME": str(self.home),
            "NO_COLOR": "1",
            "COLUMNS": "200",
        }

    @staticmethod
    def clean_environment() -> dict[str, str]:
        """This process's environment without variables that configure Modal or Torpor."""
        return {name: value for name, value in os.environ.items() if not name.startswith(("MODAL_", "TORPOR_"))}

    def modal(self, *argv: str, cwd: Path, env: Mapping[str, str] | None = None, timeout_s: float = 120.0) -> Finished:
        """Run the real `modal` command line against this plane."""
        return self.python("-m", "modal", *argv, cwd=cwd, env=env, timeout_s=timeout_s)

    def python(self, *argv: str, cwd: Path, env: Mapping[str, str] | None = None, timeout_s: float = 120.0) -> Finished:
        """Run this interpreter with the client's environment."""
        return run([sys.executable, *argv], cwd=cwd, env=self.environment() | dict(env or {}), timeout_s=timeout_s)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve_until_stopped())
        finally:
            self._loop.close()

    async def _serve_until_stopped(self) -> None:
        server = Server([control_plane(self.store, self._blobs)])
        self._stop = asyncio.Event()
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        await server.start(sock=listener)
        self._started.set()
        await self._stop.wait()
        server.close()
        await server.wait_closed()


def run(argv: Sequence[str], *, cwd: Path, env: Mapping[str, str], timeout_s: float) -> Finished:
    """Run a command to its end; both streams together, as a terminal shows them.

    Raises:
        subprocess.TimeoutExpired: it did not end in time; it was killed.
    """
    finished = subprocess.run(
        argv,
        cwd=cwd,
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=timeout_s,
        check=False,
    )
    return Finished(finished.returncode, finished.stdout.decode(errors="replace"))
