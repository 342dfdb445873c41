"""What the loopback control plane knows: the requests it got, and the objects that they made."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from modal_proto import api_pb2

if TYPE_CHECKING:
    import asyncio

    from google.protobuf.message import Message

_M = TypeVar("_M", bound="Message")

ENVIRONMENT = "main"


@dataclass
class App:
    """One app: ephemeral (`modal run`) until it is published as deployed."""

    app_id: str
    description: str
    functions: dict[str, str] = field(default_factory=dict)
    classes: dict[str, str] = field(default_factory=dict)
    state: int = api_pb2.APP_STATE_INITIALIZING
    publishes: int = 0
    disconnected: asyncio.Event | None = None


@dataclass
class StoredFunction:
    """One function: known since its pre-creation, defined since its creation."""

    function_id: str
    app_id: str
    name: str
    definition: api_pb2.Function = field(default_factory=api_pb2.Function)
    handle: api_pb2.FunctionHandleMetadata = field(default_factory=api_pb2.FunctionHandleMetadata)


@dataclass(frozen=True)
class Outcome:
    """What a call of a function ends with: a value, or the message of a failure."""

    value: object = None
    failure: str | None = None


@dataclass(repr=False)
class Store:
    """Everything by id. Ids of images, mounts and anonymous secrets are hashes of their content.

    So the same definition keeps its id from one deployment to the next, as on the real service: a layer whose id is
    new is a layer that would be built again.
    """

    requests: list[Message] = field(default_factory=list)
    unknown_calls: list[str] = field(default_factory=list)
    apps: dict[str, App] = field(default_factory=dict)
    functions: dict[str, StoredFunction] = field(default_factory=dict)
    classes: dict[str, tuple[str, str]] = field(default_factory=dict)
    images: dict[str, api_pb2.Image] = field(default_factory=dict)
    built: list[str] = field(default_factory=list)
    mounts: dict[str, list[api_pb2.MountFile]] = field(default_factory=dict)
    mount_names: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    volumes: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    anonymous_secrets: dict[str, dict[str, str]] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    calls: dict[str, str] = field(default_factory=dict)
    web_url: str | None = None
    failing_command: str | None = None
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def new_id(self, prefix: str) -> str:
        """A fresh id; the real ones have one dash too, and the client relies on it."""
        return f"{prefix}-{next(self._numbers):022d}"

    def of(self, kind: type[_M]) -> list[_M]:
        """All requests of one message type, oldest first."""
        return [request for request in self.requests if isinstance(request, kind)]

    def deployed(self, name: str) -> App | None:
        """The deployed app of that name."""
        apps = [app for app in self.apps.values() if app.description == name]
        return next((app for app in reversed(apps) if app.state == api_pb2.APP_STATE_DEPLOYED), None)


def content_id(prefix: str, content: bytes) -> str:
    """An id that two equal contents share."""
    return f"{prefix}-{hashlib.sha256(content).hexdigest()[:22]}"
