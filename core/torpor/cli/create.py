"""`torpor snapshot create`."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, cast

from torpor.app_file import load_app
from torpor.cli.console import console as make_console
from torpor.cli.gpus import engine_gpus
from torpor.cli.interrupts import ends_on_sigterm
from torpor.cli.progress import Progress
from torpor.cli.snapshot import snapshot_table
from torpor.cli.terminal import claim_output, result
from torpor.errors import ConfigurationError
from torpor.platforms.local.snapshots import create_snapshot
from torpor.telemetry.events import warnings_only
from torpor.telemetry.stage_report import StageReport

if TYPE_CHECKING:
    from pathlib import Path

    from torpor.snapshots.store.manifest import Mode

__all__ = ["run_create"]

_MODES = ("root", "rootless")


def run_create(
    app_file: str,
    folder: Path,
    *,
    mode: str,
    copy_memory: bool,
    as_json: bool,
    prove: bool | None = None,
    gpus: str = "",
) -> None:
    """Start cold, sleep, capture, end."""
    claim_output()
    if mode and mode not in _MODES:
        raise ConfigurationError(f"--mode is {mode!r}; allowed are {' and '.join(_MODES)}.")
    console = make_console()
    warnings_only()
    ends_on_sigterm()
    progress = Progress(console, as_json=as_json)
    app = load_app(app_file)
    places = engine_gpus(gpus, app.deployment)
    with progress.listening():
        manifest = create_snapshot(
            app,
            folder,
            mode=cast("Mode", mode) if mode else None,
            copy_memory=copy_memory,
            prove=prove,
            gpus=places,
            report=StageReport(on_begin=progress.begin, on_end=progress.end),
            on_step=progress.step,
        )
    if as_json:
        result(json.dumps(manifest.as_dict(), indent=2))
    else:
        console.print(snapshot_table(folder, manifest))
        console.print(f"restore it: torpor snapshot restore {shlex.quote(str(folder))}", markup=False, soft_wrap=True)
