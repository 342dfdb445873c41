"""Invented starts for the tests of reports and of their page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torpor.report import Bench, Floor, Machine, Span, Start
from torpor.telemetry.records import StageRecord

if TYPE_CHECKING:
    from torpor.telemetry.records import BootKind

HOSTILE = "<script>alert(1)</script> & \"quoted\" 'name'"


def cold(number: int = 1, *, first_token_s: float = 14.523456789) -> Start:
    """A cold start with every stage. The first one has seconds that binary numbers cannot hold exactly."""
    lengths = {
        "process": 0.1 + 0.2,
        "preflight": 0.000064,
        "launch": 0.01,
        "ready": 9.87654,
        "warmup": 3.21,
        "canary": 0.4,
    }
    spans, at_s = [], 0.0
    for stage, seconds in lengths.items():
        spans.append(Span(stage=stage, start_s=at_s, seconds=seconds))
        at_s += seconds
    return Start(
        number=number,
        boot="cold",
        spans=tuple(spans),
        port_s=9.5,
        ready_s=first_token_s - 0.1,
        first_token_s=first_token_s,
    )


def restored(number: int = 1, *, first_token_s: float = 0.5123456789, port_s: float | None = 0.3) -> Start:
    """A restored start; without a port it is a wake."""
    return Start(
        number=number,
        boot="woken" if port_s is None else "restored",
        spans=(
            Span(stage="verify", start_s=0.1, seconds=0.05, exact=False),
            Span(stage="criu", start_s=0.15, seconds=0.2),
            Span(stage="post_restore", start_s=0.35, seconds=0.1),
            Span(stage="first_answer", start_s=0.45, seconds=first_token_s - 0.45),
        ),
        port_s=port_s,
        ready_s=0.5,
        first_token_s=first_token_s,
    )


def measured(*, pairs: int = 3, backend: str = "criu", name: str = "tiny") -> Bench:
    """A result of `torpor bench` with this many pairs."""
    port_s = 0.3 if backend == "criu" else None
    starts = [
        start
        for number in range(1, pairs + 1)
        for start in (
            cold(number, first_token_s=14.5 + number / 7),
            restored(number, first_token_s=0.51 + number / 70, port_s=port_s),
        )
    ]
    floor = Floor(
        image_bytes=912_345_678, mapped_bytes=800_000_001, side_file_bytes=4096, bandwidth_bytes_per_s=5.4321e9 / 3
    )
    return Bench(
        torpor="0.1.0",
        app=f"apps/{name}.py",
        deployment=name,
        engine="SGLang",
        model="tiny",
        backend=backend,
        at=1_790_000_000.25,
        machine=Machine(cpus=2, architecture="x86_64", kernel="6.18.5", load=0.31),
        starts=tuple(starts),
        floor=floor if backend == "criu" else None,
    )


def record(
    stage: str, at: float, seconds: float, *, boot: BootKind = "cold", count: int = 0, error: str = ""
) -> StageRecord:
    """A stage record that began at a Unix time."""
    return StageRecord(
        stage=stage,
        seconds=seconds,
        boot=boot,
        replica_id="0123456789abcdef",
        restore_count=count,
        ended_at=at + seconds,
        ok=not error,
        error=error,
    )


RECORDS = (
    record("preflight", 1000.0, 0.25),
    record("launch", 1000.25, 0.5),
    record("ready", 1000.75, 9.5),
    record("warmup", 1010.25, 2.0),
    record("canary", 1012.25, 0.125),
    record("drain", 1012.5, 0.25),
    record("pre_snapshot", 1012.75, 1.0),
    record("post_restore", 1013.75, 0.5, boot="woken", count=1),
    record("canary_check", 1014.25, 0.125, boot="woken", count=1),
    record("serve", 1014.375, 0.0625, boot="woken", count=1),
    record("drain", 5000.0, 0.5, boot="woken", count=1),
    record("pre_snapshot", 5000.5, 1.0, boot="woken", count=1),
    record("post_restore", 9000.0, 30.0, boot="woken", count=2, error=f"EngineTimeoutError: {HOSTILE}"),
)
"""A start that slept and woke, served for an hour, slept again, and failed in its second wake."""
