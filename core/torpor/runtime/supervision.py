"""What happens after an engine ends by itself: who notices, and when the replica is started again.

    watch_engine   a thread that reports the end once, with exit code and last lines
    BackOff        how long to wait before the next restart of a replica, and when to give up
    ReplicaEvent   what a user is told: the replica ended, was started again, was given up

An engine that ends while it serves is started again after 0, 1, 2, 4, ... 60 s. Five minutes of serving reset the count. After
`Deployment.max_restarts` restarts in a row the replica is given up.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from torpor.telemetry.events import log

if TYPE_CHECKING:
    from collections.abc import Callable

    from torpor.engine.handle import Engine
    from torpor.telemetry.records import BootKind

__all__ = ["ENGINE_ENDED", "WAKE_FAILED", "BackOff", "ReplicaEvent", "log_engine_end", "watch_engine"]

WAKE_FAILED = "wake failed"
"""Reason of a cold start after a failed wake."""

ENGINE_ENDED = "engine ended"
"""Reason of a restart after the engine ended while it served."""

_SERVED_LONG_S = 300.0
_LONGEST_PAUSE_S = 60.0
_LOOK_S = 0.2
_TAIL_LINES = 20


class ReplicaEvent(NamedTuple):
    """What happened to a replica by itself.

    Attributes:
        event: `replica_ended`, `wake_failed`, `restore_failed`, `replica_restarted`, `restart_failed` or `replica_given_up`.
        replica: its name.
        boot: the kind of the start that followed: `cold`, `woken` or `restored`.
        reason: why there was one.
        restart: how often this replica was started again so far.
        seconds: that the start took.
        exit_code: the engine's; negative for a signal.
        last_lines: of its output.
        error: what failed.
        log_file: file with all of its output.
    """

    event: str
    replica: str
    boot: BootKind | None = None
    reason: str = ""
    restart: int = 0
    seconds: float | None = None
    exit_code: int | None = None
    last_lines: tuple[str, ...] = ()
    error: str = ""
    log_file: str = ""

    def as_json(self) -> dict[str, object]:
        """The fields that are not empty."""
        return {name: value for name, value in self._asdict().items() if value not in (None, "", ()) and value != 0} | (
            {"exit_code": self.exit_code} if self.exit_code is not None else {}
        )

    def described(self) -> str:
        """One line for people; the last lines of an engine that ended follow."""
        match self.event:
            case "replica_ended":
                said = "".join(f"\n    {line}" for line in self.last_lines) or "\n    (it printed nothing)"
                whole = f"\n    (the whole log: {self.log_file})" if self.log_file else ""
                return f"replica {self.replica} has ended (exit code {self.exit_code}). Its last lines:{said}{whole}"
            case "wake_failed":
                return f"replica {self.replica} did not wake: {self.error}"
            case "restore_failed":
                return f"replica {self.replica} could not be restored: {self.error}"
            case "replica_restarted":
                how = "started cold" if self.boot == "cold" else self.boot
                again = f" (restart {self.restart})" if self.restart else ""
                return f"replica {self.replica} was {how} in {self.seconds or 0.0:.2f} s: {self.reason}{again}"
            case "restart_failed":
                return f"replica {self.replica} could not be started again (restart {self.restart}): {self.error}"
            case _:
                return (
                    f"replica {self.replica} is given up after {self.restart} restarts in a row (Deployment.max_restarts). "
                    "What it said stands above."
                )

    def log(self) -> None:
        """Log it, where no terminal shows it."""
        facts = {name: list(value) if isinstance(value, tuple) else value for name, value in self.as_json().items()}
        log("info" if self.event == "replica_restarted" else "error", str(facts.pop("event")), **facts)


class BackOff:
    """When one replica is started again.

    Args:
        limit: restarts in a row; 0 for none.
        clock: seconds, monotonic.

    Attributes:
        restarts: all restarts so far.
    """

    def __init__(self, limit: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.restarts = 0
        self._limit = limit
        self._clock = clock
        self._in_a_row = 0
        self._serving_since: float | None = None

    def serves(self) -> None:
        """The replica serves from now on."""
        self._serving_since = self._clock()

    def ended(self) -> float | None:
        """Seconds to wait before the next restart, after an end or a failed restart; None gives the replica up."""
        since, self._serving_since = self._serving_since, None
        if since is not None and self._clock() - since >= _SERVED_LONG_S:
            self._in_a_row = 0
        if self._in_a_row >= self._limit:
            return None
        pause_s = 0.0 if self._in_a_row == 0 else min(2.0 ** (self._in_a_row - 1), _LONGEST_PAUSE_S)
        self._in_a_row += 1
        self.restarts += 1
        return pause_s

    def note_restart(self) -> None:
        """Count a restart for another reason than an end; it does not count as one in a row."""
        self.restarts += 1

    def forgive(self) -> None:
        """Reset the count: somebody asked for a restart."""
        self._in_a_row = 0


def log_engine_end(name: str, *, replica_id: str, exit_code: int, last_lines: tuple[str, ...]) -> None:
    """Log that an engine ended while it served."""
    log(
        "error",
        "engine_ended_while_serving",
        replica=name,
        replica_id=replica_id,
        exit_code=exit_code,
        last_lines=list(last_lines[-_TAIL_LINES:]),
    )


def watch_engine(engine: Engine, *, name: str, stopping: threading.Event, on_end: Callable[[], None]) -> None:
    """Watch a serving engine from a thread. Log its end and report it, unless `stopping` was set before.

    Args:
        engine: serving.
        name: of the replica, for the log.
        stopping: to be set before the engine is ended on purpose.
        on_end: called once in the thread.
    """

    def watch() -> None:
        while (code := engine.wait(_LOOK_S)) is None:
            if stopping.is_set():
                return
        if stopping.is_set():
            return
        log_engine_end(name, replica_id=engine.replica_id, exit_code=code, last_lines=engine.log_tail())
        on_end()

    threading.Thread(target=watch, name=f"torpor-watch-{name}", daemon=True).start()
