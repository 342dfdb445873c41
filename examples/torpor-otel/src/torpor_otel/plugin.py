"""`OpenTelemetry`: one trace for each start, with a span for each stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torpor import ImagePatch, Plugin, check_types, hookimpl, override

from torpor_otel.traces import Traces

if TYPE_CHECKING:
    from torpor import Deployment
    from torpor.listener import LifecycleEvent

__all__ = ["OpenTelemetry"]

DEFAULT_ENDPOINT = "http://127.0.0.1:4318/v1/traces"


@dataclass(frozen=True, kw_only=True)
class OpenTelemetry(Plugin):
    """Sends a trace of each start to an OpenTelemetry collector, by OTLP over HTTP.

    Where the collector is differs from machine to machine, so it is a setting: `TORPOR_PLUGIN_OTEL__ENDPOINT`. A collector that
    is away costs a start nothing: Torpor logs the failure.

    Attributes:
        service: `service.name` of the traces; empty for `torpor`.
        timeout_s: seconds for sending one trace.
    """

    plugin_name: ClassVar[str] = "otel"
    settings: ClassVar[tuple[str, ...]] = ("endpoint",)
    listener_deadline_s: ClassVar[float] = 10.0

    service: str = "torpor"
    timeout_s: float = 3.0

    def __post_init__(self) -> None:
        check_types(self)

    @hookimpl
    @override
    def prepare_image(self, deployment: Deployment) -> ImagePatch:
        return ImagePatch(pip=("opentelemetry-sdk>=1.45", "opentelemetry-exporter-otlp-proto-http>=1.45"))

    @override
    def on_event(self, event: LifecycleEvent) -> None:
        endpoint = self.setting("endpoint", DEFAULT_ENDPOINT)
        Traces.of(self.service, endpoint, self.timeout_s).hear(event)
