"""Faults outside the engine: the framework ends, a disk is full, records are damaged, clocks jump, two wakes run at once."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest
from typing_extensions import override

from tests.conftest import BOTH_DIALECTS
from torpor import ConfigurationError, GuardStateError, Plugin, hookimpl
from torpor.telemetry.records import StageRecord, read_records
from torpor.telemetry.stage_report import StageReport
from torpor.testing import Fault, StandIn, StandInVLLM

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import MakeBoot
    from torpor import Deployment, Engine
    from torpor.testing.pytest_plugin import StandInDeployment

MARK = "TORPOR_TEST_MARK"
HOUR_S = 3600

LIFE = textwrap.dedent("""
    import sys, threading, time, httpx
    from pathlib import Path
    from torpor import Deployment, Model
    from torpor.runtime.boot import Boot
    from torpor.cli.interrupts import ends_on_sigterm
    from torpor.engine.failure import stops_on_failure
    from torpor.errors import DrainTimeoutError
    from torpor.telemetry.stage_report import StageReport
    from torpor import testing

    def tell(name):
        print("stage", name, flush=True)

    def ask(tokens):
        body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": tokens}
        return httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body, trust_env=False, timeout=60)

    def linger():
        try:
            ask(2000)
        except httpx.TransportError:
            pass

    port, fault, stage, records, handler, standin = int(sys.argv[1]), *sys.argv[2:]
    if handler:
        ends_on_sigterm()
    canary = stage.startswith("canary")
    token_s = {"drain": 0.02, "canary": 0.3, "canary_check": 0.3}.get(stage, 0)
    engine = getattr(testing, standin)(
        fault=testing.Fault(fault) if fault else None, token_s=token_s, warmup_requests=0 if canary else 2
    )
    deployment = Deployment(name="x", model=Model(path="/m"), plugins=(engine,), port=port, stop_timeout_s=0.5)
    boot = Boot(deployment, report=StageReport(Path(records) if records else None, on_begin=tell))
    with stops_on_failure(boot.stop, unless=DrainTimeoutError):
        boot.cold_start()
        boot.serve()
        if stage == "drain":
            threading.Thread(target=linger, daemon=True).start()
            time.sleep(0.3)
        if stage == "serving":
            tell("serving")
            time.sleep(60)
        boot.sleep()
        if stage == "asleep":
            tell("asleep")
            time.sleep(60)
        boot.wake()
        print("answer", ask(4).status_code, flush=True)
    boot.stop()
""")
"""A start, a sleep and a wake in a process of their own, which reports its stage."""


def command(
    port: int,
    *,
    fault: str = "",
    stage: str = "",
    records: str = "",
    handler: str = "",
    standin: type[StandIn] = StandIn,
) -> list[str]:
    """The command line that runs `LIFE`."""
    return [sys.executable, "-c", LIFE, str(port), fault, stage, records, handler, standin.__name__]


def environment(**more: str) -> dict[str, str]:
    """An environment in which Torpor can be imported."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **more}


def marked(mark: str) -> list[psutil.Process]:
    """Every living process that inherited the mark: whatever the framework started, whether or not it knows it."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark:
                found.append(process)
    return found


STAGES = {
    "launch": "",
    "ready": Fault.HANG_AT_START,
    "warmup": Fault.HANG_IN_WARMUP,
    "canary": "",
    "serving": "",
    "drain": "",
    "pre_snapshot": Fault.HANG_IN_SLEEP,
    "asleep": "",
    "post_restore": Fault.HANG_IN_WAKE,
    "canary_check": "",
}
"""Every stage in which the framework may be caught, and the fault that keeps it there.

The canary takes 5 s by itself here. Build steps and checks are in test_faults_build.py, a capture by CRIU in
snapshots/test_faults_capture.py.
"""


def _ends() -> list[object]:
    quick = {("serving", signal.SIGKILL), ("launch", signal.SIGKILL), ("serving", signal.SIGTERM)}
    return [
        pytest.param(
            stage, number, id=f"{stage}-{number.name}", marks=() if (stage, number) in quick else pytest.mark.slow
        )
        for stage in STAGES
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
    ]


def end_in_stage(
    port: int, stage: str, number: signal.Signals, *, handler: str = "", standin: type[StandIn] = StandIn
) -> int:
    """Send the framework a signal in a stage and return its exit code. Fail if any of its processes lives on."""
    mark = uuid.uuid4().hex
    with subprocess.Popen(
        command(port, fault=STAGES[stage], stage=stage, handler=handler, standin=standin),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment(**{MARK: mark}),
    ) as process:
        assert process.stdout is not None
        try:
            assert any(line == f"stage {stage}\n" for line in process.stdout)
            if stage != "launch":  # there the signal may come at any moment of the start
                time.sleep(0.1)
                assert len(marked(mark)) > 1
            process.send_signal(number)
            code = process.wait(30)
            deadline = time.monotonic() + 5
            while (left := marked(mark)) and time.monotonic() < deadline:
                time.sleep(0.02)
        finally:
            for one in marked(mark):
                with suppress(psutil.NoSuchProcess):
                    one.kill()
    assert left == []
    return code


@pytest.mark.parametrize(("stage", "number"), _ends())
def test_no_process_outlives_the_framework(free_port: int, stage: str, number: signal.Signals) -> None:
    """After SIGINT it ends the engine in order. SIGTERM without a handler and SIGKILL leave it no chance to."""
    assert end_in_stage(free_port, stage, number) == -number


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["ready", "warmup", "serving", "asleep", "post_restore"])
def test_no_process_outlives_the_framework_with_vllm(free_port: int, stage: str) -> None:
    """The tree of vLLM ends in its own way when one of its processes fails. The framework's end still ends all of it."""
    assert end_in_stage(free_port, stage, signal.SIGKILL, standin=StandInVLLM) == -signal.SIGKILL


@pytest.mark.parametrize("stage", ["serving", pytest.param("post_restore", marks=pytest.mark.slow)])
def test_sigterm_to_the_command_leaves_no_process(free_port: int, stage: str) -> None:
    """`torpor up` ends on SIGTERM as on Ctrl-C."""
    assert end_in_stage(free_port, stage, signal.SIGTERM, handler="yes") == -signal.SIGINT


@pytest.mark.slow
def test_a_disk_that_fills_up_while_a_record_is_written_stops_nothing(tmp_path: Path, free_port: int) -> None:
    """On a real tmpfs of one page the engine goes on to its answer, and the file stays readable."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this kernel gives no user namespaces to this user, so no small file system can be mounted")
    disk, before, kept = tmp_path / "disk", tmp_path / "before.jsonl", tmp_path / "kept.jsonl"
    disk.mkdir()
    earlier = StageReport(before)
    while not before.exists() or before.stat().st_size < 3000:
        earlier.end(a_record("ready"))
    life = shlex.join(command(free_port, records=str(disk / "records.jsonl")))
    copied = f"cp {before} {disk}/records.jsonl && {life} && cp {disk}/records.jsonl {kept}"
    inner = f"mount -t tmpfs -o size=4k none {disk} && {copied}"
    ran = subprocess.run(
        ["unshare", "-rm", "sh", "-c", inner],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment(),
    )
    assert ran.returncode == 0, ran.stderr
    assert "answer 200" in ran.stdout
    assert ran.stdout.count("records_not_written") == 1
    assert "No space left on device" in ran.stdout
    added = [record.stage for record in read_records(kept)[len(earlier.records) :]]
    whole = ["preflight", "launch", "ready", "warmup", "canary", "serve", "drain", "pre_snapshot"]
    assert 0 < len(added) < len(whole)
    assert added == whole[: len(added)]


def a_record(stage: str) -> StageRecord:
    """The record of a successful stage."""
    return StageRecord(stage=stage, seconds=1.0, boot="cold", replica_id="0" * 16, restore_count=0, ended_at=1.0)


@pytest.mark.parametrize(
    "damage",
    [b'{"stage": "warm', b"\xff\xfe\x00 bytes", b"[1]", b"null", b'{"stage": "x"}', b'{"what": 1}'],
    ids=["cut off", "no text", "a list", "nothing", "fields missing", "fields unknown"],
)
def test_a_damaged_record_is_named_by_file_and_line(tmp_path: Path, damage: bytes) -> None:
    """No line is skipped silently, and no parser's exception reaches the user."""
    path = tmp_path / "records.jsonl"
    report = StageReport(path)
    report.end(a_record("launch"))
    with path.open("ab") as file:
        file.write(damage + b"\n")
    report.end(a_record("ready"))
    with pytest.raises(ConfigurationError, match=r"records\.jsonl:2: not a stage record .*remove the line or the file"):
        read_records(path)


JUMPING_CLOCK = textwrap.dedent("""
    import os, time
    def jumping(clock):
        return lambda: clock() + (3600 if os.path.exists({flag!r}) else 0)
    time.time, time.monotonic = jumping(time.time), jumping(time.monotonic)
""")
"""Put before every program of the engine: the clocks that asyncio, uvicorn and the guard read."""


@BOTH_DIALECTS
def test_a_clock_that_jumps_an_hour_between_sleep_and_wake_changes_nothing(
    standin_deployment: StandInDeployment,
    make_boot: MakeBoot,
    standin: type[StandIn],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Wall and monotonic clock, in framework and engine, as after a later restore.

    The clocks are those that Python code reads; what the kernel waits by (epoll, locks) does not jump, as in a restore.
    """
    flag = tmp_path / "jumped"
    (tmp_path / "sitecustomize.py").write_text(JUMPING_CLOCK.format(flag=str(flag)))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(tmp_path), *sys.path))))
    boot = make_boot(standin_deployment(engine=standin()))
    boot.cold_start()
    boot.serve()
    boot.sleep()
    real = time.time
    for name in ("time", "monotonic", "perf_counter"):
        clock = getattr(time, name)
        monkeypatch.setattr(time, name, lambda clock=clock: clock() + HOUR_S)
    flag.touch()
    boot.wake()
    body = {"messages": [{"role": "user", "content": "what time is it"}], "max_tokens": 4}
    url = f"http://127.0.0.1:{boot.deployment.port}/v1/chat/completions"
    answer = httpx.post(url, json=body, trust_env=False, timeout=30)
    assert answer.status_code == 200
    assert answer.json()["created"] - real() > HOUR_S - 60  # the engine's clock has jumped indeed
    assert all(record.seconds < HOUR_S / 2 for record in boot.report.records)
    boot.sleep()
    boot.wake()
    assert httpx.post(url, json=body, trust_env=False, timeout=30).status_code == 200


@BOTH_DIALECTS
def test_of_two_wakes_at_once_one_wins_and_the_engine_serves(
    standin_deployment: StandInDeployment, make_boot: MakeBoot, standin: type[StandIn]
) -> None:
    """The second is refused before it does anything: a second resume, or the end of the engine, would break the first."""
    inside, refused = threading.Event(), threading.Event()

    @dataclass(frozen=True, kw_only=True)
    class Slow(Plugin):
        plugin_name = "slow"

        @hookimpl
        @override
        def post_restore(self, deployment: Deployment, engine: Engine, client: httpx.Client) -> None:
            inside.set()
            assert refused.wait(30)

    boot = make_boot(standin_deployment(Slow(), engine=standin()))
    boot.cold_start()
    boot.serve()
    boot.sleep()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(boot.wake)
        assert inside.wait(30)
        for second in (boot.wake, boot.sleep, boot.serve):
            with pytest.raises(GuardStateError, match="Another thread is moving this engine"):
                second()
        refused.set()
        first.result(30)
    assert boot.restore_count == 1
    assert boot.running_engine.poll() is None
    url = f"http://127.0.0.1:{boot.deployment.port}/v1/models"
    assert httpx.get(url, trust_env=False, timeout=30).status_code == 200
