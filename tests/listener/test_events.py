"""What listeners hear of a boot with the stand-in engine: in order, at every kind of start, whatever they do."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.listener.hearing import BESIDE, HEARD, Broken, Deaf, Hears, told
from torpor import EngineError, PluginError
from torpor.listener import ReplicaReplaced, Serving, StageEnded, StartFailed, Stopped
from torpor.testing import Fault, StandIn

if TYPE_CHECKING:
    from tests.conftest import MakeBoot
    from torpor.listener import LifecycleEvent
    from torpor.testing.pytest_plugin import StandInDeployment

COLD = ["preflight", "launch", "ready", "warmup", "canary"]
SLEEP = ["drain", "pre_snapshot"]
WAKE = ["post_restore", "canary_check", "serve"]


def test_a_listener_hears_a_cold_start_a_sleep_a_wake_and_the_end(
    standin_deployment: StandInDeployment, make_boot: MakeBoot
) -> None:
    """Stages with their records, serving, draining, stopped, in this order; a start without a listener has none of it."""
    boot = make_boot(standin_deployment(Hears()))
    boot.cold_start()
    boot.serve()
    boot.sleep()
    assert told(HEARD) == [*COLD, "serve", "Serving", "Draining", *SLEEP]
    assert BESIDE == ["cold began", "cold ended"]
    boot.wake()
    assert boot.stop() == 0
    assert told(HEARD) == [*COLD, "serve", "Serving", "Draining", *SLEEP, *WAKE, "Serving", "Stopped"]
    assert BESIDE == ["cold began", "cold ended", "woken began", "woken ended"]
    records = [event.record for event in HEARD if isinstance(event, StageEnded)]
    assert records == boot.report.records
    assert {event.deployment for event in HEARD} == {boot.deployment}
    assert {event.replica_id for event in HEARD[1:]} == {boot.running_engine.replica_id}
    assert [event.at for event in HEARD] == sorted(event.at for event in HEARD)
    assert isinstance(HEARD[-1], Stopped)
    assert HEARD[-1].exit_code == 0
    assert boot.stop() == 0
    assert sum(isinstance(event, Stopped) for event in HEARD) == 1
    assert make_boot(standin_deployment()).lifecycle.listeners is None


def test_a_listener_hears_why_a_start_failed(standin_deployment: StandInDeployment, make_boot: MakeBoot) -> None:
    """The failed stage with its record, the error as the caller gets it, then the engine's end."""
    boot = make_boot(standin_deployment(Hears(), engine=StandIn(fault=Fault.EXIT_AT_WAKE)))
    boot.cold_start()
    boot.sleep()
    HEARD.clear()
    with pytest.raises(EngineError) as failure:
        boot.wake()
    boot.stop()
    assert told(HEARD) == ["post_restore failed", "StartFailed in post_restore", "Stopped"]
    assert isinstance(HEARD[1], StartFailed)
    assert HEARD[1].error is failure.value
    assert HEARD[1].boot == "woken"


def test_a_listener_hears_that_a_replica_replaces_another_one(
    standin_deployment: StandInDeployment, make_boot: MakeBoot
) -> None:
    """After it serves, with the reason; once for each replica."""
    boot = make_boot(standin_deployment(Hears()))
    boot.reason, boot.restarts = "engine ended", 2
    boot.cold_start()
    boot.serve()
    boot.sleep()
    boot.wake()
    boot.stop()
    (replaced,) = [event for event in HEARD if isinstance(event, ReplicaReplaced)]
    assert (replaced.reason, replaced.restarts) == ("engine ended", 2)
    assert isinstance(HEARD[HEARD.index(replaced) - 1], Serving)


@pytest.mark.fault("a listener raises at every event", area="plugins", outcome="held")
def test_a_listener_that_raises_fails_no_start(
    standin_deployment: StandInDeployment, make_boot: MakeBoot, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even by SystemExit. It is logged with the plugin's name, and it hears the next event; others hear all."""
    boot = make_boot(standin_deployment(Broken()))
    boot.cold_start()
    boot.serve()
    boot.stop()
    assert told(HEARD) == [*COLD, "serve", "Serving", "Stopped"]
    out = capsys.readouterr().out
    assert out.count("listener_failed") == len(HEARD)
    assert "SystemExit: no" in out
    assert "background_failed" in out
    assert "plugin=broken" in out


@pytest.mark.fault("a listener hangs, and so does its background thread", area="plugins", outcome="held")
def test_a_listener_that_hangs_costs_its_deadline_once(
    standin_deployment: StandInDeployment, make_boot: MakeBoot, capsys: pytest.CaptureFixture[str]
) -> None:
    """It hears one event, delays no start, one sleep by its deadline and nothing afterwards; another listener hears all."""
    plugins = standin_deployment(Deaf(), engine=StandIn()).plugins
    boot = make_boot(replace(standin_deployment(Hears()), plugins=(Hears(), *plugins)))
    boot.cold_start()
    boot.serve()
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        boot.sleep()
        seconds.append(time.perf_counter() - began)
        boot.wake()
    boot.stop()
    heard: list[LifecycleEvent] = list(HEARD)
    assert told(heard).count("preflight") == 2
    assert told(heard).count("launch") == 1
    assert told(heard)[-1] == "Stopped"
    assert seconds[0] >= Deaf.listener_deadline_s > seconds[1]
    out = capsys.readouterr().out
    assert out.count("listener_failed") == 1
    assert out.count("background_not_ended") == 1  # no wake starts it again


def test_no_listening_thread_is_left_in_a_snapshot(standin_deployment: StandInDeployment, make_boot: MakeBoot) -> None:
    """A sleeping replica has no thread of a listener."""
    boot = make_boot(standin_deployment(Hears()))
    boot.cold_start()
    boot.serve()
    boot.sleep()
    deadline = time.monotonic() + 5
    while left := [thread.name for thread in threading.enumerate() if "hears" in thread.name]:
        assert time.monotonic() < deadline, left


def test_an_engine_that_has_stopped_does_not_serve_afterwards(
    standin_deployment: StandInDeployment, make_boot: MakeBoot
) -> None:
    """A stop may overtake the end of a wake in another thread. Nothing is heard after `Stopped`, and no thread is left."""
    boot = make_boot(standin_deployment(Hears()))
    boot.cold_start()
    boot.stop()
    boot.telling.serving()
    boot.telling.flush()
    assert told(HEARD) == [*COLD, "Stopped"]
    assert BESIDE == []


@pytest.mark.fault("no thread can be started for a listener", area="plugins", outcome="held")
def test_a_start_does_not_fail_without_threads_for_listeners(
    standin_deployment: StandInDeployment,
    make_boot: MakeBoot,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What cannot be told is dropped, and that is logged; once there are threads again, the listener hears on."""
    start = threading.Thread.start

    def refused(self: threading.Thread) -> None:
        if "hears" in self.name:
            raise RuntimeError("can't start new thread")
        start(self)

    boot = make_boot(standin_deployment(Hears()))
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refused)
        boot.cold_start()
        boot.serve()
    assert HEARD == []
    out = capsys.readouterr().out
    assert "StageEnded is dropped" in out
    assert "background_failed" in out
    boot.stop()
    assert told(HEARD) == ["Stopped"]


async def _async(self: object, event: object) -> None:
    """Never awaited."""


def _no_event(self: object) -> None:
    """Takes no event."""


@pytest.mark.parametrize(
    ("method", "seen"), [(_async, "is an async def"), (_no_event, r"does not take \(self, event\)")]
)
def test_a_listener_that_would_not_run_is_refused(
    standin_deployment: StandInDeployment, method: object, seen: str
) -> None:
    """When the deployment is made, with the plugin's name and what to write."""
    wrong = type("Wrong", (Hears,), {"on_event": method, "plugin_name": "wrong"})
    with pytest.raises(PluginError, match=rf"'wrong': on_event {seen}"):
        standin_deployment(wrong())


@pytest.mark.parametrize("seconds", ["5", True, 0, -1.0, 601, float("inf"), float("nan")])
def test_a_listener_has_a_deadline_that_ends(standin_deployment: StandInDeployment, seconds: object) -> None:
    """Seconds, up to ten minutes: anything else would hold up a sleep, or fail it."""
    wrong = type("Wrong", (Hears,), {"listener_deadline_s": seconds, "plugin_name": "wrong"})
    with pytest.raises(PluginError, match=r"'wrong': listener_deadline_s is .*more than 0 and at most 600"):
        standin_deployment(wrong())
