"""`manifest.json`: what a snapshot is, and everything that must fit before it is restored.

A restore reads it before it imports anything else, so reading needs no engine and no plugin. The modules that a restore imports
before CRIU starts use named tuples: a frozen dataclass takes 0.5 ms to define, and its module 6 ms to import; a named tuple
takes 0.1 ms.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Literal, NamedTuple, cast

from torpor._version import __version__
from torpor.errors import DamagedSnapshotError
from torpor.runtime.canary import KINDS, Canary, canary_problem
from torpor.snapshots.store.fields import NEW_ONE, Fields, is_short_path, shown
from torpor.snapshots.store.gpu_state import Gpu, GpuPart, gpu_part, read_gpu
from torpor.snapshots.store.reading import opened_snapshot, read_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


__all__ = [
    "FAILURES",
    "HEAD_BYTES",
    "HERE",
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
    "Mode",
    "Scheduled",
    "StageTime",
    "Tcp",
    "parsed_manifest",
    "read_manifest",
    "write_private",
]

SCHEMA = 7
"""Version of the format of a snapshot's folder."""

MANIFEST, PRIVATE, IMAGES, LOGS, OUTSIDE = "manifest.json", "private.json", "images", "logs", "outside.json"
HERE = "here.json"  # written by a pull; see `torpor.snapshots.store.here`
FAILURES = "failures.json"  # written after the capture; see `torpor.snapshots.store.failures`
LAST_TIME_S = 253_402_300_799
"""The last Unix time of the year 9999; `time.localtime` cannot show a later one."""

MANIFEST_BYTES = 16 << 20
"""The largest manifest that is read; that of a large engine has about 100 kB."""

Mode = Literal["rootless", "root"]
"""`rootless`: in a user namespace, without privileges. `root`: without a user namespace; needs root (CAP_SYS_ADMIN)."""

Tcp = Literal["close", "established"]
"""Whether TCP connections inside the tree are closed (the default) or kept (tensor parallelism over gloo needs them)."""

HEAD_BYTES = 16
"""Bytes of each file that the manifest holds; a plain check compares them."""

_SHA256_DIGITS = 64
_LONGEST_CLOCK_S = 4e9  # a time namespace takes offsets up to half of KTIME_MAX
_LAST_PORT = 65_535
_LAST_PID = 1 << 22  # proc(5): pid_max
_LAST_CPU = 8191  # CONFIG_NR_CPUS
_LAST_IO_PRIORITY = 0xFFFF


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
        glibc: name and version of the C library, e.g. `glibc 2.36`; empty for another one.
        registers: bytes that the kernel needs to save a thread's registers (getauxval(3): AT_MINSIGSTKSZ); 0 if it does not say.
            Programs size their save areas by the CPU when they start.
        criu: version, e.g. `4.2.1`.
        criu_file: CRIU's program: path, size in bytes, time of change in nanoseconds. Unchanged, it still has that version.
        cpu: CPU features that the kernel lists. Libraries choose their code by them when they are loaded.
        driver: version of the NVIDIA driver; empty for a deployment without a GPU.
        gpus: in a manifest every GPU that the engine could see, used or not, in the driver's order; otherwise all GPUs of this
            machine. `GpuPart.needed` says which ones it used.
    """

    architecture: str
    kernel: str
    glibc: str
    registers: int
    criu: str
    criu_file: tuple[str, int, int]
    cpu: tuple[str, ...]
    driver: str
    gpus: tuple[Gpu, ...]


class DeploymentFacts(NamedTuple):
    """The deployment that was captured.

    Attributes:
        torpor: Torpor's version.
        name: the deployment's.
        port: where the engine listens inside its sandbox.
        plugins: version and options by name.
        task: what it serves.
        engine: name of the engine plugin, and version of the engine.
        model: repository or folder.
        revision: commit of the repository; empty for a folder.
        argv: the engine's command line.
        env: the variables that the recipe sets in its environment.
    """

    torpor: str
    name: str
    port: int
    plugins: Mapping[str, str]
    task: str
    engine: str
    model: str
    revision: str
    argv: tuple[str, ...]
    env: Mapping[str, str]


class StageTime(NamedTuple):
    """How long one stage of the cold start or the capture took, in seconds."""

    stage: str
    seconds: float


class Scheduled(NamedTuple):
    """How one thread is scheduled, if that differs from its sandbox.

    Attributes:
        pid: its process, inside the sandbox.
        tid: the thread, inside the sandbox.
        cpus: processors that it may use; empty if they are the sandbox's.
        io_priority: from ioprio_get(2); -1 if it is the sandbox's.
    """

    pid: int
    tid: int
    cpus: tuple[int, ...]
    io_priority: int


class Manifest(NamedTuple):
    """A snapshot.

    Attributes:
        schema: version of the format.
        captured_at: Unix time, seconds.
        app_file: file of the deployment, an absolute path.
        served_name: the model's name for clients.
        mode: kind of its sandboxes.
        scratch: mount point of the private scratch folder.
        tcp: what a restore does with TCP connections inside the tree.
        monotonic_s: the sandbox's CLOCK_MONOTONIC at the capture, seconds.
        boottime_s: its CLOCK_BOOTTIME.
        canary: what every replica has to answer as before the sleep.
        processes: pid and command of each process.
        scheduling: threads that are scheduled differently than their sandbox; CRIU does not restore that.
        stages: times of the cold start and the capture.
        image_bytes: size of CRIU's images.
        mapped_bytes: memory that replicas map from the images; shared pages count once for each process.
        side_file_bytes: size of the private folders' files.
        gpu: the GPU state; None for a deployment without a GPU.
        machine: where it was captured.
        deployment: what was captured.
        files: by path under the folder.
    """

    schema: int
    captured_at: float
    app_file: str
    served_name: str
    mode: Mode
    scratch: str
    tcp: Tcp
    monotonic_s: float
    boottime_s: float
    canary: Canary
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
        """Write `manifest.json`, readable by its owner only."""
        write_private(folder / MANIFEST, self.as_dict())

    def as_dict(self) -> dict[str, object]:
        """The manifest as JSON: objects in place of named tuples, at every level."""
        return cast("dict[str, object]", _named(self))


def _named(value: object) -> object:
    """A value with dicts in place of named tuples; `json` would write those as lists."""
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
    """Write JSON that only its owner may read (0600)."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        json.dump(content, stream, indent=1)
        stream.write("\n")


def read_manifest(folder: Path) -> Manifest:
    """Read a snapshot's manifest.

    Raises:
        DamagedSnapshotError: there is none, it is damaged, or it has another format.
    """
    with opened_snapshot(folder, MANIFEST) as folder_fd:
        return parsed_manifest(read_json(folder, MANIFEST, folder_fd, most=MANIFEST_BYTES))


def parsed_manifest(fields: Fields) -> Manifest:
    """A manifest from its JSON.

    Args:
        fields: all of its fields, none taken.

    Raises:
        DamagedSnapshotError: it is damaged, or has another format.
    """
    schema, deployment = fields.content.get("schema"), fields.content.get("deployment")
    if type(schema) is not int or schema != SCHEMA:
        written_by = f" by Torpor {shown(deployment.get('torpor', '?'))}" if isinstance(deployment, dict) else ""
        raise DamagedSnapshotError(
            f"{fields.file} was written{written_by} in format {shown(schema)}; this is Torpor {__version__}, which "
            f"reads format {SCHEMA}. Take a new snapshot, or use the version that wrote it."
        )
    return _manifest(fields)


def _manifest(fields: Fields) -> Manifest:
    """The manifest from its fields, in the order in which they are written."""
    manifest = Manifest(
        schema=fields.whole("schema"),
        captured_at=fields.number("captured_at", LAST_TIME_S),
        app_file=fields.path("app_file"),
        served_name=fields.text("served_name"),
        mode=cast("Mode", fields.choice("mode", ("root", "rootless"))),
        scratch=fields.path("scratch"),
        tcp=cast("Tcp", fields.choice("tcp", ("close", "established"))),
        monotonic_s=fields.number("monotonic_s", _LONGEST_CLOCK_S),
        boottime_s=fields.number("boottime_s", _LONGEST_CLOCK_S),
        canary=_canary(fields.inner("canary")),
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
    elif unseen := set(manifest.gpu.needed) - {gpu.uuid for gpu in manifest.machine.gpus}:
        fields.refuse("gpu.memory", min(unseen), "a GPU of machine.gpus")
    fields.end()
    return manifest


def _canary(fields: Fields) -> Canary:
    kind = fields.choice("kind", KINDS)
    answer, questions = fields.inner("answer").content, fields.inner("questions").content
    fields.end()
    if problem := canary_problem(canary := Canary(kind=kind, answer=answer, questions=questions)):
        raise DamagedSnapshotError(f"{fields.file} is damaged: its field canary.{problem}; {NEW_ONE}")
    return canary


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
        glibc=fields.text("glibc"),
        registers=fields.whole("registers"),
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
        task=fields.text("task", empty=False),
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
            head=facts.digits("head", 2 * HEAD_BYTES),
            sha256=facts.digits("sha256", _SHA256_DIGITS),
        )
        facts.end()
    return files
