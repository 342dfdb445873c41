"""Replicas that do not wake or that end are tried again, restored again, started cold, or given up."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.snapshots.conftest import MODES, refuse, wait_for
from tests.snapshots.kept import Background, chat, engines_on, write_app
from torpor import EngineError, SnapshotError, TorporError
from torpor.app_file import load_app
from torpor.platforms.local.backends import NoSnapshot
from torpor.platforms.local.criu_backend import CriuBackend
from torpor.platforms.local.replicas import Replicas
from torpor.platforms.local.server import LocalServer
from torpor.platforms.local.snapshots import create_snapshot, remove_snapshot
from torpor.platforms.local.start import StartOptions, start_here
from torpor.runtime.captured_secrets import secret_names
from torpor.snapshots.criu.program import PREFIX_VARIABLE
from torpor.snapshots.fit import misfits
from torpor.snapshots.store.failures import BAD_AFTER, note_failure, read_failures
from torpor.snapshots.store.manifest import FAILURES, MANIFEST
from torpor.snapshots.store.stored import inspect
from torpor.testing.faults import CRASH_WORD, Fault
from torpor.testing.ports import unused_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torpor.runtime.supervision import ReplicaEvent
    from torpor.snapshots.criu.program import Criu
    from torpor.telemetry.records import StageRecord

pytestmark = pytest.mark.criu

WAKE_FAULTS = [Fault.EXIT_AT_WAKE, Fault.REFUSE_WAKE, Fault.DIFFERENT_AFTER_WAKE]


@pytest.fixture(scope="module", autouse=True)
def cache(criu: Criu, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache root for these tests, with this machine's CRIU."""
    root = tmp_path_factory.mktemp("c")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORPOR_CACHE", str(root))
        if "root" in criu.program.parts:  # a private prefix: <prefix>/root/usr/sbin/criu
            patch.setenv(PREFIX_VARIABLE, str(criu.program.parents[3]))
        for name in secret_names(os.environ):
            patch.delenv(name)
        if reasons := CriuBackend(mode=MODES[-1]).available():
            refuse("; ".join(reasons))
        yield root


class Server:
    """Replicas of a snapshot of the test's own app, and the events that they caused."""

    def __init__(self, folder: Path, *, fault: Fault | None = None, once: bool = False, options: str = "") -> None:
        self.port = unused_port()
        more = f", fault={str(fault)!r}" if fault else ""
        more += f", fault_once={str(folder / 'fault-once')!r}" if once else ""
        app = write_app(folder / "app", port=self.port, more=more)
        app.write_text(
            f"{app.read_text()}\nfrom dataclasses import replace\ndeployment = replace(deployment, {options})\n"
        )
        self.app = app
        self.folder = folder / "kept"
        create_snapshot(
            app, self.folder, mode=MODES[-1], prove=False
        )  # a trial replica would already meet some of the faults
        self.events: list[ReplicaEvent] = []
        self.stages: list[StageRecord] = []
        self.replicas = self.new()

    def new(self, *, even_if_bad: bool = False) -> Replicas:
        """New replicas of the snapshot, not started yet."""
        return Replicas(
            self.folder,
            supervised=True,
            even_if_bad=even_if_bad,
            on_event=self.events.append,
            on_stage=lambda _, record: self.stages.append(record),
        )

    def told(self) -> list[str]:
        """The names of the events so far."""
        return [event.event for event in self.events]

    def ready(self) -> httpx.Response:
        """What the public port answers to /ready."""
        return httpx.get(f"http://127.0.0.1:{self.port}/ready", trust_env=False)

    def kill(self, number: int = 0) -> None:
        """SIGKILL a replica's engine."""
        os.kill(self.replicas.serving[number].boot.running_engine.pid, signal.SIGKILL)

    def has_restarted(self, count: int) -> bool:
        """Wait until `count` restarts were reported."""
        return bool(wait_for(lambda: self.told().count("replica_restarted") == count, 10.0))

    def serves(self, count: int = 1) -> bool:
        """Wait until `count` replicas serve."""
        return bool(wait_for(lambda: len(self.replicas.serving) == count, 10.0))


@pytest.fixture
def stopped() -> Iterator[list[Server]]:
    """Servers that are stopped after the test. Their engines must leave nothing behind."""
    made: list[Server] = []
    yield made
    for server in made:
        server.replicas.stop()
        assert engines_on(server.port) == []


@pytest.mark.fault("a wake fails once", area="wake", outcome="restarted")
@pytest.mark.parametrize("fault", WAKE_FAULTS)
@pytest.mark.ordinary_user
def test_a_wake_that_fails_once_is_tried_again_from_the_same_snapshot(
    tmp_path: Path, stopped: list[Server], fault: Fault
) -> None:
    """Another replica is restored. There is no cold start, the snapshot stays, and no failure is noted in it."""
    server = Server(tmp_path, fault=fault, once=True)
    stopped.append(server)
    made_at = inspect(server.folder).captured_at
    server.replicas.start()
    assert chat(server.port)
    (one,) = server.replicas.serving
    assert (one.boot.kind, one.boot.reason) == ("restored", "")
    assert server.told() == ["wake_failed"]
    assert read_failures(server.folder) is None
    assert inspect(server.folder).captured_at == made_at


@pytest.mark.fault("every wake of a snapshot fails", area="wake", outcome="restarted")
@pytest.mark.parametrize("fault", WAKE_FAULTS)
def test_a_replica_whose_wake_fails_twice_starts_cold_and_serves(
    tmp_path: Path, stopped: list[Server], fault: Fault
) -> None:
    """Public port, records and events say so. The failed engines have ended. The failure is noted beside the manifest."""
    server = Server(tmp_path, fault=fault)
    stopped.append(server)
    server.replicas.start()
    assert chat(server.port)
    ready = server.ready()
    assert (ready.headers["torpor-boot"], ready.headers["torpor-boot-reason"]) == ("cold", "wake failed")
    assert server.told() == ["wake_failed", "wake_failed", "replica_restarted"]
    last = server.events[-1]
    assert (last.boot, last.reason, last.restart) == ("cold", "wake failed", 1)
    assert "started cold" in last.described()
    serve = server.stages[-1]
    assert (serve.stage, serve.boot, serve.reason, serve.restarts) == ("serve", "cold", "wake failed", 1)
    noted = read_failures(server.folder)
    assert noted is not None
    assert noted.in_a_row == 1
    assert "Error" in noted.last
    assert len(engines_on(server.port)) == 3  # one tree: server, scheduler, second child


@pytest.mark.slow
@pytest.mark.fault("the trial replica of a new snapshot does not wake", area="wake", outcome="restarted")
def test_up_whose_new_snapshot_does_not_wake_serves_cold(tmp_path: Path) -> None:
    """An older snapshot stays, marked bad. A later restart does not use it."""
    server = Server(tmp_path, fault=Fault.REFUSE_WAKE)
    for _ in range(BAD_AFTER):
        note_failure(server.folder, EngineError("it did not wake"))
    made_at = inspect(server.folder).captured_at
    options = StartOptions(snapshot=server.folder, backend=NoSnapshot(), on_event=server.events.append)
    started = start_here(load_app(str(server.app)), options)
    assert isinstance(started, LocalServer)
    try:
        assert server.told() == ["wake_failed", "replica_restarted"]
        assert "trial replica" in server.events[0].error
        assert (server.events[1].boot, server.events[1].reason) == ("cold", "wake failed")
        assert chat(server.port)
        engine = started.boot.running_engine
        os.kill(engine.pid, signal.SIGKILL)
        assert engine.wait(30.0) is not None
        started.start_again()
        assert started.boot.kind == "cold"
        assert chat(server.port)
        assert inspect(server.folder).captured_at == made_at
    finally:
        started.stop()
    assert engines_on(server.port) == []


@pytest.mark.slow
@pytest.mark.fault("the trial replica does not wake, and no cold start is wanted", area="wake", outcome="refused")
def test_without_the_option_a_new_snapshot_that_does_not_wake_is_an_error(tmp_path: Path) -> None:
    """With `cold_start_on_failed_wake=False` nothing serves and nothing is left."""
    server = Server(tmp_path, fault=Fault.REFUSE_WAKE, options="cold_start_on_failed_wake=False")
    remove_snapshot(server.folder)
    app = load_app(str(server.app))
    with pytest.raises(SnapshotError, match="trial replica"):
        start_here(app, StartOptions(snapshot=server.folder, backend=NoSnapshot()))
    assert engines_on(server.port) == []


@pytest.mark.fault("every wake fails and no cold start is wanted", area="wake", outcome="refused")
def test_without_the_option_a_replica_whose_wake_fails_twice_is_an_error(tmp_path: Path, stopped: list[Server]) -> None:
    """With `cold_start_on_failed_wake=False` nothing serves and nothing is left."""
    server = Server(tmp_path, fault=Fault.EXIT_AT_WAKE, options="cold_start_on_failed_wake=False")
    stopped.append(server)
    with pytest.raises(EngineError):
        server.replicas.start(2)
    assert engines_on(server.port) == []
    assert server.told() == ["wake_failed"] * 4
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", server.port))


@pytest.mark.fault("a snapshot does not wake again and again", area="wake", outcome="refused")
def test_a_snapshot_that_fails_again_and_again_is_marked_bad_until_one_wakes(
    tmp_path: Path, stopped: list[Server]
) -> None:
    """The refusal says why, how to take a new snapshot, and how to try anyway. A successful wake removes the mark."""
    server = Server(tmp_path)
    stopped.append(server)
    for _ in range(BAD_AFTER):
        assert misfits(server.folder, inspect(server.folder)) == []
        note_failure(server.folder, EngineError("it did not wake\nat all"))
    with pytest.raises(
        SnapshotError, match=r"marked bad: 3 of its replicas in a row did not wake.*EngineError: it did"
    ):
        server.replicas.start()
    assert any("--even-if-bad" in reason for reason in misfits(server.folder, inspect(server.folder)))
    assert engines_on(server.port) == []
    server.replicas = server.new(even_if_bad=True)
    server.replicas.start()
    assert chat(server.port)
    assert read_failures(server.folder) is None
    assert sorted(path.name for path in server.folder.glob("*fail*")) == []
    note_failure(server.folder, EngineError("once more"))
    (server.folder / f".{FAILURES}.1.ab").touch()  # left by a process that was killed while writing
    remove_snapshot(server.folder)  # the mark belongs to the snapshot
    assert not server.folder.exists()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"in_a_row": "x"}', '{"in_a_row": 9}', "9" * 70000, "[" * 60000])
def test_a_mark_that_cannot_be_read_is_ignored(tmp_path: Path, text: str) -> None:
    """The snapshot is then tried, and its restore shows whether it works. No link is followed and no pipe blocks."""
    (tmp_path / FAILURES).write_text(text)
    assert read_failures(tmp_path) is None
    (tmp_path / FAILURES).unlink()
    os.mkfifo(tmp_path / FAILURES)
    assert read_failures(tmp_path) is None
    assert note_failure(tmp_path, EngineError("x")).in_a_row == 1


@pytest.mark.fault("a replica is killed while it serves", area="engine", outcome="restarted")
@pytest.mark.alone
def test_a_replica_that_is_killed_is_restored_again(tmp_path: Path, stopped: list[Server]) -> None:
    """The end is noticed within a second, and its request in flight fails at once. Until it is restored the port answers 503."""
    server = Server(tmp_path, options="drain_timeout_s=1.0, max_restarts=3")
    stopped.append(server)
    server.replicas.start()
    answer = chat(server.port)
    refused: list[int] = []
    watched = threading.Event()

    def ask() -> None:
        while not watched.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
            try:
                connection.request("GET", "/v1/models")
                response = connection.getresponse()
                if response.status == 503:
                    assert response.headers["Retry-After"]
                    refused.append(response.status)
            except ConnectionRefusedError:
                refused.append(0)
            except (OSError, http.client.HTTPException):
                pass  # the request was in flight when the replica ended
            finally:
                connection.close()

    asking = threading.Thread(target=ask)
    asking.start()
    began = time.monotonic()
    server.kill()
    assert wait_for(lambda: "replica_ended" in server.told(), 5.0)
    assert time.monotonic() - began < 1.0
    assert wait_for(lambda: "replica_restarted" in server.told(), 10.0)
    watched.set()
    asking.join()
    assert set(refused) == {503}
    assert chat(server.port) == answer
    ended, again = server.events
    assert (ended.exit_code, "exit code -9" in ended.described()) == (-signal.SIGKILL, True)
    assert (again.boot, again.reason, again.restart) == ("restored", "engine ended", 1)
    ready = server.ready()
    assert (ready.headers["torpor-boot"], ready.headers["torpor-boot-reason"]) == ("restored", "engine ended")
    assert server.stages[-1].restarts == 1


@pytest.mark.fault("a request ends its replica", area="engine", outcome="restarted")
@pytest.mark.alone
def test_a_request_that_ends_its_replica_gets_an_error_at_once_and_the_others_serve(
    tmp_path: Path, stopped: list[Server]
) -> None:
    """Every replica has the fault: each one that gets the request ends, and each is restored again."""
    server = Server(tmp_path, fault=Fault.EXIT_WHILE_SERVING)
    stopped.append(server)
    server.replicas.start(2)
    began = time.monotonic()
    with pytest.raises(AssertionError, match="engine_gone"):  # a 502
        chat(server.port, prompt=CRASH_WORD)
    assert time.monotonic() - began < 2.0
    assert wait_for(server.told)
    assert [chat(server.port) for _ in range(4)]
    assert wait_for(lambda: "replica_restarted" in server.told(), 10.0)
    assert server.serves(2)
    assert server.events[0].exit_code == 21


@pytest.mark.fault("two replicas are killed at once", area="engine", outcome="restarted")
@pytest.mark.ordinary_user
def test_two_replicas_that_die_at_once_are_both_restored_again(tmp_path: Path, stopped: list[Server]) -> None:
    """Each is restored in its own thread, under a new name."""
    server = Server(tmp_path)
    stopped.append(server)
    server.replicas.start(2)
    pids = [one.boot.running_engine.pid for one in server.replicas.serving]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert wait_for(lambda: server.told().count("replica_restarted") == 2, 10.0), server.events
    assert server.serves(2)
    assert len({one.replica.name for one in server.replicas.serving}) == 2
    assert [chat(server.port) for _ in range(4)]


@pytest.mark.fault("a snapshot is deleted while its replicas serve and one ends", area="engine", outcome="restarted")
def test_a_replica_whose_snapshot_was_deleted_starts_cold(tmp_path: Path, stopped: list[Server]) -> None:
    """The event says why it is not restored."""
    server = Server(tmp_path)
    stopped.append(server)
    server.replicas.start()
    answer = chat(server.port)
    remove_snapshot(server.folder)
    server.kill()
    assert wait_for(lambda: "replica_restarted" in server.told(), 10.0), server.events
    assert chat(server.port) == answer
    _, failed, again = server.events
    assert str(server.folder) in failed.error
    assert (again.boot, again.reason) == ("cold", "engine ended")
    server.kill()
    assert wait_for(lambda: server.told().count("replica_restarted") == 2, 10.0), server.events
    assert (server.events[-1].boot, server.events[-1].restart) == ("cold", 2)


@pytest.mark.fault(
    "a new snapshot is captured while a replica of the old one serves and ends", area="engine", outcome="restarted"
)
def test_a_replica_is_restored_from_the_current_snapshot(tmp_path: Path, stopped: list[Server]) -> None:
    """Another capture has replaced the folder meanwhile. Its identity and images are used."""
    server = Server(tmp_path)
    stopped.append(server)
    server.replicas.start()
    answer = chat(server.port)
    create_snapshot(server.app, server.folder, mode=MODES[-1])
    server.kill()
    assert wait_for(lambda: "replica_restarted" in server.told(), 10.0), server.events
    assert server.events[-1].boot == "restored"
    assert chat(server.port) == answer


@pytest.mark.slow
@pytest.mark.fault("a snapshot of another deployment takes the folder's place", area="engine", outcome="restarted")
def test_a_replica_whose_snapshot_was_replaced_by_another_deployments_starts_cold(
    tmp_path: Path, stopped: list[Server]
) -> None:
    """Nothing of the other one is used, not even its name."""
    server = Server(tmp_path)
    stopped.append(server)
    server.replicas.start()
    answer = chat(server.port)
    other = write_app(tmp_path / "other", port=server.port)
    other.write_text(other.read_text().replace('name="kept"', 'name="other"'))
    create_snapshot(other, server.folder, mode=MODES[-1], prove=False)
    server.kill()
    assert wait_for(lambda: "replica_restarted" in server.told(), 10.0), server.events
    _, failed, again = server.events
    assert "deployment was other" in failed.error
    assert (again.boot, again.replica) == ("cold", "kept-2")
    assert chat(server.port) == answer


@pytest.mark.fault("an engine ends again and again", area="engine", outcome="refused")
def test_a_replica_that_ends_again_and_again_is_given_up_until_start_is_called(
    tmp_path: Path, stopped: list[Server]
) -> None:
    """`Deployment.max_restarts` is the limit. The port stays open and refuses requests. `start` restores a new one."""
    server = Server(tmp_path, options="max_restarts=1")
    stopped.append(server)
    server.replicas.start()
    server.kill()
    assert wait_for(lambda: "replica_restarted" in server.told(), 10.0)
    server.kill()
    assert wait_for(lambda: "replica_given_up" in server.told(), 5.0), server.events
    assert server.replicas.restarting == 0
    assert server.ready().status_code == 503
    server.replicas.start()
    assert chat(server.port)


@pytest.mark.fault("a server is stopped while a replica waits for its restart", area="engine", outcome="held")
@pytest.mark.alone
def test_a_stop_ends_the_wait_for_a_restart_and_nothing_starts_afterwards(
    tmp_path: Path, stopped: list[Server]
) -> None:
    """The second restart waits a second. `restart_now` skips the wait, `stop` cancels the restart."""
    server = Server(tmp_path)
    stopped.append(server)
    server.replicas.start()
    for number in (1, 2):
        server.kill()
        if number == 2:
            assert wait_for(lambda: server.replicas.restarting == 1)
            server.replicas.restart_now()
        assert server.has_restarted(number)
    server.kill()
    assert wait_for(lambda: server.told().count("replica_ended") == 3)
    began = time.monotonic()
    server.replicas.stop()
    assert time.monotonic() - began < 1.0
    time.sleep(0.2)
    assert engines_on(server.port) == []
    assert server.told()[-1] == "replica_ended"


@pytest.mark.fault("a server is drained while a replica is started again", area="engine", outcome="held")
def test_a_drain_ends_a_restart_and_the_other_replica_finishes(tmp_path: Path, stopped: list[Server]) -> None:
    """A replica restored during a drain would take requests and then be cut off."""
    server = Server(tmp_path)
    stopped.append(server)
    server.replicas.start(2)
    server.kill()
    assert wait_for(server.told)
    assert server.replicas.drain() == 0
    assert "replica_restarted" not in server.told()
    assert len(engines_on(server.port)) == 3  # the other replica's tree
    assert server.replicas.restarting == 0


@pytest.mark.slow
@pytest.mark.fault("a server is stopped in the middle of a restart", area="engine", outcome="held")
@pytest.mark.parametrize("removed", [False, True], ids=["restored", "cold"])
def test_a_stop_at_any_moment_of_a_restart_leaves_nothing(
    tmp_path: Path, stopped: list[Server], cache: Path, *, removed: bool
) -> None:
    """The test stops at twelve moments of the half second that a restart takes."""
    server = Server(tmp_path)
    stopped.append(server)
    for step in range(12):
        server.replicas = server.new()
        server.replicas.start()
        if removed:
            server.folder.rename(tmp_path / "away")
        server.kill()
        time.sleep(step * 0.04)
        server.replicas.stop()
        assert engines_on(server.port) == [], step
        if removed:
            (tmp_path / "away").rename(server.folder)
    assert [path for path in (cache / "run").glob("*/*") if "restore" not in path.name] == []


@pytest.mark.fault("a wake hangs", area="wake", outcome="restarted")
@pytest.mark.slow
def test_a_wake_that_hangs_is_ended_at_its_deadline_and_tried_again(tmp_path: Path, stopped: list[Server]) -> None:
    """It is handled like any other failure."""
    server = Server(tmp_path, fault=Fault.HANG_IN_WAKE, once=True, options="wake_timeout_s=1.5")
    stopped.append(server)
    server.replicas.start()
    assert server.replicas.serving[0].boot.kind == "restored"
    assert server.told() == ["wake_failed"]


def test_a_ctrl_c_between_two_wakes_leaves_nothing(tmp_path: Path, stopped: list[Server]) -> None:
    """The caller of the start gets the interrupt, and the second replica is not restored."""
    server = Server(tmp_path, fault=Fault.HANG_IN_WAKE)
    stopped.append(server)
    start = Background(server.replicas.start)
    assert wait_for(lambda: engines_on(server.port), 10.0)
    time.sleep(0.3)
    server.replicas.stop()
    with pytest.raises(TorporError):
        start.join()
    assert engines_on(server.port) == []
    assert server.told() == []
    assert json.loads((server.folder / MANIFEST).read_text())
