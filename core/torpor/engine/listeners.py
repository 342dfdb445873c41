"""Which process listens on a port, as far as /proc tells: to name a program that took the engine's port."""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import psutil

from torpor.engine.environment import REPLICA_ID_VARIABLE
from torpor.engine.process import session_members

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torpor.engine.handle import Engine

__all__ = ["foreign_listener"]

_LISTEN = "0A"  # TCP_LISTEN of the kernel's tcp_states.h
_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - compared, not bound; the kernel prefers them in this order
_MAPPED = "::ffff:"
_LOOK_AGAIN_S = 0.05
_COMMAND_LENGTH = 100


class _Listener(NamedTuple):
    address: str
    uid: int
    inode: int


def foreign_listener(engine: Engine, port: int) -> str | None:
    """The process that listens on the engine's address and this port, if it certainly is not the engine's; else None.

    None as well if nobody listens, or if /proc does not tell (gVisor, `hidepid`): a wrong guess would end a good start.
    """
    if _stranger(engine, port) is None:
        return None
    time.sleep(_LOOK_AGAIN_S)  # the engine may have started a process between the two looks
    return _stranger(engine, port)


def _stranger(engine: Engine, port: int) -> str | None:
    listeners = _listeners(engine.host, port)
    if not listeners or not all(listener.inode for listener in listeners):
        return None
    tree = session_members(engine.pid)
    own = {inode for process in tree for inode in _sockets(process.pid)}
    if any(listener.inode in own for listener in listeners):
        return None
    stranger = listeners[0]
    holder = next((pid for pid in psutil.pids() if stranger.inode in _sockets(pid)), None)
    if holder is not None:
        return None if _is_of(engine, holder) else f"process {holder} ({_command(holder)}) of {_user(stranger.uid)}"
    if stranger.uid in _uids(tree):
        return None
    return f"a process of {_user(stranger.uid)}"


def _listeners(host: str, port: int) -> list[_Listener]:
    """The sockets that may get a connection to `host`: the kernel prefers those bound to the most exact address."""
    bound = (host, *(address for address in _EVERYWHERE if ":" not in host or ":" in address))
    found = [listener for table in _TABLES for listener in _listed(table, port) if listener.address in bound]
    exact = min((bound.index(listener.address) for listener in found), default=0)
    return [listener for listener in found if bound.index(listener.address) == exact]


def _listed(table: str, port: int) -> Iterable[_Listener]:
    """Lines of proc_net_tcp: sl, local_address, rem_address, st, queues, tr, retrnsmt, uid, timeout, inode, ..."""
    with contextlib.suppress(OSError):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            address, _, number = fields[1].partition(":")
            if fields[3] == _LISTEN and int(number, 16) == port:
                yield _Listener(_address(address), int(fields[7]), int(fields[9]))


def _address(text: str) -> str:
    """Decode an address of the kernel's: 32-bit words in the machine's byte order."""
    words = [int(text[at : at + 8], 16) for at in range(0, len(text), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    return socket.inet_ntop(socket.AF_INET if len(words) == 1 else socket.AF_INET6, packed).removeprefix(_MAPPED)


def _sockets(pid: int) -> set[int]:
    """Inodes of a process's sockets; empty if this user may not look."""
    found: set[int] = set()
    with contextlib.suppress(OSError):
        for number in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208 - names alone are needed
            with contextlib.suppress(OSError):
                target = os.readlink(f"/proc/{pid}/fd/{number}")  # noqa: PTH115
                if target.startswith("socket:["):
                    found.add(int(target[8:-1]))
    return found


def _is_of(engine: Engine, pid: int) -> bool:
    """Whether the engine started a process that has left its tree: it has the engine's first replica id."""
    own = _replica_id(engine.pid) or engine.replica_id
    return _replica_id(pid) == own


def _replica_id(pid: int) -> str | None:
    with contextlib.suppress(psutil.Error, OSError):
        return psutil.Process(pid).environ().get(REPLICA_ID_VARIABLE)
    return None


def _uids(tree: Iterable[psutil.Process]) -> set[int]:
    found: set[int] = set()
    for process in tree:
        with contextlib.suppress(psutil.Error):
            found.update(process.uids())
    return found


def _command(pid: int) -> str:
    with contextlib.suppress(psutil.Error):
        words = psutil.Process(pid).cmdline()
        return " ".join(words)[:_COMMAND_LENGTH].replace("\n", " ") or psutil.Process(pid).name()
    return "already gone"


def _user(uid: int) -> str:
    with contextlib.suppress(KeyError):
        return f"user {pwd.getpwuid(uid).pw_name} (uid {uid})"
    return f"uid {uid}"
