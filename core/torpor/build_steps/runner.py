"""Run one build step with a deadline, retries, a check of its outputs, and a cache on a volume.

A platform's build steps are bare shell lines: no time limit, no retry, no check of the outputs. So this one file is copied
into the image before every build step, and the image's own `python3` runs it. It uses only the standard library, works on
Python 3.10 and later, and does not import torpor.

    python3 buildstep.py --name N --timeout S [--retries N] [--grace S] [--output PATH]... [--sync DIR]...
        [--cache-volume DIR --cache-image DIR [--key=PART]... [--probe 'COMMAND']...] -- COMMAND [ARGUMENT]...

The cache. A key is the SHA-256 of the key parts and of what the probes print inside the image. If `<volume>/<key>/` holds a
marker and every file that the marker lists (size and SHA-256), the files are copied to the image folder and the command is
skipped. Otherwise the command builds in the image folder, on local disk: JIT caches need flock and rename. The result is
copied to `<volume>/.tmp-*`, the marker last, and one rename publishes it. So two builders at once cannot mix their files; the
later one drops its result. Copies keep modification times, because ninja compares them.

A volume may be shared, damaged or hostile. Links, pipes, sockets and devices count as damage, so no read leaves the folder or
blocks. Markers have a size limit and are checked field by field. Files lose setuid, setgid and sticky bits, and write
permission for others. No copy takes more room than is free, or more time than the step has. Damaged results are built again.

Committing. `--sync DIR` and the cache's volume folder are fsync'ed, as coreutils' `sync DIR` does. From a shell, this commits
a Modal Volume v2 (modal.com/docs/guide/volumes, "In v2, you can commit using `sync`"). Volumes v1 cannot be committed from a
shell; the platform commits them in the background and when a container ends.

Exit codes. 0: built, or taken from the cache. 2: wrong use. 120: the command succeeded, but an output is missing or empty.
121: a probe failed. 122: the cache or a volume cannot be used or committed. 124: the deadline passed. 126: the command cannot
be run. 127: there is no such command. 128 + n: signal n ended this step or the command. Otherwise the command's own code.
Codes of sysexits.h for permanent failures (64 to 74, 77, 78) end the retries.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Literal, TypedDict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType

__all__ = ["MARKER", "Interrupted", "StepError", "main"]

MARKER = ".torpor-complete.json"
"""Name of the file that marks a cache folder as complete. It lists every other file and is written last."""

_BUILDING = ".torpor-building.json"
_OWN_PREFIX = ".torpor-"
_TEMPORARY_PREFIX = ".tmp-"
_STALE_TEMPORARY_S = 24 * 3600.0

_MISSING_OUTPUT, _PROBE_FAILED, _CACHE_FAILED, _TIMED_OUT, _NOT_RUNNABLE, _NOT_FOUND = 120, 121, 122, 124, 126, 127
_SIGNAL_BASE = 128
_PERMANENT = frozenset({*range(64, 75), 77, 78})

_SHOWN_CHARACTERS = 160
_TAIL_LINES = 40
_TAIL_LINE_BYTES = 2000
_READ_BYTES = 64 * 1024
_COPY_BYTES = 1024 * 1024
_COPY_THREADS = 8
_MARKER_BYTES = 64 * 1024 * 1024
_NAME_BYTES = 4096
_KEPT_MODE = 0o755
_OWNERS_MODE = 0o600
_LATEST_NS = 1 << 62
_PROBE_BYTES = 1024 * 1024
_LOCK_POLL_S = 0.2
_OTHER_BUILDER_S = 60.0
"""Seconds that another builder gets to copy its result, in addition to the time of its command."""
_RETRY_PAUSE_S = 1.0
_KILL_S = 10.0
_PROBE_TIMEOUT_S = 120.0
_PR_SET_CHILD_SUBREAPER = 36


class StepError(Exception):
    """The step failed; the message is one line.

    Attributes:
        code: the exit code.
        tail: the command's last output lines.
    """

    def __init__(self, code: int, message: str, tail: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.tail = tuple(tail)


class Interrupted(BaseException):
    """SIGTERM or SIGINT arrived. It is raised in the main thread, so every `finally` runs."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _File(TypedDict):
    size: int
    sha256: str
    mtime_ns: int
    mode: int


class _Marker(TypedDict):
    format: int
    key: str
    parts: list[str]
    probes: dict[str, str]
    created: str
    files: dict[str, _File]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the step that the command line describes and return the exit code."""
    options = _parse(sys.argv[1:] if argv is None else argv)
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _interrupt)
        _become_subreaper()
        _step(options)
    except StepError as error:
        _complain(options, str(error), error.tail)
        return error.code
    except Interrupted as signalled:
        _complain(options, f"ended by {signal.Signals(signalled.number).name}; nothing was published.")
        return _SIGNAL_BASE + signalled.number
    return 0


class _Options(argparse.Namespace):
    name: str
    timeout: float
    retries: int
    grace: float
    output: list[str]
    sync: list[str]
    cache_volume: Path | None
    cache_image: Path | None
    key: list[str]
    probe: list[str]
    command: list[str]


def _parse(argv: Sequence[str]) -> _Options:
    parser = argparse.ArgumentParser(
        prog="buildstep.py",
        description="Run one build step with a deadline, retries, a check of its outputs and a cache.",
        allow_abbrev=False,
    )
    parser.add_argument("--name", required=True, help="the step's name in errors")
    parser.add_argument("--timeout", type=float, required=True, metavar="S", help="seconds that one attempt may take")
    parser.add_argument("--retries", type=int, default=0, metavar="N", help="further attempts after a failure")
    parser.add_argument("--grace", type=float, default=10.0, metavar="S", help="seconds from SIGTERM to SIGKILL")
    parser.add_argument(
        "--output", action="append", default=[], metavar="PATH", help="must exist afterwards and not be empty"
    )
    parser.add_argument("--sync", action="append", default=[], metavar="DIR", help="volume to commit afterwards")
    parser.add_argument("--cache-volume", type=Path, metavar="DIR", help="folder on a volume, one sub-folder per key")
    parser.add_argument("--cache-image", type=Path, metavar="DIR", help="folder on local disk that the command fills")
    parser.add_argument("--key", action="append", default=[], metavar="PART", help="what the result depends on")
    parser.add_argument(
        "--probe", action="append", default=[], metavar="COMMAND", help="its output becomes part of the key"
    )
    parser.usage = f"{parser.format_usage().removeprefix('usage: ').rstrip()} -- COMMAND [ARGUMENT]..."
    mark = list(argv).index("--") if "--" in argv else len(argv)
    options = parser.parse_args(argv[:mark], namespace=_Options())
    options.command = list(argv[mark + 1 :])
    if not options.command:
        parser.error("the command to run is missing; it follows after a bare --.")
    if options.timeout <= 0 or options.retries < 0:
        parser.error(f"--timeout is {options.timeout:g} (above 0 is allowed), --retries {options.retries} (0 or more).")
    if (options.cache_volume is None) != (options.cache_image is None):
        parser.error("--cache-volume and --cache-image go together.")
    if options.cache_volume is None and (options.key or options.probe):
        parser.error("--key and --probe need --cache-volume and --cache-image.")
    return options


def _step(options: _Options) -> None:
    if options.cache_volume is not None and options.cache_image is not None:
        _cached_step(options, options.cache_volume.resolve(), options.cache_image.resolve())
    else:
        _run(options)
    for folder in options.sync:
        _commit(Path(folder))


def _say(options: _Options, text: str) -> None:
    print(f"torpor build step {options.name!r}: {text}", flush=True)


def _complain(options: _Options, text: str, tail: Sequence[str] = ()) -> None:
    """Repeat the command's last lines, then print the error last: people read build logs from the end."""
    lines = [f"    | {line}" for line in tail]
    print("\n".join([*lines, f"torpor build step {options.name!r}: {text}"]), file=sys.stderr, flush=True)


# --- the command ------------------------------------------------------------------------------------------------------


def _run(options: _Options) -> None:
    """Run the command until an attempt succeeds and its outputs are there.

    Raises:
        StepError: the last attempt failed. A passed deadline ends the retries: a second hang would take as long again.
    """
    for attempt in range(1, options.retries + 2):
        try:
            _attempt(options)
        except StepError as error:
            final = attempt > options.retries or error.code == _TIMED_OUT or error.code in _PERMANENT
            if final:
                times = f" (attempt {attempt} of {options.retries + 1})" if options.retries else ""
                raise StepError(error.code, f"{error}{times}", error.tail) from None
            _say(options, f"{error}; trying again, attempt {attempt + 1} of {options.retries + 1}.")
            time.sleep(_RETRY_PAUSE_S)
        else:
            return


def _attempt(options: _Options) -> None:
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    began = time.monotonic()
    shown = _shown(options.command)
    code = _execute(options.command, options.timeout, options.grace, lambda pipe: _stream(pipe, tail))
    took = f"after {time.monotonic() - began:.1f} s"
    if code is None:
        raise StepError(_TIMED_OUT, f"`{shown}` was ended {took}: its limit is {options.timeout:g} s.", tail)
    if code < 0:
        name = signal.Signals(-code).name if -code in signal.valid_signals() else str(-code)
        raise StepError(_SIGNAL_BASE - code, f"`{shown}` was killed by {name} {took}.", tail)
    if code:
        raise StepError(code, f"`{shown}` ended with exit code {code} {took}.", tail)
    if missing := _missing(options):
        raise StepError(
            _MISSING_OUTPUT,
            f"`{shown}` ended with exit code 0, but left nothing in {', '.join(missing)}: it did not do its work.",
            tail,
        )


def _shown(command: Sequence[str]) -> str:
    line = " ".join(shlex.join(command).split())
    return line if len(line) <= _SHOWN_CHARACTERS else f"{line[:_SHOWN_CHARACTERS]}..."


def _execute(
    command: Sequence[str],
    timeout_s: float,
    grace_s: float,
    reading: Callable[[IO[bytes] | None], None],
    reading_errors: Callable[[IO[bytes] | None], None] | None = None,
) -> int | None:
    """Run a command in a session of its own; return its exit code (negative for a signal), or None past the deadline.

    Its standard error joins its output, unless `reading_errors` reads it. Afterwards everything that it started is ended:
    helpers could hold the GPU or the output pipe.
    """
    strangers = _descendants(_processes())
    process: subprocess.Popen[bytes] | None = None
    readers: list[threading.Thread] = []
    gentle = signal.SIGTERM
    try:
        process = _start(command, subprocess.PIPE if reading_errors else subprocess.STDOUT)
        readers.append(threading.Thread(target=reading, args=(process.stdout,), daemon=True))
        if reading_errors:
            readers.append(threading.Thread(target=reading_errors, args=(process.stderr,), daemon=True))
        for reader in readers:
            reader.start()
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return None
    except Interrupted as signalled:
        gentle = signal.Signals(signalled.number)
        raise
    finally:
        try:
            _end_tree(process, gentle, grace_s, strangers)
        except Interrupted:  # this is the first signal; later ones are ignored
            _end_tree(process, gentle, grace_s, strangers)
            raise
        for reader in readers:
            with contextlib.suppress(RuntimeError):  # it has not started: the signal came first
                reader.join(grace_s)


def _start(command: Sequence[str], errors: int) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            command,
            env={
                **os.environ,
                "PYTHONUNBUFFERED": "1",
            },  # else Python buffers what it writes to a pipe, and a kill loses it
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
    except FileNotFoundError:
        raise StepError(_NOT_FOUND, f"there is no program {command[0]!r} in the image.") from None
    except OSError as error:
        raise StepError(_NOT_RUNNABLE, f"{command[0]!r} cannot be run: {error.strerror}.") from None


def _stream(pipe: IO[bytes] | None, tail: deque[str]) -> None:
    """Print the output as it arrives and keep its last lines; of a progress bar keep the last state."""
    if pipe is None:
        return
    pending = b""
    while chunk := os.read(pipe.fileno(), _READ_BYTES):
        with contextlib.suppress(OSError):  # the build goes on if nobody reads its output any more
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
        *lines, pending = (pending + chunk).split(b"\n")
        tail.extend(_readable(line) for line in lines[-_TAIL_LINES:])
        pending = pending[-_TAIL_LINE_BYTES:]
    if pending.strip():
        tail.append(_readable(pending))


def _readable(line: bytes) -> str:
    return line.rstrip(b"\r").rpartition(b"\r")[2][:_TAIL_LINE_BYTES].decode(errors="replace")


def _end_tree(
    process: subprocess.Popen[bytes] | None, gentle: signal.Signals, grace_s: float, strangers: set[int]
) -> None:
    """Signal everything that the command started, wait, then kill what is left until nothing is."""
    _signal_all(process, gentle, strangers)
    deadline = time.monotonic() + grace_s
    while _living(process, strangers) and time.monotonic() < deadline:
        time.sleep(0.02)
    deadline = time.monotonic() + _KILL_S
    while _living(process, strangers) and time.monotonic() < deadline:
        _signal_all(process, signal.SIGKILL, strangers)
        time.sleep(0.02)


def _signal_all(process: subprocess.Popen[bytes] | None, number: signal.Signals, strangers: set[int]) -> None:
    for pid in _living(process, strangers):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _living(process: subprocess.Popen[bytes] | None, strangers: set[int]) -> list[int]:
    """Find the members of the command's session and the descendants that left it; reap the zombies that this process inherited.

    Without `process` only descendants are found: a signal came during its start. The command is one of them.
    """
    leader = None if process is None else process.pid
    if process is not None:
        process.poll()
    table = _processes()
    members = {pid for pid, (_, _, session) in table.items() if session == leader}
    members |= _descendants(table)
    members -= strangers
    for pid in members:
        state, parent, _ = table[pid]
        if state == "Z" and parent == os.getpid() and pid != leader:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
    return [pid for pid in members if table[pid][0] not in "ZX"]


def _descendants(table: dict[int, tuple[str, int, int]]) -> set[int]:
    """Every process below this one. This one is a subreaper and inherits orphans, so none escapes by setsid(2)."""
    children: dict[int, list[int]] = {}
    for pid, (_, parent, _) in table.items():
        children.setdefault(parent, []).append(pid)
    found: set[int] = set()
    waiting = [os.getpid()]
    while waiting:
        below = children.get(waiting.pop(), [])
        found.update(below)
        waiting += below
    return found


def _processes() -> dict[int, tuple[str, int, int]]:
    """State, parent and session of every process, from /proc/PID/stat (proc(5)). The name in it may contain any character."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
                found[int(entry.name)] = (fields[0], int(fields[1]), int(fields[3]))
    return found


def _become_subreaper() -> None:
    """Inherit orphaned descendants (prctl(2)). Where this fails, only the members of the session are found."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    for other in (signal.SIGTERM, signal.SIGINT):
        signal.signal(other, signal.SIG_IGN)  # the clean-up starts now and has its own deadlines
    raise Interrupted(number)


def _missing(options: _Options) -> list[str]:
    return [path for path in options.output if not _has_content(Path(path))]


def _has_content(path: Path) -> bool:
    """Whether `path` is a file that is not empty, or a folder with such a file; Torpor's own markers do not count."""
    if not path.is_dir():
        return path.is_file() and path.stat().st_size > 0
    for folder, _, names in os.walk(path):
        for name in names:
            file = Path(folder, name)
            if not name.startswith(_OWN_PREFIX) and file.is_file() and file.stat().st_size > 0:
                return True
    return False


# --- the cache --------------------------------------------------------------------------------------------------------


def _cached_step(options: _Options, volume: Path, image: Path) -> None:
    if image in (Path("/"), Path.home().resolve()) or volume.is_relative_to(image) or image.is_relative_to(volume):
        raise StepError(
            _CACHE_FAILED,
            f"{image} cannot be a cache's image folder: it is emptied before a build, so it must be a separate folder, "
            f"neither above nor below the volume's ({volume}).",
        )
    probes = {command: _probe(command, options.grace) for command in options.probe}
    key = _key(options.key, probes)
    with _folder_errors(volume, image), _locked(image, options):
        made = _read_marker(image, key)
        if made and _damage(image, made, "grown") is None and not _missing(options):
            _say(options, f"{image} holds the result of key {key[:12]} already; nothing to do.")
            return
        if _restore(options, volume / key, image, key):
            return
        trial = _new_temporary(volume, key)
        try:
            _prepare(image, key)
            began = time.monotonic()
            _run(options)
            marker = _describe(image, key, options.key, probes)
            if not marker["files"]:
                raise StepError(_MISSING_OUTPUT, f"`{_shown(options.command)}` left nothing in {image}.")
            _write_json(image / MARKER, marker)
            (image / _BUILDING).unlink(missing_ok=True)
            _say(options, f"built {_summary(marker)} in {time.monotonic() - began:.1f} s.")
            _publish(options, image, trial, volume / key, marker)
        finally:
            shutil.rmtree(trial, ignore_errors=True)
        _commit(volume)


@contextlib.contextmanager
def _folder_errors(volume: Path, image: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = error.filename or f"{volume} or {image}"
        cure = "free space on the volume" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check the volume's mount"
        raise StepError(_CACHE_FAILED, f"the cache cannot be used: {error.strerror} ({where}); {cure}.") from error


@contextlib.contextmanager
def _locked(image: Path, options: _Options) -> Iterator[None]:
    """Let one builder at a time into the image folder. A second one waits, and then finds the first one's marker.

    Raises:
        StepError: the first one took longer than all its attempts may take.
    """
    image.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + (options.timeout + options.grace) * (options.retries + 1) + _OTHER_BUILDER_S
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    lock = os.open(image.with_name(f".{image.name}.torpor-lock"), flags, 0o600)
    try:
        while not _lock(lock):
            if time.monotonic() > deadline:
                raise StepError(_TIMED_OUT, f"another builder of {image} is still running; wait for it or end it.")
            time.sleep(_LOCK_POLL_S)
        yield
    finally:
        os.close(lock)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _probe(command: str, grace_s: float) -> str:
    """Run a probe in the image and return what it prints: facts that the key parts cannot contain, e.g. a version.

    Raises:
        StepError: it cannot be run, fails, hangs, prints nothing or too much.
    """
    seen: list[bytes] = []
    complaints: list[bytes] = []
    try:
        code = _execute(
            shlex.split(command) or [""],
            _PROBE_TIMEOUT_S,
            grace_s,
            lambda pipe: _keep(pipe, seen),
            lambda pipe: _keep(pipe, complaints),
        )
    except (StepError, ValueError) as error:
        why = error.__context__.strerror if isinstance(error.__context__, OSError) else str(error)
        raise StepError(_PROBE_FAILED, f"the probe `{command}` cannot be run in the image: {why}.") from None
    output = b"".join(seen)
    text = output.decode(errors="replace").strip()
    what = None
    if code is None:
        what = f"did not end within {_PROBE_TIMEOUT_S:g} s"
    elif len(output) > _PROBE_BYTES:
        what = f"printed more than {_PROBE_BYTES} bytes"
    elif code:
        what = f"ended with exit code {code}"
    elif not text:
        what = "printed nothing"
    if what is not None:
        said = (output + b"".join(complaints)).decode(errors="replace").strip()
        lines = [line[:_TAIL_LINE_BYTES] for line in said.splitlines()[-_TAIL_LINES:]]
        raise StepError(_PROBE_FAILED, f"the probe `{command}` {what}; the cache key needs its output.", lines)
    return text


def _keep(pipe: IO[bytes] | None, seen: list[bytes]) -> None:
    """Keep the output up to a limit, and read the rest too: a full pipe would block the command."""
    kept = 0
    while pipe is not None and (chunk := os.read(pipe.fileno(), _READ_BYTES)):
        if kept <= _PROBE_BYTES:
            seen.append(chunk)
            kept += len(chunk)


def _key(parts: Sequence[str], probes: dict[str, str]) -> str:
    document = json.dumps({"parts": list(parts), "probes": probes}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(document.encode()).hexdigest()


def _restore(options: _Options, source: Path, image: Path, key: str) -> bool:
    """Copy a result from the volume to the image; False if there is none or it is damaged."""
    marker = _read_marker(source, key)
    if marker is None:
        _say(options, f"no result of key {key[:12]} in {source.parent}.")
        return False
    damage = _damage(source, marker, "size")
    began = time.monotonic()
    if damage is None:
        _empty(image)
        damage = _no_room(image, marker) or _copy_all(source, image, marker, deadline=began + options.timeout)
    if damage is not None:
        _say(options, f"{source} is damaged, so the step runs again: {damage}.")
        return False
    if missing := _missing(options):
        raise StepError(
            _MISSING_OUTPUT,
            f"{source} is complete but lacks {', '.join(missing)}: outputs of a cached step must be in {image}.",
        )
    _write_json(image / MARKER, marker)
    _say(options, f"took {_summary(marker)} from {source} in {time.monotonic() - began:.1f} s.")
    return True


def _prepare(image: Path, key: str) -> None:
    """Empty the image folder, unless an interrupted build of the same key left its files: JIT caches continue from them."""
    begun = _read_json(image / _BUILDING)
    if not (isinstance(begun, dict) and begun.get("key") == key):
        _empty(image)
        _write_json(image / _BUILDING, {"key": key})


def _publish(options: _Options, image: Path, trial: Path, target: Path, marker: _Marker) -> None:
    """Copy the result to the volume under a temporary name, then rename it. A sound result of another builder stays."""
    deadline = time.monotonic() + options.timeout
    damage = _copy_all(image, trial, marker, deadline=deadline, links=True)
    if damage is not None:
        raise StepError(_CACHE_FAILED, f"{image} changed while it was copied to the volume: {damage}.")
    _write_json(trial / MARKER, marker)
    os.sync()  # the files must be on disk before the rename publishes them
    for _ in range(3):
        try:
            trial.rename(target)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
            if (theirs := _read_marker(target, marker["key"])) and _damage(target, theirs, "content") is None:
                _say(options, f"another builder published {target} first; its result stays.")
                return
            aside = trial.with_name(f"{trial.name}-damaged")
            with contextlib.suppress(FileNotFoundError):
                target.rename(aside)
            with contextlib.suppress(OSError):
                aside.unlink()  # it was a file or a link, not a folder
            shutil.rmtree(aside, ignore_errors=True)
        else:
            _say(options, f"published {target}.")
            return
    raise StepError(_CACHE_FAILED, f"{target} cannot be replaced: other builders keep writing damaged results there.")


def _new_temporary(volume: Path, key: str) -> Path:
    """Make the folder that will be published, so that a full or read-only volume fails before hours of work.

    Temporary folders of killed builders are removed once they are a day old.
    """
    volume.mkdir(parents=True, exist_ok=True)
    for old in volume.glob(f"{_TEMPORARY_PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > _STALE_TEMPORARY_S:
                shutil.rmtree(old, ignore_errors=True)
    trial = volume / f"{_TEMPORARY_PREFIX}{key[:12]}-{os.uname().nodename}-{os.getpid()}-{os.urandom(4).hex()}"
    trial.mkdir()
    _write_json(trial / _BUILDING, {"key": key})
    (trial / _BUILDING).unlink()
    return trial


def _describe(image: Path, key: str, parts: Sequence[str], probes: dict[str, str]) -> _Marker:
    files: dict[str, _File] = {}
    for folder, _, names in os.walk(image):
        for name in sorted(names):
            path = Path(folder, name)
            if name.startswith(_OWN_PREFIX) or not path.is_file():
                continue
            seen = path.stat()
            files[path.relative_to(image).as_posix()] = {
                "size": seen.st_size,
                "sha256": _sha256(image, path.relative_to(image).as_posix(), links=True),
                "mtime_ns": max(0, seen.st_mtime_ns),
                "mode": _plain_mode(seen.st_mode),
            }
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"format": 1, "key": key, "parts": list(parts), "probes": probes, "created": created, "files": files}


def _read_marker(folder: Path, key: str) -> _Marker | None:
    """The folder's marker for this key; None for anything else, such as half-written JSON."""
    marker = _read_json(folder / MARKER)
    if not isinstance(marker, dict) or marker.get("format") != 1 or marker.get("key") != key:
        return None
    try:
        files: dict[str, _File] = {_inside(name): _entry(entry) for name, entry in marker["files"].items()}
        if not _folders(files).isdisjoint(files):
            return None  # a name is both a file and a folder
        return {
            "format": 1,
            "key": key,
            "parts": [str(part) for part in marker["parts"]],
            "probes": {str(command): str(output) for command, output in marker["probes"].items()},
            "created": str(marker["created"]),
            "files": files,
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or str(path) != name:
        raise ValueError(f"{name!r} leads out of the folder")
    if "\0" in name or len(os.fsencode(name)) > _NAME_BYTES or any(part.startswith(_OWN_PREFIX) for part in path.parts):
        raise ValueError(f"{name!r} is not a valid name for a file of a result")
    return name


def _folders(files: dict[str, _File]) -> set[str]:
    """Every folder that contains one of the files."""
    return {str(folder) for name in files for folder in PurePosixPath(name).parents}


def _entry(entry: dict[str, object]) -> _File:
    size, mtime_ns, mode, digest = entry["size"], entry["mtime_ns"], entry["mode"], entry["sha256"]
    if not (isinstance(size, int) and isinstance(mtime_ns, int) and isinstance(mode, int) and isinstance(digest, str)):
        raise TypeError("a field has the wrong type")
    if size < 0 or not 0 <= mtime_ns < _LATEST_NS or mode < 0:
        raise ValueError("a size, time or mode is out of range")
    return {"size": size, "sha256": digest, "mtime_ns": mtime_ns, "mode": _plain_mode(mode)}


def _plain_mode(mode: int) -> int:
    """A file's mode without setuid, setgid and sticky bits, and not writable by others."""
    return mode & _KEPT_MODE | _OWNERS_MODE


def _damage(folder: Path, marker: _Marker, check: Literal["grown", "size", "content"]) -> str | None:
    """What is wrong with a folder, or None; `grown` allows longer files, because logs grow while an engine serves."""
    for name, entry in marker["files"].items():
        try:
            facts = (folder / name).stat() if check == "grown" else (folder / name).lstat()
            if not stat.S_ISREG(facts.st_mode):
                return f"{name} is not a regular file"
            size = facts.st_size
            if size < entry["size"] or (check != "grown" and size != entry["size"]):
                return f"{name} has {size} bytes, {entry['size']} expected"
            if check == "content" and _sha256(folder, name) != entry["sha256"]:
                return f"{name} has a different SHA-256 than recorded"
        except OSError as error:
            return f"{name}: {error.strerror}"
    return None if marker["files"] else "its marker lists no file"


def _no_room(image: Path, marker: _Marker) -> str | None:
    """What to report if a result does not fit on the image's disk, or None. A sparse file may claim any size."""
    total, free = sum(entry["size"] for entry in marker["files"].values()), shutil.disk_usage(image).free
    return f"it has {total} bytes, and {image} has {free} free" if total > free else None


def _copy_all(source: Path, target: Path, marker: _Marker, *, deadline: float, links: bool = False) -> str | None:
    """Copy every listed file with its modification time and mode; return the first difference in content, or None.

    Args:
        source: folder to copy from.
        target: folder to copy to; it holds none of the files yet.
        marker: lists the files.
        deadline: on the monotonic clock.
        links: whether to follow links; right for a folder that the step itself has just filled.

    Raises:
        StepError: the deadline passed.
    """
    for folder in sorted({(target / name).parent for name in marker["files"]}):
        folder.mkdir(parents=True, exist_ok=True)

    def copy(item: tuple[str, _File]) -> str | None:
        return _copy(source, target, *item, deadline=deadline, links=links)

    with ThreadPoolExecutor(_COPY_THREADS) as pool:
        return next((damage for damage in pool.map(copy, marker["files"].items()) if damage is not None), None)


def _copy(source: Path, target: Path, name: str, entry: _File, *, deadline: float, links: bool) -> str | None:
    digest = hashlib.sha256()
    left = entry["size"]
    try:
        reader = _opened(source, name, links=links)
    except OSError as error:
        return f"{name}: {error.strerror}"
    with reader, (target / name).open("xb") as writer:
        while block := reader.read(min(_COPY_BYTES, left + 1)):
            left -= len(block)
            if left < 0:
                return f"{name} has more than the {entry['size']} bytes that were recorded"
            if time.monotonic() > deadline:
                raise StepError(_TIMED_OUT, f"{source} could not be copied to {target} in time; it is too slow.")
            digest.update(block)
            writer.write(block)
    (target / name).chmod(entry["mode"])
    os.utime(target / name, ns=(entry["mtime_ns"], entry["mtime_ns"]))
    return None if digest.hexdigest() == entry["sha256"] else f"{name} has a different SHA-256 than recorded"


def _sha256(folder: Path, name: str, *, links: bool = False) -> str:
    digest = hashlib.sha256()
    with _opened(folder, name, links=links) as reader:
        while block := reader.read(_COPY_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _opened(folder: Path, name: str, *, links: bool = False) -> IO[bytes]:
    """Open a regular file below a folder without blocking on a pipe. Without `links`, follow no link in any part of the name.

    Raises:
        OSError: it does not exist or is not a regular file.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    if links:
        return _regular(os.open(folder / name, flags))
    *folders, leaf = PurePosixPath(name).parts
    descriptor = os.open(folder, flags | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        for part in folders:
            inner = os.open(part, flags | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        if not stat.S_ISREG(os.stat(leaf, dir_fd=descriptor, follow_symlinks=False).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", name)
        return _regular(os.open(leaf, flags | os.O_NOFOLLOW, dir_fd=descriptor))
    finally:
        os.close(descriptor)


def _regular(descriptor: int) -> IO[bytes]:
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise OSError(errno.EINVAL, "it is not a regular file")


def _read_json(path: Path) -> object:
    """The JSON content of a regular file; None if the file is missing, too long, or not JSON."""
    try:
        with _opened(path.parent, path.name) as reader:
            data = reader.read(_MARKER_BYTES + 1)
        document: object = None if len(data) > _MARKER_BYTES else json.loads(data)
    except (OSError, ValueError, RecursionError):
        return None
    return document


def _write_json(path: Path, document: object) -> None:
    """Write a temporary file, flush it and rename it, so that a reader never sees half a file."""
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    beside.unlink(missing_ok=True)
    with beside.open("x") as writer:  # "x": never write into a link or a pipe that somebody put there
        json.dump(document, writer, indent=1, sort_keys=True)
        writer.flush()
        os.fsync(writer.fileno())
    beside.replace(path)


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _summary(marker: _Marker) -> str:
    total = sum(entry["size"] for entry in marker["files"].values())
    return f"{len(marker['files'])} files, {total / 1e6:.1f} MB, key {marker['key'][:12]}"


def _commit(folder: Path) -> None:
    """Do what coreutils' `sync DIR` does (open, fsync); this commits a Modal Volume v2.

    Raises:
        StepError: the file system refused; the written data may be lost with the container.
    """
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno == errno.EINVAL:  # this file system cannot fsync folders: flush everything instead
            os.sync()
            return
        raise StepError(_CACHE_FAILED, f"the volume at {folder} could not be committed: {error.strerror}.") from error


if __name__ == "__main__":
    sys.exit(main())
