"""Every metric of a command that serves. No label's value comes from a client."""

from __future__ import annotations

from typing import Literal, NamedTuple

__all__ = ["CONTENT_TYPE", "METRICS", "Metric"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Of Prometheus' text format, which every collector reads."""


class Metric(NamedTuple):
    """A metric.

    Attributes:
        name: without the suffixes `_total`, `_bucket`, `_sum` and `_count` that Prometheus' format adds.
        kind: `counter`, `gauge` or `histogram`.
        labels: names of its labels.
        meaning: in one sentence; shown as HELP.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    meaning: str


METRICS = (
    Metric("torpor_starts", "counter", ("deployment", "kind", "outcome"), "Starts that ended, well or not."),
    Metric(
        "torpor_stage_duration_seconds",
        "histogram",
        ("deployment", "kind", "stage"),
        "Wall time of stages that ended well.",
    ),
    Metric("torpor_stage_failures", "counter", ("deployment", "kind", "stage"), "Stages that failed."),
    Metric("torpor_replacements", "counter", ("deployment", "reason"), "Replicas that serve in place of another one."),
    Metric("torpor_listener_failures", "counter", ("deployment", "plugin", "what"), "Failures of plugins that listen."),
    Metric(
        "torpor_deployment_state",
        "gauge",
        ("deployment", "state"),
        "1 for the deployment's state, 0 for every other one.",
    ),
    Metric("torpor_replicas", "gauge", ("deployment", "state"), "Replicas in each state."),
    Metric("torpor_requests_in_flight", "gauge", ("deployment",), "Requests that replicas work on."),
    Metric(
        "torpor_requests_waiting",
        "gauge",
        ("deployment",),
        "Requests that wait for a replica, in the deployment's queue.",
    ),
    Metric("torpor_memory_bytes", "gauge", ("deployment", "place"), "Memory that the deployment's replicas are given."),
    Metric("torpor_snapshot_bytes", "gauge", ("deployment",), "Size of the deployment's snapshot on disk."),
    Metric("torpor_snapshot_age_seconds", "gauge", ("deployment",), "Time since its capture."),
    Metric(
        "torpor_engine_scrape_ok",
        "gauge",
        ("deployment", "replica"),
        "Whether the engine's own metrics were read now.",
    ),
    Metric("torpor_build_info", "gauge", ("version",), "Always 1, with Torpor's version."),
)
"""All of them, in the order in which they are shown."""
