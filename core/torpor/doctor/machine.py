"""What this machine lacks for snapshots of a deployment, and what to do about each thing."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from torpor.errors import ConfigurationError, SnapshotError
from torpor.snapshots.criu import probe
from torpor.snapshots.criu.program import find
from torpor.snapshots.criu.run import memory_bytes
from torpor.snapshots.gpu.driver import look
from torpor.snapshots.gpu.requirements import against_gpu
from torpor.snapshots.store.host_memory import MEMORY_VARIABLE, available_bytes, lies_in_memory
from torpor.snapshots.store.paths import CACHE_VARIABLE, cache_root, criu_prefix, snapshot_folder
from torpor.values.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torpor.deployment import Deployment
    from torpor.lifecycle import Lifecycle
    from torpor.recipe import Recipe
    from torpor.snapshots.criu.probe import Reason
    from torpor.snapshots.gpu.driver import Driver
    from torpor.values.findings import Level

__all__ = ["diagnose"]

_WEIGHT_FILES = ("*.safetensors", "*.bin", "*.pt", "*.gguf")
_OTHER_BYTES = 3_300_000_000  # the images of SGLang with Qwen3-8B-FP8 without its weights, measured on an H200
_ON_GPU_BYTES = 4022 << 20  # what the same engine holds on the GPU while it sleeps, with CUDA graphs
_INDEX_BYTES = 64 << 20
_MARGIN = 1.1


@dataclass(frozen=True, kw_only=True)
class _Bytes:
    """What a capture will move and write.

    Attributes:
        on_gpu: moved to host memory.
        new_in_memory: host memory that it takes on top of what is taken now.
        images: written.
        how: where these figures are from.
        measured: whether an engine that runs was looked at.
    """

    on_gpu: int
    new_in_memory: int
    images: int
    how: str
    measured: bool


def diagnose(lifecycle: Lifecycle | None = None) -> tuple[Finding, ...]:
    """Look at everything.

    Args:
        lifecycle: of what is to be snapshotted; without one, what is missing is a warning, and GPUs are looked at where the
            machine has some.
    """
    driver, deployment = look(), lifecycle.deployment if lifecycle else None
    bad: Level = "error" if deployment else "warning"
    with_gpu = deployment.gpu is not None if deployment else bool(driver.uses)
    return (
        *_criu(bad, with_gpu=with_gpu),
        *(_folders(lifecycle) if lifecycle else ()),
        *_gpu(lifecycle, driver, bad, with_gpu=with_gpu),
    )


def _folders(lifecycle: Lifecycle) -> Iterator[Finding]:
    """Whether the snapshot can be written, and whether what the engine needs lasts."""
    from torpor.snapshots.before_capture.lasting_folders import place_findings  # noqa: PLC0415 - for a deployment only
    from torpor.snapshots.targets import check_target, check_writable  # noqa: PLC0415

    deployment = lifecycle.deployment
    folder = snapshot_folder(deployment.name)
    try:
        check_target(folder)
        check_writable(folder)
    except SnapshotError as error:
        cure = f"name another folder (torpor snapshot create APP FOLDER), or set {CACHE_VARIABLE}"
        yield Finding(level="error", what="target", seen=str(error), cure=cure)
    with contextlib.suppress(ConfigurationError):  # the recipe's error is told with the app
        yield from place_findings(deployment, _recipe(lifecycle))


def _recipe(lifecycle: Lifecycle) -> Recipe:
    from torpor.build_steps.relocation import relocate  # noqa: PLC0415

    return relocate(lifecycle.recipe(), cache_root(), lifecycle.deployment.name)


def _criu(bad: Level, *, with_gpu: bool) -> Iterator[Finding]:
    prefix = criu_prefix()
    try:
        criu = find(prefix, cache=prefix)
        yield Finding(level="ok", what="CRIU", seen=f"{criu.version} at {criu.program}")
    except SnapshotError:  # the trial says the same, with what to do
        pass
    against: tuple[Reason, ...]
    if with_gpu:
        mode, against = "root", probe.available("root", cache=prefix, prefix=prefix)
    else:
        found, against = probe.usable_mode(cache=prefix, prefix=prefix)
        mode = found or ""
    if not against:
        yield Finding(level="ok", what="snapshots", seen=f"a small dump and restore works here ({mode})")
    for reason in against:
        yield _from_reason(reason, bad, "CRIU" if reason.code == "criu_missing" else "snapshots")


def _gpu(lifecycle: Lifecycle | None, driver: Driver, bad: Level, *, with_gpu: bool) -> Iterator[Finding]:
    deployment = lifecycle.deployment if lifecycle else None
    if not with_gpu:
        why = f"deployment {deployment.name!r} uses none" if deployment else "this machine has none"
        yield Finding(level="ok", what="GPU", seen=f"GPU snapshots do not apply: {why}")
        return
    against = against_gpu(None, driver)
    for reason in against:
        yield _from_reason(reason, bad, "GPU driver")
    if not against:
        gpus = ", ".join(f"{gpu.uuid} {gpu}" for gpu in driver.gpus)
        yield Finding(level="ok", what="GPU driver", seen=f"{driver.version}, which can checkpoint: {gpus}")
    if deployment:
        yield from _named_gpu(deployment)
    if needed := _running(driver) or (_last(lifecycle.deployment) or _estimated(lifecycle) if lifecycle else None):
        yield from _memory(needed, deployment, bad)
    else:
        yield _unknown(deployment)


def _named_gpu(deployment: Deployment) -> Iterator[Finding]:
    from torpor.platforms.local.server import check_gpu  # noqa: PLC0415 - it imports the whole lifecycle

    try:
        check_gpu(deployment)
    except ConfigurationError as error:
        yield Finding(level="error", what="GPU", seen=str(error), cure="use such a machine, or change Deployment.gpu")


def _memory(needed: _Bytes, deployment: Deployment | None, bad: Level) -> Iterator[Finding]:
    """Host memory and room against what a capture takes; a shortage against an estimate alone is a warning."""
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
        cure += f"for a virtual machine that gets more memory as it goes, say how much in {MEMORY_VARIABLE}"
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
    """What engines that run now hold; None when there is none on a GPU."""
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
    """What the deployment's last snapshot took; None where there is none."""
    from torpor.snapshots.store.stored import inspect  # noqa: PLC0415 - a name that Python has, too

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
        how=f"as the snapshot in {folder} took, {_gb(on_gpu)} of it from GPUs",
        measured=False,  # of this engine, but perhaps not of these values
    )


def _estimated(lifecycle: Lifecycle) -> _Bytes | None:
    """From the size of the weights, where they are on this machine; None where they are not."""
    where, weights = _weights(lifecycle)
    if not weights:
        return None
    images = weights + _OTHER_BYTES + _ON_GPU_BYTES
    return _Bytes(
        on_gpu=_ON_GPU_BYTES,
        new_in_memory=images,
        images=images,
        how=f"an estimate, as no engine runs: {_gb(weights)} of weights in {where}, {_gb(_OTHER_BYTES)} for the processes and "
        f"{_gb(_ON_GPU_BYTES)} from the GPU as measured with Qwen3-8B-FP8",
        measured=False,
    )


def _unknown(deployment: Deployment | None) -> Finding:
    """Nothing on this machine says how large it gets: no verdict."""
    available = f"{_gb(available_bytes())} available"
    if deployment is None:
        return Finding(level="ok", what="host memory", seen=f"{available}; torpor doctor APP says what an app takes")
    return Finding(
        level="warning",
        what="host memory",
        seen=f"{available}; what a snapshot of {deployment.name!r} takes is unknown: the weights of {deployment.model.source} are "
        "not on this machine, no engine runs and there is no snapshot of it",
        cure="fetch the weights (torpor up APP does, by its build steps) or start the engine, and ask again",
    )


def _weights(lifecycle: Lifecycle) -> tuple[Path, int]:
    """Where the model's weights are on this machine, and their bytes; 0 where they are not, or not whole."""
    from torpor.snapshots.before_capture.outside_files import model_files  # noqa: PLC0415

    deployment = lifecycle.deployment
    model = deployment.model
    if model.path:
        files, where = _files_in(Path(model.path)), Path(model.path)
    else:
        with contextlib.suppress(ConfigurationError):
            files = list(model_files(deployment, _recipe(lifecycle)))
            if files:
                return files[0].parent, _size_of_weights(files)
        where = (
            _hub_cache() / f"models--{(model.repo_id or '').replace('/', '--')}" / "snapshots" / (model.revision or "")
        )
        files = _files_in(where)
    return where, _size_of_weights(files)


def _hub_cache() -> Path:
    """Where the hub's client keeps models when no plugin says otherwise."""
    if named := os.environ.get("HF_HUB_CACHE"):
        return Path(named)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("HF_HOME") or cache / "huggingface") / "hub"


def _files_in(place: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return sorted(place.iterdir()) if place.is_dir() else [place]
    return []


def _size_of_weights(files: list[Path]) -> int:
    """Bytes of the files that hold weights; as many as their index names where that is more (a download may be under way)."""
    size = indexed = 0
    for file in files:
        with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
            if any(fnmatch(file.name, pattern) for pattern in _WEIGHT_FILES):
                size += file.stat().st_size
            elif file.name.endswith(".index.json") and file.stat().st_size <= _INDEX_BYTES:
                indexed = max(indexed, int(json.loads(file.read_bytes())["metadata"]["total_size"]))
    return max(size, indexed)


def _engine_pids() -> Iterator[int]:
    """Processes of engines that Torpor started, as far as this user may look: each has its replica id in the environment."""
    for name in os.listdir("/proc"):  # noqa: PTH208
        with contextlib.suppress(OSError):
            if name.isdigit() and b"\0TORPOR_REPLICA_ID=" in b"\0" + Path(f"/proc/{name}/environ").read_bytes():
                yield int(name)


def _from_reason(reason: Reason, level: Level, what: str) -> Finding:
    return Finding(level=level, what=what, seen=reason.seen, cure=reason.cure + ("" if reason.tried else " (untried)"))


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
