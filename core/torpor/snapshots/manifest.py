"""`manifest.json`: what a snapshot is, and everything that must fit before it is restored.

Reading it needs nothing of the engine and no plugin: a restore reads it before it imports anything else. Hence named
tuples, here and in the other modules that come before CRIU's start: a frozen dataclass takes 0.5 ms to make and its module 6
ms to import, a named tuple 0.1 ms.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, NamedTuple, cast

from torpor._version import __version__
from torpor.errors import SnapshotError
from torpor.snapshots.gpu_part import Gpu, GpuPart, described, different_gpus, gpu_part

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torpor.snapshots.criu import Tcp
    from torpor.snapshots.sandbox import Mode

__all__ = [
    "IMAGES",
    "LOGS",
    "MANIFEST",
    "PRIVATE",
    "SCHEMA",
    "DeploymentFacts",
    "FileFacts",
    "MachineFacts",
    "Manifest",
    "Stage",
    "damaged_files",
    "describe_files",
    "different_deployment",
    "different_machine",
    "read_manifest",
    "write_private",
]

SCHEMA = 3
MANIFEST, PRIVATE, IMAGES, LOGS, OUTSIDE = "manifest.json", "private.json", "images", "logs", "outside.json"
_HEAD_BYTES = 16
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


class Stage(NamedTuple):
    """What one stage of the cold start or the capture took, seconds."""

    stage: str
    seconds: float


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
    stages: tuple[Stage, ...]
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
        SnapshotError: there is none, it is damaged, or another version of Torpor made it.
    """
    file = folder / MANIFEST
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise SnapshotError(
            f"{folder} holds no snapshot: there is no {MANIFEST} in it. `torpor snapshot create APP {folder}` makes one."
        ) from None
    except (OSError, ValueError) as error:
        raise SnapshotError(f"{file} cannot be read ({error}); make the snapshot anew.") from error
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA:
        made_by = ""
        if isinstance(content, dict) and isinstance(content.get("deployment"), dict):
            made_by = f" by Torpor {content['deployment'].get('torpor', '?')}"
        raise SnapshotError(
            f"{file} was made{made_by} in format {schema!r}; this is Torpor {__version__}, which reads format {SCHEMA}. "
            "Use the version that made it, or make the snapshot anew."
        )
    try:
        return _manifest(content)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise SnapshotError(f"{file} is damaged ({type(error).__name__}: {error}); make the snapshot anew.") from error


def _manifest(content: dict[str, object]) -> Manifest:
    machine = cast("dict[str, list[str]]", content["machine"])
    gpus = cast("list[dict[str, object]]", machine["gpus"])
    deployment = cast("dict[str, object]", content["deployment"])
    files_ = cast("dict[str, dict[str, object]]", content["files"])
    given = {
        **content,
        "processes": tuple(cast("list[str]", content["processes"])),
        "stages": tuple(Stage(**stage) for stage in cast("list[dict[str, object]]", content["stages"])),  # type: ignore[arg-type]
        "machine": MachineFacts(
            **{
                **{name: tuple(value) if isinstance(value, list) else value for name, value in machine.items()},  # type: ignore[arg-type]
                "gpus": tuple(Gpu(**gpu) for gpu in gpus),  # type: ignore[arg-type]
            }
        ),
        "gpu": None if content["gpu"] is None else gpu_part(cast("dict[str, object]", content["gpu"])),
        "deployment": DeploymentFacts(
            **{**deployment, "argv": tuple(cast("list[str]", deployment["argv"]))}  # type: ignore[arg-type]
        ),
        "files": {path: FileFacts(**facts) for path, facts in files_.items()},  # type: ignore[arg-type]
    }
    return Manifest(**given)  # type: ignore[arg-type]


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
    return tuple(_damages(folder, manifest, full=full))


def _damages(folder: Path, manifest: Manifest, *, full: bool) -> Iterator[str]:
    if not folder.is_dir():
        yield f"its folder {folder} is gone"
        return
    for path, wanted in manifest.files.items():
        file = folder / path
        try:
            size, head = file.stat().st_size, _head(file)
        except FileNotFoundError:
            yield f"its file {path} is missing"
            continue
        except OSError as error:
            yield f"its file {path} cannot be read: {error.strerror}"
            continue
        if size != wanted.size:
            yield f"its file {path} has {size} bytes, not {wanted.size}: it was cut or changed"
        elif head != wanted.head or (full and _sha256(file) != wanted.sha256):
            yield f"its file {path} was changed: its content is not what was written"


def different_machine(made_on: MachineFacts, here: MachineFacts) -> tuple[str, ...]:
    """Why a snapshot of one machine does not fit another, each as a sentence."""
    found = [
        f"it was made on {what} {then}; here it is {now}"
        for what, then, now in (
            ("architecture", made_on.architecture, here.architecture),
            ("kernel", made_on.kernel, here.kernel),
            ("CRIU", made_on.criu, here.criu),
            ("NVIDIA driver", made_on.driver or "none", here.driver or "none"),
        )
        if then != now
    ]
    if len(here.gpus) < len(made_on.gpus):
        found.append(f"it was made on GPUs {described(made_on.gpus)}; here it is {described(here.gpus)}")
    found += different_gpus(made_on.gpus, here.gpus)
    if missing := sorted(set(made_on.cpu) - set(here.cpu)):
        found.append(f"this CPU lacks features that were there: {_some(missing)}")
    return tuple(found)


def different_deployment(made_of: DeploymentFacts, here: DeploymentFacts) -> tuple[str, ...]:
    """Why a snapshot is not of this deployment as it stands now, each as a sentence."""
    found = []
    words = {"torpor": "Torpor", "name": "deployment", "port": "Deployment.port", "engine": "engine"}
    words |= {"model": "model", "revision": "model revision"}
    for name, word in words.items():
        then, now = getattr(made_of, name), getattr(here, name)
        if then != now:
            found.append(f"{word} was {then or 'none'!s} when it was made; now it is {now or 'none'!s}")
    for name in sorted({*made_of.plugins, *here.plugins}):
        then, now = made_of.plugins.get(name, "not there"), here.plugins.get(name, "not there")
        if then != now:
            found.append(f"plugin {name} was {then}; now it is {now}")
    if made_of.argv != here.argv:
        gone = [word for word in made_of.argv if word not in here.argv]
        new = [word for word in here.argv if word not in made_of.argv]
        found.append(f"the engine's command line differs: gone {_some(gone)}; new {_some(new)}")
    if names := sorted(name for name, _ in set(made_of.env.items()) ^ set(here.env.items())):
        found.append(f"the engine's environment differs in {_some(sorted(set(names)))}")
    return tuple(found)


def _some(words: list[str]) -> str:
    more = f" and {len(words) - _SHOWN} more" if len(words) > _SHOWN else ""
    return (", ".join(words[:_SHOWN]) or "nothing") + more


def _head(file: Path) -> str:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        return os.read(descriptor, _HEAD_BYTES).hex()
    finally:
        os.close(descriptor)


def _sha256(file: Path) -> str:
    import hashlib  # noqa: PLC0415 - a fast check needs none

    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
