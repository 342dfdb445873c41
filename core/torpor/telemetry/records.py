"""Records of stages, and reading them back from a file."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal

from torpor.errors import ConfigurationError
from torpor.telemetry.stages import Stage
from torpor.values.given_files import read_given

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "BOOT_KINDS",
    "SCHEMA",
    "BootKind",
    "StageRecord",
    "described",
    "failed_restore",
    "fetched_stage",
    "read_records",
]

BootKind = Literal["cold", "woken", "restored"]
BOOT_KINDS: tuple[BootKind, ...] = ("cold", "woken", "restored")
"""The kinds of a start: from nothing, from a sleep in the same process, from a snapshot."""

SCHEMA = 2
"""Version of a record as JSON. Version 1 had no `schema`, and its replica id was called `boot_id`."""


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """One stage of one start.

    Attributes:
        stage: a `Stage`; a record that was read from a file may name another one.
        seconds: wall time of the stage, monotonic clock.
        boot: the kind of the start: `cold`, `woken` (the replica slept in the same process) or `restored` (from a snapshot).
        replica_id: 16 hex digits; empty before the launch.
        restore_count: how often this replica woke so far.
        ended_at: Unix time at the stage's end, seconds.
        ok: whether the stage succeeded.
        error: class and first line of what went wrong; empty when `ok`.
        plugins: seconds inside each plugin's hook.
        restarts: how often this replica was started again so far.
        reason: why this start replaces another one, e.g. `wake failed`; empty for a plain start.
        deployment: the deployment's name.
        replica: the replica's name; each replica of a snapshot has its own.
        compiled: of the stage `first_requests`: how many `requests` were answered, and how many `cache_files` and `log_lines` tell
            that something was compiled meanwhile; empty for all other stages.
        adapters: names of the adapters that were asked in this stage beside the model itself; empty for all other stages.
    """

    stage: str
    seconds: float
    boot: BootKind
    replica_id: str
    restore_count: int
    ended_at: float
    ok: bool = True
    error: str = ""
    plugins: dict[str, float] = field(default_factory=dict)
    restarts: int = 0
    reason: str = ""
    deployment: str = ""
    replica: str = ""
    compiled: dict[str, int] = field(default_factory=dict)
    adapters: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, object]:
        """The record as a line of a file holds it."""
        fields = asdict(self)
        of_few_stages = {name: fields.pop(name) for name in ("compiled", "adapters")}
        return {"schema": SCHEMA, **fields, **{name: value for name, value in of_few_stages.items() if value}}


def described(failure: BaseException | None) -> str:
    """A failure as a record holds it: class and first line; empty for none."""
    return "" if failure is None else f"{type(failure).__name__}: {str(failure).partition(chr(10))[0]}"


def failed_restore(
    *, deployment: str, replica: str, seconds: float, error: BaseException, restarts: int
) -> StageRecord:
    """The record of a restore that failed before there was an engine to wake.

    Args:
        deployment: the deployment's name.
        replica: the name that the replica would have.
        seconds: how long the restore took.
        error: the failure.
        restarts: how often this replica was started again before.
    """
    return StageRecord(
        stage=Stage.RESTORE,
        seconds=seconds,
        boot="restored",
        replica_id="",
        restore_count=1,
        ended_at=time.time(),
        ok=False,
        error=described(error),
        restarts=restarts,
        deployment=deployment,
        replica=replica,
    )


def fetched_stage(stage: str, seconds: float, *, deployment: str) -> StageRecord:
    """The record of a stage that brought a snapshot from a store onto this machine.

    Args:
        stage: of `torpor.telemetry.stages.FETCH_STAGES`.
        seconds: how long it took.
        deployment: the deployment's name.
    """
    return StageRecord(
        stage=stage,
        seconds=seconds,
        boot="restored",
        replica_id="",
        restore_count=0,
        ended_at=time.time(),
        deployment=deployment,
    )


def read_records(path: Path) -> list[StageRecord]:
    """Read a file of records.

    Raises:
        ConfigurationError: a line is not a stage record; the message names file and line.
    """
    records = []
    text = read_given(path, "Remove it, or name a file of stage records.").decode(errors="replace")
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            records.append(_record(json.loads(line)))
        except (ValueError, TypeError, RecursionError) as error:
            raise ConfigurationError(
                f"{path}:{number}: not a stage record ({error}); remove the line or the file."
            ) from error
    return records


def _record(fields: dict[str, object]) -> StageRecord:
    """The record that a line of a file holds.

    Raises:
        TypeError: a field is missing or unknown.
        ValueError: another version of Torpor wrote it.
    """
    values = dict(fields)
    schema = values.pop("schema", None)
    if schema != SCHEMA:
        raise ValueError(f"its schema is {schema!r}; this Torpor reads {SCHEMA}")
    return StageRecord(**values)  # type: ignore[arg-type]
