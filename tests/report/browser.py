"""A real browser for the tests of a page: headless Chromium, driven by its own protocol over two pipes."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, cast

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REQUIRE_VARIABLE = "TORPOR_REQUIRE_CHROMIUM"
DEADLINE_S = 60.0
_QUIET = ("--no-first-run", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage")
# Chromium reads its orders from descriptor 3 and answers on 4.
_TAKE_PIPES = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execvp(sys.argv[3], sys.argv[3:])"
)


class Browser:
    """One page of a browser at a time.

    Attributes:
        complaints: what stood in the console since the last `show`, errors and warnings.
        requests: addresses that were fetched since then.
    """

    def __init__(self, orders: int, answers: int) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._orders, self._answers = orders, answers
        self._read = b""
        self._number = 0
        self._session = ""
        self._loaded = False
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = str(self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def show(self, page: Path | str, *, width: int, scheme: str = "light") -> None:
        """Load a file, or a URL, in a window of this width in pixels, with the colour scheme `light` or `dark`."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.complaints, self.requests, self._loaded = [], [], False
        self._call("Page.navigate", url=page if isinstance(page, str) else page.as_uri())
        deadline = time.monotonic() + DEADLINE_S
        while not self._loaded:
            self._hear(deadline)

    def ask(self, expression: str) -> object:
        """The value of a JavaScript expression on the page."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return cast("dict[str, object]", answer["result"])["value"]

    def type(self, text: str) -> None:
        """Type into the field that has the focus."""
        self._call("Input.insertText", text=text)

    def picture(self) -> bytes:
        """What the window shows, as PNG."""
        return base64.b64decode(str(self._call("Page.captureScreenshot", format="png")["data"]))

    def _call(self, method: str, **params: object) -> dict[str, object]:
        self._number += 1
        order = {"id": self._number, "method": method, "params": params}
        if self._session:
            order["sessionId"] = self._session
        os.write(self._orders, json.dumps(order).encode() + b"\0")
        deadline = time.monotonic() + DEADLINE_S
        while (heard := self._hear(deadline)).get("id") != self._number:
            pass
        assert "error" not in heard, heard
        return cast("dict[str, object]", heard["result"])

    def _hear(self, deadline: float) -> dict[str, object]:
        """The next answer or event."""
        while b"\0" not in self._read:
            left_s = deadline - time.monotonic()
            assert left_s > 0, "the browser did not answer in time"
            if select.select([self._answers], [], [], left_s)[0]:
                got = os.read(self._answers, 1 << 20)
                assert got, "the browser has ended"
                self._read += got
        raw, _, self._read = self._read.partition(b"\0")
        heard = cast("dict[str, object]", json.loads(raw))
        self._note(str(heard.get("method")), cast("dict[str, dict[str, object]]", heard.get("params", {})))
        return heard

    def _note(self, event: str, params: dict[str, dict[str, object]]) -> None:
        if event == "Page.loadEventFired":
            self._loaded = True
        elif event == "Network.requestWillBeSent":
            self.requests.append(str(params["request"]["url"]))
        elif event == "Log.entryAdded":
            self.complaints.append(str(params["entry"]["text"]))
        elif event in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
            self.complaints.append(json.dumps(params))


@contextlib.contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A browser with a profile of its own, ended with the block. Skips the test without Chromium."""
    program = shutil.which("chromium")
    if program is None:
        reason = "there is no chromium in PATH; on Debian: apt-get install chromium"
        if os.environ.get(REQUIRE_VARIABLE):
            pytest.fail(f"{REQUIRE_VARIABLE} is set, but {reason}")
        pytest.skip(reason)
    theirs_in, orders = os.pipe()
    answers, theirs_out = os.pipe()
    argv = [program, "--headless", "--no-sandbox", "--remote-debugging-pipe", f"--user-data-dir={profile}", *_QUIET]
    with (profile.parent / f"{profile.name}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _TAKE_PIPES, str(theirs_in), str(theirs_out), *argv],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield Browser(orders, answers)
    finally:
        os.close(orders)
        os.close(answers)
        with contextlib.suppress(ProcessLookupError):  # without its pipes it ends by itself, too
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(DEADLINE_S)
