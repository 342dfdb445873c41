"""Timed starts: each with its spans on its own clock, and the spread of several starts."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torpor.telemetry.stages import Stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torpor.telemetry.records import StageRecord

__all__ = ["KINDS", "MILESTONES", "P95_FROM", "Kind", "Span", "Spread", "Start", "starts_of"]

Kind = Literal["cold", "woken", "restored", "sleep"]
KINDS: tuple[Kind, ...] = ("cold", "woken", "restored", "sleep")
MILESTONES = ("port_s", "ready_s", "first_token_s")
_P95 = 0.95
P95_FROM = 20
"""Fewest values for which a 95th percentile is computed."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """One stage of a start, on the start's own clock.

    Attributes:
        stage: its name.
        start_s: seconds from the start's zero until it began.
        seconds: how long it took.
        exact: whether `start_s` was measured; if False, only `seconds` was, and the span is drawn after the previous one.
        error: what went wrong; empty if nothing did.
    """

    stage: str
    start_s: float
    seconds: float
    exact: bool = True
    error: str = ""

    @property
    def end_s(self) -> float:
        """Seconds from the start's zero until it ended."""
        return self.start_s + self.seconds


@dataclass(frozen=True, kw_only=True)
class Start:
    """One start, wake or sleep.

    Attributes:
        number: its ordinal among its kind, from 1.
        boot: `cold`, `woken` (in its own process), `restored` (from a snapshot), or `sleep`.
        spans: its stages, in order.
        port_s: seconds from its zero until the public port took a connection; None if not measured.
        ready_s: until `/health` answered 200.
        first_token_s: until the first token of the first streamed answer.
    """

    number: int
    boot: Kind
    spans: tuple[Span, ...]
    port_s: float | None = None
    ready_s: float | None = None
    first_token_s: float | None = None

    @property
    def total_s(self) -> float:
        """Seconds from its zero to its first token; without one, to the end of its last span."""
        return (
            max((span.end_s for span in self.spans), default=0.0) if self.first_token_s is None else self.first_token_s
        )

    @property
    def drawn_s(self) -> float:
        """Seconds that its drawing covers."""
        return max((self.total_s, *(span.end_s for span in self.spans)))


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Median and spread of one figure, seconds.

    Attributes:
        median: of all.
        min: the least value.
        p95: by nearest rank: the smallest value that 95 % of all do not exceed; None for fewer than 20 values, because it
            would be the greatest one.
        max: the greatest value.
    """

    median: float
    min: float
    p95: float | None
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of one value or more."""
        ordered = sorted(values)
        p95 = ordered[math.ceil(_P95 * len(ordered)) - 1] if len(ordered) >= P95_FROM else None
        return cls(median=statistics.median(ordered), min=ordered[0], p95=p95, max=ordered[-1])


def starts_of(records: Sequence[StageRecord]) -> tuple[Start, ...]:
    """Stage records of one or more servers as starts, sleeps and wakes, each with a zero of its own.

    The zero is the beginning of the first stage, which is later than the start of the process.
    """
    groups: list[list[StageRecord]] = []
    open_groups: dict[str, list[StageRecord]] = {}  # replicas that wake side by side share a file
    for record in records:
        if record.stage == Stage.FIRST_REQUESTS:
            continue  # clients decide how long it takes
        group = open_groups.get(record.replica)
        if group is None or _begins(record, group[-1]):
            group = open_groups[record.replica] = []
            groups.append(group)
        group.append(record)
    counts = dict.fromkeys(KINDS, 0)
    starts = []
    for group in groups:
        kind: Kind = "sleep" if group[0].stage == Stage.DRAIN else group[0].boot
        counts[kind] += 1
        zero = min(record.ended_at - record.seconds for record in group)
        starts.append(Start(number=counts[kind], boot=kind, spans=tuple(span_of(record, zero) for record in group)))
    return tuple(starts)


def span_of(record: StageRecord, zero: float) -> Span:
    """A stage record on the clock of its start.

    Args:
        record: with the Unix time of its end.
        zero: Unix time of the start's zero, seconds.
    """
    start_s = max(0.0, record.ended_at - record.seconds - zero)
    return Span(stage=record.stage, start_s=start_s, seconds=record.seconds, error=record.error)


def _begins(record: StageRecord, last: StageRecord) -> bool:
    """Whether a record begins a new start, after the last record of the one before."""
    return (
        (record.boot, record.restore_count) != (last.boot, last.restore_count)
        or record.stage in (Stage.PREFLIGHT, Stage.DRAIN, Stage.SANDBOX)
        or last.stage in (Stage.SERVE, Stage.PRE_SNAPSHOT)
    )
