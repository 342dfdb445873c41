"""`torpor snapshot` and `torpor up --snapshot` as a user types them, on the stand-in app."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import ROOT
from tests.snapshots.conftest import refuse, wait_for
from tests.snapshots.kept import ATTEMPTS, OTHER_CANARY, chat, engines_on, killing_criu, when_criu_works, write_app
from torpor.app_file import load_app
from torpor.cli.timed import restored_start
from torpor.errors import EngineError
from torpor.platforms.local.criu_backend import CriuBackend
from torpor.runtime.captured_secrets import secret_names
from torpor.snapshots.criu.program import PREFIX_VARIABLE
from torpor.snapshots.store.manifest import FAILURES, MANIFEST
from torpor.telemetry.records import read_records
from torpor.telemetry.stage_report import METRICS_VARIABLE
from torpor.testing.ports import unused_port

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.criu, pytest.mark.slow]

TIMEOUT_S = 90.0
INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class Cli:
    """The command line in an environment of its own.

    Attributes:
        env: with a cache root of the tests and the CRIU of this machine.
        cache: the cache root.
    """

    env: dict[str, str]
    cache: Path

    def run(self, *words: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run a command to its end. The caller checks the exit code."""
        ran = subprocess.run(
            self.argv(*words),
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert ran.returncode == code, ran.stdout + ran.stderr
        assert "Traceback" not in ran.stderr
        return ran

    @contextmanager
    def running(self, *words: str | Path) -> Iterator[Running]:
        """Start a command that keeps running, and end it with the block."""
        with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as answered:
            process = subprocess.Popen(
                self.argv(*words), env=self.env, stdin=subprocess.DEVNULL, stdout=answered, stderr=said
            )
            try:
                yield Running(process, said.fileno(), answered.fileno())
            finally:
                process.terminate()
                try:
                    process.wait(30)
                finally:
                    process.kill()
                    process.wait()

    @staticmethod
    def argv(*words: str | Path) -> list[str]:
        """The command line."""
        return [sys.executable, "-m", "torpor.cli", *map(str, words)]


class Running:
    """A running command: its output, and how it ends."""

    def __init__(self, process: subprocess.Popen[bytes], said: int, answered: int) -> None:
        self.process = process
        self._said, self._answered = said, answered

    @property
    def said(self) -> str:
        """Standard error so far."""
        return os.pread(self._said, 1 << 20, 0).decode()

    @property
    def answered(self) -> str:
        """Standard output so far."""
        return os.pread(self._answered, 1 << 20, 0).decode()

    def says(self, text: str) -> str:
        """Wait until standard error contains this; return all of it."""
        assert wait_for(lambda: text in self.said or self.process.poll() is not None, TIMEOUT_S), self.said
        assert text in self.said, self.said
        return self.said

    def end(self, number: int = signal.SIGINT) -> int:
        """End it with a signal; return its exit code."""
        self.process.send_signal(number)
        return self.process.wait(30)


@dataclass(frozen=True, kw_only=True)
class Made:
    """A snapshot that the command line captured."""

    folder: Path
    app: Path
    port: int
    manifest: dict[str, object]


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """The command line; skipped if CRIU cannot be used."""
    if reasons := CriuBackend().available():
        refuse("; ".join(reasons))
    cache = tmp_path_factory.mktemp("c")
    env = {name: value for name, value in os.environ.items() if name not in secret_names(os.environ)}
    with pytest.MonkeyPatch.context() as patch:
        prefix = os.environ.get(PREFIX_VARIABLE) or str(_prefix())
        for name, value in (("TORPOR_CACHE", str(cache)), (PREFIX_VARIABLE, prefix)):
            patch.setenv(name, value)
            env[name] = value
        yield Cli(env={**env, "COLUMNS": "200"}, cache=cache)


def _prefix() -> Path:
    from torpor.snapshots.store.paths import criu_prefix

    return criu_prefix()


@pytest.fixture(scope="module")
def made(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A snapshot, captured once by `torpor snapshot create`."""
    port = unused_port()
    app = write_app(tmp_path_factory.mktemp("app"), port=port)
    folder = tmp_path_factory.mktemp("made") / "snapshot"
    manifest = json.loads(cli.run("snapshot", "create", app, folder, "--json").stdout)
    return Made(folder=folder, app=app, port=port, manifest=manifest)


@pytest.fixture
def own(cli: Cli, tmp_path: Path) -> Made:
    """A snapshot of this test alone."""
    port = unused_port()
    app = write_app(tmp_path / "app", port=port)
    cli.run("snapshot", "create", app, tmp_path / "kept")
    manifest = json.loads((tmp_path / "kept" / MANIFEST).read_text())
    return Made(folder=tmp_path / "kept", app=app, port=port, manifest=manifest)


def test_a_created_snapshot_can_be_inspected(cli: Cli, made: Made) -> None:
    """Create ends every process that it started and prints the manifest. Inspect prints the same, and that it fits this machine."""
    assert engines_on(made.port) == []
    inspected = json.loads(cli.run("snapshot", "inspect", made.folder, "--json").stdout)
    assert inspected.pop("misfits") == []
    assert inspected == made.manifest
    table = cli.run("snapshot", "inspect", made.folder).stdout
    assert "fits this machine and its app" in table
    for word in ("kept", str(made.app), "canary", "rootless" if made.manifest["mode"] == "rootless" else "root"):
        assert word in table


def test_inspect_lists_every_difference(cli: Cli, own: Made) -> None:
    """In the app as it is now, and in the files."""
    write_app(own.app.parent, port=own.port, warmups=3)
    (own.folder / "images" / "inventory.img").unlink()
    said = cli.run("snapshot", "inspect", own.folder, code=1).stdout
    assert "does not fit: standin.warmup_requests: 1 -> 3" in said
    assert "does not fit: its file images/inventory.img is missing" in said
    misfits = json.loads(cli.run("snapshot", "inspect", own.folder, "--json", code=1).stdout)["misfits"]
    assert len(misfits) == said.count("does not fit: ") == 2


@pytest.mark.parametrize(
    ("words", "ends"),
    [
        ("snapshot create APP DIR --mode wild", (2, "--mode is 'wild'; allowed are root and rootless")),
        ("snapshot restore DIR --verify some", (2, "--verify is 'some'; allowed are fast and full")),
        ("snapshot restore DIR --replicas 0", (2, "--replicas is 0; allowed are 1 to 64 replicas")),
        ("snapshot inspect EMPTY", (2, "holds no snapshot: there is no manifest.json in it")),
        ("snapshot restore EMPTY", (1, "`torpor snapshot create APP")),
        ("snapshot rm EMPTY", (1, "Nothing was removed")),
        ("snapshot create NOAPP DIR", (2, "There is no app file")),
        ("up APP --backend some", (2, "--backend is 'some'; there are: none, standby, criu")),
    ],
)
def test_a_mistake_is_one_paragraph(cli: Cli, made: Made, tmp_path: Path, words: str, ends: tuple[int, str]) -> None:
    """With the exit code of its kind and without a traceback."""
    places = {"APP": made.app, "DIR": made.folder, "EMPTY": tmp_path, "NOAPP": tmp_path / "none.py"}
    code, told = ends
    said = cli.run(*(places.get(word, word) for word in words.split()), code=code).stderr
    assert told in " ".join(said.split())
    assert engines_on(made.port) == []


@pytest.mark.fault("a replica of two is killed", area="engine", outcome="restarted")
def test_replicas_serve_are_restored_again_and_end_with_the_command(cli: Cli, made: Made, tmp_path: Path) -> None:
    """Two replicas, verified by hash. When one is killed, the other serves on and the first is restored. Text and JSON say so.

    Records and metrics say the same of all three replicas.
    """
    port, folders = unused_port(), work_folders(cli)
    records, metrics = tmp_path / "records.jsonl", tmp_path / "torpor.prom"
    cli = replace(cli, env={**cli.env, METRICS_VARIABLE: str(metrics)})
    line: list[str | Path] = [
        "snapshot",
        "restore",
        made.folder,
        "--replicas",
        "2",
        "--port",
        str(port),
        "--verify",
        "full",
        "--records",
        records,
    ]
    with cli.running(*line, "--json") as command:
        assert wait_for(lambda: command.answered, TIMEOUT_S), command.said
        told = json.loads(command.answered)
        assert (told["url"], len(told["replicas"])) == (f"http://127.0.0.1:{port}", 2)
        assert len({one["replica_id"] for one in told["replicas"]}) == 2
        assert told["records"] == str(records)
        assert len({chat(port) for _ in range(4)}) == 1
        before = set(engines_on(made.port))
        os.kill(_leaders(made.port)[0], signal.SIGKILL)
        command.says("has ended (exit code -9). Its last lines:")
        assert wait_for(lambda: len(set(engines_on(made.port)) & before) == len(before) // 2)
        assert {chat(port) for _ in range(4)}
        said = command.says("(restart 1)")
        assert re.search(r"replica kept-3 was restored in \d+\.\d\d s: engine ended \(restart 1\)", said), said
        assert wait_for(lambda: len(engines_on(made.port)) == len(before))
        _, ended, again = map(json.loads, command.answered.splitlines())
        assert (ended["event"], ended["exit_code"]) == ("replica_ended", -9)
        assert (again["event"], again["boot"], again["restart"]) == ("replica_restarted", "restored", 1)
        command.process.send_signal(signal.SIGHUP)
        command.says("2 of 2 replicas serve")
        assert len({chat(port) for _ in range(4)}) == 1
        assert command.end() == 0
    assert engines_on(made.port) == []
    assert work_folders(cli) == folders
    _check_three_restores(records, metrics)
    page = cli.run("report", records).stdout
    assert page.count("restored 3") >= 2
    assert "cold 1" not in page


def _check_three_restores(records: Path, metrics: Path) -> None:
    """`kept-1` to `kept-3` each have every stage from the sandbox on, and each counts once."""
    names = ("kept-1", "kept-2", "kept-3")
    wake = ["post_restore", "canary_check", "serve"]
    written = read_records(records)
    for name in names:
        mine = [record for record in written if record.replica == name]
        assert [record.stage for record in mine] == ["sandbox", "side_files", "criu", *wake]
        assert {(record.boot, record.deployment, record.ok) for record in mine} == {("restored", "kept", True)}
        assert len({record.replica_id for record in mine[:3]} | {record.replica_id for record in mine[4:]}) == 1
    text = metrics.read_text()
    for name in names:
        who = f'deployment="kept",replica="{name}"'
        assert f"torpor_restores_total{{{who}}} 1\n" in text
        assert f"torpor_wakes_total{{{who}}} 0\n" in text
        assert f'torpor_stage_ok{{{who},stage="criu",boot="restored"}} 1\n' in text
    assert 'torpor_restarts_total{deployment="kept",replica="kept-3",reason="engine ended"} 1\n' in text
    assert "torpor_failures_total" not in text


def _leaders(port: int) -> list[int]:
    """The server process of each replica, which is the parent of the others."""
    found = engines_on(port)
    return [
        pid for pid in found if int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) not in found
    ]


@pytest.mark.fault(
    "a snapshot is removed while its replicas serve and one is killed", area="engine", outcome="restarted"
)
def test_removing_a_snapshot_affects_only_new_replicas(cli: Cli, own: Made) -> None:
    """Running replicas serve on. If one dies, it cannot be restored; the command says so and starts it cold."""
    port = unused_port()
    with cli.running("snapshot", "restore", own.folder, "--replicas", "2", "--port", str(port)) as command:
        command.says("Ctrl-C ends it")
        assert "removed" in cli.run("snapshot", "rm", own.folder).stderr
        assert not own.folder.exists()
        os.kill(_leaders(own.port)[0], signal.SIGKILL)
        command.says("has ended")
        said = command.says("was started cold in")
        assert str(own.folder) in said.partition("could not be restored: ")[2]
        assert {chat(port) for _ in range(3)}
        assert command.end(signal.SIGTERM) == 0
    assert engines_on(own.port) == []


@pytest.mark.fault("an engine ends again and again", area="engine", outcome="refused")
def test_a_restore_ends_with_an_error_when_its_last_replica_is_given_up(cli: Cli, own: Made) -> None:
    """This deployment allows no restart. Exit code 1, one paragraph, no process left."""
    own.app.write_text(own.app.read_text().replace("port=", "max_restarts=0, port=", 1))
    cli.run("snapshot", "create", own.app, own.folder)
    with cli.running("snapshot", "restore", own.folder) as command:
        command.says("Ctrl-C ends it")
        os.kill(_leaders(own.port)[0], signal.SIGKILL)
        assert command.process.wait(30) == 1
        assert "is given up after 0 restarts in a row" in command.said
        assert "EngineError: No replica of" in command.said
    assert engines_on(own.port) == []


@pytest.mark.fault("every wake of a snapshot fails", area="wake", outcome="restarted")
def test_a_restore_whose_replica_starts_cold_says_so_in_its_line_of_json(cli: Cli, own: Made) -> None:
    """The first line has the earlier events. A timed restore refuses to count it."""
    content = {**own.manifest, "canary": OTHER_CANARY}
    (own.folder / MANIFEST).write_text(json.dumps(content))
    with cli.running("snapshot", "restore", own.folder, "--json") as command:
        assert wait_for(lambda: command.answered.endswith("\n"), TIMEOUT_S), command.said
        told = json.loads(command.answered)
        (replica,) = told["replicas"]
        assert (replica["boot"], replica["reason"]) == ("cold", "wake failed")
        assert [event["event"] for event in told["events"]] == ["wake_failed", "wake_failed", "replica_restarted"]
        assert chat(own.port)
    with pytest.raises(EngineError, match=r"no restore to time: kept-3 was started cold \(wake failed\)"):
        restored_start(own.folder, load_app(str(own.app)).deployment)


@pytest.mark.fault("a snapshot is marked bad", area="wake", outcome="refused")
def test_a_snapshot_that_is_marked_bad_is_refused_and_can_be_tried(cli: Cli, own: Made) -> None:
    """The message has the reason, and how to try it anyway or replace it."""
    (own.folder / FAILURES).write_text('{"in_a_row": 3, "last_at": 1.0, "last": "CanaryError: other words"}')
    said = " ".join(cli.run("snapshot", "restore", own.folder, code=1).stderr.split())
    assert "it is marked bad: 3 of its replicas in a row did not wake" in said
    assert "CanaryError: other words" in said
    assert "torpor snapshot create" in said
    assert "marked bad" in cli.run("snapshot", "inspect", own.folder, "--json", code=1).stdout
    with cli.running("snapshot", "restore", own.folder, "--even-if-bad") as command:
        command.says("Ctrl-C ends it")
        assert not (own.folder / FAILURES).exists()


def test_two_restores_of_one_snapshot_at_once_on_one_port_and_on_two(cli: Cli, made: Made) -> None:
    """Each serves on its own port. On a taken port the second fails and leaves no process."""
    ports = unused_port(), unused_port()
    lines = [("snapshot", "restore", made.folder, "--port", str(port)) for port in ports]
    with cli.running(*lines[0]) as one, cli.running(*lines[1]) as other:
        for command in (one, other):
            command.says("Ctrl-C ends it")
        running = set(engines_on(made.port))
        assert chat(ports[0]) == chat(ports[1])
        said = cli.run(*lines[0], code=2).stderr
        assert f"Port {ports[0]} is in use" in said
        assert "Nothing was restored" in said
        assert set(engines_on(made.port)) == running
        assert chat(ports[0])
    assert engines_on(made.port) == []


def test_a_killed_restore_ends_its_replicas(cli: Cli, made: Made) -> None:
    """After SIGKILL of the command no engine, port or mount is left. A later restore removes its folders in the cache."""
    port = unused_port()
    mounts, before = Path("/proc/self/mountinfo").read_text(), work_folders(cli)
    with cli.running("snapshot", "restore", made.folder, "--replicas", "2", "--port", str(port)) as command:
        command.says("Ctrl-C ends it")
        assert engines_on(made.port)
        assert command.end(signal.SIGKILL) == -signal.SIGKILL
        assert wait_for(lambda: engines_on(made.port) == [])
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
    assert Path("/proc/self/mountinfo").read_text() == mounts
    left = work_folders(cli) - before
    assert len(left) == 2
    for folder in left:
        os.utime(folder, (1, 1))
    with cli.running("snapshot", "restore", made.folder, "--port", str(port)) as command:
        command.says("Ctrl-C ends it")
    assert not work_folders(cli) & left


def work_folders(cli: Cli) -> set[Path]:
    """Folders with CRIU's logs. A failed restore leaves its own, and its message names it."""
    return {place for place in (cli.cache / "run").glob("*") if place.is_dir()}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_create_that_is_ended_while_criu_works_leaves_nothing(
    cli: Cli, own: Made, tmp_path: Path, number: signal.Signals
) -> None:
    """No engine and no partial snapshot; the old one stays. After SIGKILL the next create cleans up."""
    for _ in range(ATTEMPTS):
        before = json.loads((own.folder / MANIFEST).read_text())
        with cli.running("snapshot", "create", own.app, own.folder) as command:
            with when_criu_works(tmp_path, lambda _: command.process.send_signal(number)):
                code = command.process.wait(60)
            if code != 0:  # else it was done before the signal came
                assert code == (-signal.SIGKILL if number == signal.SIGKILL else INTERRUPTED), command.said
                break
    else:
        pytest.fail("the command was always done before the signal came")
    assert wait_for(lambda: engines_on(own.port) == [])
    assert json.loads((own.folder / MANIFEST).read_text()) == before
    if number == signal.SIGKILL:
        cli.run("snapshot", "create", own.app, own.folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["app", "kept"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_restore_that_is_ended_while_criu_works_leaves_nothing(cli: Cli, own: Made, number: signal.Signals) -> None:
    """Several CRIU processes run then. The command waits for all and ends what they restored."""
    mounts = Path("/proc/self/mountinfo").read_text()
    line = ("snapshot", "restore", own.folder, "--replicas", "3", "--port", str(unused_port()))
    for _ in range(ATTEMPTS):
        with cli.running(*line) as command:
            with when_criu_works(own.folder, lambda _: command.process.send_signal(number)):
                assert wait_for(lambda: command.process.poll() is not None or "Ctrl-C ends it" in command.said, 60.0)
            if "Ctrl-C ends it" in command.said:  # it served already when the signal came
                continue
            assert command.process.returncode == INTERRUPTED, command.said
            assert "torpor: interrupted; everything it started was ended" in command.said
            break
    else:
        pytest.fail("the command always served already when the signal came")
    assert engines_on(own.port) == []
    assert Path("/proc/self/mountinfo").read_text() == mounts


def up(cli: Cli, app: Path, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Run `torpor up APP --snapshot DIR` with one question, so that it ends."""
    return cli.run("up", app, "--snapshot", folder, "--ask", "hello", *more)


def test_up_captures_a_snapshot_restores_it_and_says_why_it_does_not_fit(cli: Cli, tmp_path: Path) -> None:
    """Cold without a snapshot, restored if it fits, cold with a new capture if the app has changed. Each replica answers."""
    port, folder = unused_port(), tmp_path / "kept"
    app = write_app(tmp_path / "app", port=port)
    first = up(cli, app, folder)
    assert f"cold: there is no snapshot in {folder}; one is captured after the start" in first.stderr
    made_at = json.loads((folder / MANIFEST).read_text())["captured_at"]
    second = up(cli, app, folder)
    assert f"restored: the snapshot {folder} fits" in second.stderr
    assert json.loads((folder / MANIFEST).read_text())["captured_at"] == made_at
    write_app(tmp_path / "app", port=port, warmups=2)
    third = up(cli, app, folder)
    assert f"cold: the snapshot {folder} does not fit; a new one is captured after the start" in third.stderr
    assert "  - standin.warmup_requests: " in third.stderr
    assert json.loads((folder / MANIFEST).read_text())["captured_at"] > made_at
    assert "restored: " in up(cli, app, folder).stderr
    assert all(ran.stdout.strip() for ran in (first, second, third))
    assert engines_on(port) == []


@pytest.mark.fault("every command is given a link to a snapshot", area="snapshot folders", outcome="held")
def test_every_command_follows_a_link_to_a_snapshot(cli: Cli, own: Made, tmp_path: Path) -> None:
    """Commands show, restore, replace and remove the snapshot behind the link. The link stays."""
    link, port = tmp_path / "current", unused_port()
    link.symlink_to(own.folder.name)
    assert json.loads(cli.run("snapshot", "inspect", link, "--json").stdout)["misfits"] == []
    with cli.running("snapshot", "restore", link, "--port", str(port)) as command:
        command.says("Ctrl-C ends it")
        assert chat(port)
        command.end()
    assert f"restored: the snapshot {link} fits" in up(cli, own.app, link).stderr
    cli.run("snapshot", "create", own.app, link)
    assert link.is_symlink()
    assert json.loads((own.folder / MANIFEST).read_text())["captured_at"] > own.manifest["captured_at"]
    assert f"removed {own.folder}" in cli.run("snapshot", "rm", link).stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["app", "current"]
    assert "there is no snapshot" in up(cli, own.app, link).stderr
    assert (own.folder / MANIFEST).is_file()


@pytest.mark.fault(
    "a folder with a manifest of something else is given as a snapshot", area="snapshot folders", outcome="refused"
)
def test_another_programs_folder_is_refused_before_anything_is_started(cli: Cli, own: Made, tmp_path: Path) -> None:
    """By each command that would delete it. Its files stay."""
    folder = tmp_path / "extension"
    folder.mkdir()
    (folder / MANIFEST).write_text('{"manifest_version": 3, "name": "mine"}')
    (folder / "main.js").write_text("years of work")
    for words in (
        ("snapshot", "rm", folder),
        ("snapshot", "create", own.app, folder),
        ("up", own.app, "--snapshot", folder),
    ):
        said = cli.run(*words, code=1).stderr
        assert "its manifest.json is not that of a snapshot: it has the fields manifest_version, name" in said
        assert "launch" not in said
    assert (folder / "main.js").read_text() == "years of work"


def test_up_starts_cold_when_a_replica_does_not_wake(cli: Cli, own: Made) -> None:
    """The user wants a server, so a failed restore starts cold. The command says so and takes a new snapshot."""
    content = {**own.manifest, "canary": OTHER_CANARY}
    (own.folder / MANIFEST).write_text(json.dumps(content))
    said = up(cli, own.app, own.folder).stderr
    assert f"restored: the snapshot {own.folder} fits" in said
    assert "cold: the snapshot could not be restored: " in said
    assert "something else" in said
    assert json.loads((own.folder / MANIFEST).read_text())["canary"] == own.manifest["canary"]
    assert "restored: " in up(cli, own.app, own.folder).stderr


@pytest.mark.fault("a wake fails once under torpor up", area="wake", outcome="restarted")
def test_up_does_not_start_cold_for_a_wake_that_fails_once(cli: Cli, tmp_path: Path) -> None:
    """It restores the same snapshot once more. The snapshot stays."""
    folder, once = tmp_path / "kept", tmp_path / "once"
    more = f", fault='exit_at_wake', fault_once={str(once)!r}"
    app = write_app(tmp_path / "app", port=unused_port(), more=more)
    cli.run("snapshot", "create", app, folder, "--no-prove")
    made_at = json.loads((folder / MANIFEST).read_text())["captured_at"]
    ran = up(cli, app, folder)
    assert once.exists()
    assert ran.stdout.strip()
    assert "did not wake: " in ran.stderr
    assert "cold:" not in ran.stderr
    assert json.loads((folder / MANIFEST).read_text())["captured_at"] == made_at


@pytest.mark.fault("CRIU is killed in a restore under torpor up", area="restore", outcome="restarted")
def test_up_does_not_start_cold_when_criu_is_killed_once(cli: Cli, own: Made) -> None:
    """It restores once more. The snapshot stays."""
    for _ in range(ATTEMPTS):
        with killing_criu(own.folder):
            said = up(cli, own.app, own.folder).stderr
        if "could not be restored: " in said:
            break
    else:
        pytest.fail("CRIU was always done before it was killed")
    assert "was killed by SIGKILL" in said
    assert "cold:" not in said
    assert json.loads((own.folder / MANIFEST).read_text()) == own.manifest
    (file,) = set(re.findall(r"^records: (\S+)$", said, re.MULTILINE))
    first, *others = read_records(Path(file))
    assert (first.stage, first.boot, first.ok, "SIGKILL" in first.error) == ("restore", "restored", False, True)
    assert [one.stage for one in others] == ["sandbox", "side_files", "criu", "post_restore", "canary_check", "serve"]
    assert all(one.ok and one.boot == "restored" for one in others)


@pytest.mark.fault("a snapshot is marked bad under torpor up", area="wake", outcome="restarted")
def test_up_replaces_a_snapshot_that_is_marked_bad(cli: Cli, own: Made) -> None:
    """It does not try the old one, and the mark disappears with it."""
    (own.folder / FAILURES).write_text('{"in_a_row": 3, "last_at": 1.0, "last": "CanaryError: other words"}')
    said = up(cli, own.app, own.folder).stderr
    assert f"cold: the snapshot {own.folder} does not fit; a new one is captured after the start" in said
    assert "  - it is marked bad: 3 of its replicas" in said
    assert not (own.folder / FAILURES).exists()
    assert "restored: " in up(cli, own.app, own.folder).stderr


@pytest.mark.fault("a server under torpor up is killed", area="engine", outcome="restarted")
@pytest.mark.parametrize("way", ["restored", "left running", "criu"])
def test_up_restores_a_killed_engine(cli: Cli, own: Made, tmp_path: Path, way: str) -> None:
    """From its snapshot, after a cold and after a restored start. Meanwhile the port refuses no connection."""
    folder = own.folder if way == "restored" else tmp_path / "other"
    options = ["--backend", "criu"] if way == "criu" else ["--snapshot", str(folder)]
    with cli.running("up", own.app, *options) as command:
        command.says("Ctrl-C ends it")
        answer = chat(own.port)
        for restart in (1, 2):
            (leader,) = _leaders(own.port)
            os.kill(leader, signal.SIGKILL)
            command.says(f"engine ended (restart {restart})")
            with socket.create_connection(("127.0.0.1", own.port), 1.0):
                pass
            assert wait_for(lambda: _answers(own.port) == answer, 10.0), command.said
        assert "was started cold" not in command.said
        assert command.said.count("has ended (exit code -9)") == 2
        os.kill(_leaders(own.port)[0], signal.SIGKILL)  # the third restart waits two seconds
        assert wait_for(lambda: command.said.count("has ended (exit code -9)") == 3)
        command.process.send_signal(signal.SIGTERM)
        command.process.wait(30)
    assert engines_on(own.port) == []


def test_up_does_not_start_cold_on_a_taken_port(cli: Cli, own: Made) -> None:
    """A cold start would fail in the same way a minute later."""
    with socket.create_server(("127.0.0.1", own.port)):
        said = cli.run("up", own.app, "--snapshot", own.folder, code=2).stderr
    assert f"Port {own.port} is in use" in said
    assert "cold:" not in said


def test_a_server_with_the_backend_criu_sleeps_and_wakes_by_signal(cli: Cli, tmp_path: Path) -> None:
    """Asleep, it has no process, only its folder. Awake, it answers as before."""
    port = unused_port()
    app = write_app(tmp_path / "app", port=port)
    with cli.running("up", app, "--backend", "criu") as command:
        command.says("Ctrl-C ends it")
        answer = chat(port)
        command.process.send_signal(signal.SIGUSR1)
        assert wait_for(lambda: engines_on(port) == [], 30.0), command.said
        assert (cli.cache / "snapshots" / "kept" / MANIFEST).is_file()
        command.process.send_signal(signal.SIGUSR2)
        assert wait_for(lambda: _answers(port) == answer, 30.0), command.said
        assert command.end() == 0
    assert engines_on(port) == []


def _answers(port: int) -> str:
    try:
        return chat(port)
    except (OSError, AssertionError):
        return ""


@pytest.fixture
def without_criu(cli: Cli, tmp_path: Path) -> Cli:
    """The command line on a machine without CRIU."""
    env = {**cli.env, "TORPOR_CACHE": str(tmp_path / "cache"), PREFIX_VARIABLE: str(tmp_path / "none")}
    if shutil.which("criu", path=f"{env['PATH']}:/usr/local/sbin:/usr/sbin:/sbin"):
        pytest.skip("this machine has a CRIU of its own")
    return Cli(env=env, cache=tmp_path / "cache")


def test_without_criu_every_command_says_why_and_offers_standby(without_criu: Cli, made: Made, tmp_path: Path) -> None:
    """The message has the reason and what to install, and says that standby works without it."""
    for words in (
        ("snapshot", "create", made.app, tmp_path / "kept"),
        ("up", made.app, "--backend", "criu"),
        ("up", made.app, "--snapshot", tmp_path / "kept"),
    ):
        said = without_criu.run(*words, code=1).stderr
        assert "none was found: run `torpor snapshot setup`" in said
        assert "The backend 'standby' works anywhere: torpor up APP --backend standby" in said
    assert not (tmp_path / "kept").exists()
    assert "none was found" in without_criu.run("snapshot", "restore", made.folder, code=1).stderr
    assert without_criu.run("up", made.app, "--backend", "standby", "--ask", "hello").stdout
    assert engines_on(made.port) == []


def test_compare_times_cold_and_restored_starts(cli: Cli, tmp_path: Path) -> None:
    """One cold start, two restores and their ratio. It prints the last restore's answer, or everything as JSON."""
    app = write_app(tmp_path / "app", port=unused_port())
    ran = cli.run("snapshot", "compare", app, "--restores", "2")
    asked = ran.stderr.index("the last replica is asked, too: Tell me about the moon.\n")
    restored = re.search(r"restore 2 +\d+\.\d+ s to the first token", ran.stderr)
    assert restored
    assert asked < restored.start()
    assert ran.stderr.index("starting cold, timed") < ran.stderr.index("starting cold once more, for the snapshot")
    (folder,) = re.findall(r"^snapshot +\d+ MB in (\S+)$", ran.stderr, re.MULTILINE)
    assert ran.stderr.endswith(f"\nserve from the snapshot: torpor snapshot restore {folder}\n")
    assert re.search(r"a restored start is \d+\.\d times as fast as a cold one", ran.stderr)
    assert ran.stdout.strip()
    told = json.loads(cli.run("snapshot", "compare", app, "--restores", "1", "--json").stdout)
    assert told["ratio"] == pytest.approx(told["cold_s"] / told["restored"][0]["first_token_s"])


def test_compare_checks_the_port_first(cli: Cli, tmp_path: Path) -> None:
    """One paragraph names the process that holds it, before anything is built or started."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ran = cli.run("snapshot", "compare", write_app(tmp_path / "app", port=port), code=2)
    said = " ".join(ran.stderr.split())
    assert said.startswith(f"torpor: PortInUseError: Port {port} is in use: another program listens there")


def test_compare_shows_standby_if_criu_cannot_be_used(without_criu: Cli, made: Made) -> None:
    """It says why."""
    ran = without_criu.run("snapshot", "compare", made.app)
    assert "snapshots cannot be captured on this machine:" in ran.stderr
    assert "torpor snapshot setup" in ran.stderr
    assert "so this shows standby" in ran.stderr
    assert ran.stdout.strip()


def commands_of_the_page() -> list[str]:
    """The block of commands at the top of docs/snapshots.md, without comments."""
    top = (ROOT / "docs" / "snapshots.md").read_text(encoding="utf-8").partition("\n## ")[0]
    lines = [line.partition("#")[0].strip() for line in top.splitlines() if line.startswith("    torpor ")]
    return [line for line in lines if "s3://" not in line]  # tests/snapshots/remote has stores


@pytest.mark.timeout(400)
def test_the_commands_of_the_page_do_what_it_says(cli: Cli, tmp_path: Path) -> None:
    """In the page's order, each once, with the stand-in app and another folder."""
    lasting = os.pathsep.join(map(str, (cli.cache, tmp_path)))  # doctor warns of what lies in a temporary folder
    cli = replace(cli, env={**cli.env, "TORPOR_LASTING_FOLDERS": lasting})
    port = unused_port()
    app = write_app(tmp_path / "app", port=port)
    places = {"apps/tiny_cpu.py": str(app), "APP": str(app), "/srv/tiny": str(tmp_path / "kept")}
    lines = [" ".join(places.get(word, word) for word in line.split()) for line in commands_of_the_page()]
    assert len(lines) >= 7
    for line in lines:
        words = line.split()[1:]
        if words[:2] == ["snapshot", "restore"] or words[0] == "up":
            with cli.running(*words) as command:
                command.says("Ctrl-C ends it")
                assert chat(port), line
                command.end()
        else:
            cli.run(*words)
    assert engines_on(port) == []


def test_setup_does_not_install_twice_and_tries_criu(cli: Cli) -> None:
    """It downloads nothing again. The last line says that snapshots work."""
    said = cli.run("snapshot", "setup").stderr
    assert "is already installed" in said
    assert "a small dump and restore worked: snapshots work here" in said


@pytest.mark.fault("a replica is killed while an operator looks and prunes", area="torpor status", outcome="restarted")
def test_a_snapshot_in_use_is_listed_and_not_pruned(cli: Cli, made: Made) -> None:
    """Two replicas serve; one is killed and restored. Their snapshot is listed as in use, and prune keeps it."""
    with cli.running("snapshot", "restore", made.folder, "--replicas", "2") as command:
        command.says("Ctrl-C ends it")

        def server() -> dict[str, Any]:
            (one,) = json.loads(cli.run("status", "--json").stdout)["servers"]
            return dict(one)

        first = server()
        assert (first["state"], first["health"], first["snapshot"]) == ("serving", "serving", str(made.folder))
        assert [one["boot"] for one in first["replicas"]] == ["restored", "restored"]
        assert all(one["memory_bytes"] > 1 << 20 for one in first["replicas"])
        os.kill(first["replicas"][0]["pid"], signal.SIGKILL)
        command.says("(restart 1)")
        cli.run("status", "kept")
        second = server()
        assert (second["restarting"], len(second["replicas"])) == (0, 2)
        assert {one["restarts"] for one in second["replicas"]} == {0, 1}
        assert "was restored in" in second["last_event"]
        listed = json.loads(cli.run("snapshot", "list", "--json").stdout)["snapshots"]
        (entry,) = (one for one in listed if one["folder"] == str(made.folder))
        assert (entry["fits"], entry["used_by"]) == (True, [f"torpor snapshot restore (pid {command.process.pid})"])
        assert entry["used_at"] > entry["captured_at"]
        said = cli.run("snapshot", "prune", made.folder, "--older-than", "0s").stdout
        assert f"kept {made.folder}: in use by torpor snapshot restore" in said
        assert (made.folder / MANIFEST).exists()
        assert command.end(signal.SIGTERM) == 0
    assert json.loads(cli.run("status", "--json").stdout)["servers"] == []
