"""The kernel's tables of a sandbox: System V objects, unix sockets, datagrams, multicast groups."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torpor.errors import SnapshotError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torpor.snapshots.sandbox.sandbox import Sandbox

__all__ = ["Tables", "datagrams", "multicast_groups", "read_tables", "unix_paths"]

_LOOK_TIMEOUT_S = 10.0
_EVERY_NODE = frozenset(("224.0.0.1", "ff01::1", "ff02::1"))  # every network device is a member

_LOOK = """
import json, socket, struct
found = {"sysv": {}, "unix": [], "pending": []}
for kind in ("sem", "shm", "msg"):
    with open("/proc/sysvipc/" + kind) as lines:
        found["sysv"][kind] = [int(line.split()[1]) for line in list(lines)[1:]]
try:
    asked = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4)  # NETLINK_SOCK_DIAG
    asked.settimeout(2)
    body = struct.pack("=BBHIIIII", socket.AF_UNIX, 0, 0, 0xFFFFFFFF, 0, 12, 0, 0)  # UDIAG_SHOW_PEER | UDIAG_SHOW_ICONS
    asked.send(struct.pack("=IHHII", 16 + len(body), 20, 0x301, 1, 0) + body)
    done = False
    while not done:
        data, at = asked.recv(1 << 18), 0
        while at + 16 <= len(data):
            length, kind = struct.unpack_from("=IH", data, at)
            if kind != 20:
                done = True
                break
            state, inode = data[at + 18], struct.unpack_from("=I", data, at + 20)[0]
            part, peer = at + 32, 0
            while part + 4 <= at + length:
                size, name = struct.unpack_from("=HH", data, part)
                if name == 2:
                    peer = struct.unpack_from("=I", data, part + 4)[0]
                elif name == 6 and data[part + 4] == 3:
                    state = 7  # the other end was closed
                elif name == 3:
                    found["pending"] += struct.unpack_from("=%dI" % ((size - 4) // 4), data, part + 4)
                part += max(4, size + 3 & ~3)
            found["unix"].append([inode, data[at + 17], state, peer])
            at += length + 3 & ~3
except OSError:
    pass
print(json.dumps(found))
"""
"""Runs inside the sandbox: the kernel shows these tables for the reader's own namespaces."""


class Tables(NamedTuple):
    """The kernel's tables of the sandbox.

    Attributes:
        sysv: ids of System V objects by kind.
        unix: inode, type, state and peer's inode of each unix socket.
        pending: inodes of connections that were not accepted yet.
    """

    sysv: dict[str, list[int]]
    unix: list[tuple[int, int, int, int]]
    pending: list[int]


def read_tables(sandbox: Sandbox) -> Tables:
    """Read the tables of System V objects and unix sockets inside the sandbox.

    Raises:
        SnapshotError: they cannot be read.
    """
    try:
        finished = sandbox.run([sys.executable, "-I", "-S", "-c", _LOOK], timeout_s=_LOOK_TIMEOUT_S)
    except TimeoutError:
        raise SnapshotError(
            f"Reading the kernel's tables in sandbox {sandbox.name!r} took over {_LOOK_TIMEOUT_S:g} s; is the machine overloaded?"
        ) from None
    try:
        found = json.loads(finished.output)
        return Tables(sysv=found["sysv"], unix=[tuple(one) for one in found["unix"]], pending=found["pending"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SnapshotError(
            f"The kernel's tables of sandbox {sandbox.name!r} cannot be read: {finished.output.strip()[-300:] or error}"
        ) from error


def unix_paths(pid: int) -> Iterator[tuple[int, str]]:
    """Inode and path of the unix sockets that have a path (proc_net_unix(5))."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/net/unix").read_text(errors="replace").splitlines()[1:]:
            words = line.split(None, 7)
            if len(words) == 8:  # noqa: PLR2004 - the eighth column is the path
                yield int(words[6]), words[7]


def datagrams(pid: int) -> Iterator[tuple[int, str, int]]:
    """Inode and protocol of each datagram socket, and how many bytes wait in it."""
    for table in ("udp", "udp6", "udplite", "udplite6", "raw", "raw6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                words = line.split()
                yield int(words[9]), table.rstrip("6").upper(), int(words[4].partition(":")[2], 16)


def multicast_groups(pid: int) -> Iterator[str]:
    """Multicast groups that a program joined."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/net/igmp").read_text().splitlines()[1:]:
            if line.startswith("\t"):
                group = socket.inet_ntop(socket.AF_INET, int(line.split()[0], 16).to_bytes(4, sys.byteorder))
                if group not in _EVERY_NODE:
                    yield group
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/net/igmp6").read_text().splitlines():
            group = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(line.split()[2]))
            if group not in _EVERY_NODE and not group.startswith("ff02::1:ff"):  # each address has one
                yield group
