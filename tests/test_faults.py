"""Every fault of an engine raises its own error, in time, with what was seen, and leaves no process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING

import httpx
import pytest
from typing_extensions import override

from tests.conftest import BOTH_DIALECTS, living_members, wait_until_gone
from torpor import (
    CanaryError,
    EngineExitedError,
    EngineRequestError,
    EngineTimeoutError,
    ForeignServerError,
    GuardStateError,
    Plugin,
    PortInUseError,
    TorporError,
    hookimpl,
)
from torpor.telemetry.stages import Stage
from torpor.testing import Fault, StandIn, StandInVLLM
from torpor.testing.faults import CRASH_WORD, EXIT_CODE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import MakeBoot
    from torpor import Deployment, Engine, Recipe
    from torpor.runtime.boot import Boot
    from torpor.testing.pytest_plugin import StandInDeployment, Timeouts

pytestmark = pytest.mark.slow

SHORT_S = 1.0
"""The deadline of the stage that hangs."""

START_S = 3.0
"""The deadline of a start that hangs: by then a busy machine has started the process, which has printed its first line."""

SLACK_S = 15.0
"""What a busy machine may add to a deadline before it counts as missed."""

EXITED = f"exited with code {EXIT_CODE}"
LAST_LINES = r"last lines:\n +standin: pid \d+"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A fault and its expected error.

    Attributes:
        error: the very class of the error.
        stage: where it appears.
        says: parts of the message, regular expressions in order; `{plugin}` stands for the engine plugin's name.
        limit_s: seconds from the boot's begin to the error, at most.
    """

    error: type[TorporError]
    stage: str
    says: tuple[str, ...]
    limit_s: float = SLACK_S


CASES = {
    Fault.EXIT_AT_START: Case(
        error=EngineExitedError,
        stage="ready",
        says=(EXITED, "before it was ready", "last lines:\n +standin: fault exit_at_start"),
    ),
    Fault.HANG_AT_START: Case(
        error=EngineTimeoutError,
        stage="ready",
        says=(f"not ready within {START_S:g} s", "nothing listens on the port yet", "startup_timeout_s", LAST_LINES),
        limit_s=START_S + SLACK_S,
    ),
    Fault.NEVER_READY: Case(
        error=EngineTimeoutError,
        stage="ready",
        says=(f"not ready within {START_S:g} s", "GET /v1/models: 503", "Server is starting", LAST_LINES),
        limit_s=START_S + SLACK_S,
    ),
    Fault.EXIT_IN_WARMUP: Case(
        error=EngineExitedError,
        stage="warmup",
        says=(EXITED, "in stage warmup", "hook warmup of plugin '{plugin}'", LAST_LINES),
    ),
    Fault.ERROR_IN_WARMUP: Case(
        error=EngineRequestError,
        stage="warmup",
        says=(
            "POST http://127.0.0.1:.*/v1/chat/completions with 500",
            "plugin '{plugin}'",
            "illegal memory",
            LAST_LINES,
        ),
    ),
    Fault.HANG_IN_WARMUP: Case(
        error=EngineTimeoutError,
        stage="warmup",
        says=(
            f"not done within {SHORT_S:g} s in stage warmup",
            "hook warmup of plugin '{plugin}'",
            "timeout",
            LAST_LINES,
        ),
        limit_s=SHORT_S + SLACK_S,
    ),
    Fault.REFUSE_SLEEP: Case(
        error=EngineRequestError,
        stage="pre_snapshot",
        says=(
            "/release_memory_occupation with 400",
            "hook pre_snapshot of plugin '{plugin}'",
            "memory saver is not enabled",
        ),
    ),
    Fault.HANG_IN_SLEEP: Case(
        error=EngineTimeoutError,
        stage="pre_snapshot",
        says=(
            f"not done within {SHORT_S:g} s in stage pre_snapshot",
            "hook pre_snapshot of plugin '{plugin}'",
            LAST_LINES,
        ),
        limit_s=SHORT_S + SLACK_S,
    ),
    Fault.EXIT_WHILE_ASLEEP: Case(
        error=EngineExitedError, stage="post_restore", says=(EXITED, "in stage post_restore", "fault exit_while_asleep")
    ),
    Fault.EXIT_AT_WAKE: Case(
        error=EngineExitedError,
        stage="post_restore",
        says=(EXITED, "hook post_restore of plugin '{plugin}'", "fault exit_at_wake"),
    ),
    Fault.REFUSE_WAKE: Case(
        error=EngineRequestError,
        stage="post_restore",
        says=(
            "/resume_memory_occupation with 400",
            "hook post_restore of plugin '{plugin}'",
            "cannot resume the memory",
        ),
    ),
    Fault.HANG_IN_WAKE: Case(
        error=EngineTimeoutError,
        stage="post_restore",
        says=(
            f"not done within {SHORT_S:g} s in stage post_restore",
            "hook post_restore of plugin '{plugin}'",
            LAST_LINES,
        ),
        limit_s=SHORT_S + SLACK_S,
    ),
    Fault.DIFFERENT_AFTER_WAKE: Case(
        error=CanaryError,
        stage="canary_check",
        says=(
            "answers .* differently",
            "recorded 16 tokens",
            "now 16 tokens",
            "part at character 0",
            "keeps its weights",
        ),
    ),
    Fault.SHORTER_AFTER_WAKE: Case(
        error=CanaryError,
        stage="canary_check",
        says=("recorded 16 tokens", "now 8 tokens", r"part at character [1-9]\d+"),
    ),
}

VLLM_CASES = {
    Fault.REFUSE_SLEEP: replace(
        CASES[Fault.REFUSE_SLEEP],
        says=(
            r"/sleep\?level=1&mode=wait with 500",
            "hook pre_snapshot of plugin '{plugin}'",
            "Call to sleep method failed",
        ),
    ),
    Fault.REFUSE_WAKE: replace(
        CASES[Fault.REFUSE_WAKE],
        says=("/wake_up with 500", "hook post_restore of plugin '{plugin}'", "Call to wake_up method failed"),
    ),
}
"""Where vLLM's dialect has other words."""

HANGS: dict[Fault, Timeouts] = {
    Fault.HANG_AT_START: {"startup_timeout_s": START_S},
    Fault.NEVER_READY: {"startup_timeout_s": START_S},  # its port has to be open by then
    Fault.HANG_IN_WARMUP: {"warmup_timeout_s": SHORT_S},
    Fault.HANG_IN_SLEEP: {"sleep_timeout_s": SHORT_S},
    Fault.HANG_IN_WAKE: {"wake_timeout_s": SHORT_S},
}

NO_ERROR = {
    Fault.SLOW_START,
    Fault.LOG_FLOOD,
    Fault.EXIT_WHILE_SERVING,
    Fault.CHILDREN_IGNORE_SIGTERM,
    Fault.IGNORE_SIGTERM,
    Fault.REPEATS_IDS,  # found by the kit's live rules: tests/testing/test_rules.py
    Fault.REPEATS_SAMPLES,
    Fault.ADAPTER_LOST,  # tests/runtime/test_adapters.py, as the next two: they need adapters
    Fault.ADAPTERS_SWAPPED,
    Fault.ADAPTERS_IGNORED,
    Fault.DRAFT_LOST_AFTER_WAKE,  # tests/runtime/test_drafts.py
    Fault.SIGHT_LOST_AFTER_WAKE,  # tests/engine_plugins/test_media.py
    Fault.COMPILES_AT_FIRST_SCHEMA,  # tests/runtime/test_compilations.py
    Fault.HANG_WHILE_SERVING,  # tests/runtime/test_answering.py
}
"""Faults that a plain start and a wake survive; each has a test of its own, below or where the comment says."""


def live(boot: Boot, fault: Fault | None = None) -> None:
    """A start, a sleep and a wake. An engine that dies asleep gets the time for it."""
    boot.cold_start()
    boot.serve()
    boot.sleep()
    if fault is Fault.EXIT_WHILE_ASLEEP:
        boot.running_engine.wait(30)
    boot.wake()


def test_every_fault_is_tested() -> None:
    """A new fault of the stand-in needs a case here or a test of its own."""
    assert set(CASES) | NO_ERROR == set(Fault)


@BOTH_DIALECTS
@pytest.mark.parametrize("fault", CASES)
def test_a_fault_gives_its_own_error_in_time_and_leaves_no_process(
    standin_deployment: StandInDeployment, make_boot: MakeBoot, standin: type[StandIn], fault: Fault
) -> None:
    """The class says what failed; the message says where, and what was seen. The engine's session is empty afterwards."""
    case = {**CASES, **(VLLM_CASES if standin is StandInVLLM else {})}[fault]
    says = ".*".join(case.says).replace("{plugin}", standin.plugin_name)
    late = fault in (Fault.EXIT_WHILE_ASLEEP, Fault.EXIT_AT_START)  # after the stage before it, on a busy machine, too
    engine = standin(fault=fault, fault_s=2.0 if late else 0.5)
    boot = make_boot(standin_deployment(engine=engine, **HANGS.get(fault, {})))
    began = time.monotonic()
    with pytest.raises(case.error, match=f"(?s){says}") as caught:
        live(boot, fault)
    assert time.monotonic() - began < case.limit_s
    assert type(caught.value) is case.error
    last = boot.report.records[-1]
    assert (last.stage, last.ok) == (case.stage, False)
    assert last.error.startswith(f"{case.error.__name__}: ")
    if isinstance(caught.value, EngineExitedError):
        assert caught.value.exit_code_seen == EXIT_CODE
        assert f"fault {fault}" in caught.value.log_tail[-1]
    assert boot.running_engine.poll() is not None
    assert wait_until_gone(boot.running_engine.pid) == []


@BOTH_DIALECTS
def test_a_slow_start_is_no_fault(
    standin_deployment: StandInDeployment, make_boot: MakeBoot, standin: type[StandIn]
) -> None:
    """Torpor waits until the engine is ready."""
    boot = make_boot(standin_deployment(engine=standin(fault=Fault.SLOW_START, fault_s=0.5)))
    live(boot)
    assert boot.report.seconds(Stage.READY) >= 0.5


@BOTH_DIALECTS
def test_an_exit_while_serving_is_noticed_at_once(
    standin_deployment: StandInDeployment, make_boot: MakeBoot, standin: type[StandIn]
) -> None:
    """The next stage says what happened. The remaining children are ended."""
    boot = make_boot(standin_deployment(engine=standin(fault=Fault.EXIT_WHILE_SERVING)))
    boot.cold_start()
    boot.serve()
    engine = boot.running_engine
    with pytest.raises(httpx.TransportError):
        httpx.post(
            f"http://127.0.0.1:{boot.deployment.port}/v1/chat/completions",
            json={"messages": [{"role": "user", "content": CRASH_WORD}]},
            trust_env=False,
        )
    assert engine.wait(30) == EXIT_CODE
    assert wait_until_gone(engine.pid) == []
    with pytest.raises(EngineExitedError, match=f"{EXITED} in stage drain"):
        boot.sleep()


@pytest.mark.parametrize(("asleep", "stage"), [(False, "pre_snapshot"), (True, "post_restore")])
def test_a_dead_engine_core_is_reported_by_the_next_stage(
    standin_deployment: StandInDeployment, make_boot: MakeBoot, *, asleep: bool, stage: str
) -> None:
    """The server of vLLM lives on for some seconds and answers 500. Its log says why; Torpor ends the whole tree."""
    boot = make_boot(standin_deployment(engine=StandInVLLM()))
    boot.cold_start()
    boot.serve()
    if asleep:
        boot.sleep()
    engine = boot.running_engine
    os.kill(min(pid for pid in living_members(engine.pid) if pid != engine.pid), signal.SIGKILL)
    says = f"(?s)stage {stage}.*(EngineDeadError|The server had an error while processing your request)"
    with pytest.raises((EngineRequestError, EngineExitedError), match=says):
        (boot.wake if asleep else boot.sleep)()
    assert (boot.report.records[-1].stage, boot.report.records[-1].ok) == (stage, False)
    assert wait_until_gone(engine.pid) == []


FLOODED = textwrap.dedent("""
    import json, sys, time
    import psutil
    from torpor import Deployment, Model, testing
    from torpor.runtime.boot import Boot

    def started(fault):
        engine = getattr(testing, sys.argv[2])(fault=fault, warmup_requests=1)
        boot = Boot(
            Deployment(name="x", model=Model(path="/m"), plugins=(engine,), port=int(sys.argv[1]), warmup_timeout_s=120)
        )
        try:
            boot.cold_start()
            deadline = time.monotonic() + 60
            while fault and "the flood is over" not in boot.running_engine.log_tail()[-1] and time.monotonic() < deadline:
                time.sleep(0.05)  # the answer came through another descriptor: the last lines are still on their way
            return psutil.Process().memory_info().rss, boot.running_engine.log_tail()
        finally:
            boot.stop()

    before, _ = started(None)
    after, tail = started(testing.Fault.LOG_FLOOD)
    print(json.dumps({"grown": after - before, "last": tail[-1], "tail": sum(map(len, tail))}))
""")
"""In a process of its own, which has started an engine before: what it grows by then is the flood's."""


@BOTH_DIALECTS
def test_a_log_flood_costs_no_memory(free_port: int, standin: type[StandIn]) -> None:
    """Of 100 MB of output, one line has 10 MB. The framework's process grows by far less, and the tail is complete."""
    words = [sys.executable, "-c", FLOODED, str(free_port), standin.__name__]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["last"] == "standin: the flood is over", told
    assert told["tail"] < 500_000, told
    assert told["grown"] < 20_000_000, told


@BOTH_DIALECTS
@pytest.mark.parametrize("fault", [Fault.CHILDREN_IGNORE_SIGTERM, Fault.IGNORE_SIGTERM])
def test_a_process_that_ignores_sigterm_is_killed(
    standin_deployment: StandInDeployment, make_boot: MakeBoot, standin: type[StandIn], fault: Fault
) -> None:
    """After the grace period. A server process that ends by itself does not wait for such children."""
    grace_s = (
        SHORT_S if fault is Fault.IGNORE_SIGTERM else 20.0
    )  # time for a server that ends by itself, on a busy machine
    boot = make_boot(standin_deployment(engine=standin(fault=fault), stop_timeout_s=grace_s))
    boot.cold_start()
    began = time.monotonic()
    code = boot.stop()
    assert time.monotonic() - began < SHORT_S + SLACK_S
    assert code == (-signal.SIGKILL if fault is Fault.IGNORE_SIGTERM else 0)
    assert wait_until_gone(boot.running_engine.pid) == []


def test_a_port_in_use_stops_the_start(
    standin_deployment: StandInDeployment, make_boot: MakeBoot, foreign_server: HTTPServer
) -> None:
    """Nothing is launched."""
    boot = make_boot(standin_deployment())
    with pytest.raises(PortInUseError, match=f"Port {boot.deployment.port} is in use"):
        boot.cold_start()
    assert boot.engine is None


def test_another_program_that_takes_the_port_is_noticed(
    standin_deployment: StandInDeployment, make_boot: MakeBoot, free_port: int
) -> None:
    """It took the port between Torpor's check and the engine's bind. Torpor ends the engine."""
    servers: list[HTTPServer] = []

    @dataclass(frozen=True, kw_only=True)
    class Overtaken(StandIn):
        @hookimpl
        @override
        def launch(self, deployment: Deployment, recipe: Recipe) -> Engine:
            servers.append(serve_foreign(deployment.port))
            return StandIn.launch(self, deployment, recipe)

    boot = make_boot(standin_deployment(engine=Overtaken(fault=Fault.HANG_AT_START)))
    try:
        with pytest.raises(
            ForeignServerError, match=f"Port {free_port} answers, but not as the engine.*Another program"
        ):
            boot.cold_start()
    finally:
        servers[0].shutdown()
        servers[0].server_close()
    assert wait_until_gone(boot.running_engine.pid) == []


@BOTH_DIALECTS
def test_a_second_sleep_does_not_reach_the_engine(
    standin_deployment: StandInDeployment, make_boot: MakeBoot, standin: type[StandIn]
) -> None:
    """A plugin sends a second sleep. The guard refuses it, and the engine is ended in order."""
    again = standin.steps[0][-1]

    @dataclass(frozen=True, kw_only=True)
    class Twice(Plugin):
        plugin_name = "twice"

        @hookimpl(trylast=True)
        @override
        def pre_snapshot(self, deployment: Deployment, engine: Engine, client: httpx.Client) -> None:
            client.post(again, json={}).raise_for_status()

    boot = make_boot(standin_deployment(Twice(), engine=standin()))
    with pytest.raises(EngineRequestError, match=f"(?s){again} with 409.*plugin 'twice'.*out of order"):
        live(boot)
    log = "".join(boot.running_engine.log_tail())
    assert "Traceback" not in log
    assert "already sleeping" not in log
    assert wait_until_gone(boot.running_engine.pid) == []


@BOTH_DIALECTS
def test_a_wake_of_an_engine_that_is_awake_is_refused(
    standin_deployment: StandInDeployment, make_boot: MakeBoot, standin: type[StandIn]
) -> None:
    """A second resume would end SGLang, though not vLLM. The guard refuses it, and core ends the engine."""
    boot = make_boot(standin_deployment(engine=standin()))
    live(boot)
    with pytest.raises(GuardStateError, match=r"The guard refused 'wake' with 409: .*serving"):
        boot.wake()
    log = "".join(boot.running_engine.log_tail())
    assert "KeyError" not in log
    assert "not sleeping" not in log
    assert wait_until_gone(boot.running_engine.pid) == []


def test_ctrl_c_inside_the_launch_hook_leaves_nothing(
    standin_deployment: StandInDeployment, make_boot: MakeBoot
) -> None:
    """The signal arrives when the process exists, but before core knows it."""

    @dataclass(frozen=True, kw_only=True)
    class Interrupted(StandIn):
        @hookimpl
        @override
        def launch(self, deployment: Deployment, recipe: Recipe) -> Engine:
            engine = StandIn.launch(self, deployment, recipe)
            signal.raise_signal(signal.SIGINT)
            return engine

    boot = make_boot(standin_deployment(engine=Interrupted()))
    with pytest.raises(KeyboardInterrupt):
        boot.cold_start()
    assert wait_until_gone(boot.running_engine.pid) == []


SCRIPT = textwrap.dedent("""
    import sys, time
    from torpor import Deployment, Model
    from torpor.runtime.boot import Boot
    from torpor.engine.failure import stops_on_failure
    from torpor.errors import DrainTimeoutError
    from torpor.telemetry.stage_report import StageReport
    from torpor import testing

    def tell(name):
        if boot.engine:
            print(name, boot.engine.pid, flush=True)

    port, fault, stage, standin = int(sys.argv[1]), *sys.argv[2:]
    engine = getattr(testing, standin)(fault=testing.Fault(fault) if fault else None)
    deployment = Deployment(name="x", model=Model(path="/m"), plugins=(engine,), port=port, stop_timeout_s=0.5)
    boot = Boot(deployment, report=StageReport(on_begin=tell))
    with stops_on_failure(boot.stop, unless=DrainTimeoutError):
        boot.cold_start()
        boot.serve()
        if stage == "serving":
            print("serving", boot.engine.pid, flush=True)
            time.sleep(60)
        boot.sleep()
        boot.wake()
""")


@BOTH_DIALECTS
@pytest.mark.parametrize(
    ("stage", "fault"),
    [
        ("ready", Fault.HANG_AT_START),
        ("warmup", Fault.HANG_IN_WARMUP),
        ("serving", None),
        ("pre_snapshot", Fault.HANG_IN_SLEEP),
        ("post_restore", Fault.HANG_IN_WAKE),
    ],
)
def test_ctrl_c_leaves_no_process(
    tmp_path: Path, free_port: int, standin: type[StandIn], stage: str, fault: Fault | None
) -> None:
    """SIGINT reaches the framework in a stage. It ends, and so does the whole engine."""
    script = tmp_path / "boots.py"
    script.write_text(SCRIPT)
    with subprocess.Popen(
        [sys.executable, str(script), str(free_port), fault or "", stage, standin.__name__],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    ) as process:
        assert process.stdout is not None
        line = next(line for line in process.stdout if line.startswith(f"{stage} "))
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in errors
    assert wait_until_gone(int(line.split()[1])) == []


class Foreign(BaseHTTPRequestHandler):
    """A server that answers everything with 200, as a dashboard would."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"hi")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class calls it so
        pass


def serve_foreign(port: int) -> HTTPServer:
    """Start another program's server on the port."""
    server = HTTPServer(("127.0.0.1", port), Foreign)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return server


@pytest.fixture
def foreign_server(free_port: int) -> Iterator[HTTPServer]:
    """Another program on the deployment's port."""
    server = serve_foreign(free_port)
    yield server
    server.shutdown()
    server.server_close()
