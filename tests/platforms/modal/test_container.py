"""`SnapshotServer` and `fill_volumes` in Modal's real container entrypoint, on the files that Modal would mount."""

from __future__ import annotations

import fcntl
import json
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest

from tests.chat_server import ChatServer, Reply
from tests.modal_plane import Container, LogEntry, ModalPlane
from tests.platforms.modal.modal_lines import RESTORING
from torpor.platforms.modal.log import classify
from torpor.platforms.modal.log_lines import LogLine
from torpor.testing import Fault
from torpor.testing.faults import CRASH_WORD
from torpor.testing.ports import unused_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.modal_plane import DeployedFunction

APP = """
import modal
from dataclasses import dataclass
from torpor import BuildPlan, BuildStep, Deployment, ImagePatch, Model, Plugin, hookimpl
from torpor.platforms.modal import SnapshotServer, cls_options, concurrency, download_options, fill_volumes
from torpor.testing import StandIn

@dataclass(frozen=True, kw_only=True)
class Weights(Plugin):
    plugin_name = "weights"

    @hookimpl
    def prepare_image(self, deployment):
        return ImagePatch(base="registry.example/engine:1", env={"SEEN": "in the container"}, volumes={VOLUME: "weights"})

    @hookimpl
    def compile_kernels(self, deployment):
        step = BuildStep(name="download", argv=("sh", "-c", 'echo "$SEEN" > VOLUME/file; test FAULT != broken'), order=10,
                         timeout_s=10, volumes={VOLUME: "weights"})
        return BuildPlan(steps=(step,))

deployment = Deployment(
    name="held", model=Model(path="/models/small"), port=PORT, startup_timeout_s=20, warmup_timeout_s=10,
    sleep_timeout_s=10, wake_timeout_s=10, stop_timeout_s=2, cold_start_on_failed_wake=COLD_START,
    plugins=(Weights(), StandIn(fault=STANDIN_FAULT)))
app = modal.App(deployment.name)

@app.cls(**cls_options(deployment))
@modal.concurrent(**concurrency(deployment))
class Server(SnapshotServer, deployment=deployment):
    pass

@app.function(**download_options(deployment))
def download() -> None:
    fill_volumes(deployment)
"""


def has_eth0() -> bool:
    """Whether there is an eth0 with an address: Modal's entrypoint waits for the port there."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            fcntl.ioctl(probe.fileno(), 0x8915, struct.pack("256s", b"eth0"))
        except OSError:
            return False
    return True


pytestmark = pytest.mark.slow
needs_eth0 = pytest.mark.skipif(not has_eth0(), reason="Modal's entrypoint looks for the server's port on eth0")


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ModalPlane]:
    """An empty control plane."""
    home = tmp_path / "home"
    home.mkdir()
    with ModalPlane(home) as started:
        yield started
        assert started.store.unknown_calls == []


def deployed(
    plane: ModalPlane, folder: Path, port: int, fault: str = "", *, cold_start: bool = True
) -> DeployedFunction:
    """The app, deployed by the real client."""
    app = folder / "app"
    app.mkdir()
    volume = folder / "volume"
    volume.mkdir()
    standin_fault = repr(str(fault)) if fault in tuple(Fault) else "None"
    source = (
        APP.replace("COLD_START", str(cold_start))
        .replace("STANDIN_FAULT", standin_fault)
        .replace("FAULT", fault or "none")
        .replace("PORT", str(port))
    )
    (app / "held_app.py").write_text(source.replace("VOLUME/", f"{volume}/").replace("VOLUME", repr(str(volume))))
    finished = plane.modal("deploy", "held_app.py", cwd=app)
    assert finished.code == 0, finished.output
    return plane.app("held").service("Server")


def ask(port: int, words: str = "Hello.") -> int:
    body = {"model": "small", "messages": [{"role": "user", "content": words}], "max_tokens": 4}
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    return httpx.post(url, json=body, trust_env=False, timeout=30).status_code


def events_in(log: str) -> list[dict[str, object]]:
    """Torpor's own events in the lines of a container's log."""
    return [json.loads(line) for line in log.splitlines() if line.startswith('{"torpor": ')]


def engines(port: int) -> list[psutil.Process]:
    """Processes of the stand-in on that port, without zombies."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        argv = process.info["cmdline"] or []
        if process.info["status"] != psutil.STATUS_ZOMBIE and "torpor.testing.standin" in argv and str(port) in argv:
            found.append(process)
    return found


@needs_eth0
def test_the_engine_sleeps_in_the_snapshot_and_serves_after_it(plane: ModalPlane, tmp_path: Path) -> None:
    """The real entrypoint runs, in this order: cold start and sleep, snapshot, wake, port, serving."""
    port = unused_port()
    server = deployed(plane, tmp_path, port)
    with Container(plane, server, tmp_path, snapshot=True) as container:
        container.wait_for_snapshot()
        assert ask(port) == 503
        assert not container.task.ready
        time.sleep(0.3)
        assert not container.task.ready
        container.restore()
        container.wait_until_ready()
        assert ask(port) == 200
        assert container.kill_switch() == 0
        log = container.log()
    assert container.task.failure is None
    assert engines(port) == []
    stages = [(facts["boot"], facts["stage"]) for facts in events_in(log) if facts["torpor"] == "stage"]
    assert [stage for _, stage in stages] == [
        *("preflight", "launch", "ready", "warmup", "canary", "drain", "pre_snapshot"),
        *("post_restore", "canary_check", "serve"),
    ]
    assert [boot for boot, _ in stages] == ["cold"] * 7 + ["woken"] * 3


@needs_eth0
def test_a_container_that_is_restored_elsewhere_proves_it(plane: ModalPlane, tmp_path: Path) -> None:
    """The real entrypoint passes on the new container's id; log and health headers say that the replica was restored."""
    port = unused_port()
    server = deployed(plane, tmp_path, port)
    with Container(plane, server, tmp_path, snapshot=True) as container:
        container.wait_for_snapshot()
        captured = len(container.log())
        container.restore(task_id="ta-elsewhere")
        container.wait_until_ready()
        ready = httpx.get(f"http://127.0.0.1:{port}/ready", trust_env=False, timeout=30)
        log = container.log()[captured:]
        assert container.kill_switch() == 0
    lines = [LogLine(text=text, container="ta-elsewhere") for text in [RESTORING, *log.splitlines()]]
    (start,) = classify(lines).starts
    assert (start.kind, start.proof, start.note, start.restore_count) == ("restored", "proved", "", 1)
    assert (ready.status_code, ready.headers["torpor-boot"], ready.headers["torpor-wakes"]) == (200, "restored", "1")


def test_prewarm_takes_the_file_of_a_deployed_app(plane: ModalPlane, tmp_path: Path) -> None:
    """The real client finds the URL. If the server's answers do not say how it started, prewarm reads the app's log."""
    deployed(plane, tmp_path, unused_port())
    missing = plane.python("-m", "torpor.cli", "prewarm", "nosuch", cwd=tmp_path)
    assert (missing.code, "'nosuch' is not deployed" in missing.output) == (1, True)  # a name is looked up as it is
    with ChatServer([Reply(pieces=(b"ok",), pause_s=2.0)]) as silent:
        plane.serve_web_at(silent.url)
        again = plane.modal("deploy", "held_app.py", cwd=tmp_path / "app")
        assert again.code == 0, again.output
        platform = threading.Thread(target=restores_when_asked, args=(plane, silent))
        platform.start()
        argv = ("prewarm", "held_app.py", "--requests", "2", "--attempts", "1", "--json")
        done = plane.python("-m", "torpor.cli", *argv, cwd=tmp_path / "app")
        platform.join()
    assert (done.code, len(silent.seen)) == (0, 2), done.output
    assert '"restored_in_log": 1' in done.output


def restores_when_asked(plane: ModalPlane, server: ChatServer) -> None:
    """Log a restore as soon as the first request arrives."""
    deadline = time.monotonic() + 60
    while not server.seen and time.monotonic() < deadline:
        time.sleep(0.01)
    plane.add_logs(plane.app("held").app_id, LogEntry(data=RESTORING + "\n", at=time.time(), container="ta-B"))


@needs_eth0
def test_without_a_snapshot_the_same_container_serves(plane: ModalPlane, tmp_path: Path) -> None:
    """`modal run` never takes a snapshot: the engine sleeps and wakes in place."""
    port = unused_port()
    server = deployed(plane, tmp_path, port)
    with Container(plane, server, tmp_path) as container:
        container.wait_until_ready()
        assert container.task.snapshots == 0
        assert ask(port) == 200
        assert len(engines(port)) > 1
        assert container.interrupt() == 0
    assert engines(port) == []


@pytest.mark.parametrize("fault", [Fault.EXIT_IN_WARMUP, Fault.REFUSE_SLEEP, Fault.DIFFERENT_AFTER_WAKE])
def test_a_failure_in_an_enter_method_is_reported_and_leaves_no_process(
    plane: ModalPlane, tmp_path: Path, fault: Fault
) -> None:
    """The entrypoint then runs no exit method and ends with exit code 0."""
    port = unused_port()
    server = deployed(plane, tmp_path, port, fault, cold_start=False)
    with Container(plane, server, tmp_path) as container:
        assert container.wait() == 0
    assert container.task.failure is not None
    assert container.task.failure.status == container.task.failure.GENERIC_STATUS_FAILURE
    assert "Error" in container.task.failure.exception
    assert not container.task.ready
    assert engines(port) == []


@needs_eth0
@pytest.mark.fault("a replica on Modal does not wake", area="wake", outcome="restarted")
def test_a_restored_container_whose_wake_fails_starts_cold_and_serves_until_its_engine_ends(
    plane: ModalPlane, tmp_path: Path
) -> None:
    """Modal sees a ready container; `torpor boots` sees a failed restore and a cold start. Then the engine is killed.

    The container then tells Modal to stop it, runs its exit methods and ends.
    """
    port = unused_port()
    server = deployed(plane, tmp_path, port, Fault.DIFFERENT_AFTER_WAKE)
    with Container(plane, server, tmp_path, snapshot=True) as container:
        container.wait_for_snapshot()
        captured = len(container.log())
        container.restore(task_id="ta-elsewhere")
        container.wait_until_ready()
        assert ask(port) == 200
        ready = httpx.get(f"http://127.0.0.1:{port}/ready", trust_env=False, timeout=30)
        log = container.log()[captured:]
        (leader,) = [one for one in engines(port) if one.ppid() not in {other.pid for other in engines(port)}]
        leader.kill()
        assert container.wait() == 0
        rest = container.log()
    assert (ready.headers["torpor-boot"], ready.headers["torpor-boot-reason"]) == ("cold", "wake failed")
    assert "wake_failed_starting_cold" in log
    lines = [LogLine(text=text, container="ta-elsewhere") for text in [RESTORING, *log.splitlines()]]
    restored, cold = classify(lines).starts
    assert (restored.kind, "CanaryError" in restored.note) == ("restored", True)
    assert (cold.kind, cold.note, cold.served_at is not None) == ("cold", "", True)
    assert container.task.failure is None
    assert container.task.stops == 1
    (ended,) = [facts for facts in events_in(rest) if facts["torpor"] == "engine_ended_while_serving"]
    assert ended["exit_code"] == -9
    assert engines(port) == []


@needs_eth0
@pytest.mark.fault("a request ends the engine on Modal", area="engine", outcome="restarted")
@pytest.mark.alone
def test_a_request_that_ends_the_engine_fails_at_once_and_the_container_ends(plane: ModalPlane, tmp_path: Path) -> None:
    """Otherwise the container would look ready forever, with no engine behind it."""
    port = unused_port()
    server = deployed(plane, tmp_path, port, Fault.EXIT_WHILE_SERVING)
    with Container(plane, server, tmp_path, snapshot=True) as container:
        container.wait_for_snapshot()
        container.restore()
        container.wait_until_ready()
        began = time.monotonic()
        with pytest.raises(httpx.TransportError):
            ask(port, CRASH_WORD)
        assert time.monotonic() - began < 1.0
        assert container.wait() == 0
        (ended,) = [facts for facts in events_in(container.log()) if facts["torpor"] == "engine_ended_while_serving"]
        assert (ended["exit_code"], ended["level"]) == (21, "error")
    assert container.task.stops == 1
    assert engines(port) == []


def test_the_download_function_runs_its_step_and_commits_the_volume(plane: ModalPlane, tmp_path: Path) -> None:
    """It runs the build's step in the image's environment, then commits the files to the volume."""
    deployed(plane, tmp_path, unused_port())
    with Container(plane, plane.app("held").function("download"), tmp_path, calls=1) as container:
        assert container.wait() == 0, container.log()
    (output,) = container.task.outputs
    assert output.status == output.GENERIC_STATUS_SUCCESS, output.exception
    assert (tmp_path / "volume" / "file").read_text() == "in the container\n"
    order = [type(request).__name__ for request in plane.store.requests]
    # Modal always commits once more when the container ends
    assert order.index("VolumeCommitRequest") < order.index("FunctionPutOutputsRequest")
    assert plane.store.commits == ["weights", "weights"]


def test_a_failed_download_fails_the_call_with_the_steps_name(plane: ModalPlane, tmp_path: Path) -> None:
    """The step's error reaches the caller of `modal run apps/...::download`."""
    deployed(plane, tmp_path, unused_port(), "broken")
    with Container(plane, plane.app("held").function("download"), tmp_path, calls=1) as container:
        assert container.wait() == 0, container.log()
    (output,) = container.task.outputs
    assert output.status == output.GENERIC_STATUS_FAILURE
    assert "failed with exit code 1; its output stands above" in output.exception
