"""What a failed test shows of the answers that it got and of its servers' logs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import httpx

from tests import last_answers

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def shown_by_a_failure(*, failed: bool = True) -> dict[str, str]:
    """Title and text of each section that a report gets."""
    found: dict[str, str] = {}
    longrepr = SimpleNamespace(addsection=lambda name, content: found.update({name: content}))
    last_answers.add_to(cast("pytest.TestReport", SimpleNamespace(failed=failed, longrepr=longrepr)))
    return found


def test_a_failed_test_shows_status_and_body_of_its_last_answers() -> None:
    """Also of an answer that nothing refers to any more. A test that passed shows none."""
    transport = httpx.MockTransport(lambda request: httpx.Response(503, text=f"no room for {request.url.path}"))
    with httpx.Client(transport=transport) as client:
        assert client.get("http://x/first").status_code == 503
        with client.stream("GET", "http://x/second") as answer:
            assert answer.status_code == 503
    last_answers.note("POST /v1", 400, b"x" * 10_000)
    first, second, third = shown_by_a_failure()["last answers"].splitlines()
    assert first == "GET http://x/first: 503 no room for /first"
    assert second == "GET http://x/second: 503 (a stream)"
    assert third.startswith("POST /v1: 400 xxx")
    assert len(third) < 2000
    assert shown_by_a_failure(failed=False) == {}


def test_the_last_answers_are_few() -> None:
    """The newest ones."""
    for number in range(20):
        last_answers.note("GET /", 200, str(number))
    lines = shown_by_a_failure()["last answers"].splitlines()
    assert [line.split()[-1] for line in lines] == [str(number) for number in range(14, 20)]


def test_a_failed_test_shows_its_servers_logs(tmp_path: Path) -> None:
    """Their ends, and whether the process runs. A log that is gone is no error."""
    log = tmp_path / "serve.log"
    log.write_text("begin " + "x" * 100_000 + " the reason")
    last_answers.note_log(log, lambda: "exit code 3")
    last_answers.note_log(tmp_path / "gone.log", lambda: "exit code None")
    shown = shown_by_a_failure()
    assert shown["log of serve.log, exit code 3"].endswith(" the reason")
    assert len(shown["log of serve.log, exit code 3"]) < 10_000
    assert shown["log of gone.log, exit code None"] == "(it is gone)"
