"""What a client of the public port may take, from environment variables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from torpor.errors import ConfigurationError
from torpor.platforms.local.listener import MAX_CONNECTIONS

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["CONNECTIONS_VARIABLE", "HEAD_VARIABLE", "STALL_VARIABLE", "Limits"]

CONNECTIONS_VARIABLE = "TORPOR_MAX_CONNECTIONS"
HEAD_VARIABLE = "TORPOR_HEAD_TIMEOUT_S"
STALL_VARIABLE = "TORPOR_STALL_TIMEOUT_S"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a client of the public port may take.

    Attributes:
        connections: open at once. A low limit of open descriptors (RLIMIT_NOFILE) allows fewer: a connection takes two, and
            48 are kept for everything else.
        head_timeout_s: seconds for the head of a connection's first request.
        stall_timeout_s: seconds in which a client has to read something of what waits for it.
    """

    connections: int = MAX_CONNECTIONS
    head_timeout_s: float = 60.0
    stall_timeout_s: float = 300.0

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
