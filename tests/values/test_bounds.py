"""Absurd numbers on the command line are refused at once, with what is allowed."""

from __future__ import annotations

import resource
import time
from typing import TYPE_CHECKING

import pytest

from tests.chat_server import ChatServer, Reply
from tests.command_line import torpor
from torpor import ConfigurationError
from torpor.platforms.modal.prewarm import prewarm
from torpor.values.bounds import checked_count, checked_seconds

if TYPE_CHECKING:
    from collections.abc import Iterator

URL = "http://127.0.0.1:9"
HUGE = "100000000"
REFUSED = {
    "prewarm, requests": ("prewarm", URL, "--requests", HUGE),
    "prewarm, no requests": ("prewarm", URL, "--requests", "0"),
    "prewarm, attempts": ("prewarm", URL, "--attempts", HUGE),
    "prewarm, pause": ("prewarm", URL, "--pause", "inf"),
    "prewarm, timeout": ("prewarm", URL, "--timeout", "1e300"),
    "probe, tokens": ("probe", URL, "--max-tokens", HUGE),
    "probe, timeout": ("probe", URL, "--timeout", "nan"),
    "probe, no timeout": ("probe", URL, "--timeout", "0"),
    "bench, starts": ("bench", "none.py", "--starts", HUGE),
    "compare, restores": ("snapshot", "compare", "none.py", "--restores", HUGE),
    "compare, none": ("snapshot", "compare", "none.py", "--restores", "0"),
    "boots, timeout": ("boots", "app", "--timeout", "-1"),
    "boots, hours": ("boots", "app", "--hours", "1e9"),
    "restore, replicas": ("snapshot", "restore", "none", "--replicas", HUGE),
    "restore, no replicas": ("snapshot", "restore", "none", "--replicas", "0"),
    "restore, port": ("snapshot", "restore", "none", "--port", "99999"),
    "restore, port below zero": ("snapshot", "restore", "none", "--port", "-1"),
}


@pytest.mark.slow
@pytest.mark.fault("a number on the command line is absurd", area="commands", outcome="refused")
@pytest.mark.parametrize("what", REFUSED)
def test_an_absurd_number_is_refused_with_the_allowed_range(what: str) -> None:
    """Before anything is started, fetched or read."""
    words = REFUSED[what]
    ran = torpor(*words)
    assert ran.returncode == 2, ran.stderr
    assert words[-2].strip("-") in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("value", [0, -1, 11])
def test_a_count_outside_its_range_is_refused(value: int) -> None:
    """The error names both ends."""
    with pytest.raises(ConfigurationError, match=f"--n is {value}; allowed are 1 to 10 things"):
        checked_count("--n", value, most=10, what="things")


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan"), 1e9])
def test_seconds_outside_their_range_are_refused(value: float) -> None:
    """An endless deadline is refused too."""
    with pytest.raises(ConfigurationError, match=r"--t is .* seconds: more than 0, and at most 2592000 \(30 days\)"):
        checked_seconds("--t", value)


def test_a_value_inside_its_range_passes() -> None:
    """Both ends included."""
    assert [checked_count("--n", value, most=10, what="things") for value in (1, 10)] == [1, 10]
    assert [checked_seconds("--t", value, zero=True) for value in (0.0, 2592000.0)] == [0.0, 2592000.0]


@pytest.fixture
def endless() -> Iterator[ChatServer]:
    """A server whose answer to `/ready` never ends."""
    with ChatServer([Reply(pieces=(b"x" * (1 << 20),) * 200)]) as server:
        yield server


@pytest.mark.fault("a server sends an answer without end", area="commands", outcome="refused")
def test_an_answer_without_end_is_refused(endless: ChatServer) -> None:
    """The client does not read it into memory."""
    with pytest.raises(ConfigurationError, match="--requests is 100000000; allowed are 1 to 1000"):
        prewarm(endless.url, requests=int(HUGE), attempts=1, pause_s=0, timeout_s=5)
    with pytest.raises(Exception, match="more than 1048576 bytes"):
        prewarm(endless.url, requests=1, attempts=1, pause_s=0, timeout_s=20)


@pytest.mark.slow
def test_a_large_round_keeps_its_deadline_and_its_memory() -> None:
    """300 concurrent requests to a server that never answers."""
    with ChatServer([Reply(pieces=(b"{}",), pause_s=60.0)]) as server:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.monotonic()
        ended = prewarm(server.url, requests=300, attempts=1000, pause_s=0, timeout_s=3)
        assert time.monotonic() - began < 20
        assert ended.end == "timeout"
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000
