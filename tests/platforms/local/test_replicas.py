"""Snapshots are captured and restored: replicas serve, and every refusal leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import stat
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
import structlog

from tests.conftest import BOTH_DIALECTS
from tests.snapshots.conftest import MODES, refuse, wait_for
from tests.snapshots.kept import ATTEMPTS, OTHER_CANARY, Background, chat, engines_on, killing_criu, write_app
from torpor import CanaryError, GuardStateError, PortInUseError, SnapshotError
from torpor.app_file import load_app
from torpor.engine.logs import stored_logs
from torpor.platforms.local.criu_backend import CriuBackend
from torpor.platforms.local.gateway_route import READY_FOR_S
from torpor.platforms.local.replicas import Replicas
from torpor.platforms.local.server import LocalServer
from torpor.platforms.local.snapshots import create_snapshot, inspect_snapshot, remove_snapshot, restore_snapshot
from torpor.platforms.modal.prewarm import prewarm
from torpor.runtime import answering
from torpor.runtime.answering import Patience
from torpor.runtime.captured_secrets import secret_names
from torpor.snapshots.capture import CaptureOptions, capture
from torpor.snapshots.criu.program import PREFIX_VARIABLE
from torpor.snapshots.sandbox.engine import SandboxEngine
from torpor.snapshots.store.manifest import MANIFEST
from torpor.snapshots.store.paths import cache_root
from torpor.testing.faults import CRASH_WORD
from torpor.testing.ports import unused_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torpor.runtime.boot import Boot
    from torpor.runtime.supervision import ReplicaEvent
    from torpor.snapshots.criu.program import Criu
    from torpor.snapshots.sandbox.sandbox import Sandbox
    from torpor.snapshots.store.manifest import Mode
    from torpor.testing import StandIn

pytestmark = pytest.mark.criu


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A snapshot, its app file and its port."""

    folder: Path
    app: Path
    port: int


@pytest.fixture(scope="module")
def cache(criu: Criu, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache root for these tests, with this machine's CRIU."""
    root = tmp_path_factory.mktemp("c")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORPOR_CACHE", str(root))
        if "root" in criu.program.parts:  # a private prefix: <prefix>/root/usr/sbin/criu
            patch.setenv(PREFIX_VARIABLE, str(criu.program.parents[3]))
        for name in secret_names(os.environ):
            patch.delenv(name)
        yield root


@pytest.fixture(scope="module")
def original(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """A snapshot, captured once for all tests. None of them changes it."""
    port = unused_port()
    app = write_app(tmp_path_factory.mktemp("app"), port=port)
    folder = tmp_path_factory.mktemp("kept") / "snapshot"
    if reasons := CriuBackend(mode=MODES[-1]).available():
        refuse("; ".join(reasons))
    create_snapshot(app, folder, mode=MODES[-1])
    return Kept(folder=folder, app=app, port=port)


@pytest.fixture
def kept(original: Kept, tmp_path: Path) -> Kept:
    """The snapshot in a folder of the test's own, which may change it."""
    folder = tmp_path / "snapshot"
    shutil.copytree(original.folder, folder)
    return Kept(folder=folder, app=original.app, port=original.port)


def change_manifest(folder: Path, change: Callable[[dict[str, object]], None]) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    change(content)
    (folder / MANIFEST).write_text(json.dumps(content))


def refused(kept: Kept, *, full: bool = False) -> str:
    """The error of a refused restore, which must leave nothing behind."""
    port = unused_port()
    with pytest.raises(SnapshotError) as error:
        restore_snapshot(kept.folder, port=port, full=full)
    assert engines_on(kept.port) == []
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", port))
    return str(error.value)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.ordinary_user
def test_a_replica_answers_as_its_original_did(mode: Mode, cache: Path, tmp_path: Path) -> None:
    """Rootless and as root. The original has ended, and `stop` ends the replica."""
    if reasons := CriuBackend(mode=mode).available():
        refuse("; ".join(reasons))
    app = write_app(tmp_path / "app", port=unused_port())
    manifest = create_snapshot(app, tmp_path / "kept", mode=mode)
    assert engines_on(manifest.deployment.port) == []
    port = unused_port()
    replicas = restore_snapshot(tmp_path / "kept", port=port, full=True)
    try:
        assert chat(port) == chat(port)
        assert manifest.mode == mode
    finally:
        replicas.stop()
    assert engines_on(manifest.deployment.port) == []
    assert list((cache / "run").iterdir()) == []


@pytest.mark.ordinary_user
def test_replicas_serve_side_by_side_under_identities_of_their_own(original: Kept) -> None:
    """Three replicas behind one port have different replica ids, keys and logs, and the same greedy answers."""
    port = unused_port()
    replicas = restore_snapshot(original.folder, replicas=3, port=port)
    try:
        assert len({chat(port) for _ in range(6)}) == 1
        engines = [one.boot.running_engine for one in replicas.serving]
        kept_identity = json.loads((original.folder / "private.json").read_text())
        assert len({engine.replica_id for engine in engines} | {kept_identity["replica_id"]}) == 4
        assert len({engine.guard_key for engine in engines} | {kept_identity["guard_key"]}) == 4
        for one in replicas.serving:
            with one.boot._control() as control:
                assert control._client.get("/_torpor/state").json()["replica_id"] == one.boot.running_engine.replica_id
            assert not any("scheduler" in line for line in one.boot.running_engine.log_tail())  # printed at the start
    finally:
        replicas.stop()
    assert engines_on(original.port) == []


@BOTH_DIALECTS
def test_replicas_sample_texts_of_their_own(cache: Path, tmp_path: Path, standin: type[StandIn]) -> None:
    """Replicas start with the random state of the snapshot. The wake renews it."""
    if reasons := CriuBackend(mode=MODES[-1]).available():
        refuse("; ".join(reasons))
    app = write_app(tmp_path / "app", port=unused_port(), standin=standin.__name__)
    create_snapshot(app, tmp_path / "kept", mode=MODES[-1])
    replicas = restore_snapshot(tmp_path / "kept", replicas=2, port=unused_port())
    try:
        body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 40, "temperature": 1.0}
        texts = []
        for one in replicas.serving:
            with one.boot._control() as control:
                answer = control._client.post("/v1/chat/completions", json=body).json()
                texts.append(answer["choices"][0]["message"]["content"])
        assert len(set(texts)) == 2
    finally:
        replicas.stop()


def test_replicas_say_in_their_answers_that_they_were_restored(original: Kept) -> None:
    """`torpor prewarm` reads these headers. Two replicas have two tags, and neither is a replica id."""
    port = unused_port()
    replicas = restore_snapshot(original.folder, replicas=2, port=port)
    try:
        ended = prewarm(f"http://127.0.0.1:{port}", requests=1, attempts=1, pause_s=0.0, timeout_s=30.0)
        answers = [httpx.get(f"http://127.0.0.1:{port}/ready", trust_env=False) for _ in range(8)]
        replica_ids = {one.boot.running_engine.replica_id for one in replicas.serving}
    finally:
        replicas.stop()
    assert ended.end == "restored"
    assert {(one.headers["torpor-boot"], one.headers["torpor-wakes"]) for one in answers} == {("restored", "1")}
    tags = {one.headers["torpor-replica"] for one in answers}
    assert len(tags) == len(replica_ids) == 2
    assert tags & replica_ids == set()


def test_what_a_restored_engine_prints_can_be_read_while_it_runs(original: Kept) -> None:
    """Each replica has a log file, which the engine names and which stays after its end."""
    replicas = restore_snapshot(original.folder, replicas=2, port=unused_port())
    try:
        engines = [one.boot.running_engine for one in replicas.serving]
        logs = [engine.log_path for engine in engines]
        for number, (engine, log) in enumerate(zip(engines, logs, strict=True)):
            with Path(f"/proc/{engine.pid}/fd/1").open("ab", buffering=0) as stdout:
                stdout.write(b"words of %d\n" % number)
            assert log is not None
            assert wait_for(partial(says, log, f"words of {number}\n"))
        kept = {one.path: one for one in stored_logs(cache_root() / "logs")}
        assert [(kept[log].replica, kept[log].runs) for log in logs if log] == [
            (one.replica.name, True) for one in replicas.serving
        ]
        with Path(f"/proc/{engines[0].pid}/fd/1").open("ab", buffering=0) as stdout:
            stdout.write(b"last words\n")
    finally:
        replicas.stop()
    assert logs[0] is not None
    assert says(logs[0], "words of 0\nlast words\n")
    assert not any(one.runs for one in stored_logs(cache_root() / "logs") if one.path in logs)


def says(log: Path, text: str) -> bool:
    """Whether a log has exactly this text."""
    return log.is_file() and log.read_text() == text


def test_two_restores_at_once_do_not_disturb_each_other(original: Kept) -> None:
    """A restore writes nothing into a snapshot, and sandboxes share nothing."""
    ports = (unused_port(), unused_port())
    restores = [Background(lambda port=port: restore_snapshot(original.folder, port=port)) for port in ports]
    replicas = [one.join() for one in restores]
    try:
        assert chat(ports[0]) == chat(ports[1])
    finally:
        for one in replicas:
            assert isinstance(one, Replicas)
            one.stop()


@pytest.mark.ordinary_user
def test_a_snapshot_is_for_its_owner_alone(original: Kept) -> None:
    """Folders are 0700 and files 0600: they hold memory and the lifecycle key."""
    modes = {stat.S_IMODE(path.stat().st_mode) for path in original.folder.rglob("*") if path.is_file()}
    folders = {stat.S_IMODE(path.stat().st_mode) for path in (original.folder, original.folder / "images")}
    assert (modes, folders) == ({0o600}, {0o700})


UNGUARDED = """

from dataclasses import dataclass, replace
from typing import ClassVar

from torpor import hookimpl, start_engine


@dataclass(frozen=True, kw_only=True)
class Unguarded(StandIn):
    guarded: ClassVar[bool] = False

    @hookimpl
    def launch(self, deployment, recipe):
        env = {**recipe.env, "TORPOR_UNGUARDED": "1"}
        return start_engine(self.engine_argv(deployment, recipe), env=env)


deployment = replace(deployment, plugins=(Unguarded(warmup_requests=1),))
"""


def test_an_engine_without_a_guard_is_served_when_it_has_woken(criu: Criu, tmp_path: Path) -> None:
    """Without a guard there is no /ready, so the engine's own ready path is asked."""
    port = unused_port()
    app = write_app(tmp_path / "app", port=port)
    app.write_text(app.read_text() + UNGUARDED)
    create_snapshot(app, tmp_path / "kept", mode=MODES[-1])
    replicas = restore_snapshot(tmp_path / "kept", replicas=2, port=port)
    try:
        assert len({chat(port) for _ in range(4)}) == 1
    finally:
        replicas.stop()


@pytest.mark.ordinary_user
def test_a_snapshot_that_others_can_read_is_refused(kept: Kept) -> None:
    """Others who can write it could change the memory that is about to run."""
    kept.folder.chmod(0o755)
    assert "chmod 700" in refused(kept)


def test_a_manifest_in_a_newer_format_is_refused_with_its_version(kept: Kept) -> None:
    """The error names both versions."""
    change_manifest(kept.folder, lambda content: content.update(schema=99))
    assert re.search(r"written by Torpor .* in format 99; this is Torpor", refused(kept))


def test_a_folder_without_a_manifest_is_no_snapshot(tmp_path: Path) -> None:
    """The message says how to capture one."""
    with pytest.raises(SnapshotError, match=r"holds no snapshot.*torpor snapshot create"):
        inspect_snapshot(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 1}', '{"schema": 1, "machine": 3, "deployment": 4}'])
def test_a_damaged_manifest_is_an_error(kept: Kept, text: str) -> None:
    """The error is clear, without a traceback."""
    (kept.folder / MANIFEST).write_text(text)
    assert "take a new snapshot" in refused(kept) or "format" in refused(kept)


def test_missing_cut_and_overwritten_images_are_all_named(kept: Kept) -> None:
    """The fast check compares size and first bytes of every file, and lists all faults."""
    images = kept.folder / "images"
    (images / "inventory.img").unlink()
    os.truncate(images / "pages-1.img", 4096)
    (images / "pstree.img").write_bytes(b"x" * (images / "pstree.img").stat().st_size)
    said = refused(kept)
    assert "images/inventory.img is missing" in said
    assert re.search(r"images/pages-1.img has 4096 bytes, not \d+", said)
    assert "images/pstree.img was changed" in said


def test_a_changed_byte_in_the_middle_is_found_by_the_full_check(kept: Kept) -> None:
    """`--verify full` compares hashes."""
    pages = kept.folder / "images" / "pages-1.img"
    with pages.open("r+b") as file:
        file.seek(40000)
        byte = file.read(1)
        file.seek(40000)
        file.write(bytes([byte[0] ^ 255]))
    assert "images/pages-1.img was changed" in refused(kept, full=True)


def test_all_differences_are_listed_at_once(kept: Kept) -> None:
    """Kernel, CRIU, CPU features, Torpor, plugin options and command line are in one list."""

    def differ(content: dict[str, object]) -> None:
        machine, deployment = content["machine"], content["deployment"]
        assert isinstance(machine, dict)
        assert isinstance(deployment, dict)
        machine.update(
            kernel="5.4.0",
            glibc="glibc 2.17",
            registers=1,
            criu="3.17.1",
            criu_file=["/old/criu", 1, 1],
            cpu=[*machine["cpu"], "no_such_feature"],
            driver="550.54.15",
            gpus=[
                {
                    "uuid": f"GPU-{'1' * 8}-2222-3333-4444-{'5' * 12}",
                    "name": "NVIDIA H100",
                    "memory_mib": 81559,
                    "compute_capability": "9.0",
                }
            ],
        )
        deployment.update(torpor="0.0.1", model="/elsewhere", plugins={"standin": "other options"}, env={"A": "1"})
        deployment["argv"] = [*deployment["argv"], "--new-flag"]

    change_manifest(kept.folder, differ)
    said = refused(kept)
    for reason in (
        "made on kernel 5.4.0; here it is",
        "made on C library glibc 2.17; here it is",
        "bytes of registers to save, the other had 1; take",
        "made on CRIU 3.17.1; here it is",
        "made on NVIDIA driver 550.54.15; here it is none, another major version",
        "could see 1 x NVIDIA H100 (81559 MiB, compute capability 9.0), used or not",
        "a restore needs a GPU of that kind for each; this machine has 0",
        "lacks features that the other had: no_such_feature",
        "Torpor was 0.0.1",
        "model was /elsewhere",
        "plugin standin was other options; now it is",
        "flags: removed --new-flag",
        "env: removed A",
    ):
        assert reason in said


def test_a_changed_app_file_is_refused(cache: Path, original: Kept, tmp_path: Path) -> None:
    """The app file is compared while CRIU works. If it differs, everything is ended."""
    app = write_app(tmp_path / "app", port=unused_port())
    create_snapshot(app, tmp_path / "kept", mode=MODES[-1])
    write_app(tmp_path / "app", port=original.port, warmups=2)
    said = refused(Kept(folder=tmp_path / "kept", app=app, port=original.port))
    assert "Deployment.port was" in said
    assert "standin.warmup_requests: 1 -> 2" in said
    app.unlink()
    assert "There is no app file" in refused(Kept(folder=tmp_path / "kept", app=app, port=original.port))
    assert list((cache / "run").glob("*")) == []  # the first sandbox creates the folder itself


def test_a_file_that_changed_since_is_named(kept: Kept) -> None:
    """Files that the engine has mapped or open must be unchanged. CRIU alone would stop at the first with 'bad size'."""
    outside = kept.folder / "outside.json"
    files = json.loads(outside.read_text())
    name = next(iter(files))
    files[name] = [files[name][0], 1, "another", True]
    files["/no/such/library.so"] = [1, 1, "some", True]
    outside.write_text(json.dumps(files))
    change_manifest(kept.folder, lambda content: _forget_facts(content, "outside.json"))
    said = refused(kept)
    assert f"{name}, which the engine has open or read, has changed since" in said
    assert "/no/such/library.so, which the engine has open or read, cannot be reached" in said


def _forget_facts(content: dict[str, object], name: str) -> None:
    files = content["files"]
    assert isinstance(files, dict)
    del files[name]


@pytest.mark.fault(
    "a snapshot is replaced between its check and its restore", area="snapshot folders", outcome="refused"
)
def test_a_snapshot_that_is_replaced_before_criu_begins_is_not_restored(kept: Kept, tmp_path: Path) -> None:
    """The check saw another folder. Even a copy of the whole folder, equal in content, is refused."""
    replicas = Replicas(kept.folder, port=unused_port())
    kept.folder.rename(tmp_path / "old")
    shutil.copytree(tmp_path / "old", kept.folder)
    kept.folder.chmod(0o700)
    with pytest.raises(SnapshotError, match=r"was replaced by another while it was being restored"):
        replicas.start()
    assert engines_on(kept.port) == []


def test_a_replica_that_answers_differently_never_serves(kept: Kept) -> None:
    """Every replica must repeat the original's canary. Here no cold start replaces it."""
    change_manifest(kept.folder, lambda content: content.update(canary=OTHER_CANARY))
    with pytest.raises(CanaryError):
        Replicas(kept.folder, port=unused_port(), cold_start=False).start()
    assert engines_on(kept.port) == []


def test_a_taken_port_is_found_before_anything_is_restored(kept: Kept, cache: Path) -> None:
    """No sandbox was begun, so none is left."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(PortInUseError, match="Nothing was restored"):
            restore_snapshot(kept.folder, port=taken.getsockname()[1])
    assert not list((cache / "run").glob("*"))


def test_a_port_that_is_taken_during_a_restore_ends_the_restore(kept: Kept, cache: Path, tmp_path: Path) -> None:
    """Here the app file takes the port, while CRIU works. The replicas, which wake meanwhile, are ended."""
    port, app = unused_port(), tmp_path / "takes.py"
    take = f"import pathlib, socket\ntaken = socket.create_server(('127.0.0.1', {port}))\n"
    keep = f"pathlib.Path({str(tmp_path / 'number')!r}).write_text(str(taken.detach()))\n"
    app.write_text(take + keep + kept.app.read_text())
    change_manifest(kept.folder, lambda content: content.update(app_file=str(app)))
    with pytest.raises(PortInUseError, match=str(port)):
        restore_snapshot(kept.folder, replicas=2, port=port)
    os.close(int((tmp_path / "number").read_text()))
    assert engines_on(kept.port) == []
    assert list((cache / "run").glob("*")) == []


def test_replicas_keep_serving_when_their_snapshot_is_removed(kept: Kept) -> None:
    """Their memory does not depend on the snapshot."""
    port = unused_port()
    replicas = restore_snapshot(kept.folder, port=port)
    try:
        before = chat(port)
        remove_snapshot(kept.folder)
        assert not kept.folder.exists()
        assert chat(port) == before
    finally:
        replicas.stop()


def test_a_folder_that_is_no_snapshot_is_not_removed(tmp_path: Path) -> None:
    """A wrong path deletes nothing."""
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(SnapshotError, match="Nothing was removed"):
        remove_snapshot(tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_a_replica_that_dies_is_reported_and_replaced(original: Kept) -> None:
    """The others keep serving. `start` restores another replica behind the same port."""
    port = unused_port()
    events: list[ReplicaEvent] = []
    replicas = Replicas(original.folder, port=port, on_event=events.append)
    replicas.start(2)
    try:
        victim = replicas.serving[0]
        os.kill(victim.boot.running_engine.pid, signal.SIGKILL)
        assert wait_for(
            lambda: [(one.event, one.replica) for one in events] == [("replica_ended", victim.replica.name)]
        )
        assert [chat(port) for _ in range(3)]
        replicas.start(1)
        assert len(replicas.serving) == 2
        assert chat(port)
    finally:
        replicas.stop()
    assert engines_on(original.port) == []


@pytest.mark.slow
@pytest.mark.fault("a replica's scheduler hangs while its server lives", area="torpor up", outcome="restarted")
def test_a_replica_that_does_not_answer_is_ended_and_replaced(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its clients get 502, and another replica serves behind the same port."""
    monkeypatch.setattr(answering, "PATIENCE", Patience(pause_s=0.1, failures=3))
    app = write_app(tmp_path / "app", port=unused_port(), more=", fault=Fault.HANG_WHILE_SERVING")
    quick = "from dataclasses import replace\ndeployment = replace(deployment, health_timeout_s=1.0)\n"
    app.write_text(f"from torpor.testing import Fault\n{app.read_text()}{quick}")
    create_snapshot(app, tmp_path / "kept", mode=MODES[-1])
    port = unused_port()
    events: list[ReplicaEvent] = []
    replicas = Replicas(tmp_path / "kept", port=port, on_event=events.append, supervised=True)
    replicas.start(1)
    try:
        cut = httpx.post(
            f"http://127.0.0.1:{port}/v1/chat/completions",
            json={"messages": [{"role": "user", "content": CRASH_WORD}]},
            timeout=30,
            trust_env=False,
        )
        assert cut.status_code == 502, cut.text
        assert wait_for(lambda: [one.event for one in events] == ["replica_ended", "replica_restarted"])
        assert events[0].exit_code == -signal.SIGKILL
        assert chat(port)
    finally:
        replicas.stop()
    assert engines_on(replicas.manifest.deployment.port) == []


def test_a_secret_in_the_environment_is_refused_by_name(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error comes before the engine starts, and holds no value."""
    monkeypatch.setenv("MY_HUB_TOKEN", "hf_swordfish")
    app = write_app(tmp_path / "app", port=unused_port())
    with pytest.raises(SnapshotError, match=r'MY_HUB_TOKEN.*secrets_in_snapshot="warn"') as error:
        create_snapshot(app, tmp_path / "kept", mode=MODES[-1])
    assert "swordfish" not in str(error.value)
    assert not (tmp_path / "kept").exists()


def test_the_deployment_can_make_a_secret_a_warning(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The snapshot is captured. Each check logs the variable's name, never its value."""
    monkeypatch.setenv("MY_HUB_TOKEN", "hf_swordfish")
    app = write_app(tmp_path / "app", port=unused_port(), secrets="warn")
    with structlog.testing.capture_logs() as logs:
        create_snapshot(app, tmp_path / "kept", mode=MODES[-1])
    told = [(entry["log_level"], entry["variables"]) for entry in logs if entry["event"] == "secrets_in_snapshot"]
    assert told == [("warning", ["MY_HUB_TOKEN"])] * 2  # at the start, and before the sleep
    assert "swordfish" not in str(logs)
    monkeypatch.delenv("MY_HUB_TOKEN")
    port = unused_port()
    replicas = restore_snapshot(tmp_path / "kept", port=port)
    try:
        assert chat(port)
    finally:
        replicas.stop()


@pytest.mark.fault("clients are connected when a snapshot is taken", area="sleep", outcome="held")
def test_a_capture_closes_idle_connections_and_cuts_what_is_in_flight_at_its_deadline(
    cache: Path, tmp_path: Path
) -> None:
    """A short request is answered, an endless one is cut off. Then the engine sleeps.

    The engine closes the gateway's idle connection to it. The client's connection stays and serves after the wake.
    """
    port = unused_port()
    app = write_app(tmp_path / "app", port=port, token_s=0.01, warmups=0)
    backend = CriuBackend(folder=tmp_path / "kept", app_file=app, mode=MODES[-1])
    server = LocalServer(load_app(str(app)).deployment, backend=backend)
    try:
        server.cold_start()
        server.boot.serve()
        assert wait_for(lambda: _answers(port))
        long = Background(lambda: _cut(port))
        with socket.create_connection(("127.0.0.1", port), timeout=30) as idle:
            idle.sendall(b"HEAD /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
            assert idle.recv(1000).startswith(b"HTTP/1.1 ")
            assert wait_for(lambda: _in_flight(server.boot) == 1)
            short = Background(lambda: chat(port, tokens=20))  # 0.2 s, within the 0.3 s of the drain
            assert wait_for(lambda: _in_flight(server.boot) == 2)
            server.sleep()
            assert len(str(short.join()).split()) == 20
            assert long.join()
            server.wake()
            assert wait_for(lambda: _answers(port))
            idle.sendall(b"HEAD /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
            assert idle.recv(1000).startswith(b"HTTP/1.1 ")
    finally:
        server.stop()
    assert engines_on(port) == []


def _cut(port: int) -> bool:
    """Whether an endless answer was cut off: the gateway answers 502."""
    try:
        chat(port, tokens=20_000)
    except AssertionError as error:
        return "engine_gone" in str(error)
    return False


def _answers(port: int) -> bool:
    try:
        return bool(chat(port, tokens=1))
    except (OSError, AssertionError):
        return False


def _in_flight(boot: Boot) -> int:
    with boot._control() as control:
        return int(control._client.get("/_torpor/state").json()["in_flight"])


def test_a_client_that_connects_to_a_sleeping_engine_is_named_and_the_original_can_be_woken(
    cache: Path, tmp_path: Path, criu: Criu
) -> None:
    """The sleep cut all connections; a later one makes the capture fail. The engine stays asleep, and no file is written."""
    app = write_app(tmp_path / "app", port=unused_port())
    with asleep(app, tmp_path / "kept") as (server, _):
        server.boot.sleep()
        with server.boot.running_engine.open_socket(server.deployment.port, 5.0):
            with pytest.raises(SnapshotError, match=r"a client is connected from 127\.0\.0\.1"):
                capture(server.boot, sandbox_of(server), tmp_path / "kept", CaptureOptions(criu=criu, app_file=app))
            assert [path.name for path in tmp_path.iterdir()] == ["app"]
        server.wake()


@contextmanager
def asleep(app: Path, folder: Path, *, mode: Mode = MODES[-1]) -> Iterator[tuple[LocalServer, CriuBackend]]:
    """A server of the app, cold-started in a sandbox and not serving; ended with the block."""
    backend = CriuBackend(folder=folder, app_file=app, mode=mode, public=False)
    server = LocalServer(load_app(str(app)).deployment, backend=backend)
    try:
        server.cold_start()
        yield server, backend
    finally:
        server.stop()


def sandbox_of(server: LocalServer) -> Sandbox:
    engine = server.boot.running_engine
    assert isinstance(engine, SandboxEngine)
    return engine.sandbox


OWN_ADDRESS = """
os.system("ip address add 192.0.2.7/32 dev lo")
server = socket.create_server(("192.0.2.7", 0))
connection = socket.create_connection(server.getsockname())
"""
"""An address of the sandbox that is not loopback. The check treats it like another machine's."""

OUTSIDE = {
    "a file in /tmp": ("f = open(sys.argv[1])", r"may be gone when it is restored:\n  - .*/lost\n"),
    "a deleted file": (
        "f = open(sys.argv[1]); os.unlink(sys.argv[1])",
        r"may be gone.*\n  - .*/lost \(deleted\)\n",
    ),
    "an io_uring": (
        "libc = ctypes.CDLL(None); assert libc.syscall(425, 4, ctypes.create_string_buffer(120)) >= 0",
        r"has an io_uring, which CRIU cannot dump.*Use `--mode root`",
    ),
    "a connection outside": (
        OWN_ADDRESS,
        r"connections that cannot survive a snapshot:\n  - a connection leads outside, to 192\.0\.2\.7:\d+\n",
    ),
}
"""What a process of the tree does, and the refusal's text for it."""


@pytest.mark.parametrize("what", OUTSIDE)
@pytest.mark.ordinary_user
def test_a_tree_that_reaches_out_of_its_sandbox_is_refused_and_can_be_woken(
    cache: Path, tmp_path: Path, what: str
) -> None:
    """The refusal names it before CRIU begins and writes no file. The original wakes, and is captured once it is gone."""
    program, told = OUTSIDE[what]
    if program == OWN_ADDRESS and not shutil.which("ip"):
        pytest.skip("without iproute2 the test's program can have no such address")
    (tmp_path / "lost").touch()
    code = f"import ctypes, os, socket, sys, time\n{program}\nopen('/dev/shm/there', 'w')\ntime.sleep(60)"
    app = write_app(tmp_path / "app", port=unused_port())
    with asleep(app, tmp_path / "kept") as (server, backend):
        sandbox = sandbox_of(server)
        there = ["test", "-e", "/dev/shm/there"]
        end = ["sh", "-c", "kill -9 $(cat /dev/shm/pid) && rm /dev/shm/there"]
        shell = f'echo $$ > /dev/shm/pid; exec {sys.executable} -c "$0" "$1"'
        run = Background(lambda: sandbox.run(["sh", "-c", shell, code, str(tmp_path / "lost")], timeout_s=60.0))
        assert wait_for(lambda: sandbox.run(there, timeout_s=30.0).code == 0, 20.0)
        with pytest.raises(SnapshotError, match=told):
            backend.capture(server.boot)
        assert [path.name for path in tmp_path.iterdir() if path.name not in ("app", "lost")] == []
        assert sandbox.run(end, timeout_s=30.0).code == 0
        run.join()
        server.wake()
        backend.capture(server.boot)
    assert inspect_snapshot(tmp_path / "kept").processes


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.ordinary_user
def test_io_uring_is_denied_to_an_engine_from_its_launch_on(mode: Mode, cache: Path, tmp_path: Path) -> None:
    """As root a seccomp filter denies it, in replicas too. Rootless, where CRIU cannot dump filters, variables ask libraries."""
    app = write_app(tmp_path / "app", port=unused_port())
    with asleep(app, tmp_path / "kept", mode=mode) as (server, backend):
        original = denials(sandbox_of(server))
        backend.capture(server.boot)
    assert original == {("2", "0", "0") if mode == "root" else ("0", "0", "0")}
    replicas = restore_snapshot(tmp_path / "kept", port=unused_port())
    try:
        assert denials(replicas.serving[0].replica.sandbox) == original
    finally:
        replicas.stop()


def denials(sandbox: Sandbox) -> set[tuple[str, ...]]:
    """For each process of the tree: its seccomp mode and the two variables."""
    found: set[tuple[str, ...]] = set()
    for inside, pid in sandbox.host_pids().items():
        if inside != 1:
            seccomp = re.search(r"^Seccomp:\t(\d)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
            env = dict(item.partition("=")[::2] for item in Path(f"/proc/{pid}/environ").read_text().split("\0"))
            assert seccomp
            found.add((seccomp.group(1), env.get("UV_USE_IO_URING", ""), env.get("USE_LIBUV", "")))
    return found


def test_an_engine_that_does_not_sleep_is_not_captured(cache: Path, tmp_path: Path, criu: Criu) -> None:
    """The guard's state decides: a replica of a serving engine would start in the middle of its work."""
    app = write_app(tmp_path / "app", port=unused_port())
    with asleep(app, tmp_path / "kept") as (server, _):
        server.boot.serve()
        with pytest.raises(GuardStateError, match="The engine is serving"):
            capture(server.boot, sandbox_of(server), tmp_path / "kept", CaptureOptions(criu=criu, app_file=app))
        assert [path.name for path in tmp_path.iterdir()] == ["app"]


@pytest.mark.ordinary_user
def test_criu_killed_in_a_capture_ends_the_engine_and_leaves_nothing(cache: Path, tmp_path: Path) -> None:
    """A tree that CRIU left in the middle cannot be trusted, so it ends. The older snapshot stays."""
    port = unused_port()
    app = write_app(tmp_path / "app", port=port)
    before = create_snapshot(app, tmp_path / "kept", mode=MODES[-1])
    for _ in range(ATTEMPTS):
        try:
            with killing_criu(tmp_path):
                before = create_snapshot(app, tmp_path / "kept", mode=MODES[-1])
        except SnapshotError as error:
            said = str(error)
            break
    else:
        pytest.fail("CRIU was always done before it was killed")
    assert "dump of sandbox 'kept' was killed by SIGKILL" in said
    assert engines_on(port) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["app", "kept"]
    assert inspect_snapshot(tmp_path / "kept") == before


def test_criu_killed_in_a_restore_leaves_nothing_and_the_snapshot_as_it_was(kept: Kept, cache: Path) -> None:
    """If one of several replicas fails, none serves. The next restore succeeds."""
    mounts = Path("/proc/self/mountinfo").read_text()
    for _ in range(ATTEMPTS):
        try:
            with killing_criu(kept.folder):
                replicas = restore_snapshot(kept.folder, replicas=2, port=unused_port())
            replicas.stop()
        except SnapshotError as error:
            said = str(error)
            break
    else:
        pytest.fail("CRIU was always done before it was killed")
    assert "was killed by SIGKILL" in said
    assert engines_on(kept.port) == []
    assert Path("/proc/self/mountinfo").read_text() == mounts
    assert taken_logs(cache) <= {"restore.log", "stats-restore"}
    port = unused_port()
    replicas = restore_snapshot(kept.folder, port=port, full=True)
    try:
        assert chat(port)
    finally:
        replicas.stop()


@pytest.mark.ordinary_user
def test_a_disk_that_fills_up_in_a_capture_leaves_no_part_and_the_original_wakes(
    cache: Path, tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check found enough room, but the disk is full later. Here the check's answer is replaced."""
    app = write_app(tmp_path / "app", port=unused_port())
    usage, facts = shutil.disk_usage(tmp_path), os.statvfs(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(os, "statvfs", lambda _: facts)
    with asleep(app, small_disk / "kept") as (server, backend):
        with pytest.raises(SnapshotError, match="The disk is full: free some room or choose another folder"):
            backend.capture(server.boot)
        assert list(small_disk.iterdir()) == []
        server.wake()


def test_a_snapshot_that_is_removed_in_the_middle_of_a_restore_is_a_clear_error(
    cache: Path, kept: Kept, tmp_path: Path
) -> None:
    """Here the app file removes it, while CRIU works. Nothing is left."""
    app = tmp_path / "removes.py"
    app.write_text(f"import shutil\nshutil.rmtree({str(kept.folder)!r})\n" + kept.app.read_text())
    change_manifest(kept.folder, lambda content: content.update(app_file=str(app)))
    said = refused(kept)
    moments = (
        "take a new snapshot",
        "was changed while it was being restored",
        "was replaced by another while it was",
    )
    assert any(words in said for words in moments)  # depends on how far the deletion is
    assert taken_logs(cache) <= {"restore.log", "stats-restore"}


def test_each_file_that_goes_in_the_middle_of_a_restore_is_a_clear_error(
    cache: Path, kept: Kept, tmp_path: Path
) -> None:
    """A deletion that has only just begun: the folder and its manifest are still there."""
    app = tmp_path / "removes.py"
    change_manifest(kept.folder, lambda content: content.update(app_file=str(app)))
    images = sorted(file for file in kept.folder.rglob("*") if file.is_file() and file.name != "manifest.json")
    unclear: dict[str, str] = {}
    for file in images:
        app.write_text(f"import os\nos.unlink({str(file)!r})\n" + kept.app.read_text())
        content = file.read_bytes()
        try:
            restore_snapshot(kept.folder, port=unused_port()).stop()
        except SnapshotError as error:
            if "take a new" not in str(error) and "was removed while" not in str(error):
                unclear[file.name] = str(error)
        if not file.exists():
            file.write_bytes(content)
            file.chmod(0o600)
    assert len(images) > 10
    assert unclear == {}
    assert taken_logs(cache) <= {"restore.log", "stats-restore"}


def taken_logs(cache: Path) -> set[str]:
    """Remove the files that failed restores keep (the log and CRIU's statistics), and return their names."""
    run = cache / "run"
    names = {file.name for file in run.rglob("*") if file.is_file()}
    shutil.rmtree(run)
    run.mkdir()
    return names


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.ordinary_user
def test_a_replicas_clocks_do_not_go_back_after_a_reboot_and_are_the_machines_otherwise(
    mode: Mode, cache: Path, tmp_path: Path
) -> None:
    """Monotonic and boot time continue from the dump if the machine's are behind it. The time of day is the machine's."""
    app = write_app(tmp_path / "app", port=unused_port())
    create_snapshot(app, tmp_path / "kept", mode=mode)
    for ahead_s in (0.0, 90_000.0):  # as if this machine had booted after the dump
        dumped_at_s = inspect_snapshot(tmp_path / "kept").monotonic_s + ahead_s
        clocks = {"monotonic_s": dumped_at_s, "boottime_s": dumped_at_s}
        change_manifest(tmp_path / "kept", partial(dict.update, **clocks))
        replicas = restore_snapshot(tmp_path / "kept", port=unused_port())
        try:
            sandbox = replicas.serving[0].replica.sandbox
            own_s = time.monotonic()
            seen = sandbox.clock()
            day_s = float(sandbox.run(["date", "+%s.%N"], timeout_s=30.0).output)
        finally:
            replicas.stop()
        expected_s = dumped_at_s if ahead_s else own_s
        assert 0.0 <= seen.monotonic_s - expected_s < 60.0
        assert seen.monotonic_s >= dumped_at_s
        assert abs(day_s - time.time()) < 60.0


def test_a_replica_that_sleeps_gets_no_request(cache: Path, tmp_path: Path) -> None:
    """Two replicas share the requests. While one sleeps the other gets all of them."""
    app = write_app(tmp_path / "app", port=unused_port(), more=", journal='journal'")
    create_snapshot(app, tmp_path / "kept", mode=MODES[-1])
    port = unused_port()
    replicas = restore_snapshot(tmp_path / "kept", replicas=2, port=port)
    try:
        sandboxes = [one.replica.sandbox for one in replicas.serving]
        first = replicas.serving[0].boot
        assert shares(port, sandboxes) == [3, 3]
        first.sleep(for_snapshot=False)
        time.sleep(READY_FOR_S)
        assert shares(port, sandboxes) == [0, 6]
        first.wake()
        time.sleep(READY_FOR_S)
        assert shares(port, sandboxes) == [3, 3]
    finally:
        replicas.stop()


def shares(port: int, sandboxes: Sequence[Sandbox]) -> list[int]:
    """Send six requests, all of which are answered; return how many each engine recorded."""
    before = [chats(sandbox) for sandbox in sandboxes]
    assert all(chat(port) for _ in range(6))
    return [chats(sandbox) - earlier for sandbox, earlier in zip(sandboxes, before, strict=True)]


def chats(sandbox: Sandbox) -> int:
    """How many chats an engine's journal holds, in its private folder."""
    return (sandbox.outside(sandbox.scratch) / "journal").read_text().count("/v1/chat/completions")


def test_a_folder_with_other_files_is_never_replaced(cache: Path, tmp_path: Path) -> None:
    """Only a snapshot may be replaced. The error comes before the start."""
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "thesis.txt").write_text("years of work")
    app = write_app(tmp_path / "app", port=unused_port())
    with pytest.raises(SnapshotError, match="is not a snapshot"):
        create_snapshot(app, tmp_path / "kept", mode=MODES[-1])


def test_too_little_room_is_an_error_before_criu_begins(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says how much is free and how much is needed."""
    usage = shutil.disk_usage(tmp_path)
    app = write_app(tmp_path / "app", port=unused_port())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type(usage)(usage.total, usage.total - 1000, 1000))
    with pytest.raises(SnapshotError, match=r"0\.00 GB free; this snapshot takes up to 0\.\d\d GB"):
        create_snapshot(app, tmp_path / "kept", mode=MODES[-1])
    assert [path.name for path in tmp_path.iterdir()] == ["app"]


@pytest.mark.ordinary_user
def test_a_new_snapshot_replaces_the_old_one_once_it_is_complete(cache: Path, tmp_path: Path) -> None:
    """The left-overs of a killed capture are removed too."""
    app = write_app(tmp_path / "app", port=unused_port())
    left = tmp_path / ".kept.partial-4194999"
    left.mkdir()
    first = create_snapshot(app, tmp_path / "kept", mode=MODES[-1])
    second = create_snapshot(app, tmp_path / "kept", mode=MODES[-1])
    assert inspect_snapshot(tmp_path / "kept").captured_at == second.captured_at > first.captured_at
    assert sorted(path.name for path in tmp_path.iterdir()) == ["app", "kept"]
