"""How much host memory and disk a capture takes on this machine: of a running engine, of the last snapshot, or an estimate."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from torpor.build_steps.relocation import relocate
from torpor.errors import ConfigurationError, SnapshotError
from torpor.snapshots.before_capture.outside_files import model_files
from torpor.snapshots.criu.run import memory_bytes
from torpor.snapshots.store.host_memory import MEMORY_VARIABLE, available_bytes, lies_in_memory
from torpor.snapshots.store.paths import cache_root, snapshot_folder
from torpor.snapshots.store.stored import inspect
from torpor.values.findings import Finding
from torpor.values.model_source import hub_snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torpor.deployment import Deployment
    from torpor.lifecycle import Lifecycle
    from torpor.recipe import Recipe
    from torpor.snapshots.gpu.driver import Driver
    from torpor.values.findings import Level

__all__ = ["Expected", "expected", "memory_findings"]

_WEIGHT_FILES = ("*.safetensors", "*.bin", "*.pt", "*.gguf")
_OTHER_BYTES = 3_300_000_000  # the images of SGLang with Qwen3-8B-FP8 without its weights, measured on an H200
_ON_GPU_BYTES = (
    4022 << 20
)  # what the same engine holds on the GPU while it sleeps, with CUDA graphs; 4 MiB of it by NCCL
_INDEX_BYTES = 64 << 20
_MARGIN = 1.1


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a snapshot takes before anything is known of it but the number of ranks, bytes; without the weights.

    Measured with Qwen3-8B-FP8 and SGLang, and multiplied by the ranks. Real snapshots of it are smaller, because zeros take no
    room: 4.3 GB of one rank (graphs up to batch 1000), 8.0 GB of two ranks (graphs up to batch 8).

    Attributes:
        ranks: processes that each have a GPU.
        on_gpus: moved from all GPUs to host memory.
        processes: host memory of all processes.
        weights_inside: whether the weights come on top.
    """

    ranks: int
    on_gpus: int
    processes: int
    weights_inside: bool

    @property
    def images(self) -> int:
        """Written to the snapshot's folder."""
        return self.on_gpus + self.processes


def expected(deployment: Deployment) -> Expected:
    """What a snapshot of the deployment takes; without a GPU it has one rank, which moves nothing."""
    ranks = max(1, deployment.gpu_count)
    sleep = deployment.engine.rank_sleep(deployment)
    return Expected(
        ranks=ranks,
        on_gpus=ranks * _ON_GPU_BYTES if deployment.gpu_count else 0,
        processes=ranks * _OTHER_BYTES,
        weights_inside=sleep is None or sleep.weights in ("snapshot", "gpu"),
    )


@dataclass(frozen=True, kw_only=True)
class _Bytes:
    """The bytes that a capture moves and writes.

    Attributes:
        on_gpu: moved from GPUs to host memory.
        new_in_memory: additional host memory.
        images: written to the snapshot's folder.
        how: where these figures come from.
        measured: whether they are those of a running engine.
    """

    on_gpu: int
    new_in_memory: int
    images: int
    how: str
    measured: bool


def memory_findings(lifecycle: Lifecycle | None, driver: Driver, bad: Level) -> Iterator[Finding]:
    """Whether host memory and disk are large enough for a capture.

    Args:
        lifecycle: of what is to be captured; without one only running engines are looked at.
        driver: of the GPUs, with the processes that use them.
        bad: the level of a measured shortage.
    """
    deployment = lifecycle.deployment if lifecycle else None
    needed = _running(driver)
    if needed is None and lifecycle:
        needed = _last(lifecycle.deployment) or _estimated(lifecycle)
    if needed:
        yield from _compared(needed, deployment, bad)
    else:
        yield _unknown(deployment)


def _compared(needed: _Bytes, deployment: Deployment | None, bad: Level) -> Iterator[Finding]:
    """Compare host memory and disk with what a capture takes. A shortage by an estimate is only a warning."""
    level: Level = bad if needed.measured else "warning"
    folder = snapshot_folder(deployment.name if deployment else "any").parent
    while not folder.exists():
        folder = folder.parent
    in_memory = lies_in_memory(folder)
    wanted = int((needed.new_in_memory + (needed.images if in_memory else 0)) * _MARGIN)
    available = available_bytes()
    seen = f"{_gb(available)} available, {_gb(wanted)} wanted ({needed.how}"
    seen += f"; {folder} is a tmpfs, so the images count)" if in_memory else ")"
    if available < wanted:
        cure = "free host memory, take a larger machine, keep the weights outside of the snapshot, or choose a folder on a disk; "
        cure += f"for a virtual machine whose memory grows on use, set {MEMORY_VARIABLE} to what it may have"
        yield Finding(level=level, what="host memory", seen=seen, cure=cure)
    else:
        yield Finding(level="ok", what="host memory", seen=seen)
    free, room = shutil.disk_usage(folder).free, int(needed.images * _MARGIN)
    seen = f"{_gb(free)} free in {folder} ({'tmpfs' if in_memory else 'disk'}), {_gb(room)} wanted ({needed.how})"
    if free < room:
        yield Finding(level=level, what="room", seen=seen, cure="free some, or choose another folder for the snapshot")
    else:
        yield Finding(level="ok", what="room", seen=seen)


def _running(driver: Driver) -> _Bytes | None:
    """What running engines hold; None if none is on a GPU."""
    engines = {pid for pid in _engine_pids() if any(pid in use.held_bytes for use in driver.uses)}
    if not engines:
        return None
    on_gpu = sum(driver.held_by(engines).values())
    on_host = sum(map(memory_bytes, _engine_pids()))
    listed = ", ".join(map(str, sorted(engines)))
    return _Bytes(
        on_gpu=on_gpu,
        new_in_memory=on_gpu,
        images=on_gpu + on_host,
        how=f"the engine that runs now holds {_gb(on_gpu)} on GPUs (pid {listed}) and {_gb(on_host)} of host memory; asleep "
        "it holds less on the GPU",
        measured=True,
    )


def _last(deployment: Deployment) -> _Bytes | None:
    """What the deployment's last snapshot took; None if there is none."""
    folder = snapshot_folder(deployment.name)
    try:
        manifest = inspect(folder)
    except SnapshotError:
        return None
    on_gpu, images = manifest.gpu.memory_bytes if manifest.gpu else 0, manifest.image_bytes + manifest.side_file_bytes
    return _Bytes(
        on_gpu=on_gpu,
        new_in_memory=images,
        images=images,
        how=f"as much as the snapshot in {folder} took, {_gb(on_gpu)} of it from GPUs",
        measured=False,  # the same engine, but perhaps with other options
    )


def _estimated(lifecycle: Lifecycle) -> _Bytes | None:
    """An estimate from the size of the weights; None if they are not on this machine."""
    where, weights = _weights(lifecycle)
    if not weights:
        return None
    wanted = expected(lifecycle.deployment)
    images = wanted.images + (weights if wanted.weights_inside else 0)
    several = wanted.ranks > 1
    outside = "" if wanted.weights_inside else ", which stay outside of the snapshot"
    processes = f"the processes of {wanted.ranks} ranks" if several else "the processes"
    gpus = f"{wanted.ranks} GPUs" if several else "the GPU"
    return _Bytes(
        on_gpu=wanted.on_gpus,
        new_in_memory=images,
        images=images,
        how=f"an estimate, as no engine runs: {_gb(weights)} of weights in {where}{outside}, {_gb(wanted.processes)} for "
        f"{processes} and {_gb(wanted.on_gpus)} from {gpus} as measured with Qwen3-8B-FP8",
        measured=False,
    )


def _unknown(deployment: Deployment | None) -> Finding:
    """Nothing on this machine shows how large a snapshot gets: no verdict."""
    available = f"{_gb(available_bytes())} available"
    if deployment is None:
        return Finding(level="ok", what="host memory", seen=f"{available}; torpor doctor APP shows what an app takes")
    return Finding(
        level="warning",
        what="host memory",
        seen=f"{available}; what a snapshot of {deployment.name!r} takes is unknown: the weights of {deployment.model.source} are "
        "not on this machine, no engine runs and there is no snapshot of it",
        cure="fetch the weights (torpor up APP does, by its build steps) or start the engine, and ask again",
    )


def _weights(lifecycle: Lifecycle) -> tuple[Path, int]:
    """The folder of the model's weights on this machine, and their bytes; 0 if there are none."""
    deployment = lifecycle.deployment
    model = deployment.model
    if model.path:
        files, where = _files_in(Path(model.path)), Path(model.path)
    else:
        with contextlib.suppress(ConfigurationError):
            files = list(model_files(deployment, _recipe(lifecycle)))
            if files:
                return files[0].parent, _size_of_weights(files)
        where = hub_snapshot(_hub_cache(), model.repo_id or "", model.revision or "")
        files = _files_in(where)
    return where, _size_of_weights(files)


def _recipe(lifecycle: Lifecycle) -> Recipe:
    return relocate(lifecycle.recipe(), cache_root(), lifecycle.deployment.name)


def _hub_cache() -> Path:
    """Where the hub's client keeps models by default."""
    if named := os.environ.get("HF_HUB_CACHE"):
        return Path(named)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("HF_HOME") or cache / "huggingface") / "hub"


def _files_in(place: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return sorted(place.iterdir()) if place.is_dir() else [place]
    return []


def _size_of_weights(files: list[Path]) -> int:
    """Bytes of the weight files; what their index names, if that is more: a download may be under way."""
    size = indexed = 0
    for file in files:
        with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
            if any(fnmatch(file.name, pattern) for pattern in _WEIGHT_FILES):
                size += file.stat().st_size
            elif file.name.endswith(".index.json") and file.stat().st_size <= _INDEX_BYTES:
                indexed = max(indexed, int(json.loads(file.read_bytes())["metadata"]["total_size"]))
    return max(size, indexed)


def _engine_pids() -> Iterator[int]:
    """Processes of Torpor's engines, as far as this user may see: each has its replica id in the environment."""
    for name in os.listdir("/proc"):  # noqa: PTH208
        with contextlib.suppress(OSError):
            if name.isdigit() and b"\0TORPOR_REPLICA_ID=" in b"\0" + Path(f"/proc/{name}/environ").read_bytes():
                yield int(name)


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
