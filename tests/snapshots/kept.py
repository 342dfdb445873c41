"""A stand-in deployment in an app file, and snapshots of it, for tests of capture and restore."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

_APP = """
from torpor import Deployment, Model
from torpor.testing import {standin}

deployment = Deployment(
    name="kept",
    model=Model(path={folder!r}, served_name="standin"),
    plugins=({standin}(token_s={token_s}, warmup_requests={warmups}{more}),),
    port={port},
    drain_timeout_s=0.3,
    startup_timeout_s=60,
    secrets_in_snapshot={secrets!r},
)
"""


def write_app(
    folder: Path,
    *,
    port: int,
    token_s: float = 0.0,
    warmups: int = 1,
    more: str = "",
    secrets: str = "refuse",
    standin: str = "StandIn",
) -> Path:
    """Write the app file; other arguments give another deployment."""
    folder.mkdir(exist_ok=True)
    app = folder / "kept.py"
    values = {
        "port": port,
        "token_s": token_s,
        "warmups": warmups,
        "more": more,
        "secrets": secrets,
        "standin": standin,
    }
    app.write_text(_APP.format(folder=str(folder), **values))
    return app


ATTEMPTS = 10
"""How often something is tried that has to happen in the tenth of a second for which CRIU works."""


@contextmanager
def when_criu_works(place: Path, act: Callable[[int], None]) -> Iterator[None]:
    """Call something with CRIU's pid as soon as CRIU works on images under a folder.

    On a busy machine CRIU may finish first; then the test tries again (`ATTEMPTS`).
    """
    ended = threading.Event()

    def watch() -> None:
        while not ended.is_set():
            for folder in Path("/proc").iterdir():
                with contextlib.suppress(OSError):
                    words = (folder / "cmdline").read_bytes() if folder.name.isdigit() else b""
                    if b"criu\0" in words and b"--images-dir\0" + os.fsencode(place) in words:
                        act(int(folder.name))
                        return

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def killing_criu(place: Path) -> AbstractContextManager[None]:
    """SIGKILL the first CRIU that works on images under a folder."""
    return when_criu_works(place, lambda pid: os.kill(pid, signal.SIGKILL))


def chat(port: int, *, temperature: float = 0.0, tokens: int = 8, prompt: str = "hello", model: str = "standin") -> str:
    """Ask once through the public port, on a new connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20.0)
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "temperature": temperature,
    }
    try:
        headers = {"content-type": "application/json", "connection": "close"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read()
        assert answer.status == 200, text
        return str(json.loads(text)["choices"][0]["message"]["content"])
    finally:
        connection.close()


OTHER_CANARY: dict[str, object] = {
    "kind": "text",
    "answer": {"prompt": "Name the months.", "tokens": 16, "text": "something else"},
    "questions": {},
}
"""A canary that no replica answers like this, as a manifest has it."""


def engines_on(port: int) -> list[int]:
    """Pids of the stand-ins with this port, in any sandbox."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        listening = words[words.index("--port") + 1 :][:1] if "--port" in words else []
        if listening == [str(port)] and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process.pid)
    return found


class Background:
    """A call in a thread, with its result or error."""

    def __init__(self, call: object) -> None:
        self.result: object = None
        self.error: BaseException | None = None
        self._call = call
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def join(self) -> object:
        """The result of the call, or its error."""
        self._thread.join(30.0)
        if self.error is not None:
            raise self.error
        return self.result

    def _run(self) -> None:
        assert callable(self._call)
        try:
            self.result = self._call()
        except BaseException as error:
            self.error = error
