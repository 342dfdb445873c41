"""What vLLM's sleep mode does on one GPU: seconds, memory, and what a sleeping engine answers.

    python3 -m benchmarks.gpu.vllm_sleep [--model DIR] [--results FILE] [-- FURTHER FLAGS OF vllm serve]

Run it on the machine with the card, with the engine's Python. One engine goes through all steps below, in order; each is
written to FILE as soon as it is done. After a step that ended the engine the next one finds that out, and says so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import psutil
from benchmarks.gpu.common import used_mib

from torpor.errors import EngineRequestError
from torpor.network.chat_stream import ChatStream

if TYPE_CHECKING:
    from collections.abc import Callable

SERVED = "qwen3-8b-fp8"
START_S, CALL_S, PATIENCE_S = 400.0, 120.0, 6.0
CYCLES = 5
ENV = {
    "VLLM_SERVER_DEV_MODE": "1",  # /sleep, /wake_up, /collective_rpc
    "VLLM_NO_USAGE_STATS": "1",
    # What a machine without flashinfer and without a compile of DeepGEMM's kernels wants: FP8 matrices by CUTLASS.
    "VLLM_USE_DEEP_GEMM": "0",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
}
FLAGS = ("--enable-sleep-mode", "--gpu-memory-utilization", "0.85")


class Server:
    """`vllm serve` as a child, its log in a file.

    Args:
        argv: its command line.
        log: where its output goes.
        port: where it serves.
    """

    def __init__(self, argv: list[str], log: Path, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.began = time.monotonic()
        with log.open("w") as sink:
            self.process = subprocess.Popen(
                argv, stdout=sink, stderr=subprocess.STDOUT, env={**os.environ, **ENV}, start_new_session=True
            )

    def call(self, method: str, path: str, body: object = None, timeout_s: float = CALL_S) -> dict[str, object]:
        """One request: status, seconds, and the beginning of the answer; or what became of it."""
        began = time.monotonic()
        try:
            answer = httpx.request(method, self.url + path, json=body, timeout=timeout_s, trust_env=False)
        except httpx.HTTPError as error:
            return {"error": type(error).__name__, "seconds": time.monotonic() - began}
        return {"status": answer.status_code, "seconds": time.monotonic() - began, "text": answer.text[:200]}

    def ready(self) -> float:
        """Wait for /health; seconds since the start."""
        while time.monotonic() - self.began < START_S:
            if self.process.poll() is not None:
                raise RuntimeError(f"vllm serve ended with code {self.process.returncode} before it was ready")
            if self.call("GET", "/health", timeout_s=5.0).get("status") == httpx.codes.OK:
                return time.monotonic() - self.began
            time.sleep(0.1)
        raise RuntimeError(f"vllm serve was not ready after {START_S:g} s")

    def answer(self, timeout_s: float = CALL_S) -> dict[str, object]:
        """A greedy answer of 16 tokens, streamed: seconds to its first token, and its text."""
        body = {
            "model": SERVED,
            "messages": [{"role": "user", "content": "Say hello."}],
            "max_tokens": 16,
            "temperature": 0,
            "stream": True,
        }
        url = f"{self.url}/v1/chat/completions"
        began, stream = time.monotonic(), ChatStream(url)
        try:
            with httpx.stream("POST", url, json=body, timeout=timeout_s, trust_env=False) as response:
                for line in response.iter_lines():
                    stream.take(line)
        except (httpx.HTTPError, EngineRequestError) as error:
            text = "".join(stream.pieces) or stream.last_line[:200]
            return {"error": type(error).__name__, "seconds": time.monotonic() - began, "text": text}
        text = "".join(stream.pieces) or stream.last_line[:200]
        first_s = 0.0 if stream.first_at is None else stream.first_at - began
        return {"status": response.status_code, "first_token_s": first_s, "text": text}

    def resident_gb(self) -> float:
        """Resident memory of the whole tree, GB."""
        leader = psutil.Process(self.process.pid)
        return sum(one.memory_info().rss for one in (leader, *leader.children(recursive=True))) / 1e9

    def stop(self) -> None:
        """End the whole tree."""
        leader = psutil.Process(self.process.pid)
        tree = [leader, *leader.children(recursive=True)]
        leader.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(30)
        for one in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()


def main() -> None:
    """Start the engine and go through the steps."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("/tmp/qwen3-8b-fp8"))
    parser.add_argument("--results", type=Path, default=Path("/tmp/vllm-sleep.json"))
    parser.add_argument("--port", type=int, default=8100)
    parser.add_argument("flags", nargs="*")
    options = parser.parse_args()
    serve = (sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(options.model))
    argv = [*serve, "--served-model-name", SERVED, "--port", str(options.port), *FLAGS, *options.flags]
    results: dict[str, object] = {"argv": argv, "env": ENV, "gpu_empty_mib": used_mib()[0]}
    server = Server(argv, options.results.with_suffix(".log"), options.port)
    try:
        results["ready_s"] = server.ready()
        for name, step in STEPS.items():
            try:
                results[name] = step(server)
            except Exception as error:  # the next step may do; what was seen is kept
                results[name] = {"error": f"{type(error).__name__}: {error}", "process": server.process.poll()}
            options.results.write_text(json.dumps(results, indent=1) + "\n")
            print(json.dumps({name: results[name]}), flush=True)
    finally:
        options.results.write_text(json.dumps(results, indent=1) + "\n")
        server.stop()


def sleep(server: Server, level: int = 1, mode: str = "") -> dict[str, object]:
    """Fall asleep; what the call said, and the GPU's memory after it."""
    told = server.call("POST", f"/sleep?level={level}" + (f"&mode={mode}" if mode else ""))
    return {**told, "gpu_mib": used_mib()[0]}


def wake(server: Server, tags: str = "") -> dict[str, object]:
    """Wake; what the call said, and the GPU's memory after it."""
    told = server.call("POST", "/wake_up" + (f"?tags={tags}" if tags else ""))
    return {**told, "gpu_mib": used_mib()[0]}


def reload(server: Server) -> dict[str, object]:
    """Read the weights again."""
    return server.call("POST", "/collective_rpc", {"method": "reload_weights"})


def awake(server: Server) -> dict[str, object]:
    """Before any sleep."""
    server.answer()  # what the first request compiles or captures is not the steps' business
    return {"gpu_mib": used_mib()[0], "resident_gb": server.resident_gb(), "answer": server.answer()}


def cycles(server: Server, level: int) -> dict[str, object]:
    """Sleeps and wakes in a row; medians, and every answer."""
    asleep, woken, first, reloaded = [], [], [], []
    mib, texts, resident = set[int](), set[str](), 0.0
    for _ in range(CYCLES):
        told = sleep(server, level)
        asleep.append(float(str(told["seconds"])))
        mib.add(int(str(told["gpu_mib"])))
        resident = server.resident_gb()
        began = time.monotonic()
        wake(server, "weights" if level > 1 else "")
        if level > 1:
            reloaded.append(float(str(reload(server)["seconds"])))
            wake(server, "kv_cache")
        woken.append(time.monotonic() - began)
        answer = server.answer()
        first.append(float(str(answer.get("first_token_s", 0.0))))
        texts.add(str(answer.get("text")))
    return {
        "sleep_s": asleep,
        "wake_s": woken,
        "reload_s": reloaded,
        "first_token_s": first,
        "median_wake_to_token_s": statistics.median(a + b for a, b in zip(woken, first, strict=True)),
        "asleep_mib": sorted(mib),
        "resident_asleep_gb": resident,
        "texts": sorted(texts),
    }


def asked_asleep(server: Server) -> dict[str, object]:
    """What routes answer while memory is released."""
    seen: dict[str, object] = {"sleep": sleep(server)}
    for path in ("/is_sleeping", "/health", "/v1/models", "/version", "/metrics"):
        seen[path] = server.call("GET", path, timeout_s=PATIENCE_S)
    return {**seen, "wake": wake(server), "answer": server.answer()}


def by_tags(server: Server) -> dict[str, object]:
    """Wake weights first, the KV cache afterwards."""
    seen: dict[str, object] = {"sleep": sleep(server), "weights": wake(server, "weights")}
    seen["is_sleeping"] = server.call("GET", "/is_sleeping")
    return {**seen, "kv_cache": wake(server, "kv_cache"), "answer": server.answer()}


def twice(server: Server) -> dict[str, object]:
    """A second sleep, a second wake, a tag that is awake already, a tag that does not exist."""
    seen: dict[str, object] = {"sleep": sleep(server), "sleep_again": sleep(server), "deeper": sleep(server, level=2)}
    seen |= {"weights": wake(server, "weights"), "weights_again": wake(server, "weights"), "no_such": wake(server, "x")}
    seen |= {"wake": wake(server, "kv_cache"), "wake_again": wake(server), "answer": server.answer()}
    return seen


def request_asleep(server: Server) -> dict[str, object]:
    """A request that comes while the engine sleeps, and what becomes of it after the wake."""
    seen: dict[str, object] = {"sleep": sleep(server)}
    late: dict[str, object] = {}
    asking = threading.Thread(target=lambda: late.update(server.answer()))
    asking.start()
    asking.join(PATIENCE_S)
    seen |= {"answered_asleep": not asking.is_alive(), "health": server.call("GET", "/health", timeout_s=PATIENCE_S)}
    seen["wake"] = wake(server)
    asking.join(30.0)
    return {**seen, "answered_after_wake": late, "answer": server.answer()}


def in_flight(server: Server, mode: str) -> dict[str, object]:
    """A sleep while a long answer is under way."""
    body = {"model": SERVED, "prompt": "Hello", "max_tokens": 600, "temperature": 0, "ignore_eos": True}
    late: dict[str, object] = {}
    asking = threading.Thread(target=lambda: late.update(server.call("POST", "/v1/completions", body)))
    asking.start()
    time.sleep(1.0)
    seen: dict[str, object] = {"under_way": asking.is_alive(), "sleep": sleep(server, mode=mode)}
    asking.join(2.0)
    seen["ended_asleep"] = not asking.is_alive()
    seen["wake"] = wake(server)
    asking.join(60.0)
    return {**seen, "answered": late, "answer": server.answer()}


def without_reload(server: Server) -> dict[str, object]:
    """Level 2 and a wake that forgets to read the weights; then they are read."""
    seen: dict[str, object] = {"sleep": sleep(server, 2), "wake": wake(server), "garbage": server.answer()}
    seen |= {"reload": reload(server), "answer": server.answer()}
    seen["reset"] = server.call("POST", "/reset_prefix_cache")
    return {**seen, "answer_again": server.answer()}


STEPS: dict[str, Callable[[Server], dict[str, object]]] = {
    "awake": awake,
    "level_1": lambda server: cycles(server, 1),
    "asked_asleep": asked_asleep,
    "by_tags": by_tags,
    "level_2": lambda server: cycles(server, 2),
    "without_reload": without_reload,
    "in_flight_abort": lambda server: in_flight(server, "abort"),
    "in_flight_wait": lambda server: in_flight(server, "wait"),
    "in_flight_keep": lambda server: in_flight(server, "keep"),
    "request_asleep": request_asleep,
    "twice": twice,
}


if __name__ == "__main__":
    main()
