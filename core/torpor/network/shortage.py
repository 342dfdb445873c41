"""Finds the limit of this process or machine that caused an error, and says what to set."""

from __future__ import annotations

import errno
import os
import resource

__all__ = ["is_disk_full", "shortage"]

_FILES_WANTED = 4096
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_CRIU_HAS_TOO_FEW = "service_fd_base"


def shortage(error: BaseException) -> str:
    """What ran out, as a sentence that follows the error's own text; empty if nothing did.

    Args:
        error: its causes are examined too.
    """
    chain = _chain(error)
    numbers = {one.errno for one in chain if isinstance(one, OSError)}
    words = " ".join(map(str, chain))
    if errno.ENFILE in numbers or os.strerror(errno.ENFILE) in words:
        return "This machine cannot open any more files (sysctl fs.file-max): end processes that hold files, or raise that limit."
    if errno.EMFILE in numbers or os.strerror(errno.EMFILE) in words or _CRIU_HAS_TOO_FEW in words:
        limit = _limit(resource.RLIMIT_NOFILE)
        wanted = max(_FILES_WANTED, 2 * int(limit)) if limit.isdecimal() else _FILES_WANTED
        return (
            f"This process may open no more than {limit} files and connections at once, and has used them up. Raise the limit "
            f"before the command: `ulimit -n {wanted}`."
        )
    if "can't start new thread" in words or any(isinstance(one, BlockingIOError) for one in chain):
        return (
            f"No more processes and threads are allowed: this user may have {_limit(resource.RLIMIT_NPROC)} (`ulimit -u`), and a "
            "container may have a limit of its own (pids.max). End some, or raise the limit."
        )
    if numbers.intersection(_DISK_FULL):
        return f"There is no space left{_place(chain)}: free some, or name another folder (TORPOR_CACHE, TMPDIR)."
    if errno.EROFS in numbers:
        return f"The file system is read-only{_place(chain)}: name a writable folder (TORPOR_CACHE, TMPDIR, HOME)."
    return ""


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that a disk has no room, or that the user's quota on it is used up."""
    return isinstance(error, OSError) and error.errno in _DISK_FULL


def _chain(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is not None and one not in found:
            found.append(one)
            waiting += [one.__cause__, one.__context__, *getattr(one, "exceptions", ())]
    return found


def _limit(limit: int) -> str:
    soft, _ = resource.getrlimit(limit)
    return "any number of" if soft == resource.RLIM_INFINITY else str(soft)


def _place(chain: list[BaseException]) -> str:
    for one in chain:
        if isinstance(one, OSError) and one.filename:
            return f" at {os.fsdecode(one.filename) if isinstance(one.filename, str | bytes) else one.filename}"
    return ""
