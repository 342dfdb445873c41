"""Limits of this process's file descriptors."""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path

__all__ = ["limit", "open_now", "raise_limit"]

_MOST = 1 << 20
"""Torpor needs no more. Some programs walk over all possible descriptors, which takes seconds for a billion."""


def limit() -> int:
    """The soft limit of this process (RLIMIT_NOFILE)."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST if soft == resource.RLIM_INFINITY else min(soft, _MOST)


def open_now() -> int:
    """How many descriptors are open; the limit itself if /proc cannot be read."""
    try:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())
    except OSError:
        return limit()


def raise_limit() -> None:
    """Raise the soft limit to the hard one, at most to 1,048,576. Only for processes of Torpor's own: commands."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
