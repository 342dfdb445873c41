"""Ports of loopback for engines that no sandbox holds. Another program may take one before its engine listens on it."""

from __future__ import annotations

import random
from socket import socket as Socket  # noqa: N812 - as in the modules beside this one

from torpor.errors import PortInUseError
from torpor.values.addresses import LOOPBACK, check_free

__all__ = ["free_port", "is_taken"]

_FIRST, _END, _TRIES = 18000, 32000, 100


def free_port() -> int:
    """A port on which nobody listens, below those that the kernel gives to connections meanwhile.

    Raises:
        PortInUseError: there is none.
    """
    for port in random.SystemRandom().sample(range(_FIRST, _END), _TRIES):
        with Socket() as probe:
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            return port
    raise PortInUseError(f"No port between {_FIRST} and {_END} is free on {LOOPBACK}; end some of what listens there.")


def is_taken(port: int) -> bool:
    """Whether a program listens on a port of loopback now."""
    try:
        check_free(LOOPBACK, port)
    except PortInUseError:
        return True
    return False
