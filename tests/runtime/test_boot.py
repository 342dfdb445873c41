"""`torpor.runtime.boot`: when each hook runs, the guard's state at that time, and the records."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import httpx
import pytest
from typing_extensions import override

from tests.conftest import BOTH_DIALECTS, wait_until_gone
from torpor import (
    BuildPlan,
    CanaryError,
    EngineRequestError,
    ImagePatch,
    Plugin,
    PluginError,
    Preflight,
    PreflightError,
    TorporError,
    hookimpl,
)
from torpor.runtime.boot import Boot
from torpor.runtime.deadline import Deadline
from torpor.telemetry.records import read_records
from torpor.telemetry.stage_report import StageReport
from torpor.telemetry.stages import Stage
from torpor.testing import Fault, StandIn, StandInVLLM

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import MakeBoot
    from torpor import Deployment, Engine, Recipe
    from torpor.testing.pytest_plugin import StandInDeployment

TRANSCRIPT: list[str] = []
"""What the plugins below recorded, in order. Plugins themselves hold no state."""


@pytest.fixture(autouse=True)
def _empty_transcript() -> None:
    TRANSCRIPT.clear()


@pytest.fixture
def background() -> Iterator[ThreadPoolExecutor]:
    """Runs functions in threads."""
    with ThreadPoolExecutor(4) as pool:
        yield pool


def guard_state(engine: Engine, client: httpx.Client) -> str:
    """The guard's state, by its own report."""
    assert engine.guard_key == client.headers["torpor-key"]
    answer = client.get("/_torpor/state").json()
    assert answer["replica_id"] == engine.replica_id
    return str(answer["state"])


@dataclass(frozen=True, kw_only=True)
class Recorder(Plugin):
    """Records every hook, with the guard's state if there is an engine."""

    plugin_name = "recorder"
    name: str = "recorder"

    @hookimpl
    @override
    def prepare_image(self, deployment: Deployment) -> ImagePatch:
        TRANSCRIPT.append(f"{self.name}: prepare_image")
        return ImagePatch()

    @hookimpl
    @override
    def compile_kernels(self, deployment: Deployment) -> BuildPlan:
        TRANSCRIPT.append(f"{self.name}: compile_kernels")
        return BuildPlan()

    @hookimpl
    @override
    def warmup(self, deployment: Deployment, engine: Engine, client: httpx.Client) -> None:
        TRANSCRIPT.append(f"{self.name}: warmup ({guard_state(engine, client)})")

    @hookimpl
    @override
    def pre_snapshot(self, deployment: Deployment, engine: Engine, client: httpx.Client) -> None:
        TRANSCRIPT.append(f"{self.name}: pre_snapshot ({guard_state(engine, client)})")

    @hookimpl
    @override
    def post_restore(self, deployment: Deployment, engine: Engine, client: httpx.Client) -> None:
        TRANSCRIPT.append(f"{self.name}: post_restore ({guard_state(engine, client)})")


@dataclass(frozen=True, kw_only=True)
class SecondRecorder(Recorder):
    """A second plugin that records."""

    plugin_name = "second"
    name: str = "second"


@dataclass(frozen=True, kw_only=True)
class RecordedEngine(StandIn):
    """The stand-in engine; it also records its own hooks."""

    plugin_name = "engine"

    @hookimpl
    @override
    def prepare_image(self, deployment: Deployment) -> ImagePatch | None:
        TRANSCRIPT.append("engine: prepare_image")
        return None

    @hookimpl
    @override
    def compile_kernels(self, deployment: Deployment) -> BuildPlan | None:
        TRANSCRIPT.append("engine: compile_kernels")
        return None

    @hookimpl
    @override
    def launch(self, deployment: Deployment, recipe: Recipe) -> Engine:
        TRANSCRIPT.append("engine: launch")
        return StandIn.launch(self, deployment, recipe)

    @hookimpl
    @override
    def warmup(self, deployment: Deployment, engine: Engine, client: httpx.Client) -> None:
        TRANSCRIPT.append(f"engine: warmup ({guard_state(engine, client)})")
        StandIn.warmup(self, deployment, engine, client)

    @hookimpl(trylast=True)
    @override
    def pre_snapshot(self, deployment: Deployment, engine: Engine, client: httpx.Client) -> None:
        TRANSCRIPT.append(f"engine: pre_snapshot ({guard_state(engine, client)})")
        StandIn.pre_snapshot(self, deployment, engine, client)

    @hookimpl(tryfirst=True)
    @override
    def post_restore(self, deployment: Deployment, engine: Engine, client: httpx.Client) -> None:
        TRANSCRIPT.append(f"engine: post_restore ({guard_state(engine, client)})")
        StandIn.post_restore(self, deployment, engine, client)


def test_all_hooks_run_in_order_through_a_start_and_two_restores(
    standin_deployment: StandInDeployment, make_boot: MakeBoot
) -> None:
    """Plugins run in the deployment's order, except that the engine sleeps last and wakes first."""
    deployment = standin_deployment(Recorder(), engine=RecordedEngine())
    with_third = [*deployment.plugins, SecondRecorder()]  # listed after the engine
    boot = make_boot(replace(deployment, plugins=tuple(with_third)))
    boot.cold_start()
    boot.serve()
    for _ in range(2):
        boot.sleep()
        boot.wake()
    assert boot.stop() == 0
    assert TRANSCRIPT == [
        "recorder: prepare_image",
        "engine: prepare_image",
        "second: prepare_image",
        "recorder: compile_kernels",
        "engine: compile_kernels",
        "second: compile_kernels",
        "engine: launch",
        "recorder: warmup (starting)",
        "engine: warmup (starting)",
        "second: warmup (starting)",
        "recorder: pre_snapshot (draining)",
        "second: pre_snapshot (draining)",
        "engine: pre_snapshot (draining)",
        "engine: post_restore (waking)",
        "recorder: post_restore (waking)",
        "second: post_restore (waking)",
        "recorder: pre_snapshot (draining)",
        "second: pre_snapshot (draining)",
        "engine: pre_snapshot (draining)",
        "engine: post_restore (waking)",
        "recorder: post_restore (waking)",
        "second: post_restore (waking)",
    ]


@BOTH_DIALECTS
def test_every_stage_is_recorded(
    standin_deployment: StandInDeployment, make_boot: MakeBoot, standin: type[StandIn], tmp_path: Path
) -> None:
    """Each stage has one record with kind of start, restore count and each plugin's time. The file holds the same records."""
    path = tmp_path / "records" / "boot.jsonl"
    begun: list[str] = []
    report = StageReport(path, on_begin=begun.append)
    boot = make_boot(standin_deployment(Recorder(), engine=standin()), report=report)
    boot.cold_start()
    boot.serve()
    boot.sleep()
    boot.wake()
    cold = ["preflight", "launch", "ready", "warmup", "canary", "serve", "drain", "pre_snapshot"]
    woke = ["post_restore", "canary_check", "serve"]
    records = report.records
    assert [record.stage for record in records] == cold + woke == begun
    assert [record.boot for record in records] == ["cold"] * len(cold) + ["woken"] * len(woke)
    assert {(record.deployment, record.replica) for record in records} == {(boot.deployment.name, boot.deployment.name)}
    assert [record.restore_count for record in records] == [0] * len(cold) + [1] * len(woke)
    assert all(record.ok and record.error == "" and record.seconds >= 0 for record in records)
    assert {record.replica_id for record in records[1:]} == {boot.running_engine.replica_id}
    assert list(records[3].plugins) == ["recorder", standin.plugin_name]
    assert list(records[7].plugins) == ["recorder", standin.plugin_name]
    assert list(records[8].plugins) == [standin.plugin_name, "recorder"]
    assert read_records(path) == records
    assert report.seconds(Stage.READY) == records[2].seconds


@BOTH_DIALECTS
def test_a_boot_can_sleep_before_it_ever_served(
    standin_deployment: StandInDeployment, make_boot: MakeBoot, standin: type[StandIn]
) -> None:
    """A captured engine sleeps right after its canary. The first public answer comes after the wake."""
    boot = make_boot(standin_deployment(engine=standin()))
    boot.cold_start()
    assert _public(boot).status_code == 503
    boot.sleep()
    assert _public(boot).status_code == 503
    boot.wake()
    assert _public(boot).status_code == 200


@BOTH_DIALECTS
def test_a_wake_brings_a_new_key(
    standin_deployment: StandInDeployment, make_boot: MakeBoot, standin: type[StandIn]
) -> None:
    """After the wake the guard refuses the old key, which every replica of the snapshot contains."""
    boot = make_boot(standin_deployment(engine=standin()))
    boot.cold_start()
    old = boot.running_engine.guard_key
    assert old is not None
    boot.sleep()
    boot.wake()
    assert boot.running_engine.guard_key != old
    answer = httpx.get(_url(boot, "/_torpor/state"), headers={"torpor-key": old}, trust_env=False)
    assert answer.status_code == 403


@BOTH_DIALECTS
@pytest.mark.fault("a request is still in flight when a sleep's deadline comes", area="sleep", outcome="held")
def test_requests_in_flight_at_the_drains_deadline_are_cut_off(
    standin_deployment: StandInDeployment, make_boot: MakeBoot, standin: type[StandIn], background: ThreadPoolExecutor
) -> None:
    """No client can keep an engine awake: at the deadline it loses its answer."""
    deployment = standin_deployment(engine=standin(token_s=0.01, warmup_requests=0), drain_timeout_s=0.2)
    boot = make_boot(deployment)
    boot.cold_start()
    boot.serve()
    answer = background.submit(lambda: _chat(boot, tokens=500))
    _wait_for(boot, in_flight=1)
    boot.sleep(for_snapshot=False)
    with pytest.raises(httpx.TransportError):
        answer.result()
    boot.wake()
    assert _public(boot).status_code == 200


@BOTH_DIALECTS
@pytest.mark.slow
def test_requests_in_flight_are_answered_before_a_sleep(
    standin_deployment: StandInDeployment, make_boot: MakeBoot, standin: type[StandIn], background: ThreadPoolExecutor
) -> None:
    """A drain waits for requests in flight. Meanwhile new requests are refused with Retry-After."""
    boot = make_boot(standin_deployment(engine=standin(token_s=0.1, warmup_requests=0), drain_timeout_s=10))
    boot.cold_start()
    boot.serve()
    answer = background.submit(lambda: _chat(boot, tokens=20))
    _wait_for(boot, in_flight=1)
    sleep = background.submit(boot.sleep)
    _wait_for(boot, state="draining")
    refused = _chat(boot, tokens=1)
    assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
    sleep.result()
    assert len(answer.result().json()["choices"][0]["message"]["content"].split()) == 20


@BOTH_DIALECTS
def test_a_different_canary_can_be_only_a_warning(
    standin_deployment: StandInDeployment,
    make_boot: MakeBoot,
    standin: type[StandIn],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`canary_mismatch="warn"` logs the difference and serves."""
    deployment = standin_deployment(engine=standin(fault=Fault.DIFFERENT_AFTER_WAKE))
    boot = make_boot(replace(deployment, canary_mismatch="warn"))
    boot.cold_start()
    boot.sleep()
    boot.wake()
    assert _public(boot).status_code == 200
    assert "canary_mismatch" in capsys.readouterr().out


def test_the_canary_of_a_boot_is_what_the_engine_answers(
    standin_deployment: StandInDeployment, make_boot: MakeBoot
) -> None:
    """The canary is recorded after the warm-up: prompt, number of tokens and text."""
    boot = make_boot(standin_deployment())
    boot.cold_start()
    assert boot.canary is not None
    assert boot.canary.kind == "text"
    assert boot.canary.answer["tokens"] == len(str(boot.canary.answer["text"]).split()) == 16


@dataclass(frozen=True, kw_only=True)
class Checked(Plugin):
    """Adds a check before the launch."""

    plugin_name = "checked"
    code: str
    timeout_s: float = 5.0

    @hookimpl
    @override
    def compile_kernels(self, deployment: Deployment) -> BuildPlan:
        check = Preflight(
            name="weights", argv=("python3", "-c", self.code), timeout_s=self.timeout_s, cure="Download them again."
        )
        return BuildPlan(preflight=(check,))


@pytest.mark.parametrize(
    ("code", "timeout_s", "says"),
    [
        ("import sys; sys.exit('3 files are truncated')", 5.0, "failed: 3 files are truncated Download them again."),
        ("import sys; sys.exit(7)", 5.0, "failed: exit code 7, no output. Download them again."),
        ("import time; time.sleep(60)", 0.2, "took longer than 0.2 s. Download them again."),
    ],
)
def test_a_failed_check_stops_the_start_before_the_launch(
    standin_deployment: StandInDeployment, make_boot: MakeBoot, code: str, timeout_s: float, says: str
) -> None:
    """The message ends with the cure, and no engine is started."""
    boot = make_boot(standin_deployment(Checked(code=code, timeout_s=timeout_s)))
    with pytest.raises(PreflightError, match=r"Preflight check 'weights' ") as caught:
        boot.cold_start()
    assert str(caught.value).endswith(says)
    assert boot.engine is None
    assert [(record.stage, record.ok) for record in boot.report.records] == [("preflight", False)]


def test_an_exception_in_a_hook_names_the_hook_and_the_plugin(
    standin_deployment: StandInDeployment, make_boot: MakeBoot
) -> None:
    """A plugin's own error is raised unchanged, with a note. The engine is ended."""

    @dataclass(frozen=True, kw_only=True)
    class Careless(Plugin):
        plugin_name = "careless"

        @hookimpl
        @override
        def warmup(self, deployment: Deployment, engine: Engine, client: httpx.Client) -> None:
            raise ZeroDivisionError("no tokens")

    boot = make_boot(standin_deployment(Careless()))
    with pytest.raises(ZeroDivisionError, match="no tokens") as caught:
        boot.cold_start()
    assert caught.value.__notes__ == ["in hook warmup of plugin 'careless'"]
    assert boot.running_engine.poll() is not None
    assert boot.report.records[-1].error == "ZeroDivisionError: no tokens"


def test_a_launch_that_returns_nothing_is_an_error(standin_deployment: StandInDeployment, make_boot: MakeBoot) -> None:
    """The engine plugin must return the engine. An engine that it started is ended."""

    @dataclass(frozen=True, kw_only=True)
    class Forgetful(StandIn):
        @hookimpl
        @override
        def launch(self, deployment: Deployment, recipe: Recipe) -> Engine:
            TRANSCRIPT.append(str(StandIn.launch(self, deployment, recipe).pid))
            return None  # type: ignore[return-value]  # the mistake

    boot = make_boot(standin_deployment(engine=Forgetful()))
    with pytest.raises(PluginError, match=r"'standin': launch returned None; it has to return the started engine"):
        boot.cold_start()
    assert wait_until_gone(int(TRANSCRIPT[-1])) == []


def test_a_passed_deadline_is_reported_even_if_its_timer_is_late(
    standin_deployment: StandInDeployment, make_boot: MakeBoot
) -> None:
    """A request of the hook has the same time limit, and may reach it first on a busy machine."""
    boot = make_boot(standin_deployment())
    boot.cold_start()
    deadline = Deadline(boot.running_engine, 0.05)
    with deadline:
        assert deadline._timer is not None
        deadline._timer.cancel()  # its thread gets no CPU time
        time.sleep(0.06)
    assert deadline.passed
    in_time = Deadline(boot.running_engine, 20.0)
    with in_time:
        pass
    assert not in_time.passed
    assert boot.running_engine.poll() is None


def test_a_stage_out_of_order_says_what_comes_first(standin_deployment: StandInDeployment) -> None:
    """A sleep before the cold start is an error. A stop without an engine does nothing."""
    boot = Boot(standin_deployment())
    assert boot.stop() is None
    with pytest.raises(TorporError, match="call cold_start first"):
        boot.sleep()


@BOTH_DIALECTS
def test_a_second_sleep_is_refused_and_ends_the_boot(
    standin_deployment: StandInDeployment, make_boot: MakeBoot, standin: type[StandIn]
) -> None:
    """The guard refuses it before it reaches the engine, which it could kill (SGLang). Core then ends the engine."""
    boot = make_boot(standin_deployment(engine=standin()))
    boot.cold_start()
    boot.sleep()
    with pytest.raises(TorporError, match="The guard refused 'drain' with 409"):
        boot.sleep()
    log = "\n".join(boot.running_engine.log_tail())
    assert "unmapped" not in log
    assert "already sleeping" not in log


@pytest.mark.slow
@pytest.mark.parametrize("forgets", ["", "reload_weights"])
def test_a_path_that_occurs_twice_in_a_wake_passes_twice(
    standin_deployment: StandInDeployment, make_boot: MakeBoot, forgets: str
) -> None:
    """Level 2 of vLLM drops the weights: wake the weights, load them, then wake the rest. Only this order passes."""

    @dataclass(frozen=True, kw_only=True)
    class Dropping(StandInVLLM):
        steps = (("/sleep",), ("/wake_up", "/collective_rpc", "/wake_up", "/collective_rpc"))

        @hookimpl(trylast=True)
        @override
        def pre_snapshot(self, deployment: Deployment, engine: Engine, client: httpx.Client) -> None:
            client.post("/sleep?level=2&mode=wait").raise_for_status()

        @hookimpl(tryfirst=True)
        @override
        def post_restore(self, deployment: Deployment, engine: Engine, client: httpx.Client) -> None:
            client.post("/wake_up?tags=weights").raise_for_status()
            if not forgets:
                client.post("/collective_rpc", json={"method": "reload_weights"}).raise_for_status()
            client.post("/wake_up?tags=kv_cache").raise_for_status()
            client.post("/collective_rpc", json={"method": "torpor_renew", "args": ["7"]}).raise_for_status()

    boot = make_boot(standin_deployment(engine=Dropping()))
    boot.cold_start()
    boot.sleep()
    if forgets:
        with pytest.raises(EngineRequestError, match=r"/wake_up\?tags=kv_cache with 409.*out of order"):
            boot.wake()
        return
    boot.wake()
    boot.sleep()
    boot.wake()
    assert _public(boot).status_code == 200


def test_a_canary_check_without_a_canary_is_an_error(
    standin_deployment: StandInDeployment, make_boot: MakeBoot
) -> None:
    """A wake compares with the recorded answer, so without one it fails."""
    boot = make_boot(standin_deployment())
    boot.cold_start()
    boot.sleep()
    boot.canary = None
    with pytest.raises(TorporError, match="No canary was recorded") as caught:
        boot.wake()
    assert not isinstance(caught.value, CanaryError)


def _url(boot: Boot, path: str) -> str:
    return f"http://127.0.0.1:{boot.deployment.port}{path}"


def _public(boot: Boot) -> httpx.Response:
    return httpx.get(_url(boot, "/v1/models"), trust_env=False)


def _chat(boot: Boot, *, tokens: int) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": "Go on."}], "max_tokens": tokens, "temperature": 0}
    return httpx.post(_url(boot, "/v1/chat/completions"), json=body, trust_env=False, timeout=30)


def _guard(boot: Boot) -> dict[str, object]:
    key = {"torpor-key": boot.running_engine.guard_key or ""}
    answer: dict[str, object] = httpx.get(_url(boot, "/_torpor/state"), headers=key, trust_env=False).json()
    return answer


def _wait_for(boot: Boot, **wanted: object) -> None:
    deadline = time.monotonic() + 30
    while (seen := _guard(boot)) != {**seen, **wanted}:
        assert time.monotonic() < deadline, f"{seen} never became {wanted}"
        time.sleep(0.005)
