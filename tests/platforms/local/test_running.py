"""`torpor.platforms.local.running`: the files that show which commands serve."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from torpor.platforms.local.running import Process, RunFile, RunningServer, Unreadable, servers
from torpor.snapshots.store.paths import CACHE_VARIABLE

if TYPE_CHECKING:
    from pathlib import Path

FACTS: dict[str, object] = {
    "deployment": "small",
    "model": "m",
    "app_file": "app.py",
    "backend": "criu",
    "url": "http://127.0.0.1:1",
    "snapshot": "/srv/small",
    "state": "serving",
    "wanted": 1,
    "restarting": 0,
    "last_event": "",
    "last_event_at": 0.0,
    "replicas": [
        {
            "name": "small-1",
            "pid": os.getpid(),
            "leader": Process.of(os.getpid())._asdict(),
            "replica_id": "0123456789abcdef",
            "boot": "restored",
            "reason": "",
            "restarts": 0,
            "gpus": [1],
            "since": 1.5,
            "log": "",
        }
    ],
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of these files."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    return tmp_path / "run"


def written(facts: dict[str, object] | None = None) -> RunFile:
    """Write a file for this process."""
    file = RunFile("up")
    file.write(FACTS | (facts or {}))
    return file


def files(folder: Path) -> list[Path]:
    """Everything in the folder."""
    return sorted(folder.iterdir())


def test_a_server_is_found_while_it_runs_and_not_afterwards(folder: Path) -> None:
    """Its last write counts. Its file is readable by its owner only, and is removed at its end."""
    file = written({"state": "starting"})
    file.write(FACTS)
    (server,) = servers()
    assert isinstance(server, RunningServer)
    assert (server.state, server.command, server.url, server.process.pid, server.here) == (
        "serving",
        "up",
        "http://127.0.0.1:1",
        os.getpid(),
        True,
    )
    assert server.replicas[0].leader.alive
    (path,) = files(folder)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    file.close()
    file.close()
    file.write(FACTS)
    assert servers() == ()
    assert files(folder) == []


def test_several_servers_are_found_the_oldest_first(folder: Path) -> None:
    """Each has its own file, even in one process."""
    opened = [written({"deployment": name}) for name in ("b", "a", "c")]
    assert [one.deployment for one in servers() if isinstance(one, RunningServer)] == ["b", "a", "c"]
    assert len(files(folder)) == 3
    for one in opened:
        one.close()


@pytest.mark.fault("a command that serves is killed", area="torpor status", outcome="held")
def test_the_file_of_a_killed_command_is_ignored_and_removed(folder: Path) -> None:
    """Its lock ended with it, whatever its pid namespace."""
    program = (
        "import os, sys, json; from torpor.platforms.local.running import RunFile; "
        "f = RunFile('up'); f.write(json.loads(sys.argv[1]));"
        "print(os.getpid(), flush=True); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", program, json.dumps(FACTS)], stdout=subprocess.PIPE, check=False)
    assert len(files(folder)) == 1
    assert servers() == ()
    assert files(folder) == []


@pytest.mark.fault("the pid of a killed command is somebody else's by now", area="torpor status", outcome="held")
def test_a_pid_alone_is_no_proof_of_life(folder: Path) -> None:
    """On a disk without locks the start time decides."""
    file = written()
    (path,) = files(folder)
    content = json.loads(path.read_text())
    content["process"]["start_ticks"] -= 1
    path.write_text(json.dumps(content))  # written in place, so the lock stays
    assert servers() == ()
    content["kernel_boot"] = "another"
    path.write_text(json.dumps(content))
    (server,) = servers()  # it is in another pid namespace: its lock shows that it lives
    assert isinstance(server, RunningServer)
    assert not server.here
    file.close()


@pytest.mark.fault("the files of running commands are damaged or not ours", area="torpor status", outcome="held")
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not JSON"),
        (b"[1]", "an object"),
        (b'{"schema": 1}', "another version"),
        (b"[" * 100_000, "nested too deep"),
        (json.dumps({"schema": 2, "torpor": 7}).encode(), "field torpor"),
    ],
)
def test_a_damaged_file_is_named_and_the_others_are_still_found(folder: Path, content: bytes, said: str) -> None:
    """A live command holds it, so it is not removed."""
    file, other = written(), written({"deployment": "other"})
    path = next(path for path in files(folder) if json.loads(path.read_text())["deployment"] == "small")
    path.write_bytes(content)
    broken, whole = servers()
    assert isinstance(broken, Unreadable)
    assert said in broken.problem
    assert "new snapshot" not in broken.problem
    assert isinstance(whole, RunningServer)
    file.close()
    other.close()


@pytest.mark.fault(
    "links, pipes and folders lie among the files of running commands", area="torpor status", outcome="held"
)
def test_other_files_are_left_alone(folder: Path, tmp_path: Path) -> None:
    """No link is followed, and no pipe blocks."""
    folder.mkdir(parents=True)
    victim = tmp_path / "victim"
    victim.write_text("{}")
    (folder / "server-1-aa.json").symlink_to(victim)
    os.mkfifo(folder / "server-2-bb.json")
    (folder / "server-3-cc.json").mkdir()
    (folder / "small-7-01234567").mkdir()
    assert servers() == ()
    assert len(files(folder)) == 4
    assert victim.exists()


@pytest.mark.fault("the cache root cannot be written", area="torpor status", outcome="held")
def test_a_cache_that_cannot_be_written_only_hides_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server itself keeps running."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file"))
    written().close()
    assert servers() == ()
