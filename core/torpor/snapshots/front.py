"""One public port before any number of replicas, each in a network of its own.

A connection is taken on the public port, joined to a connection that begins inside a ready replica's network namespace
(`Sandbox.socket`), and forwarded byte for byte in both directions; no HTTP is parsed. No veth pair, no packet filter and
no privilege is needed, and a replica stays unreachable for everything else on the machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from torpor.snapshots.sandbox import Sandbox

__all__ = ["Front", "Target"]


@dataclass(frozen=True, kw_only=True)
class Target:
    """A replica behind the front.

    Attributes:
        name: for messages and callbacks.
        sandbox: where it runs.
        port: where its guard listens on the sandbox's loopback.
    """

    name: str
    sandbox: Sandbox
    port: int


class Front:
    """The public port, served by a thread of its own.

    A new connection goes to the next replica whose guard answers `GET /ready` with 200, in turn; the answer is good for
    250 ms and asked for anew after a failed connection. When none is ready, the client gets 503 with Retry-After.

    Args:
        host: address to listen on.
        port: port to listen on; 0 takes a free one, see `port`.
        on_death: told the target whose leader or sandbox ended, once each, from the front's thread; it is taken out.
    """

    def __init__(
        self, *, host: str = "127.0.0.1", port: int = 0, on_death: Callable[[Target], None] | None = None
    ) -> None:
        raise NotImplementedError

    @property
    def port(self) -> int:
        """The port that it listens on."""
        raise NotImplementedError

    @property
    def targets(self) -> tuple[Target, ...]:
        """The replicas behind it now."""
        raise NotImplementedError

    def start(self) -> None:
        """Listen and serve.

        Raises:
            PortInUseError: somebody else listens there.
        """
        raise NotImplementedError

    def add(self, target: Target) -> None:
        """Put a replica behind the port; it gets connections as soon as its guard says ready."""
        raise NotImplementedError

    def remove(self, target: Target) -> None:
        """Send it no new connection; those that it has go on. Harmless to repeat."""
        raise NotImplementedError

    def expose(self, target: Target) -> int:
        """A loopback port of the host that always leads to this one replica, ready or not; for the lifecycle's client."""
        raise NotImplementedError

    def stop(self) -> None:
        """Close the port and every connection. Harmless to repeat."""
        raise NotImplementedError

    def __enter__(self) -> Front:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
