"""Restores several replicas of one snapshot at once: when each stage of each replica ended, and the memory that each one owns.

    .venv/bin/python -m benchmarks.fleet [--app APP] [--replicas 8] [--json FILE]

Starts the app cold once, captures it, and restores the replicas in this process, as `torpor snapshot restore` does. Memory is read
when all of them serve. `scripts/site/pictures.py` draws the file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from benchmarks.local import ROOT

from torpor.app_file import load_app
from torpor.platforms.local.server import LocalServer
from torpor.platforms.local.snapshots import create_snapshot, restore_snapshot
from torpor.snapshots.store.paths import snapshot_folder

if TYPE_CHECKING:
    from collections.abc import Iterable


def main() -> None:
    """Measure, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--app", default="apps/tiny_cpu.py")
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "fleet.json", metavar="FILE")
    asked = parser.parse_args()
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])
    deployment = load_app(asked.app).deployment
    LocalServer(deployment).build()
    folder = snapshot_folder(f"{deployment.name}-fleet")
    began = time.monotonic()
    manifest = create_snapshot(asked.app, folder)
    created_s = time.monotonic() - began
    results: dict[str, Any] = {
        "app": asked.app,
        "engine": manifest.deployment.engine,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, kernel {platform.release()}",
        "load": os.getloadavg()[0],
        "at": time.time(),
        "created_s": created_s,
        "snapshot_bytes": sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file()),
        **restored(folder, asked.replicas, deployment.port),
    }
    asked.json.parent.mkdir(exist_ok=True, parents=True)
    asked.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"{asked.replicas} replicas in {results['served_s']:.3f} s; written to {asked.json}")


def restored(folder: Path, count: int, port: int) -> dict[str, Any]:
    """Seconds until all replicas serve, and of each replica its stages and its memory in bytes."""
    began, clock = time.time(), time.monotonic()
    replicas = restore_snapshot(folder, replicas=count, port=port)
    served_s = time.monotonic() - clock
    try:
        return {
            "began_at": began,
            "served_s": served_s,
            "replicas": [
                {
                    "name": one.replica.name,
                    "stages": [
                        {"stage": record.stage, "seconds": record.seconds, "ended_at": record.ended_at}
                        for record in one.boot.report.records
                    ],
                    **memory(one.replica.sandbox.host_pids().values()),
                }
                for one in replicas.serving
            ],
        }
    finally:
        replicas.stop()


def memory(pids: Iterable[int]) -> dict[str, float]:
    """What the processes of a replica own alone, and their share of what several replicas map (smaps_rollup in proc(5))."""
    own = shared = 0.0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines():
            name, _, amount = line.partition(":")
            if name == "Pss_Anon":
                own += int(amount.split()[0]) * 1024
            elif name == "Pss_File":
                shared += int(amount.split()[0]) * 1024
    return {"own_bytes": own, "mapped_share_bytes": shared}


if __name__ == "__main__":
    main()
