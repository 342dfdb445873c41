"""Warn of what a capture would refuse as soon as the engine is ready, before warm-up, sleep and dump.

The engine may still release it: a pre_snapshot hook closes files, a warm-up replaces them. So this only warns; the capture
refuses. Connections are not checked: some stay open until the drain.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torpor.errors import SnapshotError
from torpor.snapshots.before_capture import external_resources as checks
from torpor.snapshots.before_capture.kernel_objects import uncarried
from torpor.snapshots.before_capture.lasting_folders import LASTING_VARIABLE, kept_folders, why_temporary
from torpor.snapshots.gpu.holders import DEVICES
from torpor.snapshots.sandbox.engine import SandboxEngine
from torpor.telemetry.events import log

if TYPE_CHECKING:
    from torpor.runtime.boot import Boot
    from torpor.snapshots.sandbox.sandbox import Sandbox

__all__ = ["foreseen", "warn_of_held"]

_SHOWN = 8


def foreseen(boot: Boot, sandbox: Sandbox) -> tuple[tuple[str, str], ...]:
    """What a capture would refuse now, each with a cure.

    Args:
        boot: its engine lives in the sandbox.
        sandbox: with the process tree.

    Raises:
        SnapshotError: the tree cannot be inspected.
    """
    devices = DEVICES if boot.deployment.gpu is not None else ()
    found = [
        (f"pid {one.pid} {one.what}" if one.pid else one.what, one.cure) for one in uncarried(sandbox, devices=devices)
    ]
    opened = checks.open_files(sandbox, kept_folders(boot.deployment, boot.recipe))
    for name in opened.vanishing:
        if name.endswith(checks.DELETED):
            found.append((f"{name} is open", "close it before the capture, or keep it under TMPDIR"))
        else:
            cure = f"keep it under TMPDIR, or exempt its folder: {LASTING_VARIABLE}"
            found.append((f"{name} is open, {why_temporary(Path(name))}", cure))
    if opened.io_uring:
        cure = "use `--mode root`, where it is denied, or tell its library: UV_USE_IO_URING=0 (uvloop), USE_LIBUV=0 (torch)"
        found.append(("a process has an io_uring", cure))
    return tuple(dict.fromkeys(found))


def warn_of_held(boot: Boot) -> None:
    """Log a warning for each thing that a capture would refuse; an engine without a sandbox is not checked."""
    engine = boot.running_engine
    if not isinstance(engine, SandboxEngine):
        return
    try:
        found = foreseen(boot, engine.sandbox)
    except SnapshotError:
        return  # the capture checks again and says why
    for what, cure in found[:_SHOWN]:
        log("warning", "capture_would_refuse", deployment=boot.deployment.name, held=what, cure=cure)
