"""False alarms of the canary: many sleeps and wakes of a real engine on the CPU, with other requests before each sleep.

    .venv/bin/python benchmarks/canary_wakes.py ENGINE MODEL [--wakes 200] [--port 8131] [--json FILE]

ENGINE is `sglang` or `vllm` (`scripts/setup-local`), MODEL the folder of a model, e.g. of `benchmarks/canary_model.py`. Any
difference that the canary reports is a false alarm: nothing is damaged. The requests have other lengths each time and come two at
once, so that prefix cache, batches and allocator are in another state at each sleep.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import structlog

from torpor import CanaryError, Deployment, EnginePlugin, Model, Scaling
from torpor.runtime.boot import Boot
from torpor.runtime.canary import canary_summary
from torpor.telemetry.stages import Stage
from torpor_sglang import SGLang
from torpor_vllm import VLLM

REPOSITORY = Path(__file__).resolve().parent.parent
VERSIONS = {"sglang": "0.5.23", "vllm": "0.32.0"}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("engine", choices=VERSIONS)
    parser.add_argument("model", type=Path)
    parser.add_argument("--wakes", type=int, default=200)
    parser.add_argument("--port", type=int, default=8131)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])
    report = measured(deployment_of(given.engine, given.model.resolve(), given.port), given.wakes)
    print(json.dumps(report, indent=1))
    if given.json:
        given.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def deployment_of(engine: str, model: Path, port: int) -> Deployment:
    """The deployment of the model on the real engine."""
    python = str(REPOSITORY / ".engines" / f"{engine}-{VERSIONS[engine]}" / "bin" / "python")
    plugins: dict[str, EnginePlugin] = {
        "sglang": SGLang(
            version=VERSIONS["sglang"],
            python=python,
            device="cpu",
            mem_fraction_static=0.1,
            max_total_tokens=4096,
            sleep_on_idle=True,
        ),
        "vllm": VLLM(
            version=VERSIONS["vllm"],
            python=python,
            device="cpu",
            eager=True,
            kv_cache_bytes=64 * 1024 * 1024,
            max_model_len=2048,
        ),
    }
    return Deployment(
        name=f"canary-{engine}",
        model=Model(path=str(model), served_name="tiny"),
        plugins=(plugins[engine],),
        port=port,
        scaling=Scaling(target_concurrency=4, max_concurrency=8),
        startup_timeout_s=600,
    )


def measured(deployment: Deployment, wakes: int) -> dict[str, object]:
    """Start, then sleep and wake this often."""
    boot, alarms, began = Boot(deployment), [], time.time()
    try:
        boot.cold_start()
        boot.serve()
        canary = boot.canary
        assert canary is not None
        for number in range(wakes):
            _other_requests(deployment, number)
            boot.sleep(for_snapshot=False)
            try:
                boot.wake()
            except CanaryError as error:
                alarms.append(f"wake {number}: {error}")
                break
    finally:
        boot.stop()
    checks = [stage.seconds for stage in boot.report.records if stage.stage == Stage.CANARY_CHECK]
    return {
        "command": f"benchmarks/canary_wakes.py {deployment.engine.plugin_name} MODEL --wakes {wakes}",
        "engine": f"{deployment.engine.plugin_name} {deployment.engine.engine_version}, CPU",
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} CPUs, kernel {platform.release()}",
        "load": os.getloadavg(),
        "canary": f"{canary.kind}: {canary_summary(canary)}",
        "wakes": boot.restore_count,
        "false_alarms": alarms,
        "canary_check_s": {"median": statistics.median(checks), "largest": max(checks)},
        "seconds": round(time.time() - began, 1),
    }


def _other_requests(deployment: Deployment, number: int) -> None:
    """Two chats at once, of lengths that change."""

    def chat(words: int) -> None:
        body = {
            "model": deployment.model.served_name,
            "messages": [{"role": "user", "content": f"round {number} " + "tell me more " * words}],
            "max_tokens": 1 + number % 4,
        }
        url = f"http://127.0.0.1:{deployment.port}/v1/chat/completions"
        httpx.post(url, json=body, timeout=120).raise_for_status()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(chat, (1 + number * 7 % 40, 1 + number * 11 % 60)))


if __name__ == "__main__":
    main()
