"""What the canary notices: single damages of a trained model's weights on the real SGLang, on the CPU.

    .engines/sglang-0.5.23/bin/python benchmarks/canary_model.py MODEL          # trains the model: some minutes
    .engines/sglang-0.5.23/bin/python benchmarks/canary.py MODEL [--trials 12] [--json FILE]

SGLang runs without the guard and loads each damaged model in place (/update_weights_from_disk). For every damage the same
questions are asked: the text of a greedy answer of 16 tokens, the log probabilities of that answer, the canary's question, and
SGLang's own checksum of the weights. The differences themselves are recorded, so that every tolerance can be judged from them.
If the text is the same, other questions show whether users would have got other answers.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY / "core"), str(REPOSITORY / "plugins")]

import httpx  # noqa: E402 - after the path of this repository's packages
from canary_damages import Damages  # noqa: E402
from canary_model import ANSWERS  # noqa: E402
from engine_start import await_start  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from torpor.runtime import logprob_canary  # noqa: E402
from torpor_sglang.logprobs import ask  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from torpor.engine_plugins import TokenLogprobs

QUESTION, *OTHERS = ANSWERS
ASKED_OTHERS = OTHERS[:5]
TEXT_TOKENS, OTHER_TOKENS, UNDAMAGED, START_S = 16, 24, 20, 600.0
CHAT_TOLERANCE = 1e-3


class Seen(NamedTuple):
    """The answers to all questions.

    Attributes:
        text: of a greedy answer of 16 tokens.
        chat: log probabilities of that answer, five for each token.
        canary: what the canary compares.
        checksum: SGLang's own, of all weights.
        seconds: of each question.
    """

    text: str
    chat: list[float]
    canary: TokenLogprobs | None
    checksum: str
    seconds: dict[str, float]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="torpor-canary-") as folder:
        report = measured(given.model.resolve(), given.trials, given.port, Path(folder))
    if given.json:
        given.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({name: value for name, value in report.items() if name != "damages"}, indent=1))


def measured(model: Path, trials: int, port: int, folder: Path) -> dict[str, object]:
    """Start SGLang, damage and ask, end it."""
    damaged = folder / "damaged"
    shutil.copytree(model, damaged)
    with (folder / "engine.log").open("w") as log:
        engine = subprocess.Popen(
            _command(model, port), env=_environment(), stdout=log, stderr=log, start_new_session=True
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120, trust_env=False) as client:
            await_start(client, engine, folder / "engine.log", START_S)
            return Measurement(client, model, damaged).run(trials)
    finally:
        os.killpg(engine.pid, signal.SIGKILL)
        engine.wait()


class Measurement:
    """Damages and questions of one running engine.

    Args:
        client: bound to the engine.
        model: the undamaged model.
        damaged: folder of the model that the engine loads.
    """

    def __init__(self, client: httpx.Client, model: Path, damaged: Path) -> None:
        self._client = client
        self._weights: dict[str, torch.Tensor] = load_file(model / "model.safetensors")
        self._damaged = damaged

    def run(self, trials: int) -> dict[str, object]:
        """All damages."""
        self._load(self._weights)
        reference = self._ask()
        others = [self._chat(question, OTHER_TOKENS)[0] for question in ASKED_OTHERS]
        again = []
        for _ in range(UNDAMAGED):
            self._load(self._weights)
            again.append(self._ask())
        rows: list[dict[str, object]] = []
        for damage in Damages(self._weights, trials).all():
            for _ in range(damage.trials):
                weights = {name: one.clone() for name, one in self._weights.items()}
                damage.inflict(weights)
                self._load(weights)
                row = {"kind": damage.kind, **_compared(reference, self._ask())}
                if not row["text"]:
                    now = [self._chat(question, OTHER_TOKENS)[0] for question in ASKED_OTHERS]
                    row["other_answers_changed"] = sum(old != new for old, new in zip(others, now, strict=True))
                rows.append(row)
            print(json.dumps(_table(rows)[damage.kind]), damage.kind, file=sys.stderr, flush=True)
        return {
            "command": "benchmarks/canary.py MODEL",
            "engine": "sglang, CPU",
            "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} CPUs, kernel {platform.release()}",
            "load": os.getloadavg(),
            "answer": reference.text,
            "undamaged": _counted([{"kind": "none", **_compared(reference, seen)} for seen in again]),
            "seconds": {name: statistics.median(seen.seconds[name] for seen in again) for name in reference.seconds},
            "noticed": _table(rows),
            "all": _counted(rows),
            "damages": rows,
        }

    def _load(self, weights: Mapping[str, torch.Tensor]) -> None:
        save_file(
            {name: one.contiguous() for name, one in weights.items()},
            self._damaged / "model.safetensors",
            {"format": "pt"},
        )
        self._client.post("/update_weights_from_disk", json={"model_path": str(self._damaged)}).raise_for_status()
        self._client.post("/flush_cache").raise_for_status()

    def _ask(self) -> Seen:
        seconds = {}
        began = time.perf_counter()
        text, chat = self._chat(QUESTION, TEXT_TOKENS)
        seconds["text"] = time.perf_counter() - began
        began = time.perf_counter()
        try:
            canary = ask(self._client, prompt=logprob_canary.PROMPT, tokens=logprob_canary.TOKENS, adapter=None)
        except Exception as error:
            print(f"the canary's question: {error}", file=sys.stderr)
            canary = None
        seconds["canary"] = time.perf_counter() - began
        began = time.perf_counter()
        response = self._client.post("/weights_checker", json={"action": "checksum"})
        seconds["checksum"] = time.perf_counter() - began
        return Seen(text, chat, canary, json.dumps(response.json()), seconds)

    def _chat(self, question: str, tokens: int) -> tuple[str, list[float]]:
        body = {
            "model": "tiny",
            "messages": [{"role": "user", "content": question}],
            "max_tokens": tokens,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": 5,
        }
        response = self._client.post("/v1/chat/completions", json=body)
        try:
            choice = response.json()["choices"][0]
            listed = [one for token in choice["logprobs"]["content"] for one in token["top_logprobs"]]
            return choice["message"]["content"], [one["logprob"] for one in listed]
        except (ValueError, KeyError, TypeError, IndexError):
            return f"status {response.status_code}", []


def _compared(reference: Seen, seen: Seen) -> dict[str, object]:
    """What each question says of a model, beside the undamaged one."""
    chat = math.inf
    if len(seen.chat) == len(reference.chat):
        chat = max((abs(old - new) for old, new in zip(reference.chat, seen.chat, strict=True)), default=0.0)
    canary = math.inf
    if reference.canary is not None and seen.canary is not None:
        canary = logprob_canary.difference(reference.canary, seen.canary).size
    return {
        "text": seen.text != reference.text,
        "chat": _finite(chat),
        "canary": _finite(canary),
        "checksum": seen.checksum != reference.checksum,
    }


def _finite(number: float) -> float:
    return round(number, 9) if math.isfinite(number) else 1e9


def _table(rows: list[dict[str, object]]) -> dict[str, dict[str, int]]:
    return {
        str(kind): _counted([row for row in rows if row["kind"] == kind])
        for kind in dict.fromkeys(r["kind"] for r in rows)
    }


def _counted(rows: list[dict[str, object]]) -> dict[str, int]:
    """How many damages each question noticed."""

    def above(question: str, tolerance: float) -> int:
        return sum(float(str(row[question])) > tolerance for row in rows)

    return {
        "damages": len(rows),
        "text": sum(bool(row["text"]) for row in rows),
        "text or chat": sum(bool(row["text"]) or float(str(row["chat"])) > CHAT_TOLERANCE for row in rows),
        "canary": above("canary", logprob_canary.LEAST_DIFFERENCE),
        "canary at 1e-4": above("canary", 1e-4),
        "canary at 1e-3": above("canary", 1e-3),
        "canary at 1e-2": above("canary", 1e-2),
        "canary at 0.1": above("canary", 0.1),
        "checksum": sum(bool(row["checksum"]) for row in rows),
        "same text, other answers": sum(bool(row.get("other_answers_changed")) for row in rows),
    }


def _command(model: Path, port: int) -> tuple[str, ...]:
    flags = "--tp-size 1 --device cpu --max-running-requests 8 --max-total-tokens 4096 --mem-fraction-static 0.1"
    more = "--skip-server-warmup --attention-backend torch_native --disable-overlap-schedule --served-model-name tiny"
    launcher = (sys.executable, "-m", "torpor_sglang.serve", "--model-path", str(model))
    return (*launcher, "--host", "127.0.0.1", "--port", str(port), *flags.split(), *more.split())


def _environment() -> dict[str, str]:
    own = {
        "TORPOR_UNGUARDED": "1",
        "SGLANG_USE_CPU_ENGINE": "1",
        "SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "false",
        "OMP_WAIT_POLICY": "passive",
        "PYTHONPATH": f"{REPOSITORY / 'core'}:{REPOSITORY / 'plugins'}",
    }
    return {**os.environ, **own}


if __name__ == "__main__":
    main()
