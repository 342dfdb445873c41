"""Ports for tests that may run in several workers at the same time."""

from __future__ import annotations

import os
import random
import socket

__all__ = ["PortsTakenError", "unused_port"]

# Below the kernel's ephemeral range (32768 on): those are handed to outgoing connections at any time.
_FIRST, _END = 18000, 32000
_WORKERS = 16
_TRIES = 50


class PortsTakenError(Exception):
    """No port is free."""


def unused_port() -> int:
    """Return a port on which nobody listens. Workers of pytest-xdist never get the same one.

    Raises:
        PortsTakenError: no port is free.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _WORKERS
    for port in random.SystemRandom().sample(range(_FIRST + worker, _END, _WORKERS), _TRIES):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("0.0.0.0", port))  # noqa: S104 - what an engine binds
            except OSError:
                continue
            return port
    raise PortsTakenError(
        f"No free port between {_FIRST} and {_END} in {_TRIES} tries: end some of what listens there."
    )
