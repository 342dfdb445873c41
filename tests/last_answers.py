"""A test that fails shows the last HTTP answers that its process got, with their bodies, and the logs of its servers.

`assert httpx.get(url).status_code == 200` says only which other number came. The reason stands in the body, which is gone by then.
"""

from __future__ import annotations

from collections import deque
from functools import wraps
from typing import TYPE_CHECKING

import httpx
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

__all__ = ["add_to", "note", "note_log"]

_MOST = 6
_MOST_TEXT = 1500
_MOST_LOG = 6000

_answers: deque[str] = deque(maxlen=_MOST)
_logs: deque[tuple[Path, Callable[[], str]]] = deque(maxlen=_MOST)


def note(request: str, status: int, body: str | bytes) -> None:
    """Remember an answer. Clients other than httpx call this.

    Args:
        request: method and path.
        status: of the answer.
        body: its body, as far as it was read.
    """
    text = body.decode(errors="replace") if isinstance(body, bytes) else body
    _answers.append(f"{request}: {status} {text[:_MOST_TEXT]}{'...' if len(text) > _MOST_TEXT else ''}")


def note_log(file: Path, state: Callable[[], str]) -> None:
    """Remember the log of a server.

    Args:
        file: where it writes.
        state: what to say of its process, when the test has failed.
    """
    _logs.append((file, state))


def add_to(report: pytest.TestReport) -> None:
    """Add what is remembered to the report of a failed test."""
    add: Callable[[str, str], None] | None = getattr(report.longrepr, "addsection", None)
    if not report.failed or add is None:
        return
    if _answers:
        add("last answers", "\n".join(_answers))
    for file, state in _logs:
        text = file.read_text(errors="replace") if file.exists() else "(it is gone)"
        add(f"log of {file.name}, {state()}", text[-_MOST_LOG:])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    """Each test begins with nothing."""
    _answers.clear()
    _logs.clear()
    return (yield)


def _noting(send: Callable[..., httpx.Response]) -> Callable[..., httpx.Response]:
    @wraps(send)
    def sent(self: httpx.Client, request: httpx.Request, *, stream: bool = False, **more: object) -> httpx.Response:
        answer = send(self, request, stream=stream, **more)
        body = "(a stream)" if stream else answer.content[: _MOST_TEXT + 1]
        note(f"{request.method} {request.url}", answer.status_code, body)
        return answer

    return sent


@pytest.hookimpl
def pytest_configure() -> None:
    """Note every answer that a client of httpx gets in this process."""
    httpx.Client.send = _noting(httpx.Client.send)  # type: ignore[method-assign]


@pytest.hookimpl
def pytest_unconfigure() -> None:
    """Undo `pytest_configure`."""
    httpx.Client.send = httpx.Client.send.__wrapped__  # type: ignore[attr-defined, method-assign]
