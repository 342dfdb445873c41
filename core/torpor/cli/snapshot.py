"""`torpor snapshot create`, `inspect`, `rm`, `weights` and `setup`."""

from __future__ import annotations

import json
import shlex
import sys
import time
from typing import TYPE_CHECKING, cast

from rich.table import Table

from torpor.cli.console import console as make_console
from torpor.cli.console import shown
from torpor.cli.terminal import claim_output, result
from torpor.errors import ConfigurationError, SnapshotError
from torpor.snapshots.store.index import remove
from torpor.snapshots.store.stored import inspect
from torpor.values.plain_text import one_line

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torpor.snapshots.kept_weights import KeptFile
    from torpor.snapshots.store.gpu_state import GpuPart
    from torpor.snapshots.store.manifest import Manifest, Mode

__all__ = ["run_create", "run_inspect", "run_rm", "run_setup", "run_weights"]

_MODES = ("root", "rootless")
_CANARY_SHOWN = 80
"""Characters of the canary's text."""


def run_create(
    app_file: str, folder: Path, *, mode: str, copy_memory: bool, as_json: bool, prove: bool | None = None
) -> None:
    """Start cold, sleep, keep, end."""
    from torpor.cli.interrupts import ends_on_sigterm  # noqa: PLC0415
    from torpor.cli.up import Progress  # noqa: PLC0415
    from torpor.platforms.local.server import create_snapshot  # noqa: PLC0415
    from torpor.telemetry.events import warnings_only  # noqa: PLC0415
    from torpor.telemetry.stage_report import StageReport  # noqa: PLC0415

    claim_output()
    if mode and mode not in _MODES:
        raise ConfigurationError(f"--mode is {mode!r}; allowed are {' and '.join(_MODES)}.")
    console = make_console()
    warnings_only()
    ends_on_sigterm()
    progress = Progress(console, as_json=as_json)
    with progress.listening():
        manifest = create_snapshot(
            app_file,
            folder,
            mode=cast("Mode", mode) if mode else None,
            copy_memory=copy_memory,
            prove=prove,
            report=StageReport(on_begin=progress.begin, on_end=progress.end),
            on_step=progress.step,
        )
    if as_json:
        result(json.dumps(manifest.as_dict(), indent=2))
    else:
        console.print(_table(folder, manifest))
        console.print(f"restore it: torpor snapshot restore {shlex.quote(str(folder))}", markup=False, soft_wrap=True)


def run_inspect(folder: Path, *, as_json: bool) -> None:
    """Print the manifest, and what does not fit; exit code 1 where something does not.

    Raises:
        SnapshotError: there is no snapshot that can be used, here or anywhere; exit code 2.
    """
    from torpor.snapshots.fit import misfits  # noqa: PLC0415

    claim_output()
    try:
        manifest = inspect(folder)
    except SnapshotError as error:
        error.exit_code = 2
        raise
    reasons = misfits(folder, manifest)
    if as_json:
        result(json.dumps({**manifest.as_dict(), "misfits": reasons}, indent=2))
    else:
        console = make_console(results=True)
        console.print(_table(folder, manifest))
        for reason in reasons:
            console.print(f"does not fit: {reason}", markup=False)
        if not reasons:
            console.print("fits this machine and its app")
    if reasons:
        sys.exit(1)


def run_rm(folder: Path) -> None:
    """Delete a snapshot."""
    from torpor.snapshots.kept_weights import kept_files  # noqa: PLC0415

    console = make_console()
    before = {file.path for file in kept_files() if file.snapshots}
    console.print(f"removed {one_line(remove(folder))}", markup=False, soft_wrap=True)
    for file in kept_files():
        if file.path in before and not file.snapshots:
            console.print(f"no snapshot needs {_file_text(file)} any more", markup=False, soft_wrap=True)
            console.print("delete it: torpor snapshot weights --prune")


def run_weights(*, delete: bool, as_json: bool) -> None:
    """List what engines keep outside of snapshots, with the snapshots that need it; delete what none needs."""
    from torpor.snapshots.kept_weights import kept_files, prune  # noqa: PLC0415

    removed = prune() if delete else ()
    files = kept_files()
    if as_json:
        told = {"kept": _files_json(files), "deleted": _files_json(removed)}
        result(json.dumps(told, indent=2))
        return
    console = make_console(results=True)
    for file in removed:
        console.print(f"deleted {_file_text(file)}", markup=False, soft_wrap=True)
    for file in files:
        console.print(_file_text(file), markup=False, soft_wrap=True)
        for folder in file.snapshots:
            console.print(f"  needed by {one_line(folder)}", markup=False, soft_wrap=True)
        if not file.snapshots:
            console.print(f"  needed by no snapshot{', but a process has it open' if delete else ''}", soft_wrap=True)
    if not files and not removed:
        console.print("no weights are kept outside of snapshots")


def _file_text(file: KeptFile) -> str:
    return f"{one_line(file.path)} ({file.size / 1e9:.2f} GB)"


def _files_json(files: Sequence[KeptFile]) -> list[dict[str, object]]:
    return [
        {"path": str(file.path), "bytes": file.size, "snapshots": [str(folder) for folder in file.snapshots]}
        for file in files
    ]


def run_setup(*, mirror: str, again: bool) -> None:
    """Get CRIU and try it; the reasons where it does not work here."""
    from torpor.platforms.local.backends import STANDBY_WORKS, CriuBackend  # noqa: PLC0415
    from torpor.snapshots.criu_install.install import install  # noqa: PLC0415
    from torpor.snapshots.store.paths import criu_prefix  # noqa: PLC0415

    console = make_console()
    criu = install(criu_prefix(), mirror=mirror or None, again=again, on_step=console.print)
    console.print(f"CRIU {criu.version} is at {criu.program}", soft_wrap=True)
    if reasons := CriuBackend().available():
        listed = "\n".join(f"  - {reason}" for reason in reasons)
        raise SnapshotError(f"It does not work on this machine:\n{listed}\n{STANDBY_WORKS}")
    console.print("a small dump and restore worked: snapshots can be made here")


def _table(folder: Path, manifest: Manifest) -> Table:
    table = Table(title=shown(f"snapshot {one_line(folder)}"), title_justify="left", show_header=False)
    made = manifest.deployment
    machine = manifest.machine
    total = manifest.image_bytes + manifest.side_file_bytes
    rows = {
        "deployment": f"{made.name} ({manifest.app_file})",
        "made": f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(manifest.captured_at))} by Torpor {made.torpor}",
        "engine": made.engine,
        "model": f"{made.model} {made.revision}".strip(),
        "machine": f"{machine.architecture}, kernel {machine.kernel}, CRIU {machine.criu}, {len(machine.cpu)} CPU features",
        "GPUs": "\n".join(f"{gpu.uuid} {gpu}" for gpu in machine.gpus) or "none",
        "sandbox": f"{manifest.mode}, scratch {manifest.scratch}, tcp {manifest.tcp}",
        "size": f"{total / 1e6:.0f} MB in {len(manifest.files)} files (a copy maps {manifest.mapped_bytes / 1e6:.0f} MB of memory)",
        "processes": "\n".join(map(one_line, manifest.processes)),
        **({"on GPUs": _gpu_rows(manifest.gpu, machine.driver)} if manifest.gpu else {}),
        "canary": repr(manifest.canary_text[:_CANARY_SHOWN]) + " ..." * (len(manifest.canary_text) > _CANARY_SHOWN),
        "stages": ", ".join(f"{stage.stage} {stage.seconds:.2f} s" for stage in manifest.stages),
    }
    for name, text in rows.items():
        table.add_row(name, shown(text))
    return table


def _gpu_rows(part: GpuPart, driver: str) -> str:
    """What of a snapshot was on GPUs: each process with the driver's seconds, and the memory in all."""
    rows = [f"{one.pid} lock {one.lock_s:.3f} s, checkpoint {one.checkpoint_s:.3f} s" for one in part.processes]
    return "\n".join([*rows, f"{part.memory_bytes / 1e6:.0f} MB, driver {driver}"])
