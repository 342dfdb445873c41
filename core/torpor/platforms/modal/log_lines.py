"""Parses the lines of a Modal app's log: lines of the platform, and records of replicas.

The platform writes plain lines. Modal does not promise their wording, so the patterns are tolerant. A replica writes its records
(`torpor.telemetry.records`, and the `after_snapshot` event of `SnapshotServer`) as lines of JSON that begin with a mark
(`torpor.telemetry.events`). Without `TORPOR_LOG_FORMAT=json` they are structlog's lines, which are read as well.
"""

from __future__ import annotations

import ast
import json
import math
import re
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING, Literal

from torpor.telemetry.events import STAGE
from torpor.telemetry.records import BOOT_KINDS
from torpor.telemetry.stages import LIFECYCLE_STAGES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torpor.telemetry.records import BootKind

__all__ = [
    "AFTER_SNAPSHOT",
    "AfterSnapshot",
    "CutOff",
    "LogLine",
    "PlatformLine",
    "StageEnded",
    "parsed",
    "read_lines",
]

AFTER_SNAPSHOT = "after_snapshot"
"""Event of a replica when it goes on after a snapshot: replica ids, capture time, restore count, containers."""

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?)")
_TIME = re.compile(r"(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d))\s+")
_ID = re.compile(r"((?:ap|fu|fc|in|ta)-\w+)(?:\s+|$)")
_CONTAINER = "ta-"

Said = Literal["failed", "created", "creating", "restoring", "segfault"]

# The runtime's lines as users of client 1.6.4 quote them. The beginnings suffice: a line may be cut off.
_PLATFORM: tuple[tuple[Said, re.Pattern[str]], ...] = (
    ("failed", re.compile(r"(?:\w+ )?snapshot error\b|failed to restore (?:container|function)\b", re.IGNORECASE)),
    ("created", re.compile(r"(?:\w+ ){0,2}snapshot (?:was )?created\b", re.IGNORECASE)),
    ("creating", re.compile(r"creating (?:an? )?(?:\w+ ){0,2}snapshot\b", re.IGNORECASE)),
    ("restoring", re.compile(r"restoring (?:function|container)\b", re.IGNORECASE)),
    ("segfault", re.compile(r"(?:runner|container) segmentation fault\b", re.IGNORECASE)),
)
_RESTORING = re.compile(r"\brestoring\b", re.IGNORECASE)
_EXIT_CODE = re.compile(r"exit code:? *(-?[0-9]{1,9})(?![0-9])", re.IGNORECASE)

_RECORD = re.compile(rf'\{{"torpor": ?"(?:{STAGE}|{AFTER_SNAPSHOT})"')
# structlog's console: `... [info     ] stage   boot=cold replica_id=... error='...' seconds=0.1 stage=serve`
_CONSOLE = re.compile(rf"\] (?:{STAGE}|{AFTER_SNAPSHOT})\s+(?=\w+=)")
_PAIR = re.compile(r"(\w+)=('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\S*)")

_LAST_TIME = 253_402_214_400.0
"""Unix time of the last whole day that a date can hold."""
_MOST = 1e9
_MOST_LETTERS = 1000


@dataclass(frozen=True, kw_only=True)
class LogLine:
    """One line of a log.

    Attributes:
        text: without its end; colours are removed when it is read.
        at: when it was logged, Unix time, seconds; None where the log does not say.
        container: the container's id; empty where the log does not say.
    """

    text: str
    at: float | None = None
    container: str = ""


@dataclass(frozen=True, kw_only=True)
class PlatformLine:
    """A line of the platform.

    Attributes:
        said: what it says of the container's snapshot or process.
        restores: whether a line about a created snapshot also says that the platform restores it.
        exit_code: of a failed restore or a segmentation fault; None where the line has none.
    """

    said: Said
    restores: bool
    exit_code: int | None


@dataclass(frozen=True, kw_only=True)
class StageEnded:
    """A replica's record of a stage; see `StageRecord`.

    Attributes:
        stage: the stage.
        boot: the kind of the start.
        replica_id: empty before the launch.
        seconds: of the stage; None for a number that makes no sense.
        ended_at: Unix time; None likewise.
        restore_count: None likewise.
        failure: what went wrong; empty for a stage that succeeded.
    """

    stage: str
    boot: BootKind
    replica_id: str
    seconds: float | None
    ended_at: float | None
    restore_count: int | None
    failure: str


@dataclass(frozen=True, kw_only=True)
class AfterSnapshot:
    """A replica's record of how it goes on after a snapshot.

    Attributes:
        restored: whether it wakes in another container than the one that took the snapshot.
        replica_id: its own.
        captured_replica_id: that of the replica that took the snapshot.
        captured_at: Unix time of the snapshot; None for a number that makes no sense.
        restore_count: wakes of this replica; None likewise.
    """

    restored: bool
    replica_id: str
    captured_replica_id: str
    captured_at: float | None
    restore_count: int | None


class CutOff(Enum):
    """A record of a replica that lacks a part."""

    CUT_OFF = "cut off"


def read_lines(text: str) -> Iterator[LogLine]:
    """The lines of a saved log, e.g. of `modal app logs NAME --timestamps --show-container-id`."""
    for line in re.split(r"\r*\n|\r", text):
        rest, at, container = _clean(line), None, ""
        while found := _TIME.match(rest) or _ID.match(rest):
            word, rest = found[1], rest[found.end() :]
            if found.re is _TIME:
                at = _unix(word)
            elif word.startswith(_CONTAINER):
                container = word
        if rest:
            yield LogLine(text=rest, at=at, container=container)


def parsed(text: str) -> PlatformLine | StageEnded | AfterSnapshot | CutOff | None:
    """What a line says; None for a line that is not about a start."""
    text = _clean(text)
    facts = _facts(text)
    if facts is None:
        return _platform_line(text)
    if facts.get("event") == AFTER_SNAPSHOT:
        return _after_snapshot(facts)
    return _stage_ended(facts)


def _platform_line(text: str) -> PlatformLine | None:
    for said, pattern in _PLATFORM:
        if pattern.match(text):
            code = int(found[1]) if (found := _EXIT_CODE.search(text)) else None
            return PlatformLine(said=said, restores=bool(_RESTORING.search(text)), exit_code=code)
    return None


def _after_snapshot(facts: dict[str, object]) -> AfterSnapshot | CutOff:
    restored = facts.get("restored")
    if "replica_id" not in facts or not isinstance(restored, bool):
        return CutOff.CUT_OFF
    return AfterSnapshot(
        restored=restored,
        replica_id=_word(facts["replica_id"]),
        captured_replica_id=_word(facts.get("captured_replica_id", "")),
        captured_at=_number(facts.get("captured_at"), most=_LAST_TIME),
        restore_count=_count(facts.get("restore_count")),
    )


def _stage_ended(facts: dict[str, object]) -> StageEnded | CutOff:
    """A stage. A name that was cut off counts as cut off, because half a name may be another one."""
    stage, boot = str(facts.get("stage")), facts.get("boot")
    if boot not in BOOT_KINDS or stage not in LIFECYCLE_STAGES or "seconds" not in facts:
        return CutOff.CUT_OFF
    return StageEnded(
        stage=stage,
        boot=boot,
        replica_id=_word(facts.get("replica_id", "")),
        seconds=_number(facts["seconds"], most=_MOST),
        ended_at=_number(facts.get("ended_at"), most=_LAST_TIME),
        restore_count=_count(facts.get("restore_count")),
        failure=_word(facts.get("error") or f"{stage} failed") if facts.get("ok") is False else "",
    )


def _facts(text: str) -> dict[str, object] | None:
    """The facts of a replica's record; empty for a record that was cut off, None for any other line."""
    if found := _RECORD.search(text):
        # A quoted record is followed by more text, so it is no JSON up to the line's end.
        facts = _object(text[found.start() :])
        return {} if facts is None else {**facts, "event": facts["torpor"]}
    if text.startswith("{"):
        facts = _object(text)
        return facts if facts is not None and facts.get("event") in (STAGE, AFTER_SNAPSHOT) else None
    if found := _CONSOLE.search(text):
        pairs = {name: _console_value(value) for name, value in _PAIR.findall(text[found.end() :])}
        return {**pairs, "event": AFTER_SNAPSHOT if AFTER_SNAPSHOT in found[0] else STAGE}
    return None


def _object(text: str) -> dict[str, object] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _console_value(text: str) -> object:
    """A value as structlog's console shows it: strings without blanks bare, all else by its repr."""
    if text[:1] in ("'", '"'):
        try:
            return str(ast.literal_eval(text))
        except (ValueError, SyntaxError):
            return text
    return {"True": True, "False": False, "None": None}.get(text, text)


def _clean(text: str) -> str:
    return _ANSI.sub("", text).strip()


def _word(value: object) -> str:
    """A text of a record as a terminal may show it: one short line without control characters."""
    text = str(value)[:_MOST_LETTERS]
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def _count(value: object) -> int | None:
    number = _number(value, most=_MOST)
    return None if number is None else int(number)


def _number(value: object, *, most: float) -> float | None:
    """A number from 0 to `most`; None for anything else, infinity and NaN included."""
    try:
        number = float(value) if isinstance(value, str | int | float) else math.nan
    except (ValueError, OverflowError):
        return None
    return number if 0 <= number <= most else None


def _unix(text: str) -> float | None:
    try:
        return _number(datetime.fromisoformat(text.replace(",", ".")).timestamp(), most=_LAST_TIME)
    except (ValueError, OverflowError):
        return None
