"""What the canary notices on a GPU: damages of the weights in place, under the engine's own kernels and graphs.

    python3 -m benchmarks.gpu.canary --model FOLDER [--dummy] [--damages 100] [--asks 50] [--results FILE] [-- SGLANG FLAGS]

FOLDER is a trained model (`benchmarks/canary_model.py` makes one of 3 MB that a GPU serves, too), or with `--dummy` only the shapes
of one: random weights flatter a canary, so a result of them says what the questions cost, and little about what they notice.
Of the undamaged model the same is asked `--asks` times: each difference beyond the learnt tolerance is a false alarm.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
from benchmarks.engine_start import await_start
from benchmarks.gpu.damaging_serve import KINDS, SUMS_VARIABLE

from torpor.runtime import logprob_canary
from torpor_sglang.logprobs import ask

TEXT_TOKENS, START_S = 16, 540.0


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--dummy", action="store_true")
    parser.add_argument("--damages", type=int, default=100)
    parser.add_argument("--asks", type=int, default=50)
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--results", type=Path)
    parser.add_argument("flags", nargs="*")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="torpor-canary-") as folder:
        report = measured(given, Path(folder))
    if given.results:
        given.results.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({name: value for name, value in report.items() if name != "rows"}, indent=1))


def measured(given: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Start the engine, damage and ask, end it."""
    sums = folder / "sums.json"
    argv = [
        sys.executable,
        "-m",
        "benchmarks.gpu.damaging_serve",
        "--model-path",
        str(given.model),
        "--port",
        str(given.port),
    ]
    argv += ["--host", "127.0.0.1", "--served-model-name", "model", "--skip-server-warmup", *given.flags]
    argv += ["--load-format", "dummy"] if given.dummy else []
    env = {
        **os.environ,
        "TORPOR_UNGUARDED": "1",
        "SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "false",
        SUMS_VARIABLE: str(sums),
    }
    began = time.monotonic()
    with (folder / "engine.log").open("w") as log:
        engine = subprocess.Popen(argv, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{given.port}", timeout=120, trust_env=False) as client:
            await_start(client, engine, folder / "engine.log", START_S)
            started_s = time.monotonic() - began
            report = Questions(client, sums).run(given.damages, given.asks)
    finally:
        os.killpg(engine.pid, signal.SIGKILL)
        engine.wait()
    return {
        "model": str(given.model),
        "dummy": given.dummy,
        "flags": given.flags,
        "started_s": round(started_s, 1),
        **report,
    }


class Questions:
    """Asks the engine and damages its weights.

    Args:
        client: bound to the engine.
        sums: where the engine writes its checksum.
    """

    def __init__(self, client: httpx.Client, sums: Path) -> None:
        self._client = client
        self._sums = sums

    def run(self, damages: int, asks: int) -> dict[str, object]:
        """All damages, and as many questions of the undamaged model as wanted."""
        for _ in range(3):  # compile and capture what the questions need
            self._text()
            self._canary()
        first = [self._canary() for _ in range(logprob_canary.ASKS)]
        spread = max(logprob_canary.difference(first[0], other).size for other in first[1:])
        tolerance = max(logprob_canary.LEAST_DIFFERENCE, logprob_canary.SPREADS * spread)
        text, total = self._text(), self._checked()["sum"]
        seconds: dict[str, list[float]] = {"text": [], "canary": [], "checksum": []}
        apart = []
        for _ in range(asks):
            apart.append(
                self._timed("canary", seconds, lambda: logprob_canary.difference(first[0], self._canary()).size)
            )
            self._timed("text", seconds, self._text)
            seconds["checksum"].append(float(self._checked()["seconds"]))
        rows = []
        for number in range(damages):
            kind = list(KINDS)[number % len(KINDS)]
            self._check_weights(f"damage {kind} {number}")
            size = self._difference(first[0])
            rows.append(
                {
                    "kind": kind,
                    "text": self._text() != text,
                    "canary": size,
                    "checksum": self._checked()["sum"] != total,
                }
            )
            self._check_weights("undo")
        after = self._difference(first[0])
        return {
            "spread": spread,
            "tolerance": tolerance,
            "asks": asks,
            "false_alarms": sum(not size <= tolerance for size in apart),
            "largest_undamaged": max(apart, default=0.0),
            "after_the_last_undo": after,
            "seconds": {name: statistics.median(found) for name, found in seconds.items() if found},
            "damages": len(rows),
            "noticed": {
                "text": sum(bool(row["text"]) for row in rows),
                "canary": sum(not float(str(row["canary"])) <= tolerance for row in rows),
                "checksum": sum(bool(row["checksum"]) for row in rows),
            },
            "missed_by_the_canary": [row["kind"] for row in rows if float(str(row["canary"])) <= tolerance],
            "rows": rows,
        }

    def _difference(self, first: logprob_canary.TokenLogprobs) -> float:
        try:
            size = logprob_canary.difference(first, self._canary()).size
        except Exception as error:
            print(f"the canary's question: {error}", file=sys.stderr)
            return 1e9
        return size if math.isfinite(size) else 1e9

    def _timed(self, name: str, seconds: dict[str, list[float]], act: object) -> float:
        began = time.perf_counter()
        answer = act()  # type: ignore[operator]
        seconds[name].append(time.perf_counter() - began)
        return float(answer) if isinstance(answer, float) else 0.0

    def _canary(self) -> logprob_canary.TokenLogprobs:
        self._client.post("/flush_cache").raise_for_status()
        return ask(self._client, prompt=logprob_canary.PROMPT, tokens=logprob_canary.TOKENS, adapter=None)

    def _text(self) -> str:
        self._client.post("/flush_cache").raise_for_status()
        body = {
            "model": "model",
            "messages": [{"role": "user", "content": "Name the months of the year, in order."}],
            "max_tokens": TEXT_TOKENS,
            "temperature": 0,
        }
        response = self._client.post("/v1/chat/completions", json=body)
        return (
            str(response.json()["choices"][0]["message"]["content"])
            if response.is_success
            else f"{response.status_code}"
        )

    def _checked(self) -> dict[str, object]:
        self._check_weights("sums")
        found: dict[str, object] = json.loads(self._sums.read_text(encoding="utf-8"))
        return found

    def _check_weights(self, action: str) -> None:
        response = self._client.post("/weights_checker", json={"action": action})
        if not response.is_success:
            raise SystemExit(f"{action}: {response.status_code} {response.text[:500]}")


if __name__ == "__main__":
    main()
