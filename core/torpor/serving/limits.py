"""What a client of the public port may take, from environment variables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from torpor.errors import ConfigurationError
from torpor.serving.listener import MAX_CONNECTIONS

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["CONNECTIONS_VARIABLE", "HEAD_VARIABLE", "HELD_VARIABLE", "IDLE_VARIABLE", "STALL_VARIABLE", "Limits"]

CONNECTIONS_VARIABLE = "TORPOR_MAX_CONNECTIONS"
"""Connections of the public port that may be open at once. Default 10000; few open descriptors (RLIMIT_NOFILE) allow fewer."""
HEAD_VARIABLE = "TORPOR_HEAD_TIMEOUT_S"
"""Seconds for the head of a connection's first request, and between two pieces of a body. Default 60."""
STALL_VARIABLE = "TORPOR_STALL_TIMEOUT_S"
"""Seconds in which a client of the public port has to read something of what waits for it. Default 300."""
IDLE_VARIABLE = "TORPOR_IDLE_TIMEOUT_S"
"""Seconds from an answer's end to the next request on the same connection. Default 75."""
HELD_VARIABLE = "TORPOR_MAX_HELD_MB"
"""MB of request bodies, all together, that the public port keeps until their model is known or a replica is there. Default 256."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a client of the public port may take.

    Attributes:
        connections: open at once. A low limit of open descriptors (RLIMIT_NOFILE) allows fewer: a connection takes two, and
            48 are kept for everything else.
        head_timeout_s: seconds for the head of a connection's first request, and between two pieces of a body.
        stall_timeout_s: seconds in which a client has to read something of what waits for it.
        idle_timeout_s: seconds from an answer's end to the next request on the same connection.
        held_mb: MB of request bodies, all together, that are kept until their model is known or a replica is there. One body may
            take a quarter of it.
    """

    connections: int = MAX_CONNECTIONS
    head_timeout_s: float = 60.0
    stall_timeout_s: float = 300.0
    idle_timeout_s: float = 75.0
    held_mb: float = 256.0

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Self:
        """The limits that environment variables set.

        Raises:
            ConfigurationError: a variable is not a number of at least 1.
        """
        return cls(
            connections=int(_positive(environ, CONNECTIONS_VARIABLE, cls.connections)),
            head_timeout_s=_positive(environ, HEAD_VARIABLE, cls.head_timeout_s),
            stall_timeout_s=_positive(environ, STALL_VARIABLE, cls.stall_timeout_s),
            idle_timeout_s=_positive(environ, IDLE_VARIABLE, cls.idle_timeout_s),
            held_mb=_positive(environ, HELD_VARIABLE, cls.held_mb),
        )


def _positive(environ: Mapping[str, str], name: str, default: float) -> float:
    value = environ.get(name, "")
    try:
        number = float(value) if value else float(default)
    except ValueError:
        number = 0.0
    if not 1 <= number < float("inf"):
        raise ConfigurationError(f"The environment variable {name} is {value!r}; allowed is a number from 1 on.")
    return number
