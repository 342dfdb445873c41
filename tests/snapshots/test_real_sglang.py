"""The real SGLang 0.5.23 with the tiny model on the CPU: captured once, restored, asked."""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.snapshots.conftest import MODES, refuse
from tests.snapshots.kept import free_port
from torpor.cli.timing import command, first_token, running
from torpor.platforms.local import CriuBackend, create_snapshot, restore_snapshot
from torpor.snapshots.criu import PREFIX_VARIABLE

if TYPE_CHECKING:
    from torpor.snapshots.criu import Criu
    from torpor.snapshots.manifest import Manifest

pytestmark = [pytest.mark.criu, pytest.mark.sglang, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
APP = ROOT / "apps" / "tiny_cpu.py"
COLD_STAGES = ("launch", "ready", "warmup")


@pytest.fixture(scope="module", params=MODES)
def captured(
    request: pytest.FixtureRequest, criu: Criu, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Manifest]:
    """A snapshot of the tiny app, made once for each mode."""
    if not (ROOT / ".engines" / "sglang-0.5.23" / "bin" / "python").exists():
        pytest.skip(".engines/sglang-0.5.23 is missing; run scripts/setup-local")
    with pytest.MonkeyPatch.context() as patch:
        if "root" in criu.program.parts:
            patch.setenv(PREFIX_VARIABLE, str(criu.program.parents[3]))
        if reasons := CriuBackend(mode=request.param).available():
            refuse("; ".join(reasons))
        folder = tmp_path_factory.mktemp("real") / "snapshot"
        return folder, create_snapshot(APP, folder, mode=request.param)


def ask(port: int, *, temperature: float) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60.0)
    body = {
        "model": "tiny-qwen3",
        "messages": [{"role": "user", "content": "the quick brown fox"}],
        "max_tokens": 16,
        "temperature": temperature,
    }
    try:
        headers = {"content-type": "application/json", "connection": "close"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        assert answer.status == 200
        return str(json.loads(answer.read())["choices"][0]["message"]["content"])
    finally:
        connection.close()


def test_replicas_sample_differently_and_answer_greedily_alike(captured: tuple[Path, Manifest]) -> None:
    """The samplers are seeded anew at the wake; greedy answers, the canary's among them, are those of the original.

    Without that every replica of one image samples the same text (measured: three of three).
    """
    port = free_port()
    copies = restore_snapshot(captured[0], replicas=2, port=port)
    try:
        assert len({ask(port, temperature=0.0) for _ in range(4)}) == 1
        assert len({ask(port, temperature=1.0) for _ in range(2)}) == 2
    finally:
        copies.stop()


def test_a_restored_start_is_several_times_as_fast(captured: tuple[Path, Manifest]) -> None:
    """From the start of the command to the first token: at least 5 times, whatever else the machine does."""
    folder, manifest = captured
    cold_s = sum(stage.seconds for stage in manifest.stages if stage.stage in COLD_STAGES)
    port = free_port()
    with running(command("snapshot", "restore", str(folder), "--json", "--port", str(port))) as (process, began):
        seen = first_token(process, began, port=port, model="tiny-qwen3", timeout_s=60.0)
    assert cold_s / seen.first_token_s > 5


def test_an_engine_outlives_its_first_seconds_after_a_restore(captured: tuple[Path, Manifest]) -> None:
    """SGLang counts CPU time every few seconds; a restored process's begins anew, which must not end its scheduler."""
    port = free_port()
    copies = restore_snapshot(captured[0], port=port)
    try:
        engine = copies.serving[0].boot.running_engine
        assert engine.wait(12.0) is None
        assert ask(port, temperature=0.0)
        assert not any("Counters can only be incremented" in line for line in engine.log_tail())
    finally:
        copies.stop()
