"""Says whether a replica compiled anything for its first requests: a warm-up that leaves nothing to compile is seen to do so.

A thread beside the serving replica asks the guard how many public requests it has answered. After `REQUESTS` of them it counts

    cache_files   files of the engine's kernel caches that are newer than the moment at which the replica began to serve
    log_lines     lines of the engine's log since then that tell of a compilation (`EnginePlugin.compile_lines`)

and hands both on once. The thread ends with that, and before a sleep or the replica's end: a snapshot may contain none. Replicas
of one machine share their caches, so files of a neighbour count as well; log lines are the replica's own.
"""

from __future__ import annotations

import os
import re
import threading
import time
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import httpx

from torpor.errors import TorporError
from torpor.telemetry.events import log
from torpor.telemetry.progress import lines_after

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

__all__ = ["REQUESTS", "CompileWatch", "Compiled", "cache_folders", "newer_files"]

REQUESTS = 20
"""How many public requests are waited for: enough for one of each kind that clients send."""

_FIRST_LOOK_S, _LONGEST_PAUSE_S, _END_S = 0.25, 5.0, 10.0
_SHOWN = 5
_NO_RESULT = (".lock",)
"""Endings of files that a cache's use touches as well."""


class Compiled(NamedTuple):
    """What was compiled meanwhile.

    Attributes:
        requests: how many public requests had been answered.
        cache_files: new files of kernel caches.
        log_lines: lines of the engine's log that tell of a compilation.
        seconds: from the moment at which the replica began to serve.
        examples: some of those lines, and of the files' paths.
    """

    requests: int
    cache_files: int
    log_lines: int
    seconds: float
    examples: tuple[str, ...] = ()

    def as_record(self) -> dict[str, int]:
        """The counts, as a record of the start holds them."""
        return {"requests": self.requests, "cache_files": self.cache_files, "log_lines": self.log_lines}


def cache_folders(env: dict[str, str], names: Iterable[str]) -> tuple[str, ...]:
    """The folders of kernel caches, none inside another.

    Args:
        env: the engine's environment.
        names: variables that each name a folder (`EnginePlugin.kernel_cache_env`).
    """
    found = sorted({env[name] for name in names if os.path.isabs(env.get(name, ""))})  # noqa: PTH117 - no path object is needed
    return tuple(one for one in found if not any(one.startswith(f"{other}/") for other in found))


def newer_files(folders: Iterable[str], since: float) -> Iterator[str]:
    """Files below the folders that were written after a moment, in Unix seconds. A folder that is not there has none."""
    for folder in folders:
        for place, _, names in os.walk(folder):
            for name in names:
                path = f"{place}/{name}"
                try:
                    written = os.lstat(path).st_mtime
                except OSError:
                    continue  # removed meanwhile
                if written >= since and not name.endswith(_NO_RESULT):
                    yield path


class CompileWatch:
    """The thread beside one serving replica.

    Args:
        folders: the engine's kernel caches.
        patterns: regular expressions of log lines that tell of a compilation.
        log_tail: returns the engine's last lines.
        served: returns how many public requests the guard has answered since it serves.
        tell: gets what was found, once. Something that was compiled is a warning in the log as well.
        about: what that warning says beside it, e.g. the replica's name.
    """

    def __init__(
        self,
        *,
        folders: Sequence[str],
        patterns: Sequence[str],
        log_tail: Callable[[], Sequence[str]],
        served: Callable[[], int],
        tell: Callable[[Compiled], None],
        about: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._folders = folders
        self._pattern = re.compile("|".join(f"(?:{one})" for one in patterns)) if patterns else None
        self._log_tail, self._served, self._tell = log_tail, served, tell
        self._about = about
        self._ending = threading.Event()
        self._since, self._began = time.time(), time.monotonic()
        tail = log_tail()
        self._last = hash(tail[-1]) if tail else 0
        self._lines: list[str] = []
        self._thread = threading.Thread(target=self._run, name="torpor-compilations", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Have the thread end and wait for it. Harmless to repeat."""
        self._ending.set()
        if self._thread is not threading.current_thread():
            self._thread.join(_END_S)

    def _run(self) -> None:
        pause_s = _FIRST_LOOK_S
        while not self._ending.wait(pause_s):
            try:
                requests = self._served()
                self._read_log()
            except (TorporError, httpx.HTTPError, OSError):
                return  # the engine sleeps or has ended; who watches it tells
            if self._ending.is_set():
                return  # `end` may have waited long enough meanwhile
            if requests >= REQUESTS:
                self._finish(requests)
                return
            pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S)

    def _read_log(self) -> None:
        tail = self._log_tail()
        new = lines_after(tail, self._last)
        self._last = hash(tail[-1]) if tail else 0
        if self._pattern is not None:
            self._lines += [line for line in new if self._pattern.search(line)]

    def _finish(self, requests: int) -> None:
        files = list(newer_files(self._folders, self._since))
        found = Compiled(
            requests=requests,
            cache_files=len(files),
            log_lines=len(self._lines),
            seconds=time.monotonic() - self._began,
            examples=(*self._lines[:_SHOWN], *files[:_SHOWN]),
        )
        if files or self._lines:
            examples = list(found.examples)
            log("warning", "compiled_after_start", **self._about, **found.as_record(), examples=examples)
        self._tell(found)
