"""`torpor snapshot compare`: one cold start against restores of the same app, process start to first token."""

from __future__ import annotations

import json
import shlex
import statistics
import subprocess
from typing import TYPE_CHECKING, NamedTuple, cast

from rich.table import Table

from torpor.app_file import load_app
from torpor.cli.console import console as make_console
from torpor.cli.gpus import engine_gpus
from torpor.cli.interrupts import ends_on_sigterm
from torpor.cli.listening import check_chats, engine_at, given_address, public_warning
from torpor.cli.terminal import claim_output, result
from torpor.cli.timed import cold_limit_s, cold_start, restored_start, wake_limit_s, without_left_overs
from torpor.cli.timing import command, running
from torpor.cli.up import run_up
from torpor.client import chat
from torpor.errors import EngineTimeoutError, SnapshotError
from torpor.platforms.local.criu_backend import CriuBackend
from torpor.platforms.local.server import LocalServer
from torpor.platforms.local.snapshots import check_before_start
from torpor.snapshots.store.paths import snapshot_folder
from torpor.snapshots.store.stored import inspect
from torpor.snapshots.targets import check_target
from torpor.telemetry.stages import Stage
from torpor.values.addresses import nearest, url
from torpor.values.bounds import checked_count
from torpor.values.plain_text import plain

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.console import Console

    from torpor.app_file import App
    from torpor.deployment import Deployment
    from torpor.snapshots.store.manifest import Manifest

__all__ = ["created", "run_compare"]

_QUESTION = "Tell me about the moon."
_ANSWER_TOKENS = 64
_MAX_RESTORES = 1000
_CAPTURE_S = 900.0
"""Seconds for a capture and its trial, besides the start."""


def run_compare(
    app_file: str, *, restores: int, as_json: bool, host: str | None = None, port: int | None = None, gpus: str = ""
) -> None:
    """Time a cold start, capture a snapshot, and time its restores; if CRIU cannot be used, say why and show standby.

    Raises:
        ConfigurationError: `restores` is too small or too large; nothing was started.
        SnapshotError: no snapshot was captured; a note holds what the command said.
        TorporError: a start failed; everything that was started was ended.
    """
    checked_count("--restores", restores, most=_MAX_RESTORES, what="restores")
    ends_on_sigterm()
    claim_output()
    console = make_console()
    host, port = given_address(host, port)
    app = engine_at(load_app(app_file), host, port)
    deployment = app.deployment
    check_chats(deployment, "torpor snapshot compare")
    engine_gpus(gpus, deployment)
    if warning := public_warning(deployment, deployment.host, deployment.port):
        console.print(warning, markup=False, soft_wrap=True)
    check_target(snapshot_folder(deployment.name))
    if not (reasons := CriuBackend().available(deployment)):
        check_before_start(app.lifecycle, snapshot_folder(deployment.name))
    LocalServer(deployment, lifecycle=app.lifecycle, on_step=lambda step: console.print(f"build step: {step}")).build()
    if reasons:
        _show_standby(app, reasons, console, as_json=as_json, gpus=gpus)
        return
    with without_left_overs():
        compared = _timed(app, restores, console, asks=not as_json, gpus=gpus)
    if as_json:
        result(json.dumps(compared.as_json(), indent=2))
    else:
        _show(compared, console)


class _Compared(NamedTuple):
    """What was timed.

    Attributes:
        cold_s: seconds from process start to first token, of a cold start.
        restores: the same of each restore, with what the command said of it.
        folder: the snapshot.
        manifest: its manifest.
    """

    cold_s: float
    restores: list[tuple[float, dict[str, object]]]
    folder: Path
    manifest: Manifest

    @property
    def snapshot_bytes(self) -> int:
        """On the disk."""
        return self.manifest.image_bytes + self.manifest.side_file_bytes

    @property
    def ratio(self) -> float:
        """How many times as fast a restore is."""
        return self.cold_s / statistics.median(seconds for seconds, _ in self.restores)

    def as_json(self) -> dict[str, object]:
        """Plain values, ready for JSON."""
        restored = [{"first_token_s": seconds, **told} for seconds, told in self.restores]
        return {
            "cold_s": self.cold_s,
            "restored": restored,
            "ratio": self.ratio,
            "snapshot_bytes": self.snapshot_bytes,
        }


def _timed(app: App, restores: int, console: Console, *, asks: bool, gpus: str) -> _Compared:
    """Start cold, capture, restore; `asks` the last replica a question whose answer is a result."""
    deployment = app.deployment
    # A real engine takes half a minute each time, and the command that is timed prints nothing meanwhile.
    console.print("starting cold, timed until the first token ...")
    cold_s = cold_start(app.file, deployment, gpus=gpus).total_s
    console.print(f"cold start      {cold_s:7.3f} s to the first token")
    folder = snapshot_folder(deployment.name)
    console.print("starting cold once more, for the snapshot ...")
    manifest = created(str(app.file), folder, timeout_s=cold_limit_s(deployment) + _CAPTURE_S, gpus=gpus)
    compared = _Compared(cold_s, [], folder, manifest)
    console.print(f"snapshot        {compared.snapshot_bytes / 1e6:7.0f} MB in {folder}", soft_wrap=True)
    for number in range(1, restores + 1):
        last = asks and number == restores
        if last:
            console.print(f"the last replica is asked, too: {_QUESTION}")
        restored_s, told = _time_restore(folder, deployment, question=_QUESTION if last else "", gpus=gpus)
        compared.restores.append((restored_s, told))
        console.print(f"restore {number}       {restored_s:7.3f} s to the first token")
    if inspect(folder) != manifest:
        raise SnapshotError(
            f"The snapshot {folder} was replaced while it was timed, so the figures are of two. Compare again."
        )
    return compared


def _show(compared: _Compared, console: Console) -> None:
    console.print(_stages(compared.manifest, compared.restores))
    console.print(f"a restored start is {compared.ratio:.1f} times as fast as a cold one")
    restore = f"torpor snapshot restore {shlex.quote(str(compared.folder))}"
    console.print(f"serve from the snapshot: {restore}", soft_wrap=True)


def created(app_file: str, folder: Path, *, timeout_s: float, gpus: str = "") -> Manifest:
    """Capture a snapshot by the command line; its manifest.

    Args:
        app_file: the app.
        folder: the snapshot's; a snapshot that is there is replaced.
        timeout_s: seconds for all of it.
        gpus: the value of `--gpus`; empty leaves it out.

    Raises:
        EngineTimeoutError: it took longer.
        SnapshotError: none was captured, or the command left the old one; a note holds what the command said.
    """
    before = _manifest_in(folder)
    words = ["--gpus", gpus] if gpus else []
    with running(command("snapshot", "create", app_file, str(folder), *words)) as (process, _):
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise EngineTimeoutError(f"There was no snapshot of {app_file} after {timeout_s:g} s.") from None
        if code != 0:
            raise SnapshotError(f"No snapshot of {app_file} was captured: the command ended with code {code}.")
        made = _manifest_in(folder)
        if made is None or made == before:
            kept = f"{folder} holds none" if made is None else f"{folder} still holds the one from before"
            raise SnapshotError(
                f"No snapshot of {app_file} was captured: {kept}, though the command ended with code 0."
            )
    return made


def _manifest_in(folder: Path) -> Manifest | None:
    try:
        return inspect(folder)
    except SnapshotError:
        return None


def _time_restore(folder: Path, deployment: Deployment, *, question: str, gpus: str) -> tuple[float, dict[str, object]]:
    """Restore once and time the first token; with a question, also stream the replica's answer to standard output."""

    def ask() -> None:
        chat(
            url(nearest(deployment.host), deployment.port),
            model=deployment.model.served_name,
            prompt=question,
            max_tokens=_ANSWER_TOKENS,
            timeout_s=wake_limit_s(deployment),
            on_text=lambda text: result(plain(text), end=""),
        )
        result()

    start, told = restored_start(folder, deployment, then=ask if question else None, gpus=gpus)
    return start.total_s, told


def _show_standby(app: App, reasons: Sequence[str], console: Console, *, as_json: bool, gpus: str) -> None:
    """Say why there is no snapshot, and show a sleep and a wake in place."""
    console.print("snapshots cannot be captured on this machine:")
    for reason in reasons:
        console.print(f"  - {reason}", markup=False)
    console.print("so this shows standby: the process stays, asleep")
    run_up(app, backend="standby", snapshot=None, question=_QUESTION, as_json=as_json, gpus=gpus)


def _stages(manifest: Manifest, times: list[tuple[float, dict[str, object]]]) -> Table:
    table = Table(title="stages, seconds", title_justify="left")
    for column in ("boot", "stage"):
        table.add_column(column)
    table.add_column("seconds", justify="right")
    for stage in manifest.stages:
        table.add_row(
            "cold" if not stage.stage.startswith("capture") else "capture", stage.stage, f"{stage.seconds:.3f}"
        )
    for number, (seconds, told) in enumerate(times, start=1):
        (replica,) = cast("list[dict[str, object]]", told["replicas"])
        boot = f"restored #{number}"
        table.add_row(boot, Stage.VERIFY, f"{told['verify_s']:.3f}")
        for name in (Stage.SANDBOX, Stage.SIDE_FILES, Stage.CRIU, Stage.CUDA):
            if (took := replica[f"{name}_s"]) is not None:  # without a GPU there is no `cuda`
                table.add_row(boot, name, f"{took:.3f}")
        for stage_told in cast("list[dict[str, object]]", replica["stages"]):
            table.add_row(boot, str(stage_told["stage"]), f"{stage_told['seconds']:.3f}")
        table.add_row(boot, "process start to first token", f"{seconds:.3f}")
    return table
