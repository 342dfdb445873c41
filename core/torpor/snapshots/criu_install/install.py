"""Installs CRIU 4.2 into a private prefix, without root and without a change to the system.

It fetches the Debian packages of CRIU and of all its libraries, including the C library, from the mirror in the machine's apt
sources. It checks them against a lock of SHA-256 sums and unpacks them; CRIU then runs through its own loader. Debian keeps one
version per suite, so a locked file may have left the mirror. Then apt resolves the suite's current version and verifies its
signature, with a state folder of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import re
import shutil
import stat
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from torpor.errors import NoRoomError, SnapshotError
from torpor.network.shortage import is_disk_full
from torpor.snapshots.criu.program import LEAST, PREFIX_VARIABLE, Criu, in_prefix, new_enough, resolved, version_of
from torpor.snapshots.criu.trusted import distrust
from torpor.snapshots.criu_install import mirror as mirrors
from torpor.snapshots.criu_install.debs import unpack_programs
from torpor.snapshots.criu_install.lock import LOCK, SUITES, Deb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["install", "prefix_of"]

_MARKER = "torpor-criu.json"
_OWN_NAMES = re.compile(r"root|bin|debs|apt|torpor-criu\.json|\.?(kernel|works|trial)-[0-9a-z_.-]+")
"""Names in a prefix that belong to Torpor: what the setup installs, and what other parts cache there about CRIU."""
_WRAPPER = """#!/bin/sh
# Runs CRIU with its own loader and libraries; this folder may be moved.
root=$(dirname "$(readlink -f "$0")")/../root
lib=$root/usr/lib/x86_64-linux-gnu
exec "$lib/ld-linux-x86-64.so.2" --library-path "$lib" "$root/usr/sbin/criu" "$@"
"""
_LOCK_POLL_S = 0.1
_UNPACKED_FACTOR = 6


def prefix_of(prefix: Path) -> Path:
    """The prefix to use: TORPOR_CRIU_PREFIX, else the given one; as an absolute path without `..` and links."""
    return resolved(Path(os.environ.get(PREFIX_VARIABLE) or prefix))


def install(
    prefix: Path,
    *,
    mirror: str | None = None,
    timeout_s: float = 300.0,
    again: bool = False,
    on_step: Callable[[str], None] | None = None,
    lock: Sequence[Deb] = LOCK,
) -> Criu:
    """Install CRIU into a private prefix; a working CRIU that is there already stays.

    Args:
        prefix: for instance `<cache root>/criu`; TORPOR_CRIU_PREFIX overrides it. Filled completely or not at all.
        mirror: root of a Debian mirror (`.../debian`); by default the first in the machine's apt sources.
        timeout_s: seconds for everything.
        again: fetch and install even if a working CRIU is there.
        on_step: called with a line for each step.
        lock: the files to fetch.

    Raises:
        NoRoomError: the disk is full.
        SnapshotError: not an x86-64 Linux, no mirror, no network, a wrong hash, ...; says what to do next.
    """
    _check_machine()
    prefix = prefix_of(prefix)
    say = on_step or (lambda _: None)
    deadline = time.monotonic() + timeout_s
    try:
        prefix.parent.mkdir(parents=True, exist_ok=True)
        _check_place(prefix)
        with _only_one(prefix, deadline):
            if not again and (present := _working(prefix)):
                say(f"CRIU {present.version} is already installed")
                return present
            _check_ours(prefix)
            _check_room(prefix.parent, lock)
            return _fill(prefix, mirror, lock, deadline, say)
    except OSError as error:
        raise _not_installed(prefix, error) from error


def _not_installed(prefix: Path, error: OSError) -> SnapshotError:
    kind = NoRoomError if is_disk_full(error) else SnapshotError
    return kind(
        f"Cannot install CRIU into {prefix}: {error.strerror or error}. Let TORPOR_CACHE name a folder of yours with room."
    )


def _fill(prefix: Path, mirror: str | None, lock: Sequence[Deb], deadline: float, say: Callable[[str], None]) -> Criu:
    """Build CRIU in a folder beside the prefix, then move it to the prefix."""
    with _unfinished(prefix) as folder:
        root = mirrors.debian_root(mirror)
        packages = _fetch(root, lock, folder, deadline, say)
        say(f"unpacking {len(packages)} packages")
        built = _build(folder, packages)
        say(f"CRIU {built.version} runs")
        _put(folder, prefix)
    installed = _working(prefix)
    if installed is None:
        raise SnapshotError(f"CRIU ran in its unfinished folder but does not run in {prefix}; run the setup again.")
    return installed


def _check_machine() -> None:
    machine = platform.machine()
    if sys.platform != "linux" or machine != "x86_64":
        raise SnapshotError(
            f"The setup has packages for x86-64 Linux only; this is {sys.platform} on {machine}. Install CRIU {LEAST} or newer "
            f"from your distribution, or build it (criu.org) and name its prefix in {PREFIX_VARIABLE}."
        )


def _working(prefix: Path) -> Criu | None:
    argv = in_prefix(prefix)
    version = version_of(argv) if argv else None
    if argv is None or version is None or not new_enough(version):
        return None
    return Criu(argv=argv, program=Path(argv[-1]), version=version)


def _check_place(prefix: Path) -> None:
    """Refuse a place where other users could replace the CRIU, or already put files."""
    there = [path for path in (prefix, *(prefix / name for name in ("root", "bin", _MARKER))) if path.exists()]
    if why := distrust(there, below=prefix) or _shared(prefix.parent):
        raise SnapshotError(
            f"CRIU is not installed into {prefix}: {why}, and programs there may run as root. Name a folder of your own "
            f"({PREFIX_VARIABLE})."
        )


def _shared(folder: Path) -> str | None:
    """Why a folder is unsafe for a program: other users may write to it. A sticky one (/tmp) is safe: files stay their owner's."""
    why = distrust([folder])
    return None if why and folder.stat().st_mode & stat.S_ISVTX and distrust([folder.parent]) is None else why


def _check_ours(prefix: Path) -> None:
    """Refuse to replace a folder that holds files of somebody else."""
    if not prefix.exists():
        return
    if not (prefix / _MARKER).exists():
        others = any(prefix.iterdir())
    else:
        others = any(not _OWN_NAMES.fullmatch(path.name) for path in prefix.iterdir())
    if others:
        raise SnapshotError(
            f"{prefix} holds files that the setup did not make; name another folder ({PREFIX_VARIABLE})."
        )


def _check_room(folder: Path, lock: Sequence[Deb]) -> None:
    needed = _UNPACKED_FACTOR * sum(package.size for package in lock)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise NoRoomError(f"{folder} has {free >> 20} MB free; the setup of CRIU needs {needed >> 20} MB.")


@contextlib.contextmanager
def _only_one(prefix: Path, deadline: float) -> Iterator[None]:
    """Hold the lock file beside the prefix, so that two setups do not do the same work."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with os.fdopen(os.open(prefix.parent / f".{prefix.name}.lock", flags, 0o600), "r+") as stream:
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise SnapshotError(f"Another setup of {prefix} is still running; wait for it or end it.") from None
                time.sleep(_LOCK_POLL_S)
            else:
                break
        yield


@contextlib.contextmanager
def _unfinished(prefix: Path) -> Iterator[Path]:
    """A temporary folder beside the prefix, on the same disk; first removes one that a killed setup left."""
    folder = prefix.parent / f".{prefix.name}.unfinished"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _fetch(root: str, lock: Sequence[Deb], folder: Path, deadline: float, say: Callable[[str], None]) -> list[Path]:
    """Fetch the locked files, or the suite's current ones when the mirror no longer has a locked one."""
    downloads = folder / "debs"
    downloads.mkdir()
    say(f"fetching {len(lock)} packages, {sum(package.size for package in lock) / 1e6:.1f} MB, from {root}")
    try:
        return mirrors.fetch_locked(root, lock, downloads, deadline)
    except mirrors.GoneError as gone:
        say(f"{gone}; asking apt for the current version")
    failures = []
    for suite in SUITES:
        shutil.rmtree(folder / "apt", ignore_errors=True)
        try:
            return mirrors.fetch_signed(root, suite, folder / "apt", deadline)
        except SnapshotError as error:
            failures.append(f"  - suite {suite}: {error}")
    raise SnapshotError(
        "The locked packages have left the mirror, and no signed ones could be fetched:\n" + "\n".join(failures)
    )


def _build(folder: Path, packages: Sequence[Path]) -> Criu:
    """Unpack the packages and run the CRIU in them.

    Raises:
        SnapshotError: it does not run here, or is too old.
    """
    for package in packages:
        unpack_programs(package, folder / "root")
    wrapper = folder / "bin" / "criu"
    wrapper.parent.mkdir()
    wrapper.write_text(_WRAPPER)
    wrapper.chmod(0o755)
    built = _working(folder)
    if built is None:
        raise SnapshotError(
            f"The unpacked CRIU does not run here or is older than {LEAST} (packages: "
            f"{', '.join(package.name for package in packages)})."
        )
    named = [re.sub("%3a", ":", package.name) for package in packages]
    (folder / _MARKER).write_text(json.dumps({"version": built.version, "packages": named}, indent=1) + "\n")
    return built


def _put(folder: Path, prefix: Path) -> None:
    """Move a finished folder to the prefix, writable by its owner alone."""
    for downloads in ("debs", "apt"):
        shutil.rmtree(folder / downloads, ignore_errors=True)
    for made, _, names in os.walk(folder):  # whatever the umask: nobody else may write there
        for path in (Path(made), *(Path(made, name) for name in names)):
            if not path.is_symlink():
                path.chmod(stat.S_IMODE(path.stat().st_mode) & ~(stat.S_IWGRP | stat.S_IWOTH))
    folder.chmod(0o755)
    old = prefix.parent / f".{prefix.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if prefix.exists():
        prefix.rename(old)
    folder.rename(prefix)
    shutil.rmtree(old, ignore_errors=True)
