"""Whether anything was compiled for the first requests after a start: counted, recorded, told."""

from __future__ import annotations

import os
import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING

import httpx
import pytest
import structlog

from tests.plugins.engine_rules.tasks import app_of
from tests.snapshots.conftest import MODES, refuse
from torpor.platforms.local import LocalServer, Standby
from torpor.platforms.local.criu_backend import CriuBackend
from torpor.platforms.local.replicas import Replicas
from torpor.platforms.local.snapshots import create_snapshot
from torpor.runtime.compilations import REQUESTS, Compiled, CompileWatch, cache_folders, newer_files
from torpor.runtime.first_requests import FirstRequests
from torpor.telemetry.records import StageRecord, read_records
from torpor.telemetry.stage_report import StageReport
from torpor.telemetry.stages import Stage
from torpor.testing import Fault, StandIn, StandInVLLM
from torpor.testing.ports import unused_port

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torpor.testing import StandInDeployment

SCHEMA = {"type": "json_schema", "json_schema": {"name": "town", "schema": {"type": "object"}}}
DEADLINE_S = 30.0


def test_folders_inside_another_are_counted_once() -> None:
    """And variables that are not there, or name no folder, are left out."""
    env = {"A": "/k/triton", "B": "/k/triton/deep", "C": "/k/triton2", "D": "1"}
    assert cache_folders(env, ("A", "B", "C", "D", "E")) == ("/k/triton", "/k/triton2")


def test_only_files_written_since_then_count_and_no_locks(tmp_path: Path) -> None:
    """A folder that is not there has none."""
    old, new, lock = (tmp_path / "deep" / name for name in ("old.so", "new.so", "new.lock"))
    old.parent.mkdir()
    for file in (old, new, lock):
        file.write_bytes(b"x")
    os.utime(old, (1000, 1000))
    assert list(newer_files((str(tmp_path), "/nowhere/at/all"), 2000.0)) == [str(new)]


def watched(requests: Sequence[int], lines: list[str], folder: Path) -> Compiled | None:
    """What a watch finds whose guard answers these numbers, one after the other; None if it ends without one."""
    found: list[Compiled] = []
    told = threading.Event()
    left = list(requests)

    def served() -> int:
        lines.append(f"a kernel is compiled: {len(left)}")
        (folder / f"{len(left)}.so").write_bytes(b"x")
        if not left:
            told.set()
            raise httpx.ConnectError("the engine has ended")
        return left.pop(0)

    def tell(compiled: Compiled) -> None:
        found.append(compiled)
        told.set()

    watch = CompileWatch(
        folders=(str(folder),), patterns=("kernel",), log_tail=lambda: list(lines), served=served, tell=tell
    )
    assert told.wait(DEADLINE_S)
    watch.end()
    return found[0] if found else None


def test_a_watch_counts_what_came_since_it_began(tmp_path: Path) -> None:
    """Lines from before do not count; examples name files and lines."""
    found = watched((REQUESTS - 1, REQUESTS), ["a kernel of the warm-up", "another line"], tmp_path)
    assert found is not None
    assert found.as_record() == {"requests": REQUESTS, "cache_files": 2, "log_lines": 2}
    assert found.examples[0] == "a kernel is compiled: 2"
    assert str(tmp_path) in found.examples[-1]


def test_a_watch_ends_with_its_engine_and_says_nothing(tmp_path: Path) -> None:
    """An engine that has ended is somebody else's to tell."""
    assert watched((REQUESTS - 1,), [], tmp_path) is None


def test_a_watch_that_was_ended_tells_nothing_more(tmp_path: Path) -> None:
    """Though the answer that it waited for comes after: the replica sleeps, and the record of a start is of that start."""
    asked, ended = threading.Event(), threading.Event()
    found: list[Compiled] = []

    def served() -> int:
        asked.set()
        ended.wait(DEADLINE_S)
        return REQUESTS

    watch = CompileWatch(folders=(str(tmp_path),), patterns=(), log_tail=list, served=served, tell=found.append)
    assert asked.wait(DEADLINE_S)
    watch._ending.set()
    ended.set()
    watch.end()
    assert found == []


def test_a_pattern_that_is_none_ends_no_start() -> None:
    """The replica serves without a watch, and the log says what the engine's plugin has wrong."""
    plugin = SimpleNamespace(kernel_cache_env=lambda _: {"A": "/k"}, compile_lines=("(",))
    boot = SimpleNamespace(
        deployment=SimpleNamespace(engine=plugin, name="d"),
        recipe=SimpleNamespace(env={}),
        replica="d-1",
        running_engine=SimpleNamespace(guard_key="key", log_tail=tuple),
    )
    watch = FirstRequests(boot, refuse)  # type: ignore[arg-type] # a boot as far as it is asked
    with structlog.testing.capture_logs() as logs:
        watch.begin()
    watch.end()
    assert [(one["event"], "unterminated subpattern" in one["error"]) for one in logs] == [
        ("first_requests_not_watched", True)
    ]


def first_requests(records: Sequence[StageRecord], boot: str) -> StageRecord | None:
    return next((one for one in records if (one.stage, one.boot) == (Stage.FIRST_REQUESTS, boot)), None)


def ask(port: int, model: str, count: int) -> None:
    """Send chats, one of them with a schema, without a key."""
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        for number in range(count):
            body = {
                "model": model,
                "max_tokens": 2,
                "messages": [{"role": "user", "content": f"{number}"}],
                **({"response_format": SCHEMA} if number == 3 else {}),
            }
            answer = client.post("/v1/chat/completions", json=body)
            assert answer.status_code == 200, answer.text


@pytest.mark.slow
@pytest.mark.fault("the engine compiles for the first request with a JSON schema", area="kernel caches", outcome="held")
@pytest.mark.parametrize("standin", [StandIn, StandInVLLM])
@pytest.mark.parametrize(("warm", "compiled"), [(True, 0), (False, 1)])
def test_the_record_of_a_wake_says_whether_its_first_requests_compiled_anything(
    standin: type[StandIn],
    standin_deployment: StandInDeployment,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    *,
    warm: bool,
    compiled: int,
) -> None:
    """An engine that compiles at the first JSON schema: 0 with a warm-up that asks for one; without, 1, with a warning."""
    engine = standin(fault=Fault.COMPILES_AT_FIRST_SCHEMA, warmup_features=("json_schema",) if warm else ())
    deployment = standin_deployment(engine=engine)
    server = LocalServer(deployment, backend=Standby(), root=tmp_path, report=StageReport(tmp_path / "records.jsonl"))
    try:
        server.cold_start()
        server.boot.sleep(for_snapshot=False)
        server.boot.wake()
        ask(deployment.port, deployment.model.served_name, REQUESTS)
        deadline = time.monotonic() + DEADLINE_S
        while not first_requests(server.boot.report.records, "woken") and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        server.stop()
    record = first_requests(read_records(tmp_path / "records.jsonl"), "woken")
    assert record is not None
    assert record.compiled == {"requests": REQUESTS, "cache_files": compiled, "log_lines": compiled}
    log = capsys.readouterr()
    assert ("compiled_after_start" in log.out + log.err) == bool(compiled)


@pytest.mark.slow
def test_no_thread_is_left_when_the_engine_sleeps_or_ends(
    standin_deployment: StandInDeployment, tmp_path: Path
) -> None:
    """A snapshot contains none; an engine that names no kernel caches has none at all."""
    deployment = standin_deployment(engine=StandIn(fault=Fault.COMPILES_AT_FIRST_SCHEMA))
    server = LocalServer(deployment, backend=Standby(), root=tmp_path)

    def watches() -> int:
        return sum(thread.name == "torpor-compilations" for thread in threading.enumerate())

    try:
        server.cold_start()
        server.boot.serve()
        assert watches() == 1
        server.boot.sleep(for_snapshot=False)
        assert watches() == 0
        server.boot.wake()
        assert watches() == 1
    finally:
        server.stop()
    assert watches() == 0


@pytest.mark.criu
@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_record_of_a_restored_replica_counts_what_it_compiles_in_its_sandbox(
    standin_deployment: StandInDeployment, tmp_path: Path
) -> None:
    """Its kernel caches lie outside of the sandbox, and its log inside."""
    if reasons := CriuBackend(mode=MODES[0]).available():
        refuse("; ".join(reasons))
    deployment = standin_deployment(engine=StandIn(fault=Fault.COMPILES_AT_FIRST_SCHEMA))
    create_snapshot(app_of(deployment, tmp_path), tmp_path / "kept", mode=MODES[0])
    replicas = Replicas(tmp_path / "kept", port=unused_port())
    replicas.records = tmp_path / "records.jsonl"
    replicas.start(1)
    try:
        ask(replicas.port, deployment.model.served_name, REQUESTS)
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            if record := first_requests(read_records(replicas.records), "restored"):
                break
            time.sleep(0.1)
    finally:
        replicas.stop()
    assert record is not None
    assert record.compiled == {"requests": REQUESTS, "cache_files": 1, "log_lines": 1}
