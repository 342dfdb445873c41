"""CRIU: finding it, its options, dump and restore inside a sandbox, and what its log says when it fails.

CRIU 4.2 is the least: 3.x fails on the vDSO of new kernels, 4.1 on every INET socket from kernel 6.16 on (CRIU issue
2705: SO_PASSCRED), though `criu check` calls itself content in both cases.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from torpor.errors import ConfigurationError, SnapshotError
from torpor.snapshots.sandbox.sandbox import FIRST_PID
from torpor.telemetry.events import log

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torpor.snapshots.sandbox.sandbox import Finished, Mode, Sandbox

__all__ = [
    "DUMP_LOG",
    "GHOST_BYTES",
    "LEAST",
    "PREFIX_VARIABLE",
    "RESTORE_LOG",
    "SIDE_FILES",
    "Criu",
    "Dumped",
    "Restored",
    "Tcp",
    "boot_id",
    "candidates",
    "dump",
    "expected_bytes",
    "find",
    "in_prefix",
    "memory_bytes",
    "resolved",
    "restore",
    "version_of",
]

LEAST = (4, 2, 0)
"""The oldest CRIU that is used."""

PREFIX_VARIABLE = "TORPOR_CRIU_PREFIX"
"""A prefix that goes before every other place."""

SIDE_FILES = "side.tar"
"""Name of the archive of the private folders, in the folder of the images."""

LINK = "memory"
"""Name in the scratch folder under which a replica finds the folder of the images, which it maps its memory from."""

GHOST_BYTES = 2047 << 20
"""Largest deleted file whose content goes into a snapshot; CRIU's own limit is 1 MiB."""

DUMP_LOG, RESTORE_LOG = "dump.log", "restore.log"

Tcp = Literal["close", "established"]
"""What becomes of TCP connections inside the tree: closed (the default), or kept (tensor parallelism over gloo)."""

_SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")
_VERSION_TIMEOUT_S = 10.0
_OPTIONS = ("--file-locks", "--ext-unix-sk", "--link-remap", "--skip-in-flight", "--ghost-limit", str(GHOST_BYTES))
_TCP_OPTIONS: dict[Tcp, tuple[str, ...]] = {
    "close": ("--tcp-close",),
    "established": ("--tcp-established", "--network-lock", "skip"),
}
_MODE_OPTIONS: dict[Mode, tuple[str, ...]] = {"root": (), "rootless": ("--unprivileged",)}
_NO_PLUGINS = "/proc/self/ns"  # a folder that is always there and holds no library
_LOG_BYTES = 4 << 20
_REASONS = 6
_HARMLESS = re.compile(r"rlimit")
_LEAVE_DUMPED_S = 30.0
_BLOCK = 512  # of st_blocks (stat(2))


class Criu(NamedTuple):
    """A usable CRIU.

    Attributes:
        argv: how it is started: the program, with its own loader where it lies in a private prefix.
        program: the file itself.
        version: major, minor, patch.
        cache: folder in which its findings about the running kernel are kept (25 ms per run); None: found anew each time.
    """

    argv: tuple[str, ...]
    program: Path
    version: tuple[int, int, int]
    cache: Path | None = None

    def identity(self) -> str:
        """A key for what holds for this very program until the next boot; 16 hex digits."""
        import hashlib  # noqa: PLC0415 - a restore as root has no use for it

        facts = self.program.stat()
        text = f"{boot_id()} {self.program} {self.version} {facts.st_size} {facts.st_mtime_ns} {os.geteuid()}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class Dumped(NamedTuple):
    """What a dump gave.

    Attributes:
        criu_s: seconds that CRIU took; the tree stands still for most of it.
        side_files_s: seconds for packing the private folders; the tree stands still.
        mapping_s: seconds for having replicas map the memory; the tree stands still.
        image_bytes: size of the images.
        mapped_bytes: what of it replicas map instead of copying it (`torpor.snapshots.criu.mapped_memory`).
        side_file_bytes: size of the archive of the private folders.
    """

    criu_s: float
    side_files_s: float
    mapping_s: float
    image_bytes: int
    mapped_bytes: int
    side_file_bytes: int


class Restored(NamedTuple):
    """What a restore took, in seconds: the side files are laid before CRIU starts."""

    criu_s: float
    side_files_s: float


def boot_id() -> str:
    """What the kernel calls this boot (random(4)); empty where /proc does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def find(prefix: Path | None = None, *, cache: Path | None = None) -> Criu:
    """The CRIU to use: TORPOR_CRIU_PREFIX, then `prefix` (where `torpor snapshot setup` put one), then PATH.

    Args:
        prefix: a private prefix made by `torpor.snapshots.criu_install.install.install`.
        cache: see `Criu.cache`; a private folder, made when missing.

    Raises:
        SnapshotError: none was found, or none that is new enough; each one seen is named with its version. Or somebody else
            could change one in a prefix.
    """
    seen = []
    for folder, argv in _found(prefix):
        if folder is not None and (why := _distrusted(folder, argv)):
            raise SnapshotError(
                f"The CRIU in {folder} is not run: {why}. Make it and the folders above it writable by their owner alone (chmod "
                f"go-w), or name a prefix in a folder of your own ({PREFIX_VARIABLE})."
            )
        program = Path(argv[-1])
        version = version_of(argv)
        if version and version >= LEAST:
            return Criu(argv=argv, program=program, version=version, cache=cache)
        seen.append(f"{program} ({'.'.join(map(str, version)) if version else 'does not run'})")
    least = ".".join(map(str, LEAST[:2]))
    raise SnapshotError(
        f"CRIU {least} or newer is needed; "
        + (f"found only {', '.join(seen)}" if seen else "none was found")
        + ". `torpor snapshot setup` gets one into a private folder, without root (x86-64); or install your "
        f"distribution's package if it is {least} or newer."
    )


def in_prefix(prefix: Path) -> tuple[str, ...] | None:
    """How to start the CRIU of a prefix, or None when there is none: a private one through its own loader."""
    prefix = resolved(prefix)
    root = prefix / "root"
    program = root / "usr/sbin/criu"
    if os.access(program, os.X_OK):
        for libraries in sorted(root.glob("usr/lib/*-linux-gnu")):
            for loader in sorted(libraries.glob("ld-linux*.so.*")):
                return str(loader), "--library-path", str(libraries), str(program)
    for program in (prefix / "sbin/criu", prefix / "bin/criu"):
        if os.access(program, os.X_OK):
            return (str(program),)
    return None


def dump(
    criu: Criu,
    sandbox: Sandbox,
    images: Path,
    *,
    timeout_s: float,
    leave_running: bool = False,
    tcp: Tcp = "close",
    copy_memory: bool = False,
) -> Dumped:
    """Dump a sandbox's tree and its private folders.

    Args:
        criu: from `find`.
        sandbox: with a tree in it.
        images: an empty or missing folder; made 0700, its files 0600. CRIU's log is `dump.log` in it. A disk that was
            mounted after the sandbox was made is not seen in it.
        timeout_s: seconds for CRIU; it is killed then.
        leave_running: let the tree run on; it is ended otherwise. The sandbox stays in both cases.
        tcp: what becomes of the tree's TCP connections.
        copy_memory: have CRIU copy the memory into each replica, instead of letting replicas map it.

    Raises:
        SnapshotError: with CRIU's own reason. The images are removed but for `dump.log`. When CRIU gave up by itself, the
            tree runs on as before; when it was killed in the middle (deadline, somebody's SIGKILL), the tree cannot be
            trusted and the sandbox is ended (`sandbox.alive` says which).
    """
    if (code := sandbox.poll()) is not None:
        raise SnapshotError(f"There is nothing to dump: the tree of sandbox {sandbox.name!r} ended with code {code}.")
    _make_empty(images)
    argv = ["dump", "--tree", str(FIRST_PID), "--images-dir", str(images), "--leave-stopped"]
    argv += [*_options(sandbox.mode, tcp), "-v2", "--log-file", DUMP_LOG]
    with _emptied_on_failure(images):
        started = time.perf_counter()
        _run(criu, argv, sandbox, images / DUMP_LOG, timeout_s)
        dumped = time.perf_counter()
        try:
            side_file_bytes = sandbox.pack_side_files(images / SIDE_FILES)
            packed = time.perf_counter()
            mapped_bytes = _map_memory(images, sandbox, anew=not copy_memory)
        except BaseException:
            sandbox.signal_tree(signal.SIGCONT)
            raise
        done = time.perf_counter()
    sandbox.signal_tree(signal.SIGCONT if leave_running else signal.SIGKILL)
    if not leave_running:
        sandbox.wait(_LEAVE_DUMPED_S)
    image_bytes = 0
    for file in images.iterdir():
        file.chmod(0o600)
        image_bytes += file.stat().st_blocks * _BLOCK if file.suffix == ".img" else 0
    return Dumped(
        criu_s=dumped - started,
        side_files_s=packed - dumped,
        mapping_s=done - packed,
        image_bytes=image_bytes,
        mapped_bytes=mapped_bytes,
        side_file_bytes=side_file_bytes,
    )


def restore(
    criu: Criu, sandbox: Sandbox, images: Path, *, work: Path, timeout_s: float, tcp: Tcp = "close"
) -> Restored:
    """Lay the side files and restore the tree into an empty sandbox; `sandbox.poll` and `wait` follow it from then on.

    Any number may run at once from the same images: nothing is written there.

    Args:
        criu: from `find`.
        sandbox: fresh, made with the same `mode`, `scratch` and `private` as the dumped one.
        images: what `dump` wrote.
        work: an existing private folder, one per replica; CRIU's log is `restore.log` in it.
        timeout_s: seconds for CRIU; it is killed then. CRIU 4.2.1 reads for ever when the pages were cut off, so let the
            sizes be checked before.
        tcp: as at the dump.

    Raises:
        SnapshotError: with CRIU's own reason. Nothing is left running: the sandbox is ended.
    """
    argv = ["restore", "--images-dir", str(images), "--work-dir", str(work), "--restore-detached"]
    argv += [*_options(sandbox.mode, tcp), "-v1", "--log-file", RESTORE_LOG]
    try:
        started = time.perf_counter()
        sandbox.unpack_side_files(images / SIDE_FILES)
        link = sandbox.outside(sandbox.scratch) / LINK
        link.unlink(missing_ok=True)  # of the images that a dumped replica itself came from
        link.symlink_to(images.absolute())
        laid = time.perf_counter()
        _run(criu, argv, sandbox, work / RESTORE_LOG, timeout_s)
        restored = time.perf_counter()
    except BaseException:
        sandbox.kill()
        raise
    return Restored(criu_s=restored - laid, side_files_s=laid - started)


def expected_bytes(sandbox: Sandbox) -> int:
    """About how much room a dump of the tree will take: its anonymous and shared memory, and the private folders.

    Pages that a fork shares with its parent count for both: CRIU writes them twice.
    """
    tree = [pid for inside, pid in sandbox.host_pids().items() if inside != 1]
    return sandbox.side_file_bytes() + sum(map(memory_bytes, tree))


def memory_bytes(pid: int) -> int:
    """Memory of a process that a dump writes, swapped or not, in bytes: anonymous, shared, and mapped from a snapshot.

    0 for one that cannot be looked at.
    """
    from torpor.snapshots.criu.mapped_memory import mapped_bytes  # noqa: PLC0415 - a restore has no use for it

    with contextlib.suppress(OSError):
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        in_kb = re.findall(r"^(?:Anonymous|Swap|Pss_Shmem): +(\d+) kB", rollup, re.MULTILINE)
        return 1024 * sum(map(int, in_kb)) + mapped_bytes(pid)
    return 0


def candidates(prefix: Path | None = None) -> Iterator[tuple[str, ...]]:
    """How to start each CRIU that `find` looks at, in its order; none of a prefix that others could change."""
    for folder, argv in _found(prefix):
        if folder is None or _distrusted(folder, argv) is None:
            yield argv


def _found(prefix: Path | None) -> Iterator[tuple[Path | None, tuple[str, ...]]]:
    """Each CRIU with the prefix that it lies in; None for the one on the PATH, which is the system's."""
    chosen = os.environ.get(PREFIX_VARIABLE)
    for folder in (Path(chosen) if chosen else None, prefix):
        if folder and (argv := in_prefix(folder)):
            yield folder, argv
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *_SYSTEM_FOLDERS))
    if program := shutil.which("criu", path=path):
        yield None, (program,)


def resolved(prefix: Path) -> Path:
    """A prefix without `..` and links, from the root on: what is looked at, made and run is then the same folder."""
    return Path(os.path.realpath(prefix))


def _distrusted(prefix: Path, argv: Sequence[str]) -> str | None:
    """Why the CRIU of a prefix may not be run, its loader and its libraries included; None when it may."""
    from torpor.snapshots.criu.trusted import distrust  # noqa: PLC0415 - only where there is a prefix

    files = [word for word in argv if word.startswith("/")]
    try:
        files += [entry.path for folder in tuple(files) if os.path.isdir(folder) for entry in os.scandir(folder)]  # noqa: PTH112
    except OSError as error:
        return f"{prefix} cannot be read ({error.strerror})"
    place, passed = _without_dots(prefix)
    return distrust([*passed, place, *files], below=Path(place))


def _without_dots(prefix: Path) -> tuple[str, list[str]]:
    """A path without `..` that keeps its links otherwise, and the links that a `..` comes after: the kernel goes up from there."""
    place = "/" if prefix.is_absolute() else os.getcwd()  # noqa: PTH109 - text, as in `distrust`
    passed: list[str] = []
    for part in prefix.parts:
        if part != "..":
            place = os.path.join(place, part)  # noqa: PTH118
            continue
        real = os.path.realpath(place)
        passed += [place] if real != place else []
        place = os.path.dirname(real)  # noqa: PTH120
    return place, passed


def version_of(argv: Sequence[str]) -> tuple[int, int, int] | None:
    """Ask it; None when it does not run (wrong architecture, missing libraries, ...)."""
    from torpor.engine.child_process import run_child  # noqa: PLC0415 - a restore seldom asks

    try:
        said = run_child([*argv, "--version"], timeout_s=_VERSION_TIMEOUT_S).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    if match := re.search(rb"Version: (\d+)\.(\d+)(?:\.(\d+))?", said):
        major, minor, patch = match.groups(default=b"0")
        return int(major), int(minor), int(patch)
    return None


def _map_memory(images: Path, sandbox: Sandbox, *, anew: bool) -> int:
    from torpor.snapshots.criu.mapped_memory import map_memory  # noqa: PLC0415 - a restore has no use for it

    try:
        found = map_memory(images, sandbox.scratch / LINK, filtered=sandbox.filtered, anew=anew)
    except OSError as error:
        raise SnapshotError(f"The images in {images} cannot be rewritten: {error.strerror or error}.") from error
    for pid, reason in found.kept.items():
        log("info", "memory_copied", pid=pid, reason=reason)
    return found.bytes


def _options(mode: Mode, tcp: Tcp) -> tuple[str, ...]:
    return (*_OPTIONS, *_TCP_OPTIONS[tcp], *_MODE_OPTIONS[mode])


def _run(criu: Criu, arguments: Sequence[str], sandbox: Sandbox, log: Path, timeout_s: float) -> None:
    """Run CRIU in the sandbox; end the sandbox if it was killed in the middle.

    Raises:
        SnapshotError: it failed.
    """
    action = arguments[0]
    try:
        with _kernel_findings(criu, sandbox) as env:
            finished = sandbox.run([*criu.argv, *arguments], env=env, timeout_s=timeout_s)
    except TimeoutError:
        sandbox.kill()
        raise SnapshotError(
            f"CRIU's {action} of sandbox {sandbox.name!r} was not done after {timeout_s:g} s; it was killed, and the sandbox "
            f"with it. Its last words: {_last_line(log)} ({log})"
        ) from None
    except ConfigurationError as error:
        raise SnapshotError(f"CRIU's {action} of sandbox {sandbox.name!r} did not start: {error}") from error
    except BaseException:  # Ctrl-C: CRIU is being killed, and the tree cannot be trusted any more
        sandbox.kill()
        raise
    if finished.code < 0:
        sandbox.kill()
        raise SnapshotError(
            f"CRIU's {action} of sandbox {sandbox.name!r} was ended by {signal.Signals(-finished.code).name} from outside (the "
            f"kernel does that when memory runs out); the sandbox was ended with it. Last words: {_last_line(log)} ({log})"
        )
    if finished.code != 0:
        raise SnapshotError(
            f"CRIU's {action} of sandbox {sandbox.name!r} failed with exit code {finished.code}:\n"
            + "\n".join(f"  {line}" for line in _reasons(log, finished))
            + f"\n{_advice(log, sandbox)}The whole log: {log}"
        )


@contextlib.contextmanager
def _kernel_findings(criu: Criu, sandbox: Sandbox) -> Iterator[dict[str, str]]:
    """The environment for CRIU, in which it finds and leaves what it knows of this kernel (`criu.kdat`).

    As root it uses /run by itself. Otherwise it looks in XDG_RUNTIME_DIR and accepts a tmpfs only, as what it keeps there
    must not survive the boot; so the file is lent to the scratch folder, under a key of this boot.
    """
    # Without it CRIU loads what a distribution's package left in /usr/lib/criu: a CUDA plugin would move GPU state by itself.
    env = {"PATH": os.defpath, "CRIU_LIBS_DIR": _NO_PLUGINS}
    if sandbox.mode == "root" or criu.cache is None:
        yield env
        return
    kept = criu.cache / f"kernel-{criu.identity()}"
    lent = sandbox.outside(sandbox.scratch) / "criu.kdat"
    with contextlib.suppress(OSError):
        shutil.copyfile(kept, lent)
    yield {**env, "XDG_RUNTIME_DIR": str(sandbox.scratch)}
    with contextlib.suppress(OSError):
        if not kept.exists():
            criu.cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            unfinished = kept.with_name(f"{kept.name}.{os.getpid()}.{threading.get_ident()}")
            shutil.copyfile(lent, unfinished)
            unfinished.rename(kept)
        lent.unlink()


def _reasons(log: Path, finished: Finished) -> list[str]:
    """The first errors of a log, without time and pid: the later ones only follow from them."""
    errors = [line.partition("Error (")[2].partition("): ")[2] for line in _lines(log) if "Error (" in line]
    telling = [error for error in errors if error and not _HARMLESS.search(error)]
    return telling[:_REASONS] or finished.output.strip().splitlines()[-_REASONS:] or ["it gave no reason"]


_ADVICE = {
    "No space left on device": "The disk is full: free some room or choose another folder.",
    "bad size": "A file that was open or mapped at the dump has changed since: make the snapshot anew.",
    "seccomp": "The engine runs under a seccomp filter, which only root can dump and restore.",
    "Can't open file": "A file that was open at the dump is missing; was it deleted, or is its disk not mounted?",
    "Cannot allocate memory": "This machine has too little free memory.",
}


def _advice(log: Path, sandbox: Sandbox) -> str:
    """What to do about what the log says; CRIU's own words do not name io_uring (`send_fds failed (-22)`)."""
    text = "\n".join(line for line in _lines(log) if "Error (" in line)
    told = [advice for sign, advice in _ADVICE.items() if sign in text]
    if holders := _holders_of_rings(sandbox):
        told.append(
            f"io_uring, which CRIU cannot dump, is in use by {', '.join(holders)}: deny it at launch (as root `spawn` does with "
            "filtered; rootless set UV_USE_IO_URING=0 and USE_LIBUV=0 in the engine's environment)."
        )
    return "".join(f"{advice}\n" for advice in told)


def _holders_of_rings(sandbox: Sandbox) -> list[str]:
    holders = []
    for inside, pid in sandbox.host_pids().items():
        with contextlib.suppress(OSError):
            if any("io_uring" in str(held.readlink()) for held in Path(f"/proc/{pid}/fd").iterdir()):
                holders.append(f"pid {inside}")
    return holders


def _last_line(log: Path) -> str:
    lines = _lines(log)
    return lines[-1].strip() if lines else "none"


def _lines(log: Path) -> list[str]:
    try:
        with log.open("rb") as stream:
            return stream.read(_LOG_BYTES).decode(errors="replace").splitlines()
    except OSError:
        return []


def _make_empty(images: Path) -> None:
    try:
        images.mkdir(mode=0o700, parents=True, exist_ok=True)
        images.chmod(0o700)
        if any(images.iterdir()):
            raise SnapshotError(f"The folder for the images, {images}, is not empty; choose another.")
    except OSError as error:
        raise SnapshotError(f"The folder for the images, {images}, cannot be made: {error.strerror}.") from error


@contextlib.contextmanager
def _emptied_on_failure(images: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        for file in images.iterdir():
            if file.name != DUMP_LOG:
                with contextlib.suppress(OSError):
                    file.unlink()
        raise
