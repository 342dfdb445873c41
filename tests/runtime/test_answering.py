"""`torpor.runtime.answering`: an engine that runs and does not answer any more is ended, and no other."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import threading
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest
import structlog

from torpor import SnapshotError
from torpor.runtime import answering, captured_secrets, later
from torpor.runtime.answering import AnswerWatch, Patience
from torpor.snapshots.sandbox.engine import SandboxEngine
from torpor.testing import Fault, StandIn, StandInVLLM
from torpor.testing.faults import CRASH_WORD

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import MakeBoot
    from torpor.runtime.boot import Boot
    from torpor.testing.pytest_plugin import StandInDeployment

pytestmark = pytest.mark.slow

LIMIT_S = 30.0


@pytest.fixture
def serving(
    standin_deployment: StandInDeployment, make_boot: MakeBoot, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Boot]:
    """A factory of boots that serve and are watched, with a question every 50 ms."""
    monkeypatch.setattr(answering, "PATIENCE", Patience(pause_s=0.05, failures=3))

    def make(engine: StandIn, *, health_timeout_s: float = 0.5) -> Boot:
        deployment = replace(standin_deployment(), plugins=(engine,), health_timeout_s=health_timeout_s)
        boot = make_boot(deployment)
        boot.answers = AnswerWatch(boot)
        boot.cold_start()
        boot.serve()
        return boot

    return make


def ask(boot: Boot, word: str = "hello", tokens: int = 1) -> threading.Thread:
    """Send a chat that may get no answer."""

    def chat() -> None:
        body = {"messages": [{"role": "user", "content": word}], "max_tokens": tokens}
        url = f"http://127.0.0.1:{boot.deployment.port}/v1/chat/completions"
        with contextlib.suppress(httpx.HTTPError):
            httpx.post(url, json=body, timeout=LIMIT_S, trust_env=False)

    thread = threading.Thread(target=chat, daemon=True)
    thread.start()
    return thread


def wait_for(condition: Callable[[], bool]) -> None:
    """Until it is true."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.02)


def questions(boot: Boot, count: int) -> list[str]:
    """What the next questions found, each as it was asked."""
    assert boot.answers is not None
    found: list[str] = []
    asked = boot.answers._asked
    boot.answers._asked = lambda engine: found.append(asked(engine)) or found[-1]  # type: ignore[method-assign, func-returns-value]
    wait_for(lambda: len(found) >= count)
    return found[:count]


@pytest.mark.fault("an engine's scheduler hangs while its server lives", area="engine", outcome="restarted")
@pytest.mark.parametrize("engine", [StandIn, StandInVLLM])
def test_an_engine_whose_scheduler_hangs_with_requests_is_killed(
    serving: Callable[..., Boot], engine: type[StandIn]
) -> None:
    """After three failures in a row; the log says what was asked."""
    with structlog.testing.capture_logs() as logs:
        boot = serving(engine(fault=Fault.HANG_WHILE_SERVING))
        asked = ask(boot, CRASH_WORD)
        assert boot.running_engine.wait(LIMIT_S) == -signal.SIGKILL
        asked.join(LIMIT_S)
    seen = [entry for entry in logs if entry["event"] == "engine_does_not_answer"]
    assert [entry["in_a_row"] for entry in seen] == [1, 2, 3]
    assert f"{boot.deployment.engine.health_path}, with 1 request(s) in flight, did not answer" in seen[0]["why"]
    assert [entry["event"] for entry in logs].count("engine_ended_for_not_answering") == 1


@pytest.mark.fault("an engine's server process hangs", area="engine", outcome="restarted")
def test_an_engine_whose_server_is_stopped_is_killed(serving: Callable[..., Boot]) -> None:
    """Its guard does not answer, so nobody knows how many requests wait."""
    boot = serving(StandIn())
    os.kill(boot.running_engine.pid, signal.SIGSTOP)
    assert boot.running_engine.wait(LIMIT_S) == -signal.SIGKILL


def test_a_chat_that_takes_long_ends_nothing(serving: Callable[..., Boot]) -> None:
    """Its client gets no byte for minutes, and the scheduler lives."""
    boot = serving(StandIn(token_s=0.02), health_timeout_s=LIMIT_S)
    ask(boot, tokens=5000)
    wait_for(lambda: boot.in_flight() == 1)
    assert questions(boot, 5) == [""] * 5
    assert boot.running_engine.poll() is None


def test_a_hanging_scheduler_without_requests_is_not_asked(serving: Callable[..., Boot]) -> None:
    """Nobody waits for it. It shows with the next request."""
    boot = serving(StandIn(), health_timeout_s=LIMIT_S)
    (scheduler,) = [one for one in psutil.Process(boot.running_engine.pid).children() if one.name() == "standin:rank0"]
    scheduler.suspend()
    assert questions(boot, 5) == [""] * 5
    scheduler.resume()


def test_a_failure_counts_only_in_a_row(serving: Callable[..., Boot], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two failures, then an answer, for ever: it serves on."""
    boot = serving(StandIn())
    answers = ["why", "why", ""]
    count = 0

    def asked(_: object) -> str:
        nonlocal count
        count += 1
        return answers[count % 3]

    monkeypatch.setattr(boot.answers, "_asked", asked)
    wait_for(lambda: count >= 12)
    assert boot.running_engine.poll() is None


@pytest.mark.fault("Torpor itself has no files left to ask an engine", area="engine", outcome="held")
def test_a_shortage_of_this_process_is_no_failure_of_the_engine(
    serving: Callable[..., Boot], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without files, memory or ports of its own it can ask nobody."""
    boot = serving(StandIn())

    def open_client(*_: object, **__: object) -> None:
        raise httpx.ConnectError("refused") from OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(later, "open_client", open_client)
    with structlog.testing.capture_logs() as logs:
        assert questions(boot, 5) == [""] * 5
    assert "Too many open files" in next(entry for entry in logs if entry["event"] == "engine_not_asked")["why"]
    assert boot.running_engine.poll() is None


def test_an_error_counts_only_after_the_path_has_worked(
    serving: Callable[..., Boot], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path that never worked tells nothing of the scheduler, and a new engine would answer the same."""
    boot = serving(StandIn(token_s=0.02), health_timeout_s=LIMIT_S)
    ask(boot, tokens=5000)
    wait_for(lambda: boot.in_flight() == 1)
    assert boot.answers is not None
    statuses = iter([500, 500, 200, 500, 404])
    opened = later.open_client

    def open_client(*args: object, **fields: object) -> httpx.Client:
        client = opened(*args, **fields)  # type: ignore[arg-type]
        original = client.get

        def get(path: str) -> httpx.Response:
            return httpx.Response(next(statuses)) if path == "/server_info" else original(path)

        client.get = get  # type: ignore[method-assign, assignment]
        return client

    with boot.answers.paused():
        monkeypatch.setattr(later, "open_client", open_client)
        boot.answers._path_works = False
        found = [boot.answers._asked(boot.running_engine) for _ in range(5)]
        monkeypatch.undo()
    assert found == ["", "", "", "/server_info, with 1 request(s) in flight, answered 500", ""]


def test_an_engine_whose_pid_is_unknown_is_not_killed_yet(
    serving: Callable[..., Boot], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sandbox has the pid 0 while /proc does not show it; a kill of 0 would end Torpor and its whole process group."""
    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, _: killed.append(pid))
    boot = serving(StandIn())
    assert boot.answers is not None
    engine = SimpleNamespace(pid=0)
    assert boot.answers._end(engine, "it hangs") is False  # type: ignore[arg-type]

    def full() -> dict[int, int]:
        raise OSError(errno.EMFILE, "Too many open files")

    sandboxed = SandboxEngine(SimpleNamespace(host_pids=full), replica_id="1", guard_key=None)  # type: ignore[arg-type]
    assert boot.answers._end(sandboxed, "it hangs") is False
    engine.pid = 17
    assert boot.answers._end(engine, "it hangs") is True  # type: ignore[arg-type]
    assert killed == [17]
    monkeypatch.undo()


def test_the_proof_of_a_busy_engine_may_take_the_whole_time(
    serving: Callable[..., Boot], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`health_timeout_s` counts for the guard as well: a stage's client waits less for the engine's proof."""
    given: list[float | None] = []
    opened = later.open_client

    def open_client(*args: object, proof_timeout_s: float | None = None, **fields: object) -> object:
        given.append(proof_timeout_s)
        return opened(*args, proof_timeout_s=proof_timeout_s, **fields)  # type: ignore[arg-type]

    monkeypatch.setattr(later, "open_client", open_client)
    boot = serving(StandIn(), health_timeout_s=LIMIT_S)
    questions(boot, 1)
    assert LIMIT_S in given


def test_an_engine_whose_sleep_is_refused_is_watched_on(
    serving: Callable[..., Boot], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A snapshot would hold a secret: the engine serves on."""
    boot = serving(StandIn(), health_timeout_s=LIMIT_S)
    monkeypatch.setattr(captured_secrets, "check_captured", refuse)
    with pytest.raises(SnapshotError):
        boot.sleep()
    assert questions(boot, 2) == [""] * 2


def refuse(*_: object) -> None:
    """As if the engine had a secret."""
    raise SnapshotError("It holds a secret.")


def test_no_question_is_asked_while_the_engine_sleeps(serving: Callable[..., Boot]) -> None:
    """One under way is finished first; after the wake there are questions again."""
    boot = serving(StandIn(), health_timeout_s=LIMIT_S)
    assert boot.answers is not None
    questions(boot, 1)
    boot.sleep(for_snapshot=False)
    wait_for(lambda: not any(one.name == f"torpor-answers-{boot.replica}" for one in threading.enumerate()))
    boot.wake()
    assert questions(boot, 3) == [""] * 3
    boot.stop()
    wait_for(lambda: not any(one.name == f"torpor-answers-{boot.replica}" for one in threading.enumerate()))
