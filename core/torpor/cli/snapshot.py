"""`torpor snapshot inspect` and `weights`, and the removal of a folder."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING

from rich.table import Table

from torpor.cli.console import console as make_console
from torpor.cli.console import shown
from torpor.cli.exit_codes import FAILED, WRONG_INPUT
from torpor.cli.terminal import claim_output, result
from torpor.errors import SnapshotError
from torpor.runtime.canary import canary_summary
from torpor.snapshots.fit import misfits
from torpor.snapshots.kept_weights import kept_files, prune
from torpor.snapshots.store.index import remove
from torpor.snapshots.store.stored import inspect
from torpor.values.plain_text import one_line

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torpor.snapshots.kept_weights import KeptFile
    from torpor.snapshots.store.gpu_state import GpuPart
    from torpor.snapshots.store.manifest import Manifest

__all__ = ["remove_folder", "run_inspect", "run_weights", "snapshot_table"]


def run_inspect(folder: Path, *, as_json: bool) -> None:
    """Print the manifest, and what does not fit; exit code 1 if something does not.

    Raises:
        SnapshotError: there is no usable snapshot, for this machine or any other; exit code 2.
    """
    claim_output()
    try:
        manifest = inspect(folder)
    except SnapshotError as error:
        error.exit_code = WRONG_INPUT
        raise
    reasons = misfits(folder, manifest)
    if as_json:
        result(json.dumps({**manifest.as_dict(), "misfits": reasons}, indent=2))
    else:
        console = make_console(results=True)
        console.print(snapshot_table(folder, manifest))
        for reason in reasons:
            console.print(f"does not fit: {reason}", markup=False)
        if not reasons:
            console.print("fits this machine and its app")
    if reasons:
        sys.exit(FAILED)


def remove_folder(folder: Path) -> None:
    """Delete the snapshot in a folder of this machine."""
    console = make_console()
    before = {file.path for file in kept_files() if file.snapshots}
    console.print(f"removed {one_line(remove(folder))}", markup=False, soft_wrap=True)
    for file in kept_files():
        if file.path in before and not file.snapshots:
            console.print(f"no snapshot needs {_file_text(file)} any more", markup=False, soft_wrap=True)
            console.print("delete it: torpor snapshot weights --prune")


def run_weights(*, delete: bool, as_json: bool) -> None:
    """List what engines keep outside snapshots, with the snapshots that need it; delete what none needs."""
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


def snapshot_table(folder: Path, manifest: Manifest) -> Table:
    """What a snapshot is, one row for each fact."""
    table = Table(title=shown(f"snapshot {one_line(folder)}"), title_justify="left", show_header=False)
    made = manifest.deployment
    machine = manifest.machine
    total = manifest.image_bytes + manifest.side_file_bytes
    rows = {
        "deployment": f"{made.name} ({manifest.app_file})",
        "captured": f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(manifest.captured_at))} by Torpor {made.torpor}",
        "engine": made.engine,
        "model": f"{made.model} {made.revision}".strip(),
        "machine": f"{machine.architecture}, kernel {machine.kernel}, CRIU {machine.criu}, {len(machine.cpu)} CPU features",
        "GPUs": "\n".join(f"{gpu.uuid} {gpu}" for gpu in machine.gpus) or "none",
        "sandbox": f"{manifest.mode}, scratch {manifest.scratch}, tcp {manifest.tcp}",
        "size": f"{_mb(total)} in {len(manifest.files)} files (a replica maps {_mb(manifest.mapped_bytes)} of memory)",
        "processes": "\n".join(map(one_line, manifest.processes)),
        **({"on GPUs": _gpu_rows(manifest.gpu, machine.driver)} if manifest.gpu else {}),
        "canary": canary_summary(manifest.canary),
        "stages": ", ".join(f"{stage.stage} {stage.seconds:.2f} s" for stage in manifest.stages),
    }
    for name, text in rows.items():
        table.add_row(name, shown(text))
    return table


def _gpu_rows(part: GpuPart, driver: str) -> str:
    """What a snapshot holds of GPUs: the driver's seconds for each process, and the memory in all."""
    rows = [f"{one.pid} lock {one.lock_s:.3f} s, checkpoint {one.checkpoint_s:.3f} s" for one in part.processes]
    return "\n".join([*rows, f"{_mb(part.memory_bytes)}, driver {driver}"])


def _mb(size: int) -> str:
    return f"{size / 1e6:.0f} MB"
