"""`torpor.snapshots.sandbox.sandbox`: what is private to a replica, how its tree starts, and how all of it ends."""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.conftest import is_running
from tests.snapshots.conftest import exists, wait_for
from torpor import ConfigurationError, SnapshotError
from torpor.snapshots.sandbox.first_process import FirstProcess
from torpor.snapshots.sandbox.sandbox import FIRST_PID, Clock, Sandbox
from torpor.snapshots.sandbox.start import StartingSandbox, create_sandbox

if TYPE_CHECKING:
    from tests.snapshots.conftest import MakeSandbox
    from torpor.snapshots.store.manifest import Mode

pytestmark = pytest.mark.criu

ENV = {"PATH": os.environ["PATH"]}
SERVE_NAME = """
import os, pathlib, socket, sys
shared = pathlib.Path("/dev/shm/same-name")
assert not shared.exists()
shared.write_text(sys.argv[1])
listener = socket.create_server(("127.0.0.1", 8000))
print("up", flush=True)
while True:
    connection, _ = listener.accept()
    connection.sendall(f"{shared.read_text()} {os.getpid()}".encode())
    connection.close()
"""
"""Listens where every replica listens, and answers with what it alone wrote."""


def python(sandbox: Sandbox, code: str, *arguments: str, **options: object) -> None:
    """Start a Python program as the sandbox's tree."""
    sandbox.spawn([sys.executable, "-c", textwrap.dedent(code), *arguments], env=ENV, **options)  # type: ignore[arg-type]


def said(sandbox: Sandbox, count: int = 1) -> tuple[str, ...]:
    """Wait for this many lines of output."""
    lines = wait_for(lambda: tail if len(tail := sandbox.log_tail()) >= count else ())
    assert lines, f"nothing said; ended with {sandbox.poll()}: {sandbox.log_tail()}"
    return lines


def answer(sandbox: Sandbox) -> str:
    """The answer of the server on port 8000."""
    with sandbox.connect(8000, timeout_s=30.0) as connection:
        return connection.recv(1000).decode()


@pytest.mark.ordinary_user
def test_the_tree_is_led_by_pid_1000_in_a_session_of_its_own(sandbox: Sandbox) -> None:
    """A restore needs the pids of the dump, so they lie above those of everything that runs before the tree."""
    python(sandbox, "import os; print(os.getpid(), os.getsid(0), os.getpgrp(), os.getppid(), flush=True)")
    assert said(sandbox) == (f"{FIRST_PID} {FIRST_PID} {FIRST_PID} 1",)


def test_a_sandbox_has_one_tree(sandbox: Sandbox) -> None:
    """A second tree could not get pid 1000, whether the first one runs or has ended."""
    python(sandbox, "import time; print('up', flush=True); time.sleep(60)")
    with pytest.raises(SnapshotError, match="second tree"):
        python(sandbox, "pass")
    sandbox.signal_tree(signal.SIGKILL)
    assert sandbox.wait(30.0) == -signal.SIGKILL
    with pytest.raises(SnapshotError, match="second tree"):
        python(sandbox, "pass")


@pytest.mark.ordinary_user
def test_two_sandboxes_share_neither_ports_nor_shared_memory(make_sandbox: MakeSandbox) -> None:
    """Both have the same port, pid and shared-memory name; neither sees the other's, and the host sees neither."""
    replicas = {name: make_sandbox(name) for name in ("first", "second")}
    for name, replica in replicas.items():
        python(replica, SERVE_NAME, name)
        said(replica)
    assert {name: answer(replica) for name, replica in replicas.items()} == {
        "first": f"first {FIRST_PID}",
        "second": f"second {FIRST_PID}",
    }
    assert not Path("/dev/shm/same-name").exists()


@pytest.mark.ordinary_user
def test_the_scratch_folder_is_private_and_stays_empty_outside(make_sandbox: MakeSandbox, scratch: Path) -> None:
    """Only the replica itself sees what it writes to TMPDIR."""
    first, second = make_sandbox("first"), make_sandbox("second")
    code = "import os, tempfile; print(tempfile.mkstemp(prefix='own')[1], sorted(os.listdir(os.environ['TMPDIR'])))"
    for replica in (first, second):
        python(replica, code)
        assert replica.wait(30.0) == 0
        (line,) = replica.log_tail()
        assert line.startswith(f"{scratch}/tmp/own")
        assert line.count("own") == 2
    assert list(scratch.iterdir()) == []


def test_more_folders_can_be_private(make_sandbox: MakeSandbox, tmp_path: Path) -> None:
    """A path that an engine writes to without respecting TMPDIR can be made private, too."""
    (tmp_path / "hidden").touch()
    sandbox = make_sandbox(private=[tmp_path])
    assert sandbox.run(["ls", str(tmp_path)], timeout_s=30.0).output == "scratch\n"
    assert sandbox.run(["touch", f"{tmp_path}/new"], timeout_s=30.0).code == 0
    assert not (tmp_path / "new").exists()


@pytest.mark.ordinary_user
def test_a_tree_cannot_reach_the_host_over_the_network(sandbox: Sandbox) -> None:
    """The network namespace holds `lo` alone, so no connection can lead outside at a dump."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        python(
            sandbox,
            """
            import os, socket, sys
            print([name for _, name in socket.if_nameindex()])
            for host in ("127.0.0.1", "192.0.2.1"):
                try:
                    socket.create_connection((host, int(sys.argv[1])), timeout=2)
                except OSError as error:
                    print(error.errno)
            """,
            str(port),
        )
        assert sandbox.wait(30.0) == 0
    assert sandbox.log_tail() == ("['lo']", str(errno.ECONNREFUSED), str(errno.ENETUNREACH))


@pytest.mark.ordinary_user
def test_nothing_from_outside_is_open_in_the_tree(sandbox: Sandbox) -> None:
    """Standard input is /dev/null, output is appended to the log, and there are only the descriptors that were asked for."""
    with Path("/dev/null").open() as some:
        os.set_inheritable(some.fileno(), True)
        python(
            sandbox,
            """
            import fcntl, os
            for number in range(3, 1000):
                try:
                    print(number, os.readlink(f"/proc/self/fd/{number}"))
                except OSError:
                    pass
            for number in range(3):
                print(number, os.readlink(f"/proc/self/fd/{number}"), bool(fcntl.fcntl(number, fcntl.F_GETFL) & os.O_APPEND))
            """,
        )
        assert sandbox.wait(30.0) == 0
    assert sandbox.log_tail() == ("0 /dev/null False", f"1 {sandbox.log} True", f"2 {sandbox.log} True")


def test_a_document_is_handed_over_as_an_unlinked_private_file(sandbox: Sandbox, scratch: Path) -> None:
    """The guard's boot document has no name in the sandbox and no end outside of it."""
    code = "import os; print(os.read(7, 100), os.readlink('/proc/self/fd/7'), os.listdir(os.environ['TMPDIR']))"
    python(sandbox, code, files={7: b"the document"})
    assert sandbox.wait(30.0) == 0
    (line,) = sandbox.log_tail()
    assert line == f"b'the document' {scratch}/tmp/.7 (deleted) []"


def test_the_environment_is_the_given_one(sandbox: Sandbox) -> None:
    """None of this process's variables gets into a snapshot by itself."""
    sandbox.spawn(["env"], env={"PATH": ENV["PATH"], "GIVEN": "1"})
    assert sandbox.wait(30.0) == 0
    assert sorted(sandbox.log_tail()) == ["GIVEN=1", f"PATH={ENV['PATH']}", f"TMPDIR={sandbox.scratch}/tmp"]


def test_the_working_folder_can_be_chosen(sandbox: Sandbox, tmp_path: Path) -> None:
    """The scratch folder is only the default."""
    sandbox.spawn(["pwd"], env=ENV, cwd=tmp_path)
    assert sandbox.wait(30.0) == 0
    assert sandbox.log_tail() == (str(tmp_path),)


def test_ignored_signals_are_not_inherited(sandbox: Sandbox) -> None:
    """Python ignores SIGPIPE; a program that it starts must not."""
    told = [sandbox.run(["cat", "/proc/self/status"], timeout_s=30.0).output]
    sandbox.spawn(["cat", "/proc/self/status"], env=ENV)
    assert sandbox.wait(30.0) == 0
    told.append("\n".join(sandbox.log_tail()))
    glibcs_own = 1 << 31 | 1 << 32  # signals 32 and 33: no program can set them; ignored in whatever `make` starts
    assert [int(status.partition("SigIgn:")[2].split()[0], 16) & ~glibcs_own for status in told] == [0, 0]
    assert all("SigBlk:\t0000000000000000" in status for status in told)


@pytest.mark.parametrize(
    ("argv", "seen"), [(["no-such-program"], "No such file"), (["/etc/passwd"], "Permission denied")]
)
@pytest.mark.parametrize("filtered", [False, True])
def test_a_program_that_cannot_be_run_is_an_error(sandbox: Sandbox, argv: list[str], seen: str, filtered: bool) -> None:
    """The message names it."""
    with pytest.raises(ConfigurationError, match=f"could not start {argv[0]}: ({seen}|there is no such program)"):
        sandbox.spawn(argv, env=ENV, filtered=filtered)
    assert sandbox.poll() is None


@pytest.mark.parametrize(("end", "code"), [("sys.exit(3)", 3), ("os.kill(os.getpid(), 11)", -signal.SIGSEGV)])
def test_the_end_of_the_first_process_is_reported_at_once(sandbox: Sandbox, end: str, code: int) -> None:
    """Within 100 ms, with its exit code, by wait, poll and select."""
    python(sandbox, f"import os, sys, time; print(time.monotonic(), flush=True); time.sleep(0.2); {end}")
    assert sandbox.poll() is None
    assert sandbox.wait(0.01) is None
    ready, _, _ = select.select([sandbox], [], [], 5.0)
    told = time.monotonic()
    assert ready == [sandbox]
    assert sandbox.poll() == code
    assert sandbox.wait(0.0) == code
    assert select.select([sandbox], [], [], 1.0)[0] == [sandbox]
    assert told - float(said(sandbox)[0]) < 0.2 + 0.1 + 0.1  # the last for a program that is slow to die
    assert sandbox.alive


def test_the_tree_ends_with_its_first_process(sandbox: Sandbox) -> None:
    """Workers left over would keep requests hanging, so they are killed, too, daemons included."""
    python(
        sandbox,
        """
        import os, signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for _ in range(3):
            if os.fork() == 0:
                os.setsid()
                time.sleep(60)
        print("up", flush=True)
        time.sleep(0.1)
        """,
    )
    said(sandbox)
    assert len(sandbox.host_pids()) == 5
    assert sandbox.wait(30.0) == 0
    assert wait_for(lambda: list(sandbox.host_pids()) == [1])


@pytest.mark.ordinary_user
def test_orphans_are_reaped(sandbox: Sandbox) -> None:
    """Pid 1 leaves no zombie: a pid still in use would break a restore."""
    python(
        sandbox,
        """
        import os, time
        for _ in range(20):
            if os.fork() == 0:
                if os.fork() == 0:
                    os._exit(0)
                os._exit(0)
        while True:
            try:
                os.wait()
            except ChildProcessError:
                break
        print("done", flush=True)
        time.sleep(60)
        """,
    )
    said(sandbox)
    assert wait_for(lambda: sorted(sandbox.host_pids()) == [1, FIRST_PID])


def test_a_command_runs_beside_the_tree(sandbox: Sandbox) -> None:
    """Its output and exit code are returned; its files are private (umask 077)."""
    script = "echo out; echo err >&2; touch $0/new; stat -c %a $0/new; exit 5"
    finished = sandbox.run(["sh", "-c", script, str(sandbox.scratch)], timeout_s=30.0)
    assert (finished.code, finished.output) == (5, "out\nerr\n600\n")
    assert sandbox.run(["sh", "-c", "kill -9 $$"], timeout_s=30.0).code == -signal.SIGKILL
    with pytest.raises(ConfigurationError, match="no-such-program"):
        sandbox.run(["no-such-program"], timeout_s=30.0)


@pytest.mark.ordinary_user
def test_a_command_is_killed_at_its_deadline_with_all_that_it_started(sandbox: Sandbox) -> None:
    """None of its processes stays in the sandbox, and the sandbox goes on working."""
    with pytest.raises(TimeoutError):
        sandbox.run(["sh", "-c", "sleep 60 & sleep 60"], timeout_s=0.2)
    assert wait_for(lambda: list(sandbox.host_pids()) == [1])
    assert sandbox.run(["true"], timeout_s=30.0).code == 0


def test_the_end_of_the_tree_spares_commands(sandbox: Sandbox) -> None:
    """CRIU ends a dumped tree by itself, and then still has to write its last files."""
    python(sandbox, "print('up', flush=True); import time; time.sleep(60)")
    said(sandbox)
    finished = sandbox.run(["sh", "-c", f"kill -9 {FIRST_PID}; sleep 0.3; echo alive"], timeout_s=30.0)
    assert finished.output == "alive\n"
    assert sandbox.poll() == -signal.SIGKILL


def test_many_threads_may_use_a_sandbox_at_once(sandbox: Sandbox) -> None:
    """Sockets, commands and signals from eight threads; each gets its own answer."""
    python(sandbox, SERVE_NAME, "own")
    said(sandbox)
    wrong = []

    def use(number: int) -> None:
        for _ in range(10):
            seen = (answer(sandbox), sandbox.run(["echo", str(number)], timeout_s=30.0).output)
            if seen != (f"own {FIRST_PID}", f"{number}\n"):
                wrong.append(seen)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_words_of_an_enumeration_are_words(sandbox: Sandbox) -> None:
    """An app file may take an argument or a value from a `StrEnum`, which is a str."""

    class Word(enum.StrEnum):
        NAME, VALUE = "NAME", "seen"

    assert sandbox.run(["/bin/echo", Word.VALUE], timeout_s=30.0).output == "seen\n"
    assert "NAME=seen\n" in sandbox.run(["/usr/bin/env"], env={Word.NAME: Word.VALUE}, timeout_s=30.0).output


def test_a_large_environment_passes(sandbox: Sandbox) -> None:
    """A request may be larger than a socket's buffer."""
    env = {**ENV, **{f"LARGE_{number}": "x" * 100_000 for number in range(6)}}
    sandbox.spawn(["sh", "-c", "echo ${#LARGE_5}"], env=env)
    assert sandbox.wait(30.0) == 0
    assert sandbox.log_tail() == ("100000",)


@pytest.mark.ordinary_user
def test_killing_leaves_nothing(make_sandbox: MakeSandbox) -> None:
    """When `kill` returns, no process is left, not even one that ignores signals or left the session; nor is a mount."""
    mounts = Path("/proc/self/mountinfo").read_text()
    sandbox = make_sandbox()
    python(
        sandbox,
        """
        import os, signal, time
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        for _ in range(3):
            if os.fork() == 0:
                os.setsid()
                break
        print("up", flush=True)
        while True:
            time.sleep(1)
        """,
    )
    said(sandbox, 4)
    pids = list(sandbox.host_pids().values())
    assert len(pids) == 5
    outer = int(Path(f"/proc/{sandbox.pid}/stat").read_text().rpartition(")")[2].split()[1])
    sandbox.kill()
    assert [pid for pid in (*pids, outer) if Path(f"/proc/{pid}").exists()] == []
    assert Path("/proc/self/mountinfo").read_text() == mounts
    sandbox.kill()
    assert sandbox.poll() == -signal.SIGKILL
    assert sandbox.log_tail() == ("up",) * 4
    assert not sandbox.alive


def test_a_new_sandbox_is_not_taken_for_a_remainder_of_an_ended_one(make_sandbox: MakeSandbox) -> None:
    """The kernel reuses numbers of namespaces, so a sandbox holds its own until it has looked for remaining processes."""
    first = make_sandbox("first")
    os.kill(first.pid, signal.SIGKILL)
    assert wait_for(lambda: not first.alive)
    others = [make_sandbox(f"other-{number}") for number in range(3)]
    first.kill(timeout_s=1.0)
    assert [other.run(["true"], timeout_s=30.0).code for other in others] == [0, 0, 0]


def test_no_descriptor_is_left_by_a_sandbox_that_ended(make_sandbox: MakeSandbox) -> None:
    """A server that restores replicas all day must not run out of them."""
    make_sandbox().kill()
    before = sorted(Path("/proc/self/fd").iterdir())
    for _ in range(3):
        sandbox = make_sandbox()
        sandbox.socket().close()
        sandbox.run(["true"], timeout_s=30.0)
        sandbox.kill()
    assert sorted(Path("/proc/self/fd").iterdir()) == before


def test_requests_to_an_ended_sandbox_raise_a_clear_error(sandbox: Sandbox) -> None:
    """Whoever ended it."""
    os.kill(sandbox.pid, signal.SIGKILL)
    assert sandbox.wait(30.0) == -signal.SIGKILL
    assert wait_for(lambda: not sandbox.alive)
    with pytest.raises(SnapshotError, match="has ended"):
        sandbox.socket()
    sandbox.kill()
    with pytest.raises(SnapshotError, match="has ended"):
        sandbox.run(["true"], timeout_s=1.0)


OWNER = """
import sys, time
from pathlib import Path
from torpor.snapshots.sandbox.sandbox import Sandbox
from torpor.snapshots.sandbox.start import create_sandbox
sandbox = create_sandbox("owned", mode=sys.argv[1], scratch=Path(sys.argv[2]))
sandbox.spawn(["sleep", "60"], env={"PATH": "/usr/bin:/bin"})
print(*sandbox.host_pids().values(), flush=True)
time.sleep(60)
"""


def start_owner(mode: Mode, scratch: Path) -> tuple[subprocess.Popen[str], list[int]]:
    """Start a process that makes a sandbox; returns it and the pids of the sandbox."""
    argv = [sys.executable, "-c", OWNER, mode, str(scratch)]
    owner = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert owner.stdout
    pids = [int(pid) for pid in owner.stdout.readline().split()]
    owner.stdout.close()
    assert len(pids) == 2
    return owner, pids


@pytest.mark.ordinary_user
def test_a_sandbox_ends_with_its_owner(mode: Mode, scratch: Path) -> None:
    """Even when SIGKILL ends the owner, no replica stays behind."""
    owner, pids = start_owner(mode, scratch)
    owner.kill()
    owner.wait()
    assert wait_for(lambda: not any(map(exists, pids)))


def test_the_folder_for_temporary_files_may_have_a_long_path(
    make_sandbox: MakeSandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket's address holds 108 bytes at most. No file of the socket stays behind."""
    folder = tmp_path / ("long" * 40)
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    assert make_sandbox().run(["true"], timeout_s=30.0).code == 0
    assert list(folder.iterdir()) == []


def test_a_sandbox_ends_with_its_outer_process(sandbox: Sandbox) -> None:
    """Somebody may kill that process, which only waits, by mistake."""
    outer = int(Path(f"/proc/{sandbox.pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(outer, signal.SIGKILL)
    assert sandbox.wait(30.0) == -signal.SIGKILL


def test_a_process_that_did_not_die_is_named(make_sandbox: MakeSandbox) -> None:
    """`kill` also reports a foreign process that entered a namespace."""
    sandbox = make_sandbox()
    entered = subprocess.Popen(
        [*_enter(sandbox), "sh", "-c", "echo in; exec sleep 60"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert entered.stdout
        assert entered.stdout.readline() == "in\n"
        entered.stdout.close()
        with pytest.raises(SnapshotError, match=rf"{entered.pid} \(sleep 60\)"):
            sandbox.kill(timeout_s=0.2)
    finally:
        entered.kill()
        entered.wait()
    sandbox.kill()


def _enter(sandbox: Sandbox) -> list[str]:
    user = ["--user", "--preserve-credentials"] if sandbox.mode == "rootless" else []
    return ["nsenter", "--target", str(sandbox.pid), *user, "--ipc"]


@pytest.mark.ordinary_user
def test_clocks_start_at_the_given_reading(make_sandbox: MakeSandbox) -> None:
    """A time namespace hides a reboot from a restored tree: its monotonic clock neither jumps nor runs backwards."""
    wanted = Clock(monotonic_s=123_456.7, boottime_s=234_567.8)
    sandbox = make_sandbox(clock=wanted)
    seen = sandbox.clock()
    assert 0 <= seen.monotonic_s - wanted.monotonic_s < 5
    assert 0 <= seen.boottime_s - wanted.boottime_s < 5
    plain = make_sandbox().clock()
    assert abs(plain.monotonic_s - time.monotonic()) < 5


@pytest.mark.ordinary_user
def test_a_step_that_the_kernel_refuses_is_named(mode: Mode, scratch: Path, tmp_path: Path) -> None:
    """Here a private folder that is a file; nothing is left of the attempt."""
    (tmp_path / "file").touch()
    with pytest.raises(SnapshotError, match="refused to furnish the sandbox"):
        create_sandbox("one", mode=mode, scratch=scratch, private=[tmp_path / "file"])
    with pytest.raises(ConfigurationError, match="absolute"):
        create_sandbox("one", mode=mode, scratch=Path("relative"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may make any sandbox")
@pytest.mark.ordinary_user
def test_an_ordinary_user_gets_no_sandbox_of_root(scratch: Path) -> None:
    """The message names the step that needed privilege."""
    with pytest.raises(SnapshotError, match="pid, mount, net and ipc namespaces: Operation not permitted"):
        create_sandbox("one", mode="root", scratch=scratch)


def test_a_sandbox_that_is_not_ready_in_time_is_ended(mode: Mode, scratch: Path) -> None:
    """Every wait has a deadline; no process goes on afterwards."""
    name = f"late-{os.getpid()}"
    with pytest.raises(SnapshotError, match="was not ready"):
        create_sandbox(name, mode=mode, scratch=scratch, timeout_s=0.0)
    assert wait_for(lambda: not [pid for pid in psutil.pids() if name in _command(pid)])


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


@pytest.mark.ordinary_user
def test_denied_io_uring_answers_as_if_the_kernel_had_none(sandbox: Sandbox) -> None:
    """ENOSYS makes libuv and others fall back to epoll, which CRIU can dump."""
    python(
        sandbox,
        """
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True)
        print(os.getpid(), libc.syscall(425, 4, ctypes.create_string_buffer(120)), ctypes.get_errno())
        """,
        filtered=True,
    )
    assert sandbox.wait(30.0) == 0
    assert sandbox.log_tail() == (f"{FIRST_PID} -1 {errno.ENOSYS}",)


def test_the_log_keeps_its_last_lines(sandbox: Sandbox) -> None:
    """Memory is bounded, whatever an engine prints."""
    python(sandbox, "print('\\n'.join(map(str, range(200_000))))")
    assert sandbox.wait(30.0) == 0
    assert sandbox.log_tail(3) == ("199997", "199998", "199999")
    assert len(sandbox.log_tail()) == 200


@pytest.mark.ordinary_user
def test_pids_inside_are_mapped_to_pids_outside(sandbox: Sandbox) -> None:
    """The memory of a tree is measured from outside."""
    python(sandbox, "import time; print('up', flush=True); time.sleep(60)")
    said(sandbox)
    pids = sandbox.host_pids()
    assert set(pids) == {1, FIRST_PID}
    assert pids[1] == sandbox.pid
    assert Path(f"/proc/{pids[FIRST_PID]}/cmdline").read_bytes().startswith(sys.executable.encode())


def test_without_a_temporary_folder_no_sandbox_is_made(
    mode: Mode, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It raises SnapshotError, not OSError."""
    monkeypatch.setenv("TMPDIR", "/nowhere")
    with pytest.raises(SnapshotError, match=r"cannot bind its socket /nowhere/torpor-.*: No such file or directory"):
        create_sandbox("one", mode=mode, scratch=scratch)


def test_a_starting_sandbox_can_be_ended(mode: Mode, scratch: Path) -> None:
    """Its first process ends, no descriptor stays open, and `ready` raises an error."""
    before = psutil.Process().num_fds()
    begun = StartingSandbox("one", mode=mode, scratch=scratch)
    outer = begun._outer
    begun.end()
    begun.end()
    assert outer.poll() is not None
    with pytest.raises(SnapshotError, match="'one' was ended before it was ready"):
        begun.ready(60.0)
    assert psutil.Process().num_fds() == before


def test_a_starting_sandbox_can_be_ended_by_another_thread(mode: Mode, scratch: Path) -> None:
    """Before or after the sandbox is ready: the waiting thread gets an error or an ended sandbox."""
    before = psutil.Process().num_fds()
    for number in range(10):
        begun = StartingSandbox(f"n{number}", mode=mode, scratch=scratch)
        ender = threading.Timer(number * 0.005, begun.end)
        ender.start()
        with contextlib.suppress(SnapshotError), begun.ready(60.0) as sandbox:
            ender.join()
            assert wait_for(lambda: not sandbox.alive, 5.0)
        ender.join()
        assert begun.ended
    assert psutil.Process().num_fds() == before


def test_a_first_process_that_was_started_early_makes_the_sandbox(mode: Mode, scratch: Path) -> None:
    """It gets its configuration later; the sandbox works and ends like any other."""
    before = psutil.Process().num_fds()
    with FirstProcess("early") as first:
        begun = StartingSandbox("one", mode=mode, scratch=scratch, first=first)
    with begun.ready(60.0) as sandbox:
        assert sandbox.name == "one"
        assert sandbox.run([sys.executable, "-c", "print(1)"], timeout_s=20.0).output == "1\n"
    assert first.process.poll() is not None
    assert psutil.Process().num_fds() == before


def test_a_first_process_without_a_configuration_is_ended(monkeypatch: pytest.MonkeyPatch, scratch: Path) -> None:
    """After its `with` block, and when the sandbox cannot start; no descriptor stays open."""
    before = psutil.Process().num_fds()
    with FirstProcess("early") as first:
        assert first.process.poll() is None
    assert first.process.poll() is not None
    monkeypatch.setenv("TMPDIR", "/nowhere")
    first = FirstProcess("early")
    with pytest.raises(SnapshotError, match=r"cannot bind its socket /nowhere/torpor-.*: No such file or directory"):
        StartingSandbox("one", mode="rootless", scratch=scratch, first=first)
    assert first.process.poll() is not None
    assert psutil.Process().num_fds() == before


def test_a_first_process_without_a_configuration_ends_with_its_owner() -> None:
    """Even when the owner is killed."""
    program = (
        "import time; from torpor.snapshots.sandbox.first_process import FirstProcess\n"
        "print(FirstProcess('early').process.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        first = psutil.Process(int(owner.stdout.readline()))
        owner.kill()
    assert wait_for(lambda: not is_running(first), 10.0)


LOOK = """
import os, sys
place = sys.argv[1]
print(sorted(os.listdir(place)), sorted(os.listdir(os.path.dirname(os.path.dirname(place)))), flush=True)
open(place + "/written", "x").close()
"""


def names(folder: Path) -> list[str]:
    """What is in a folder; nothing if it is missing."""
    return sorted(one.name for one in folder.glob("*"))


@pytest.mark.parametrize("place", ["beside/deep/cache", "/usr/torpor-absent/cache"])
@pytest.mark.ordinary_user
def test_a_folder_is_shown_at_another_path(mode: Mode, tmp_path: Path, place: str) -> None:
    """With its files, whatever is missing on the way; what lies beside stays, and the machine gets no new folder."""
    cache, parent = tmp_path / "here", tmp_path / "world"
    for folder in (cache, parent):
        folder.mkdir()
    (cache / "one").touch()
    (parent / "file").touch()
    (parent / "link").symlink_to("file")
    inside = parent / place
    beside = sorted({*names(inside.parents[1]), inside.parent.name})
    begun = StartingSandbox("one", mode=mode, scratch=inside / "box", moved=[(str(inside), str(cache))])
    with begun.ready(60.0) as sandbox:
        ran = sandbox.run([sys.executable, "-c", LOOK, str(inside)], timeout_s=20.0)
        assert ran.output == f"{['box', 'one']} {beside}\n"
        listed = sandbox.run(["ls", str(parent)], timeout_s=20.0)
        assert {"file", "link"} <= set(listed.output.split())
    assert (cache / "written").exists()
    assert not inside.parent.exists()
    assert names(parent) == ["file", "link"]


def test_a_folder_that_is_there_is_covered_by_the_moved_one(mode: Mode, tmp_path: Path) -> None:
    """Another user's cache may lie at the path of the capture."""
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    moved = [(str(tmp_path / "there"), str(tmp_path / "here"))]
    begun = StartingSandbox("one", mode=mode, scratch=tmp_path / "there" / "box", moved=moved)
    with begun.ready(60.0) as sandbox:
        assert set(sandbox.run(["ls", str(tmp_path / "there")], timeout_s=20.0).output.split()) == {"box", "here"}
    assert names(tmp_path / "there") == ["there"]


def test_a_place_at_the_root_of_the_file_system_is_refused(mode: Mode, tmp_path: Path) -> None:
    """It cannot be made in the sandbox alone; the error names it."""
    begun = StartingSandbox("one", mode=mode, scratch=tmp_path / "box", moved=[("/torpor-absent/cache", str(tmp_path))])
    with pytest.raises(SnapshotError, match=r"furnish the sandbox \(/\): Read-only file system"):
        begun.ready(60.0)
