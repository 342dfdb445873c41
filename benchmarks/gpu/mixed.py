"""The first requests after a restore, of many shapes: whether the engine still compiles kernels for them.

`fast_warmup` compiles a selection of batch shapes ahead of any request. What it leaves out would show here: as files in the folders
of compiled kernels, and as slow requests.
"""

from __future__ import annotations

import random
import statistics
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import httpx
from benchmarks.gpu.common import MODEL, captured, gpu_places, restored

from torpor.app_file import load_app
from torpor.platforms.local.snapshots import restore_snapshot
from torpor.snapshots.store.paths import cache_root

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["compiled_files", "mixed", "shapes"]

REQUESTS = 200
_WAVES = (1, 2, 3, 5, 8, 13, 21, 34, 48, 65)
"""Requests at once, one wave after the other: `REQUESTS` together."""
_WORDS, _TOKENS = (4, 1500), (1, 64)
_SEED = 20261201
_REQUEST_LIMIT_S = 120.0


def shapes() -> list[list[tuple[int, int]]]:
    """Words of the prompt and tokens of the answer, for each request of each wave; the same in every run."""
    chosen = random.Random(_SEED)
    return [[(_between(chosen, *_WORDS), _between(chosen, *_TOKENS)) for _ in range(count)] for count in _WAVES]


def _between(chosen: random.Random, least: int, most: int) -> int:
    """A number whose logarithm is evenly spread: short prompts are as frequent as long ones."""
    share: float = (most / least) ** chosen.random()
    return round(least * share)


def compiled_files(name: str) -> dict[str, int]:
    """Files in each folder of compiled kernels of a deployment."""
    kernels = cache_root() / "images" / name / "kernels"
    folders = sorted(one for one in kernels.iterdir() if one.is_dir()) if kernels.is_dir() else []
    return {folder.name: sum(file.is_file() for file in folder.rglob("*")) for folder in folders}


def mixed(app: Path, folder: Path, restores: int, port: int) -> dict[str, object]:
    """Capture, restore, then send the requests to one more replica; count the compiled files before and after."""
    name = load_app(str(app)).deployment.name
    before = compiled_files(name)
    figures = {**captured(app, folder), **restored(folder, restores, port)}
    made = compiled_files(name)
    replicas = restore_snapshot(folder, gpus=gpu_places(), port=port)
    try:
        waves = [_wave(port, wave) for wave in shapes()]
    finally:
        replicas.stop()
    after = compiled_files(name)
    seconds = [second for wave in waves for second, _ in wave]
    codes = [code for wave in waves for _, code in wave]
    return {
        **figures,
        "compiled_files": {"before": before, "at_capture": made, "after_requests": after},
        "compiled_by_requests": sum(after.values()) - sum(made.values()),
        "requests_asked": len(codes),
        "requests_finished": sum(code == httpx.codes.OK for code in codes),
        "requests_failed": dict(Counter(str(code) for code in codes if code != httpx.codes.OK)),
        "request_s": [round(second, 4) for second in seconds],
        "slowest_s": max(seconds),
        "waves": [
            {"requests": len(wave), "median_s": statistics.median(second for second, _ in wave)} for wave in waves
        ],
    }


def _wave(port: int, wave: list[tuple[int, int]]) -> list[tuple[float, int | str]]:
    """Send the requests of a wave at once; seconds and status of each."""
    with ThreadPoolExecutor(len(wave)) as pool:
        return list(pool.map(lambda shape: _ask(port, *shape), wave))


def _ask(port: int, words: int, tokens: int) -> tuple[float, int | str]:
    """One sampled chat; its seconds and status, or why there was no answer."""
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": " ".join(f"word{number % 97}" for number in range(words))}],
        "max_tokens": tokens,
        "temperature": 1.0,
    }
    began = time.perf_counter()
    code: int | str
    try:
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        answer = httpx.post(url, json=body, timeout=_REQUEST_LIMIT_S, trust_env=False)
        while answer.status_code == httpx.codes.SERVICE_UNAVAILABLE and time.perf_counter() - began < _REQUEST_LIMIT_S:
            time.sleep(float(answer.headers.get("retry-after", "1")))  # as the usual clients do
            answer = httpx.post(url, json=body, timeout=_REQUEST_LIMIT_S, trust_env=False)
        code = answer.status_code if answer.is_success else f"{answer.status_code} {answer.text[:200]}"
    except httpx.HTTPError as error:
        code = type(error).__name__
    return time.perf_counter() - began, code
