"""Real engines with the tiny model on the CPU, SGLang 0.5.23 and vLLM 0.32.0: captured once, restored, asked."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import ROOT
from tests.plugins.local_engines import LocalEngine
from tests.shown import ROWS
from tests.snapshots.conftest import MODES, refuse, wait_for
from tests.snapshots.kept import Background
from torpor.cli.timing import command, first_token, running
from torpor.platforms.local.criu_backend import CriuBackend
from torpor.platforms.local.replicas import Replicas
from torpor.platforms.local.snapshots import create_snapshot, restore_snapshot
from torpor.snapshots.criu.program import PREFIX_VARIABLE
from torpor.testing.ports import unused_port

if TYPE_CHECKING:
    from torpor.runtime.supervision import ReplicaEvent
    from torpor.snapshots.criu.program import Criu
    from torpor.snapshots.store.manifest import Manifest

pytestmark = [pytest.mark.criu, pytest.mark.slow]

APP = ROOT / "apps" / "tiny_cpu.py"
VLLM_APP = Path(__file__).with_name("tiny_vllm.py")
COLD_STAGES = ("launch", "ready", "warmup")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A real engine that runs here.

    Attributes:
        engine: its plugin's name.
        version: the one that runs here.
        app: a deployment of the tiny model.
    """

    engine: str
    version: str
    app: Path

    def needed(self) -> None:
        """Skip, or fail where the engine is required."""
        LocalEngine(name=self.engine, title=self.engine, version=self.version).find(self.version)


SGLANG = Kind(engine="sglang", version="0.5.23", app=APP)
VLLM = Kind(engine="vllm", version="0.32.0", app=VLLM_APP)
CAPTURED = [
    pytest.param(
        (kind, mode),
        id=f"{kind.engine}-{mode}",
        marks=[
            getattr(pytest.mark, kind.engine),
            pytest.mark.shows(ROWS[3], engine=kind.engine, version=kind.version),
        ],
    )
    for kind in (SGLANG, VLLM)
    for mode in MODES
]


@pytest.fixture(scope="module", params=CAPTURED)
def captured(
    request: pytest.FixtureRequest, criu: Criu, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Manifest]:
    """A snapshot of the tiny app, taken once for each engine and mode."""
    kind, mode = request.param
    kind.needed()
    with pytest.MonkeyPatch.context() as patch:
        if "root" in criu.program.parts:
            patch.setenv(PREFIX_VARIABLE, str(criu.program.parents[3]))
        if reasons := CriuBackend(mode=mode).available():
            refuse("; ".join(reasons))
        folder = tmp_path_factory.mktemp("real") / "snapshot"
        return folder, create_snapshot(kind.app, folder, mode=mode)


def ask(port: int, *, temperature: float, tokens: int = 16) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60.0)
    body = {
        "model": "tiny-qwen3",
        "messages": [{"role": "user", "content": "the quick brown fox"}],
        "max_tokens": tokens,
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


OTHER_VERSION = """
from dataclasses import dataclass, replace

from torpor import ImagePatch, Plugin, hookimpl
from torpor.app_file import load_app


@dataclass(frozen=True, kw_only=True)
class FirstOnThePath(Plugin):
    plugin_name = "first_on_the_path"

    @hookimpl
    def prepare_image(self, deployment):
        return ImagePatch(env={{"PYTHONPATH": {path!r}}})


newest = load_app({app!r}).deployment
model, sglang = newest.plugins
older = replace(sglang, version={version!r})
deployment = replace(newest, name="tiny-older", port={port}, plugins=(model, FirstOnThePath(), older))
"""
"""The tiny app with another version of SGLang."""


@pytest.mark.sglang
@pytest.mark.timeout(400)
@pytest.mark.shows(ROWS[3], engine="sglang", version="0.5.16")
def test_replicas_of_0_5_16_sample_differently_too(criu: Criu, tmp_path: Path) -> None:
    """The same patch on another version: replicas sample differently, greedy answers are equal."""
    older = ROOT / ".engines" / "sglang-parsers" / "0.5.16"
    if not older.is_dir():
        pytest.skip(f"{older.relative_to(ROOT)} is missing; run scripts/setup-local --parsers")
    app = tmp_path / "older.py"
    app.write_text(OTHER_VERSION.format(path=str(older), app=str(APP), version=older.name, port=unused_port()))
    with pytest.MonkeyPatch.context() as patch:
        if "root" in criu.program.parts:
            patch.setenv(PREFIX_VARIABLE, str(criu.program.parents[3]))
        if reasons := CriuBackend(mode=MODES[0]).available():
            refuse("; ".join(reasons))
        manifest = create_snapshot(app, tmp_path / "kept", mode=MODES[0])
        assert manifest.deployment.engine == "sglang 0.5.16"
        said = (tmp_path / "kept" / "logs" / "engine.log").read_text()
        assert "torpor_sglang: SGLang 0.5.16; guarded" in said
        assert_replicas_differ_where_they_should(tmp_path / "kept")


def test_replicas_sample_differently_and_answer_greedily_alike(captured: tuple[Path, Manifest]) -> None:
    """The samplers get new seeds at the wake. Greedy answers, like the canary's, equal the original's.

    Without that, all replicas of a snapshot sample the same text (measured: three of three).
    """
    assert_replicas_differ_where_they_should(captured[0])


def assert_replicas_differ_where_they_should(folder: Path) -> None:
    port = unused_port()
    replicas = restore_snapshot(folder, replicas=2, port=port)
    try:
        assert len({ask(port, temperature=0.0) for _ in range(4)}) == 1
        assert len({ask(port, temperature=1.0) for _ in range(2)}) == 2
    finally:
        replicas.stop()


def test_a_restored_start_is_several_times_as_fast(captured: tuple[Path, Manifest]) -> None:
    """From the start of the command to the first token: at least 5 times, even on a busy machine."""
    folder, manifest = captured
    cold_s = sum(stage.seconds for stage in manifest.stages if stage.stage in COLD_STAGES)
    port = unused_port()
    with running(command("snapshot", "restore", str(folder), "--json", "--port", str(port))) as (process, began):
        seen = first_token(process, began, port=port, model="tiny-qwen3", timeout_s=60.0)
    assert cold_s / seen.first_token_s > 5


def test_an_engine_outlives_its_first_seconds_after_a_restore(captured: tuple[Path, Manifest]) -> None:
    """SGLang's metrics find that CPU time was reset; that must not end a scheduler."""
    port = unused_port()
    replicas = restore_snapshot(captured[0], port=port)
    try:
        engine = replicas.serving[0].boot.running_engine
        assert engine.wait(12.0) is None
        assert ask(port, temperature=0.0)
        assert not any("Counters can only be incremented" in line for line in engine.log_tail())
    finally:
        replicas.stop()


@pytest.mark.fault(
    "the scheduler of a restored engine is killed in the middle of a request", area="engine", outcome="restarted"
)
def test_an_engine_whose_scheduler_is_killed_is_restored_again_and_serves(captured: tuple[Path, Manifest]) -> None:
    """Its request gets an error instead of silence. The next replica answers as the first did."""
    port = unused_port()
    events: list[ReplicaEvent] = []
    replicas = Replicas(captured[0], port=port, supervised=True, on_event=events.append)
    replicas.start()
    try:
        answer = ask(port, temperature=0.0)
        sandbox = replicas.serving[0].replica.sandbox
        request = Background(lambda: ask(port, temperature=0.0, tokens=400))
        (scheduler,) = [pid for pid in sandbox.host_pids().values() if SCHEDULER.search(command_line(pid))]
        os.kill(scheduler, signal.SIGKILL)
        with pytest.raises((AssertionError, OSError, http.client.HTTPException, ValueError)):
            request.join()
        assert wait_for(lambda: [event.event for event in events] == ["replica_ended", "replica_restarted"], 30.0), (
            events
        )
        assert (events[1].boot, events[1].reason, events[1].restart) == ("restored", "engine ended", 1)
        assert ask(port, temperature=0.0) == answer
    finally:
        replicas.stop()


SCHEDULER = re.compile(rb"sglang::scheduler|EngineCore")


def command_line(pid: int) -> bytes:
    """The command line of a process."""
    return Path(f"/proc/{pid}/cmdline").read_bytes()
