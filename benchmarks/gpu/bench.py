"""Cold, restored and waking starts of the real SGLang and the real vLLM with Qwen3-8B-FP8 on Hopper cards.

    python3 -m benchmarks.gpu.bench [--rows flagship,profile,standby] [--restores 5] [--results FILE]

Run it on the machine with the card, as root, with the engine's Python (Torpor and SGLang importable), and with a model from
`benchmarks/gpu/make_model.py`. Every row is written to FILE as soon as it is done, and a row that is there is not run again:
on a machine that allows ten minutes a command, several commands give one file. Each row names its configuration and the
machine's boot; compare seconds only within one of them.

    flagship    the flagship's flags with the weights outside of the snapshot: capture, then restores
    profile     the same with the snapshot profile: fewer graph sizes
    saver       the flagship's flags with SGLang's own backup of the weights inside of the snapshot
    standby     the flagship's flags, weights and graphs pinned: sleeps and wakes in one process
    kv-only     standby that releases the KV cache alone
    loaded      as flagship, with the weights read from safetensors
    huge-pages  as profile, restored once more with transparent huge pages `always`, and again as the machine had them
    cold        a cold start alone, with the profile's flags; cold-deep_gemm, cold-triton, cold-tvm-ffi, cold-all without that
                folder of compiled kernels, which is put back afterwards; cold-fast and cold-deep_gemm-fast with DeepGEMM's
                short list of batch shapes (`DeepGEMM(fast_warmup=True)`), cold-lazy and cold-deep_gemm-lazy with none
                (`DeepGEMM(precompile=False)`). The engine's whole log of each goes beside FILE.
    mixed-full  as flagship, and then the first 200 requests of mixed shapes to a restored replica, with the number of compiled
                files before and after; mixed-fast the same with DeepGEMM's short lists. `fast-warmup` stands for both.
    vllm-2      vLLM in place of SGLang: its weights dropped by the sleep and read from safetensors again after the restore
    vllm-1      the same, the weights kept in the snapshot
    switch      two deployments that do not fit on the card together, at one address (`torpor serve`): requests to them in turn

Rows for several GPUs; one that needs more GPUs than the machine has is skipped with a sentence:

    tp2-own     two GPUs share the model, no snapshot is wanted, so SGLang chooses its all-reduce: speed of one stream
    tp2-cold    the same with the settings that a snapshot wants
    tp2         capture, then restores; each replica decodes 256 greedy tokens
    tp2-many    20 restores of that snapshot in a row; the memory of each GPU must not grow
    tp2-standby 50 sleeps and wakes in one process
    spread      one snapshot of one GPU: a replica on each GPU at once, then one replica on each other GPU (one GPU: two on it)
    tp4-...     the same as tp2-... with four GPUs; tp4-swapped: its ranks on the GPUs in the opposite order
    tp4-32b     the shape of Qwen3-32B-FP8 on four GPUs; tp4-32b-cold: how fast its flags decode without a snapshot
    tp2-pairs   as spread, with replicas of two GPUs each
    vllm-tp2    as tp2, with vLLM

`vllm`, `tp2-all`, `tp4-all` and `several` stand for several rows. `--gpus 2,3` uses these GPUs only; a row's engine takes the first
of them, as many as it needs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, cast

import httpx
import structlog
from benchmarks.gpu import several
from benchmarks.gpu.chart import write_chart
from benchmarks.gpu.common import (
    COLD_LIMIT_S,
    ask,
    captured,
    gpu_places,
    gpu_query,
    interesting,
    machine,
    restored,
    sampled,
    used_mib,
)
from benchmarks.gpu.mixed import mixed
from benchmarks.gpu.rows import GROUPS, ROWS
from benchmarks.gpu.switch import switched
from benchmarks.ran import what_ran

from torpor.app_file import load_app
from torpor.engine.process import LOG_VARIABLE
from torpor.platforms.local.backends import NoSnapshot, Standby
from torpor.platforms.local.server import LocalServer
from torpor.platforms.local.snapshots import restore_snapshot
from torpor.snapshots.criu.program import boot_id
from torpor.snapshots.gpu.choice import split_names
from torpor.snapshots.store.paths import cache_root
from torpor.telemetry.stage_report import StageReport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from benchmarks.gpu.rows import Row

    from torpor.engine.handle import Engine

ROOT = Path(__file__).resolve().parents[2]
APP = Path(__file__).with_name("app.py")
RESULTS = ROOT / "benchmarks" / "results" / "gpu.json"
_SHOWN = (
    "tokens_per_s",
    "compiled_by_requests",
    "slowest_s",
    "same_text",
    "grown_mib",
    "grown_asleep_mib",
    "left_mib",
    "gpu_asleep_mib",
)
_REAL: dict[str, object] = {"dummy_weights": False, "attention_backend": None, "extra_args": []}
"""What a machine with the engine's own image and the real weights has, and the others' slim installations lack."""
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def main() -> None:
    """Run what is asked for and not there yet; print the table."""
    options = parse()
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])
    options.results.parent.mkdir(parents=True, exist_ok=True)
    results = json.loads(options.results.read_text()) if options.results.exists() else {"rows": {}}
    results["machine"] = machine()
    results["kind"] = (
        f"{gpu_query('name')[0].split()[1].lower()}-real" if options.real else gpu_query("name")[0].split()[1].lower()
    )
    for name in options.rows:
        if name in results["rows"] and not {"error", "skipped"} & set(results["rows"][name]):
            continue
        started = time.monotonic()
        try:
            figures = skipped(name, options.gpus) or unmade(name, options) or measure(name, options)
        except Exception as error:  # the next row may do; what was seen is kept
            figures = {"error": f"{type(error).__name__}: {error}\n" + "\n".join(getattr(error, "__notes__", ()))}
        figures |= {
            "options": ROWS[name].options,
            "engine_args": options.engine_args,
            "real_weights": options.real,
            "ran": what_ran(name),
            "env": ROWS[name].env,
            "machine_boot": boot_id()[:8],
            "at": time.time(),
            "took_s": time.monotonic() - started,
        }
        results["rows"][name] = figures
        options.results.write_text(json.dumps(results, indent=1) + "\n")
        print(json.dumps({name: figures}), flush=True)
    show(results)
    write_chart(results, options.results.with_suffix(".svg"))


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=lambda text: text.split(","), default=["flagship", "profile", "standby"])
    parser.add_argument("--restores", type=int, default=5)
    parser.add_argument("--many", type=int, default=20, help="restores in a row of rows tp2-many and tp4-many")
    parser.add_argument("--cycles", type=int, default=50, help="sleeps and wakes of rows tp2-standby and tp4-standby")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--model", type=Path, default=Path("/tmp/qwen3-8b-fp8"))
    parser.add_argument("--model-32b", type=Path, default=Path("/tmp/qwen3-32b-fp8"), help="of the rows tp4-32b...")
    parser.add_argument("--snapshots", type=Path, default=Path("/tmp/torpor-gpu-bench"))
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--version", default="", help="the engine's version; by default 0.5.16, or the newest vLLM")
    parser.add_argument(
        "--stand-in", action="store_true", help="a trial of the rows' code: the stand-in, without a GPU"
    )
    parser.add_argument(
        "--real",
        action="store_true",
        help="the model has its own weights; the engine chooses attention and grammar itself",
    )
    parser.add_argument("--engine-args", default="", help='further flags of the engine, as one text: "--flag value"')
    parser.add_argument(
        "--gpus",
        type=lambda text: split_names("--gpus", text),
        default=(),
        help="the GPUs to use, e.g. 2,3: a row's engine takes the first ones, as many as it needs; by default all of the machine",
    )
    options = parser.parse_args()
    options.rows = [row for name in options.rows for row in GROUPS.get(name, (name,))]
    if unknown := set(options.rows) - set(ROWS):
        parser.error(f"no such row: {', '.join(sorted(unknown))}; there are {', '.join((*ROWS, *GROUPS))}")
    return options


def skipped(name: str, gpus: Sequence[str] = ()) -> dict[str, object]:
    """Why a row cannot be measured on this machine, or on these GPUs of it; empty if it can."""
    if gpus and ROWS[name].kind == "switch":
        return {"skipped": "its server chooses GPUs itself; leave --gpus out"}
    if gpus and len(gpus) < ROWS[name].gpus:
        return {"skipped": f"it needs {ROWS[name].gpus} GPUs, and --gpus names {len(gpus)}"}
    there, needed = len(gpu_query("name")), ROWS[name].gpus
    return {"skipped": f"it needs {needed} GPUs, and this machine has {there}"} if there < needed else {}


def unmade(name: str, options: argparse.Namespace) -> dict[str, object]:
    """Says that the row's model is not there, and how to make it; empty if it is."""
    folder, shape = model_of(ROWS[name], options), ROWS[name].shape
    made_by = f"python3 -m benchmarks.gpu.make_model {folder} --shape {shape}"
    return {} if folder.is_dir() else {"skipped": f"there is no model in {folder}; make it with: {made_by}"}


def model_of(row: Row, options: argparse.Namespace) -> Path:
    """The folder of the row's model."""
    folder: Path = options.model if row.shape == "8b" else options.model_32b
    return folder


def measure(name: str, options: argparse.Namespace) -> dict[str, object]:
    """The figures of one row."""
    row = ROWS[name]
    varied = {
        "gpu": gpu_query("name")[0].split()[1],
        "model": str(model_of(row, options)),
        "python": sys.executable,
        "port": options.port,
        "version": options.version,
        "engine": "standin" if options.stand_in else row.engine,
        "ranks": row.ranks,
        "gpus": options.gpus,
        "gpu_snapshot": False if row.own else None,
        "options": {**row.options, **(_REAL if options.real else {})},
        "flags": options.engine_args.split(),
    }
    os.environ["TORPOR_GPU_BENCH"] = json.dumps(varied)
    folder, restores, port = options.snapshots / "snapshot", options.restores, options.port
    kept = options.snapshots / (row.of or name)
    doings: dict[str, Callable[[], dict[str, object]]] = {
        "criu": lambda: snapshot(folder, restores, port),
        "standby": lambda: standby(restores),
        "cold": lambda: cold(row, log=options.results.with_name(f"{name}.log")),
        "huge-pages": lambda: huge_pages(folder, restores, port),
        "mixed": lambda: mixed(APP, folder, restores, port),
        "cold-decoded": lambda: several.cold_decoded(APP),
        "shared": lambda: several.shared(APP, kept, restores, port),
        "many": lambda: several.many(kept, port, options.many),
        "swapped": lambda: several.swapped(kept, restores, port),
        "standby-many": lambda: several.standby_many(APP, options.cycles),
        "switch": lambda: switched(varied, restores, port, options.snapshots),
        "spread": lambda: several.spread(APP, kept, restores, port, ranks=row.ranks),
    }
    with variables(row.env):
        return doings[row.kind]()


@contextlib.contextmanager
def variables(env: Mapping[str, str]) -> Iterator[None]:
    """Set a row's variables while it runs: the commands and engines that it starts inherit them."""
    os.environ |= env
    try:
        yield
    finally:
        for name in env:
            del os.environ[name]


def snapshot(folder: Path, restores: int, port: int) -> dict[str, object]:
    """Capture once, then restore: from the start of the command to the first token."""
    return {
        **captured(APP, folder),
        **restored(folder, restores, port),
        "log": interesting((folder / "logs" / "engine.log").read_text().splitlines()),
        **once_more(folder, port),
    }


def huge_pages(folder: Path, restores: int, port: int) -> dict[str, object]:
    """The restores of one snapshot with transparent huge pages as they are, `always`, and as they were."""
    figures = snapshot(folder, restores, port)
    before = HUGE_PAGES.read_text().partition("[")[2].partition("]")[0]
    HUGE_PAGES.write_text("always")
    try:
        always = restored(folder, restores, port)
    finally:
        HUGE_PAGES.write_text(before)
    return {**figures, "huge_pages": before, "always": always, "again": restored(folder, restores, port)}


def once_more(folder: Path, port: int) -> dict[str, object]:
    """One more restore, for what is not timed: sampled requests at once, the engine's own lines, the GPU's memory."""
    replicas = restore_snapshot(folder, gpus=gpu_places(), port=port)
    try:
        answers = sampled(port)
        return {
            "sampled_finished": sum(code == httpx.codes.OK for code in answers),
            "sampled_asked": len(answers),
            "gpu_serving_mib": used_mib()[0],
            "restored_log": interesting(replicas.serving[0].replica.sandbox.log_tail()),
        }
    finally:
        replicas.stop()


def standby(wakes: int) -> dict[str, object]:
    """Sleeps and wakes in one process: from the call to the first token; the GPU's memory while asleep."""
    empty = used_mib()[0]
    deployment = load_app(str(APP)).deployment
    server = LocalServer(
        deployment, backend=Standby(), report=StageReport(), cold_on_failed_wake=False, gpus=gpu_places()
    )
    times, asleep, serving, stages = [], [], [], list[dict[str, float]]()
    try:
        server.start()
        engine = server.boot.running_engine
        records = server.boot.report.records
        cold = {record.stage: record.seconds for record in records if record.boot == "cold"}
        for _ in range(wakes):
            serving.append(used_mib()[0] - empty)
            server.sleep()
            asleep.append(used_mib()[0] - empty)
            before = len(server.boot.report.records)
            began = time.monotonic()
            server.wake()
            times.append(ask(deployment.port, began))
            stages.append({record.stage: record.seconds for record in server.boot.report.records[before:]})
        answers = sampled(deployment.port)
        log = interesting(lines_of(engine))
    finally:
        server.stop()
    return {
        "cold_ready_s": cold["launch"] + cold["ready"],
        "stages_s": cold,
        "woken_s": times,
        "parts_s": {name: statistics.median(stage[name] for stage in stages) for name in stages[0]},
        "gpu_serving_mib": statistics.median(serving),
        "gpu_asleep_mib": statistics.median(asleep),
        "sampled_finished": sum(code == httpx.codes.OK for code in answers),
        "sampled_asked": len(answers),
        "log": log,
    }


def cold(row: Row, log: Path) -> dict[str, object]:
    """A cold start to its first token, some folders of compiled kernels put aside; SGLang compiles them again meanwhile."""
    deployment = load_app(str(APP)).deployment
    kernels = cache_root() / "images" / deployment.name / "kernels"
    aside = [(kernels / name, kernels / f"{name}.aside") for name in row.without if (kernels / name).exists()]
    for there, away in aside:
        there.rename(away)
    log.unlink(missing_ok=True)
    os.environ[LOG_VARIABLE] = str(log)
    server = LocalServer(deployment, backend=NoSnapshot(), report=StageReport(), gpus=gpu_places())
    began = time.monotonic()
    try:
        server.start()
        token_s = ask(deployment.port, began, limit_s=COLD_LIMIT_S)
        stages = {record.stage: record.seconds for record in server.boot.report.records}
    finally:
        server.stop()
        made = {there.name: files_in(there) for there, _ in aside}
        for there, away in aside:
            shutil.rmtree(there, ignore_errors=True)
            away.rename(there)
        del os.environ[LOG_VARIABLE]
    return {
        "cold_ready_s": stages["launch"] + stages["ready"],
        "first_token_s": token_s,
        "stages_s": stages,
        "files_made": made,
        "log": interesting(log.read_text(errors="replace").replace("\r", "\n").splitlines()),
    }


def files_in(folder: Path) -> int:
    """How many files there are in a folder; none where it is not there."""
    return sum(file.is_file() for file in folder.rglob("*"))


def lines_of(engine: Engine) -> Sequence[str]:
    """What the engine printed last."""
    return engine.log_tail()


def show(results: dict[str, dict[str, object]]) -> None:
    """The table."""
    print(results["machine"])
    for name, row in results["rows"].items():
        figures = cast("dict[str, object]", row)
        if without := figures.get("error") or figures.get("skipped"):
            print(f"{name}: {str(without)[:2000]}")
            continue
        show_row(name, figures)
    for count in (2, 4):
        show_decoding(results["rows"], f"tp{count}")
    show_decoding(results["rows"], "tp4-32b")


def show_row(name: str, figures: dict[str, object]) -> None:
    """One row's figures."""
    cold = cast("float", figures["cold_ready_s"])
    times = cast("list[float]", figures.get("restored_s") or figures.get("woken_s") or [])
    if "first_token_s" in figures:
        print(f"{name}: cold start {cold:.1f} s to ready, {figures['first_token_s']:.1f} s to the first token")
    elif not times:
        print(f"{name}: cold start {cold:.1f} s to ready")
    else:
        print(
            f"{name}: cold start {cold:.1f} s to ready; back in {statistics.median(times):.2f} s (median of {len(times)}: "
            f"{', '.join(f'{one:.2f}' for one in times)}), {cold / statistics.median(times):.0f} times as fast"
        )
    if "image_bytes" in figures:
        print(f"    image {cast('int', figures['image_bytes']) / 1e9:.2f} GB")
    for what in _SHOWN:
        if what in figures:
            print(f"    {what} {figures[what]}")
    for other in ("always", "again"):
        if other in figures:
            more = cast("list[float]", cast("dict[str, object]", figures[other])["restored_s"])
            print(f"    {other}: {statistics.median(more):.2f} s ({', '.join(f'{one:.2f}' for one in more)})")
    for gpus, moved in cast("dict[str, dict[str, object]]", figures.get("moved", {})).items():
        print(f"    on GPU {gpus}: {statistics.median(cast('list[float]', moved['restored_s'])):.2f} s")
    if "sampled_asked" in figures:
        print(f"    sampled requests finished: {figures['sampled_finished']} of {figures['sampled_asked']}")
    for part, seconds in cast("dict[str, float]", figures.get("parts_s", {})).items():
        print(f"    {part:<26} {seconds:8.3f} s")


def show_decoding(rows: dict[str, object], name: str) -> None:
    """How fast a restored engine decodes against the same flags cold, and against SGLang's own choice."""
    back = cast("dict[str, float]", rows.get(name, {})).get("tokens_per_s")
    for other, what in ((f"{name}-cold", "the same flags cold"), (f"{name}-own", "SGLang's own choice")):
        cold = cast("dict[str, float]", rows.get(other, {})).get("tokens_per_s")
        if back and cold:
            print(f"{name}: restored, one stream decodes {back / cold:.3f} times as fast as {what}")


if __name__ == "__main__":
    main()
