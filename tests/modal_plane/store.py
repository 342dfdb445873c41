"""What the loopback control plane knows: the requests that it received, and the objects that they made."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from modal_proto import api_pb2

if TYPE_CHECKING:
    import asyncio

    from google.protobuf.message import Message
    from grpclib import Status

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
    """One function: known from its pre-creation on, defined from its creation on."""

    function_id: str
    app_id: str
    name: str
    definition: api_pb2.Function = field(default_factory=api_pb2.Function)
    handle: api_pb2.FunctionHandleMetadata = field(default_factory=api_pb2.FunctionHandleMetadata)


@dataclass(frozen=True)
class Outcome:
    """The end of a call: a value, or the message of a failure."""

    value: object = None
    failure: str | None = None


@dataclass(frozen=True, kw_only=True)
class LogEntry:
    """A piece of an app's log: a line, several lines, or a part of one."""

    data: str
    at: float
    container: str = ""
    source: api_pb2.FileDescriptor.ValueType = api_pb2.FILE_DESCRIPTOR_STDOUT


@dataclass
class Task:
    """What the container of one function has done so far, and what it will do next.

    Attributes:
        calls: number of calls that it still gets.
        outputs: results of the calls that were made.
        failure: the error of an import, an enter or an exit method.
        snapshots: how often it asked for a snapshot.
        ready: whether its enter methods have ended and it asks for calls.
        kill: whether it must end when it next asks for a call.
        stops: how often it asked to be stopped.
    """

    calls: int = 0
    outputs: list[api_pb2.GenericResult] = field(default_factory=list)
    failure: api_pb2.GenericResult | None = None
    snapshots: int = 0
    ready: bool = False
    kill: bool = False
    stops: int = 0


@dataclass(repr=False)
class Store:
    """Everything by id. Ids of images, mounts and anonymous secrets are hashes of their content.

    So the same definition keeps its id from one deployment to the next, as on the real service. A layer with a new id
    would be built again.
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
    commits: list[str] = field(default_factory=list)
    tasks: dict[str, Task] = field(default_factory=dict)
    logs: dict[str, list[LogEntry]] = field(default_factory=dict)
    logs_fail: Status | None = None
    logs_hang: bool = False
    web_url: str | None = None
    failing_command: str | None = None
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def new_id(self, prefix: str) -> str:
        """A fresh id. Like a real one it has one dash, which the client relies on."""
        return f"{prefix}-{next(self._numbers):022d}"

    def of(self, kind: type[_M]) -> list[_M]:
        """All requests of one message type, oldest first."""
        return [request for request in self.requests if isinstance(request, kind)]

    def deployed(self, name: str) -> App | None:
        """The deployed app of that name."""
        apps = [app for app in self.apps.values() if app.description == name]
        return next((app for app in reversed(apps) if app.state == api_pb2.APP_STATE_DEPLOYED), None)

    def layout(self, app_id: str) -> api_pb2.AppLayout:
        """What a container or a second deployment learns about an app's objects."""
        app = self.apps[app_id]
        layout = api_pb2.AppLayout(function_ids=app.functions, class_ids=app.classes)
        for function_id in app.functions.values():
            function = self.functions[function_id]
            layout.objects.append(api_pb2.Object(object_id=function_id, function_handle_metadata=function.handle))
            for dependency in function.definition.object_dependencies:
                layout.objects.append(self._described(dependency.object_id))
        for class_id in app.classes.values():
            handle_of_class = api_pb2.ClassHandleMetadata()
            layout.objects.append(api_pb2.Object(object_id=class_id, class_handle_metadata=handle_of_class))
        return layout

    def _described(self, object_id: str) -> api_pb2.Object:
        names = {volume_id: name for name, volume_id in self.volumes.items()}
        if object_id not in names:
            return api_pb2.Object(object_id=object_id)
        return api_pb2.Object(object_id=object_id, volume_metadata=api_pb2.VolumeMetadata(name=names[object_id]))


def content_id(prefix: str, content: bytes) -> str:
    """An id that is the same for equal contents."""
    return f"{prefix}-{hashlib.sha256(content).hexdigest()[:22]}"
