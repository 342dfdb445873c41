"""The models at one address of Ray Serve: a Serve application that reads a request's `model` and forwards it over HTTP.

Each model is an application of its own under a prefix, and the request goes to that prefix at Serve's own address: through
HAProxy, which knows the model's replicas. Serve's handles would take every chunk through Python twice.

It stands before models at zero, too: what has no key of the model, or no public path of its engine, starts no replica.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, NamedTuple

import ray
from ray import serve

from torpor.platforms.ray.deployed import Deployed
from torpor.serving.asgi import AsgiGateway
from torpor.serving.asgi_request import was_forwarded
from torpor.serving.router import MODELS
from torpor.serving.values import ServedModel
from torpor.values.addresses import LOOPBACK

if TYPE_CHECKING:
    from collections.abc import Sequence
    from socket import socket as Socket  # noqa: N812 - a class, as in `socket.socket`

    from torpor.serving.asgi_answer import Receive, Scope, Send
    from torpor.serving.values import Start, Way

__all__ = ["ModelIngress", "RoutedModel"]

_CONNECT_S = 5.0
_MOST_KEPT = 64 << 10
"""Bytes of a body that it keeps once the model is known. A request that meets a full guard is sent again by the replica."""


class RoutedModel(NamedTuple):
    """A model, or an adapter, of one application.

    Attributes:
        name: as in a request's `model`.
        deployment: name of the deployment.
        prefix: of the application's routes.
        key_sha256: digests of its bearer keys.
        public_paths: of its engine; empty lets every path through.
    """

    name: str
    deployment: str
    prefix: str
    key_sha256: tuple[str, ...] = ()
    public_paths: tuple[str, ...] = ()


class ModelIngress:
    """The Serve deployment; Serve calls its methods.

    Args:
        models: that it knows.
        port: of Serve's HTTP address.
    """

    def __init__(self, models: Sequence[RoutedModel], port: int) -> None:
        self._application = _Application(models, port)

    async def __serve_build_asgi_app__(self) -> _Application:
        """The application that answers requests."""
        return self._application


class _Application:
    """Asks Serve now and then which models are deployed, and forwards requests.

    Uvicorn takes an object with `__call__`, and a bound method for another version of ASGI.
    """

    def __init__(self, models: Sequence[RoutedModel], port: int) -> None:
        prefixes = {one.deployment: one.prefix for one in models}
        self._deployed = Deployed(_statuses)
        routed = _Routed(models, _ServeAddress(port), self._deployed)
        self._asgi = AsgiGateway(routed, prefixes=prefixes, most_kept=_MOST_KEPT)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "http":
            if was_forwarded(scope) or str(scope["path"]).startswith(MODELS):
                await self._deployed.look()
            else:
                self._deployed.look_again()
        await self._asgi(scope, receive, send)


class _ServeAddress:
    """The way to Serve's HTTP address; see `torpor.serving.values.Way`."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._host = ""

    async def connect(self) -> Socket:
        """Connect to a proxy: this node's own if it has one."""
        loop = asyncio.get_running_loop()
        hosts = [self._host] if self._host else await asyncio.to_thread(_hosts)
        failed: OSError = ConnectionRefusedError("No proxy of Serve listens.")
        for host in hosts:
            made = socket.socket()
            made.setblocking(False)
            try:
                async with asyncio.timeout(_CONNECT_S):
                    await loop.sock_connect(made, (host, self._port))
            except OSError as error:
                made.close()
                failed, self._host = error, ""
            except BaseException:
                made.close()
                raise
            else:
                self._host = host
                return made
        raise failed


def _statuses() -> dict[str, str]:
    """Status by the name of each application."""
    return {name: str(getattr(one.status, "value", one.status)) for name, one in serve.status().applications.items()}


def _hosts() -> list[str]:
    """Addresses of the nodes with a proxy, this node's first."""
    own = ray.get_runtime_context().get_node_id()
    addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    proxies = [node for node in serve.status().proxies if node in addresses]
    here = [LOOPBACK, addresses[own]] if own in proxies else []
    return [*here, *(addresses[node] for node in proxies if node != own)]


class _Routed:
    """The models; see `torpor.serving.values.Places`. How many requests each takes is its application's to say."""

    by_model = True

    def __init__(self, models: Sequence[RoutedModel], way: Way, deployed: Deployed) -> None:
        self._way, self._deployed = way, deployed
        self._models = {
            one.name: ServedModel(
                name=one.name, deployment=one.deployment, key_sha256=one.key_sha256, public_paths=one.public_paths
            )
            for one in models
        }

    def models(self) -> Sequence[ServedModel]:
        """Those that are deployed."""
        return tuple(one for one in self._models.values() if self._deployed.has(one.deployment))

    def find(self, model: str) -> ServedModel | None:
        """By name."""
        found = self._models.get(model)
        return found if found is not None and self._deployed.has(found.deployment) else None

    def default(self) -> ServedModel | None:
        """The only deployment's, if there was one only from the start."""
        return next(iter(self.models()), None) if len({one.deployment for one in self._models.values()}) == 1 else None

    def take(self, model: ServedModel, prefer: Way | None) -> _ToServe:  # noqa: ARG002 - Serve decides about both
        """Always: Serve queues."""
        return _ToServe(self._way)

    async def acquire(self, model: ServedModel, prefer: Way | None) -> _ToServe:
        """As `take`."""
        return self.take(model, prefer)


class _ToServe:
    """A lease that nobody counts."""

    start: Start = "serving"
    waited_s = 0.0

    def __init__(self, way: Way) -> None:
        self.way = way

    def release(self, *, failed: bool = False) -> None:
        """Nothing to give back."""
