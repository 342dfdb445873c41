"""Check connections and open files before a capture: what reaches outside of the sandbox would be broken after a restore."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from torpor.errors import SnapshotError
from torpor.snapshots.before_capture.lasting_folders import LASTING_VARIABLE, temporary_folder_of
from torpor.snapshots.criu.memory_files import is_memory_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torpor.snapshots.sandbox.sandbox import Sandbox

__all__ = [
    "DELETED",
    "Connection",
    "OpenFiles",
    "check_connections",
    "check_open_files",
    "open_files",
    "open_paths",
    "parse_connections",
]

_ESTABLISHED = {"01", "02", "03"}  # established, and the two states before it (include/net/tcp_states.h)
_SETTLE_S = 2.0
_SHOWN = 8
_NAMELESS = (
    "/memfd:",
    "/[aio]",  # refused by `torpor.snapshots.before_capture.kernel_objects`
    "/dev/zero",
    "/SYSV",
    "/dev/shm/",  # noqa: S108 - private to every sandbox
    "anon_inode:",
    "pipe:",
    "socket:",
    "/dev/",
    "/proc/",
    "/sys/",
)
DELETED = " (deleted)"
"""What the kernel appends to the name of an open file that was deleted."""


@dataclass(frozen=True, kw_only=True)
class Connection:
    """A TCP connection: addresses as `host:port`."""

    local: str
    remote: str

    @property
    def leads_out(self) -> bool:
        """Whether the other end is outside of this loopback."""
        return not ip_address(self.remote.rpartition(":")[0].strip("[]")).is_loopback

    @property
    def local_port(self) -> int:
        """The port at this end."""
        return int(self.local.rpartition(":")[2])


@dataclass(frozen=True, kw_only=True)
class OpenFiles:
    """The files that a tree has open or mapped outside of its private folders.

    Attributes:
        lasting: size (bytes) and time of change (nanoseconds) by path.
        vanishing: files that are deleted, or lie in a temporary folder such as /tmp.
        io_uring: whether a process has an io_uring.
    """

    lasting: dict[str, tuple[int, int]]
    vanishing: tuple[str, ...]
    io_uring: bool


def check_connections(sandbox: Sandbox, port: int) -> tuple[Connection, ...]:
    """Wait until no client is connected, and return the connections inside the tree.

    Args:
        sandbox: with the tree.
        port: where the engine listens; whoever connects there is a client.

    Raises:
        SnapshotError: a client stays connected, or a connection leads outside; the message names each.
    """
    deadline = time.monotonic() + _SETTLE_S
    while True:
        found = _connections(sandbox.pid)
        clients = [one for one in found if one.local_port == port]
        outside = [one for one in found if one.leads_out]
        if not clients and not outside:
            return found
        if time.monotonic() > deadline:
            break
        time.sleep(0.02)  # a client may be closing
    reasons = [f"a client is connected from {one.remote}" for one in clients if not one.leads_out]
    reasons += [f"a connection leads outside, to {one.remote}" for one in outside]
    listed = "\n".join(f"  - {reason}" for reason in reasons)
    raise SnapshotError(
        f"The engine has open connections that cannot survive a snapshot:\n{listed}\n"
        "Close them before the capture (a pre_snapshot hook is the place), or turn off what opens them."
    )


def open_files(sandbox: Sandbox, kept: Sequence[Path]) -> OpenFiles:
    """The files that the tree has open or mapped outside of its private folders.

    Args:
        sandbox: with the tree.
        kept: folders that stay even though they lie in a temporary one (a checkout under /tmp, ...).
    """
    lasting: dict[str, tuple[int, int]] = {}
    vanishing: set[str] = set()
    io_uring = False
    for name in {path for pid in _tree(sandbox).values() for path in open_paths(pid)}:
        if "[io_uring]" in name:
            io_uring = True
        if is_memory_file(name):  # of the snapshot that this replica was restored from; the new one gets its content
            continue
        if name.startswith(_NAMELESS) or not name.startswith("/") or Path(name).is_relative_to(sandbox.scratch):
            continue
        path = Path(name.removesuffix(DELETED))
        if name.endswith(DELETED) or (
            temporary_folder_of(path) and not any(path.is_relative_to(folder) for folder in kept)
        ):
            vanishing.add(name)
            continue
        with contextlib.suppress(OSError):
            facts = path.stat()
            if path.is_file():
                lasting[name] = (facts.st_size, facts.st_mtime_ns)
    return OpenFiles(lasting=dict(sorted(lasting.items())), vanishing=tuple(sorted(vanishing)), io_uring=io_uring)


def check_open_files(opened: OpenFiles) -> None:
    """Refuse open files that a restore may not find, and an io_uring.

    Raises:
        SnapshotError: there are some; the message says what to do.
    """
    if opened.vanishing:
        listed = "\n".join(f"  - {_why_vanishing(name)}" for name in opened.vanishing[:_SHOWN])
        raise SnapshotError(
            f"The engine has files open that may be gone when it is restored:\n{listed}\n"
            "Close them before the capture, or have the engine put them under TMPDIR, which is kept with the snapshot. If a "
            f"temporary folder stays, name it in {LASTING_VARIABLE} (folders separated by {os.pathsep!r})."
        )
    if opened.io_uring:
        raise SnapshotError(
            "A process of the engine has an io_uring, which CRIU cannot dump. Without root, libraries can only be asked not to "
            "use it (UV_USE_IO_URING=0 and USE_LIBUV=0 are set; uvloop 0.23 ignores the first). Use `--mode root`, which denies it."
        )


def _why_vanishing(name: str) -> str:
    """A file that may be gone, and why unless its path says so: it is deleted, or lies in a temporary folder."""
    folder = None if name.endswith(DELETED) else temporary_folder_of(Path(name))
    return name if folder is None or Path(name).is_relative_to(folder) else f"{name}, in {folder} by a link"


def parse_connections(tables: Iterable[str]) -> tuple[Connection, ...]:
    """Established connections in the kernel's tables (proc_net_tcp(5): hex, each 32-bit word in host order)."""
    found = []
    for table in tables:
        for line in table.splitlines()[1:]:
            _, local, remote, state, *_ = line.split()
            if state in _ESTABLISHED:
                found.append(Connection(local=_address(local), remote=_address(remote)))
    return tuple(found)


def _connections(pid: int) -> tuple[Connection, ...]:
    tables = []
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
            tables.append(Path(f"/proc/{pid}/net/{name}").read_text())
    return parse_connections(tables)


def _address(text: str) -> str:
    digits, _, port = text.partition(":")
    raw = bytes.fromhex(digits)
    words = b"".join(raw[at : at + 4][::-1] for at in range(0, len(raw), 4))
    address = ip_address(words)
    mapped = getattr(address, "ipv4_mapped", None)
    host = str(mapped or address)
    return f"[{host}]:{int(port, 16)}" if ":" in host else f"{host}:{int(port, 16)}"


def _tree(sandbox: Sandbox) -> dict[int, int]:
    return {inside: pid for inside, pid in sandbox.host_pids().items() if inside != 1}


def open_paths(pid: int) -> Iterable[str]:
    """The kernel's names of the files that a process has open or mapped, some more than once, deleted ones with `DELETED`."""
    with contextlib.suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                yield str(descriptor.readlink())
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines():
            words = line.split(None, 5)
            if len(words) == 6:  # noqa: PLR2004 - the sixth column is the file
                yield words[5]
