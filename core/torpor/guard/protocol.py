"""What others know of the guard: its paths, its headers, and how long it waits."""

from __future__ import annotations

__all__ = [
    "CONTROL",
    "HEALTH",
    "IDENTITY",
    "KEY_HEADER",
    "KIND_HEADER",
    "LETS_GO_S",
    "READY",
    "REASON_HEADER",
    "REPLICA_HEADER",
    "WAKES_HEADER",
    "WOKEN_BY_DEFAULT",
]

CONTROL = "/_torpor/"
"""Prefix of the control paths; they need the lifecycle key."""

IDENTITY = f"{CONTROL}identity"
"""Where the guard proves that it belongs to the engine; needs no key."""

READY = "/ready"
HEALTH = ("/health", READY)
"""Paths that the guard answers itself for everybody: 200 while serving, else 503."""

KEY_HEADER = "torpor-key"
"""Request header with the lifecycle key."""

KIND_HEADER = "torpor-boot"
"""Response header: the kind of the start: cold, woken or restored."""

WAKES_HEADER = "torpor-wakes"
"""Response header: how often the replica woke."""

REPLICA_HEADER = "torpor-replica"
"""Response header: a tag that differs from replica to replica."""

REASON_HEADER = "torpor-boot-reason"
"""Response header: why this start is not the first plain one."""

LETS_GO_S = 10.0
"""Seconds in which the engine has to drop a request whose client was cut off. SGLang looks every four."""

WOKEN_BY_DEFAULT = "by whoever put it to sleep"
"""What clients of a sleeping server are told if nobody said what wakes it."""
