# ruff: noqa: SIM105 - contextlib is not imported here
"""The first process of a sandbox: makes the namespaces, then reaps, starts commands and passes sockets out.

`torpor.snapshots.sandbox.first_process` runs it as a separate program. Every restore waits for it, so it imports little. Measured:
`json` costs 8 ms, `pathlib` 7, `signal` with its enumerations 6, `socket` 5, `typing` 5, `contextlib` 2. So messages are
marshalled (format version 2, which every Python 3 reads), and it uses `_socket` and `_signal`, the C parts of those modules.

    request   length, marshalled dict with "op"; descriptors beside it (SCM_RIGHTS)
    answer    length, marshalled dict; descriptors beside it; {"step", "errno"} after a failure

A connection carries one request after another. If it closes while its command runs, the command is killed.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # typeshed has no stub
import _socket
import ctypes
import fcntl
import marshal
import os
import select
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import NoReturn, TypedDict

    Message = dict[str, object]

    class Config(TypedDict):
        """What the owner sends on standard input; paths are inside the sandbox, `listener` and `owner` are descriptors.

        `clock` is the text for timens_offsets; `private` holds mount points and their modes; the first of `folders` is TMPDIR.
        `moved` holds folders: the path inside, and the path on this machine.
        """

        rootless: bool
        clock: str
        moved: list[tuple[str, str]]
        private: list[tuple[str, str]]
        folders: list[str]
        log: str
        listener: int
        owner: int


FIRST_PID = 1000
MESSAGE_VERSION = 2
LENGTH_BYTES = 4
CODE_BYTES = 4
READY = b"ready"

_CLONE_NEWTIME, _CLONE_NEWNS, _CLONE_NEWIPC = 0x80, 0x20000, 0x8000000
_CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_BIND, _MS_REC, _MS_PRIVATE = 0x2, 0x4, 0x8, 0x1000, 0x4000, 0x40000
_EROFS, _EMLINK, _MOST_SHOWN = 30, 31, 1024
_SIOCSIFFLAGS, _IFF_UP_AND_RUNNING, _IFNAMSIZ, _IFREQ_BYTES = 0x8914, 0x41, 16, 40
_FALLOC_FL_KEEP_SIZE_AND_PUNCH_HOLE = 0x3
_LOG_BYTES, _LOG_LOOK_S, _BLOCK_BYTES = 1 << 20, 2.0, 512
_LAST_PID = "/proc/sys/kernel/ns_last_pid"
_BACKLOG = 128
_RECEIVE_BYTES, _RECEIVE_FDS, _INT_BYTES = 65536, 4, 4
_PAST_ALL_FDS, _EMFILE = 1 << 20, 24
_libc = ctypes.CDLL(None, use_errno=True)


class StepError(Exception):
    """The kernel refused a step; carries the step and its errno."""

    def __init__(self, step: str, number: int | None) -> None:
        super().__init__(step, number)
        self.step, self.number = step, number or 0


def main() -> None:
    """Make the sandbox that standard input describes; report READY or the failed step on standard output."""
    config: Config = marshal.load(sys.stdin.buffer)  # noqa: S302 - written by the process that started this one
    report = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1):
        os.dup2(null, descriptor)
    for descriptor in (config["listener"], config["owner"]):
        os.set_inheritable(descriptor, False)
    try:
        outer = os.pidfd_open(os.getpid())
        _unshare(config)
        if child := os.fork():
            os.closerange(3, _PAST_ALL_FDS)
            os.waitpid(child, 0)
            os._exit(0)
        _furnish(config)
        pid1 = Pid1(config, must_live=[outer, config["owner"]])
    except StepError as error:
        os.write(report, marshal.dumps((error.step, error.number), MESSAGE_VERSION))
        os._exit(1)
    os.write(report, READY)
    os.close(report)
    pid1.serve()


def _unshare(config: Config) -> None:
    uid, gid = os.geteuid(), os.getegid()
    if config["rootless"]:
        _check("make a user namespace", _libc.unshare(_CLONE_NEWUSER))
        for file, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            _write(f"/proc/self/{file}", text)
    wanted = _CLONE_NEWPID | _CLONE_NEWNS | _CLONE_NEWNET | _CLONE_NEWIPC
    _check("make pid, mount, net and ipc namespaces", _libc.unshare(wanted))
    if config["clock"]:
        _check("make a time namespace", _libc.unshare(_CLONE_NEWTIME))
        _write("/proc/self/timens_offsets", config["clock"])


def _furnish(config: Config) -> None:
    _check("make mounts private", _libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None))
    _mount("proc", "/proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, "")
    try:
        for inside, here in config["moved"]:
            _show_at(here, inside)
        for folder, mode in config["private"]:
            os.makedirs(folder, 0o700, exist_ok=True)  # noqa: PTH103 - it may lie in the private folder before
            _mount("tmpfs", folder, _MS_NOSUID | _MS_NODEV, f"mode={mode}")
        for folder in config["folders"]:
            os.mkdir(folder, 0o700)  # noqa: PTH102
        flags = _IFF_UP_AND_RUNNING.to_bytes(_IFREQ_BYTES - _IFNAMSIZ, sys.byteorder)
        some = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
        fcntl.ioctl(some.fileno(), _SIOCSIFFLAGS, b"lo".ljust(_IFNAMSIZ, b"\0") + flags)
        some.close()
        os.chdir("/")
    except OSError as error:
        raise StepError(f"furnish the sandbox ({error.filename or 'lo'})", error.errno) from error


def _show_at(here: str, inside: str) -> None:
    """Show a folder of this machine at another path, too. What is missing on the way is made in this namespace only."""
    folder = os.open(here, os.O_PATH | os.O_DIRECTORY)  # first: a parent may be covered below
    reached = ""
    for part in inside.split("/")[1:]:
        following = f"{reached}/{part}"
        if not os.path.isdir(following):  # noqa: PTH112
            _cover(reached or "/")
            os.makedirs(inside, 0o755)  # noqa: PTH103
            break
        reached = following
        if not os.access(reached, os.X_OK) and reached != inside:
            _mount("tmpfs", reached, _MS_NOSUID | _MS_NODEV, "mode=755")
            os.makedirs(inside, 0o755)  # noqa: PTH103
            break
    _bind(f"/proc/self/fd/{folder}", inside)
    os.close(folder)


def _cover(folder: str) -> None:
    """Make a folder writable in this namespace: an empty one takes its place, in which everything of the old one is shown."""
    if folder == "/":
        raise OSError(_EROFS, os.strerror(_EROFS), folder)
    below = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    names = os.listdir(below)  # noqa: PTH208
    if len(names) > _MOST_SHOWN:
        raise OSError(_EMLINK, os.strerror(_EMLINK), folder)
    _mount("tmpfs", folder, _MS_NOSUID | _MS_NODEV, "mode=755")
    for name in names:
        old, new = f"/proc/self/fd/{below}/{name}", f"{folder}/{name}"
        if os.path.islink(old):  # noqa: PTH114
            os.symlink(os.readlink(old), new)  # noqa: PTH115, PTH211
            continue
        if os.path.isdir(old):  # noqa: PTH112
            os.mkdir(new)  # noqa: PTH102
        else:
            os.close(os.open(new, os.O_CREAT | os.O_WRONLY, 0o600))
        _bind(old, new)
    os.close(below)


def _bind(old: str, new: str) -> None:
    _check(f"show a folder at {new}", _libc.mount(os.fsencode(old), os.fsencode(new), None, _MS_BIND | _MS_REC, None))


def _mount(kind: str, folder: str, flags: int, options: str) -> None:
    done = _libc.mount(kind.encode(), os.fsencode(folder), kind.encode(), flags, options.encode())
    _check(f"mount {kind} on {folder}", done)


def _check(step: str, result: int) -> None:
    if result != 0:
        raise StepError(step, ctypes.get_errno())


def _write(file: str, text: str) -> None:
    try:
        with open(file, "w") as stream:  # noqa: PTH123
            stream.write(text)
    except OSError as error:
        raise StepError(f"write {file}", error.errno) from error


class Connection:
    """A client: what it has sent so far, and the descriptors that came with it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._socket = _socket.socket(fileno=descriptor)
        self._socket.setblocking(False)
        self._pending = b""
        self.received: list[int] = []

    def trusted(self) -> bool:
        """Whether the other end runs as the same user."""
        credentials = self._socket.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 3 * _INT_BYTES)
        return int.from_bytes(credentials[_INT_BYTES : 2 * _INT_BYTES], sys.byteorder) == os.geteuid()

    def receive(self) -> Message | None:
        """A complete request, or None while a part of it is missing.

        Raises:
            EOFError: the client closed the connection.
        """
        space = _socket.CMSG_SPACE(_RECEIVE_FDS * _INT_BYTES)
        data, extras, _, _ = self._socket.recvmsg(_RECEIVE_BYTES, space, _socket.MSG_CMSG_CLOEXEC)
        for _, _, blob in extras:
            whole = len(blob) - len(blob) % _INT_BYTES
            self.received += memoryview(blob[:whole]).cast("i").tolist()
        if not data:
            raise EOFError
        self._pending += data
        end = LENGTH_BYTES + int.from_bytes(self._pending[:LENGTH_BYTES], "little")
        if len(self._pending) < max(end, LENGTH_BYTES + 1):
            return None
        message: Message = marshal.loads(self._pending[LENGTH_BYTES:end])  # noqa: S302 - `trusted` was checked first
        self._pending = self._pending[end:]
        return message

    def send(self, answer: Message, descriptors: list[int]) -> None:
        """Send an answer, with descriptors beside it."""
        body = marshal.dumps(answer, MESSAGE_VERSION)
        rights = b"".join(number.to_bytes(_INT_BYTES, sys.byteorder) for number in descriptors)
        beside = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)] if rights else []
        self._socket.sendmsg([len(body).to_bytes(LENGTH_BYTES, "little"), body], beside)

    def forget_received(self) -> None:
        """Close the descriptors of the last request."""
        while self.received:
            os.close(self.received.pop())

    def close(self) -> None:
        """Close the connection and its descriptors."""
        self.forget_received()
        self._socket.close()


class Pid1:
    """The loop: serves requests, reaps children, and ends the sandbox with its owner.

    Args:
        config: from the owner.
        must_live: pidfds; when one of these processes ends, everything inside ends.
    """

    def __init__(self, config: Config, must_live: list[int]) -> None:
        self._config = config
        self._must_live = frozenset(must_live)
        self._connections: dict[int, Connection] = {}
        self._commands: dict[int, Connection] = {}
        self._watchers: list[int] = []
        self._leader_code: int | None = None
        self._woken, wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        _signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        _signal.signal(_signal.SIGCHLD, lambda *_: None)
        self._listener = _socket.socket(fileno=config["listener"])
        self._listener.setblocking(False)
        self._listener.listen(_BACKLOG)  # here, not in the owner: so SO_PEERCRED shows pid 1 to every client
        self._poll = select.poll()
        for descriptor in (self._woken, self._listener.fileno(), *must_live):
            self._poll.register(descriptor, select.POLLIN)

    def serve(self) -> NoReturn:
        """Serve until the sandbox ends."""
        look = time.monotonic() + _LOG_LOOK_S
        while True:
            events = self._poll.poll(_LOG_LOOK_S * 1000)
            if time.monotonic() >= look:
                _forget_old_lines(self._config["log"])
                look = time.monotonic() + _LOG_LOOK_S
            for descriptor, _ in events:
                if descriptor in self._must_live:
                    os._exit(0)
                elif descriptor == self._woken:
                    os.read(self._woken, _RECEIVE_BYTES)
                    self._reap()
                elif descriptor == self._listener.fileno():
                    self._accept()
                elif descriptor in self._connections:
                    self._serve_one(self._connections[descriptor])

    def _accept(self) -> None:
        try:
            descriptor, _ = self._listener._accept()  # type: ignore[attr-defined]  # noqa: SLF001 - what `socket` calls
        except OSError:  # the client has closed already
            return
        connection = Connection(descriptor)
        if not connection.trusted():
            connection.close()
            return
        self._connections[descriptor] = connection
        self._poll.register(descriptor, select.POLLIN)

    def _serve_one(self, connection: Connection) -> None:
        try:
            request = connection.receive()
        except (EOFError, OSError):
            self._drop(connection)
            return
        if request is None:
            return
        try:
            answer = self._answer(connection, request)
        except StepError as error:
            answer = {"step": error.step, "errno": error.number}, []
        except OSError as error:
            answer = {"step": str(request["op"]), "errno": error.errno or 0}, []
        connection.forget_received()
        if answer:
            self._send(connection, *answer)

    def _answer(  # noqa: PLR0911 - one return for each kind of request
        self, connection: Connection, request: Message
    ) -> tuple[Message, list[int]] | None:
        """Carry out a request; None when the answer comes later."""
        match request:
            case {"op": "sockets", "count": int(count)}:
                return {}, [_socket.socket(_socket.AF_INET, _socket.SOCK_STREAM).detach() for _ in range(count)]
            case {"op": "folders"}:
                return {}, [os.open(folder, os.O_RDONLY | os.O_DIRECTORY) for folder, _ in self._config["private"]]
            case {"op": "watch"}:
                return {}, [self._watch()]
            case {"op": "clock"}:
                clocks = (time.CLOCK_MONOTONIC, time.CLOCK_BOOTTIME)
                return {"clock": tuple(map(time.clock_gettime, clocks))}, []
            case {"op": "signal", "number": int(number)}:
                self._signal_tree(number)
                return {}, []
            case {"op": "run", "argv": list(argv), "env": dict(env), "cwd": str(cwd)}:
                pid = _start(argv, env, cwd, output=connection.received[0], umask=0o077)
                self._commands[pid] = connection
                return None
            case {"op": "spawn", "argv": list(argv), "env": dict(env), "cwd": str(cwd), "files": dict(files)}:
                self._spawn(argv, env, cwd, files)
                return {}, []
        return {"step": f"understand {request.get('op')!r}", "errno": 0}, []

    def _send(self, connection: Connection, answer: Message, descriptors: list[int]) -> None:
        try:
            connection.send(answer, descriptors)
        except OSError:
            self._drop(connection)
        for descriptor in descriptors:
            os.close(descriptor)

    def _drop(self, connection: Connection) -> None:
        self._poll.unregister(connection.descriptor)
        del self._connections[connection.descriptor]
        for pid in [pid for pid, client in self._commands.items() if client is connection]:
            os.killpg(pid, _signal.SIGKILL)  # not reaped yet, so no other process has its pid
            del self._commands[pid]
        connection.close()

    def _watch(self) -> int:
        """The read end of a new pipe that gets the exit code of the tree's first process, and is then closed."""
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        self._watchers.append(write_end)
        if self._leader_code is not None:
            self._tell_watchers()
        return read_end

    def _tell_watchers(self) -> None:
        code = (self._leader_code or 0).to_bytes(CODE_BYTES, "little", signed=True)
        while self._watchers:
            watcher = self._watchers.pop()
            try:
                os.write(watcher, code)
            except BrokenPipeError:  # the watcher has closed its end
                pass
            os.close(watcher)

    def _spawn(self, argv: list[str], env: dict[str, str], cwd: str, files: dict[int, bytes]) -> None:
        if self._leader_code is not None or os.path.exists(f"/proc/{FIRST_PID}"):  # noqa: PTH110
            raise StepError("start a second tree", 0)
        opened = {number: self._unlinked_file(number, content) for number, content in files.items()}
        log = os.open(self._config["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            _write(_LAST_PID, str(FIRST_PID - 1))
            pid = _start(argv, env, cwd, output=log, files=opened)
        finally:
            for descriptor in (log, *opened.values()):
                os.close(descriptor)
        if pid != FIRST_PID:
            os.kill(pid, _signal.SIGKILL)
            raise StepError(f"start the tree as pid {FIRST_PID}", 0)

    def _unlinked_file(self, number: int, content: bytes) -> int:
        path = f"{self._config['folders'][0]}/.{number}"
        with open(path, "xb") as stream:  # noqa: PTH123
            stream.write(content)
        try:
            return os.open(path, os.O_RDONLY)
        finally:
            os.unlink(path)  # noqa: PTH108

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            if client := self._commands.pop(pid, None):
                self._send(client, {"code": code}, [])
            elif pid == FIRST_PID:
                self._leader_code = code
                self._signal_tree(_signal.SIGKILL)
                self._tell_watchers()

    def _signal_tree(self, number: int) -> None:
        """Signal every process except pid 1 and the commands beside the tree: CRIU ends a dumped tree by itself."""
        if not self._commands:
            try:
                os.kill(-1, number)  # all at once: no process can fork away from it
            except ProcessLookupError:  # there is no process
                pass
            return
        for name in os.listdir("/proc"):  # noqa: PTH208
            try:
                if name.isdigit() and int(name) > 1 and os.getsid(int(name)) not in self._commands:
                    os.kill(int(name), number)
            except ProcessLookupError:  # it has ended meanwhile
                pass


def _forget_old_lines(log: str) -> None:
    """Free the memory of everything but the end of a log, which lies on a tmpfs and grows for months.

    It punches a hole and does not truncate, so that the offsets of writers and readers stay valid.
    """
    try:
        descriptor = os.open(log, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:  # no tree was started yet
        return
    facts = os.fstat(descriptor)
    if facts.st_blocks * _BLOCK_BYTES > 2 * _LOG_BYTES:
        punch_hole(descriptor, 0, facts.st_size - _LOG_BYTES)
    os.close(descriptor)


def punch_hole(descriptor: int, offset: int, size: int) -> None:
    """Free the space of a range of a file, which then reads as zeroes; no effect on file systems without holes (fallocate(2))."""
    where = ctypes.c_longlong(offset), ctypes.c_longlong(size)
    _libc.fallocate(descriptor, _FALLOC_FL_KEEP_SIZE_AND_PUNCH_HOLE, *where)


def _start(
    argv: list[str],
    env: Mapping[str, str],
    cwd: str,
    *,
    output: int,
    umask: int | None = None,
    files: Mapping[int, int] | None = None,
) -> int:
    """Start a command in its own session; its pid.

    Raises:
        StepError: it cannot be started.
    """
    failed, report = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        _become(argv, env, cwd, {1: output, 2: output, **(files or {})}, umask=umask, report=report)
    os.close(report)
    try:
        if blob := os.read(failed, _RECEIVE_BYTES):
            os.waitpid(pid, 0)
            raise StepError(*marshal.loads(blob))  # noqa: S302 - written by our own fork
    finally:
        os.close(failed)
    return pid


def _become(
    argv: list[str], env: Mapping[str, str], cwd: str, files: Mapping[int, int], *, umask: int | None, report: int
) -> NoReturn:
    """Turn a fork of pid 1 into the command; the report pipe closes at the exec or gets the failed step."""
    step = f"enter {cwd}"
    try:
        beyond = max(files) + 1
        report = _moved(report, beyond)
        os.setsid()
        _signal.set_wakeup_fd(-1)
        # An ignored signal stays ignored after an exec. Python ignores the first two; a shell the rest, for a background job.
        for ignored in (_signal.SIGPIPE, _signal.SIGXFSZ, _signal.SIGINT, _signal.SIGQUIT):
            _signal.signal(ignored, _signal.SIG_DFL)
        if umask is not None:
            os.umask(umask)
        os.chdir(cwd)
        sources = {0: os.open(os.devnull, os.O_RDONLY), **files}
        aside = {number: _moved(source, beyond) for number, source in sources.items()}
        for number, source in aside.items():
            os.dup2(source, number)
        step = f"start {argv[0]}"
        os.execvpe(argv[0], argv, env)  # noqa: S606
    except OSError as error:
        os.write(report, marshal.dumps((step, error.errno or 0), MESSAGE_VERSION))
    finally:
        os._exit(127)


def _moved(descriptor: int, least: int) -> int:
    """Duplicate a descriptor to a number of at least `least`, closed at an exec."""
    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, least)
    except OSError as error:  # the kernel says EINVAL when `least` is above the limit of descriptors
        raise OSError(_EMFILE, os.strerror(_EMFILE)) from error
