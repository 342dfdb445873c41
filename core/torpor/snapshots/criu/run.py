"""Runs CRIU inside a sandbox: a dump, or a restore."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torpor.errors import ConfigurationError, CriuError, NoRoomError, SnapshotError
from torpor.network.shortage import is_disk_full
from torpor.snapshots.criu.log import advice, last_line, reasons, says_disk_full
from torpor.snapshots.criu.memory_files import mapped_bytes
from torpor.snapshots.sandbox.sandbox import FIRST_PID
from torpor.telemetry.events import log

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torpor.snapshots.criu.program import Criu
    from torpor.snapshots.sandbox.sandbox import Sandbox
    from torpor.snapshots.store.manifest import Mode, Tcp

__all__ = [
    "DUMP_LOG",
    "GHOST_BYTES",
    "RESTORE_LOG",
    "SIDE_FILES",
    "Dumped",
    "Restored",
    "dump",
    "expected_bytes",
    "memory_bytes",
    "restore",
]

SIDE_FILES = "side.tar"
"""Name of the archive of the private folders; it lies in the folder of the images."""

LINK = "memory"
"""Link in a replica's scratch folder to the folder of the images, from which the replica maps its memory."""

GHOST_BYTES = 2047 << 20
"""Largest deleted file whose content goes into a snapshot; CRIU's default limit is 1 MiB."""

DUMP_LOG, RESTORE_LOG = "dump.log", "restore.log"

_OPTIONS = ("--file-locks", "--ext-unix-sk", "--link-remap", "--skip-in-flight", "--ghost-limit", str(GHOST_BYTES))
_TCP_OPTIONS: dict[Tcp, tuple[str, ...]] = {
    "close": ("--tcp-close",),
    "established": ("--tcp-established", "--network-lock", "skip"),
}
_MODE_OPTIONS: dict[Mode, tuple[str, ...]] = {"root": (), "rootless": ("--unprivileged",)}
_NO_PLUGINS = "/proc/self/ns"  # a folder that always exists and holds no library
_LEAVE_DUMPED_S = 30.0
_BLOCK = 512  # unit of st_blocks (stat(2))


class Dumped(NamedTuple):
    """The result of a dump. The tree stands still during all three times.

    Attributes:
        criu_s: seconds that CRIU took.
        side_files_s: seconds that packing the private folders took.
        mapping_s: seconds that preparing the memory files took (`torpor.snapshots.criu.mapped_memory`).
        image_bytes: size of the images.
        mapped_bytes: memory that replicas map from files instead of copying it.
        side_file_bytes: size of the archive of the private folders.
    """

    criu_s: float
    side_files_s: float
    mapping_s: float
    image_bytes: int
    mapped_bytes: int
    side_file_bytes: int


class Restored(NamedTuple):
    """How long a restore took, in seconds: first the side files are unpacked, then CRIU runs."""

    criu_s: float
    side_files_s: float


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
        criu: from `torpor.snapshots.criu.program.find`.
        sandbox: its tree runs.
        images: an empty or missing folder; made 0700, its files 0600, with CRIU's log `dump.log`. The sandbox does not see
            disks that were mounted after it was made.
        timeout_s: seconds after which CRIU is killed.
        leave_running: let the tree run on; otherwise it is ended. The sandbox stays in both cases.
        tcp: what happens to the tree's TCP connections.
        copy_memory: have CRIU copy the memory into each replica; otherwise replicas map it.

    Raises:
        CriuError: with CRIU's own reason; of the images only `dump.log` stays. If CRIU gave up by itself, the tree runs on
            as before. If CRIU was killed (deadline, SIGKILL), the state of the tree is unknown and the sandbox is ended;
            `sandbox.alive` says which.
        NoRoomError: the disk of the images is full; otherwise as above.
    """
    if (code := sandbox.poll()) is not None:
        raise SnapshotError(f"There is nothing to dump: the tree of sandbox {sandbox.name!r} ended with code {code}.")
    _make_empty(images)
    with _emptied_on_failure(images):
        dumped = _dump(criu, sandbox, images, timeout_s=timeout_s, tcp=tcp, copy_memory=copy_memory)
    sandbox.signal_tree(signal.SIGCONT if leave_running else signal.SIGKILL)
    if not leave_running:
        sandbox.wait(_LEAVE_DUMPED_S)
    return dumped


def _dump(criu: Criu, sandbox: Sandbox, images: Path, *, timeout_s: float, tcp: Tcp, copy_memory: bool) -> Dumped:
    """Dump everything and leave the tree stopped; it runs on when a step after CRIU's fails."""
    argv = ["dump", "--tree", str(FIRST_PID), "--images-dir", str(images), "--leave-stopped"]
    argv += [*_options(sandbox.mode, tcp), "-v2", "--log-file", DUMP_LOG]
    started = time.perf_counter()
    _run(criu, argv, sandbox, images / DUMP_LOG, timeout_s)
    dumped = time.perf_counter()
    try:
        side_file_bytes = sandbox.pack_side_files(images / SIDE_FILES)
        packed = time.perf_counter()
        mapped_bytes = _map_memory(images, sandbox, map_new=not copy_memory)
        image_bytes = _protect(images)
    except BaseException:
        sandbox.signal_tree(signal.SIGCONT)
        raise
    return Dumped(
        criu_s=dumped - started,
        side_files_s=packed - dumped,
        mapping_s=time.perf_counter() - packed,
        image_bytes=image_bytes,
        mapped_bytes=mapped_bytes,
        side_file_bytes=side_file_bytes,
    )


def _protect(images: Path) -> int:
    """Make every file of a dump private (0600); the size of the images in bytes."""
    size = 0
    for file in images.iterdir():
        file.chmod(0o600)
        size += file.stat().st_blocks * _BLOCK if file.suffix == ".img" else 0
    return size


def restore(
    criu: Criu, sandbox: Sandbox, images: Path, *, work: Path, timeout_s: float, tcp: Tcp = "close"
) -> Restored:
    """Unpack the side files and restore the tree into an empty sandbox; `sandbox.poll` and `wait` then follow the tree.

    Any number of restores may use the same images at once: none writes there.

    Args:
        criu: from `torpor.snapshots.criu.program.find`.
        sandbox: a new one with the same `mode`, `scratch` and `private` as the dumped one.
        images: the folder that `dump` wrote.
        work: an existing private folder, one per replica; it gets CRIU's log `restore.log`.
        timeout_s: seconds after which CRIU is killed. CRIU 4.2.1 never ends when a pages file is too short, so check the sizes
            before.
        tcp: as at the dump.

    Raises:
        CriuError: with CRIU's own reason; the sandbox is ended.
    """
    argv = ["restore", "--images-dir", str(images), "--work-dir", str(work), "--restore-detached"]
    argv += [*_options(sandbox.mode, tcp), "-v1", "--log-file", RESTORE_LOG]
    try:
        started = time.perf_counter()
        sandbox.unpack_side_files(images / SIDE_FILES)
        link = sandbox.outside(sandbox.scratch) / LINK
        link.unlink(missing_ok=True)  # a dumped replica brings the link to its own images along
        link.symlink_to(images.absolute())
        unpacked = time.perf_counter()
        _run(criu, argv, sandbox, work / RESTORE_LOG, timeout_s)
        restored = time.perf_counter()
    except BaseException:
        sandbox.kill()
        raise
    return Restored(criu_s=restored - unpacked, side_files_s=unpacked - started)


def expected_bytes(sandbox: Sandbox) -> int:
    """Estimate the size of a dump: the tree's anonymous and shared memory, and the private folders.

    A page that a fork shares with its parent counts twice, because CRIU writes it twice.
    """
    tree = [pid for inside, pid in sandbox.host_pids().items() if inside != 1]
    return sandbox.side_file_bytes() + sum(map(memory_bytes, tree))


def memory_bytes(pid: int) -> int:
    """Bytes of a process's memory that a dump writes: anonymous (swapped or not), shared, and mapped from a snapshot.

    0 for a process that cannot be read.
    """
    with contextlib.suppress(OSError):
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        in_kb = re.findall(r"^(?:Anonymous|Swap|Pss_Shmem): +(\d+) kB", rollup, re.MULTILINE)
        return 1024 * sum(map(int, in_kb)) + mapped_bytes(pid)
    return 0


def _map_memory(images: Path, sandbox: Sandbox, *, map_new: bool) -> int:
    from torpor.snapshots.criu.mapped_memory import map_memory  # noqa: PLC0415 - mapped_memory: 2 ms that a restore saves

    try:
        mapped = map_memory(images, sandbox.scratch / LINK, filtered=sandbox.filtered, map_new=map_new)
    except OSError as error:
        kind = NoRoomError if is_disk_full(error) else SnapshotError
        raise kind(f"Cannot rewrite the images in {images}: {error.strerror or error}.") from error
    for pid, reason in mapped.copied.items():
        log("info", "memory_copied", pid=pid, reason=reason)
    return mapped.bytes


def _options(mode: Mode, tcp: Tcp) -> tuple[str, ...]:
    return (*_OPTIONS, *_TCP_OPTIONS[tcp], *_MODE_OPTIONS[mode])


def _run(criu: Criu, arguments: Sequence[str], sandbox: Sandbox, log: Path, timeout_s: float) -> None:
    """Run CRIU in the sandbox. If CRIU is killed before its end, end the sandbox.

    Raises:
        CriuError: CRIU failed.
        NoRoomError: it failed because a disk is full.
    """
    action = arguments[0]
    try:
        with _kernel_findings(criu, sandbox) as env:
            finished = sandbox.run([*criu.argv, *arguments], env=env, timeout_s=timeout_s)
    except TimeoutError:
        sandbox.kill()
        raise CriuError(
            f"CRIU's {action} of sandbox {sandbox.name!r} did not finish within {timeout_s:g} s, so CRIU and the sandbox were "
            f"killed. The last line of CRIU's log: {last_line(log)} ({log})"
        ) from None
    except ConfigurationError as error:
        raise CriuError(f"CRIU's {action} of sandbox {sandbox.name!r} did not start: {error}") from error
    except BaseException:  # Ctrl-C kills CRIU in the middle: the state of the tree is unknown
        sandbox.kill()
        raise
    if finished.code < 0:
        sandbox.kill()
        raise CriuError(
            f"CRIU's {action} of sandbox {sandbox.name!r} was killed by {signal.Signals(-finished.code).name} from outside (the "
            f"kernel does that when memory runs out), so the sandbox was ended. The last line of CRIU's log: {last_line(log)} "
            f"({log})"
        )
    if finished.code != 0:
        kind = NoRoomError if says_disk_full(log) else CriuError
        raise kind(
            f"CRIU's {action} of sandbox {sandbox.name!r} failed with exit code {finished.code}:\n"
            + "\n".join(f"  {line}" for line in reasons(log, finished))
            + f"\n{advice(log, sandbox)}The whole log: {log}"
        )


@contextlib.contextmanager
def _kernel_findings(criu: Criu, sandbox: Sandbox) -> Iterator[dict[str, str]]:
    """The environment for CRIU; rootless, it includes the cache of what CRIU found out about this kernel (`criu.kdat`).

    As root CRIU keeps that file in /run. Otherwise it wants XDG_RUNTIME_DIR on a tmpfs, since the file is valid for one boot
    only. So the file is copied into the scratch folder before a run and saved after it, under a name that changes with each boot.
    """
    # Otherwise CRIU loads plugins that a distribution installed in /usr/lib/criu; its CUDA plugin would move GPU state by itself.
    env = {"PATH": os.defpath, "CRIU_LIBS_DIR": _NO_PLUGINS}
    if sandbox.mode == "root" or criu.cache is None:
        yield env
        return
    kept = criu.cache / f"kernel-{criu.identity()}"
    in_use = sandbox.outside(sandbox.scratch) / "criu.kdat"
    with contextlib.suppress(OSError):
        shutil.copyfile(kept, in_use)
    yield {**env, "XDG_RUNTIME_DIR": str(sandbox.scratch)}
    with contextlib.suppress(OSError):
        if not kept.exists():
            criu.cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            unfinished = kept.with_name(f"{kept.name}.{os.getpid()}.{threading.get_ident()}")
            shutil.copyfile(in_use, unfinished)
            unfinished.rename(kept)
        in_use.unlink()


def _make_empty(images: Path) -> None:
    try:
        images.mkdir(mode=0o700, parents=True, exist_ok=True)
        images.chmod(0o700)
        if any(images.iterdir()):
            raise SnapshotError(f"The folder for the images, {images}, is not empty: choose another folder.")
    except OSError as error:
        kind = NoRoomError if is_disk_full(error) else SnapshotError
        raise kind(f"Cannot make the folder for the images, {images}: {error.strerror}.") from error


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
