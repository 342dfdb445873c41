"""What is measured with several GPUs: ranks that share a model, and replicas of one snapshot on several cards.

Every function returns the figures of one row. `gpu_mib` is the memory in use on each GPU, in the driver's order.
"""

from __future__ import annotations

import json
import statistics
import time
from typing import TYPE_CHECKING, cast

from benchmarks.gpu.common import (
    MODEL,
    RESTORE_LIMIT_S,
    all_gpus,
    ask,
    captured,
    decoded,
    details,
    gpu_places,
    gpu_query,
    gpu_words,
    ready_s,
    restored,
    used_mib,
)

from torpor.app_file import load_app
from torpor.cli.timing import command, first_token, running
from torpor.platforms.local.backends import NoSnapshot, Standby
from torpor.platforms.local.server import LocalServer
from torpor.snapshots.store.stored import inspect
from torpor.telemetry.stage_report import StageReport

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["cold_decoded", "many", "shared", "spread", "standby_many", "swapped"]

_DECODES, _MANY, _CYCLES = 3, 20, 50


def cold_decoded(app: Path) -> dict[str, object]:
    """A cold start without a snapshot, and the speed of one stream: the median of three."""
    server = LocalServer(load_app(str(app)).deployment, backend=NoSnapshot(), report=StageReport(), gpus=gpu_places())
    try:
        server.start()
        seen = [decoded(server.address[1]) for _ in range(_DECODES)]
        stages = {record.stage: record.seconds for record in server.boot.report.records}
        used = used_mib()
    finally:
        server.stop()
    return {
        "cold_ready_s": stages["launch"] + stages["ready"],
        "stages_s": stages,
        "tokens_per_s": rate(seen),
        "decoded": seen,
        "gpu_mib": used,
    }


def shared(app: Path, folder: Path, restores: int, port: int) -> dict[str, object]:
    """Capture ranks that share a model, and restore them; each replica decodes one stream."""
    before = used_mib()
    capture = captured(app, folder)
    found = restored(folder, restores, port, look=lambda: {**decoded(port), "gpu_mib": used_mib()})
    seen = cast("list[dict[str, object]]", found["seen"])
    return {
        **capture,
        **found,
        "tokens_per_s": rate(seen),
        "same_text": same_text(seen),
        "gpu_mib_before": before,
        "gpu_mib_after": used_mib(),
    }


def many(folder: Path, port: int, times: int = _MANY) -> dict[str, object]:
    """Restore the snapshot of another row many times in a row; the memory of each GPU must not grow.

    Raises:
        RuntimeError: that row has not left a snapshot here.
    """
    check_there(folder)
    before = used_mib()
    found = restored(folder, times, port, look=lambda: {**decoded(port), "gpu_mib": used_mib()})
    seen = cast("list[dict[str, object]]", found["seen"])
    return {
        "cold_ready_s": ready_s(folder),
        **found,
        "same_text": same_text(seen),
        "grown_mib": grown([cast("list[int]", one["gpu_mib"]) for one in seen]),
        "left_mib": [after - at_first for after, at_first in zip(used_mib(), before, strict=True)],
    }


def swapped(folder: Path, restores: int, port: int) -> dict[str, object]:
    """Restore the snapshot of another row with its ranks on the GPUs in the opposite order.

    Raises:
        RuntimeError: that row has not left a snapshot here.
    """
    check_there(folder)
    order = ",".join(reversed(_names()))
    look = lambda: {**decoded(port), "gpu_mib": used_mib()}  # noqa: E731
    found = restored(folder, restores, port, words=("--gpus", order), look=look)
    seen = cast("list[dict[str, object]]", found["seen"])
    return {"cold_ready_s": ready_s(folder), "gpus": order, **found, "same_text": same_text(seen)}


def standby_many(app: Path, cycles: int = _CYCLES) -> dict[str, object]:
    """Sleeps and wakes in one process: from the call to the first token; the memory of each GPU awake and asleep."""
    deployment = load_app(str(app)).deployment
    server = LocalServer(
        deployment, backend=Standby(), report=StageReport(), cold_on_failed_wake=False, gpus=gpu_places()
    )
    times, asleep, serving, stages, seen = [], list[list[int]](), list[list[int]](), list[dict[str, float]](), []
    try:
        server.start()
        records = server.boot.report.records
        cold = {record.stage: record.seconds for record in records if record.boot == "cold"}
        for _ in range(cycles):
            seen.append(decoded(deployment.port))
            serving.append(used_mib())
            server.sleep()
            asleep.append(used_mib())
            before, began = len(server.boot.report.records), time.monotonic()
            server.wake()
            times.append(ask(deployment.port, began))
            stages.append({record.stage: record.seconds for record in server.boot.report.records[before:]})
        seen.append(decoded(deployment.port))
    finally:
        server.stop()
    return {
        "cold_ready_s": cold["launch"] + cold["ready"],
        "stages_s": cold,
        "woken_s": times,
        "parts_s": {name: statistics.median(stage[name] for stage in stages) for name in stages[0]},
        "tokens_per_s": rate(seen[1:]),
        "same_text": same_text(seen),
        "gpu_mib_serving": serving[-1],
        "gpu_mib_asleep": asleep[-1],
        "grown_mib": grown(serving),
        "grown_asleep_mib": grown(asleep),
    }


def spread(app: Path, folder: Path, restores: int, port: int, *, ranks: int) -> dict[str, object]:
    """One snapshot: a replica on each GPU (or group of GPUs) at once, then one replica on each other GPU alone.

    A machine of one GPU gets two replicas on it.
    """
    capture = captured(app, folder)
    names = _names()
    count = max(2, len(names) // ranks)
    at_once = [replicas_at_once(folder, count, port) for _ in range(restores)]
    moved = {}
    if inspect(folder).gpu is not None:
        for first in range(ranks, len(names) - ranks + 1, ranks):
            gpus = ",".join(names[first : first + ranks])
            look = lambda: {**decoded(port), "gpu_mib": used_mib()}  # noqa: E731
            moved[gpus] = restored(folder, restores, port, words=("--gpus", gpus), look=look)
    every = [time_s for one in at_once for time_s in cast("list[float]", one["serving_s"])]
    return {
        **capture,
        "replicas": count,
        "restored_s": every,
        "parts_s": cast("dict[str, float]", at_once[0]["parts_s"]),
        "at_once": at_once,
        "moved": moved,
    }


def _names() -> tuple[str, ...]:
    """The GPUs to use: those of `--gpus`, else all."""
    return all_gpus() or tuple(str(number) for number in range(len(gpu_query("name"))))


def replicas_at_once(folder: Path, count: int, port: int) -> dict[str, object]:
    """Restore replicas by one command: when each serves, the first answer, and what is on each GPU."""
    argv = command("snapshot", "restore", str(folder), "--json", "--replicas", str(count), *gpu_words(all_gpus()))
    began_at = time.time()
    with running(argv) as (process, began):
        seen = first_token(process, began, port=port, model=MODEL, timeout_s=RESTORE_LIMIT_S, tokens=16)
        assert process.stdout is not None
        replicas = cast("list[dict[str, object]]", json.loads(process.stdout.readline())["replicas"])
        texts = {str(decoded(port)["text"]) for _ in range(2 * count)}
        used = used_mib()
    served = [max(cast("float", stage["ended_at"]) for stage in stages_of(one)) - began_at for one in replicas]
    return {
        "first_token_s": seen.first_token_s,
        "serving_s": served,
        "parts_s": {
            name: statistics.median(details(one).get(name, 0.0) for one in replicas) for name in details(replicas[0])
        },
        "gpus": [one.get("gpus") for one in replicas],
        "texts": sorted(texts),
        "gpu_mib": used,
    }


def stages_of(replica: dict[str, object]) -> list[dict[str, object]]:
    """A replica's stages in the command's JSON."""
    return cast("list[dict[str, object]]", replica["stages"])


def check_there(folder: Path) -> None:
    """Refuse a snapshot that is not there."""
    if not folder.exists():
        raise RuntimeError(f"there is no snapshot in {folder}: run row {folder.name} before, with the same --snapshots")


def same_text(seen: list[dict[str, object]]) -> bool:
    """Whether every stream had the same text."""
    return len({str(one["text"]) for one in seen}) == 1


def rate(seen: list[dict[str, object]]) -> float | None:
    """The median speed of streams, tokens a second; None if none had two tokens."""
    rates = [cast("float", one["tokens_per_s"]) for one in seen if one["tokens_per_s"] is not None]
    return statistics.median(rates) if rates else None


def grown(each: list[list[int]]) -> list[int]:
    """How much more is in use on each GPU at the end than after the first time, MiB."""
    return [last - first for first, last in zip(each[0], each[-1], strict=True)]
