"""Cold, restored and waking starts of the real SGLang with Qwen3-8B-FP8 on one Hopper card.

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
    vllm-1      vLLM in place of SGLang (vllm_app.py), the weights read from safetensors and kept in the snapshot
    vllm-2      the same, the weights dropped by the sleep and read from safetensors again after the restore
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

import httpx
import structlog
from benchmarks.gpu.chart import write_chart
from benchmarks.local import shares

from torpor.app_file import load_app
from torpor.cli.timing import command, first_token, running
from torpor.engine.process import LOG_VARIABLE
from torpor.platforms.local.backends import NoSnapshot, Standby
from torpor.platforms.local.server import LocalServer
from torpor.platforms.local.snapshots import restore_snapshot
from torpor.snapshots.criu.program import boot_id
from torpor.snapshots.store.paths import cache_root
from torpor.snapshots.store.stored import inspect
from torpor.telemetry.stage_report import StageReport

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torpor.engine.handle import Engine

ROOT = Path(__file__).resolve().parents[2]
APP = Path(__file__).with_name("app.py")
RESULTS = ROOT / "benchmarks" / "results" / "gpu.json"
SAMPLED, SAMPLED_TOKENS = 32, 32
COLD_LIMIT_S, RESTORE_LIMIT_S = 580.0, 90.0
KERNELS = ("deep_gemm", "triton", "tvm-ffi")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
LOG_LINES = (
    "torpor_sglang:",
    "Capture",
    "Load weight end",
    "Memory pool end",
    "max_total_num_tokens",
    "DeepGEMM JIT Comp",
)

PLAIN: dict[str, object] = {"prefill_graphs": False}
OUTSIDE: dict[str, object] = {**PLAIN, "weights_store": "file"}
PROFILE: dict[str, object] = {**OUTSIDE, "cuda_graph_max_batch": 32}
PINNED: dict[str, object] = {**PLAIN, "weights_store": "memory", "release_graphs": True}


@dataclass(frozen=True)
class Row:
    """One configuration and what is done with it."""

    kind: str
    options: dict[str, object] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    app: str = "app.py"


# What the options of the DeepGEMM plugin set; the plugin itself would compile in a build step, ahead of the start.
FAST = {"SGLANG_JIT_DEEPGEMM_FAST_WARMUP": "1"}
LAZY = {"SGLANG_JIT_DEEPGEMM_PRECOMPILE": "0"}
ROWS = {
    "flagship": Row("criu", OUTSIDE),
    "profile": Row("criu", PROFILE),
    "standby": Row("standby", PINNED),
    "saver": Row("criu", PLAIN),
    "kv-only": Row("standby", {**PLAIN, "sleep_tags": ["kv_cache"]}),
    "loaded": Row("criu", {**OUTSIDE, "dummy_weights": False}),
    "cold": Row("cold", PROFILE),
    **{f"cold-{name}": Row("cold", PROFILE, without=(name,)) for name in KERNELS},
    "cold-all": Row("cold", PROFILE, without=KERNELS),
    "cold-fast": Row("cold", PROFILE, env=FAST),
    "cold-lazy": Row("cold", PROFILE, env=LAZY),
    "cold-deep_gemm-fast": Row("cold", PROFILE, without=("deep_gemm",), env=FAST),
    "cold-deep_gemm-lazy": Row("cold", PROFILE, without=("deep_gemm",), env=LAZY),
    "huge-pages": Row("huge-pages", PROFILE),
    "vllm-1": Row("criu", {"level": 1}, app="vllm_app.py"),
    "vllm-2": Row("criu", {"level": 2}, app="vllm_app.py"),
}


def main() -> None:
    """Run what is asked for and not there yet; print the table."""
    options = parse()
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])
    options.results.parent.mkdir(parents=True, exist_ok=True)
    results = json.loads(options.results.read_text()) if options.results.exists() else {"rows": {}}
    results["machine"] = machine()
    for name in options.rows:
        if name in results["rows"] and "error" not in results["rows"][name]:
            continue
        started = time.monotonic()
        try:
            figures = measure(name, options)
        except Exception as error:  # the next row may do; what was seen is kept
            figures = {"error": f"{type(error).__name__}: {error}\n" + "\n".join(getattr(error, "__notes__", ()))}
        figures |= {
            "options": ROWS[name].options,
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
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--model", type=Path, default=Path("/tmp/qwen3-8b-fp8"))
    parser.add_argument("--snapshots", type=Path, default=Path("/tmp/torpor-gpu-bench"))
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    if unknown := set(options.rows) - set(ROWS):
        parser.error(f"no such row: {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    return options


def measure(name: str, options: argparse.Namespace) -> dict[str, object]:
    """The figures of one row."""
    row = ROWS[name]
    varied = {
        "gpu": gpu_query("name")[0].split()[1],
        "model": str(options.model),
        "python": sys.executable,
        "port": options.port,
        "options": row.options,
    }
    os.environ["TORPOR_GPU_BENCH"] = json.dumps(varied)
    if row.kind == "standby":
        return standby(options.restores)
    if row.kind == "cold":
        return cold(row, log=options.results.with_name(f"{name}.log"))
    if row.kind == "huge-pages":
        return huge_pages(options.snapshots, options.restores, options.port)
    return snapshot(options.snapshots, options.restores, options.port, APP.with_name(row.app))


def snapshot(parent: Path, restores: int, port: int, app: Path = APP) -> dict[str, object]:
    """Capture once, then restore: from the start of the command to the first token."""
    folder = parent / "snapshot"
    shutil.rmtree(folder, ignore_errors=True)
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    begun = time.monotonic()
    made = subprocess.run(
        command("snapshot", "create", str(app), str(folder)),
        capture_output=True,
        text=True,
        timeout=COLD_LIMIT_S,
        check=False,
    )
    if made.returncode != 0:
        raise RuntimeError(f"the capture failed: {made.stderr[-6000:]}")
    created_s = time.monotonic() - begun
    manifest = inspect(folder)
    stages = {stage.stage: stage.seconds for stage in manifest.stages}
    return {
        "cold_ready_s": stages["launch"] + stages["ready"],
        "created_s": created_s,
        "stages_s": stages,
        "image_bytes": manifest.image_bytes,
        "largest": largest(folder),
        **restored(folder, restores, port),
        "canary": manifest.canary_text,
        "log": interesting((folder / "logs" / "engine.log").read_text().splitlines()),
        **once_more(folder, port),
    }


def restored(folder: Path, restores: int, port: int) -> dict[str, object]:
    """Restore again and again: seconds from the start of the command to the first token, the parts of each, the answers."""
    times, parts, texts = [], [], set()
    for _ in range(restores):
        with running(command("snapshot", "restore", str(folder), "--json")) as (process, began):
            seen = first_token(process, began, port=port, model="qwen3-8b-fp8", timeout_s=RESTORE_LIMIT_S, tokens=16)
            assert process.stdout is not None
            told = json.loads(process.stdout.readline())
        times.append(seen.first_token_s)
        texts.add(seen.text)
        parts.append({**shares(told, began, seen.first_token_s), **details(told)})
    return {
        "restored_s": times,
        "parts_s": {name: statistics.median(part[name] for part in parts) for name in parts[0]},
        "parts_each": parts,
        "texts": sorted(texts),
    }


def huge_pages(parent: Path, restores: int, port: int) -> dict[str, object]:
    """The restores of one snapshot with transparent huge pages as they are, `always`, and as they were."""
    figures = snapshot(parent, restores, port)
    before = HUGE_PAGES.read_text().partition("[")[2].partition("]")[0]
    HUGE_PAGES.write_text("always")
    try:
        always = restored(parent / "snapshot", restores, port)
    finally:
        HUGE_PAGES.write_text(before)
    return {**figures, "huge_pages": before, "always": always, "again": restored(parent / "snapshot", restores, port)}


def details(told: dict[str, object]) -> dict[str, float]:
    """The stages of one replica, seconds."""
    (replica,) = cast("list[dict[str, object]]", told["replicas"])
    found = {name: value for name, value in replica.items() if name.endswith("_s") and isinstance(value, float)}
    for stage in cast("list[dict[str, object]]", replica["stages"]):
        found[str(stage["stage"])] = float(cast("float", stage["seconds"]))
    return found


def once_more(folder: Path, port: int) -> dict[str, object]:
    """One more restore, for what is not timed: sampled requests at once, the engine's own lines, the GPU's memory."""
    replicas = restore_snapshot(folder, port=port)
    try:
        answers = sampled(port)
        return {
            "sampled_finished": sum(code == httpx.codes.OK for code in answers),
            "sampled_asked": len(answers),
            "gpu_serving_mib": used_mib(),
            "restored_log": interesting(replicas.serving[0].replica.sandbox.log_tail()),
        }
    finally:
        replicas.stop()


def standby(wakes: int) -> dict[str, object]:
    """Sleeps and wakes in one process: from the call to the first token; the GPU's memory while asleep."""
    empty = used_mib()
    deployment = load_app(str(APP)).deployment
    server = LocalServer(deployment, backend=Standby(), report=StageReport(), cold_on_failed_wake=False)
    times, asleep, serving, stages = [], [], [], list[dict[str, float]]()
    try:
        server.start()
        engine = server.boot.running_engine
        records = server.boot.report.records
        cold = {record.stage: record.seconds for record in records if record.boot == "cold"}
        for _ in range(wakes):
            serving.append(used_mib() - empty)
            server.sleep()
            asleep.append(used_mib() - empty)
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
    os.environ |= {**row.env, LOG_VARIABLE: str(log)}
    server = LocalServer(deployment, backend=NoSnapshot(), report=StageReport())
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
        for name in (*row.env, LOG_VARIABLE):
            del os.environ[name]
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


def ask(port: int, began: float, *, limit_s: float = 30.0) -> float:
    """Seconds from `began` to the first token of a streamed answer."""
    with subprocess.Popen(["sleep", "600"], text=True) as idle:  # `first_token` watches a process
        try:
            return first_token(idle, began, port=port, model="qwen3-8b-fp8", timeout_s=limit_s).first_token_s
        finally:
            idle.kill()


def sampled(port: int) -> list[int]:
    """Many sampled requests at once; the status of each."""
    codes: list[int] = []

    def send(number: int) -> None:
        body = {
            "model": "qwen3-8b-fp8",
            "messages": [{"role": "user", "content": f"Tell me about the number {number}."}],
            "max_tokens": SAMPLED_TOKENS,
            "temperature": 1.0,
        }
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        codes.append(httpx.post(url, json=body, timeout=60.0, trust_env=False).status_code)

    threads = [threading.Thread(target=send, args=(number,)) for number in range(SAMPLED)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return codes


def lines_of(engine: Engine) -> Sequence[str]:
    """What the engine printed last."""
    return engine.log_tail()


def interesting(lines: Sequence[str]) -> list[str]:
    """Those of the engine's lines that tell where time and memory went."""
    return [line for line in lines if any(word in line for word in LOG_LINES)][-30:]


def largest(folder: Path) -> dict[str, float]:
    """The largest files of a snapshot, MB."""
    sizes = sorted(
        ((file.stat().st_size / 1e6, file.name) for file in folder.rglob("*") if file.is_file()), reverse=True
    )
    return {name: round(size, 1) for size, name in sizes[:8]}


def gpu_query(what: str) -> list[str]:
    """A line for each GPU, from nvidia-smi."""
    argv = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits"]
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30).stdout.strip().splitlines()


def used_mib() -> int:
    """Memory of the first GPU that is in use, MiB."""
    return int(gpu_query("memory.used")[0])


def machine() -> dict[str, object]:
    """What the figures are of."""
    return {
        "gpu": gpu_query("name")[0],
        "driver": gpu_query("driver_version")[0],
        "gpu_mib": int(gpu_query("memory.total")[0]),
        "cpus": os.cpu_count(),
        "kernel": os.uname().release,
        "memory_gb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9,
    }


def show(results: dict[str, dict[str, object]]) -> None:
    """The table."""
    print(results["machine"])
    for name, row in results["rows"].items():
        figures = cast("dict[str, object]", row)
        if "error" in figures:
            print(f"{name}: {str(figures['error'])[:2000]}")
            continue
        cold = cast("float", figures["cold_ready_s"])
        if "first_token_s" in figures:
            print(f"{name}: cold start {cold:.1f} s to ready, {figures['first_token_s']:.1f} s to the first token")
            continue
        times = cast("list[float]", figures.get("restored_s") or figures.get("woken_s"))
        print(
            f"{name}: cold start {cold:.1f} s to ready; back in {statistics.median(times):.2f} s (median of {len(times)}: "
            f"{', '.join(f'{one:.2f}' for one in times)}), {cold / statistics.median(times):.0f} times as fast"
        )
        if "image_bytes" in figures:
            print(f"    image {cast('int', figures['image_bytes']) / 1e9:.2f} GB")
        if "gpu_asleep_mib" in figures:
            print(f"    GPU memory asleep {figures['gpu_asleep_mib']} MiB, serving {figures['gpu_serving_mib']} MiB")
        for other in ("always", "again"):
            if other in figures:
                more = cast("list[float]", cast("dict[str, object]", figures[other])["restored_s"])
                print(f"    {other}: {statistics.median(more):.2f} s ({', '.join(f'{one:.2f}' for one in more)})")
        print(f"    sampled requests finished: {figures['sampled_finished']} of {figures['sampled_asked']}")
        for part, seconds in cast("dict[str, float]", figures["parts_s"]).items():
            print(f"    {part:<26} {seconds:8.3f} s")


if __name__ == "__main__":
    main()
