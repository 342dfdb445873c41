"""Whether a program is safe to run: only root and this user may change it or the folders above it.

Root runs CRIU, and CRIU loads its libraries. A user who can write to one of them, or replace a folder above it, becomes root.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["distrust"]

_ROOT = 0
_STAFF = 50
"""Debian's group that may write to /usr/local; its members can become root anyway."""
_ALL_USERS = 4294967295


def distrust(paths: Iterable[Path | str], *, below: Path | None = None) -> str | None:
    """Why these files or folders must not be used; None when they may.

    Checks each path and all folders above it, as named and with links followed. A folder that every user may write to is accepted
    only with a sticky bit (/tmp), and only above `below`.

    Args:
        paths: existing files or folders.
        below: folder in which, itself included, no other user may write at all.
    """
    owners = _owners()
    roots = () if below is None else (os.path.abspath(below), os.path.realpath(below))  # noqa: PTH100 - text: a restore waits for this
    waiting = [(os.path.abspath(path), True) for path in paths]  # noqa: PTH100
    seen: set[str] = set()
    while waiting:
        path, named = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        try:
            facts = os.lstat(path)
        except OSError as error:
            return f"{path} cannot be read ({error.strerror})"
        inside = named or any(path == root or path.startswith(f"{root}/") for root in roots)
        if why := _why_not(path, facts, owners, sticky=not inside):
            return why
        above = os.path.dirname(path)  # noqa: PTH120
        waiting.append((above, False))
        if stat.S_ISLNK(facts.st_mode):
            waiting.append((os.path.normpath(os.path.join(os.path.realpath(above), os.readlink(path))), named))  # noqa: PTH115, PTH118
    return None


def _why_not(path: str, facts: os.stat_result, owners: frozenset[int], *, sticky: bool) -> str | None:
    if facts.st_uid not in owners:
        return f"{path} belongs to user {facts.st_uid}, who could change what runs as user {os.geteuid()}"
    if stat.S_ISLNK(facts.st_mode) or (sticky and facts.st_mode & stat.S_ISVTX):
        return None
    if facts.st_mode & stat.S_IWOTH:
        return f"{path} may be written to by every user (mode {stat.S_IMODE(facts.st_mode):o})"
    own_group = facts.st_gid in (_ROOT, facts.st_uid) or (facts.st_gid == _STAFF and facts.st_uid == _ROOT)
    if facts.st_mode & stat.S_IWGRP and not own_group:
        return f"{path} may be written to by group {facts.st_gid} (mode {stat.S_IMODE(facts.st_mode):o})"
    if facts.st_mode & stat.S_IWGRP and _has_access_list(path):
        return f"{path} has an access control list that lets other users write to it (setfacl -b removes it)"
    return None


def _has_access_list(path: str) -> bool:
    """Whether other users are named; the group bits of the mode are then the most that they may do (acl(5))."""
    try:
        os.getxattr(path, "system.posix_acl_access", follow_symlinks=False)
    except OSError:
        return False
    return True


def _owners() -> frozenset[int]:
    """The users whose files are trusted: root, this user, and the user who became root by sudo.

    In a user namespace root's files belong to the overflow user, because root has no number there.
    """
    owners = {_ROOT, os.geteuid()}
    if os.geteuid() == _ROOT and (caller := os.environ.get("SUDO_UID", "")).isdecimal():
        owners.add(int(caller))
    try:
        mapped = sum(int(line.split()[2]) for line in Path("/proc/self/uid_map").read_text().splitlines())
        if mapped < _ALL_USERS:
            owners.add(int(Path("/proc/sys/kernel/overflowuid").read_text()))
    except (OSError, ValueError, IndexError):
        pass
    return frozenset(owners)
