"""Ends an engine that runs and does not answer any more: only its end starts another one.

While a replica serves, a thread asks it every ten seconds. An engine fails a question if

    its guard does not say in time how many requests it works on, or
    it works on some, and `EnginePlugin.health_path` is not answered in time, or with a server error after it was answered well.

A chat may rightly take minutes, so no answer to a client counts. What answers the health path is the part of the engine that works
on requests. After three failures in a row the engine's first process is killed, as if it had ended by itself.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import threading
from typing import TYPE_CHECKING, NamedTuple, Protocol

from torpor.runtime import later
from torpor.telemetry.events import log

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torpor.deployment import Deployment
    from torpor.engine.handle import Engine

__all__ = ["AnswerWatch", "Patience"]

_SERVER_ERRORS = 500
_SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL})
"""What this process runs out of: files, memory, local ports. It tells nothing of the engine."""


class _Serving(Protocol):
    """What is asked of a boot."""

    deployment: Deployment
    replica: str
    serving: bool

    @property
    def running_engine(self) -> Engine:
        """The engine."""


class Patience(NamedTuple):
    """When an engine counts as one that does not answer.

    Attributes:
        pause_s: seconds between two questions.
        failures: in a row.
    """

    pause_s: float = 10.0
    failures: int = 3


PATIENCE = Patience()


class AnswerWatch:
    """Watches one engine while it serves, from a thread that ends with the serving. Made once for each boot.

    Args:
        boot: moves the engine through its lifecycle.
    """

    def __init__(self, boot: _Serving) -> None:
        self._boot = boot
        self._patience = PATIENCE
        self._over = threading.Event()
        self._asking = threading.Lock()
        self._path_works = False

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Ask nothing in the block, which moves the engine to another state. Afterwards it is watched if it serves.

        A question under way is finished first: no engine may be put to sleep with one.
        """
        self._over.set()
        with self._asking:
            try:
                yield
            finally:
                if self._boot.serving:
                    self._begin()

    def _begin(self) -> None:
        self._over = over = threading.Event()
        name = f"torpor-answers-{self._boot.replica}"
        with contextlib.suppress(RuntimeError):  # no more threads: the replica serves without a watch
            threading.Thread(target=self._watch, args=(over, self._boot.running_engine), name=name, daemon=True).start()

    def _watch(self, over: threading.Event, engine: Engine) -> None:
        failed = 0
        while not over.wait(self._patience.pause_s):
            with self._asking:
                if over.is_set() or not self._boot.serving or engine.poll() is not None:
                    return
                why = self._asked(engine)
                failed = failed + 1 if why else 0
                if why:
                    log("warning", "engine_does_not_answer", replica=self._boot.replica, why=why, in_a_row=failed)
                enough = failed >= self._patience.failures and self._boot.serving and engine.poll() is None
                if enough and self._end(engine, why):
                    return

    def _asked(self, engine: Engine) -> str:
        """Why the engine fails the question; empty if it does not."""
        deployment = self._boot.deployment
        limit_s, path = deployment.health_timeout_s, deployment.engine.health_path
        asked = "its guard"
        failures: tuple[type[Exception], ...] = (*later.no_answer(), OSError)
        try:
            with later.open_client(engine, port=deployment.port, timeout_s=limit_s, proof_timeout_s=limit_s) as client:
                count = later.GuardControl(engine, client).in_flight()
                if not count or not path:
                    return ""
                asked = f"{path}, with {count} request(s) in flight,"
                status = client.get(path).status_code
        except failures as error:
            if shortage := _own_shortage(error):
                log("warning", "engine_not_asked", replica=self._boot.replica, why=shortage)
                return ""
            return f"{asked} did not answer within {limit_s:g} s ({type(error).__name__})"
        if status < _SERVER_ERRORS:
            self._path_works = True
            return ""
        if not self._path_works:  # a fault of the path itself, which a new engine would have as well
            log("warning", "health_path_fails", replica=self._boot.replica, path=path, status=status)
            return ""
        return f"{asked} answered {status}"

    def _end(self, engine: Engine, why: str) -> bool:
        """Kill the engine's first process; return whether its pid is known. Pid 0 would mean this process and its whole group."""
        pid = engine.pid
        if pid <= 0:
            return False
        log("error", "engine_ended_for_not_answering", replica=self._boot.replica, why=why, pid=pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return True


def _own_shortage(error: BaseException) -> str:
    """What this process ran out of when a question failed; empty if it did not."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _SHORTAGES:
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    try:
        for end in socket.socketpair():  # a sandbox hands over its sockets, and a full process gets none
            end.close()
    except OSError as found:
        return str(found)
    return ""
