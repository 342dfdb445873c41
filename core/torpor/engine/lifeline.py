"""Ends an engine, a command, a build step or a check when the framework's process dies (SIGKILL, a crash, the OOM killer).

Two watcher processes per tree hold the read end of a pipe. Only the framework's process has the write end. When the pipe
breaks, they kill the whole tree. Two other ways do not suffice:

    a parent-death signal (prctl(2))   comes when the *thread* that started the tree ends, reaches only the direct child, and
                                       each engine plugin's launcher would have to ask for it
    a thread                           in the engine, it stops while a call holds the interpreter lock; in the runner of build
                                       steps, it dies with the framework's process group or terminal

Why two watchers: supervisors such as Ray kill a process's direct children, or its whole session, before the process itself.
The framework starts a process that forks the first watcher and ends, so no watcher is a child of the framework. The second
watcher is a child of the first, in a session of its own. Each notices when the other ends; then the remaining one leads and
starts another. So the tree stays covered when somebody kills one watcher, whichever it is.

An engine in a snapshot's sandbox has no watcher: it is no child of the framework, and its first process ends with its
owner (`torpor.snapshots.sandbox.sandbox`). On Modal a snapshot contains the watchers, as it contains the framework's process.
So they use nothing but pipes, which every kernel and sandbox supports.

The watchers run this file as a program (`python -I -S lifeline.py VARIABLE=VALUE SECONDS`) for as long as the engine lives, so
it imports very little.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import IO, NoReturn, Self

    _Stat = tuple[str, int, int, int, int]

__all__ = ["Lifeline"]

_PASSED_ON = ("PATH", "LD_LIBRARY_PATH")
_DONE = b"done\n"
_OVER = b"over\n"
_MEMBER = b"+"
_KILL_S = 30.0
_PAUSE_S = 0.05
_QUIET_SCANS = 4
"""Scans in a row that find nothing before the tree counts as gone: it may have been starting when the framework ended."""
_QUIET_SCANS_UNTOLD = 40
"""The same number if the leader is unknown: the framework ended during the start, perhaps on a busy machine."""
_SILENCE_S = 2.0
"""After the framework's end, the second watcher takes over once the first is silent for these seconds."""
_LOOKS_S = (0.05, 5.0)
"""First and last pause between two looks at the tree. An orphan with its own session and environment is only found if a look
saw it before."""
_LOOK_SHARE = 100
"""A pause is at least this many times as long as a look: 1% of a CPU, even on a machine with thousands of processes."""
_BEGIN_S = 30.0
_BEGIN_ATTEMPTS = 3
_WORDS_BYTES = 4096
_IGNORED = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGPIPE,
)
"""Signals that end the framework must not end its watchers first."""


class Lifeline:
    """The framework's end of the pipe. A fork of this process closes it; commands that this process starts never inherit it.

    The watchers run when the constructor returns, so they cover a tree from its first moment. As a context manager it ends
    what is left of the tree when the block ends or fails.

    Args:
        variable: environment variable that marks the tree's processes. The watchers find marked processes even before they
            know the leader.
        value: its value, unique to this tree.
        gentle_s: seconds that the leader gets after SIGTERM to end its tree, before everything is killed.

    Attributes:
        mark: the variable with its value, for the environment of the tree.

    Raises:
        OSError: the system cannot start the watchers: too few processes or descriptors are left.
    """

    _open: set[Lifeline] = set()  # noqa: RUF012 - one set for the whole process

    def __init__(self, variable: str, value: str, *, gentle_s: float = 0.0) -> None:
        self.mark = {variable: value}
        self._words: IO[bytes]
        self._heard: IO[bytes]
        self._said = b""
        self._told = False
        self._pid = 0
        argv = [sys.executable, "-I", "-S", __file__, f"{variable}={value}", f"{gentle_s:g}"]
        for _ in range(_BEGIN_ATTEMPTS):  # the starter is a child of this process, so a supervisor may kill it
            if self._begin(argv):
                Lifeline._open.add(self)
                return
        raise ChildProcessError(f"{sys.executable} ended {_BEGIN_ATTEMPTS} times before it could watch a process tree")

    @property
    def pid(self) -> int:
        """The process id of the watcher that led at the start."""
        return self._pid

    def tell(self, leader_pid: int) -> None:
        """Tell the watchers the tree's leader: setproctitle may overwrite the environment that marks a process."""
        self._told = True
        self._say(f"{leader_pid}\n".encode())

    def release(self) -> None:
        """End the watchers of a tree that has ended. Harmless to repeat."""
        if self in Lifeline._open:
            self._say(_DONE)
            self.cut()

    def sweep(self) -> None:
        """Have the watchers end the rest of a tree whose leader has ended, then themselves. Harmless to repeat."""
        if self in Lifeline._open:
            self._say(_OVER)
            self.cut()

    def cut(self) -> None:
        """Have the watchers end the rest of the tree, and wait until it is gone. Harmless to repeat."""
        try:
            Lifeline._open.remove(self)
        except KeyError:  # another thread was faster
            return
        self._words.close()
        with self._heard:
            self._said += self._heard.read()  # waits for their end: they are no children of this process
        _reap(self._said)

    def let_go(self) -> None:
        """Close this end of the pipe and send nothing."""
        self._words.close()
        self._heard.close()

    @classmethod
    def forget_all(cls) -> None:
        """Close all pipes in a fork of the framework: the engines belong to its parent."""
        while cls._open:
            cls._open.pop().let_go()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        if kind is None:
            self.sweep()
        elif not self._told and issubclass(kind, OSError):  # the program did not start: there is no tree
            self.release()
        else:
            self.cut()

    def _begin(self, argv: list[str]) -> bool:
        """Start the watchers, wait until they watch, and return whether they do."""
        import contextlib  # noqa: PLC0415 - both together: 5 ms of each watcher
        import subprocess  # noqa: PLC0415

        starter = subprocess.Popen(
            argv,
            # A snapshot may contain this process, so its environment holds no secret.
            env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
        )
        with contextlib.ExitStack() as failed:
            pipes = [failed.enter_context(pipe) for pipe in (starter.stdin, starter.stdout) if pipe is not None]
            self._words, self._heard = pipes
            watching = select.poll()
            watching.register(self._heard, select.POLLIN)
            self._said = os.read(self._heard.fileno(), _WORDS_BYTES) if watching.poll(_BEGIN_S * 1000) else b""
            if not self._said:
                starter.kill()
            starter.wait()
            if self._said:
                self._pid = int(self._said.split()[0])
                failed.pop_all()
        return bool(self._said)

    def _say(self, line: bytes) -> None:
        try:
            self._words.write(line)
        except (OSError, ValueError):
            return  # somebody killed both watchers, or another thread closed the pipe


def _reap(said: bytes) -> None:
    """Reap the watchers if this process inherited them, as the first process of a container and a subreaper do."""
    for line in said.splitlines():
        pid, started = map(int, line.split())
        seen = _stat(pid)
        if seen and seen[4] == started and seen[1] == os.getpid():
            os.waitpid(pid, 0)


class _Watcher:
    """One of the two watchers: it leads, or stands by until the leading one is gone.

    Args:
        mark: the variable and its value that mark the tree's processes.
        gentle_s: see `Lifeline`.
    """

    def __init__(self, mark: bytes, gentle_s: float) -> None:
        self._mark = mark
        self._gentle_s = gentle_s
        self._leader = self._started = 0
        self._known: dict[int, int] = {}
        self._over = False
        self._pending = b""
        self._partner = 0
        self._life = self._tell = -1

    def watch(self) -> NoReturn:
        """Read what the framework writes until it ends, then kill everything that belongs to the tree."""
        ended, pause_s, next_look = False, _LOOKS_S[0], time.monotonic()
        while not ended:
            if not self._partner and self._have_partner():
                _write(1, f"{os.getpid()} {_started(os.getpid())}\n".encode())
            poll = select.poll()
            poll.register(0, select.POLLIN)
            if self._partner:
                poll.register(self._life, 0)  # 0: report only its end
            if self._leader and time.monotonic() >= next_look:
                took_s = self._look()
                pause_s = 2 * pause_s if 2 * pause_s < _LOOKS_S[1] else max(_LOOKS_S[1], _LOOK_SHARE * took_s)
                next_look = time.monotonic() + pause_s
            wait_s = max(0.0, next_look - time.monotonic()) if self._leader else _LOOKS_S[1]
            for descriptor, _ in poll.poll(wait_s * 1000):
                if descriptor == 0:
                    words = os.read(0, _WORDS_BYTES)
                    ended = not words
                    _write(self._tell, words)
                    if self._take(words):
                        self._end_partner()
                        os._exit(0)
                else:
                    self._end_partner()  # somebody killed it: reap it and start another
        self._end_tree()
        self._end_partner()
        os._exit(0)

    def _have_partner(self) -> bool:
        """Fork a partner. Once the partner leads, it forks one here too. False if no process can be forked."""
        while True:
            heard, tell = os.pipe()
            life, alive = os.pipe()
            try:
                self._partner = os.fork()
            except OSError:
                for descriptor in (heard, tell, life, alive):
                    os.close(descriptor)
                return False
            if self._partner:
                os.close(heard)
                os.close(alive)
                self._life, self._tell = life, tell
                return True
            os.setsid()  # killing the session of one watcher misses the other
            os.close(tell)
            os.close(life)
            self._tell = -1
            self._stand_by(heard, os.getppid())
            os.close(heard)
            os.close(alive)

    def _end_partner(self) -> None:
        if self._partner:
            _send(self._partner, signal.SIGKILL)
            os.waitpid(self._partner, 0)
            os.close(self._life)
            os.close(self._tell)
            self._partner, self._tell = 0, -1

    def _stand_by(self, heard: int, leader: int) -> None:
        """Return when the leading watcher has ended, or hangs after the framework's end."""
        poll = select.poll()
        poll.register(heard, select.POLLIN)
        poll.register(0, 0)  # 0: report only its end
        deadline = None
        while deadline is None or time.monotonic() < deadline:
            for descriptor, _ in poll.poll(None if deadline is None else _PAUSE_S * 1000):
                if descriptor == 0:
                    poll.unregister(0)
                    deadline = time.monotonic() + _SILENCE_S
                    continue
                words = os.read(heard, _WORDS_BYTES)
                if not words:
                    return
                if self._take(words):
                    os._exit(0)
                deadline = deadline and time.monotonic() + _SILENCE_S
        if os.getppid() == leader:
            _send(leader, signal.SIGKILL)  # it is stopped or gets no CPU

    def _take(self, words: bytes) -> bool:
        """Note the leader and the members of the tree; return whether the tree is gone."""
        *lines, self._pending = (self._pending + words).split(b"\n")
        for line in lines:
            if line + b"\n" == _DONE:
                return True
            if line + b"\n" == _OVER:
                self._over = True
            elif line.startswith(_MEMBER):
                pid, started = map(int, line[1:].split())
                self._known[pid] = started
            elif line:
                self._leader = int(line)
                self._started = _started(self._leader)
        return False

    def _look(self) -> float:
        """Note who belongs to the tree and tell the partner; return the CPU seconds that it took."""
        began = time.process_time()
        table = _table()
        for pid in self._members(table) - self._known.keys():
            self._known[pid] = table[pid][4]
            _write(self._tell, b"%b%d %d\n" % (_MEMBER, pid, table[pid][4]))
        for pid in [pid for pid, started in self._known.items() if pid not in table or table[pid][4] != started]:
            del self._known[pid]
        return time.process_time() - began

    def _members(self, table: dict[int, _Stat]) -> set[int]:
        """The processes that belong to the tree: by descent, by session, or because an earlier look saw them in it."""
        leader = self._leader
        if leader in table and table[leader][4] != self._started:
            leader = 0  # another process has this pid now
        found = {pid for pid, fields in table.items() if leader in (pid, fields[2]) and leader}
        found |= {pid for pid, started in self._known.items() if pid in table and table[pid][4] == started}
        return _with_descendants(table, found)

    def _end_tree(self) -> None:
        if self._gentle_s and not self._over:
            self._ask_leader()
        needed = _QUIET_SCANS if self._leader else _QUIET_SCANS_UNTOLD
        deadline, quiet = time.monotonic() + _KILL_S, needed - 1 if self._over else 0
        while time.monotonic() < deadline:
            quiet = 0 if self._kill_members() else quiet + 1
            if quiet >= needed:
                return
            self._pause()

    def _kill_members(self) -> int:
        """Send SIGKILL to every process of the tree; return how many still run, zombies not counted."""
        table = _table()
        marked = {pid for pid in table if self._mark in _environment(pid)}
        found = _with_descendants(table, self._members(table) | marked) - {os.getpid(), os.getppid(), self._partner}
        for pid in found:
            self._known[pid] = table[pid][4]
            _send(pid, signal.SIGKILL)
        return sum(1 for pid in found if table[pid][0] not in "ZX" or table[pid][3] > 1)

    def _ask_leader(self) -> None:
        """Ask the leader to end its tree, and wait until the leader has ended."""
        deadline = time.monotonic() + self._gentle_s
        asked = False
        while self._leader and (seen := _stat(self._leader)) and time.monotonic() < deadline:
            if seen[4] != self._started or seen[0] in "ZX":
                return
            if not asked:
                _send(self._leader, signal.SIGTERM)
                _send(self._leader, signal.SIGCONT)  # a stopped process handles no SIGTERM
                asked = True
            self._pause()

    def _pause(self) -> None:
        _write(self._tell, b"\n")  # shows the partner that this one is alive
        time.sleep(_PAUSE_S)


def _write(descriptor: int, words: bytes) -> None:
    try:
        os.write(descriptor, words)
    except OSError:  # the other end is gone
        return


def _table() -> dict[int, _Stat]:
    return {int(name): fields for name in os.listdir("/proc") if name.isdigit() and (fields := _stat(name))}  # noqa: PTH208


def _with_descendants(table: dict[int, _Stat], pids: set[int]) -> set[int]:
    found = set(pids)
    while more := {pid for pid, fields in table.items() if fields[1] in found} - found:
        found |= more
    return found


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return


def _stat(pid: int | str) -> _Stat | None:
    """State, parent, session, number of threads, start time (proc_pid_stat(5)); None for a process that has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - pathlib is another 7 ms
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return fields[0].decode(), int(fields[1]), int(fields[3]), int(fields[17]), int(fields[19])


def _started(pid: int) -> int:
    fields = _stat(pid)
    return fields[4] if fields else 0


def _environment(pid: int) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123
            return file.read().split(b"\0")
    except OSError:
        return []


if __name__ == "__main__":
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    if os.fork() == 0:
        _Watcher(sys.argv[1].encode(), float(sys.argv[2])).watch()
else:
    os.register_at_fork(after_in_child=Lifeline.forget_all)
