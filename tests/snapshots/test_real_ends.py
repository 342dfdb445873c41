"""Real engines in a restored replica still end when they hang or crash (SGLang 0.5.23, vLLM 0.32.0)."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import ROOT
from tests.plugins.local_engines import LocalEngine
from tests.snapshots.conftest import MODES, refuse
from tests.snapshots.kept import Background, chat
from torpor.platforms.local.criu_backend import CriuBackend
from torpor.platforms.local.snapshots import create_snapshot, restore_snapshot
from torpor.snapshots.criu.program import PREFIX_VARIABLE
from torpor.snapshots.sandbox.sandbox import FIRST_PID
from torpor.testing.ports import unused_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torpor.snapshots.criu.program import Criu
    from torpor.snapshots.sandbox.engine import SandboxEngine

pytestmark = [pytest.mark.criu, pytest.mark.slow, pytest.mark.timeout(400)]

ENDS_WITHIN_S = 40.0
WATCHDOG_S = 2

APP = """
from dataclasses import dataclass, replace

from torpor import ImagePatch, Plugin, hookimpl
from torpor.app_file import load_app


@dataclass(frozen=True, kw_only=True)
class Hanging(Plugin):
    plugin_name = "hanging"

    @hookimpl
    def prepare_image(self, deployment):
        # After a hang SGLang waits a minute for a core dump of CUDA.
        return ImagePatch(env={{"PYTHONPATH": {path!r}, "SGLANG_CUDA_COREDUMP_BEFORE_CRASH": "0"}})


tiny = load_app({app!r}).deployment
model, engine = tiny.plugins
engine = replace(engine, extra_args=({args}))
deployment = replace(tiny, name="ends-{name}", port={port}, plugins=(model, Hanging(), engine))
"""

HANG = """
import os, time
try:
    from torpor.engine_patches.after_import import after_import
except ImportError:
    after_import = None

def hang(module):
    run = module.Scheduler.run_batch
    def run_batch(self, *arguments, **named):
        while os.path.exists({flag!r}):
            time.sleep(0.1)
        return run(self, *arguments, **named)
    module.Scheduler.run_batch = run_batch

if after_import:
    after_import("sglang.srt.managers.scheduler", hang)
"""
"""A sitecustomize: SGLang's scheduler hangs in its next forward pass while a file exists."""

ENGINES = {
    "sglang": ("0.5.23", ROOT / "apps" / "tiny_cpu.py", f'"--watchdog-timeout", "{WATCHDOG_S}"'),
    "vllm": ("0.32.0", ROOT / "tests" / "snapshots" / "tiny_vllm.py", ""),
}


@pytest.fixture(scope="module")
def snapshots(criu: Criu, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Snapshots by engine name, each taken once on demand, under one `folder`."""
    with pytest.MonkeyPatch.context() as patch:
        if "root" in criu.program.parts:
            patch.setenv(PREFIX_VARIABLE, str(criu.program.parents[3]))
        if reasons := CriuBackend(mode=MODES[0]).available():
            refuse("; ".join(reasons))
        yield {"folder": tmp_path_factory.mktemp("ends")}


def snapshot_of(engine: str, snapshots: dict[str, Path]) -> Path:
    """The engine's snapshot."""
    version, app, args = ENGINES[engine]
    LocalEngine(name=engine, title=engine, version=version).find(version)
    if engine not in snapshots:
        folder = snapshots["folder"] / engine
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(HANG.format(flag=str(folder / "hang")))
        text = APP.format(path=str(folder), app=str(app), args=args, name=engine, port=unused_port())
        (folder / "app.py").write_text(text)
        create_snapshot(folder / "app.py", folder / "kept", mode=MODES[0], prove=False)
        snapshots[engine] = folder / "kept"
    return snapshots[engine]


def worker_of(engine: SandboxEngine) -> int:
    """The process that computes: the largest except the server."""
    sizes = {}
    for inside, pid in engine.sandbox.host_pids().items():
        if inside not in (1, FIRST_PID):
            sizes[pid] = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return max(sizes, key=lambda pid: sizes[pid])


@pytest.mark.parametrize(
    "engine", [pytest.param(name, marks=getattr(pytest.mark, name)) for name in ENGINES], ids=list(ENGINES)
)
@pytest.mark.fault("the scheduler of a restored engine is killed", area="crash", outcome="held")
def test_a_restored_engine_whose_worker_is_killed_ends(engine: str, snapshots: dict[str, Path]) -> None:
    """The server does not live on without it."""
    port = unused_port()
    replicas = restore_snapshot(snapshot_of(engine, snapshots), port=port)
    try:
        running = replicas.serving[0].boot.running_engine
        assert chat(port, model="tiny-qwen3")
        os.kill(worker_of(running), signal.SIGKILL)  # type: ignore[arg-type]
        assert running.wait(ENDS_WITHIN_S) is not None, running.log_tail()[-20:]
    finally:
        replicas.stop()


@pytest.mark.sglang
@pytest.mark.fault("a restored engine hangs for longer than its watchdog allows", area="hang", outcome="held")
def test_the_watchdog_of_a_restored_server_ends_it(snapshots: dict[str, Path]) -> None:
    """Its handle of the server's process is from before the capture, when that process had another start time."""
    port, flag = unused_port(), snapshots["folder"] / "sglang" / "hang"
    replicas = restore_snapshot(snapshot_of("sglang", snapshots), port=port)
    try:
        running = replicas.serving[0].boot.running_engine
        assert chat(port, model="tiny-qwen3")
        flag.touch()
        asked = Background(lambda: chat(port, model="tiny-qwen3"))
        assert running.wait(ENDS_WITHIN_S) is not None, running.log_tail()[-20:]
        log = "\n".join(running.log_tail())
        assert "Scheduler watchdog timeout" in log
        assert "PID has been reused" not in log
        with pytest.raises((OSError, AssertionError, EOFError)):
            asked.join()
    finally:
        flag.unlink(missing_ok=True)
        replicas.stop()
