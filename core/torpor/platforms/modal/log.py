"""What the starts of a Modal app were, read from its log: cold, snapshot created, restored, restore failed, segfault.

Two witnesses are matched. The platform says in plain lines that it restores a container (read tolerantly: their wording is
nobody's promise); the replica says in its own records (`torpor.telemetry.records`, and one
`after_snapshot` event of `torpor.platforms.modal.server`) which boot it is, when it was captured and how often it woke.
Those are lines of JSON that begin with a mark (`torpor.telemetry.events`).
Logs of before, when they were structlog's lines for a console, are read as well. A restored start is

    proved         both say so
    claimed        the platform says so, and there is no record of the replica that shows it
    record only    the replica says so, and the log has no such line of the platform
    contradicted   the replica did something else than the platform says; the note says what

The module knows neither modal nor a network: lines go in, starts come out.
"""

from __future__ import annotations

import ast
import json
import math
import re
from dataclasses import dataclass, field, replace
from datetime import datetime
from statistics import median
from typing import TYPE_CHECKING, Literal

from torpor.telemetry.records import BOOT_KINDS
from torpor.telemetry.stages import LIFECYCLE_STAGES, Stage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["AFTER_SNAPSHOT", "KINDS", "BootsReport", "Kind", "LogLine", "Proof", "Start", "classify", "read_lines"]

AFTER_SNAPSHOT = "after_snapshot"
"""Event of a replica that goes on behind a snapshot: replica ids, capture time, restore count, containers."""

Kind = Literal["cold", "snapshot_created", "restored", "restore_failed", "segfault"]
Proof = Literal["", "proved", "claimed", "record only", "contradicted"]
KINDS: tuple[Kind, ...] = ("cold", "snapshot_created", "restored", "restore_failed", "segfault")

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?)")
_TIME = re.compile(r"(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d))\s+")
_ID = re.compile(r"((?:ap|fu|fc|in|ta)-\w+)(?:\s+|$)")
_CONTAINER = "ta-"

# Modal client 1.6.4, the runtime's lines as users quote them. The beginnings suffice: a line may be cut off.
_PLATFORM = (
    ("failed", re.compile(r"(?:\w+ )?snapshot error\b|failed to restore (?:container|function)\b", re.IGNORECASE)),
    ("created", re.compile(r"(?:\w+ ){0,2}snapshot (?:was )?created\b", re.IGNORECASE)),
    ("creating", re.compile(r"creating (?:an? )?(?:\w+ ){0,2}snapshot\b", re.IGNORECASE)),
    ("restoring", re.compile(r"restoring (?:function|container)\b", re.IGNORECASE)),
    ("segfault", re.compile(r"(?:runner|container) segmentation fault\b", re.IGNORECASE)),
)
_LAST_TIME = 253_402_214_400.0
"""Unix time of the last whole day that a date can hold."""
_MOST = 1e9
_MOST_LETTERS = 1000
_MOST_OPEN = 1000
_RESTORING = re.compile(r"\brestoring\b", re.IGNORECASE)
_EXIT_CODE = re.compile(r"exit code:? *(-?[0-9]{1,9})(?![0-9])", re.IGNORECASE)
_RECORD = re.compile(rf'\{{"torpor": ?"(?:stage|{AFTER_SNAPSHOT})"')
# Older logs hold structlog's console lines: `... [info     ] stage   boot=cold replica_id=... error='...' seconds=0.1 stage=serve`
_PAIR = re.compile(r"(\w+)=('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\S*)")
_OWN = re.compile(rf"\] (?:stage|{AFTER_SNAPSHOT})\s+(?=\w+=)")


@dataclass(frozen=True, kw_only=True)
class LogLine:
    """One line of a log.

    Attributes:
        text: without its end; colours do no harm.
        at: when it was logged, Unix time, seconds; None where the log does not say.
        container: the container's id; empty where the log does not say.
    """

    text: str
    at: float | None = None
    container: str = ""


@dataclass(frozen=True, kw_only=True)
class Start:
    """One start of a container.

    Attributes:
        kind: what it was; `restore_failed` was tried again without the snapshot.
        container: its id; empty where the log does not say.
        replica_id: what the replica calls itself; empty without a record of its own.
        proof: what a restore rests on, see the module; empty for other starts.
        note: what went wrong, or what contradicts the platform's lines.
        began_at: Unix time of its first line or stage, seconds.
        served_at: Unix time at which its guard opened, seconds; None: no record says so.
        seconds: from one to the other.
        wake_s: seconds of the stages behind the snapshot.
        captured_at: Unix time at which its snapshot was taken, seconds.
        restore_count: wakes of this replica.
        exit_code: of a failed restore or a segmentation fault.
    """

    kind: Kind
    container: str = ""
    replica_id: str = ""
    proof: Proof = ""
    note: str = ""
    began_at: float | None = None
    served_at: float | None = None
    seconds: float | None = None
    wake_s: float | None = None
    captured_at: float | None = None
    restore_count: int | None = None
    exit_code: int | None = None


@dataclass(frozen=True, kw_only=True)
class BootsReport:
    """All starts of a log, in the order of their first lines.

    Attributes:
        starts: the starts.
        lines: how many lines were read.
        unreadable: records of replicas that were cut off, and are not counted.
        restores_tried: starts that the platform, or the replica itself, calls restored, the failed ones included.
    """

    starts: tuple[Start, ...]
    lines: int
    unreadable: int
    restores_tried: int

    @property
    def counts(self) -> dict[Kind, int]:
        """Starts by kind, all kinds."""
        return {kind: sum(start.kind == kind for start in self.starts) for kind in KINDS}

    @property
    def restores_succeeded(self) -> int:
        """Restored starts that nothing speaks against."""
        return sum(start.kind == "restored" and not start.note for start in self.starts)

    @property
    def success_rate(self) -> float | None:
        """Share of the tried restores that succeeded; None where none was tried."""
        return self.restores_succeeded / self.restores_tried if self.restores_tried else None

    def median_s(self, kind: Kind) -> float | None:
        """Median seconds of the starts of a kind; None where no log line or record tells."""
        known = [start.seconds for start in self.starts if start.kind == kind and start.seconds is not None]
        return median(known) if known else None


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


def classify(lines: Iterable[LogLine]) -> BootsReport:
    """Read a log.

    Args:
        lines: in the order in which they were logged; those of several containers may be mixed. Where the log names no
            containers, replicas are told apart by the replica ids in their records, and platform lines go to the replica
            that has waited longest for one.
    """
    reader, count = _Reader(), 0
    for count, line in enumerate(lines, start=1):  # noqa: B007 - the last number is used
        reader.take(line)
    return BootsReport(
        starts=tuple(start.done() for start in reader.starts),
        lines=count,
        unreadable=reader.unreadable,
        restores_tried=sum(start.kind == "restored" or start.failed_restore for start in reader.starts),
    )


@dataclass
class _Open:
    """A start of which more may be said."""

    kind: Kind
    container: str
    replica_id: str = ""
    claimed: bool = False  # the platform said: restoring
    creating: bool = False
    cold: bool = False  # it launched an engine
    woke: bool = False
    copy: bool | None = None  # its own word for where it woke: in another container than it slept in
    error: str = ""
    began_at: float | None = None
    served_at: float | None = None
    wake_s: float | None = None
    captured_at: float | None = None
    restore_count: int | None = None
    exit_code: int | None = None

    @property
    def waits(self) -> bool:
        """Whether it is behind a snapshot, and its replica has said nothing yet."""
        behind = self.claimed or self.kind == "snapshot_created"
        return behind and self.kind not in ("restore_failed", "segfault") and not self.woke

    @property
    def failed_restore(self) -> bool:
        """Whether a restore of it was tried and failed."""
        return self.kind == "restore_failed" or (self.kind == "segfault" and self.claimed)

    def done(self) -> Start:
        proof, note = self._proof() if self.kind == "restored" else ("", "")
        known = self.began_at is not None and self.served_at is not None
        return Start(
            kind=self.kind,
            container=self.container,
            replica_id=self.replica_id,
            proof=proof,
            note=self.error or note,
            began_at=self.began_at,
            served_at=self.served_at,
            seconds=self.served_at - self.began_at if known else None,  # type: ignore[operator] # both are known
            wake_s=self.wake_s,
            captured_at=self.captured_at,
            restore_count=self.restore_count,
            exit_code=self.exit_code,
        )

    def _proof(self) -> tuple[Proof, str]:
        if self.cold:
            return "contradicted", "the platform says restored, its own record says that it launched an engine"
        if self.copy is False:
            return "contradicted", "the platform says restored, its own record says that it woke where it went to sleep"
        if not self.claimed:
            return "record only", ""
        shown = self.woke and (self.copy or bool(self.container))
        return ("proved", "") if shown else ("claimed", "")


@dataclass
class _Reader:
    """Gives each line to the start that it belongs to."""

    starts: list[_Open] = field(default_factory=list)
    unreadable: int = 0
    _of: dict[str, list[_Open]] = field(default_factory=dict)  # by container

    def take(self, line: LogLine) -> None:
        line = replace(line, text=_clean(line.text))
        if (facts := _own_facts(line.text)) is not None:
            if not _whole(facts):
                self.unreadable += 1
            elif facts["event"] == AFTER_SNAPSHOT:
                self._after_snapshot(line, facts)
            else:
                self._stage(line, facts)
            return
        for what, pattern in _PLATFORM:
            if pattern.match(line.text):
                self._platform(line, what)
                return

    def _mine(self, line: LogLine) -> list[_Open]:
        """The starts of the line's container, newest first; of a log without containers the newest ones."""
        return self._of.get(line.container, [])[: -_MOST_OPEN - 1 : -1]

    def _new(self, line: LogLine, kind: Kind) -> _Open:
        start = _Open(kind, line.container, began_at=line.at)
        self.starts.append(start)
        self._of.setdefault(line.container, []).append(start)
        return start

    # --- the platform's lines -----------------------------------------------------------------------------------------

    def _platform(self, line: LogLine, what: str) -> None:
        mine = self._mine(line)
        code = int(found[1]) if (found := _EXIT_CODE.search(line.text)) else None
        if what == "restoring":
            self._restoring(line, mine)
        elif what == "creating":
            start = next((one for one in mine if one.cold and not one.woke and not one.creating), None)
            (start or self._new(line, "cold")).creating = True
        elif what == "created":
            asleep = [one for one in mine if one.kind == "cold" and not one.woke]
            start = next((one for one in asleep if one.creating), asleep[0] if asleep else None)
            start = start or self._new(line, "cold")
            start.kind, start.claimed = "snapshot_created", bool(_RESTORING.search(line.text))
        elif what == "failed":
            waiting = [one for one in mine if one.waits and one.claimed]
            start = waiting[-1] if waiting else self._new(line, "restored")
            start.kind, start.claimed, start.exit_code = "restore_failed", True, code
        else:
            self._segfault(line, mine, code)

    def _restoring(self, line: LogLine, mine: list[_Open]) -> None:
        """A restore, or the second half of `Snapshot created. Restoring ...` on a line of its own."""
        created = next((one for one in mine if one.kind == "snapshot_created" and one.waits and not one.claimed), None)
        (created or self._new(line, "restored")).claimed = True

    def _segfault(self, line: LogLine, mine: list[_Open], code: int | None) -> None:
        waiting = [one for one in mine if one.waits]
        start = waiting[-1] if waiting else next(iter(mine), None) or self._new(line, "segfault")
        start.exit_code = code
        if start.served_at is None:
            start.kind = "segfault"
        else:
            start.error = "it served, and then ended with a segmentation fault"

    # --- the replica's own records ------------------------------------------------------------------------------------

    def _stage(self, line: LogLine, facts: dict[str, object]) -> None:
        replica_id, stage = _word(facts.get("replica_id", "")), str(facts["stage"])
        ended_at, seconds = _number(facts.get("ended_at"), most=_LAST_TIME), _number(facts["seconds"], most=_MOST)
        if facts["boot"] == "cold":
            start = self._cold_start(line, replica_id)
            start.cold = True
        else:
            in_place = facts["boot"] == "woken"
            start = self._woken(line, replica_id, stage, unknown="cold" if in_place else "restored")
            start.woke = True
            if in_place and start.copy is None:
                start.copy = False
            start.wake_s = (start.wake_s or 0.0) + (seconds or 0.0)
        start.replica_id = replica_id or start.replica_id
        count = _number(facts.get("restore_count"), most=_MOST)
        start.restore_count = start.restore_count if count is None else int(count)
        if ended_at is not None:  # a stage is logged at its end, the platform's line at the beginning
            began_at = ended_at - (seconds or 0.0)
            start.began_at = began_at if start.began_at is None else min(start.began_at, began_at)
        if facts.get("ok") is False:
            start.error = _word(facts.get("error") or f"{stage} failed")
        elif stage == Stage.SERVE:
            start.served_at = ended_at if ended_at is not None else line.at

    def _cold_start(self, line: LogLine, replica_id: str) -> _Open:
        mine = self._mine(line)
        for start in mine:
            goes_on = start.cold and not start.woke and not start.error
            if goes_on and start.replica_id in ("", replica_id):  # a preflight has no replica id yet
                return start
        retried = [one for one in mine if one.kind == "restore_failed" and not one.cold]
        if retried:
            return retried[-1]
        if line.container and mine and mine[0].waits:
            return mine[0]  # it was said to be restored, and it launches an engine
        return self._new(line, "cold")

    def _woken(self, line: LogLine, replica_id: str, stage: str, *, unknown: Kind) -> _Open:
        """The start that a stage behind a sleep belongs to; a new one of the kind `unknown` where the log lacks the rest."""
        mine = self._mine(line)
        for start in mine:
            goes_on = start.woke and (stage != Stage.POST_RESTORE or start.wake_s is None)
            if start.replica_id == replica_id and start.served_at is None and (goes_on or not start.woke):
                return start
        waiting = [one for one in mine if one.waits]
        return waiting[-1] if waiting else self._new(line, unknown)

    def _after_snapshot(self, line: LogLine, facts: dict[str, object]) -> None:
        captured = _word(facts.get("captured_replica_id", ""))
        mine = self._mine(line)
        waiting = [one for one in mine if one.waits]
        in_place = [one for one in mine if one.cold and not one.woke and one.replica_id == captured]
        copy = facts.get("restored") is True
        candidates = waiting[::-1] if copy or not in_place else in_place
        start = candidates[0] if candidates else self._new(line, "restored")
        start.woke, start.copy = True, copy
        start.replica_id = _word(facts["replica_id"])
        start.captured_at = _number(facts.get("captured_at"), most=_LAST_TIME)
        count = _number(facts.get("restore_count"), most=_MOST)
        start.restore_count = None if count is None else int(count)


def _clean(text: str) -> str:
    return _ANSI.sub("", text).strip()


def _own_facts(text: str) -> dict[str, object] | None:
    """The facts of a replica's record, empty for one that was cut off; None for any other line."""
    if found := _RECORD.search(text):
        try:
            facts = json.loads(
                text[found.start() :]
            )  # to the line's end: a record that somebody quotes goes on behind it
        except (ValueError, RecursionError):
            return {}
        return {**facts, "event": facts["torpor"]} if isinstance(facts, dict) else {}
    return _console_facts(text)


def _console_facts(text: str) -> dict[str, object] | None:
    """The facts of a record as structlog wrote it, for a console or as JSON; None for any other line."""
    if text.startswith("{"):
        try:
            facts = json.loads(text)
        except (ValueError, RecursionError):
            return None
        return facts if isinstance(facts, dict) and facts.get("event") in ("stage", AFTER_SNAPSHOT) else None
    if (found := _OWN.search(text)) is None:
        return None
    facts = {name: _value(value) for name, value in _PAIR.findall(text[found.end() :])}
    return {**facts, "event": AFTER_SNAPSHOT if AFTER_SNAPSHOT in found[0] else "stage"}


def _whole(facts: dict[str, object]) -> bool:
    """Whether a record says what it is there for; half a word at a cut end would say something else."""
    if facts.get("event") == AFTER_SNAPSHOT:
        return "replica_id" in facts and isinstance(facts.get("restored"), bool)
    return facts.get("boot") in BOOT_KINDS and str(facts.get("stage")) in LIFECYCLE_STAGES and "seconds" in facts


def _value(text: str) -> object:
    """A value as structlog's console shows it: strings without blanks bare, everything else by its repr."""
    if text[:1] in ("'", '"'):
        try:
            return str(ast.literal_eval(text))
        except (ValueError, SyntaxError):
            return text
    return {"True": True, "False": False, "None": None}.get(text, text)


def _word(value: object) -> str:
    """A text of a record as it is shown: of one line, without what would move a terminal's cursor, and with an end."""
    text = str(value)[:_MOST_LETTERS]
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def _number(value: object, *, most: float) -> float | None:
    """A number from 0 to `most`; None for anything else, infinities and what is no number among it."""
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
