"""Several models at one address of Ray Serve: a Serve application that reads a request's `model` and forwards it over HTTP.

Each model is an application of its own under a prefix, and the request goes to that prefix at Serve's own address: through
HAProxy, which knows the model's replicas. Serve's handles would take every chunk through Python twice.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, NamedTuple

import ray
from ray import serve

from torpor.serving.asgi import AsgiGateway
from torpor.serving.values import ServedModel
from torpor.values.addresses import LOOPBACK

if TYPE_CHECKING:
    from collections.abc import Sequence
    from socket import socket as Socket  # noqa: N812 - a class, as in `socket.socket`

    from torpor.serving.values import Start, Way

__all__ = ["ModelIngress", "RoutedModel"]

_CONNECT_S = 5.0


class RoutedModel(NamedTuple):
    """A model, or an adapter, of one application.

    Attributes:
        name: as in a request's `model`.
        deployment: name of the deployment.
        prefix: of the application's routes.
        key_sha256: digests of its bearer keys.
    """

    name: str
    deployment: str
    prefix: str
    key_sha256: tuple[str, ...] = ()


class ModelIngress:
    """The Serve deployment; Serve calls its methods.

    Args:
        models: that it knows.
        port: of Serve's HTTP address.
    """

    def __init__(self, models: Sequence[RoutedModel], port: int) -> None:
        prefixes = {one.deployment: one.prefix for one in models}
        self._asgi = AsgiGateway(_Routed(models, _ServeAddress(port)), prefixes=prefixes)

    async def __serve_build_asgi_app__(self) -> AsgiGateway:
        """The application that answers requests."""
        return self._asgi


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

    def __init__(self, models: Sequence[RoutedModel], way: Way) -> None:
        self._way = way
        self._models = {
            one.name: ServedModel(name=one.name, deployment=one.deployment, key_sha256=one.key_sha256) for one in models
        }

    def models(self) -> Sequence[ServedModel]:
        """All of them."""
        return tuple(self._models.values())

    def find(self, model: str) -> ServedModel | None:
        """By name."""
        return self._models.get(model)

    def default(self) -> ServedModel | None:
        """The only one, if there is one only."""
        return next(iter(self._models.values())) if len(self._models) == 1 else None

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
