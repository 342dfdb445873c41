"""Kernel objects across a snapshot: what CRIU does not restore is refused by name; everything else works in a replica.

`object_program.py` makes many kinds at once, so that one dump and restore tries them all.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from tests.snapshots.conftest import MODES, wait_for
from tests.snapshots.kept import write_app
from torpor import SnapshotError, TrialWakeError
from torpor.platforms.local.snapshots import create_snapshot, inspect_snapshot
from torpor.snapshots.before_capture.external_resources import open_files
from torpor.snapshots.before_capture.kernel_objects import check_objects, uncarried
from torpor.snapshots.criu.program import PREFIX_VARIABLE
from torpor.snapshots.criu.run import dump, restore
from torpor.snapshots.sandbox.scheduling import schedule_again, scheduled
from torpor.snapshots.store.manifest import Manifest
from torpor.testing.ports import unused_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.snapshots.conftest import MakeSandbox
    from torpor.snapshots.criu.program import Criu
    from torpor.snapshots.sandbox.sandbox import Sandbox
    from torpor.snapshots.store.manifest import Mode

PROGRAM = Path(__file__).with_name("object_program.py")
TIMEOUT_S = 60.0

CARRIED = [
    *("memfd_open", "unix_private", "unix_abstract", "unix_half_closed", "unix_pending", "unix_datagram_queue"),
    *("unix_stream_queue", "udp", "raw_socket", "packet_socket", "netlink_socket", "deleted_file", "locked_memory"),
    *("locked_private", "nice", "timer_fd", "interval_timer", "event_fd", "signal_fd", "pid_fd", "epoll"),
    *("ofd_lock", "shared_anonymous", "fifo", "limits", "stopped", "zombie", "sealed", "appended", "flock"),
    *("no_capabilities", "deleted_folder", "file_mask", "sent_descriptor"),
]
CARRIED_AS_ROOT = [
    *("memfd_both", "memfd_two", "lock", "policy_rt", "inotify", "inotify_outside", "fanotify", "aio", "locked_all"),
    *("seccomp", "deleted_program"),
]
SET_AGAIN = ["affinity", "io_priority"]

NEVER = {
    "orphan": "has left the engine's process tree",
    "unix_outside": "outside of its private folders",
    "unix_peer_outside": "connected over a unix socket to a program outside",
    "udp_queue": "datagrams waiting in a UDP socket",
    "vsock": "socket of kind AF_VSOCK",
    "alg_socket": "socket of kind ALG",
    "sctp_socket": "socket of kind SCTP",
    "pty_pair": "has a terminal open (/dev/pts/",
    "sysv_semaphore": "System V semaphores",
    "sysv_queue": "System V message queues",
    "sysv_attached": "System V shared memory",
    "message_queue": "POSIX message queue /queue",
    "userfault": "userfaultfd descriptor",
    "perf": "perf_event descriptor",
    "bpf_map": "bpf-map descriptor",
    "lease": "has a lease on",
    "huge_memfd": "memory file /memfd:huge of huge pages open",
    "packet_pipe": "pipe of packets",
    "multicast": "the multicast group 224.1.2.3",
    "multicast_v6": "the multicast group ff02::1234",
    "traced": "is being traced",
    "network_namespace": "network namespace of its own",
    "user_namespace": "user namespace of its own",
    "mount_namespace": "mount namespace of its own",
    "ipc_namespace": "ipc namespace of its own",
    "uts_namespace": "uts namespace of its own",
    "cgroup_namespace": "cgroup namespace of its own",
    "pid_namespace": "pid namespace of its own",
}
"""By kind: what the refusal says, in both modes."""

ROOTLESS_NEVER = {
    "memfd_both": "memory file /memfd:shared mapped and open",
    "lock": "maps the deleted file /dev/shm/",
    "inotify": "watches files",
    "aio": "asynchronous I/O",
    "seccomp": "runs under a seccomp filter",
    "deleted_program": "runs or maps the deleted file",
}
"""Refused only where CRIU runs without root; the cure is `--mode root`."""


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A folder that every replica sees, with a program that listens there."""
    folder = tmp_path / "out"
    folder.mkdir()
    with socket.socket(socket.AF_UNIX) as outer:
        outer.bind(str(folder / "outer"))
        outer.listen()
        yield folder


def start(sandbox: Sandbox, kinds: list[str], outside: Path) -> None:
    """Start the program with these kinds."""
    env = {"PATH": os.environ["PATH"]}
    argv = [sys.executable, str(PROGRAM), ",".join(kinds), str(outside)]
    sandbox.spawn(argv, env=env, filtered=sandbox.mode == "root")
    assert wait_for(lambda: "up" in sandbox.log_tail(), 20.0), sandbox.log_tail()


def ask(sandbox: Sandbox) -> dict[str, object]:
    """Ask the program about its objects."""
    with sandbox.connect(8000, timeout_s=30.0) as connection, connection.makefile() as lines:
        said = cast("dict[str, object]", json.loads(lines.readline()))
    return {kind: one for kind, one in said.items() if one != "none here"}


def came_back(criu: Criu, original: Sandbox, make_sandbox: MakeSandbox, folder: Path) -> Sandbox:
    """A restored replica of the tree."""
    (folder / "work").mkdir()
    dump(criu, original, folder / "images", timeout_s=TIMEOUT_S)
    original.kill()
    replica = make_sandbox("replica")
    restore(criu, replica, folder / "images", work=folder / "work", timeout_s=TIMEOUT_S)
    return replica


@pytest.mark.criu
@pytest.mark.slow
@pytest.mark.fault(
    "an engine has pipes, queues, locks, timers and memory of every kind", outcome="held", area="kernel objects"
)
@pytest.mark.ordinary_user
def test_what_is_not_refused_works_in_a_replica(
    criu: Criu, make_sandbox: MakeSandbox, mode: Mode, tmp_path: Path, outside: Path
) -> None:
    """Every kind that CRIU restores in this mode, all in one tree."""
    sandbox = make_sandbox("original")
    start(sandbox, [*CARRIED, *(CARRIED_AS_ROOT if mode == "root" else ["policy"])], outside)
    assert uncarried(sandbox) == ()
    assert open_files(sandbox, [outside]).vanishing == ()
    replica = came_back(criu, sandbox, make_sandbox, tmp_path)
    said = ask(replica)
    assert {kind: one for kind, one in said.items() if one is not True} == {}
    assert set(said) >= set(CARRIED) - {"raw_socket", "packet_socket"}


@pytest.mark.slow
@pytest.mark.fault("an engine holds kernel objects that a restore would lose", outcome="refused", area="kernel objects")
@pytest.mark.parametrize("kind", ["all in one", "orphan"])
def test_what_a_restore_would_break_is_refused_by_name(
    make_sandbox: MakeSandbox, mode: Mode, outside: Path, kind: str
) -> None:
    """Each with its process and a cure. As root there are fewer, because CRIU can restore more."""
    refused = {**NEVER, **(ROOTLESS_NEVER if mode == "rootless" else {})}
    if kind in refused:
        refused = {kind: refused[kind]}
    sandbox = make_sandbox()
    start(sandbox, list(refused), outside)
    there = [one for one in refused if one in ask(sandbox)]
    found = uncarried(sandbox)
    unnamed = {one: refused[one] for one in there if not any(refused[one] in held.what for held in found)}
    assert unnamed == {}
    assert len(there) > len(refused) - 6
    assert all(held.cure for held in found)
    assert any("--mode root" in held.cure for held in found) is (mode == "rootless" and kind != "orphan")
    with pytest.raises(SnapshotError, match="cannot restore"):
        check_objects(sandbox)


@pytest.mark.slow
@pytest.mark.fault("a process of the engine runs as another user", outcome="refused", area="kernel objects")
@pytest.mark.ordinary_user
def test_a_process_of_another_user_is_refused_if_it_cannot_be_captured(
    make_sandbox: MakeSandbox, mode: Mode, outside: Path
) -> None:
    """CRIU reads its limits, for which root in a container often lacks the capability. Rootless has no other users."""
    sandbox = make_sandbox()
    start(sandbox, ["other_user"], outside)
    capabilities = next(line for line in Path("/proc/self/status").read_text().splitlines() if "CapEff" in line)
    lacks = not int(capabilities.split()[1], 16) & 1 << 24
    named = ["runs as another user (uid 65534)"] if mode == "root" and lacks else []
    assert [held.what for held in uncarried(sandbox)] == named
    assert bool(ask(sandbox)) is (mode == "root")


@pytest.mark.criu
@pytest.mark.fault(
    "an engine is bound to processors and has a priority for the disk", outcome="held", area="kernel objects"
)
@pytest.mark.ordinary_user
def test_processors_and_the_priority_of_disks_are_set_again(
    criu: Criu, make_sandbox: MakeSandbox, tmp_path: Path, outside: Path
) -> None:
    """CRIU restores neither."""
    sandbox = make_sandbox("original")
    start(sandbox, SET_AGAIN, outside)
    noted = scheduled(sandbox)
    assert {(one.pid, one.tid) for one in noted} == {(1000, 1000)}
    replica = came_back(criu, sandbox, make_sandbox, tmp_path)
    assert set(ask(replica).values()) == {False}
    schedule_again(replica, noted)
    assert ask(replica) == dict.fromkeys(SET_AGAIN, True)
    assert scheduled(replica) == noted


@pytest.mark.criu
@pytest.mark.slow
@pytest.mark.fault("a snapshot was captured from which no replica wakes", outcome="refused", area="trial restore")
def test_a_new_snapshot_whose_trial_fails_is_not_published(
    criu: Criu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old snapshot stays, and the error says what failed. Without a trial the new one is kept."""
    if "root" in criu.program.parts:
        monkeypatch.setenv(PREFIX_VARIABLE, str(criu.program.parents[3]))
    monkeypatch.setenv("TORPOR_CACHE", str(tmp_path / "cache"))
    folder, port = tmp_path / "kept", unused_port()
    good = create_snapshot(write_app(tmp_path / "good", port=port), folder, mode=MODES[0])
    assert [stage.stage for stage in good.stages][-1] == "capture_proof"
    assert isinstance(good, Manifest)
    bad = write_app(tmp_path / "bad", port=port, more=", fault='exit_at_wake'")
    with pytest.raises(TrialWakeError, match=r"its trial replica could not be woken[^$]*--no-prove"):
        create_snapshot(bad, folder, mode=MODES[0])
    assert inspect_snapshot(folder) == good
    kept = create_snapshot(bad, folder, mode=MODES[0], prove=False)
    assert "capture_proof" not in [stage.stage for stage in kept.stages]


@pytest.mark.criu
@pytest.mark.slow
@pytest.mark.fault("CRIU cannot dump an engine", outcome="refused", area="capture")
def test_the_log_of_a_dump_that_failed_is_where_the_error_says(
    criu: Criu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The snapshot's folder is removed with the log in it; what is named is a copy."""
    program = tmp_path / "prefix" / "sbin" / "criu"
    program.parent.mkdir(parents=True)
    failing = f"""#!/bin/sh
if [ "$1" = dump ]; then for last; do [ "$before" = --images-dir ] && cd "$last"; before=$last; done
    case "$PWD" in *.partial-*) echo "(00.1) Error (why.c:1): no such luck" > dump.log; exit 1 ;; esac; fi
exec {shlex.join(criu.argv)} "$@"
"""
    program.write_text(failing)
    program.chmod(0o755)
    monkeypatch.setenv(PREFIX_VARIABLE, str(tmp_path / "prefix"))
    monkeypatch.setenv("TORPOR_CACHE", str(tmp_path / "cache"))
    with pytest.raises(SnapshotError, match="no such luck") as caught:
        create_snapshot(write_app(tmp_path / "app", port=unused_port()), tmp_path / "kept", mode=MODES[0])
    log = Path(str(caught.value).partition("The whole log: ")[2].split()[0])
    assert "no such luck" in log.read_text()
    assert log.stat().st_mode & 0o077 == 0
    assert not (tmp_path / "kept").exists()
