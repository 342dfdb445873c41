"""Asks all of vLLM's workers something, and names the rank that fails, is missing or differs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torpor import EngineRequestError, GpuSnapshotError, shown
from torpor.engine_plugins import call

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import httpx

    Report = Mapping[str, object]

__all__ = ["check_asleep", "check_awake", "reports_of"]


def reports_of(client: httpx.Client, method: str, *args: str, ranks: int) -> list[Report]:
    """Call a method of `torpor_vllm.worker.Renewal` on every worker.

    Args:
        client: bound to the engine, with the lifecycle key.
        method: the method's name.
        args: its arguments.
        ranks: number of workers.

    Returns:
        Their reports, by rank.

    Raises:
        EngineRequestError: a worker failed, or gave no report.
    """
    response = call(client, "/collective_rpc", {"method": method, "args": list(args)}, engine="vLLM")
    try:
        answer: object = response.json()
    except (ValueError, RecursionError):
        answer = None
    found = answer.get("results") if isinstance(answer, dict) else None
    reports = {report["rank"]: report for report in found or () if isinstance(report, dict) and "rank" in report}
    if missing := [rank for rank in range(ranks) if rank not in reports]:
        raise EngineRequestError(
            f"vLLM has {ranks} workers, and POST /collective_rpc {method} gave no report of rank {_listed(missing)}: "
            f"{shown(answer)}. Nothing may be captured or served."
        )
    return [reports[rank] for rank in range(ranks)]


def check_asleep(reports: Sequence[Report]) -> None:
    """Demand that every worker has let go of its memory.

    Raises:
        GpuSnapshotError: names the ranks that have not.
    """
    held = [
        f"rank {report['rank']} still holds {report.get('held_bytes')} bytes"
        for report in reports
        if report.get("held_bytes") != 0
    ]
    if held:
        raise GpuSnapshotError(
            f"vLLM says that it sleeps, but {'; '.join(held)}. Nothing may be captured; the engine's log shows what that rank did."
        )


def check_awake(reports: Sequence[Report]) -> None:
    """Demand that every worker came back with the weights that it had.

    Raises:
        GpuSnapshotError: names the ranks that did not.
    """
    other = [
        f"rank {report['rank']} has the sum {report.get('weights')} and had {report.get('weights_before')}"
        for report in reports
        if not report.get("weights") or report["weights"] != report.get("weights_before")
    ]
    if other:
        raise GpuSnapshotError(
            f"vLLM woke with other weights than it fell asleep with: {'; '.join(other)}. It may not serve; take a new snapshot."
        )


def _listed(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks))
