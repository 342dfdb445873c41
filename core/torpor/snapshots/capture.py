"""Snapshots on disk: a folder each, made whole or not at all, open to its owner alone."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torpor.errors import SnapshotError
from torpor.snapshots.before_capture.outside_files import Noted, difference
from torpor.snapshots.store.folder import (
    check_place,
    check_same,
    checked,
    found_instead,
    made_whole,
    real_folder,
    recover,
    remove_folder,
)
from torpor.snapshots.store.manifest import IMAGES, LOGS, MANIFEST, OUTSIDE, PRIVATE, SCHEMA, Stage, read_manifest
from torpor.snapshots.store.reading import ANEW, opened_folder, read_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torpor.runtime.boot import Boot
    from torpor.snapshots.before_capture.external_resources import OpenFiles
    from torpor.snapshots.criu.program import Criu
    from torpor.snapshots.criu.run import Dumped, Tcp
    from torpor.snapshots.sandbox.sandbox import Sandbox
    from torpor.snapshots.store.manifest import Manifest
    from torpor.snapshots.store.reading import Fields

__all__ = [
    "Identity",
    "capture",
    "changed_files",
    "check_target",
    "inspect",
    "outside_files",
    "read_identity",
    "remove",
]

_DUMP_TIMEOUT_S = 300.0
_MARGIN_BYTES = 64 << 20
_PRIVATE_BYTES = 64 << 10
_OUTSIDE_BYTES = 64 << 20
_WORD_CHARACTERS = 1024
_SHOWN = 8


class Identity(NamedTuple):
    """What a copy has to be addressed with until its wake: the replica id and the lifecycle key of the original."""

    replica_id: str
    guard_key: str | None


def inspect(folder: Path) -> Manifest:
    """What a snapshot is.

    Raises:
        SnapshotError: there is none, it is open to others, damaged, or of another version.
    """
    folder = real_folder(folder)
    mark = checked(folder)
    manifest = read_manifest(folder)
    check_same(folder, mark)
    return manifest


def read_identity(folder: Path) -> Identity:
    """The private part of a snapshot.

    Raises:
        SnapshotError: it is missing or damaged.
    """
    fields = _read(folder, PRIVATE, most=_PRIVATE_BYTES)
    key = None if fields.content.get("guard_key") is None else _word(fields, "guard_key")
    if key is None:
        fields.take("guard_key")
    identity = Identity(replica_id=_word(fields, "replica_id"), guard_key=key)
    fields.end()
    return identity


def check_target(folder: Path) -> None:
    """Make sure that a snapshot can be put there: nothing is there yet, or another snapshot, which is replaced.

    Args:
        folder: a symbolic link stands for what it leads to.

    Raises:
        SnapshotError: something else is there, which the message names, or CRIU could not reach it.
    """
    folder = real_folder(folder)
    if folder.is_relative_to("/dev/shm"):  # noqa: S108 - the one in-memory disk that does not do
        raise SnapshotError(
            f"{folder} lies in /dev/shm, which every sandbox has for itself, and so has the CRIU in it. For a snapshot in memory, "
            "mount a tmpfs elsewhere before the start: mount -t tmpfs -o size=32G,mode=700 snapshots /mnt/snapshots"
        )
    check_place(folder)
    recover(folder, clear=False)
    try:
        empty = not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir()))
    except OSError as error:
        raise SnapshotError(f"{folder} cannot be looked at: {error.strerror}.") from error
    if not empty and (reason := found_instead(folder)):
        raise SnapshotError(
            f"{folder} exists and is no snapshot; choose another folder, or remove it yourself. What was found: {reason}."
        )


def capture(
    boot: Boot,
    sandbox: Sandbox,
    folder: Path,
    *,
    criu: Criu,
    app_file: Path,
    leave_running: bool = False,
    copy_memory: bool = False,
    gpu_devices: Sequence[str] = (),
    proved: bool = False,
) -> Manifest:
    """Keep a sleeping engine in a folder.

    Args:
        boot: asleep.
        sandbox: where its engine lives.
        folder: where the snapshot goes; one that is there is replaced when the new one is whole.
        criu: the program.
        app_file: where the deployment stands; a restore reads it again.
        leave_running: let the original stay, asleep; it is ended otherwise.
        copy_memory: see `torpor.platforms.local.backends.CriuBackend`.
        gpu_devices: how the paths of the GPU driver's device files begin; `torpor.snapshots.gpu.holders.DEVICES` by default.
        proved: restore and wake one replica before the snapshot is put in its place (`torpor.snapshots.trial`).

    Raises:
        SnapshotError: it cannot be kept, or its trial replica failed; nothing of it stays on the disk, and the original is
            still asleep, unless CRIU or a call of the GPU driver was killed in the middle, or the driver could not put its
            state back (the message says so).
        GuardStateError: the engine is not asleep, or a request is in flight.
    """
    from torpor.snapshots.before_capture import external_resources as checks  # noqa: PLC0415 - a restore has no use for what a capture imports
    from torpor.snapshots.criu.run import DUMP_LOG, dump, expected_bytes  # noqa: PLC0415
    from torpor.snapshots.facts import deployment_facts, machine_facts  # noqa: PLC0415
    from torpor.snapshots.gpu import checkpoint as cuda  # noqa: PLC0415 - a restore has no use for what a capture imports
    from torpor.snapshots.gpu.holders import DEVICES  # noqa: PLC0415
    from torpor.snapshots.known import note  # noqa: PLC0415
    from torpor.snapshots.sandbox.scheduling import scheduled  # noqa: PLC0415
    from torpor.snapshots.store.manifest import Manifest, describe_files, write_private  # noqa: PLC0415
    from torpor.snapshots.trial import life_of, prove  # noqa: PLC0415
    from torpor.telemetry.progress import followed_value  # noqa: PLC0415

    started = time.perf_counter()
    deployment = boot.deployment
    folder = real_folder(folder)
    check_target(folder)
    boot.check_asleep()
    inner = checks.check_connections(sandbox, deployment.port)
    engine, canary = boot.running_engine, boot.canary
    if canary is None:
        raise SnapshotError("No canary was recorded, so no copy could be checked; start the engine by Boot.cold_start.")
    devices = gpu_devices or DEVICES
    _check_devices(boot, sandbox, devices)
    with contextlib.ExitStack() as stack:
        gpu = None
        if deployment.gpu is not None:
            in_memory = _lies_in_memory(folder)
            gpu = stack.enter_context(cuda.suspended(sandbox, images_in_memory=in_memory, devices=devices))
        # From here on the tree holds no device file, and its memory is all that there is to save.
        opened = _checked_files(boot, sandbox)
        _check_room(folder.parent, expected_bytes(sandbox))
        processes, life, scheduling = _commands(sandbox), life_of(sandbox), scheduled(sandbox)
        clock, outside = sandbox.clock(), _noted_outside(boot, opened, app_file.absolute())
        partial = stack.enter_context(_made_whole(folder))
        (partial / LOGS).mkdir(mode=0o700)
        checks_s = time.perf_counter() - started - (gpu.seconds if gpu else 0.0)
        tcp: Tcp = "established" if inner else "close"
        with followed_value(lambda: _written(partial / IMAGES)), _log_kept(partial / IMAGES / DUMP_LOG, folder.name):
            dumped = dump(
                criu,
                sandbox,
                partial / IMAGES,
                timeout_s=_DUMP_TIMEOUT_S,
                leave_running=leave_running,
                tcp=tcp,
                copy_memory=copy_memory,
            )
        if gpu and leave_running:
            gpu.resume()
        (partial / IMAGES / DUMP_LOG).rename(partial / LOGS / DUMP_LOG)
        _write_lines(partial / LOGS / "engine.log", engine.log_tail())
        write_private(partial / PRIVATE, {"replica_id": engine.replica_id, "guard_key": engine.guard_key})
        write_private(partial / OUTSIDE, outside)
        manifest = Manifest(
            schema=SCHEMA,
            created_at=time.time(),
            app_file=str(app_file.absolute()),
            served_name=deployment.model.served_name,
            mode=sandbox.mode,
            scratch=str(sandbox.scratch),
            tcp=tcp,
            monotonic_s=clock.monotonic_s,
            boottime_s=clock.boottime_s,
            canary_prompt=canary.prompt,
            canary_tokens=canary.tokens,
            canary_text=canary.text,
            processes=processes,
            scheduling=scheduling,
            stages=_stages(boot, dumped, checks_s=checks_s, cuda_s=gpu.seconds if gpu else None),
            image_bytes=dumped.image_bytes,
            mapped_bytes=dumped.mapped_bytes,
            side_file_bytes=dumped.side_file_bytes,
            gpu=gpu.part if gpu else None,
            machine=machine_facts(criu, driver=gpu.driver, gpus=gpu.gpus) if gpu else machine_facts(criu),
            deployment=deployment_facts(deployment, boot.recipe),
            files=describe_files(partial),
        )
        manifest.write(partial)
        if proved:
            took_s = prove(partial, manifest, read_identity(partial), criu=criu, boot=boot, before=life)
            manifest = _with_stage(partial, manifest, "capture_proof", took_s)
        os.utime(
            partial, (manifest.created_at, manifest.created_at)
        )  # not used yet; see `torpor.snapshots.store.folder.Hold`
    note(folder)
    return manifest


def _stages(boot: Boot, dumped: Dumped, *, checks_s: float, cuda_s: float | None) -> tuple[Stage, ...]:
    """What the cold start and the capture took."""
    stages = [Stage(stage=record.stage, seconds=record.seconds) for record in boot.report.records]
    stages += [Stage(stage="capture_checks", seconds=checks_s)]
    stages += [Stage(stage="capture_cuda", seconds=cuda_s)] if cuda_s is not None else []
    return (
        *stages,
        Stage(stage="capture_criu", seconds=dumped.criu_s),
        Stage(stage="capture_side_files", seconds=dumped.side_files_s),
        Stage(stage="capture_mapping", seconds=dumped.mapping_s),
    )


def _with_stage(partial: Path, manifest: Manifest, stage: str, seconds: float) -> Manifest:
    """Write a manifest anew with one more stage."""
    manifest = manifest._replace(stages=(*manifest.stages, Stage(stage=stage, seconds=seconds)))
    (partial / MANIFEST).unlink()
    manifest.write(partial)
    return manifest


def changed_files(folder: Path, *, full: bool = False) -> tuple[str, ...]:
    """What a snapshot depends on outside of itself and is not as it was: open files, the model, the engine's code.

    Each as a sentence. CRIU compares the sizes of open files as well, but stops at the first.

    Args:
        folder: the snapshot.
        full: compare content even where size and time are the same.

    Raises:
        SnapshotError: there is no list of them.
    """
    found = [what for entry in _outside(folder) if (what := difference(entry, full=full))]
    more = [f"so have {len(found) - _SHOWN} more files"] if len(found) > _SHOWN else []
    return tuple(found[:_SHOWN] + more)


def outside_files(folder: Path) -> tuple[str, ...]:
    """Files outside of a snapshot that its processes have open or mapped, or have read.

    Raises:
        SnapshotError: there is no list of them, or it is damaged.
    """
    return tuple(entry.name for entry in _outside(folder) if not entry.name.endswith("/"))


def remove(folder: Path) -> Path:
    """Delete a snapshot. Replicas that run go on: what they map of its files stays on the disk until the last of them ends.

    Args:
        folder: a symbolic link stands for what it leads to; it stays.

    Returns:
        The folder that was removed.

    Raises:
        SnapshotError: it is no snapshot that Torpor wrote for this user; the message says what it is.
    """
    folder = real_folder(folder)
    if reason := found_instead(folder):
        raise SnapshotError(
            f"{folder} holds no snapshot: {reason}. Nothing was removed; if it is to go all the same, delete it yourself."
        )
    from torpor.snapshots.known import forget  # noqa: PLC0415 - a restore has no use for it

    remove_folder(folder)
    forget(folder)
    return folder


def _outside(folder: Path) -> Iterator[Noted]:
    """What lies outside, as it was at the capture."""
    fields = _read(folder, OUTSIDE, most=_OUTSIDE_BYTES)
    for name in fields.names():
        match noted := fields.take(name):
            case [int(size), int() | str() as changed, str(content)] if name.startswith("/") and "\0" not in name:
                yield Noted(name, size, changed, content)
            case _:
                fields.refuse(name, noted, "an absolute path with a size, a time and a hash")


def _read(folder: Path, name: str, *, most: int) -> Fields:
    try:
        folder_fd = opened_folder(folder)
        try:
            return read_json(folder, name, folder_fd, most=most)
        finally:
            os.close(folder_fd)
    except OSError as error:
        raise SnapshotError(f"{folder / name} cannot be read ({error.strerror}); {ANEW}") from error


def _word(fields: Fields, name: str) -> str:
    """What goes into a header of HTTP: visible ASCII, and not too much of it."""
    word = fields.text(name, empty=False)
    if len(word) > _WORD_CHARACTERS or not word.isascii() or not word.isprintable():
        fields.refuse(name, "(not shown)", f"1 to {_WORD_CHARACTERS} visible characters of ASCII")
    return word


def _written(images: Path) -> str:
    """What a dump has written so far, in words."""
    size = sum(file.stat().st_size for file in images.iterdir()) if images.is_dir() else 0
    return f"{size / 1e9:.2f} GB of the snapshot are written" if size else ""


def _noted_outside(boot: Boot, opened: OpenFiles, app_file: Path) -> dict[str, object]:
    """What the snapshot will depend on outside of itself.

    The app file may lie in the model's folder or beside the engine's script, and may define a plugin. It is compared by the
    deployment that it gives, not by its bytes.
    """
    from torpor.snapshots.before_capture.outside_files import code_of, model_files, noted, plugin_files  # noqa: PLC0415

    folders, files = code_of(boot.deployment, boot.recipe)
    files += [*plugin_files(boot.deployment), *model_files(boot.deployment, boot.recipe)]
    return noted(opened.lasting, (file for file in files if file.absolute() != app_file), folders)


def _checked_files(boot: Boot, sandbox: Sandbox) -> OpenFiles:
    """What the tree has open outside of its private folders, once nothing in it stands against a capture."""
    from torpor.snapshots.before_capture import external_resources as checks  # noqa: PLC0415
    from torpor.snapshots.before_capture.kernel_objects import check_objects  # noqa: PLC0415

    opened = checks.open_files(sandbox, _kept_folders(boot))
    _check_files(opened)
    check_objects(sandbox)
    return opened


def _check_files(opened: OpenFiles) -> None:
    if opened.vanishing:
        from torpor.snapshots.before_capture.lasting_folders import LASTING_VARIABLE  # noqa: PLC0415

        listed = "\n".join(f"  - {_why_vanishing(name)}" for name in opened.vanishing[:_SHOWN])
        raise SnapshotError(
            f"The engine has files open that may be gone when it is restored:\n{listed}\n"
            "Close them before the capture, or have the engine put them under TMPDIR, which is kept with the snapshot. A folder "
            f"in a temporary place that stays is named in {LASTING_VARIABLE} (folders with {os.pathsep!r} between them)."
        )
    if opened.io_uring:
        raise SnapshotError(
            "A process of the engine has an io_uring, which CRIU cannot dump. Rootless its libraries can only be asked not to "
            "(UV_USE_IO_URING=0 and USE_LIBUV=0 are set; uvloop 0.23 ignores the first): use `--mode root`, where it is denied."
        )


def _why_vanishing(name: str) -> str:
    """A file that may be gone and why, unless its name says so: it lies in the temporary folder, or it is deleted."""
    from torpor.snapshots.before_capture.external_resources import DELETED  # noqa: PLC0415
    from torpor.snapshots.before_capture.lasting_folders import temporary_folder_of  # noqa: PLC0415

    folder = None if name.endswith(DELETED) else temporary_folder_of(Path(name))
    return name if folder is None or Path(name).is_relative_to(folder) else f"{name}, in {folder} by a link"


def _check_room(parent: Path, needed: int) -> None:
    parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(parent).free
    wanted = needed + needed // 10 + _MARGIN_BYTES
    if free < wanted:
        raise SnapshotError(
            f"{parent} has {free / 1e9:.2f} GB free; this snapshot takes up to {wanted / 1e9:.2f} GB. Free some room or "
            "choose another folder."
        )


def _check_devices(boot: Boot, sandbox: Sandbox, devices: Sequence[str]) -> None:
    """Before the GPU state is touched: refuse what CRIU does not carry.

    And a tree that holds the GPU driver's files though its deployment has no GPU: its restore would forget them.
    """
    from torpor.snapshots.before_capture.kernel_objects import check_objects  # noqa: PLC0415
    from torpor.snapshots.gpu.holders import holders  # noqa: PLC0415

    if boot.deployment.gpu is not None:
        check_objects(sandbox, devices=devices)
    elif found := holders(sandbox, devices):
        listed = "\n".join(
            f"  - pid {one.pid} ({one.command}): {', '.join(one.files[:_SHOWN])}" for one in found[:_SHOWN]
        )
        raise SnapshotError(
            f"Deployment {boot.deployment.name!r} names no GPU, but processes of its engine hold one:\n{listed}\n"
            'Set Deployment.gpu, or hide the GPUs from the engine (CUDA_VISIBLE_DEVICES="" in its environment).'
        )


def _lies_in_memory(folder: Path) -> bool:
    from torpor.snapshots.store.host_memory import lies_in_memory  # noqa: PLC0415

    parent = folder.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    return lies_in_memory(parent)


def _kept_folders(boot: Boot) -> list[Path]:
    """Folders that may well lie under /tmp and are the user's own choice all the same: environments, model, caches."""
    from torpor.snapshots.before_capture.lasting_folders import kept_folders  # noqa: PLC0415 - a restore has no use for it

    return kept_folders(boot.deployment, boot.recipe)


def _commands(sandbox: Sandbox) -> tuple[str, ...]:
    commands = []
    for inside, pid in sorted(sandbox.host_pids().items()):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            if inside != 1:
                commands.append(f"{inside} {words[:120]}")
    return tuple(commands)


@contextlib.contextmanager
def _log_kept(log: Path, name: str) -> Iterator[None]:
    """Keep CRIU's log of a dump that failed where the error says that it is; the rest of the snapshot is removed."""
    from torpor.snapshots.store.paths import cache_root  # noqa: PLC0415

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
        raise SnapshotError(str(error).replace(str(log), str(kept))) from error


def _write_lines(file: Path, lines: tuple[str, ...]) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.writelines(f"{line}\n" for line in lines)


@contextlib.contextmanager
def _made_whole(folder: Path) -> Iterator[Path]:
    """See `torpor.snapshots.store.folder.made_whole`; the disk's refusals are told as errors of the snapshot."""
    try:
        with made_whole(folder) as partial:
            yield partial
    except OSError as error:
        raise SnapshotError(f"The snapshot {folder} cannot be written: {error.strerror or error}.") from error
