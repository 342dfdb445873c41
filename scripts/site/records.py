"""The tables of metrics, records and stages, read from the code."""

from __future__ import annotations

import re
from typing import get_args

from scripts.site.docstrings import parse

from torpor.platforms.local.metrics.names import METRICS
from torpor.telemetry.metrics import metrics_text
from torpor.telemetry.records import SCHEMA, BootKind, StageRecord
from torpor.telemetry.stages import Stage

__all__ = ["STAGES", "metric_table", "record_table", "stage_table", "textfile_table"]

STAGES = {
    Stage.PROCESS: "`torpor bench` only: from the start of the command to its first stage",
    Stage.OPEN: "of a snapshot in a store: its manifest is read, and its signature checked",
    Stage.COMPARE: "this machine and its files are compared with that manifest",
    Stage.PULL_WEIGHTS: "kept weights are fetched from the store",
    Stage.PULL: "the snapshot is fetched from the store",
    Stage.VERIFY: "`torpor bench` only: the snapshot's files and this machine are compared with its manifest",
    Stage.SANDBOX: "the replica gets its namespaces",
    Stage.SIDE_FILES: "files beside the memory, such as shared memory, are copied for the replica",
    Stage.CRIU: "CRIU restores the processes",
    Stage.CUDA: "the driver gives the processes their GPU memory back",
    Stage.RESTORE: "a restore that failed before there was an engine to wake",
    Stage.IMPORTS: "`torpor bench` only: the import of the app file, as far as it took longer than CRIU",
    Stage.PREFLIGHT: "the port and the checks of plugins, such as the weights' files",
    Stage.LAUNCH: "the engine's process is started",
    Stage.READY: "until the engine's ready path answers: imports, weights, graphs",
    Stage.WARMUP: "real requests, until nothing is left to compile",
    Stage.CANARY: "the canary's answers are recorded",
    Stage.DRAIN: "requests in flight are finished, and no new one gets in",
    Stage.PRE_SNAPSHOT: "the plugins' hooks of that name: the engine is put to sleep",
    Stage.POST_RESTORE: "the plugins' hooks of that name: the engine is woken",
    Stage.CANARY_CHECK: "the canary asks again and compares",
    Stage.SERVE: "the guard opens",
    Stage.FIRST_REQUESTS: "no part of the start: the first 20 requests after it, and whether the engine compiled anything for them",
    Stage.FIRST_ANSWER: "`torpor bench` only: from the end of the last stage to the first token",
}
"""What happens in each stage, in the order of a start."""


def metric_table() -> str:
    """A row for each metric of a command that serves."""
    rows = [
        f"| `{one.name}{'_total' if one.kind == 'counter' else ''}` | {one.kind} | "
        f"{', '.join(f'`{label}`' for label in one.labels)} | {one.meaning} |"
        for one in METRICS
    ]
    return "\n".join(("| metric | kind | labels | meaning |", "|---|---|---|---|", *rows))


def textfile_table() -> str:
    """A row for each metric of the text file: what it contains after one start of each kind, one failure, and one restart."""
    text = metrics_text([_example(kind, ok=ok) for kind in get_args(BootKind) for ok in (True, False)])
    rows = []
    for name, meaning in re.findall(r"^# HELP (\w+) (.+)$", text, re.MULTILINE):
        kind = re.findall(rf"^# TYPE {name} (\w+)$", text, re.MULTILINE)[0]
        labels = re.findall(r"(\w+)=", re.findall(rf"^{name}\{{(.*?)\}}", text, re.MULTILINE)[0])
        rows.append(f"| `{name}` | {kind} | {', '.join(f'`{label}`' for label in labels)} | {meaning} |")
    return "\n".join(("| metric | kind | labels | meaning |", "|---|---|---|---|", *rows))


def record_table() -> str:
    """A row for each field of a record."""
    told = {"schema": f"version of the format: {SCHEMA}."} | parse(StageRecord).entries("Attributes")
    return "\n".join(("| field | meaning |", "|---|---|", *(f"| `{name}` | {text} |" for name, text in told.items())))


def stage_table() -> str:
    """A row for each stage, in the order of a start."""
    return "\n".join(("| stage | what happens |", "|---|---|", *(f"| `{one}` | {STAGES[one]} |" for one in Stage)))


def _example(kind: BootKind, *, ok: bool) -> StageRecord:
    return StageRecord(
        stage=Stage.CANARY if kind == "cold" else Stage.SERVE,
        seconds=1.0,
        boot=kind,
        replica_id="0123456789abcdef",
        restore_count=0,
        ended_at=0.0,
        ok=ok,
        restarts=int(not ok),
        reason="" if ok else "engine ended",
        deployment="app",
        replica="app-1",
    )
