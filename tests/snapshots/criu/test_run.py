"""`torpor.snapshots.criu.run`: dumps and restores of a real tree, and every way in which they fail."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import stat
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import pytest

from tests.snapshots.conftest import wait_for
from torpor import NoRoomError, SnapshotError
from torpor.snapshots.criu.program import PREFIX_VARIABLE, find
from torpor.snapshots.criu.run import DUMP_LOG, SIDE_FILES, dump, expected_bytes, restore
from torpor.snapshots.sandbox.sandbox import FIRST_PID, Clock, Sandbox
from torpor.snapshots.sandbox.start import create_sandbox

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.snapshots.conftest import MakeSandbox
    from torpor.snapshots.criu.program import Criu

PROGRAM = Path(__file__).with_name("tree_program.py")
PORT = 8000
TIMEOUT_S = 60.0


class Answer(TypedDict):
    """The answer of `tree_program.py`."""

    pid: int
    child: int
    session: int
    memory: str
    held: str
    nameless: str
    shared: str
    threads: int
    monotonic: float


def start(sandbox: Sandbox, *arguments: str, filtered: bool = False) -> None:
    """Start the tree and wait until it answers."""
    env = {"PATH": os.environ["PATH"]}
    sandbox.spawn([sys.executable, str(PROGRAM), *arguments], env=env, filtered=filtered)
    assert wait_for(sandbox.log_tail, 20.0), sandbox.poll()


def ask(sandbox: Sandbox) -> Answer:
    """Ask the tree what it still has."""
    with sandbox.connect(PORT, timeout_s=30.0) as connection, connection.makefile() as lines:
        answer: Answer = json.loads(lines.readline())
    return answer


def lasting(answer: Answer) -> dict[str, object]:
    """The part of an answer that a restore must not change."""
    return {key: value for key, value in answer.items() if key != "monotonic"}


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A private folder for CRIU's logs."""
    folder = tmp_path / "work"
    folder.mkdir(mode=0o700)
    return folder


@pytest.mark.criu
@pytest.mark.ordinary_user
def test_a_restored_tree_goes_on_where_it_was(
    criu: Criu, make_sandbox: MakeSandbox, tmp_path: Path, work: Path
) -> None:
    """Memory, threads, the child, pids, open, locked and deleted files, shared memory and the listener are the same."""
    original = make_sandbox("original")
    start(original, "20")
    before = ask(original)
    dumped = dump(criu, original, tmp_path / "images", timeout_s=TIMEOUT_S)
    assert original.poll() == -signal.SIGKILL
    assert original.alive
    original.kill()
    assert dumped.image_bytes > 20 << 20
    replica = make_sandbox("replica")
    assert replica.poll() is None
    restored = restore(criu, replica, tmp_path / "images", work=work, timeout_s=TIMEOUT_S)
    after = ask(replica)
    assert (after["pid"], after["session"], after["held"], after["shared"]) == (
        FIRST_PID,
        FIRST_PID,
        "content",
        "shared",
    )
    assert lasting(after) == lasting(before)
    assert replica.poll() is None
    assert restored.criu_s > 0
    replica.signal_tree(signal.SIGTERM)
    assert replica.wait(30.0) == -signal.SIGTERM


@pytest.mark.criu
def test_replicas_are_restored_from_the_same_images_at_once(
    criu: Criu, make_sandbox: MakeSandbox, tmp_path: Path
) -> None:
    """In parallel threads; the images do not change, and each replica is independent of the others."""
    original = make_sandbox("original")
    start(original, "1")
    before = lasting(ask(original))
    images = tmp_path / "images"
    dump(criu, original, images, timeout_s=TIMEOUT_S)
    original.kill()
    listed = {file.name: file.stat().st_mtime_ns for file in images.iterdir()}
    replicas = [make_sandbox(f"replica-{number}") for number in range(4)]
    failures: list[Exception] = []

    def restore_one(replica: Sandbox) -> None:
        try:
            folder = tmp_path / replica.name
            folder.mkdir()
            restore(criu, replica, images, work=folder, timeout_s=TIMEOUT_S)
        except SnapshotError as error:
            failures.append(error)

    threads = [threading.Thread(target=restore_one, args=(replica,)) for replica in replicas]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert {file.name: file.stat().st_mtime_ns for file in images.iterdir()} == listed
    replicas[0].kill()
    assert [lasting(ask(replica)) for replica in replicas[1:]] == [before] * 3


@pytest.mark.criu
@pytest.mark.ordinary_user
def test_a_tree_can_be_dumped_and_run_on(criu: Criu, make_sandbox: MakeSandbox, tmp_path: Path) -> None:
    """Twice in a row; it answers as before, so a serving engine can be captured."""
    sandbox = make_sandbox()
    start(sandbox, "1")
    before = lasting(ask(sandbox))
    for number in range(2):
        dump(criu, sandbox, tmp_path / f"images-{number}", timeout_s=TIMEOUT_S, leave_running=True)
        assert lasting(ask(sandbox)) == before
    assert sandbox.poll() is None


@pytest.mark.slow
@pytest.mark.criu
def test_a_restored_tree_can_be_dumped_again(criu: Criu, make_sandbox: MakeSandbox, tmp_path: Path, work: Path) -> None:
    """A snapshot of a replica is a snapshot like any other."""
    sandbox = make_sandbox("original")
    start(sandbox, "1")
    before = lasting(ask(sandbox))
    for generation in range(3):
        dump(criu, sandbox, tmp_path / f"images-{generation}", timeout_s=TIMEOUT_S)
        sandbox.kill()
        sandbox = make_sandbox(f"replica-{generation}")
        restore(criu, sandbox, tmp_path / f"images-{generation}", work=work, timeout_s=TIMEOUT_S)
        assert lasting(ask(sandbox)) == before


@pytest.mark.criu
@pytest.mark.ordinary_user
def test_only_the_owner_can_read_a_snapshot(criu: Criu, sandbox: Sandbox, tmp_path: Path) -> None:
    """It holds the engine's memory, so the folder is 0700 and files are 0600, whatever the umask."""
    start(sandbox, "1")
    dump(criu, sandbox, tmp_path / "images", timeout_s=TIMEOUT_S, leave_running=True)
    images = tmp_path / "images"
    assert stat.S_IMODE(images.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in images.iterdir()} == {0o600}
    assert {SIDE_FILES, DUMP_LOG, "inventory.img"} <= {file.name for file in images.iterdir()}


@pytest.mark.criu
def test_a_replica_begins_a_new_log(criu: Criu, make_sandbox: MakeSandbox, tmp_path: Path, work: Path) -> None:
    """Even if the engine was printing during the dump."""
    original = make_sandbox("original")
    start(original, "0", "log")
    dump(criu, original, tmp_path / "images", timeout_s=TIMEOUT_S)
    last = int(original.log_tail()[-1])
    original.kill()
    replica = make_sandbox("replica")
    restore(criu, replica, tmp_path / "images", work=work, timeout_s=TIMEOUT_S)
    lines = wait_for(lambda: tail if len(tail := replica.log_tail(10_000_000)) > 10 else ())
    assert "up" not in lines
    replica.signal_tree(signal.SIGSTOP)
    assert int(replica.log_tail()[-1]) > last


@pytest.mark.criu
@pytest.mark.ordinary_user
def test_clocks_go_on_from_the_dump_when_asked_to(
    criu: Criu, make_sandbox: MakeSandbox, tmp_path: Path, work: Path
) -> None:
    """As after a reboot: the monotonic clock neither jumps nor runs backwards for the tree."""
    original = make_sandbox("original", clock=Clock(monotonic_s=500_000.0, boottime_s=500_000.0))
    start(original, "0")
    before = ask(original)["monotonic"]
    clock = original.clock()
    dump(criu, original, tmp_path / "images", timeout_s=TIMEOUT_S)
    original.kill()
    replica = make_sandbox("replica", clock=clock)
    restore(criu, replica, tmp_path / "images", work=work, timeout_s=TIMEOUT_S)
    assert 0 <= ask(replica)["monotonic"] - before < 10


@pytest.mark.criu
def test_the_size_of_a_dump_is_estimated(criu: Criu, sandbox: Sandbox, tmp_path: Path) -> None:
    """Well enough to see before the dump that a disk is too small."""
    start(sandbox, "50")
    expected = expected_bytes(sandbox)
    dumped = dump(criu, sandbox, tmp_path / "images", timeout_s=TIMEOUT_S)
    taken = dumped.image_bytes + dumped.side_file_bytes
    assert taken * 0.8 < expected < taken * 1.5


@pytest.mark.criu
@pytest.mark.skipif(os.geteuid() != 0, reason="a seccomp filter can be dumped by root alone")
def test_a_tree_with_io_uring_denied_can_be_dumped_as_root(
    criu: Criu, tmp_path: Path, scratch: Path, work: Path
) -> None:
    """The images include the filter; rootless refuses it by name."""
    with create_sandbox("original", mode="root", scratch=scratch) as original:
        start(original, "0", filtered=True)
        dump(criu, original, tmp_path / "images", timeout_s=TIMEOUT_S)
    with create_sandbox("replica", mode="root", scratch=scratch) as replica:
        restore(criu, replica, tmp_path / "images", work=work, timeout_s=TIMEOUT_S)
        assert ask(replica)["pid"] == FIRST_PID
        status = Path(f"/proc/{replica.host_pids()[FIRST_PID]}/status").read_text()
        assert "Seccomp:\t2" in status
    with create_sandbox("rootless", mode="rootless", scratch=scratch) as rootless:
        start(rootless, "0", filtered=True)
        with pytest.raises(SnapshotError, match="seccomp"):
            dump(criu, rootless, tmp_path / "none", timeout_s=TIMEOUT_S)
        assert ask(rootless)["pid"] == FIRST_PID


@pytest.mark.criu
@pytest.mark.ordinary_user
def test_a_dump_that_criu_refuses_leaves_the_tree_running(criu: Criu, sandbox: Sandbox, tmp_path: Path) -> None:
    """Here an io_uring: the message has CRIU's reason and advice, and no image is left."""
    code = """
import ctypes, time
libc = ctypes.CDLL(None, use_errno=True)
assert libc.syscall(425, 4, ctypes.create_string_buffer(120)) >= 0
print("up", flush=True)
time.sleep(600)
"""
    sandbox.spawn([sys.executable, "-c", code], env={"PATH": os.environ["PATH"]})
    assert wait_for(sandbox.log_tail) == ("up",)
    with pytest.raises(SnapshotError, match="io_uring") as caught:
        dump(criu, sandbox, tmp_path / "images", timeout_s=TIMEOUT_S)
    assert "UV_USE_IO_URING=0" in str(caught.value)
    assert str(tmp_path / "images" / DUMP_LOG) in str(caught.value)
    assert [file.name for file in (tmp_path / "images").iterdir()] == [DUMP_LOG]
    assert sandbox.alive
    assert sandbox.poll() is None
    assert not stopped(sandbox)


def stopped(sandbox: Sandbox) -> list[int]:
    """Stopped processes of the tree."""
    found = []
    for inside, pid in sandbox.host_pids().items():
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if inside > 1 and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt":
                found.append(inside)
    return found


@pytest.mark.criu
@pytest.mark.ordinary_user
def test_a_full_disk_leaves_the_tree_running_and_no_images(criu: Criu, small_disk: Path, sandbox: Sandbox) -> None:
    """The message says that the disk is full; with free space the dump succeeds."""
    start(sandbox, "20")
    before = lasting(ask(sandbox))
    with pytest.raises(NoRoomError, match="The disk is full"):
        dump(criu, sandbox, small_disk / "images", timeout_s=TIMEOUT_S)
    assert [file.name for file in (small_disk / "images").iterdir()] == [DUMP_LOG]
    assert lasting(ask(sandbox)) == before
    shutil.rmtree(small_disk / "images")


@pytest.mark.criu
def test_a_disk_too_full_for_the_side_files_leaves_the_tree_running(
    criu: Criu, small_disk: Path, sandbox: Sandbox, tmp_path: Path
) -> None:
    """They are packed after CRIU's work; the tree is not ended before they are written."""
    start(sandbox, "0")
    code = f"dd if=/dev/urandom of={sandbox.scratch}/tmp/large bs=1M count=30 2>/dev/null"
    assert sandbox.run(["sh", "-c", code], timeout_s=30.0).code == 0
    before = lasting(ask(sandbox))
    images = small_disk / "images"
    images.mkdir()
    real = tmp_path / "images-elsewhere"
    with pytest.raises(NoRoomError):
        dump(criu, sandbox, images, timeout_s=TIMEOUT_S)
    assert lasting(ask(sandbox)) == before
    assert not stopped(sandbox)
    dump(criu, sandbox, real, timeout_s=TIMEOUT_S)
    assert (real / SIDE_FILES).stat().st_size > 30 << 20
    shutil.rmtree(images)


def while_criu_runs(sandbox: Sandbox, act: Callable[[int], None]) -> threading.Thread:
    """Act on CRIU's process as soon as it exists."""

    def watch() -> None:
        deadline = time.monotonic() + 30.0
        while time.monotonic() < deadline:
            for inside, pid in sandbox.host_pids().items():
                if 1 < inside != FIRST_PID and _is_criu(pid):
                    act(pid)
                    return
            time.sleep(0.0005)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def _is_criu(pid: int) -> bool:
    try:
        return b"criu\0" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.criu
@pytest.mark.parametrize("delay_s", [0.0, 0.02, 0.1])
def test_criu_killed_in_a_dump_is_a_clear_error_and_nothing_is_left(
    criu: Criu, make_sandbox: MakeSandbox, tmp_path: Path, delay_s: float
) -> None:
    """The state of a tree after an interrupted dump is unknown, so it is ended."""
    sandbox = make_sandbox()
    start(sandbox, "300")

    def kill(pid: int) -> None:
        time.sleep(delay_s)
        os.kill(pid, signal.SIGKILL)

    killer = while_criu_runs(sandbox, kill)
    with pytest.raises(SnapshotError, match="SIGKILL"):
        dump(criu, sandbox, tmp_path / "images", timeout_s=TIMEOUT_S)
    killer.join()
    assert not sandbox.alive
    assert {file.name for file in (tmp_path / "images").iterdir()} <= {DUMP_LOG}


@pytest.mark.slow
@pytest.mark.criu
@pytest.mark.parametrize("delay_s", [0.0, 0.01, 0.03])
@pytest.mark.ordinary_user
def test_criu_killed_in_a_restore_is_a_clear_error_and_nothing_is_left(
    criu: Criu, make_sandbox: MakeSandbox, tmp_path: Path, work: Path, delay_s: float
) -> None:
    """The half-restored tree is ended, the images do not change, and the next restore succeeds."""
    original = make_sandbox("original")
    start(original, "300")
    dump(criu, original, tmp_path / "images", timeout_s=TIMEOUT_S)
    original.kill()
    replica = make_sandbox("replica")

    def kill(pid: int) -> None:
        time.sleep(delay_s)
        os.kill(pid, signal.SIGKILL)

    killer = while_criu_runs(replica, kill)
    with pytest.raises(SnapshotError, match="SIGKILL"):
        restore(criu, replica, tmp_path / "images", work=work, timeout_s=TIMEOUT_S)
    killer.join()
    assert not replica.alive
    again = make_sandbox("again")
    restore(criu, again, tmp_path / "images", work=work, timeout_s=TIMEOUT_S)
    assert ask(again)["pid"] == FIRST_PID


@pytest.mark.slow
@pytest.mark.criu
@pytest.mark.ordinary_user
def test_a_dump_that_is_not_done_in_time_is_ended(criu: Criu, make_sandbox: MakeSandbox, tmp_path: Path) -> None:
    """Every wait has a deadline."""
    sandbox = make_sandbox()
    start(sandbox, "1")
    stopper = while_criu_runs(sandbox, lambda pid: os.kill(pid, signal.SIGSTOP))
    with pytest.raises(SnapshotError, match="did not finish within 1 s"):
        dump(criu, sandbox, tmp_path / "images", timeout_s=1.0)
    stopper.join()
    assert not sandbox.alive


@pytest.mark.slow
@pytest.mark.criu
def test_a_restore_that_is_not_done_in_time_is_ended(
    criu: Criu, make_sandbox: MakeSandbox, tmp_path: Path, work: Path
) -> None:
    """Every wait has a deadline."""
    original = make_sandbox("original")
    start(original, "1")
    dump(criu, original, tmp_path / "images", timeout_s=TIMEOUT_S)
    replica = make_sandbox("replica")
    stopper = while_criu_runs(replica, lambda pid: os.kill(pid, signal.SIGSTOP))
    with pytest.raises(SnapshotError, match="did not finish within 1 s"):
        restore(criu, replica, tmp_path / "images", work=work, timeout_s=1.0)
    stopper.join()
    assert not replica.alive


def _truncate(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size // 2)


def _alter(file: Path) -> None:
    file.write_bytes(bytes(byte ^ 0xFF for byte in file.read_bytes()[:4096]) + file.read_bytes()[4096:])


@pytest.mark.slow
@pytest.mark.criu
@pytest.mark.parametrize("damage", [Path.unlink, _truncate, _alter])
@pytest.mark.parametrize(
    "name", ["inventory.img", f"core-{FIRST_PID}.img", "files.img", f"mm-{FIRST_PID}.img", SIDE_FILES]
)
def test_damaged_images_are_a_clear_error_and_nothing_is_left(  # noqa: PLR0917
    criu: Criu, make_sandbox: MakeSandbox, tmp_path: Path, work: Path, name: str, damage: Callable[[Path], None]
) -> None:
    """Missing, truncated or changed: no half-restored tree stays, and the message has a reason."""
    original = make_sandbox("original")
    start(original, "0")
    images = tmp_path / "images"
    dump(criu, original, images, timeout_s=TIMEOUT_S)
    damage(images / name)
    replica = make_sandbox("replica")
    with pytest.raises(SnapshotError) as caught:
        restore(criu, replica, images, work=work, timeout_s=TIMEOUT_S)
    assert "it gave no reason" not in str(caught.value)
    assert not replica.alive


@pytest.mark.slow
@pytest.mark.criu
def test_truncated_memory_is_an_error(criu: Criu, make_sandbox: MakeSandbox, tmp_path: Path, work: Path) -> None:
    """Truncated images must not become a replica. CRIU 4.2.1 never ends; the deadline ends it."""
    original = make_sandbox("original")
    start(original, "1")
    images = tmp_path / "images"
    dump(criu, original, images, timeout_s=TIMEOUT_S)
    _truncate(max(images.glob("pages-*.img"), key=lambda file: file.stat().st_size))
    replica = make_sandbox("replica")
    with pytest.raises(SnapshotError, match=r"restore of sandbox 'replica' (failed|did not finish within 2 s)"):
        restore(criu, replica, images, work=work, timeout_s=2.0)
    assert not replica.alive


@pytest.mark.criu
def test_a_file_that_changed_since_the_dump_is_named(
    criu: Criu, make_sandbox: MakeSandbox, tmp_path: Path, work: Path
) -> None:
    """As after an update of the engine's environment; the message has the cure."""
    mapped = tmp_path / "library.so"
    mapped.write_bytes(b"\0" * 8192)
    code = "import mmap, sys, time; f = open(sys.argv[1], 'rb'); print('up', flush=True); time.sleep(600)"
    original = make_sandbox("original")
    original.spawn([sys.executable, "-c", code, str(mapped)], env={"PATH": os.environ["PATH"]})
    assert wait_for(original.log_tail)
    dump(criu, original, tmp_path / "images", timeout_s=TIMEOUT_S)
    mapped.write_bytes(b"\0" * 4096)
    with pytest.raises(SnapshotError, match=r"library\.so") as caught:
        restore(criu, make_sandbox("replica"), tmp_path / "images", work=work, timeout_s=TIMEOUT_S)
    assert "take a new snapshot" in str(caught.value)
    mapped.unlink()
    with pytest.raises(SnapshotError, match=r"library\.so"):
        restore(criu, make_sandbox("replica"), tmp_path / "images", work=work, timeout_s=TIMEOUT_S)


@pytest.mark.criu
def test_a_folder_that_is_not_empty_is_not_dumped_into(criu: Criu, sandbox: Sandbox, tmp_path: Path) -> None:
    """Two snapshots in one folder would both be unusable; the files there stay."""
    start(sandbox, "0")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "precious").touch()
    with pytest.raises(SnapshotError, match="not empty"):
        dump(criu, sandbox, tmp_path / "images", timeout_s=TIMEOUT_S)
    assert (tmp_path / "images" / "precious").exists()
    assert ask(sandbox)["pid"] == FIRST_PID


@pytest.mark.criu
def test_a_tree_that_has_ended_cannot_be_dumped(criu: Criu, sandbox: Sandbox, tmp_path: Path) -> None:
    """The message says how it ended."""
    sandbox.spawn(["sh", "-c", "exit 7"], env={"PATH": os.environ["PATH"]})
    assert sandbox.wait(30.0) == 7
    with pytest.raises(SnapshotError, match="ended with code 7"):
        dump(criu, sandbox, tmp_path / "images", timeout_s=TIMEOUT_S)


@pytest.mark.criu
def test_a_missing_program_is_an_error(criu: Criu, sandbox: Sandbox, tmp_path: Path) -> None:
    """The prefix may be removed while a server runs; its tree runs on."""
    start(sandbox, "0")
    gone = criu._replace(argv=("/no/such/criu",), cache=None)
    with pytest.raises(SnapshotError, match="did not start"):
        dump(gone, sandbox, tmp_path / "images", timeout_s=TIMEOUT_S)
    assert ask(sandbox)["pid"] == FIRST_PID


@pytest.mark.slow
@pytest.mark.criu
def test_nothing_leaks_over_many_restores(criu: Criu, make_sandbox: MakeSandbox, tmp_path: Path, work: Path) -> None:
    """The host has the same descriptors, processes and mounts as before."""
    original = make_sandbox("original")
    start(original, "1")
    dump(criu, original, tmp_path / "images", timeout_s=TIMEOUT_S)
    original.kill()

    def restore_one() -> None:
        replica = make_sandbox("replica")
        restore(criu, replica, tmp_path / "images", work=work, timeout_s=TIMEOUT_S)
        assert ask(replica)["pid"] == FIRST_PID
        replica.kill()

    restore_one()
    descriptors = sorted(Path("/proc/self/fd").iterdir())
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    mounts = Path("/proc/self/mountinfo").read_text()
    for _ in range(10):
        restore_one()
    assert sorted(Path("/proc/self/fd").iterdir()) == descriptors
    assert Path(f"/proc/self/task/{os.getpid()}/children").read_text() == children
    assert Path("/proc/self/mountinfo").read_text() == mounts


def fake_criu(folder: Path, version: str) -> Path:
    """A prefix with a program that only prints its version."""
    program = folder / "bin" / "criu"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\necho 'Version: {version}'\n")
    program.chmod(0o755)
    return folder


@pytest.fixture
def no_other_criu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide every CRIU of this machine."""
    monkeypatch.delenv(PREFIX_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("torpor.snapshots.criu.program._SYSTEM_FOLDERS", ())


def test_the_variable_is_preferred_to_the_prefix_and_that_to_the_path(
    no_other_criu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TORPOR_CRIU_PREFIX comes first; a version that is too old is skipped."""
    for name, version in (("variable", "4.3"), ("prefix", "4.2.1"), ("path", "5.0.2"), ("old", "4.1.1")):
        fake_criu(tmp_path / name, version)
    monkeypatch.setenv("PATH", f"{tmp_path}/path/bin:/bin:/usr/bin")
    assert find(tmp_path / "prefix").version == "4.2.1"
    assert find().version == "5.0.2"
    assert find(tmp_path / "old").version == "5.0.2"
    monkeypatch.setenv(PREFIX_VARIABLE, str(tmp_path / "variable"))
    assert find(tmp_path / "prefix").version == "4.3"
    assert find(tmp_path / "prefix").program == tmp_path / "variable" / "bin" / "criu"


def test_without_a_usable_criu_each_one_seen_is_named(
    no_other_criu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its version or failure, and how to install a usable one."""
    with pytest.raises(SnapshotError, match=r"none was found.*torpor snapshot setup"):
        find()
    monkeypatch.setenv("PATH", "/bin:/usr/bin")
    fake_criu(tmp_path / "old", "3.17.1")
    broken = fake_criu(tmp_path / "broken", "")
    monkeypatch.setenv(PREFIX_VARIABLE, str(broken))
    with pytest.raises(SnapshotError, match=r"broken/bin/criu \(does not run\), .*old/bin/criu \(3\.17\.1\)"):
        find(tmp_path / "old")
