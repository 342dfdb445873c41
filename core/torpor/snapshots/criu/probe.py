"""Whether snapshots work on this machine: a small real dump and restore decides, not `criu check`."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import socket
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from torpor._version import __version__
from torpor.errors import ConfigurationError, SnapshotError
from torpor.snapshots.criu.program import Criu, boot_id, candidates, find
from torpor.snapshots.criu.run import dump, restore
from torpor.snapshots.sandbox.pid1 import StepError
from torpor.snapshots.sandbox.start import create_sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torpor.snapshots.sandbox.sandbox import Sandbox
    from torpor.snapshots.store.manifest import Mode

__all__ = ["Reason", "available", "usable_mode"]

_SETUP_CURE = "run `torpor snapshot setup`: it installs CRIU 4.2 into a private folder, without root (x86-64)"
_PORT = 8000
_STEP_TIMEOUT_S = 30.0  # each takes some 50 ms; a failure would have a server start cold each time
_POLL_S = 0.005
_ANSWER = b"leader child"
_PROGRAM = f"""
import os, socket
listener = socket.create_server(("127.0.0.1", {_PORT}))
asked, ask = os.pipe()
told, tell = os.pipe()
if os.fork() == 0:
    while os.read(asked, 1):
        os.write(tell, b"child")
print("up", flush=True)
while True:
    connection, _ = listener.accept()
    os.write(ask, b"?")
    connection.sendall(b"leader " + os.read(told, 5))
    connection.close()
"""
"""A tree like an engine's: a Python process with a child and a listening TCP socket. `criu check` tries none of these."""


@dataclass(frozen=True, kw_only=True)
class Reason:
    """Why snapshots do not work here, and what to do about it.

    Attributes:
        code: a word for programs: `not_linux`, `criu_missing`, `not_root`, `user_namespaces`, `apparmor`, `seccomp`, `gvisor`,
            `proc_masked`, `sandbox`, `dump`, `restore`, `answer`.
        seen: what was found.
        cure: what to install or grant.
        tried: whether this project has tried the cure; the text of an untried one says so.
    """

    code: str
    seen: str
    cure: str
    tried: bool = True

    def __str__(self) -> str:
        return f"{self.seen}: {self.cure}" + ("" if self.tried else " (untried)")


def available(mode: Mode, *, cache: Path, prefix: Path | None = None) -> tuple[Reason, ...]:
    """Why snapshots do not work here in this mode; empty when they do.

    Dumps and restores a Python process with a child and a listening TCP socket (less than 1.5 s). A success is remembered until the
    next boot, for this CRIU, this user and this version of Torpor (less than 5 ms); a failure is not.

    Args:
        mode: root or rootless.
        cache: private folder for remembered successes, made when missing; not the prefix, which the setup replaces.
        prefix: see `torpor.snapshots.criu.program.find`.
    """
    if sys.platform != "linux":
        return (Reason(code="not_linux", seen=f"this is {sys.platform}", cure="use a Linux machine"),)
    if _is_gvisor():
        return (_GVISOR_REASON,)
    kept = cache / f"works-{mode}-{_key(prefix)}.json"
    if kept.exists():
        return ()
    started = time.perf_counter()
    reasons = _reasons(mode, cache, prefix)
    if not reasons:
        unfinished = kept.with_name(f".{kept.name}.{os.getpid()}")
        text = json.dumps({"seconds": round(time.perf_counter() - started, 3), "at": time.time()}) + "\n"
        with contextlib.suppress(OSError):  # for instance a full disk: the next call tries again
            unfinished.write_text(text)
            unfinished.rename(kept)
    return reasons


def usable_mode(*, cache: Path, prefix: Path | None = None) -> tuple[Mode | None, tuple[Reason, ...]]:
    """The mode to use: rootless if it works, else root if that works, else None with the reasons of both."""
    modes: tuple[Mode, ...] = ("rootless", "root")
    against: list[Reason] = []
    for mode in modes:
        reasons = available(mode, cache=cache, prefix=prefix)
        if not reasons:
            return mode, ()
        against += [reason for reason in reasons if reason not in against]
    return None, tuple(against)


def _key(prefix: Path | None) -> str:
    """The key of a remembered success: boot, CRIU, user and version, found without running a program."""
    programs = []
    for argv in candidates(prefix):
        facts = Path(argv[-1]).stat()
        programs.append((argv, facts.st_size, facts.st_mtime_ns))
    return hashlib.sha256(repr((boot_id(), programs, os.geteuid(), __version__)).encode()).hexdigest()[:16]


def _reasons(mode: Mode, cache: Path, prefix: Path | None) -> tuple[Reason, ...]:
    try:
        criu = find(prefix, cache=cache)
    except SnapshotError as error:
        missing = Reason(code="criu_missing", seen=str(error).partition(". ")[0], cure=_SETUP_CURE)
        return (missing, *_what_else_is_missing(mode))
    if mode == "root" and os.geteuid() != 0:
        return (Reason(code="not_root", seen=f"user {os.geteuid()} is not root", cure="use rootless, or run as root"),)
    log = cache / f"trial-{mode}.log"
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="trial-", dir=cache) as folder:
            reason = _trial(criu, mode, Path(folder))
            if reason and (logs := [*Path(folder).rglob("*.log")]):
                shutil.copyfile(max(logs, key=lambda file: file.stat().st_mtime), log)
                reason = replace(reason, seen=f"{reason.seen} (CRIU's log: {log})")
    except OSError as error:
        return (Reason(code="sandbox", seen=f"{cache} cannot be used ({error})", cure="name another cache folder"),)
    return (reason,) if reason else ()


def _what_else_is_missing(mode: Mode) -> tuple[Reason, ...]:
    """Without CRIU: also why sandboxes would not work, so that nobody installs CRIU in vain."""
    if mode == "root" and os.geteuid() != 0:
        return ()
    try:
        with tempfile.TemporaryDirectory() as folder:
            create_sandbox("trial", mode=mode, scratch=Path(folder) / "scratch").kill()
    except (SnapshotError, OSError) as error:
        return (_explain("sandbox", error, mode),)
    return ()


def _trial(criu: Criu, mode: Mode, folder: Path) -> Reason | None:
    """Dump and restore a small tree in sandboxes, as for replicas; the reason if that fails."""
    scratch, images, work = folder / "scratch", folder / "images", folder / "work"
    work.mkdir()
    step = "sandbox"
    try:
        with create_sandbox("trial", mode=mode, scratch=scratch) as original:
            step = "start"
            original.spawn([sys.executable, "-I", "-S", "-c", _PROGRAM], env={"PATH": os.defpath})
            _wait_until_up(original)
            step = "dump"
            dump(criu, original, images, timeout_s=_STEP_TIMEOUT_S)
        step = "sandbox"
        with create_sandbox("trial", mode=mode, scratch=scratch) as replica:
            step = "restore"
            restore(criu, replica, images, work=work, timeout_s=_STEP_TIMEOUT_S)
            step = "answer"
            _check_answer(replica)
    except (SnapshotError, ConfigurationError, OSError) as error:
        return _explain(step, error, mode)
    return None


def _wait_until_up(sandbox: Sandbox) -> None:
    deadline = time.monotonic() + _STEP_TIMEOUT_S
    while not sandbox.log_tail():
        code = sandbox.wait(_POLL_S)
        if code is not None or time.monotonic() > deadline:
            state = "did not start in time" if code is None else f"ended with code {code}"
            raise SnapshotError(f"The trial's program {state}: {' / '.join(sandbox.log_tail()) or 'no output'}")


def _check_answer(sandbox: Sandbox) -> None:
    with sandbox.connect(_PORT, timeout_s=_STEP_TIMEOUT_S) as connection:
        answer = connection.recv(len(_ANSWER), socket.MSG_WAITALL)
    if answer != _ANSWER:
        raise SnapshotError(f"The restored program answered {answer!r} instead of {_ANSWER!r}.")


def _explain(step: str, error: Exception, mode: Mode) -> Reason:
    """Find the reason for a failure, as far as the kernel tells it."""
    seen = " ".join(str(error).partition("The whole log: ")[0].split()).rstrip(".")
    if step == "sandbox" and isinstance(error.__cause__, StepError):
        for code, holds, cure, tried in _hindrances(error.__cause__, mode):
            if holds:
                return Reason(code=code, seen=seen, cure=cure, tried=tried)
    if mode == "root" and "Operation not permitted" in seen:
        return Reason(code="not_root", seen=f"this root lacks a privilege ({seen})", cure=_CAPABILITIES)
    return Reason(code=step if step in _CODES else "sandbox", seen=seen, cure=_STANDBY)


def _hindrances(refused: StepError, mode: Mode) -> Iterator[tuple[str, bool, str, bool]]:
    """What may prevent a sandbox: its code, whether it applies, the cure, and whether the cure was tried."""
    denied = refused.number in (errno.EPERM, errno.EACCES)
    restricted = _setting("kernel/apparmor_restrict_unprivileged_userns") == "1"
    yield "proc_masked", denied and refused.step == "mount proc on /proc" and not restricted, _MASKED, False
    yield "apparmor", denied and restricted and mode == "rootless", _APPARMOR, False
    yield "seccomp", denied and _under_seccomp(), _SECCOMP, False
    unmapped = refused.step == "write /proc/self/uid_map" and os.geteuid() == 0
    yield "user_namespaces", denied and mode == "rootless" and unmapped, _SETFCAP, True
    yield "user_namespaces", mode == "rootless" and "user namespace" in refused.step, _user_namespace_cure(), True
    yield "not_root", denied and mode == "root", _CAPABILITIES, True


_CODES = ("sandbox", "dump", "restore", "answer")
_STANDBY = "the standby backend needs none of this (--backend standby)"
_GVISOR_REASON = Reason(
    code="gvisor",
    seen="this is a gVisor sandbox, whose kernel CRIU cannot read",
    cure="use a machine or container with a kernel of its own (docker: --runtime runc), or the standby backend",
    tried=False,
)
_MASKED = "docker: --security-opt systempaths=unconfined; podman: --security-opt unmask=ALL"
_APPARMOR = "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile with `userns,`; or run as root"
_SECCOMP = "docker: --security-opt seccomp=unconfined, and --privileged for root mode; or run outside of the container"
_CAPABILITIES = (
    "give it SYS_ADMIN, SYS_PTRACE, NET_ADMIN and SYS_TIME on top of a container's default capabilities (in docker, "
    "untried: --privileged, or --cap-add each)"
)
_SETFCAP = "run as an ordinary user, or give root CAP_SETFCAP, which it needs to map itself (Linux 5.12 and later)"
_VERSION_FILE = Path("/proc/version")


def _user_namespace_cure() -> str:
    if _setting("kernel/unprivileged_userns_clone") == "0":
        return "sudo sysctl -w kernel.unprivileged_userns_clone=1; or run as root"
    if _setting("user/max_user_namespaces") == "0":
        return "sudo sysctl -w user.max_user_namespaces=10000; or run as root"
    return "ask for user namespaces (CONFIG_USER_NS, user.max_user_namespaces); or run as root"


def _setting(name: str) -> str | None:
    try:
        return Path("/proc/sys", name).read_text().strip()
    except OSError:
        return None


def _under_seccomp() -> bool:
    return "\nSeccomp:\t2" in Path("/proc/self/status").read_text()


def _is_gvisor() -> bool:
    try:
        version = _VERSION_FILE.read_text()
    except OSError:
        return False
    return "gVisor" in version or "#1 SMP Sun Jan 10 15:06:54 PST 2016" in version  # what runsc 20240729 reports
