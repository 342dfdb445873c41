"""The gateway of one deployment: one public port before all of its replicas, each in a network of its own.

It is the gateway of several models (`torpor.serving`) with one model only: no body is read to find it. A request reaches its
replica by a socket inside the replica's network namespace (`Sandbox.socket`). That needs no veth pair, no packet filter and no
privilege, and nothing else on the machine can reach a replica.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Self

from torpor.platforms.local.gateway_route import DESCRIPTORS_A_ROUTE, GatewayReplica, Route
from torpor.platforms.local.turns import Turns
from torpor.serving.gateway import HttpGateway
from torpor.values.addresses import LOOPBACK

if TYPE_CHECKING:
    from collections.abc import Callable

    from torpor.serving.limits import Limits

__all__ = ["Gateway"]


class Gateway:
    """The public port, served by a thread of its own.

    The requests of a connection go to the same replica as long as it is ready; those of new connections to the ready replicas in
    turn. A replica is ready when it answers 200 on its ready path; the answer counts for 250 ms, and a failed connection asks
    again. Without a ready replica the client gets 503 with Retry-After.

    Args:
        host: address to listen on.
        port: port to listen on; 0 takes a free one, see `port`.
        on_death: called once for each replica whose leader or sandbox ended, in a thread of its own, after its removal.
        limits: what its clients may take; by default what the environment says.

    Raises:
        ConfigurationError: an environment variable of the limits is not a number.
    """

    def __init__(
        self,
        *,
        host: str = LOOPBACK,
        port: int = 0,
        on_death: Callable[[GatewayReplica], None] | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._on_death = on_death
        self._turns = Turns()
        self._http = HttpGateway(self._turns, host=host, port=port, limits=limits)

    @property
    def limits(self) -> Limits:
        """What its clients may take."""
        return self._http.limits

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._http.port

    @property
    def connections(self) -> int:
        """The number of open client connections."""
        return self._http.connections

    @property
    def most_connections(self) -> int:
        """How many may be open at once, within the limit of open descriptors."""
        return self._http.most_connections

    @property
    def in_flight(self) -> int:
        """The number of requests that are not answered yet."""
        return self._http.in_flight

    @property
    def replicas(self) -> tuple[GatewayReplica, ...]:
        """The replicas behind it now."""
        return tuple(route.replica for route in self._turns.routes)

    def start(self) -> None:
        """Listen and serve.

        Raises:
            PortInUseError: somebody else listens there.
            ConfigurationError: this user may not listen there, or this machine has no such address.
        """
        self._http.start()

    def add(self, replica: GatewayReplica) -> None:
        """Put a replica behind the port; it gets requests as soon as it says that it is ready."""
        self._http.call(self._add(replica))

    def remove(self, replica: GatewayReplica) -> None:
        """Send the replica no new request; those in flight go on. Harmless to repeat."""
        self._http.call(self._remove(replica))

    def sleeps(self, woken_by: str) -> None:
        """Tell clients that the server sleeps and what wakes it, in the form of the guard's refusals.

        Args:
            woken_by: e.g. `kill -USR2 17 on its machine`; empty once none sleeps.
        """
        self._turns.sleeps(woken_by)

    def drain(self, limit_s: float) -> int:
        """Refuse new requests, close idle connections, and let clients read the answers that they wait for.

        Args:
            limit_s: seconds to wait at most.

        Returns:
            How many clients still wait; `stop` cuts them.
        """
        return self._http.drain(limit_s)

    def stop(self) -> None:
        """Close the port and every connection. Harmless to repeat."""
        if self._turns.routes:
            self._http.call(self._remove_all())
        self._http.stop()

    async def _add(self, replica: GatewayReplica) -> None:
        self._http.listener.fit(more=DESCRIPTORS_A_ROUTE)
        route = Route(replica, self._http.loop, self._http.helpers, self._http.begin)
        self._turns.routes.append(route)
        self._http.loop.add_reader(route.end, self._ended, route)

    async def _remove(self, replica: GatewayReplica) -> None:
        for route in [route for route in self._turns.routes if route.replica is replica]:
            self._take_out(route)

    async def _remove_all(self) -> None:
        for route in list(self._turns.routes):
            self._take_out(route)

    def _ended(self, route: Route) -> None:
        self._take_out(route)
        if self._on_death:
            name = f"torpor-gateway-death-{route.replica.name}"
            threading.Thread(target=self._on_death, args=(route.replica,), name=name, daemon=True).start()

    def _take_out(self, route: Route) -> None:
        self._turns.routes.remove(route)
        self._http.loop.remove_reader(route.end)
        self._http.close_idle(route)
        route.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
