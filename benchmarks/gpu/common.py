"""What the rows of the GPU benchmark share: restores by the command, questions to a server, and the machine's GPUs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import statistics
import subprocess
import threading
import time
from typing import TYPE_CHECKING, cast

import httpx
from benchmarks.local import shares

from torpor.cli.timing import command, first_token, running
from torpor.runtime.canary import canary_summary
from torpor.snapshots.gpu.choice import named_gpus
from torpor.snapshots.gpu.driver import look
from torpor.snapshots.store.stored import inspect

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torpor.snapshots.gpu.placement import GpuPlace

MODEL = "qwen3-8b-fp8"
SAMPLED, SAMPLED_TOKENS = 32, 32
DECODED_TOKENS = 256
COLD_LIMIT_S, RESTORE_LIMIT_S = 580.0, 90.0
LOG_LINES = (
    "torpor_sglang:",
    "Capture",
    "Load weight end",
    "Memory pool end",
    "max_total_num_tokens",
    "DeepGEMM JIT Comp",
)


def all_gpus() -> tuple[str, ...]:
    """The GPUs that `--gpus` names; empty for all of the machine."""
    return tuple(json.loads(os.environ.get("TORPOR_GPU_BENCH", "{}")).get("gpus", ()))


def own_gpus() -> tuple[str, ...]:
    """Those of them that one engine of this row takes."""
    return all_gpus()[: json.loads(os.environ.get("TORPOR_GPU_BENCH", "{}")).get("ranks", 1)]


def gpu_words(names: Sequence[str]) -> tuple[str, ...]:
    """The option of a command that starts an engine on these GPUs; empty for none."""
    return ("--gpus", ",".join(names)) if names else ()


def gpu_places() -> tuple[GpuPlace, ...]:
    """The GPUs of a server that this process starts."""
    return named_gpus("--gpus", own_gpus(), look()) if own_gpus() else ()


def created(app: Path, folder: Path) -> float:
    """Capture a snapshot with the command; seconds.

    Raises:
        RuntimeError: it failed; has the end of what it said.
    """
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    begun = time.monotonic()
    made = subprocess.run(
        command("snapshot", "create", str(app), str(folder), *gpu_words(own_gpus())),
        capture_output=True,
        text=True,
        timeout=COLD_LIMIT_S,
        check=False,
    )
    if made.returncode != 0:
        raise RuntimeError(f"the capture failed: {made.stderr[-6000:]}")
    return time.monotonic() - begun


def captured(app: Path, folder: Path) -> dict[str, object]:
    """Capture a new snapshot in place of an old one, and what is known of it."""
    shutil.rmtree(folder, ignore_errors=True)
    created_s = created(app, folder)
    manifest = inspect(folder)
    return {
        "cold_ready_s": ready_s(folder),
        "created_s": created_s,
        "stages_s": {stage.stage: stage.seconds for stage in manifest.stages},
        "image_bytes": manifest.image_bytes,
        "largest": largest(folder),
        "canary": canary_summary(manifest.canary),
    }


def ready_s(folder: Path) -> float:
    """Seconds of the cold start before the capture."""
    stages = {stage.stage: stage.seconds for stage in inspect(folder).stages}
    return stages["launch"] + stages["ready"]


def restored(
    folder: Path, restores: int, port: int, *, words: Sequence[str] = (), look: Callable[[], object] | None = None
) -> dict[str, object]:
    """Restore again and again: seconds from the start of the command to the first token, the parts of each, the answers.

    Args:
        folder: the snapshot.
        restores: how often.
        port: where the replica serves.
        words: further words of the command; by default the GPUs of this row.
        look: called while each replica serves; what it returns is listed as `seen`.
    """
    times, parts, texts, seen_each = [], [], set(), []
    for _ in range(restores):
        with running(command("snapshot", "restore", str(folder), "--json", *(words or gpu_words(own_gpus())))) as (
            process,
            began,
        ):
            seen = first_token(process, began, port=port, model=MODEL, timeout_s=RESTORE_LIMIT_S, tokens=16)
            assert process.stdout is not None
            told = json.loads(process.stdout.readline())
            seen_each.append(look() if look else None)
        times.append(seen.first_token_s)
        texts.add(seen.text)
        parts.append({**shares(told, began, seen.first_token_s), **details(told["replicas"][0])})
    return {
        "restored_s": times,
        "parts_s": {name: statistics.median(part[name] for part in parts) for name in parts[0]},
        "parts_each": parts,
        "texts": sorted(texts),
        **({"seen": seen_each} if look else {}),
    }


def details(replica: dict[str, object]) -> dict[str, float]:
    """The stages of one replica, seconds."""
    found = {name: value for name, value in replica.items() if name.endswith("_s") and isinstance(value, float)}
    for stage in cast("list[dict[str, object]]", replica["stages"]):
        found[str(stage["stage"])] = float(cast("float", stage["seconds"]))
    return found


def decoded(port: int) -> dict[str, object]:
    """One stream of greedy tokens: how many came each second after the first, and their text as a hash."""
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Tell me about the number 7."}],
        "max_tokens": DECODED_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    text, first, last, tokens, pieces = "", 0.0, 0.0, 0, 0
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, timeout=120.0, trust_env=False) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            chunk = json.loads(line.removeprefix("data: "))
            tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
            piece = "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
            if piece:
                last = time.perf_counter()
                first, text, pieces = first or last, text + piece, pieces + 1
    count = tokens or pieces
    rate = (count - 1) / (last - first) if last > first else None
    return {"tokens": count, "tokens_per_s": rate, "text": hashlib.sha256(text.encode()).hexdigest()[:16]}


def ask(port: int, began: float, *, limit_s: float = 30.0) -> float:
    """Seconds from `began` to the first token of a streamed answer."""
    with subprocess.Popen(["sleep", "600"], text=True) as idle:  # `first_token` watches a process
        try:
            return first_token(idle, began, port=port, model=MODEL, timeout_s=limit_s).first_token_s
        finally:
            idle.kill()


def sampled(port: int) -> list[int]:
    """Many sampled requests at once; the status of each."""
    codes: list[int] = []

    def send(number: int) -> None:
        body = {
            "model": MODEL,
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


def used_mib() -> list[int]:
    """Memory that is in use on each GPU, MiB."""
    return [int(line) for line in gpu_query("memory.used")]


def machine() -> dict[str, object]:
    """What the figures are of."""
    return {
        "gpu": gpu_query("name")[0],
        "gpus": len(gpu_query("name")),
        "driver": gpu_query("driver_version")[0],
        "gpu_mib": int(gpu_query("memory.total")[0]),
        "cpus": os.cpu_count(),
        "kernel": os.uname().release,
        "memory_gb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9,
    }
