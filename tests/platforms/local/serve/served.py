"""Stand-in deployments for `torpor serve`, and clients that ask them."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

import psutil

from tests.last_answers import note, note_log
from torpor.platforms.local.running import RunningServer, servers
from torpor.testing.ports import unused_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

APP = """
from torpor import Deployment, Model, Scaling
from torpor.testing import {engine}

deployment = Deployment(
    name={name!r},
    model=Model(path={folder!r}, served_name="model-{name}"),
    plugins=({engine}(warmup_requests=1, {more}),),
    scaling=Scaling(target_concurrency=50, max_concurrency=200),
    drain_timeout_s=2,
    startup_timeout_s=60,
)
"""


class Answered(NamedTuple):
    """An answer: status, the headers that Torpor adds, and the body."""

    status: int
    start: str
    waited_s: float
    body: dict[str, object]
    retry_after: str


def write_app(folder: Path, name: str, *, more: str = "", engine: str = "StandIn") -> str:
    """An app file with a stand-in; its model is `model-NAME`."""
    model = folder / f"model-{name}"
    model.mkdir(exist_ok=True)
    file = folder / f"{name}.py"
    file.write_text(APP.format(name=name, folder=str(model), more=more, engine=engine))
    return str(file)


def ask(port: int, model: str, *, tokens: int = 2, prompt: str = "hello", timeout_s: float = 60.0) -> Answered:
    """Ask once, on a new connection. The answer is greedy."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    messages = [{"role": "user", "content": prompt}]
    body = {"model": model, "messages": messages, "max_tokens": tokens, "temperature": 0}
    try:
        headers = {"content-type": "application/json", "connection": "close"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read()
        note(f"POST /v1/chat/completions ({model})", answer.status, text)
        return Answered(
            answer.status,
            answer.getheader("X-Torpor-Start", ""),
            float(answer.getheader("X-Torpor-Waited", "0")),
            json.loads(text),
            answer.getheader("Retry-After", ""),
        )
    finally:
        connection.close()


def control(
    port: int, key: str, method: str, path: str, *, timeout_s: float = 30.0, **headers: str
) -> tuple[int, dict[str, object]]:
    """Ask a control path."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        given = {"Authorization": f"Bearer {key}"} if key else {}
        connection.request(method, f"/torpor/{path}", headers=given | headers)
        answer = connection.getresponse()
        text = answer.read()
        note(f"{method} /torpor/{path}", answer.status, text)
        return answer.status, json.loads(text)
    finally:
        connection.close()


def wait_until(look: Callable[[], bool], timeout_s: float = 30.0) -> bool:
    """Whether it becomes true in time."""
    deadline = time.monotonic() + timeout_s
    while not (seen := look()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return seen


def engines_of(folder: Path, model: str = "") -> list[int]:
    """Pids of all stand-ins that were started with a cache root below a folder, in any sandbox.

    Args:
        folder: of the test.
        model: only those that serve it.
    """
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        if "torpor.testing.standin" not in words or process.info["status"] == psutil.STATUS_ZOMBIE:
            continue
        with contextlib.suppress(psutil.Error):
            is_ours = process.environ().get("TORPOR_CACHE", "").startswith(str(folder))
            if is_ours and (not model or model in words):
                found.append(process.pid)
    return found


class Command(NamedTuple):
    """A running `torpor serve`."""

    process: subprocess.Popen[str]
    port: int
    log: Path

    @property
    def control_key(self) -> str:
        """The key of its control paths. It answers before it has written itself down for `torpor status`."""
        found: list[str] = []

        def noted() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            ours = (one for one in servers() if isinstance(one, RunningServer) and one.url.endswith(f":{self.port}"))
            found.extend(one.control_key for one in ours)
            return bool(found)

        assert wait_until(noted), self.log.read_text()
        return found[0]

    def wait_until_it_listens(self) -> None:
        """Until it answers on its own health path."""

        def listens() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2.0)
            with contextlib.closing(connection), contextlib.suppress(OSError):
                connection.request("GET", "/health")
                return connection.getresponse().status == 200
            return False

        assert wait_until(listens, 60.0), self.log.read_text()


@contextlib.contextmanager
def serving_command(folder: Path, files: Sequence[str], *options: str) -> Iterator[Command]:
    """`torpor serve` as a command of its own, ended at the end."""
    port, log = unused_port(), folder / "serve.log"
    argv = [sys.executable, "-m", "torpor.cli", "serve", *files, "--port", str(port), *options]
    with log.open("w") as stream:
        process = subprocess.Popen(argv, stdout=stream, stderr=subprocess.STDOUT, text=True, env=dict(os.environ))
    note_log(log, lambda: f"exit code {process.poll()}")
    try:
        command = Command(process, port, log)
        command.wait_until_it_listens()
        yield command
    finally:
        process.kill()
        process.wait(30.0)
