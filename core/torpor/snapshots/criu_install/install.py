"""CRIU 4.2 in a private prefix: no root, nothing of the system touched.

The Debian packages of CRIU and of every library under it, down to the C library, are fetched from the mirror that the
machine's own apt sources name, checked against a lock of SHA-256 sums, and unpacked; CRIU then runs through its own loader.
When a locked file has left the mirror (Debian keeps one version per suite), apt resolves and checks the suite's present
one by its signature instead, with a state folder of its own.
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

from torpor.errors import SnapshotError
from torpor.snapshots.criu.run import LEAST, PREFIX_VARIABLE, Criu, in_prefix, resolved, version_of
from torpor.snapshots.criu.trusted import distrust
from torpor.snapshots.criu_install import mirror as mirrors
from torpor.snapshots.criu_install.debs import unpack_programs
from torpor.snapshots.criu_install.lock import LOCK, SUITES, Deb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["install", "prefix_of", "remove"]

_MARKER = "torpor-criu.json"
_OWN_NAMES = re.compile(r"root|bin|debs|apt|torpor-criu\.json|\.?(kernel|works|trial)-[0-9a-z_.-]+")
"""Of what lies in a prefix: the setup's own, and what is kept there about CRIU on this machine."""
_WRAPPER = """#!/bin/sh
# CRIU through its own loader and libraries, wherever this folder lies.
root=$(dirname "$(readlink -f "$0")")/../root
lib=$root/usr/lib/x86_64-linux-gnu
exec "$lib/ld-linux-x86-64.so.2" --library-path "$lib" "$root/usr/sbin/criu" "$@"
"""
_LOCK_POLL_S = 0.1
_UNPACKED_FACTOR = 6


def prefix_of(prefix: Path) -> Path:
    """The prefix to use: TORPOR_CRIU_PREFIX, else the given one; from the root on, without `..` and links."""
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
    """Put CRIU into a private prefix; a working one that is there is kept.

    Args:
        prefix: for instance `<cache root>/criu`; TORPOR_CRIU_PREFIX overrides it. Made whole or not at all.
        mirror: root of a Debian mirror (`.../debian`); the first of the machine's apt sources by default.
        timeout_s: seconds for all of it.
        again: fetch anew even when a working CRIU is there.
        on_step: told what is being done.
        lock: the files to fetch.

    Raises:
        SnapshotError: not an x86-64 Linux, no mirror, no network, a wrong hash, no room, ...; with the next step.
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
                say(f"CRIU {'.'.join(map(str, present.version))} is there already")
                return present
            _check_ours(prefix)
            _check_room(prefix.parent, lock)
            with _unfinished(prefix) as folder:
                root = mirrors.debian_root(mirror)
                packages = _fetch(root, lock, folder, deadline, say)
                say(f"unpacking {len(packages)} packages")
                made = _build(folder, packages)
                say(f"CRIU {'.'.join(map(str, made.version))} runs")
                _put(folder, prefix)
    except OSError as error:
        raise SnapshotError(f"CRIU cannot be put into {prefix}: {error}.") from error
    placed = _working(prefix)
    if placed is None:
        raise SnapshotError(f"CRIU ran in its unfinished folder but does not run in {prefix}; run the setup again.")
    return placed


def remove(prefix: Path) -> bool:
    """Delete the prefix; whether there was one.

    Raises:
        SnapshotError: the folder was not made by `install`.
    """
    prefix = prefix_of(prefix)
    if not prefix.exists():
        return False
    _check_ours(prefix)
    shutil.rmtree(prefix)
    return True


def _check_machine() -> None:
    machine = platform.machine()
    if sys.platform != "linux" or machine != "x86_64":
        raise SnapshotError(
            f"The setup has packages for x86-64 Linux only; this is {sys.platform} on {machine}. Install CRIU "
            f"{LEAST[0]}.{LEAST[1]} or newer from your distribution, or build it (criu.org) and name its prefix in "
            f"{PREFIX_VARIABLE}."
        )


def _working(prefix: Path) -> Criu | None:
    argv = in_prefix(prefix)
    version = version_of(argv) if argv else None
    if argv is None or version is None or version < LEAST:
        return None
    return Criu(argv=argv, program=Path(argv[-1]), version=version)


def _check_place(prefix: Path) -> None:
    """Refuse a place where others could replace what is put there, or have put something of their own."""
    there = [path for path in (prefix, *(prefix / name for name in ("root", "bin", _MARKER))) if path.exists()]
    if why := distrust(there, below=prefix) or _shared(prefix.parent):
        raise SnapshotError(
            f"CRIU is not put into {prefix}: {why}, and what lies there is run, by root too. Name a folder of your own "
            f"({PREFIX_VARIABLE})."
        )


def _shared(folder: Path) -> str | None:
    """Why nobody may put a program into a folder: others may, too. A sticky one (/tmp) keeps each one's own."""
    why = distrust([folder])
    return None if why and folder.stat().st_mode & stat.S_ISVTX and distrust([folder.parent]) is None else why


def _check_ours(prefix: Path) -> None:
    """Refuse to replace a folder that somebody else filled."""
    if not prefix.exists():
        return
    if not (prefix / _MARKER).exists():
        others = any(prefix.iterdir())
    else:
        others = any(not _OWN_NAMES.fullmatch(path.name) for path in prefix.iterdir())
    if others:
        raise SnapshotError(
            f"{prefix} holds files that this setup did not make; name another folder ({PREFIX_VARIABLE})."
        )


def _check_room(folder: Path, lock: Sequence[Deb]) -> None:
    needed = _UNPACKED_FACTOR * sum(package.size for package in lock)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise SnapshotError(f"{folder} has {free >> 20} MB free; setting CRIU up takes {needed >> 20} MB.")


@contextlib.contextmanager
def _only_one(prefix: Path, deadline: float) -> Iterator[None]:
    """Hold the lock file beside the prefix: two setups at once would do the work twice."""
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
    """A folder beside the prefix, on the same disk, that is gone afterwards; the leavings of a killed setup go too."""
    folder = prefix.parent / f".{prefix.name}.unfinished"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _fetch(root: str, lock: Sequence[Deb], folder: Path, deadline: float, say: Callable[[str], None]) -> list[Path]:
    """The locked files, or the suite's present ones when a locked one is gone."""
    downloads = folder / "debs"
    downloads.mkdir()
    say(f"fetching {len(lock)} packages, {sum(package.size for package in lock) / 1e6:.1f} MB, from {root}")
    try:
        return mirrors.fetch_locked(root, lock, downloads, deadline)
    except mirrors.GoneError as gone:
        say(f"{gone}; asking apt for the present version instead")
    failures = []
    for suite in SUITES:
        shutil.rmtree(folder / "apt", ignore_errors=True)
        try:
            return mirrors.fetch_signed(root, suite, folder / "apt", deadline)
        except SnapshotError as error:
            failures.append(f"  - suite {suite}: {error}")
    raise SnapshotError(
        "The locked packages have left the mirror, and no signed ones could be had:\n" + "\n".join(failures)
    )


def _build(folder: Path, packages: Sequence[Path]) -> Criu:
    """Unpack, and run what came out.

    Raises:
        SnapshotError: it does not run here, or is too old.
    """
    for package in packages:
        unpack_programs(package, folder / "root")
    wrapper = folder / "bin" / "criu"
    wrapper.parent.mkdir()
    wrapper.write_text(_WRAPPER)
    wrapper.chmod(0o755)
    made = _working(folder)
    if made is None:
        raise SnapshotError(
            f"The unpacked CRIU does not run here or is older than {LEAST[0]}.{LEAST[1]} (packages: "
            f"{', '.join(package.name for package in packages)})."
        )
    named = [re.sub("%3a", ":", package.name) for package in packages]
    (folder / _MARKER).write_text(json.dumps({"version": made.version, "packages": named}, indent=1) + "\n")
    return made


def _put(folder: Path, prefix: Path) -> None:
    for downloads in ("debs", "apt"):
        shutil.rmtree(folder / downloads, ignore_errors=True)
    for made, _, names in os.walk(folder):  # whatever the umask was, nobody else may write there
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
