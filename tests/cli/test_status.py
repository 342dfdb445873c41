"""`torpor status`: what is asked of servers, within a deadline, and what is said of them."""

from __future__ import annotations

import http.server
import json
import os
import re
import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.platforms.local.test_running import FACTS
from torpor import Deployment, Model
from torpor.cli import status as status_command
from torpor.cli.announcing import Announcement
from torpor.cli.status import look_at, run_status
from torpor.errors import ServerUnavailableError
from torpor.platforms.local.running import Process, RunFile, RunningServer, servers
from torpor.runtime.supervision import ReplicaEvent
from torpor.snapshots.store.paths import CACHE_VARIABLE
from torpor.testing import StandIn

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def guarded(status: int, body: bytes) -> Iterator[str]:
    """A server that answers as a guard does; its address."""

    class Health(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Health) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@contextmanager
def noted(**facts: object) -> Iterator[None]:
    """A running server's file."""
    file = RunFile("snapshot restore")
    file.write(FACTS | facts)
    try:
        yield
    finally:
        file.close()


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))


def test_what_runs_is_shown_with_its_replicas(capsys: pytest.CaptureFixture[str]) -> None:
    """As JSON with stable keys, and in words."""
    with guarded(200, b'{"state": "serving"}') as url, noted(url=url):
        run_status("small", as_json=True)
        (server,) = json.loads(capsys.readouterr().out)["servers"]
        assert (server["deployment"], server["state"], server["health"], server["pid"]) == (
            "small",
            "serving",
            "serving",
            os.getpid(),
        )
        (replica,) = server["replicas"]
        assert replica["memory_bytes"] > 1 << 20
        assert (replica["boot"], replica["restarts"], replica["state"]) == ("restored", 0, "serving")
        run_status("", as_json=False)
    said = capsys.readouterr().out
    assert f"small: serving m on {url}, torpor snapshot restore (pid {os.getpid()})" in said
    assert "replica   small-1" in said
    assert "snapshot  /srv/small" in said


@pytest.mark.fault("a replica is given up, another is being started again", area="torpor status", outcome="held")
def test_missing_replicas_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    """With the latest event. A named deployment that lacks a replica is an error."""
    event = {"last_event": "replica small-2 is given up after 5 restarts in a row", "last_event_at": time.time() - 90}
    with (
        guarded(200, b'{"state": "serving"}') as url,
        noted(url=url, wanted=3, restarting=1, **event),
        pytest.raises(ServerUnavailableError, match="'small' serves with all its replicas: one is serving"),
    ):
        run_status("small", as_json=False)
    said = capsys.readouterr().out
    assert "restarts  1 under way" in said
    assert "missing   1 of 3 replicas, given up" in said
    assert re.search(r"event     replica small-2 is given up after 5 restarts in a row \(1 min 3\d s ago\)", said)


@pytest.mark.fault("a server's model and log hold line ends and control characters", area="status", outcome="held")
@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_name_with_a_line_end_stays_on_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    """A line end is shown escaped; long lines are wrapped and indented."""
    monkeypatch.setenv("COLUMNS", str(columns))
    with guarded(200, b'{"state": "serving"}') as url, noted(url=url, model="m\nsmall: serving\x1b[31m [/b]"):
        run_status("", as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert "m\\nsmall: serving\\x1b[31m [/b]" in " ".join(line.strip() for line in lines)
    assert max(len(line) for line in lines if " " in line.strip()) <= columns
    assert [line for line in lines if line.startswith("  health    ")] == ["  health    serving"]


def test_no_server_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """This is an error only if a deployment was named."""
    run_status("", as_json=False)
    assert capsys.readouterr().out == "no server runs here\n"
    with pytest.raises(ServerUnavailableError, match="none runs here"):
        run_status("small", as_json=True)
    assert json.loads(capsys.readouterr().out) == {"servers": [], "unreadable": []}


@pytest.mark.parametrize(
    ("status", "body", "health"),
    [
        (503, b'{"state": "asleep"}', "asleep"),
        (503, b'{"error": "no replica is ready"}', "answers 503"),
        (200, b"[" * 50_000, "answers 200"),
        (200, b'{"state": "\x1b[2J"}', "answers 200"),
        (200, json.dumps({"state": "\x1b[2J"}).encode(), "\\x1b[2J"),
    ],
)
def test_whatever_answers_is_shown(status: int, body: bytes, health: str) -> None:
    """The guard's state, else the status; never control characters."""
    with guarded(status, body) as url, noted(url=url):
        (look,) = look_at([one for one in servers() if isinstance(one, RunningServer)])
    assert (look.health, look.http_status) == (health, status)


@pytest.mark.fault("a server is asked for its health and hangs", area="torpor status", outcome="held")
@pytest.mark.alone
def test_a_server_that_hangs_delays_nothing() -> None:
    """All servers are asked at the same time, each within the deadline."""
    with (
        socket.create_server(("127.0.0.1", 0)) as hung,
        guarded(200, b'{"state": "serving"}') as url,
        noted(url=f"http://127.0.0.1:{hung.getsockname()[1]}"),
        noted(url=url),
        noted(url="http://127.0.0.1:1"),
    ):
        began = time.monotonic()
        looks = look_at([one for one in servers() if isinstance(one, RunningServer)], limit_s=0.5)
        assert time.monotonic() - began < 1.0
    assert [look.health[:9] for look in looks] == ["", "serving", "no answer"]


def test_memory_of_a_process_that_is_gone_is_unknown() -> None:
    """Its pid may belong to another process."""
    gone = FACTS["replicas"][0] | {"leader": Process(os.getpid(), 1)._asdict()}  # type: ignore[index]
    with noted(replicas=[gone]):
        (look,) = look_at([one for one in servers() if isinstance(one, RunningServer)])
    assert look.memory == {}


def test_snapshot_and_app_are_shown_by_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`torpor status` and `torpor snapshot prune` run in other folders; links are followed for the snapshot."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.chdir(tmp_path)
    deployment = Deployment(name="d", model=Model(path="/m", served_name="m"), plugins=(StandIn(),))
    with Announcement("up") as announced:
        url = "http://127.0.0.1:1"
        announced.starting(deployment, app_file="app.py", backend="criu", url=url, snapshot=Path("link/kept"))
        (server,) = servers()
        assert isinstance(server, RunningServer)
        assert (server.state, server.app_file) == ("starting", str(tmp_path / "app.py"))
        assert server.snapshot == str(tmp_path / "real" / "kept")
    assert servers() == ()


@pytest.mark.fault("an engine ends by itself and is started again", area="torpor status", outcome="restarted")
def test_a_watch_goes_on_while_its_deployment_does_not_serve(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may serve later. Without --watch the same is an error. A terminal is cleared only when there is something to show."""
    pauses = iter((0.0, 0.0))

    def pause(_: float) -> None:
        if next(pauses, None) is None:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", pause)
    with pytest.raises(KeyboardInterrupt):
        run_status("nobody", as_json=False, watch=True)
    assert capsys.readouterr().out.count("no server of nobody runs here") == 3
    with pytest.raises(ServerUnavailableError, match="No server of 'nobody' serves"):
        run_status("nobody", as_json=False)


def test_a_failed_start_is_told_on_one_line() -> None:
    """The reason of an engine's end has lines of its own."""
    start = {"boot": "cold", "error": "It ended.\n    last:  line", "at": time.time(), "seconds": 1.0}
    told = {"in_flight": 0, "waiting": 0, "starts": [start]}
    assert list(status_command._served_lines(told))[1] == "  start     cold failed: It ended. last: line, 0 s ago"


def test_an_event_counts_a_restart_until_the_engine_serves_again() -> None:
    """Until then the replica counts as being restarted."""
    deployment = Deployment(name="d", model=Model(path="/m", served_name="m"), plugins=(StandIn(),))
    with Announcement("up") as announced:
        announced.starting(deployment, app_file="a", backend="none", url="http://127.0.0.1:1", snapshot=None)
        seen = []
        for event in (
            ReplicaEvent("replica_ended", "d", exit_code=-9, last_lines=("bye",)),
            ReplicaEvent("restart_failed", "d", restart=1, error="no room"),
            ReplicaEvent("replica_restarted", "d", boot="cold", reason="engine ended", restart=2, seconds=1.0),
        ):
            announced.event(event)
            (server,) = servers()
            assert isinstance(server, RunningServer)
            seen.append((server.restarting, server.last_event))
    assert seen == [
        (1, "replica d has ended (exit code -9)"),
        (1, "replica d could not be started again (restart 1): no room"),
        (0, "replica d was started cold in 1.00 s: engine ended (restart 2)"),
    ]
