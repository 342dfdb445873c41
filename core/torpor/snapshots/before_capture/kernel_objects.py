"""Refuse kernel objects that CRIU does not restore, by name, before anything is touched.

On some objects CRIU fails without naming a cure. Others it skips or restores in another state, and still reports success: a
System V semaphore, a helper that left the tree, a waiting datagram, a memory file that is mapped and open (rootless). Each kind
in this list was tried with CRIU 4.2.1, as root and rootless (`tests/snapshots/before_capture/test_kernel_objects.py`).

Not checked, because they are invisible from outside: the kernel's keyrings, Landlock rules, memory policies (mbind(2)).
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torpor.errors import SnapshotError
from torpor.snapshots.before_capture.external_resources import DELETED
from torpor.snapshots.before_capture.kernel_tables import (
    Tables,
    datagrams,
    multicast_groups,
    read_tables,
    unix_paths,
)
from torpor.snapshots.criu.run import GHOST_BYTES
from torpor.snapshots.sandbox.sandbox import FIRST_PID

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torpor.snapshots.sandbox.sandbox import Sandbox

__all__ = ["Held", "check_objects", "uncarried"]

_SETTLE_S = 1.0
_SHOWN = 12
_ROOT = "use `--mode root`"
_LOCKS = "apply torpor.launcher.snapshot_patches in the engine's launcher"
_CLOSE = "close it before the capture (a pre_snapshot hook is the place)"
_NAMESPACES = ("pid", "user", "net", "mnt", "ipc", "uts", "cgroup", "time", "pid_for_children")
_WORDS = {"net": "network", "mnt": "mount", "pid_for_children": "pid"}
_SOCKETS = frozenset(
    (
        "TCP",
        "TCPv6",
        "UDP",
        "UDPv6",
        "UDP-Lite",
        "UDPLITEv6",
        "UNIX",
        "UNIX-STREAM",
        "NETLINK",
        "PACKET",
        "RAW",
        "RAWv6",
    )
)
_ANONYMOUS = frozenset(
    (
        "[eventfd]",
        "[eventpoll]",
        "[signalfd]",
        "[timerfd]",
        "[pidfd]",
        "[fanotify]",
        "inotify",
        "[io_uring]",  # refused by `torpor.snapshots.before_capture.external_resources`
    )
)
_PLAIN_DEVICES = frozenset(("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"))
_TERMINALS = ("/dev/pts/", "/dev/ptmx", "/dev/tty", "/dev/console")
_GPU_ANONYMOUS = ("/dmabuf:", "anon_inode:sync_file", "anon_inode:dmabuf")
_MAPPED_DELETED = re.compile(r"^\S+ ...p \S+ \S+ \d+ +(/.*) \(deleted\)$", re.MULTILINE)
_MAPPED = re.compile(r"^\S+ ...s \S+ \S+ (\d+) +(/.*)$", re.MULTILINE)
_NAMELESS = ("/memfd:", "/dev/zero", "/SYSV")
_SYS_RESOURCE = 1 << 24  # CAP_SYS_RESOURCE
_STREAMS = (1, 5)  # SOCK_STREAM, SOCK_SEQPACKET
_CONNECTED = 1  # TCP_ESTABLISHED, for unix sockets too


class Held(NamedTuple):
    """Something that a restore would lose.

    Attributes:
        pid: its holder, inside the sandbox; 0 for the sandbox as a whole.
        what: what it is.
        cure: what to do about it.
    """

    pid: int
    what: str
    cure: str


class _Process(NamedTuple):
    """A process of the tree: its pid inside and outside, and that of its parent outside."""

    inside: int
    outside: int
    parent: int
    status: dict[str, str]


class _File(NamedTuple):
    """An open file: its process, its path under /proc, and the kernel's name for it."""

    pid: int
    path: str
    link: str


def check_objects(sandbox: Sandbox, *, devices: Sequence[str] = ()) -> None:
    """Refuse what CRIU does not restore.

    Args:
        sandbox: with the tree.
        devices: path prefixes of device files that are closed before the dump (a GPU's).

    Raises:
        SnapshotError: something is there, and still there a second later; the message names each with a cure.
    """
    deadline = time.monotonic() + _SETTLE_S
    while (found := uncarried(sandbox, devices=devices)) and time.monotonic() < deadline:
        time.sleep(0.05)  # a helper may be ending, a datagram may be being read
    if not found:
        return
    named = [f"  - {_holder(sandbox, one.pid)}{one.what}: {one.cure}" for one in found[:_SHOWN]]
    more = [f"  - and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
    raise SnapshotError(
        "The engine holds what CRIU cannot restore, so a replica would lose it:\n"
        + "\n".join([*named, *more])
        + "\nNothing was captured."
    )


def uncarried(sandbox: Sandbox, *, devices: Sequence[str] = ()) -> tuple[Held, ...]:
    """What CRIU does not restore in the sandbox's mode; for the arguments see `check_objects`."""
    if sandbox.poll() is not None:
        return ()  # ended: the dump has the better error
    rootless = sandbox.mode == "rootless"
    tables, tree = read_tables(sandbox), _tree(sandbox)
    files = [_File(one.inside, path, link) for one in tree for path, link in _links(one.outside)]
    found = [*_of_sysv(tables), *_outside_tree(tree)]
    for process in tree:
        found += _of_process(process, sandbox, rootless=rootless)
    for file in files:
        found += _of_file(file, devices, rootless=rootless)
    found += _of_sockets(files, tree, sandbox, tables)
    found += _of_mappings(tree, files) if rootless else []
    return tuple({(one.pid, one.what): one for one in found}.values())


def _tree(sandbox: Sandbox) -> list[_Process]:
    """Every process inside except pid 1, the leader first."""
    found = []
    for inside, outside in sorted(sandbox.host_pids().items()):
        status = _status(outside)
        if inside != 1 and status and not status["State"].startswith("Z"):
            found.append(_Process(inside, outside, int(status["PPid"]), status))
    return sorted(found, key=lambda one: one.inside != FIRST_PID)


def _status(pid: int) -> dict[str, str]:
    """The fields of /proc/PID/status; empty if the process ended."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return {}


def _of_sysv(tables: Tables) -> Iterator[Held]:
    for kind, ids in tables.sysv.items():
        if ids:
            what = f"System V {_SYSV[kind]} (id {', '.join(map(str, ids[:3]))})"
            yield Held(0, what, "remove it before the capture, or have the engine use POSIX ones or files under TMPDIR")


def _outside_tree(tree: Sequence[_Process]) -> Iterator[Held]:
    """Processes that do not descend from the leader: CRIU dumps only the leader's tree."""
    parents = {one.outside: one.parent for one in tree}
    leader = next((one.outside for one in tree if one.inside == FIRST_PID), 0)
    for one in tree:
        at = one.outside
        while at in parents and at != leader:
            at = parents[at]
        if at != leader:
            what = "has left the engine's process tree (a daemon: its parent has ended)"
            yield Held(one.inside, what, "keep it as a child of the engine, or end it before the capture")


def _of_process(process: _Process, sandbox: Sandbox, *, rootless: bool) -> Iterator[Held]:
    pid = process.inside
    for kind in _NAMESPACES:
        # After a restore as root the tree has its own time namespace, so compare with the leader's.
        reference = sandbox.host_pids().get(FIRST_PID, sandbox.pid) if kind == "time" else sandbox.pid
        own, usual = _namespace(process.outside, kind), _namespace(reference, kind)
        if own and usual and own != usual:
            yield Held(
                pid, f"has a {_WORDS.get(kind, kind)} namespace of its own", "have the engine start it without one"
            )
    if process.status.get("TracerPid", "0") != "0":
        yield Held(pid, "is being traced (ptrace)", "end the debugger or tracer before the capture")
    filtered = process.status.get("Seccomp", "0") != "0" and _status(sandbox.pid).get("Seccomp", "0") == "0"
    if rootless and filtered:
        yield Held(pid, "runs under a seccomp filter", f"only root can capture it: {_ROOT}")
    ours = {*process.status["Uid"].split(), *process.status["Gid"].split()} == {str(os.getuid()), str(os.getgid())}
    if not rootless and not ours and not int(_status(os.getpid())["CapEff"], 16) & _SYS_RESOURCE:
        user = process.status["Uid"].split()[1]
        cure = "start it as the engine's own user; or give Torpor the capability SYS_RESOURCE"
        yield Held(pid, f"runs as another user (uid {user})", cure)


def _namespace(pid: int, kind: str) -> str:
    with contextlib.suppress(OSError):
        return str(Path(f"/proc/{pid}/ns/{kind}").readlink())
    return ""


def _links(pid: int) -> Iterator[tuple[str, str]]:
    """Every open file of a process: its path under /proc, and the kernel's name for it."""
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208 - thousands of them
            path = f"/proc/{pid}/fd/{name}"
            with contextlib.suppress(OSError):
                yield path, os.readlink(path)  # noqa: PTH115


def _of_file(file: _File, devices: Sequence[str], *, rootless: bool) -> Iterator[Held]:
    link = file.link
    if link.startswith("anon_inode:"):
        kind = link.removeprefix("anon_inode:")
        if kind not in _ANONYMOUS and not (devices and link.startswith(_GPU_ANONYMOUS)):
            yield Held(file.pid, f"has an open {kind.strip('[]')} descriptor", _CLOSE)
        elif rootless and kind in ("inotify", "[fanotify]"):
            yield Held(file.pid, "watches files (inotify)", f"only root can capture that: {_ROOT}; or {_CLOSE}")
    elif link.startswith(_TERMINALS):
        yield Held(file.pid, f"has a terminal open ({link})", _CLOSE + "; all replicas would share it")
    elif link.startswith("pipe:["):
        with contextlib.suppress(OSError):
            if _flags(file) & os.O_DIRECT:
                yield Held(file.pid, "has a pipe of packets (O_DIRECT) open", _CLOSE)
    elif link.startswith("/"):
        with contextlib.suppress(OSError):
            yield from _of_path(file, os.stat(file.path), devices)  # noqa: PTH116


def _of_path(file: _File, facts: os.stat_result, devices: Sequence[str]) -> Iterator[Held]:
    link = file.link
    if link.startswith("/memfd:") and facts.st_blksize > os.sysconf("SC_PAGE_SIZE"):
        yield Held(file.pid, f"has the memory file {link.removesuffix(DELETED)} of huge pages open", _CLOSE)
    if stat.S_ISCHR(facts.st_mode) or stat.S_ISBLK(facts.st_mode):
        if link not in _PLAIN_DEVICES and not (devices and link.startswith(tuple(devices))):
            yield Held(file.pid, f"has the device {link} open", _CLOSE)
    elif stat.S_ISREG(facts.st_mode) and facts.st_nlink == 0 and facts.st_size > GHOST_BYTES and link.endswith(DELETED):
        size = f"{facts.st_size / 1e9:.1f} GB"
        yield Held(
            file.pid,
            f"has the deleted file {link.removesuffix(DELETED)} of {size} open",
            f"{_CLOSE}, or keep its name",
        )
    elif stat.S_ISREG(facts.st_mode) and _is_leased(file):
        yield Held(
            file.pid, f"has a lease on {link} (F_SETLEASE)", "release it before the capture, which opens the file"
        )
    elif stat.S_ISREG(facts.st_mode) and link.count("/") == 1 and facts.st_nlink and _is_message_queue(file, facts):
        yield Held(file.pid, f"has the POSIX message queue {link} open", _CLOSE)


def _flags(file: _File) -> int:
    """The flags with which a file was opened; see proc_pid_fdinfo(5)."""
    lines = Path(file.path.replace("/fd/", "/fdinfo/")).read_text().splitlines()
    return next(int(line.split()[1], 8) for line in lines if line.startswith("flags:"))


def _is_leased(file: _File) -> bool:
    """Whether a process has a lease on an open file. A capture opens the file, waits 45 s, and breaks the lease."""
    with contextlib.suppress(OSError):
        return " LEASE " in Path(file.path.replace("/fd/", "/fdinfo/")).read_text()
    return False


def _is_message_queue(file: _File, facts: os.stat_result) -> bool:
    """Whether an open file differs from the file at its path: a message queue's name looks like that of a file in `/`."""
    try:
        there = os.stat(file.link)  # noqa: PTH116
    except OSError:
        return True
    return (there.st_dev, there.st_ino) != (facts.st_dev, facts.st_ino)


def _of_sockets(files: Sequence[_File], tree: Sequence[_Process], sandbox: Sandbox, tables: Tables) -> Iterator[Held]:
    ours: dict[int, _File] = {}
    for file in files:
        if file.link.startswith("socket:["):
            ours[int(file.link[8:-1])] = file
    for file in ours.values():
        with contextlib.suppress(OSError):
            protocol = os.getxattr(file.path, "system.sockprotoname").rstrip(b"\0").decode()
            if protocol not in _SOCKETS:
                yield Held(file.pid, f"has a socket of kind {protocol} open", _CLOSE)
    network = tree[0].outside if tree else sandbox.pid
    for inode, path in unix_paths(network):
        if (
            inode in ours
            and path.startswith("/")
            and not any(Path(path).is_relative_to(one) for one in sandbox.private)
        ):
            cure = "have the engine put it under TMPDIR: replicas would take it from each other"
            yield Held(ours[inode].pid, f"has a unix socket at {path}, outside of its private folders", cure)
    known = {one[0] for one in tables.unix}
    for inode, kind, state, peer in tables.unix:
        connected = kind in _STREAMS and state == _CONNECTED and inode not in tables.pending
        if inode in ours and connected and peer not in known:
            yield Held(ours[inode].pid, "is connected over a unix socket to a program outside", _CLOSE)
    for inode, protocol, waiting in datagrams(network):
        if inode in ours and waiting:
            cure = "have it read before the capture: a restore loses it"
            yield Held(ours[inode].pid, f"has {waiting} bytes of datagrams waiting in a {protocol} socket", cure)
    for group in multicast_groups(network):
        cure = "have the engine leave it before the capture: a restore loses it"
        yield Held(0, f"a membership of the multicast group {group}", cure)


def _of_mappings(tree: Sequence[_Process], files: Sequence[_File]) -> Iterator[Held]:
    """Shared memory that a rootless dump loses or cannot reach."""
    opened = set()
    for file in files:
        if file.link.startswith("/memfd:"):
            with contextlib.suppress(OSError):
                opened.add(os.stat(file.path).st_ino)  # noqa: PTH116
    for process in tree:
        maps = ""
        with contextlib.suppress(OSError):
            maps = Path(f"/proc/{process.outside}/maps").read_text(errors="replace")
        for inode, name in _MAPPED.findall(maps):
            if name.startswith("/memfd:"):
                if int(inode) in opened:
                    what = f"has the memory file {name.removesuffix(DELETED)} mapped and open"
                    yield Held(process.inside, what, f"a rootless replica gets two of them: {_ROOT}")
            elif name.startswith("/[aio]"):
                yield Held(
                    process.inside, "has a context of asynchronous I/O (io_setup)", f"only root can capture it: {_ROOT}"
                )
            elif name.endswith(DELETED) and not name.startswith(("/dev/zero", "/SYSV")):
                what = f"maps the deleted file {name.removesuffix(DELETED)} (an unnamed semaphore looks like this)"
                yield Held(process.inside, what, f"{_LOCKS}; or only root can capture it: {_ROOT}")
        for name in _MAPPED_DELETED.findall(maps):
            if not name.startswith(_NAMELESS):
                what = f"runs or maps the deleted file {name}"
                yield Held(process.inside, what, f"keep the file until the end; or only root can capture it: {_ROOT}")


def _holder(sandbox: Sandbox, inside: int) -> str:
    if not inside:
        return ""
    command = ""
    with contextlib.suppress(OSError, KeyError):
        words = Path(f"/proc/{sandbox.host_pids()[inside]}/cmdline").read_bytes()
        command = words.replace(b"\0", b" ").decode(errors="replace").strip()[:80]
    return f"pid {inside} ({command}) "


_SYSV = {"sem": "semaphores", "shm": "shared memory", "msg": "message queues"}
