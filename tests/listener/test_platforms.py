"""Listeners hear the same on Modal and on this machine."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.listener.hearing import HEARD, Hears, told
from tests.listener.test_events import COLD, SLEEP, WAKE
from tests.platforms.local.serve.served import wait_until
from tests.platforms.small import a_deployment, load
from torpor.listener import GpuFacts, ReplicaReplaced, Serving, StartFailed, Stopped
from torpor.platforms.local.backends import Standby
from torpor.platforms.local.server import LocalServer
from torpor.platforms.modal import SnapshotServer
from torpor.platforms.modal import gpus as modal_gpus
from torpor.testing import Fault

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torpor import Deployment

MODAL = """
from torpor.platforms.modal.server import SnapshotServer
from tests.platforms.small import a_deployment
class Server(SnapshotServer, deployment=a_deployment()):
    pass
"""


def heard_by(deployment: Deployment) -> Deployment:
    """The deployment with a listener."""
    return replace(deployment, plugins=(*deployment.plugins, Hears()))


@pytest.fixture
def environment() -> Iterator[None]:
    """The process's environment is as before afterwards: a start on Modal completes it."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.usefixtures("environment")
def test_a_listener_on_modal_hears_both_sides_of_the_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cold start and a sleep in one container; a restored wake, a failed one and the cold start after it in another one."""
    server_class = load(tmp_path, MODAL).Server
    server_class.deployment = heard_by(a_deployment(fault=Fault.EXIT_AT_WAKE))
    monkeypatch.setenv("MODAL_TASK_ID", "ta-first")
    server = server_class()
    try:
        SnapshotServer.start(server)
        assert told(HEARD) == [*COLD, *SLEEP]
        HEARD.clear()
        monkeypatch.setenv("MODAL_TASK_ID", "ta-second")
        SnapshotServer.wake(server)
    finally:
        SnapshotServer.stop(server)
    assert told(HEARD) == [
        *("post_restore failed", "StartFailed in post_restore", "Stopped"),
        *COLD,
        *("serve", "Serving", "ReplicaReplaced", "Stopped"),
    ]
    assert [event.boot for event in HEARD if isinstance(event, StartFailed | Serving)] == ["restored", "cold"]
    assert [event.reason for event in HEARD if isinstance(event, ReplicaReplaced)] == ["wake failed"]


def test_the_gpus_of_a_container_are_those_of_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Number, UUID and name; none if it fails or says something else."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '0, GPU-12, NVIDIA H100 80GB HBM3'\n")
    program.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert modal_gpus.container_gpus() == (GpuFacts(number=0, uuid="GPU-12", name="NVIDIA H100 80GB HBM3"),)
    program.write_text("#!/bin/sh\necho 'No devices were found'\n")
    assert modal_gpus.container_gpus() == ()
    program.write_text("#!/bin/sh\nexit 9\n")
    assert modal_gpus.container_gpus() == ()


@pytest.mark.usefixtures("environment")
def test_a_wake_on_modal_does_not_wait_for_the_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`nvidia-smi` may take a second. Until it has answered, no event names the GPUs of the container that was captured."""
    program, waits = tmp_path / "nvidia-smi", tmp_path / "waits"
    program.write_text(
        f'#!/bin/sh\nwhile [ -e {waits} ]; do sleep 0.02; done\necho "0, GPU-$MODAL_TASK_ID, NVIDIA L4"\n'
    )
    program.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    server_class = load(tmp_path, MODAL).Server
    server_class.deployment = heard_by(replace(a_deployment(), gpu="L4"))
    monkeypatch.setenv("MODAL_TASK_ID", "first")
    server = server_class()
    try:
        SnapshotServer.start(server)
        assert {gpu.uuid for event in HEARD for gpu in event.gpus} == {"GPU-first"}
        HEARD.clear()
        waits.touch()
        monkeypatch.setenv("MODAL_TASK_ID", "second")
        SnapshotServer.wake(server)
        waits.unlink()
        assert wait_until(lambda: bool(server._boot.places))
    finally:
        waits.unlink(missing_ok=True)
        SnapshotServer.stop(server)
    assert [event.gpus for event in HEARD if isinstance(event, Serving)] == [()]
    assert [gpu.uuid for gpu in HEARD[-1].gpus] == ["GPU-second"]


@pytest.mark.slow
def test_a_listener_hears_that_a_killed_engine_was_replaced(tmp_path: Path) -> None:
    """Here: `Stopped` with the signal, then a cold start that replaces it."""
    server = LocalServer(heard_by(a_deployment()), backend=Standby(), root=tmp_path, on_event=lambda _: None)
    try:
        server.start()
        assert wait_until(lambda: told(HEARD) == [*COLD, *SLEEP, *WAKE, "Serving"]), told(HEARD)
        HEARD.clear()
        os.kill(server.boot.running_engine.pid, signal.SIGKILL)
        assert server.boot.running_engine.wait(30.0) == -signal.SIGKILL
        server.start_again()
    finally:
        server.stop()
    assert told(HEARD) == ["Stopped", *COLD, "serve", "Serving", "ReplicaReplaced", "Stopped"]
    assert isinstance(HEARD[0], Stopped)
    assert HEARD[0].exit_code == -signal.SIGKILL
