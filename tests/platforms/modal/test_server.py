"""`SnapshotServer`: what its class statement refuses, and its enter methods on a real process tree."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import modal
import modal.experimental
import pytest
import structlog
from typing_extensions import override

from tests.conftest import is_running
from tests.platforms.modal.modal_lines import RESTORING
from tests.platforms.small import Patch, a_deployment, load
from torpor import CanaryError, ConfigurationError, Plugin, PortInUseError, TorporError, hookimpl
from torpor.engine.process import session_members
from torpor.platforms.modal import SnapshotServer, cls_options
from torpor.platforms.modal import server as platform
from torpor.platforms.modal.log import classify
from torpor.platforms.modal.log_lines import LogLine
from torpor.testing import Fault, StandIn

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psutil

    from torpor import Deployment, Engine

# --- the class statement ----------------------------------------------------------------------------------------------

HEAD = """
import modal
from tests.conftest import is_running
from tests.platforms.small import a_deployment
from torpor.platforms.modal.server import SnapshotServer
deployment = a_deployment()
"""


def test_the_class_statement_adds_modals_markers_in_order(tmp_path: Path) -> None:
    """`start` runs before the snapshot, `wake` after it, then `serve`; Modal finds each by its own name."""
    module = load(tmp_path, HEAD + "class Server(SnapshotServer, deployment=deployment):\n    pass\n")
    app = modal.App("markers")
    server = app.cls(**cls_options(module.deployment))(module.Server)
    assert sorted(server._get_partial_functions()) == ["serve", "start", "stop", "wake"]
    assert list(server._get_method_names()) == ["serve"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("class Server(SnapshotServer):\n    pass\n", "Class Server has no deployment"),
        (
            "class Server(SnapshotServer, deployment=deployment):\n    def wake(self):\n        pass\n",
            r"Server.wake overrides SnapshotServer.wake without a decorator.*@modal.enter",
        ),
        (
            "class Server(SnapshotServer, deployment=deployment):\n    serve = None\n",
            r"Server.serve overrides .*@modal.web_server",
        ),
        (
            "class Server(SnapshotServer, deployment=deployment):\n    def __init__(self):\n        pass\n",
            "Server has an __init__",
        ),
        (
            (
                "class Mixed:\n    def __init__(self):\n        pass\n"
                "class Server(Mixed, SnapshotServer, deployment=deployment):\n    pass\n"
            ),
            "Server has an __init__, its own or an inherited one",
        ),
        (
            (
                "def make():\n    class Server(SnapshotServer, deployment=deployment):\n        pass\n    return Server\n"
                "Server = make()\n"
            ),
            "Server .*not made by a class statement at the top level",
        ),
        (
            "def make():\n    return type('Server', (SnapshotServer,), {}, deployment=deployment)\nServer = make()\n",
            "Server .*not made by a class statement",
        ),
        (
            "Web = type('Server', (SnapshotServer,), {}, deployment=deployment)\n",
            "looks for 'Server' there, and would not find it",
        ),
        (
            "class Outer:\n    class Server(SnapshotServer, deployment=deployment):\n        pass\n",
            "Server .*not made by a class statement at the top level",
        ),
        (
            "class Server(SnapshotServer, deployment=deployment):\n    __module__ = 'torpor.platforms.modal.server'\n",
            r"Server \(module 'torpor.platforms.modal.server'\)",
        ),
    ],
)
def test_a_class_that_would_fail_in_the_container_fails_at_import(tmp_path: Path, body: str, words: str) -> None:
    """Modal deploys each of these without an error. The container then dies or runs the wrong method."""
    with pytest.raises(ConfigurationError, match=words):
        load(tmp_path, HEAD + body)


@pytest.mark.parametrize(
    "body",
    [
        "if True:\n    class Server(SnapshotServer, deployment=deployment):\n        pass\n",
        (
            "class Server(SnapshotServer, deployment=deployment):\n"
            "    @modal.exit()\n    def stop(self):\n        super().stop()\n"
            "    @modal.method()\n    def more(self):\n        return 1\n"
        ),
        "class Named(SnapshotServer, deployment=deployment):\n    pass\nclass Server(Named):\n    pass\n",
        (
            "class Hooked(SnapshotServer, deployment=deployment):\n    def __init_subclass__(cls):\n"
            "        super().__init_subclass__()\nclass Server(Hooked):\n    pass\n"
        ),
        "from abc import ABC\nclass Server(SnapshotServer, ABC, deployment=deployment):\n    pass\n",
    ],
)
def test_a_class_that_works_in_the_container_is_accepted(tmp_path: Path, body: str) -> None:
    """A decorated override, a class under `if`, a class between base and server."""
    module = load(tmp_path, HEAD + body)
    app = modal.App("fine")
    assert app.cls(**cls_options(module.deployment))(module.Server)


def test_without_snapshots_no_method_is_marked_to_run_before_one(tmp_path: Path) -> None:
    """Modal refuses `snap=True` on a class without snapshots."""
    source = HEAD.replace("a_deployment()", "a_deployment(snapshot=False)")
    module = load(tmp_path, source + "class Server(SnapshotServer, deployment=deployment):\n    pass\n")
    assert modal.App("cold").cls(**cls_options(module.deployment))(module.Server)


# --- the enter methods, on a real process tree ------------------------------------------------------------------------


@pytest.fixture
def servers() -> Iterator[list[SnapshotServer]]:
    """Servers whose engines end with the test. The environment, which a start completes, is restored."""
    environment = dict(os.environ)
    made: list[SnapshotServer] = []
    yield made
    for server in made:
        SnapshotServer.stop(server)
    os.environ.clear()
    os.environ.update(environment)


def a_server(tmp_path: Path, servers: list[SnapshotServer], deployment: Deployment) -> SnapshotServer:
    module = load(tmp_path, HEAD + "class Server(SnapshotServer, deployment=deployment):\n    pass\n")
    module.Server.deployment = deployment
    server: SnapshotServer = module.Server()
    servers.append(server)
    return server


def engine_pid(server: SnapshotServer) -> int:
    assert server._boot is not None
    return server._boot.running_engine.pid


def living(server: SnapshotServer) -> list[psutil.Process]:
    """Processes of the engine's session that still run, without zombies."""
    return [member for member in session_members(engine_pid(server)) if is_running(member)]


def ask(deployment: Deployment) -> int:
    body = {"model": "small", "messages": [{"role": "user", "content": "Hello."}], "max_tokens": 4}
    url = f"http://127.0.0.1:{deployment.port}/v1/chat/completions"
    return httpx.post(url, json=body, trust_env=False, timeout=30).status_code


def test_start_sleeps_wake_serves_and_stop_leaves_nothing(tmp_path: Path, servers: list[SnapshotServer]) -> None:
    """In the order in which Modal calls them, on a real engine process behind the real guard."""
    deployment = a_deployment()
    server = a_server(tmp_path, servers, deployment)
    SnapshotServer.start(server)
    assert ask(deployment) == 503
    SnapshotServer.wake(server)
    SnapshotServer.serve(server)
    assert ask(deployment) == 200
    assert len(living(server)) > 1
    SnapshotServer.stop(server)
    SnapshotServer.stop(server)
    assert living(server) == []


@pytest.mark.parametrize("container", ["ta-first", "ta-second"])
def test_a_replica_says_in_its_log_whether_it_was_restored(
    tmp_path: Path,
    servers: list[SnapshotServer],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    container: str,
) -> None:
    """A restored replica wakes in another container than it slept in. It gets a new replica id, and its health headers say so."""
    deployment = a_deployment()
    server = a_server(tmp_path, servers, deployment)
    monkeypatch.setenv("MODAL_TASK_ID", "ta-first")
    before = time.time()
    SnapshotServer.start(server)
    assert server._boot is not None
    first_id = server._boot.running_engine.replica_id
    cold = capsys.readouterr().out
    monkeypatch.setenv("MODAL_TASK_ID", container)
    SnapshotServer.wake(server)
    warm = capsys.readouterr().out
    copied = container == "ta-second"
    replica_id = server._boot.running_engine.replica_id
    assert (replica_id != first_id) == copied
    lines = [("ta-first", line) for line in cold.splitlines()]
    lines += [(container, line) for line in ([RESTORING] if copied else []) + warm.splitlines()]
    starts = classify(LogLine(text=line, container=place) for place, line in lines).starts
    last = starts[-1]
    expected = [("ta-first", "cold", ""), ("ta-second", "restored", "proved")] if copied else [("ta-first", "cold", "")]
    assert [(start.container, start.kind, start.proof) for start in starts] == expected
    assert (last.replica_id, last.restore_count) == (replica_id, 1)
    assert last.captured_at is not None
    assert last.served_at is not None
    assert before < last.captured_at < last.served_at
    ready = httpx.get(f"http://127.0.0.1:{deployment.port}/ready", trust_env=False)
    assert (ready.headers["torpor-boot"], ready.headers["torpor-wakes"]) == ("restored" if copied else "woken", "1")


def test_without_snapshots_start_serves_at_once(tmp_path: Path, servers: list[SnapshotServer]) -> None:
    """The engine does not sleep, and `wake` does nothing."""
    deployment = a_deployment(snapshot=False)
    server = a_server(tmp_path, servers, deployment)
    SnapshotServer.start(server)
    assert ask(deployment) == 200
    SnapshotServer.wake(server)
    assert ask(deployment) == 200


@pytest.mark.parametrize("fault", [Fault.EXIT_IN_WARMUP, Fault.ERROR_IN_WARMUP, Fault.REFUSE_SLEEP])
def test_a_failed_start_leaves_no_process(tmp_path: Path, servers: list[SnapshotServer], fault: Fault) -> None:
    """Modal runs no exit method after a failed enter method and leaves the children running."""
    server = a_server(tmp_path, servers, a_deployment(fault=fault))
    with pytest.raises(TorporError):
        SnapshotServer.start(server)
    assert living(server) == []


@pytest.mark.parametrize(
    ("fault", "error"), [(Fault.EXIT_AT_WAKE, TorporError), (Fault.DIFFERENT_AFTER_WAKE, CanaryError)]
)
def test_a_failed_wake_leaves_no_process(
    tmp_path: Path, servers: list[SnapshotServer], fault: Fault, error: type[TorporError]
) -> None:
    """A replica that failed its wake never serves. This deployment forbids the cold start afterwards."""
    server = a_server(tmp_path, servers, a_deployment(fault=fault, cold_start_on_failed_wake=False))
    SnapshotServer.start(server)
    with pytest.raises(error):
        SnapshotServer.wake(server)
    assert living(server) == []


@pytest.mark.slow
@pytest.mark.fault("a replica on Modal does not wake", area="wake", outcome="restarted")
@pytest.mark.parametrize("fault", [Fault.EXIT_AT_WAKE, Fault.DIFFERENT_AFTER_WAKE, Fault.REFUSE_WAKE])
def test_a_replica_that_does_not_wake_starts_cold_and_serves(
    tmp_path: Path, servers: list[SnapshotServer], monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    """In the same container, because Modal would restore the same snapshot forever. Log, records and guard say what happened."""
    deployment = a_deployment(fault=fault)
    server = a_server(tmp_path, servers, deployment)
    monkeypatch.setenv("MODAL_TASK_ID", "ta-first")
    SnapshotServer.start(server)
    failed = server._boot
    assert failed is not None
    monkeypatch.setenv("MODAL_TASK_ID", "ta-second")
    with structlog.testing.capture_logs() as logs:
        SnapshotServer.wake(server)
    assert [member for member in session_members(failed.running_engine.pid) if is_running(member)] == []
    assert ask(deployment) == 200
    ready = httpx.get(f"http://127.0.0.1:{deployment.port}/ready", trust_env=False)
    assert (ready.headers["torpor-boot"], ready.headers["torpor-boot-reason"]) == ("cold", "wake failed")
    assert server._boot is not None
    last = server._boot.report.records[-1]
    assert (last.stage, last.boot, last.reason, last.restarts) == ("serve", "cold", "wake failed", 1)
    (told,) = [entry for entry in logs if entry["event"] == "wake_failed_starting_cold"]
    assert told["log_level"] == "error"
    assert "modal deploy" in told["next_step"]


@pytest.mark.fault("an engine on Modal ends while it serves", area="engine", outcome="restarted")
def test_an_engine_that_ends_while_it_serves_ends_its_container(
    tmp_path: Path, servers: list[SnapshotServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a second, without a request: Torpor logs the exit code and the last lines, and tells Modal once."""
    asked = threading.Event()
    monkeypatch.setattr(modal.experimental, "stop_fetching_inputs", asked.set)
    server = a_server(tmp_path, servers, a_deployment())
    SnapshotServer.start(server)
    SnapshotServer.wake(server)
    with structlog.testing.capture_logs() as logs:
        os.kill(engine_pid(server), signal.SIGKILL)
        assert asked.wait(30.0)
    SnapshotServer.stop(server)
    (told,) = [entry for entry in logs if entry["event"] == "engine_ended_while_serving"]
    assert (told["exit_code"], told["replica"]) == (-signal.SIGKILL, "small")
    assert any("standin: pid" in line for line in told["last_lines"])
    assert living(server) == []


def test_a_stop_on_purpose_is_not_reported_as_a_death(
    tmp_path: Path, servers: list[SnapshotServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Modal's exit method ends the engine, so nothing is logged and Modal is not told."""
    asked = threading.Event()
    monkeypatch.setattr(modal.experimental, "stop_fetching_inputs", asked.set)
    server = a_server(tmp_path, servers, a_deployment(snapshot=False))
    SnapshotServer.start(server)
    SnapshotServer.wake(server)
    with structlog.testing.capture_logs() as logs:
        SnapshotServer.stop(server)
        assert not asked.wait(0.5)
    assert [entry for entry in logs if entry["event"] == "engine_ended_while_serving"] == []


@pytest.mark.slow
def test_a_request_that_a_plugin_left_open_is_cut_off_and_the_start_goes_on(
    tmp_path: Path, servers: list[SnapshotServer]
) -> None:
    """At the drain's deadline, because a snapshot must hold no connection."""
    lost = threading.Event()

    @dataclass(frozen=True, kw_only=True)
    class Lingering(Plugin):
        plugin_name = "lingering"

        @hookimpl
        @override
        def warmup(self, deployment: Deployment, engine: Engine, client: httpx.Client) -> None:
            body = {"model": "small", "messages": [{"role": "user", "content": "a"}], "max_tokens": 200, "stream": True}
            asked = threading.Event()

            def linger() -> None:
                own = httpx.Client(base_url=client.base_url, headers=client.headers, trust_env=False, timeout=20)
                with own, own.stream("POST", "/v1/chat/completions", json=body) as response:
                    asked.set()
                    with pytest.raises(httpx.TransportError):
                        response.read()
                lost.set()

            threading.Thread(target=linger, daemon=True).start()
            assert asked.wait(30)

    deployment = replace(
        a_deployment(),
        plugins=(Patch(), StandIn(token_s=0.05, warmup_requests=0), Lingering()),
        drain_timeout_s=0.5,
        warmup_timeout_s=30.0,
    )
    server = a_server(tmp_path, servers, deployment)
    SnapshotServer.start(server)
    assert lost.wait(30)
    SnapshotServer.stop(server)
    assert living(server) == []


@pytest.mark.slow
def test_ctrl_c_during_a_start_leaves_no_process(tmp_path: Path, servers: list[SnapshotServer]) -> None:
    """A runner ends a container early by SIGINT, which may arrive during a warm-up."""
    server = a_server(tmp_path, servers, a_deployment(fault=Fault.HANG_IN_WARMUP))
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        SnapshotServer.start(server)
    timer.join()
    assert living(server) == []


def test_a_port_in_use_is_an_error_and_nothing_is_started(tmp_path: Path, servers: list[SnapshotServer]) -> None:
    """Modal shows the enter method's error, which names the port."""
    deployment = a_deployment()
    server = a_server(tmp_path, servers, deployment)
    with socket.create_server(("0.0.0.0", deployment.port)), pytest.raises(PortInUseError, match=str(deployment.port)):
        SnapshotServer.start(server)
    assert server._boot is not None
    assert server._boot.engine is None


def test_the_engine_can_import_what_lies_beside_torpor(
    tmp_path: Path, servers: list[SnapshotServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Modal mounts sources side by side. The engine's launcher is one of them and runs in a process of its own."""
    folder = str(Path(platform.__file__).parents[3])
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    server = a_server(tmp_path, servers, a_deployment())
    SnapshotServer.start(server)
    environment = Path(f"/proc/{engine_pid(server)}/environ").read_bytes().decode()
    assert re.search(rf"(^|\0)PYTHONPATH=/somewhere:{re.escape(folder)}\0", environment)


def test_an_engine_that_dies_at_start_is_reported_at_once(tmp_path: Path, servers: list[SnapshotServer]) -> None:
    """Not at the start-up deadline."""
    server = a_server(tmp_path, servers, a_deployment(fault=Fault.EXIT_AT_START))
    began = time.monotonic()
    with pytest.raises(TorporError, match="21"):
        SnapshotServer.start(server)
    assert time.monotonic() - began < 50
