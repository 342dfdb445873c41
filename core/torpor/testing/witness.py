"""Watches and refuses effects of code while a contract rule calls it.

Python's audit events (PEP 578) report every access to the network, the file system and other processes, in any library.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["refusing_effects", "scrambled_environment", "without_modules"]

_NETWORK = (
    "socket.connect",
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "socket.sendto",
    "socket.sendmsg",
    "socket.bind",
)
_PROCESS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty")
_FILES = (
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.truncate",
    "os.symlink",
    "os.link",
    "os.chmod",
    "os.utime",
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_HARMLESS = ("/dev/null",)


class _Watch:
    """The one audit hook of the process: hooks cannot be taken out again, so it is put in once and switched."""

    def __init__(self) -> None:
        self.thread: int | None = None
        self.seen: list[str] = []
        self._hooked = False

    def arm(self) -> None:
        if not self._hooked:
            sys.addaudithook(self._audit)
            self._hooked = True
        self.seen = []
        self.thread = threading.get_ident()

    def disarm(self) -> None:
        self.thread = None

    def _audit(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.thread is None or self.thread != threading.get_ident():
            return
        what = _effect(event, arguments)
        if what is not None:
            self.seen.append(what)
            raise PermissionError(f"the plugin contract refuses: {what}")


_watch = _Watch()


@contextlib.contextmanager
def refusing_effects() -> Iterator[list[str]]:
    """Refuse and note network use, changes to files and new processes, in this thread.

    Yields:
        What was tried, e.g. `network: socket.connect ('example.org', 443)`. It fills while the block runs.
    """
    bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # a late import is no effect of the plugin's
    _watch.arm()
    try:
        yield _watch.seen
    finally:
        _watch.disarm()
        sys.dont_write_bytecode = bytecode


@contextlib.contextmanager
def scrambled_environment() -> Iterator[set[str]]:
    """Let every environment variable, set or not, read as something else.

    Yields:
        The names that were read. It fills while the block runs.
    """
    reads: set[str] = set()
    kind = type(os.environ)
    getitem, iterate = kind.__getitem__, kind.__iter__

    def scrambled(_self: os._Environ[str], name: str) -> str:
        reads.add(name)
        return f"scrambled-{name}"

    def listed(self: os._Environ[str]) -> Iterator[str]:
        reads.add("(all of them)")
        yield from iterate(self)

    kind.__getitem__, kind.__iter__ = scrambled, listed  # type: ignore[method-assign]
    try:
        yield reads
    finally:
        kind.__getitem__, kind.__iter__ = getitem, iterate  # type: ignore[method-assign]


@contextlib.contextmanager
def without_modules(*names: str) -> Iterator[None]:
    """Let `import name` fail for these top-level modules, as on a machine that does not have them."""
    inside = [module for module in sys.modules if module.partition(".")[0] in names]
    kept = {module: sys.modules.pop(module) for module in inside}
    blocked: dict[str, None] = dict.fromkeys(names)
    sys.modules.update(blocked)  # type: ignore[arg-type]  # None is how the import system spells "not there"
    try:
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(kept)


def _effect(event: str, arguments: tuple[object, ...]) -> str | None:
    if event in _NETWORK:
        return f"network: {event} {arguments[-1] if event == 'socket.connect' else arguments[:2]}"
    if event in _PROCESS:
        return f"process: {event} {arguments[:2]}"
    if event in _FILES:
        return f"file: {event} {arguments[0]!r}"
    if event == "open":
        path, mode, flags = arguments
        writes = any(letter in "wax+" for letter in mode) if isinstance(mode, str) else bool(_as_int(flags) & _WRITING)
        if writes and path not in _HARMLESS:
            return f"file: open {path!r} for writing"
    return None


def _as_int(value: object) -> int:
    return value if isinstance(value, int) else 0
