"""The address of a Ray cluster, checked before Ray is imported: Ray itself tries a wrong one for a minute."""

from __future__ import annotations

import os
import socket

from torpor.errors import ConfigurationError, ServerUnavailableError

__all__ = ["ADDRESS_VARIABLE", "NO_CLUSTER", "reachable"]

ADDRESS_VARIABLE = "RAY_ADDRESS"
NO_CLUSTER = (
    "Start one: `ray start --head` on the first node, `ray start --address=HEAD:6379` on the others, each with the variables "
    "that `torpor ray plan` prints."
)
"""What to do where there is none."""

_REACH_S = 5.0
_HIGHEST_PORT = 65535


def reachable(address: str) -> str:
    """The address to connect to: `auto` for a cluster on this machine, or `HOST:PORT` where somebody listens.

    Args:
        address: as given; `auto` takes what RAY_ADDRESS names, if it names anything.

    Raises:
        ConfigurationError: it is no address of a cluster.
        ServerUnavailableError: nobody listens there.
    """
    wanted = os.environ.get(ADDRESS_VARIABLE) or "auto" if address == "auto" else address
    if wanted == "auto":
        return wanted
    host, _, port = wanted.rpartition(":")
    if "//" in wanted or not host or not port.isdecimal() or not 0 < int(port) <= _HIGHEST_PORT:
        raise ConfigurationError(
            f"{wanted!r} is no address of a Ray cluster; give HOST:PORT of its head, e.g. 10.0.0.1:6379, or auto."
        )
    try:
        socket.create_connection((host, int(port)), timeout=_REACH_S).close()
    except OSError as error:
        raise ServerUnavailableError(
            f"No Ray cluster answers at {wanted}: {error.strerror or error}. `ray status` on its head shows the address. "
            f"{NO_CLUSTER}"
        ) from error
    return wanted
