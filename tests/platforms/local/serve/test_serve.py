"""Several stand-ins at one address: to zero and back, through failures and reloads."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.platforms.local.serve.served import ask, control, engines_of, serving_command, wait_until, write_app
from torpor import ConfigurationError
from torpor.platforms.local.criu_backend import CriuBackend
from torpor.platforms.local.running import RunningServer, servers

if TYPE_CHECKING:
    from pathlib import Path

    from tests.platforms.local.serve.conftest import Serve
    from torpor.platforms.local.serve.server import ServeHere

QUICK = "[deployment.{name}]\nidle_s = 0.3\ncapture_after_s = 0.1\n"


def state(server: ServeHere, name: str) -> str:
    """Of a deployment."""
    return str(next(one for one in server.status() if one["name"] == name)["state"])


def falls_to(server: ServeHere, name: str, wanted: str) -> bool:
    """Whether it gets there in time."""
    return wait_until(lambda: state(server, name) == wanted)


@pytest.fixture
def without_criu(monkeypatch: pytest.MonkeyPatch) -> None:
    """CRIU cannot be used here."""
    monkeypatch.setattr(CriuBackend, "available", lambda *_: ("there is no CRIU",))


@pytest.mark.slow
@pytest.mark.criu
@pytest.mark.usefixtures("with_criu")
@pytest.mark.ordinary_user
def test_to_zero_and_back(serve: Serve, tmp_path: Path) -> None:
    """The first start is cold and is captured once idle. After that a burst of 100 causes one restore, and idle time ends it."""
    server = serve(write_app(tmp_path, "a"), write_app(tmp_path, "b"), config=QUICK.format(name="a"))
    port = server.address[1]
    first = ask(port, "model-a")
    assert (first.status, first.start) == (200, "cold")
    assert engines_of(tmp_path, "model-a")
    assert falls_to(server, "a", "on disk")
    assert engines_of(tmp_path) == []
    with ThreadPoolExecutor(100) as clients:
        answers = list(clients.map(lambda _: ask(port, "model-a"), range(100)))
    assert {answer.status for answer in answers} == {200}
    assert {answer.start for answer in answers} <= {"restored", ""}
    told = next(one for one in server.status() if one["name"] == "a")
    assert [start["boot"] for start in told["starts"]] == ["restored", "cold"]  # type: ignore[attr-defined]
    assert falls_to(server, "a", "on disk")
    assert state(server, "b") == "on disk"


@pytest.mark.slow
@pytest.mark.usefixtures("without_criu")
def test_without_criu_it_sleeps_in_memory_and_an_engine_that_ends_is_replaced(serve: Serve, tmp_path: Path) -> None:
    """Idle time puts it to sleep, the next request wakes it. Killed, its next request starts it cold."""
    server = serve(write_app(tmp_path, "a"), config=QUICK.format(name="a"))
    port = server.address[1]
    assert ask(port, "model-a").start == "cold"
    assert falls_to(server, "a", "asleep")
    assert ask(port, "any name: there is one deployment only").status == 404
    woken = ask(port, "model-a")
    assert (woken.status, woken.start) == (200, "woken")
    (_, boot), *_ = server.boots("a")
    os.kill(boot.running_engine.pid, signal.SIGKILL)
    assert falls_to(server, "a", "on disk")
    again = ask(port, "model-a")
    assert (again.status, again.start) == (200, "cold")


@pytest.mark.usefixtures("without_criu")
def test_what_cannot_start_is_refused_with_the_reason(serve: Serve, tmp_path: Path) -> None:
    """503 and Retry-After; while it pauses, at once. Another deployment answers."""
    broken = write_app(tmp_path, "broken", more="fault='exit_at_start'")
    server = serve(broken, write_app(tmp_path, "a"))
    port = server.address[1]
    first = ask(port, "model-broken")
    assert first.status == 503
    assert "'broken' could not be started" in str(first.body)
    assert int(first.retry_after) >= 1
    assert ask(port, "model-a").status == 200


@pytest.mark.usefixtures("without_criu")
def test_a_client_that_leaves_takes_its_place_in_the_queue_along(serve: Serve, tmp_path: Path) -> None:
    """While the engine starts. The one behind it is answered."""
    server = serve(write_app(tmp_path, "a"), config="[deployment.a]\nqueue = 2\n")
    port = server.address[1]
    with pytest.raises(TimeoutError):
        ask(port, "model-a", timeout_s=0.1)

    def waiting() -> object:
        return server.status()[0]["waiting"]

    assert wait_until(lambda: waiting() == 0)
    assert ask(port, "model-a").status == 200


@pytest.mark.usefixtures("without_criu")
def test_a_full_queue_and_a_late_start_are_refused(serve: Serve, tmp_path: Path) -> None:
    """The third waits for nothing; the deadline ends the wait of the others."""
    slow = write_app(tmp_path, "a", more="fault='slow_start', fault_s=20")
    server = serve(slow, config="[deployment.a]\nqueue = 2\ndeadline_s = 1\n")
    port = server.address[1]
    with ThreadPoolExecutor(3) as clients:
        answers = list(clients.map(lambda _: ask(port, "model-a"), range(3)))
    assert {answer.status for answer in answers} == {503}
    assert sorted(str(answer.body["error"]["code"]) for answer in answers) == [  # type: ignore[index]
        "queue_full",
        "waited_too_long",
        "waited_too_long",
    ]
    server.stop()
    assert engines_of(tmp_path) == []


@pytest.mark.slow
@pytest.mark.usefixtures("without_criu")
def test_a_reload_leaves_the_others_alone_and_a_broken_one_changes_nothing(serve: Serve, tmp_path: Path) -> None:
    """One is added, one removed, one changed; the fourth keeps its process."""
    files = [write_app(tmp_path, name) for name in ("kept", "changed", "removed")]
    listed = ", ".join(f'"{name}.py"' for name in ("kept", "changed", "removed"))
    server = serve(config=f"apps = [{listed}]")
    port = server.address[1]
    assert len(files) == 3
    assert ask(port, "model-kept").status == ask(port, "model-removed").status == 200
    (_, before), *_ = server.boots("kept")
    config = tmp_path / "serve.toml"
    config.write_text("apps = [")
    assert server.changed_on_disk
    with pytest.raises(ConfigurationError):
        server.reload()
    assert ask(port, "model-removed").status == 200
    write_app(tmp_path, "added")
    write_app(tmp_path, "changed", more="token_s=0.001")
    config.write_text('apps = ["kept.py", "changed.py", "added.py"]\n[deployment.kept]\naliases = ["other"]\n')
    server.reload()
    assert not server.changed_on_disk
    assert ask(port, "model-removed").status == 404
    assert wait_until(lambda: server.boots("removed") == [])
    assert ask(port, "other").status in (200, 404)
    (_, after), *_ = server.boots("kept")
    assert after is before
    assert {one["name"] for one in server.status()} == {"kept", "changed", "added"}


@pytest.mark.usefixtures("without_criu")
def test_the_control_paths_need_their_key(serve: Serve, tmp_path: Path) -> None:
    """Without it: 401, whatever else is sent. With it they wake, put to sleep and pin."""
    server = serve(write_app(tmp_path, "a"))
    port, key = server.address[1], server.key
    for given in ("", "wrong", "\u00e9"):
        assert control(port, given.encode().decode("latin-1"), "GET", "status")[0] == 401
    assert control(port, "", "POST", "deployments/a/wake", cookie=f"key={key}")[0] == 401
    assert control(port, key, "GET", "deployments/a/wake")[0] == 405
    assert control(port, key, "POST", "deployments/b/wake")[0] == 404
    assert control(port, key, "POST", "deployments/a/destroy")[0] == 404
    assert control(port, key, "POST", "deployments/a/wake")[1]["state"] == "starting"
    assert falls_to(server, "a", "serving")
    assert control(port, key, "POST", "deployments/a/pin")[1]["pinned"] is True
    control(port, key, "POST", "deployments/a/sleep")
    assert falls_to(server, "a", "asleep")
    assert control(port, key, "POST", "deployments/a/unpin")[1]["pinned"] is False


@pytest.mark.slow
@pytest.mark.criu
@pytest.mark.usefixtures("with_criu")
@pytest.mark.fault("`torpor serve` is killed", area="serve", outcome="held")
def test_a_killed_command_leaves_nothing_and_the_next_one_starts_clean(tmp_path: Path) -> None:
    """With SIGKILL: while one engine serves and another one starts. `torpor status` forgets it."""
    files = [write_app(tmp_path, "a"), write_app(tmp_path, "b", more="fault='slow_start', fault_s=20")]
    with serving_command(tmp_path, files) as command:
        assert ask(command.port, "model-a").status == 200
        threading.Thread(target=_ask_in_vain, args=(command.port, "model-b"), daemon=True).start()
        assert wait_until(lambda: any(one.deployment == "b" and one.state == "starting" for one in _running()))
        assert wait_until(lambda: all(engines_of(tmp_path, f"model-{name}") for name in "ab"))
        command.process.kill()
        command.process.wait(30.0)
        assert wait_until(lambda: engines_of(tmp_path) == [])
    assert _running() == []
    with serving_command(tmp_path, files[:1]) as command:
        assert ask(command.port, "model-a").status == 200
        command.process.send_signal(signal.SIGTERM)
        assert command.process.wait(20.0) == 0, command.log.read_text()
    assert engines_of(tmp_path) == []


def _ask_in_vain(port: int, model: str) -> None:
    with contextlib.suppress(OSError):
        ask(port, model)


def _running() -> list[RunningServer]:
    return [one for one in servers() if isinstance(one, RunningServer)]
