"""What a snapshot saves on this machine: cold and restored starts of the real SGLang, replicas, memory, image size.

    .venv/bin/python benchmarks/local.py [--runs 5] [--many 200] [--replicas 1,2,4,8] [--drop-caches]

A start is timed as a user sees it: from the start of the command to the first token of a streamed answer. Cold and restored
starts alternate, so a change of the machine's speed affects both; every figure is a median. `--drop-caches` repeats
both with the page cache dropped before each (root; it slows the whole machine). Prints a table and writes
benchmarks/results/local.json. `make measure` compiles Torpor's byte code first. A Python that may not write byte code
(PYTHONDONTWRITEBYTECODE) compiles all of Torpor at every start: a third of Torpor's own share of a restore.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, cast

import psutil
import structlog

from torpor.app_file import load_app
from torpor.cli.timing import command, first_token, running
from torpor.platforms.local.criu_backend import CriuBackend
from torpor.platforms.local.server import LocalServer
from torpor.platforms.local.snapshots import create_snapshot, restore_snapshot
from torpor.snapshots.store.paths import cache_root, snapshot_folder

if TYPE_CHECKING:
    from torpor.deployment import Deployment
    from torpor.snapshots.sandbox.sandbox import Sandbox
    from torpor.snapshots.store.manifest import Manifest

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "local.json"
COLD_LIMIT_S, RESTORED_LIMIT_S, OWN_LIMIT_S = 900.0, 0.5, 0.080
DROPPED_LIMIT_S, IMAGE_LIMIT_MB = 1.3, 900.0


def main() -> None:
    """Measure, print, write."""
    options = parse()
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])
    deployment = load_app(options.app).deployment
    if reasons := CriuBackend().available():
        raise SystemExit("this machine cannot make snapshots:\n" + "\n".join(f"  - {one}" for one in reasons))
    LocalServer(deployment).build()
    folder = snapshot_folder(f"{deployment.name}-benchmark")
    manifest = create_snapshot(options.app, folder)
    results: dict[str, object] = {
        "app": options.app,
        "cpus": os.cpu_count(),
        "at": time.time(),
        "load": os.getloadavg(),
    }
    results["image"] = image(folder, manifest)
    if options.runs:
        results["warm"] = starts(options.app, folder, deployment, options.runs, drop_caches=False)
    if options.runs and options.drop_caches:
        results["dropped"] = starts(options.app, folder, deployment, options.runs, drop_caches=True)
    results["memory"] = [memory(folder, deployment, count) for count in options.replicas]
    if options.many:
        results["many"] = many(folder, options.many)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    show(results)


def parse() -> argparse.Namespace:
    """Parse the options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--app", default=str(ROOT / "apps" / "tiny_cpu.py"))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--many", type=int, default=200, help="restores in a row, each answering the canary")
    parser.add_argument(
        "--replicas",
        type=lambda text: [int(word) for word in text.split(",") if word],
        default=[1, 2, 4, 8],
        metavar="N,N",
    )
    parser.add_argument("--drop-caches", action="store_true")
    return parser.parse_args()


def starts(app: str, folder: Path, deployment: Deployment, runs: int, *, drop_caches: bool) -> dict[str, object]:
    """Time cold and restored starts in turn, and the parts of each restore; seconds."""
    model, port = deployment.model.served_name, deployment.port
    cold, restored, parts = [], [], []
    for _ in range(runs):
        if drop_caches:
            drop()
        with running(command("up", app, "--backend", "none")) as (process, began):
            cold.append(first_token(process, began, port=port, model=model, timeout_s=COLD_LIMIT_S).first_token_s)
        if drop_caches:
            drop()
        with running(command("snapshot", "restore", str(folder), "--json")) as (process, began):
            seen = first_token(process, began, port=port, model=model, timeout_s=60.0)
            assert process.stdout is not None
            parts.append(shares(json.loads(process.stdout.readline()), began, seen.first_token_s))
        restored.append(seen.first_token_s)
    return {
        "cold_s": cold,
        "restored_s": restored,
        "ratio": statistics.median(cold) / statistics.median(restored),
        "parts_s": {name: statistics.median(part[name] for part in parts) for name in parts[0]},
    }


def shares(told: dict[str, object], began: float, first_token_s: float) -> dict[str, float]:
    """The parts of a restore: CRIU, the engine (wake, canary, first answer), and the rest, which is Torpor's own."""
    (replica,) = cast("list[dict[str, object]]", told["replicas"])
    stages = cast("list[dict[str, float]]", replica["stages"])
    served_s = cast("float", told["served_at"]) - began
    criu_s, engine_s = cast("float", replica["criu_s"]), sum(stage["seconds"] for stage in stages)
    return {
        "interpreter_and_imports": cast("float", told["began_at"]) - began,
        "verify": cast("float", told["verify_s"]),
        "sandbox": cast("float", replica["sandbox_s"]) + cast("float", replica["side_files_s"]),
        "criu": criu_s,
        "engine_wake_and_canary": engine_s,
        "engine_first_answer": max(0.0, first_token_s - served_s),
        "own": served_s - criu_s - engine_s,
    }


def drop() -> None:
    """Drop the page cache (proc_sys_vm(5))."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


def image(folder: Path, manifest: Manifest) -> dict[str, object]:
    """The snapshot's size, and whose memory it holds."""
    files = {path: (folder / path).stat().st_blocks * 512 / 1e6 for path in manifest.files}
    pages = sorted(((size, path) for path, size in files.items() if "memory-" in path), reverse=True)
    return {
        "total_mb": sum(files.values()),
        "processes": list(manifest.processes),
        "largest_mb": {path: size for size, path in pages[:8]},
        "folder": str(folder),
    }


def memory(folder: Path, deployment: Deployment, count: int) -> dict[str, object]:
    """Proportional memory (PSS) of this many replicas, MB. Each replica has its own anonymous memory; all share the files'."""
    replicas = restore_snapshot(folder, replicas=count, port=deployment.port)
    try:
        totals = [rollup(one.replica.sandbox) for one in replicas.serving]
    finally:
        replicas.stop()
    anonymous = sum(total["Pss_Anon"] for total in totals)
    files = sum(total["Pss_File"] for total in totals)
    return {"replicas": count, "anonymous_mb": anonymous, "files_mb": files, "each_mb": (anonymous + files) / count}


def rollup(sandbox: Sandbox) -> dict[str, float]:
    """Memory of one sandbox by kind, MB (smaps_rollup in proc(5))."""
    total = {"Pss_Anon": 0.0, "Pss_File": 0.0}
    for pid in sandbox.host_pids().values():
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            name, _, amount = line.partition(":")
            if name in total:
                total[name] += int(amount.split()[0]) / 1024
    return total


def many(folder: Path, count: int) -> dict[str, object]:
    """Restore this many times in a row, each with the canary. The machine must hold the same before and after."""
    before = held()
    times = []
    for _ in range(count):
        started = time.perf_counter()
        replicas = restore_snapshot(folder)
        times.append(time.perf_counter() - started)
        replicas.stop()
    return {"restores": len(times), "median_s": statistics.median(times), "before": before, "after": held()}


def held() -> dict[str, float]:
    """Processes below this one, its descriptors, mounts, working folders, and its own memory in MB."""
    here = psutil.Process()
    run = cache_root() / "run"
    return {
        "processes": len(here.children(recursive=True)),
        "descriptors": here.num_fds(),
        "mounts": len(Path("/proc/self/mounts").read_text().splitlines()),
        "work_folders": len(list(run.iterdir())) if run.is_dir() else 0,
        "memory_mb": round(here.memory_info().rss / 1e6),
    }


def show(results: dict[str, object]) -> None:
    """Print the table."""
    for kind, limit_s in (("warm", RESTORED_LIMIT_S), ("dropped", DROPPED_LIMIT_S)):
        if kind in results:
            timed = cast("dict[str, object]", results[kind])
            cold, restored = cast("list[float]", timed["cold_s"]), cast("list[float]", timed["restored_s"])
            print(
                f"page cache {kind}: cold {statistics.median(cold):.2f} s, restored {statistics.median(restored):.3f} s"
            )
            print(f"    (limit {limit_s:g} s), ratio {timed['ratio']:.1f}")
            for name, seconds in cast("dict[str, float]", timed["parts_s"]).items():
                print(
                    f"    {name:<26} {seconds * 1000:7.1f} ms" + (f" (limit {OWN_LIMIT_S * 1000:g})" * (name == "own"))
                )
    seen = cast("dict[str, object]", results["image"])
    print(f"image {seen['total_mb']:.0f} MB (limit {IMAGE_LIMIT_MB:g})")
    for one in cast("list[dict[str, float]]", results["memory"]):
        print(
            f"{one['replicas']:>3} replicas: {one['anonymous_mb']:.0f} MB anonymous, {one['files_mb']:.0f} MB files, "
            f"{one['each_mb']:.0f} MB each"
        )
    if "many" in results:
        print(f"in a row: {results['many']}")
    print(f"written to {RESULTS.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
