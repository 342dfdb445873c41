"""Builds the trace of each start from its events, and sends it when the start is over.

A trace begins with the first stage of a start, and ends when the replica serves, sleeps for its snapshot, fails or stops. A later
sleep is a trace of its own. Nothing is left at its end: no open span and no socket may be in a snapshot. A plugin holds no state,
so the traces under way are here.
"""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Status, StatusCode
from torpor.listener import ReplicaReplaced, Serving, StageEnded, StartFailed, Stopped

if TYPE_CHECKING:
    from opentelemetry.trace import Span
    from torpor.listener import LifecycleEvent

__all__ = ["Traces"]

_MOST_OPEN = 128
_FIRST, _LAST = "drain", "pre_snapshot"
"""The stages of a sleep, after which the platform may take a snapshot."""


class Traces:
    """The traces of one process that go to one collector.

    Args:
        service: `service.name`.
        endpoint: URL of the collector's traces.
        timeout_s: seconds for sending one trace.
    """

    def __init__(self, service: str, endpoint: str, timeout_s: float) -> None:
        self._endpoint = endpoint
        self._timeout_s = timeout_s
        self._ended = InMemorySpanExporter()
        self._provider = TracerProvider(resource=Resource.create({"service.name": service}), shutdown_on_exit=False)
        self._provider.add_span_processor(SimpleSpanProcessor(self._ended))
        self._tracer = self._provider.get_tracer("torpor_otel")
        self._open: dict[tuple[str, str], Span] = {}
        self._lock = threading.Lock()

    @classmethod
    @functools.cache
    def of(cls, service: str, endpoint: str, timeout_s: float) -> Traces:
        """The traces with these values; one object for the whole process."""
        return cls(service, endpoint, timeout_s)

    def hear(self, event: LifecycleEvent) -> None:
        """Take an event in.

        Raises:
            ConnectionError: the trace that it ends could not be sent; it is dropped.
        """
        with self._lock:
            match event:
                case StageEnded():
                    self._add_stage(event)
                    if event.record.stage == _LAST:
                        self._end(event)
                case StartFailed():
                    self._end(event, Status(StatusCode.ERROR, f"{type(event.error).__name__}: {event.error}"))
                case Serving():
                    self._end(event, Status(StatusCode.OK))
                case Stopped():
                    self._end(event)
                case ReplicaReplaced():
                    self._note(event)
                case _:
                    pass

    def _add_stage(self, event: StageEnded) -> None:
        """A span for the stage; the start's span begins with the first."""
        record = event.record
        began, ended = _nanoseconds(record.ended_at - record.seconds), _nanoseconds(record.ended_at)
        key = event.deployment.name, event.replica
        if key not in self._open:
            while len(self._open) >= _MOST_OPEN:  # replicas that ended without an event
                self._open.pop(next(iter(self._open))).end()
            what = "sleep" if record.stage in (_FIRST, _LAST) else f"{record.boot} start"
            root = self._tracer.start_span(what, start_time=began)
            root.set_attributes(_facts(event))
            self._open[key] = root
        span = self._tracer.start_span(
            record.stage, context=trace.set_span_in_context(self._open[key]), start_time=began
        )
        span.set_attributes({f"torpor.plugin.{name}.seconds": seconds for name, seconds in record.plugins.items()})
        if not record.ok:
            span.set_status(Status(StatusCode.ERROR, record.error))
        span.end(ended)

    def _end(self, event: LifecycleEvent, status: Status | None = None) -> None:
        """End the start's span, and send the whole trace."""
        root = self._open.pop((event.deployment.name, event.replica), None)
        if root is None:
            return
        root.set_attributes(_facts(event))
        if status is not None:
            root.set_status(status)
        root.end(_nanoseconds(event.at))
        self._send()

    def _note(self, event: ReplicaReplaced) -> None:
        """A span of its own: the start's trace was sent when the replica served."""
        span = self._tracer.start_span("replica replaced", start_time=_nanoseconds(event.at))
        span.set_attributes({**_facts(event), "torpor.reason": event.reason, "torpor.restarts": event.restarts})
        span.end(_nanoseconds(event.at))
        self._send()

    def _send(self) -> None:
        """Send the spans that ended. Each time by a new exporter: its connection must not be in a snapshot."""
        spans = self._ended.get_finished_spans()
        self._ended.clear()
        exporter = OTLPSpanExporter(endpoint=self._endpoint, timeout=self._timeout_s)
        try:
            result = exporter.export(spans)
        finally:
            exporter.shutdown()  # type: ignore[no-untyped-call] # the exporter says nothing of it
        if result is not SpanExportResult.SUCCESS:
            host = urlsplit(self._endpoint).netloc.rpartition("@")[2]  # the rest may hold a password or a token
            raise ConnectionError(f"the collector at {host} did not take {len(spans)} spans")


def _facts(event: LifecycleEvent) -> dict[str, str | int]:
    deployment = event.deployment
    facts: dict[str, str | int] = {
        "torpor.deployment": deployment.name,
        "torpor.model": deployment.model.served_name,
        "torpor.engine": deployment.engine.plugin_name,
        "torpor.replica": event.replica,
        "torpor.replica_id": event.replica_id,
        "torpor.boot": event.boot,
    }
    return facts | {f"torpor.gpu.{gpu.number}": gpu.name for gpu in event.gpus}


def _nanoseconds(at: float) -> int:
    """A Unix time as OpenTelemetry has it."""
    return int(at * 1e9)
