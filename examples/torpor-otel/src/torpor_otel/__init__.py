"""Traces of Torpor's starts, by OpenTelemetry: the plugin `OpenTelemetry`."""

from torpor_otel.plugin import OpenTelemetry

__all__ = ["OpenTelemetry"]
