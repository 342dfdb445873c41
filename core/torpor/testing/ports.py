"""Ports for tests that may run in several workers at the same time."""

from __future__ import annotations

import os
import random
import socket

__all__ = ["WORKER_VARIABLE", "PortsTakenError", "unused_port"]

# Below the kernel's ephemeral range (32768 on): those are handed to outgoing connections at any time.
_FIRST, _END = 18000, 32000
_WORKERS = 16
_TRIES = 50
_given = set[int]()
"""Ports that this process returned: whoever got one may not listen on it yet."""

WORKER_VARIABLE = "TORPOR_TEST_WORKER"
"""Worker number of a pytest session that runs in parallel to others, outside pytest-xdist."""


class PortsTakenError(Exception):
    """No port is free."""


def unused_port() -> int:
    """Return a port on which nobody listens.

    A process gets the same one again only after most others, and workers of pytest-xdist never get the same one.

    Raises:
        PortsTakenError: no port is free.
    """
    worker = os.environ.get(WORKER_VARIABLE) or os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    ports = set(range(_FIRST + int(worker) % _WORKERS, _END, _WORKERS))
    if len(ports - _given) < _TRIES:
        _given.clear()  # those of the first tests are long free again
    for port in random.SystemRandom().sample(sorted(ports - _given), _TRIES):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("0.0.0.0", port))  # noqa: S104 - what an engine binds
            except OSError:
                continue
            _given.add(port)
            return port
    raise PortsTakenError(
        f"No free port between {_FIRST} and {_END} in {_TRIES} tries: end some of what listens there."
    )
