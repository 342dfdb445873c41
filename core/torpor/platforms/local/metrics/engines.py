"""The engines' own metrics, passed on: read from each serving engine's `/metrics` with the lifecycle key, and labelled.

Each sample gets the labels `torpor_deployment` and `torpor_replica`, so that replicas do not collide. An engine that sleeps is
left alone. What an engine says is its own: text that cannot be read, is too long or comes too slowly is left out, and
`torpor_engine_scrape_ok` is 0. Samples that would spoil the whole scrape are left out one by one.
"""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import httpx
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from torpor.errors import TorporError
from torpor.runtime.guard_client import open_client

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torpor.runtime.boot import Boot

__all__ = ["MOST_BYTES", "engine_metrics"]

MOST_BYTES = 8 << 20
"""Of one engine's metrics."""

_TIMEOUT_S, _DEADLINE_S = 2.0, 4.0
"""Without a byte, and for a whole answer."""
_AT_ONCE = 8
_OK = 200
_OWN = "torpor_"
_NAME, _LABEL = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*"), re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")
"""Names that are written as they are. Others are escaped, and may then be names of Torpor's, or of nobody's."""


def engine_metrics(boots: Sequence[tuple[str, str, Boot]]) -> tuple[list[Metric], dict[tuple[str, str], bool]]:
    """Read every engine's metrics, at the same time.

    Args:
        boots: deployment's name, replica's name and boot of each engine that serves.

    Returns:
        The metrics, one for each name; and whether each engine's could be read, by deployment and replica.
    """
    if not boots:
        return [], {}
    with ThreadPoolExecutor(min(_AT_ONCE, len(boots))) as pool:
        answers = list(pool.map(lambda one: _read(one[2]), boots))
    merged: dict[str, Metric] = {}
    for (deployment, replica, _), families in zip(boots, answers, strict=True):
        for family in families or ():
            _merge(merged, family, {"torpor_deployment": deployment, "torpor_replica": replica})
    read = {
        (deployment, replica): found is not None for (deployment, replica, _), found in zip(boots, answers, strict=True)
    }
    return list(merged.values()), read


def _read(boot: Boot) -> list[Metric] | None:
    """One engine's metrics; None if they cannot be read."""
    try:
        with open_client(boot.running_engine, port=boot.deployment.port, timeout_s=_TIMEOUT_S) as client:
            return list(text_string_to_metric_families(_text(client)))
    except (TorporError, httpx.HTTPError, ValueError, KeyError, IndexError):
        return None


def _text(client: httpx.Client) -> str:
    """The answer to GET /metrics.

    Raises:
        ValueError: another status than 200, or too long or too slow an answer.
    """
    until = time.monotonic() + _DEADLINE_S
    with client.stream("GET", "/metrics", follow_redirects=False) as answer:
        if answer.status_code != _OK:
            raise ValueError(answer.status_code)
        data = b""
        for part in answer.iter_bytes():
            data += part
            if len(data) > MOST_BYTES:
                raise ValueError(len(data))
            if time.monotonic() > until:
                raise ValueError(f"no whole answer within {_DEADLINE_S:g} s")
        return data.decode()


def _merge(merged: dict[str, Metric], family: Metric, labels: dict[str, str]) -> None:
    """Add an engine's samples. A name that is Torpor's own is left out: an engine could forge it."""
    if family.name.startswith(_OWN) or not _NAME.fullmatch(family.name):
        return
    kept = merged.setdefault(family.name, Metric(family.name, family.documentation, family.type))
    if kept.type != family.type:
        return
    for sample in family.samples:
        if _NAME.fullmatch(sample.name) and all(map(_LABEL.fullmatch, sample.labels)):
            kept.samples.append(
                Sample(sample.name, {**sample.labels, **labels}, sample.value)
            )  # no time: it was read now
