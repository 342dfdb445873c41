"""One start of an app, timed from outside: cold, restored from a snapshot, or woken in place."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, cast

from torpor.cli.listening import words
from torpor.cli.timing import command, first_token, port_taken, ready, running
from torpor.errors import EngineError, EngineTimeoutError, TorporError
from torpor.platforms.local.backends import Standby
from torpor.platforms.local.server import LocalServer
from torpor.report.starts import Span, Start, span_of
from torpor.snapshots.store.found import found_instead
from torpor.snapshots.store.hold import unused
from torpor.snapshots.store.index import remove
from torpor.snapshots.store.paths import cache_root, snapshot_folder
from torpor.snapshots.store.placing import left_overs, recover
from torpor.snapshots.store.stored import inspect
from torpor.telemetry.records import read_records
from torpor.telemetry.stage_report import StageReport
from torpor.telemetry.stages import Stage
from torpor.values.addresses import nearest

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator, Sequence

    from torpor.app_file import App
    from torpor.cli.timing import Polled
    from torpor.deployment import Deployment
    from torpor.telemetry.records import BootKind, StageRecord

__all__ = [
    "bench_snapshot",
    "cold_limit_s",
    "cold_start",
    "restored_start",
    "standby_wake",
    "wake_limit_s",
    "without_left_overs",
]

_COLD_AT_LEAST_S = 900.0
_WAKE_AT_LEAST_S = 60.0
_WITHOUT_DEADLINE_S = 60.0
"""For imports, CRIU and the time between stages."""
_RECORD_TIMEOUT_S = 10.0
_POLL_S = 0.002
_FROM_THE_COMMAND = (Stage.SANDBOX, Stage.SIDE_FILES, Stage.CRIU, Stage.CUDA)
_BENCH_SUFFIX = "-bench"


def bench_snapshot(name: str) -> Path:
    """The folder of the snapshot that `torpor bench` captures and removes."""
    return snapshot_folder(f"{name}{_BENCH_SUFFIX}")


@contextlib.contextmanager
def without_left_overs() -> Iterator[None]:
    """Time starts in the block; first delete what killed commands of this kind left.

    Each command holds a lock on the folder of their records, which the kernel releases when it ends. A command that is alone there
    cleans up.
    """
    folder = _records_place()
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            stack.callback(os.close, lock)
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _clear(folder)
            fcntl.flock(lock, fcntl.LOCK_SH)
        yield


def _clear(folder: Path) -> None:
    for left in folder.iterdir():
        shutil.rmtree(left, ignore_errors=True)
    snapshots = snapshot_folder("x").parent
    for target in set(left_overs(snapshots).values()):
        if target.name.endswith(_BENCH_SUFFIX):
            recover(target)
    if snapshots.is_dir():
        for kept in sorted(snapshots.iterdir()):
            if kept.name.endswith(_BENCH_SUFFIX) and not kept.is_symlink() and not found_instead(kept):
                with contextlib.suppress(TorporError), unused(kept) as free:
                    if free and bench_snapshot(inspect(kept).deployment.name) == kept:
                        remove(kept)


def _records_place() -> Path:
    return cache_root() / "timed"


def _records_folder() -> tempfile.TemporaryDirectory[str]:
    """A new folder for the records of one start."""
    place = _records_place()
    return tempfile.TemporaryDirectory(dir=place if os.access(place, os.W_OK | os.X_OK) else None)


def cold_limit_s(deployment: Deployment) -> float:
    """Seconds after which a cold start is given up: later than the stages' own deadlines, whose errors say more."""
    stages = (deployment.startup_timeout_s, 2 * deployment.warmup_timeout_s, _WITHOUT_DEADLINE_S)
    return max(_COLD_AT_LEAST_S, sum(stages))


def wake_limit_s(deployment: Deployment) -> float:
    """Seconds after which a restore or a wake is given up; a wake that fails is tried twice."""
    return max(_WAKE_AT_LEAST_S, 4 * deployment.wake_timeout_s + _WITHOUT_DEADLINE_S)


def cold_start(app_file: str | Path, deployment: Deployment, *, number: int = 1, gpus: str = "") -> Start:
    """Start an app cold by the command line and end it after the first answer.

    Args:
        app_file: of the deployment.
        deployment: says address and served name.
        number: its number, from 1.
        gpus: the value of `--gpus`; empty leaves it out.

    Raises:
        EngineTimeoutError: there was no token in time, or the command ended; a note has its output.
    """
    with _records_folder() as folder:
        records = Path(folder) / "records.jsonl"
        argv = command("up", str(app_file), "--backend", "none", "--records", str(records), *words(deployment))
        argv += _gpu_words(gpus)
        with running(argv) as (process, began):
            zero = _wall(began)
            clocks = _clocks(process, began, deployment, cold_limit_s(deployment))
            spans = [span_of(record, zero) for record in _records_to_the_end(process, records)]
    return _start("cold", number, spans, clocks)


def restored_start(
    folder: Path, deployment: Deployment, *, number: int = 1, then: Callable[[], None] | None = None, gpus: str = ""
) -> tuple[Start, dict[str, object]]:
    """Restore a snapshot by the command line and end it after the first answer.

    Args:
        folder: the snapshot.
        deployment: says address and served name.
        number: its number, from 1.
        then: called while it still serves.
        gpus: the value of `--gpus`; empty leaves it out.

    Returns:
        The start, and the command's JSON about it.

    Raises:
        EngineTimeoutError: there was no token in time, or the command ended; a note has its output.
    """
    argv = command("snapshot", "restore", str(folder), "--json", *words(deployment), *_gpu_words(gpus))
    with (
        _records_folder() as records,
        running([*argv, "--records", f"{records}/records.jsonl"]) as (process, began),
    ):
        zero = _wall(began)
        clocks = _clocks(process, began, deployment, wake_limit_s(deployment))
        told = _told(process)
        if then is not None:
            then()
    return _start("restored", number, _restored_spans(told, began, zero), clocks), told


def _gpu_words(gpus: str) -> list[str]:
    return ["--gpus", gpus] if gpus else []


def standby_wake(app: App, *, number: int = 1) -> Start:
    """Start an app in this process, put it to sleep, and time its wake and first answer; then end it.

    Raises:
        TorporError: it did not start, sleep or wake.
    """
    deployment = app.deployment
    report, limit_s = StageReport(), wake_limit_s(deployment)
    server = LocalServer(
        deployment, lifecycle=app.lifecycle, backend=Standby(), report=report, cold_on_failed_wake=False
    )
    try:
        server.cold_start()
        server.sleep()
        before, began = len(report.records), time.monotonic()
        zero = _wall(began)
        server.wake()
        engine = server.boot.running_engine
        ready_s = ready(engine, began, port=deployment.port, timeout_s=limit_s, host=nearest(deployment.host))
        clocks = {"ready_s": ready_s, "first_token_s": _asked(engine, began, deployment, limit_s)}
    finally:
        server.stop()
    return _start("woken", number, [span_of(record, zero) for record in report.records[before:]], clocks)


def _told(process: subprocess.Popen[str]) -> dict[str, object]:
    """The line of JSON that a restore prints once it serves.

    Raises:
        EngineTimeoutError: it did not come.
        EngineError: the replica did not wake and was started cold.
    """
    assert process.stdout is not None
    line = process.stdout.readline() if select.select([process.stdout], [], [], _RECORD_TIMEOUT_S)[0] else ""
    if not line:
        raise EngineTimeoutError("The replica answered, but the command did not print how it was restored.")
    try:
        told = cast("dict[str, object]", json.loads(line))
        replicas = cast("list[dict[str, object]]", told["replicas"])
        boots = [replica["boot"] for replica in replicas]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise EngineError(
            f"The command said {line[:200]!r}, which does not say how the replica was restored."
        ) from error
    for replica, boot in zip(replicas, boots, strict=True):
        if boot != "restored":
            raise EngineError(
                f"There is no restore to time: {replica['name']} was started {replica['boot']} ({replica['reason']}). What went "
                f"wrong: {told['events']}"
            )
    return told


def _records_to_the_end(process: Polled, file: Path) -> list[StageRecord]:
    """The stages of a cold start. The first token may come before the record of stage `serve`, which opens the guard.

    Raises:
        EngineTimeoutError: that record did not come.
    """
    deadline = time.monotonic() + _RECORD_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        if file.is_file() and file.read_bytes().endswith(b"\n"):
            records = read_records(file)
            if records[-1].stage == Stage.SERVE:
                return records
        time.sleep(_POLL_S)
    raise EngineTimeoutError("The server answered, but did not record its stage `serve`; is the disk full?")


def _clocks(process: Polled, began: float, deployment: Deployment, timeout_s: float) -> dict[str, float]:
    host, port = nearest(deployment.host), deployment.port
    return {
        "port_s": port_taken(process, began, port=port, timeout_s=timeout_s, host=host),
        "ready_s": ready(process, began, port=port, timeout_s=timeout_s, host=host),
        "first_token_s": _asked(process, began, deployment, timeout_s),
    }


def _asked(process: Polled, began: float, deployment: Deployment, timeout_s: float) -> float:
    model = deployment.model.served_name
    host = nearest(deployment.host)
    return first_token(process, began, port=deployment.port, model=model, timeout_s=timeout_s, host=host).first_token_s


def _start(boot: BootKind, number: int, stages: Sequence[Span], clocks: dict[str, float]) -> Start:
    """The stages, with the time before the first and after the last one."""
    spans = list(stages)
    if boot != "woken":
        spans.insert(
            0, Span(stage=Stage.PROCESS, start_s=0.0, seconds=min((span.start_s for span in spans), default=0.0))
        )
    served_s = max((span.end_s for span in spans), default=0.0)
    spans.append(Span(stage=Stage.FIRST_ANSWER, start_s=served_s, seconds=max(0.0, clocks["first_token_s"] - served_s)))
    return Start(
        number=number,
        boot=boot,
        spans=tuple(spans),
        port_s=clocks.get("port_s"),
        ready_s=clocks["ready_s"],
        first_token_s=clocks["first_token_s"],
    )


def _restored_spans(told: dict[str, object], began: float, zero: float) -> list[Span]:
    """The stages of a restore. The command gives durations of its own stages, and the ends of the engine's."""
    (replica,) = cast("list[dict[str, object]]", told["replicas"])
    at_s = cast("float", told["began_at"]) - began
    spans = [Span(stage=Stage.VERIFY, start_s=at_s, seconds=cast("float", told["verify_s"]), exact=False)]
    for stage in _FROM_THE_COMMAND:
        if (seconds := cast("float | None", replica[f"{stage}_s"])) is not None:  # without a GPU there is no `cuda`
            spans.append(Span(stage=stage, start_s=spans[-1].end_s, seconds=seconds, exact=False))
    woken = [_woken_span(one, zero) for one in cast("list[dict[str, object]]", replica["stages"])]
    here_s = spans[-1].end_s
    waited_s = max(0.0, min((span.start_s for span in woken), default=here_s) - here_s)
    # App file and plugins are imported while CRIU works; the time that the imports take longer than CRIU shows here.
    return [*spans, Span(stage=Stage.IMPORTS, start_s=here_s, seconds=waited_s, exact=False), *woken]


def _woken_span(told: dict[str, object], zero: float) -> Span:
    seconds = cast("float", told["seconds"])
    start_s = max(0.0, cast("float", told["ended_at"]) - seconds - zero)
    return Span(stage=str(told["stage"]), start_s=start_s, seconds=seconds)


def _wall(monotonic_s: float) -> float:
    """A monotonic time as Unix time, by comparing both clocks now."""
    return time.time() - (time.monotonic() - monotonic_s)
