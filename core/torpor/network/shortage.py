"""Says of an error that it comes from a limit of this process or machine, which limit that is, and what to set."""

from __future__ import annotations

import errno
import os

__all__ = ["shortage"]

_FILES_WANTED = 4096
_CRIU_HAS_TOO_FEW = "service_fd_base"


def shortage(error: BaseException) -> str:
    """What ran out, as a sentence to put behind the error's own words; empty when nothing did.

    Args:
        error: with everything that led to it.
    """
    chain = _chain(error)
    numbers = {one.errno for one in chain if isinstance(one, OSError)}
    words = " ".join(map(str, chain))
    if errno.ENFILE in numbers or os.strerror(errno.ENFILE) in words:
        return (
            "The whole machine has no file left to open (sysctl fs.file-max): end what holds them, or raise that limit."
        )
    if errno.EMFILE in numbers or os.strerror(errno.EMFILE) in words or _CRIU_HAS_TOO_FEW in words:
        limit = _limit("RLIMIT_NOFILE")
        wanted = max(_FILES_WANTED, 2 * int(limit)) if limit.isdecimal() else _FILES_WANTED
        return (
            f"This process may have no more than {limit} files and connections open at once, and has used them up: allow it more "
            f"before the command (`ulimit -n {wanted}`)."
        )
    if "can't start new thread" in words or any(isinstance(one, BlockingIOError) for one in chain):
        return (
            f"This user may have no more than {_limit('RLIMIT_NPROC')} processes and threads (`ulimit -u`), or the container no "
            "more (pids.max): end some, or raise the limit."
        )
    if errno.ENOSPC in numbers or errno.EDQUOT in numbers:
        return f"There is no space left{_place(chain)}: make some, or name another folder (TORPOR_CACHE, TMPDIR)."
    if errno.EROFS in numbers:
        return f"The file system is read-only{_place(chain)}: name a folder that can be written (TORPOR_CACHE, TMPDIR, HOME)."
    return ""


def _chain(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is not None and one not in found:
            found.append(one)
            waiting += [one.__cause__, one.__context__, *getattr(one, "exceptions", ())]
    return found


def _limit(name: str) -> str:
    try:
        import resource  # noqa: PLC0415 - it takes a descriptor to import

        soft, _ = resource.getrlimit(getattr(resource, name))
    except (ImportError, OSError):
        return "a few"
    return "any number of" if soft == resource.RLIM_INFINITY else str(soft)


def _place(chain: list[BaseException]) -> str:
    for one in chain:
        if isinstance(one, OSError) and one.filename:
            return f" at {os.fsdecode(one.filename) if isinstance(one.filename, str | bytes) else one.filename}"
    return ""
