"""What the data path and the control side of several models know of each other.

The data path (the HTTP gateway) reads requests and moves bytes. The control side decides which models there are, starts and
stops their replicas, and implements `Places`. For each request the gateway takes one lease and gives it back when the answer is
over. It calls everything here in the thread of its event loop; a method that is not a coroutine must not block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from socket import socket as Socket  # noqa: N812 - a class, as in `socket.socket`

__all__ = [
    "Lease",
    "NoPlaceError",
    "NoSuchModelError",
    "PageAnswer",
    "PageRequest",
    "Pages",
    "Places",
    "QueueFullError",
    "ServedModel",
    "Start",
    "StartFailedError",
    "TooLateError",
    "Way",
]

Start: TypeAlias = Literal["serving", "woken", "restored", "cold"]
"""What a request met: a replica that served already, or the kind of the start that it waited for."""


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A name that requests can ask for: a deployment's served name, one of its adapters, or an alias.

    Attributes:
        name: as in a request's `model`.
        alias_of: the name that the engine knows, if `name` is an alias: the gateway writes it into the body. Empty if the engine
            knows `name`.
        deployment: name of the deployment that answers.
        created: Unix time, whole seconds.
        owner: `owned_by` of the models list.
        state: of the deployment, e.g. `on_disk`, `asleep`, `serving`; empty if unknown.
        key_sha256: SHA-256 digests of the bearer keys, hex; empty if everybody may ask. The gateway checks them before it takes a
            lease: a request without a key must not start an engine. The engine's guard checks them again.
        listed: whether `GET /v1/models` shows it.
        public_paths: the engine's. A request for another path (`/favicon.ico`) reaches an engine that serves, and starts none.
            Empty if every path starts one.
    """

    name: str
    deployment: str
    alias_of: str = ""
    created: int = 0
    owner: str = "torpor"
    state: str = ""
    key_sha256: tuple[str, ...] = ()
    listed: bool = True
    public_paths: tuple[str, ...] = ()


class Way(Protocol):
    """The way to one replica. The gateway keeps idle connections for each object; compare and hash by identity.

    Close the idle ones by the gateway's `forget` before the replica sleeps; those of a replica that ends close by themselves.
    """

    async def connect(self) -> Socket:
        """Return a new TCP socket, non-blocking, connected to the replica's server.

        Raises:
            OSError: nobody listens, or not in time.
            SnapshotError: the replica is gone.
        """


class Lease(Protocol):
    """The right to send one request to one replica. It counts as a request in flight until its release."""

    @property
    def way(self) -> Way:
        """The way to the replica."""

    @property
    def start(self) -> Start:
        """What the request met."""

    @property
    def waited_s(self) -> float:
        """Seconds that it waited; 0 if a replica was free."""

    def release(self, *, failed: bool = False) -> None:
        """Give it back. Harmless to repeat.

        Args:
            failed: whether nobody answered at the way's address; the gateway then asks for another lease.
        """


class Places(Protocol):
    """The models at one address, and the places of their replicas; the control side has it."""

    def models(self) -> Sequence[ServedModel]:
        """Every name that `find` finds, for `GET /v1/models` and for errors."""

    def find(self, model: str) -> ServedModel | None:
        """The model with this name, also by an alias; None if there is none. Called for each request: a look-up only."""

    def default(self) -> ServedModel | None:
        """The model for requests that name none: the only deployment's; None if there are several."""

    @property
    def by_model(self) -> bool:
        """Whether a request's `model` decides. If not, every request goes to `default`, and no body is read for it."""

    def take(self, model: ServedModel, prefer: Way | None) -> Lease | None:
        """A lease without waiting. None if no replica is free, or if others wait already.

        Args:
            model: from `find` or `default`.
            prefer: the way of this connection's last request. The same replica may have its prefix in the cache.
        """

    async def acquire(self, model: ServedModel, prefer: Way | None) -> Lease:
        """A lease, after waiting in order, through a start as well.

        The gateway cancels the call when the client leaves. A cancelled call leaves the queue and holds no lease.

        Raises:
            NoPlaceError: there will be no lease; one of its subclasses says why.
        """


class NoPlaceError(Exception):
    """There is no lease for a request.

    Args:
        message: for people; what to do about it, if anything.
        retry_after_s: when it makes sense to try again, seconds; 0 for never.

    Attributes:
        status: of the HTTP answer.
        code: of the answer, for programs.
    """

    status = 503
    code = "not_serving"

    def __init__(self, message: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NoSuchModelError(NoPlaceError):
    """The model went away, e.g. with a new configuration, while the request waited."""

    status, code = 404, "model_not_found"


class QueueFullError(NoPlaceError):
    """Too many requests wait for the model already."""

    code = "queue_full"


class TooLateError(NoPlaceError):
    """The request waited until its deadline."""

    code = "waited_too_long"


class StartFailedError(NoPlaceError):
    """The model could not be started; the message has the reason."""

    code = "start_failed"


@dataclass(frozen=True, kw_only=True)
class PageRequest:
    """A whole request to a page of the gateway's own.

    Attributes:
        method: e.g. `GET`.
        path: without the query, as sent.
        query: behind the question mark; empty for none.
        headers: names in lower case; the last one counts if a header is repeated.
        body: at most 64 KiB.
    """

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, kw_only=True)
class PageAnswer:
    """The answer of such a page.

    Attributes:
        status: HTTP status.
        body: whole.
        content_type: of the body.
        headers: further ones.
    """

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: Mapping[str, str] | None = None


class Pages(Protocol):
    """Pages of the gateway's own at one prefix of the path, e.g. `/torpor/`. They check their own keys."""

    @property
    def prefix(self) -> str:
        """What their paths begin with; it ends in a slash."""

    async def answer(self, request: PageRequest) -> PageAnswer:
        """Answer a request whose path begins with the prefix. Cancelled when the client leaves."""
