"""`manifest.json`: what a snapshot is, and everything that must fit before it is restored.

Reading it needs nothing of the engine and no plugin: a restore reads it before it imports anything else. Hence named
tuples, here and in the other modules that come before CRIU's start: a frozen dataclass takes 0.5 ms to make and its module 6
ms to import, a named tuple 0.1 ms.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from typing import TYPE_CHECKING, NamedTuple, cast

from torpor._version import __version__
from torpor.errors import DamagedSnapshotError, SnapshotError
from torpor.snapshots.store.gpu_state import Gpu, GpuPart, gpu_part, read_gpu
from torpor.snapshots.store.reading import (
    Fields,
    check_owned,
    is_short_path,
    opened_file,
    opened_folder,
    read_json,
    shown,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torpor.snapshots.criu.run import Tcp
    from torpor.snapshots.sandbox.sandbox import Mode

__all__ = [
    "FAILURES",
    "IMAGES",
    "LAST_TIME_S",
    "LOGS",
    "MANIFEST",
    "MANIFEST_BYTES",
    "OUTSIDE",
    "PRIVATE",
    "SCHEMA",
    "DeploymentFacts",
    "FileFacts",
    "MachineFacts",
    "Manifest",
    "Scheduled",
    "StageTime",
    "damaged_files",
    "describe_files",
    "read_manifest",
    "write_private",
]

SCHEMA = 4
MANIFEST, PRIVATE, IMAGES, LOGS, OUTSIDE = "manifest.json", "private.json", "images", "logs", "outside.json"
FAILURES = "failures.json"  # comes later, see `torpor.snapshots.store.failures`
LAST_TIME_S = 253_402_300_799
"""The last Unix time of the year 9999; a later one cannot be shown."""

MANIFEST_BYTES = 16 << 20
"""The longest manifest that is read; one of a large engine has some 100 kB."""

_HEAD_BYTES = 16
_SHA256_DIGITS = 64
_LONGEST_CLOCK_S = 4e9  # a time namespace takes offsets up to half of KTIME_MAX
_MOST_TOKENS = 1_000_000
_LAST_PORT = 65_535
_LAST_PID = 1 << 22  # proc(5): pid_max
_LAST_CPU = 8191  # CONFIG_NR_CPUS
_LAST_IO_PRIORITY = 0xFFFF
_SHOWN = 8


class FileFacts(NamedTuple):
    """One file of the snapshot: size in bytes, its first 16 bytes (hex), SHA-256 (hex)."""

    size: int
    head: str
    sha256: str


class MachineFacts(NamedTuple):
    """The machine, as far as a restored process depends on it.

    Attributes:
        architecture: e.g. `x86_64`.
        kernel: release, e.g. `6.18.5`.
        criu: version, e.g. `4.2.1`.
        criu_file: its program: path, size in bytes, time of change in nanoseconds; while they hold, so does the version.
        cpu: features that the kernel lists; libraries chose their code by them when they were loaded.
        driver: version of the NVIDIA driver; empty for a deployment without a GPU.
        gpus: the GPUs that the tree was on; of the machine at hand, every one.
    """

    architecture: str
    kernel: str
    criu: str
    criu_file: tuple[str, int, int]
    cpu: tuple[str, ...]
    driver: str
    gpus: tuple[Gpu, ...]


class DeploymentFacts(NamedTuple):
    """What was started.

    Attributes:
        torpor: Torpor's version.
        name: the deployment's.
        port: where the engine listens inside its sandbox.
        plugins: by name, version and options.
        engine: the engine plugin's name and the engine's version.
        model: repository or folder.
        revision: commit of the repository; empty for a folder.
        argv: the engine's command line.
        env: what the recipe set in its environment.
    """

    torpor: str
    name: str
    port: int
    plugins: Mapping[str, str]
    engine: str
    model: str
    revision: str
    argv: tuple[str, ...]
    env: Mapping[str, str]


class StageTime(NamedTuple):
    """What one stage of the cold start or the capture took, seconds."""

    stage: str
    seconds: float


class Scheduled(NamedTuple):
    """How one thread is scheduled, where that differs from its sandbox.

    Attributes:
        pid: its process, inside the sandbox.
        tid: the thread, inside the sandbox.
        cpus: processors that it may use; empty for those of the sandbox.
        io_priority: as ioprio_get(2) gives it; -1 for that of the sandbox.
    """

    pid: int
    tid: int
    cpus: tuple[int, ...]
    io_priority: int


class Manifest(NamedTuple):
    """A snapshot.

    Attributes:
        schema: version of this format.
        created_at: Unix time, seconds.
        app_file: where the deployment stands, an absolute path.
        served_name: the model's name for clients.
        mode: how its sandboxes are made.
        scratch: mount point of the private scratch folder.
        tcp: what becomes of TCP connections inside the tree.
        monotonic_s: the sandbox's CLOCK_MONOTONIC at the capture, seconds.
        boottime_s: its CLOCK_BOOTTIME.
        canary_prompt: what was asked.
        canary_tokens: tokens of the answer.
        canary_text: the answer that every replica has to give again.
        processes: command of each process in it.
        scheduling: threads that are scheduled otherwise than their sandbox; CRIU does not bring that back.
        stages: cold start and capture.
        image_bytes: CRIU's images.
        mapped_bytes: what of them replicas map; CRIU copies the rest into each.
        side_file_bytes: the private folders' content.
        gpu: what of it was on GPUs; None for a deployment without one.
        machine: where it was made.
        deployment: of what.
        files: by path under the folder.
    """

    schema: int
    created_at: float
    app_file: str
    served_name: str
    mode: Mode
    scratch: str
    tcp: Tcp
    monotonic_s: float
    boottime_s: float
    canary_prompt: str
    canary_tokens: int
    canary_text: str
    processes: tuple[str, ...]
    scheduling: tuple[Scheduled, ...]
    stages: tuple[StageTime, ...]
    image_bytes: int
    mapped_bytes: int
    side_file_bytes: int
    gpu: GpuPart | None
    machine: MachineFacts
    deployment: DeploymentFacts
    files: Mapping[str, FileFacts]

    def write(self, folder: Path) -> None:
        """Write `manifest.json`, readable by its owner alone."""
        write_private(folder / MANIFEST, self.as_dict())

    def as_dict(self) -> dict[str, object]:
        """As JSON has it: what is in it by name, all the way down."""
        return cast("dict[str, object]", _named(self))


def _named(value: object) -> object:
    """A value with its named tuples as dicts; `json` would write them as lists."""
    if isinstance(value, dict):
        return {name: _named(part) for name, part in value.items()}
    if isinstance(value, tuple):
        names = getattr(value, "_fields", None)
        return (
            [_named(part) for part in value]
            if names is None
            else {name: _named(getattr(value, name)) for name in names}
        )
    return value


def write_private(file: Path, content: object) -> None:
    """Write JSON that its owner alone may read (0600)."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        json.dump(content, stream, indent=1)
        stream.write("\n")


def read_manifest(folder: Path) -> Manifest:
    """Read a snapshot's manifest.

    Raises:
        DamagedSnapshotError: there is none, it is damaged, or another version of Torpor wrote it.
    """
    try:
        folder_fd = opened_folder(folder)
        try:
            fields = read_json(folder, MANIFEST, folder_fd, most=MANIFEST_BYTES)
        finally:
            os.close(folder_fd)
    except FileNotFoundError:
        raise DamagedSnapshotError(
            f"{folder} holds no snapshot: there is no {MANIFEST} in it. `torpor snapshot create APP {folder}` makes one."
        ) from None
    except OSError as error:
        raise DamagedSnapshotError(
            f"{folder} holds no snapshot: it cannot be opened as a folder ({error.strerror})."
        ) from error
    content = fields.content
    if type(content.get("schema")) is not int or content["schema"] != SCHEMA:
        made = content.get("deployment")
        made_by = f" by Torpor {shown(made.get('torpor', '?'))}" if isinstance(made, dict) else ""
        raise DamagedSnapshotError(
            f"{folder / MANIFEST} was made{made_by} in format {shown(content.get('schema'))}; this is Torpor {__version__}, which "
            f"reads format {SCHEMA}. Use the version that made it, or make the snapshot anew."
        )
    return _manifest(fields)


def _manifest(fields: Fields) -> Manifest:
    """The manifest out of its fields, in the order in which they are written."""
    manifest = Manifest(
        schema=fields.whole("schema"),
        created_at=fields.number("created_at", LAST_TIME_S),
        app_file=fields.path("app_file"),
        served_name=fields.text("served_name"),
        mode=cast("Mode", fields.choice("mode", ("root", "rootless"))),
        scratch=fields.path("scratch"),
        tcp=cast("Tcp", fields.choice("tcp", ("close", "established"))),
        monotonic_s=fields.number("monotonic_s", _LONGEST_CLOCK_S),
        boottime_s=fields.number("boottime_s", _LONGEST_CLOCK_S),
        canary_prompt=fields.text("canary_prompt"),
        canary_tokens=fields.whole("canary_tokens", 0, _MOST_TOKENS),
        canary_text=fields.text("canary_text"),
        processes=fields.texts("processes"),
        scheduling=tuple(_scheduled(thread) for thread in fields.each("scheduling")),
        stages=tuple(_stage(stage) for stage in fields.each("stages")),
        image_bytes=fields.whole("image_bytes"),
        mapped_bytes=fields.whole("mapped_bytes"),
        side_file_bytes=fields.whole("side_file_bytes"),
        gpu=None if fields.content.get("gpu") is None else gpu_part(fields.inner("gpu")),
        machine=_machine(fields.inner("machine")),
        deployment=_deployment(fields.inner("deployment")),
        files=_files(fields.inner("files")),
    )
    if manifest.gpu is None:
        fields.take("gpu")
    fields.end()
    return manifest


def _stage(fields: Fields) -> StageTime:
    stage = StageTime(stage=fields.text("stage"), seconds=fields.number("seconds", _LONGEST_CLOCK_S))
    fields.end()
    return stage


def _scheduled(fields: Fields) -> Scheduled:
    cpus = fields.items("cpus")
    if not all(isinstance(cpu, int) and not isinstance(cpu, bool) and 0 <= cpu <= _LAST_CPU for cpu in cpus):
        fields.refuse("cpus", cpus, f"numbers of processors, 0 to {_LAST_CPU}")
    thread = Scheduled(
        pid=fields.whole("pid", 1, _LAST_PID),
        tid=fields.whole("tid", 1, _LAST_PID),
        cpus=tuple(cast("list[int]", cpus)),
        io_priority=fields.whole("io_priority", -1, _LAST_IO_PRIORITY),
    )
    fields.end()
    return thread


def _machine(fields: Fields) -> MachineFacts:
    criu_file = fields.items("criu_file")
    match criu_file:
        case [str(path), int(size), int(changed_ns)]:
            pass
        case _:
            fields.refuse("criu_file", criu_file, "a path and two numbers")
    facts = MachineFacts(
        architecture=fields.text("architecture"),
        kernel=fields.text("kernel"),
        criu=fields.text("criu"),
        criu_file=(path, size, changed_ns),
        cpu=fields.texts("cpu"),
        driver=fields.text("driver"),
        gpus=tuple(read_gpu(gpu) for gpu in fields.each("gpus")),
    )
    fields.end()
    return facts


def _deployment(fields: Fields) -> DeploymentFacts:
    facts = DeploymentFacts(
        torpor=fields.text("torpor"),
        name=fields.text("name", empty=False),
        port=fields.whole("port", 1, _LAST_PORT),
        plugins=_texts(fields.inner("plugins")),
        engine=fields.text("engine"),
        model=fields.text("model"),
        revision=fields.text("revision"),
        argv=fields.texts("argv"),
        env=_texts(fields.inner("env")),
    )
    fields.end()
    return facts


def _texts(fields: Fields) -> dict[str, str]:
    return {name: fields.text(name) for name in fields.names()}


def _files(fields: Fields) -> dict[str, FileFacts]:
    files = {}
    for path in fields.names():
        parts = path.split("/")
        if "\0" in path or path == MANIFEST or not set(parts).isdisjoint(("", ".", "..")) or not is_short_path(path):
            fields.refuse(path, path, "the path of a file in the snapshot")
        facts = fields.inner(path)
        files[path] = FileFacts(
            size=facts.whole("size"),
            head=facts.digits("head", 2 * _HEAD_BYTES),
            sha256=facts.digits("sha256", _SHA256_DIGITS),
        )
        facts.end()
    return files


def describe_files(folder: Path) -> dict[str, FileFacts]:
    """Facts of every file under a snapshot's folder but the manifest itself."""
    return {
        str(file.relative_to(folder)): FileFacts(size=file.stat().st_size, head=_head(file), sha256=_sha256(file))
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != MANIFEST
    }


def damaged_files(folder: Path, manifest: Manifest, *, full: bool) -> tuple[str, ...]:
    """What is wrong with a snapshot's files, each as a sentence.

    Args:
        folder: the snapshot.
        manifest: its manifest.
        full: compare the hash of every file, not only size and first bytes.
    """
    found = list(_damages(folder, manifest, full=full))
    more = [f"so are {len(found) - _SHOWN} more files"] if len(found) > _SHOWN else []
    return tuple(found[:_SHOWN] + more)


def _damages(folder: Path, manifest: Manifest, *, full: bool) -> Iterator[str]:
    with contextlib.ExitStack() as opened:
        try:
            folders = {"": opened_folder(folder)}
        except OSError as error:
            gone = isinstance(error, FileNotFoundError)
            yield f"its folder {folder} {'is gone' if gone else f'cannot be opened: {error.strerror}'}"
            return
        opened.callback(_close_all, folders)
        told: set[str] = set()
        for path, wanted in manifest.files.items():
            parent, _, name = path.rpartition("/")
            try:
                descriptor, facts = opened_file(name, _inner_folder(folders, parent))
                try:
                    size, head = facts.st_size, os.read(descriptor, _HEAD_BYTES).hex()
                    same = size == wanted.size and (not full or _sha256(descriptor) == wanted.sha256)
                finally:
                    os.close(descriptor)
            except FileNotFoundError:
                yield f"its file {path} is missing"
            except SnapshotError as error:
                yield f"its file {path} {error}"
            except _FolderError as error:
                if parent not in told:
                    yield f"its folder {parent} {error}"
                told.add(parent)
            except OSError as error:
                yield f"its file {path} cannot be read: {error.strerror}"
            else:
                if size != wanted.size:
                    yield f"its file {path} has {size} bytes, not {wanted.size}: it was cut or changed"
                elif head != wanted.head or not same:
                    yield f"its file {path} was changed: its content is not what was written"


class _FolderError(Exception):
    """A folder of a snapshot that is not to be trusted: the rest of a sentence about it."""


def _close_all(folders: Mapping[str, int]) -> None:
    for folder_fd in folders.values():
        os.close(folder_fd)


def _inner_folder(folders: dict[str, int], path: str) -> int:
    """A descriptor of a folder of the snapshot, opened part by part: no part is a link, and all are this user's own.

    Raises:
        OSError: it cannot be opened.
        _FolderError: it is not to be trusted; the rest of a sentence about it.
    """
    if path not in folders:
        parent, _, name = path.rpartition("/")
        parent_fd = _inner_folder(folders, parent)
        try:
            check_owned(os.stat(name, dir_fd=parent_fd, follow_symlinks=False), stat.S_IFDIR)
            folders[path] = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent_fd)
            check_owned(os.fstat(folders[path]), stat.S_IFDIR)
        except SnapshotError as error:
            raise _FolderError(error) from None
    return folders[path]


def _head(file: Path) -> str:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        return os.read(descriptor, _HEAD_BYTES).hex()
    finally:
        os.close(descriptor)


def _sha256(file: Path | int) -> str:
    import hashlib  # noqa: PLC0415 - a fast check needs none

    with open(file, "rb", closefd=not isinstance(file, int)) as stream:
        stream.seek(0)
        return hashlib.file_digest(stream, "sha256").hexdigest()
