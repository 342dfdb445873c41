"""Capture a sleeping engine into a folder.

    1. check     nothing in the process tree is beyond what a snapshot can hold, and the disk has room
    2. suspend   GPU state goes to host memory
    3. dump      CRIU writes the processes into a new folder beside the target
    4. describe  the manifest says what the snapshot is, and what must fit before a restore
    5. prove     one trial replica is restored and woken
    6. publish   the new folder takes the target's place in one step

This module imports whatever a capture needs. Import it only where something is captured: a restore has no use for it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torpor.errors import NoRoomError, SnapshotError
from torpor.network.shortage import is_disk_full
from torpor.snapshots.before_capture import external_resources as checks
from torpor.snapshots.before_capture.kernel_objects import check_objects
from torpor.snapshots.before_capture.lasting_folders import kept_folders
from torpor.snapshots.before_capture.outside_files import code_of, model_files, noted, plugin_files
from torpor.snapshots.criu.run import DUMP_LOG, dump, expected_bytes
from torpor.snapshots.facts import deployment_facts, machine_facts
from torpor.snapshots.gpu.checkpoint import suspended
from torpor.snapshots.gpu.holders import DEVICES, holders, named
from torpor.snapshots.sandbox.scheduling import scheduled
from torpor.snapshots.store.files import describe_files
from torpor.snapshots.store.folder import real_folder
from torpor.snapshots.store.host_memory import lies_in_memory
from torpor.snapshots.store.index import note
from torpor.snapshots.store.manifest import (
    IMAGES,
    LOGS,
    MANIFEST,
    OUTSIDE,
    PRIVATE,
    SCHEMA,
    Manifest,
    StageTime,
    write_private,
)
from torpor.snapshots.store.paths import cache_root
from torpor.snapshots.store.placing import made_whole
from torpor.snapshots.store.stored import read_identity
from torpor.snapshots.targets import check_target
from torpor.snapshots.trial import life_of, prove
from torpor.telemetry.progress import followed_value
from torpor.telemetry.stages import Stage

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torpor.runtime.boot import Boot
    from torpor.runtime.canary import Canary
    from torpor.snapshots.before_capture.external_resources import OpenFiles
    from torpor.snapshots.criu.program import Criu
    from torpor.snapshots.criu.run import Dumped
    from torpor.snapshots.gpu.checkpoint import Suspended
    from torpor.snapshots.gpu.driver import Driver
    from torpor.snapshots.sandbox.sandbox import Clock, Sandbox
    from torpor.snapshots.store.manifest import Scheduled, Tcp
    from torpor.snapshots.trial import Life

__all__ = ["CaptureOptions", "capture"]

_DUMP_TIMEOUT_S = 300.0
_MARGIN_BYTES = 64 << 20
_COMMAND_CHARACTERS = 120


class CaptureOptions(NamedTuple):
    """How an engine is captured.

    Attributes:
        criu: the program.
        app_file: file of the deployment; a restore reads it again.
        leave_running: leave the original asleep; by default it is ended.
        copy_memory: see `torpor.platforms.local.backends.CriuBackend`.
        gpu_devices: path prefixes of the GPU driver's device files; by default those of the NVIDIA driver.
        prove: restore and wake one replica before the snapshot is published (`torpor.snapshots.trial`).
        awake: what the GPU driver said while the engine served; the manifest then has the memory that a serving replica needs.
    """

    criu: Criu
    app_file: Path
    leave_running: bool = False
    copy_memory: bool = False
    gpu_devices: Sequence[str] = ()
    prove: bool = False
    awake: Driver | None = None


def capture(boot: Boot, sandbox: Sandbox, folder: Path, options: CaptureOptions) -> Manifest:
    """Capture a sleeping engine into a folder.

    Args:
        boot: asleep.
        sandbox: where its engine lives.
        folder: where the snapshot goes; an older snapshot there is replaced when the new one is complete.
        options: how.

    Raises:
        SnapshotError: the capture failed, or its trial replica did. Nothing of it stays on the disk. The original is still
            asleep, unless CRIU or a call of the GPU driver was killed halfway, or the driver could not restore its state;
            the message says so.
        GuardStateError: the engine is not asleep, or a request is in flight.
    """
    folder = real_folder(folder)
    check_target(folder)
    boot.check_asleep()
    manifest = _Capture(boot, sandbox, folder, options).run()
    note(folder)
    return manifest


class _Before(NamedTuple):
    """The process tree as it was just before the dump.

    Attributes:
        processes: command of each process.
        life: threads and locked memory, for the trial.
        scheduling: threads that are scheduled differently than their sandbox.
        clock: the sandbox's clocks.
        outside: the files outside of the snapshot that it depends on.
    """

    processes: tuple[str, ...]
    life: Life
    scheduling: tuple[Scheduled, ...]
    clock: Clock
    outside: dict[str, object]


class _Capture:
    """One capture: what its steps share."""

    def __init__(self, boot: Boot, sandbox: Sandbox, folder: Path, options: CaptureOptions) -> None:
        self.boot, self.sandbox, self.folder, self.options = boot, sandbox, folder, options
        self.app_file = options.app_file.absolute()
        self.devices = options.gpu_devices or DEVICES
        self.started = time.perf_counter()
        self.tcp = self._tcp()
        self.canary = self._canary()

    def run(self) -> Manifest:
        """Every step; on an error the GPU state goes back to its GPUs and the new folder is removed."""
        self._check_devices()
        with contextlib.ExitStack() as stack:
            gpu = self._suspended_gpu(stack)
            # From here on the tree holds no device file, and its memory is all that has to be saved.
            before = self._checked_tree()
            partial = stack.enter_context(_new_folder(self.folder))
            checks_s = time.perf_counter() - self.started - (gpu.seconds if gpu else 0.0)
            dumped = self._dump(partial)
            if gpu and self.options.leave_running:
                gpu.resume()
            self._write_beside_images(partial, before)
            manifest = self._manifest(partial, before, dumped, gpu, checks_s)
            manifest.write(partial)
            if self.options.prove:
                manifest = self._proved(partial, manifest, before.life)
            # The capture is not a use of the snapshot; see `torpor.snapshots.store.folder.Hold`.
            os.utime(partial, (manifest.captured_at, manifest.captured_at))
        return manifest

    def _tcp(self) -> Tcp:
        """What becomes of the connections inside the tree, once none leads outside."""
        inner = checks.check_connections(self.sandbox, self.boot.deployment.port)
        return "established" if inner else "close"

    def _canary(self) -> Canary:
        if self.boot.canary is None:
            raise SnapshotError(
                "No canary was recorded, so no replica could be checked. Start the engine with Boot.cold_start."
            )
        return self.boot.canary

    def _check_devices(self) -> None:
        """Before GPU state is touched: refuse what CRIU cannot restore.

        A deployment without a GPU must not hold the GPU driver's files: a restore would ignore its GPU state.
        """
        if self.boot.deployment.gpu is not None:
            check_objects(self.sandbox, devices=self.devices)
        elif found := holders(self.sandbox, self.devices):
            raise SnapshotError(
                f"Deployment {self.boot.deployment.name!r} names no GPU, but processes of its engine hold one:\n{named(found)}\n"
                'Set Deployment.gpu, or hide the GPUs from the engine (CUDA_VISIBLE_DEVICES="" in its environment).'
            )

    def _suspended_gpu(self, stack: contextlib.ExitStack) -> Suspended | None:
        """Move GPU state to host memory until the stack is left."""
        if self.boot.deployment.gpu is None:
            return None
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        in_memory = lies_in_memory(self.folder.parent)
        return stack.enter_context(
            suspended(self.sandbox, images_in_memory=in_memory, devices=self.devices, awake=self.options.awake)
        )

    def _checked_tree(self) -> _Before:
        """Refuse what no snapshot can hold; then note the tree as it is."""
        opened = checks.open_files(self.sandbox, kept_folders(self.boot.deployment, self.boot.recipe))
        checks.check_open_files(opened)
        check_objects(self.sandbox)
        _check_room(self.folder.parent, expected_bytes(self.sandbox))
        return _Before(
            processes=_commands(self.sandbox),
            life=life_of(self.sandbox),
            scheduling=scheduled(self.sandbox),
            clock=self.sandbox.clock(),
            outside=self._outside_files(opened),
        )

    def _outside_files(self, opened: OpenFiles) -> dict[str, object]:
        """The files outside of the snapshot that it depends on, without the app file.

        The app file may lie in the model's folder or beside the engine's script, and may define a plugin. A restore compares
        the deployment in it, not its bytes.
        """
        deployment, recipe = self.boot.deployment, self.boot.recipe
        folders, files = code_of(deployment, recipe)
        files += [*plugin_files(deployment), *model_files(deployment, recipe)]
        return noted(opened.lasting, (file for file in files if file.absolute() != self.app_file), folders)

    def _dump(self, partial: Path) -> Dumped:
        images = partial / IMAGES
        (partial / LOGS).mkdir(mode=0o700)
        with followed_value(lambda: _written(images)), _log_kept(images / DUMP_LOG, self.folder.name):
            return dump(
                self.options.criu,
                self.sandbox,
                images,
                timeout_s=_DUMP_TIMEOUT_S,
                leave_running=self.options.leave_running,
                tcp=self.tcp,
                copy_memory=self.options.copy_memory,
            )

    def _write_beside_images(self, partial: Path, before: _Before) -> None:
        """Write the logs, the engine's identity and the list of outside files."""
        engine = self.boot.running_engine
        (partial / IMAGES / DUMP_LOG).rename(partial / LOGS / DUMP_LOG)
        _write_lines(partial / LOGS / "engine.log", engine.log_tail())
        write_private(partial / PRIVATE, {"replica_id": engine.replica_id, "guard_key": engine.guard_key})
        write_private(partial / OUTSIDE, before.outside)

    def _manifest(
        self, partial: Path, before: _Before, dumped: Dumped, gpu: Suspended | None, checks_s: float
    ) -> Manifest:
        boot, criu = self.boot, self.options.criu
        return Manifest(
            schema=SCHEMA,
            captured_at=time.time(),
            app_file=str(self.app_file),
            served_name=boot.deployment.model.served_name,
            mode=self.sandbox.mode,
            scratch=str(self.sandbox.scratch),
            tcp=self.tcp,
            monotonic_s=before.clock.monotonic_s,
            boottime_s=before.clock.boottime_s,
            canary=self.canary,
            processes=before.processes,
            scheduling=before.scheduling,
            stages=_stages(boot, dumped, checks_s=checks_s, cuda_s=gpu.seconds if gpu else None),
            image_bytes=dumped.image_bytes,
            mapped_bytes=dumped.mapped_bytes,
            side_file_bytes=dumped.side_file_bytes,
            gpu=gpu.part if gpu else None,
            machine=machine_facts(criu, driver=gpu.driver, gpus=gpu.gpus) if gpu else machine_facts(criu),
            deployment=deployment_facts(boot.deployment, boot.recipe),
            files=describe_files(partial),
        )

    def _proved(self, partial: Path, manifest: Manifest, before: Life) -> Manifest:
        """Restore and wake one replica, and note in the manifest how long that took."""
        took_s = prove(partial, manifest, read_identity(partial), criu=self.options.criu, boot=self.boot, before=before)
        manifest = manifest._replace(stages=(*manifest.stages, StageTime(stage="capture_proof", seconds=took_s)))
        (partial / MANIFEST).unlink()
        manifest.write(partial)
        return manifest


def _stages(boot: Boot, dumped: Dumped, *, checks_s: float, cuda_s: float | None) -> tuple[StageTime, ...]:
    """The stages of the cold start and of the capture."""
    stages = [
        StageTime(stage=record.stage, seconds=record.seconds)
        for record in boot.report.records
        if record.stage != Stage.FIRST_REQUESTS
    ]
    stages += [StageTime(stage="capture_checks", seconds=checks_s)]
    stages += [StageTime(stage="capture_cuda", seconds=cuda_s)] if cuda_s is not None else []
    return (
        *stages,
        StageTime(stage="capture_criu", seconds=dumped.criu_s),
        StageTime(stage="capture_side_files", seconds=dumped.side_files_s),
        StageTime(stage="capture_mapping", seconds=dumped.mapping_s),
    )


def _check_room(parent: Path, needed: int) -> None:
    parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(parent).free
    wanted = needed + needed // 10 + _MARGIN_BYTES
    if free < wanted:
        raise NoRoomError(
            f"{parent} has {free / 1e9:.2f} GB free; this snapshot takes up to {wanted / 1e9:.2f} GB. Free some room or "
            "choose another folder."
        )


def _commands(sandbox: Sandbox) -> tuple[str, ...]:
    """Pid and command line of each process in the sandbox, without its pid 1."""
    commands = []
    for inside, pid in sorted(sandbox.host_pids().items()):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            if inside != 1:
                commands.append(f"{inside} {words[:_COMMAND_CHARACTERS]}")
    return tuple(commands)


def _written(images: Path) -> str:
    """How much a dump has written so far, for the progress line."""
    size = sum(file.stat().st_size for file in images.iterdir()) if images.is_dir() else 0
    return f"{size / 1e9:.2f} GB of the snapshot are written" if size else ""


@contextlib.contextmanager
def _log_kept(log: Path, name: str) -> Iterator[None]:
    """If the dump fails, move CRIU's log out of the folder that is removed, and name the new place in the error."""
    try:
        yield
    except SnapshotError as error:
        kept = cache_root() / "logs" / f"{name}-{log.name}"
        try:
            kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            kept.unlink(missing_ok=True)
            _write_lines(kept, tuple(log.read_text(errors="replace").splitlines()))
        except OSError:
            raise error from None
        raise type(error)(str(error).replace(str(log), str(kept))) from error


def _write_lines(file: Path, lines: tuple[str, ...]) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.writelines(f"{line}\n" for line in lines)


@contextlib.contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """See `torpor.snapshots.store.folder.made_whole`; errors of the disk become errors of the snapshot."""
    try:
        with made_whole(folder) as partial:
            yield partial
    except OSError as error:
        kind = NoRoomError if is_disk_full(error) else SnapshotError
        raise kind(f"The snapshot {folder} cannot be written: {error.strerror or error}.") from error
