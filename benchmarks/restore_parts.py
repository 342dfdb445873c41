"""Where the seconds of a restored start go, and what remains of them with a resident gateway.

    .venv/bin/python -m benchmarks.restore_parts [--app apps/tiny_cpu.py] [--runs 7]

One snapshot is captured. Then two kinds of restore take turns, each from its beginning to the first token of a streamed answer:

    command   torpor snapshot restore DIR: from the start of the process
    resident  torpor serve APP, with the deployment on disk: from the request that needs it

The parts are what the stage records say. `own` is the rest: interpreter, imports, checks, sandbox, gateway. Floors stand beside: a
bare interpreter, and a second answer of the replica. Every figure is a median. Writes benchmarks/results/restore-parts-NAME.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from benchmarks.local import shares
from benchmarks.ran import what_ran
from benchmarks.serve import fall, first_answer, serving

from torpor.app_file import load_app
from torpor.cli.timing import command, first_token, running
from torpor.platforms.local.server import LocalServer
from torpor.platforms.local.snapshots import create_snapshot
from torpor.snapshots.store.paths import cache_root, snapshot_folder
from torpor.testing.ports import unused_port

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torpor.deployment import Deployment

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 120.0
STAND_IN = """
from torpor import Deployment, Model
from torpor.testing import StandIn

deployment = Deployment(
    name="restore-parts", model=Model(path={folder!r}, served_name="tiny"), plugins=(StandIn(),), port={port}
)
"""
STAGES = ("sandbox", "side_files", "criu", "post_restore", "canary_check", "serve")


def by_command(folder: Path, deployment: Deployment) -> dict[str, float]:
    """One restore by the command: its parts, the whole, and a second answer of the replica."""
    port, model = unused_port(), deployment.model.served_name
    with running(command("snapshot", "restore", str(folder), "--json", "--port", str(port))) as (process, began):
        seen = first_token(process, began, port=port, model=model, timeout_s=LIMIT_S)
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        again = first_answer(port, model)
    (replica,) = told["replicas"]
    stages = {stage["stage"]: stage["seconds"] for stage in replica["stages"]}
    return {
        **shares(told, began, seen.first_token_s),
        **{name: stages[name] for name in ("post_restore", "canary_check", "serve") if name in stages},
        "first_token_s": seen.first_token_s,
        "second_answer": again,
    }


def by_gateway(port: int, deployment: Deployment) -> dict[str, float]:
    """One restore by a request to the resident gateway: its parts by the records, and the whole."""
    before = lines()
    whole = first_answer(port, deployment.model.served_name)
    records = [json.loads(line) for line in lines()[len(before) :]]
    stages = {one["stage"]: one["seconds"] for one in records if one["deployment"] == deployment.name}
    parts = {name: stages[name] for name in STAGES if name in stages}
    again = first_answer(port, deployment.model.served_name)
    for state in ("asleep", "on disk"):
        fall(port, deployment.name, state)
    engine_s = sum(parts.get(name, 0.0) for name in ("criu", "post_restore", "canary_check", "serve"))
    return {**parts, "first_token_s": whole, "second_answer": again, "own": whole - engine_s - again}


def lines() -> list[str]:
    """All stage records under this cache root, by file and place."""
    files = sorted((cache_root() / "records").glob("*.jsonl"), key=lambda one: one.stat().st_mtime_ns)
    return [line for file in files for line in file.read_text().splitlines()]


def bare_interpreter() -> float:
    """Seconds of an interpreter that does nothing."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], check=True, timeout=LIMIT_S)
    return time.perf_counter() - began


def medians(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of every part."""
    return {name: round(statistics.median(one[name] for one in runs), 4) for name in runs[0]}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--app", default="", help="the app file; by default the stand-in")
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])
    with tempfile.TemporaryDirectory(dir=cache_root()) as work:
        (Path(work) / "model").mkdir()
        file = options.app or str(Path(work) / "app.py")
        if not options.app:
            Path(file).write_text(STAND_IN.format(folder=f"{work}/model", port=unused_port()))
        results = measured(file, options.runs)
    name = Path(options.app).stem or "stand-in"
    target = ROOT / "benchmarks" / "results" / f"restore-parts-{name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps({**what_ran(f"restore-parts-{name}"), **results}, indent=1) + "\n")
    print(json.dumps(results["medians_s"], indent=1))


def measured(file: str, runs: int) -> dict[str, object]:
    """All figures of one app."""
    deployment = load_app(file).deployment
    folder = snapshot_folder(deployment.name)
    LocalServer(deployment).build()
    create_snapshot(file, folder)
    commands, gateway, interpreters = [], [], []
    with serving([file]) as (_, port):
        for number in range(runs + 1):  # the first of each is not counted
            one, other, bare = by_command(folder, deployment), by_gateway(port, deployment), bare_interpreter()
            if number:
                commands.append(one)
                gateway.append(other)
                interpreters.append({"interpreter": bare})
    return {
        "bytecode": not os.environ.get("PYTHONDONTWRITEBYTECODE"),
        "medians_s": {"command": medians(commands), "resident": medians(gateway), "floor": medians(interpreters)},
        "runs_s": {"command": commands, "resident": gateway, "floor": interpreters},
    }


if __name__ == "__main__":
    main()
