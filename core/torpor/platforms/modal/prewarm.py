"""Starts replicas of a deployed app until restores begin: Modal may need several cold starts to make its snapshots.

Each replica reports how it started in headers of the guard's answer to `/ready` (see docs/guard.md). If a server
sends no such headers, only the app's log can tell.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import httpx

from torpor.errors import EngineRequestError
from torpor.guard.protocol import KIND_HEADER, REPLICA_HEADER, WAKES_HEADER
from torpor.network.modal_keys import refused_by_modal
from torpor.network.waking_server import get_when_there, open_async_client
from torpor.telemetry.records import BOOT_KINDS
from torpor.values.addresses import checked_url, shown_url
from torpor.values.bounds import checked_count, checked_seconds

if TYPE_CHECKING:
    from collections.abc import Callable

    from torpor.platforms.modal.log import BootsReport

__all__ = ["MAX_ATTEMPTS", "MAX_REQUESTS", "Prewarmed", "Replica", "Round", "prewarm"]

End = Literal["restored", "attempts", "timeout"]

_QUOTED = 300
MAX_REQUESTS = 1000
"""Most requests of one round. Each needs its own connection, and so a descriptor."""

MAX_ATTEMPTS = 1000
"""Most rounds of one call."""

_TAG_CHARACTERS = 200


@dataclass(frozen=True, kw_only=True)
class Replica:
    """One replica, as it describes itself.

    Attributes:
        tag: its public tag.
        boot: `cold`, `woken` (it took the snapshot) or `restored`.
        wakes: how often it woke.
        seconds: from the beginning of the round to its first answer.
    """

    tag: str
    boot: str
    wakes: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Round:
    """One burst of requests.

    Attributes:
        number: from 1 on.
        new: replicas that no earlier round has seen.
        known: how many replicas of earlier rounds answered.
        restored_in_log: restored starts in the app's log since the first round.
        answered: requests that were answered; a restored replica, or the deadline, ends the others.
        seconds: how long the round took.
    """

    number: int
    new: tuple[Replica, ...]
    known: int
    restored_in_log: int
    answered: int
    seconds: float

    @property
    def restored(self) -> bool:
        """Whether restores have begun."""
        return self.restored_in_log > 0 or any(replica.boot == "restored" for replica in self.new)


@dataclass(frozen=True, kw_only=True)
class Prewarmed:
    """How a prewarming ended.

    Attributes:
        end: `restored`, or why it gave up: `attempts` or `timeout`.
        rounds: all bursts.
        seconds: from the first request to the end.
        last_seen: why the last unanswered requests waited; empty if all were answered.
    """

    end: End
    rounds: tuple[Round, ...]
    seconds: float
    last_seen: str

    @property
    def starts(self) -> int:
        """How many replicas were seen that were not restored."""
        return sum(replica.boot != "restored" for one in self.rounds for replica in one.new)


def prewarm(
    url: str,
    *,
    requests: int,
    attempts: int,
    pause_s: float,
    timeout_s: float,
    connect_s: float | None = None,
    read_log: Callable[[float], BootsReport] | None = None,
    on_round: Callable[[Round], None] | None = None,
    on_wait: Callable[[str], None] | None = None,
) -> Prewarmed:
    """Send bursts of concurrent requests to `/ready` until a restored replica answers one.

    Args:
        url: where the app answers, without a path.
        requests: requests of a burst; more than the app's target concurrency start several replicas at once.
        attempts: bursts.
        pause_s: seconds between two bursts. The app has to scale down meanwhile: Modal starts no replica while one runs.
        timeout_s: seconds for everything.
        connect_s: seconds after which an address where nothing listens is given up; None for all of `timeout_s`.
        read_log: returns the app's log of that many hours; called if replicas do not say how they started.
        on_round: called with each burst.
        on_wait: called, with the reason in one line, when a request has to wait.

    Raises:
        ConfigurationError: the URL or a number is not allowed.
        EngineRequestError: the server refuses, or does not say how it started and there is no log to read.
        ServerUnavailableError: nothing listens there.
    """
    _check_numbers(requests, attempts, pause_s, timeout_s)
    driver = _Driver(
        url=f"{checked_url(url)}/ready",
        requests=requests,
        deadline=time.monotonic() + timeout_s,
        connect_s=connect_s,
        read_log=read_log,
        on_wait=on_wait or (lambda _: None),
    )
    return asyncio.run(driver.run(attempts, pause_s, on_round or (lambda _: None)))


def _check_numbers(requests: int, attempts: int, pause_s: float, timeout_s: float) -> None:
    checked_count("--requests", requests, most=MAX_REQUESTS, what="requests at once")
    checked_count("--attempts", attempts, most=MAX_ATTEMPTS, what="rounds")
    checked_seconds("--pause", pause_s, zero=True)
    checked_seconds("--timeout", timeout_s)


@dataclass
class _Burst:
    """A burst in progress.

    Attributes:
        began: monotonic time.
        new: replicas that no earlier burst has seen, by tag.
        known: tags of the others.
        answered: how many requests were answered.
        silent: whether an answer did not say how its replica started.
    """

    began: float
    new: dict[str, Replica] = field(default_factory=dict)
    known: set[str] = field(default_factory=set)
    answered: int = 0
    silent: bool = False

    @property
    def restored(self) -> bool:
        """Whether a restored replica answered."""
        return any(replica.boot == "restored" for replica in self.new.values())


@dataclass
class _Driver:
    url: str
    requests: int
    deadline: float
    connect_s: float | None
    read_log: Callable[[float], BootsReport] | None
    on_wait: Callable[[str], None]
    _tags: set[str] = field(default_factory=set)
    _waiting_for: str = ""
    _began: float = field(default_factory=time.monotonic)
    _began_at: float = field(default_factory=time.time)

    async def run(self, attempts: int, pause_s: float, on_round: Callable[[Round], None]) -> Prewarmed:
        rounds: list[Round] = []
        end: End = "attempts"
        while end == "attempts" and len(rounds) < attempts:
            if rounds:
                await asyncio.sleep(min(pause_s, self._left_s))
            if self._left_s > 0:
                rounds.append(await self._round(len(rounds) + 1))
                on_round(rounds[-1])
            if rounds and rounds[-1].restored:
                end = "restored"
            elif self._left_s <= 0:
                end = "timeout"
        seconds = time.monotonic() - self._began
        return Prewarmed(end=end, rounds=tuple(rounds), seconds=seconds, last_seen=self._waiting_for)

    @property
    def _left_s(self) -> float:
        return max(0.0, self.deadline - time.monotonic())

    async def _round(self, number: int) -> Round:
        """One burst. It ends when all are answered, when a restored replica is seen, or at the deadline."""
        burst = _Burst(began=time.monotonic())
        async with open_async_client(self.url, {"Connection": "close"}) as client:
            asked = [asyncio.create_task(self._ask(client)) for _ in range(self.requests)]
            waiting = set(asked)
            try:
                while waiting and not burst.restored:
                    done, waiting = await asyncio.wait(
                        waiting, timeout=self._left_s, return_when=asyncio.FIRST_COMPLETED
                    )
                    if not done:
                        break
                    for task in done:
                        self._note_answer(burst, task.result())
            finally:
                for task in waiting:
                    task.cancel()
                await asyncio.gather(*asked, return_exceptions=True)  # of several failures, the first is raised
        self._tags |= set(burst.new)
        in_log = await asyncio.to_thread(self._restored_in_log) if burst.silent else 0
        return Round(
            number=number,
            new=tuple(burst.new.values()),
            known=len(burst.known),
            restored_in_log=in_log,
            answered=burst.answered,
            seconds=time.monotonic() - burst.began,
        )

    def _note_answer(self, burst: _Burst, response: httpx.Response) -> None:
        burst.answered += 1
        if (replica := self._replica(response, time.monotonic() - burst.began)) is None:
            burst.silent = True
        elif replica.tag in self._tags:
            burst.known.add(replica.tag)
        else:
            burst.new.setdefault(replica.tag, replica)

    async def _ask(self, client: httpx.AsyncClient) -> httpx.Response:
        response = await get_when_there(client, self.url, on_wait=self._note_wait, connect_s=self.connect_s)
        if response.status_code != httpx.codes.OK:
            said = response.text.strip()[:_QUOTED] or "no text"
            step = (
                refused_by_modal(response, said) or " Give the URL of a server behind Torpor's guard, without a path."
            )
            raise EngineRequestError(
                f"GET {shown_url(self.url)} was answered with {response.status_code}: {said}.{step}"
            )
        return response

    def _note_wait(self, reason: str) -> None:
        if reason != self._waiting_for:
            self._waiting_for = reason
            self.on_wait(reason)

    def _replica(self, response: httpx.Response, seconds: float) -> Replica | None:
        """Who answered; None if the answer does not say how the replica started."""
        boot, tag = response.headers.get(KIND_HEADER, ""), response.headers.get(REPLICA_HEADER, "")
        if boot in BOOT_KINDS and tag:
            wakes = response.headers.get(WAKES_HEADER, "")[:_TAG_CHARACTERS]
            return Replica(tag=tag[:_TAG_CHARACTERS], boot=boot, wakes=wakes, seconds=seconds)
        if self.read_log is None:
            raise EngineRequestError(
                f"{shown_url(self.url)} answers, but does not say how it started (no header {KIND_HEADER}). Give the app's name in "
                "place of its URL, so that its log can be read, or deploy it again with this version of Torpor."
            )
        return None

    def _restored_in_log(self) -> int:
        if self.read_log is None:
            return 0
        hours = (time.monotonic() - self._began) / 3600 + 0.1
        return sum(
            start.kind == "restored" and not start.note and (start.began_at or 0.0) >= self._began_at
            for start in self.read_log(hours).starts
        )
