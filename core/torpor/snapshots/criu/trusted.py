"""Whether a program may be run: nobody but root and this user may change it, or what it lies in.

Root runs CRIU, and CRIU loads its libraries: whoever may write to one of them, or replace a folder above, becomes root.
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
"""Debian's group of those who may write to /usr/local, which is to say: of root's."""
_ALL_USERS = 4294967295


def distrust(paths: Iterable[Path | str], *, below: Path | None = None) -> str | None:
    """Why these files or folders may not be used; None when they may.

    Each is looked at with all folders above it, as named and with links followed. A folder that everybody may write to counts
    as safe only with a sticky bit (/tmp), and only above `below`.

    Args:
        paths: they have to be there.
        below: folder in which, itself included, nobody else may write at all.
    """
    owners = _owners()
    roots = () if below is None else (os.path.abspath(below), os.path.realpath(below))  # noqa: PTH100 - text: this is timed
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
            return f"{path} cannot be looked at ({error.strerror})"
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
        return f"{path} belongs to user {facts.st_uid}, who could change what is run as user {os.geteuid()}"
    if stat.S_ISLNK(facts.st_mode) or (sticky and facts.st_mode & stat.S_ISVTX):
        return None
    if facts.st_mode & stat.S_IWOTH:
        return f"{path} may be written to by every user (mode {stat.S_IMODE(facts.st_mode):o})"
    own_group = facts.st_gid in (_ROOT, facts.st_uid) or (facts.st_gid == _STAFF and facts.st_uid == _ROOT)
    if facts.st_mode & stat.S_IWGRP and not own_group:
        return f"{path} may be written to by group {facts.st_gid} (mode {stat.S_IMODE(facts.st_mode):o})"
    if facts.st_mode & stat.S_IWGRP and _has_access_list(path):
        return f"{path} has an access control list, by which others may write to it (setfacl -b takes it away)"
    return None


def _has_access_list(path: str) -> bool:
    """Whether others than owner and group are named; what they may do at most stands where the group's bits do (acl(5))."""
    try:
        os.getxattr(path, "system.posix_acl_access", follow_symlinks=False)
    except OSError:
        return False
    return True


def _owners() -> frozenset[int]:
    """Whose files are as good as this process's own: root's, this user's, and those of who became root by sudo.

    In a user namespace root's files belong to the overflow user: their owner has no number there.
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
