"""Classifies the starts in a Modal app's log: cold, snapshot created, restored, restore failed, segfault.

It compares two sources: the platform's lines say that it restores a container; the replica's own records say whether it
started cold, woke or was restored, when it was captured and how often it woke (`torpor.platforms.modal.log_lines`). A
restored start is

    proved         both say so
    claimed        only the platform says so
    record only    only the replica says so
    contradicted   the platform says so, but the replica says something else; the note has the details

The module needs neither modal nor a network: lines go in, starts come out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Literal

from torpor.platforms.modal.log_lines import AfterSnapshot, CutOff, PlatformLine, StageEnded, parsed
from torpor.telemetry.stages import Stage

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torpor.platforms.modal.log_lines import LogLine

__all__ = ["KINDS", "BootsReport", "Kind", "Proof", "Start", "classify"]

Kind = Literal["cold", "snapshot_created", "restored", "restore_failed", "segfault"]
Proof = Literal["", "proved", "claimed", "record only", "contradicted"]
KINDS: tuple[Kind, ...] = ("cold", "snapshot_created", "restored", "restore_failed", "segfault")

_MOST_OPEN = 1000
"""A line is compared with at most this many starts of its container, the newest ones."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """One start of a container.

    Attributes:
        kind: what it was; Modal repeats a `restore_failed` without the snapshot.
        container: its id; empty where the log does not say.
        replica_id: the replica's id; empty without a record of its own.
        proof: who says that it was restored, see the module; empty for other starts.
        note: what went wrong, or what contradicts the platform's lines.
        began_at: Unix time of its first line or stage, seconds.
        served_at: Unix time at which its guard opened, seconds; None without such a record.
        seconds: from `began_at` to `served_at`.
        wake_s: seconds of the stages after the snapshot.
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
        unreadable: records of replicas that were cut off; they are not counted.
        restores_tried: starts that the platform or the replica itself calls restored, failed ones included.
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
        """Restored starts without a note."""
        return sum(start.kind == "restored" and not start.note for start in self.starts)

    @property
    def success_rate(self) -> float | None:
        """Share of the tried restores that succeeded; None where none was tried."""
        return self.restores_succeeded / self.restores_tried if self.restores_tried else None

    def median_s(self, kind: Kind) -> float | None:
        """Median seconds of the starts of a kind; None where no log line or record tells."""
        known = [start.seconds for start in self.starts if start.kind == kind and start.seconds is not None]
        return median(known) if known else None


def classify(lines: Iterable[LogLine]) -> BootsReport:
    """Read a log.

    Args:
        lines: in the order in which they were logged; those of several containers may be mixed. If the log names no
            containers, records are assigned by their replica ids, and a platform line goes to the replica that has waited
            longest for one.
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
class _OpenStart:
    """A start while its log is read.

    Attributes:
        claimed: whether the platform said that it restores this container.
        creating: whether the platform said that it creates a snapshot of it.
        cold: whether the replica launched an engine.
        woke: whether the replica went on after a snapshot.
        restored: whether it did so in another container than the one that took the snapshot; None until it says so.
    """

    kind: Kind
    container: str
    replica_id: str = ""
    claimed: bool = False
    creating: bool = False
    cold: bool = False
    woke: bool = False
    restored: bool | None = None
    note: str = ""
    began_at: float | None = None
    served_at: float | None = None
    wake_s: float | None = None
    captured_at: float | None = None
    restore_count: int | None = None
    exit_code: int | None = None

    @property
    def waits(self) -> bool:
        """Whether the platform has its snapshot, and the replica has not gone on yet."""
        after_snapshot = self.claimed or self.kind == "snapshot_created"
        return after_snapshot and self.kind not in ("restore_failed", "segfault") and not self.woke

    @property
    def failed_restore(self) -> bool:
        """Whether a restore of it was tried and failed."""
        return self.kind == "restore_failed" or (self.kind == "segfault" and self.claimed)

    @property
    def starts_cold(self) -> bool:
        """Whether it is a cold start that may go on."""
        return self.cold and not self.woke and not self.note

    def began_before(self, at: float) -> None:
        """Note that it was under way at a Unix time."""
        self.began_at = at if self.began_at is None else min(self.began_at, at)

    def done(self) -> Start:
        """The start as the whole log shows it."""
        proof, contradiction = self._proof() if self.kind == "restored" else ("", "")
        seconds = None if self.began_at is None or self.served_at is None else self.served_at - self.began_at
        return Start(
            kind=self.kind,
            container=self.container,
            replica_id=self.replica_id,
            proof=proof,
            note=self.note or contradiction,
            began_at=self.began_at,
            served_at=self.served_at,
            seconds=seconds,
            wake_s=self.wake_s,
            captured_at=self.captured_at,
            restore_count=self.restore_count,
            exit_code=self.exit_code,
        )

    def _proof(self) -> tuple[Proof, str]:
        if self.cold:
            return "contradicted", "the platform says restored, its own record says that it launched an engine"
        if self.restored is False:
            return "contradicted", "the platform says restored, its own record says that it woke where it went to sleep"
        if not self.claimed:
            return "record only", ""
        shown = self.woke and (self.restored or bool(self.container))
        return ("proved", "") if shown else ("claimed", "")


@dataclass
class _Reader:
    """Assigns each line to the start that it belongs to."""

    starts: list[_OpenStart] = field(default_factory=list)
    unreadable: int = 0
    _by_container: dict[str, list[_OpenStart]] = field(default_factory=dict)

    def take(self, line: LogLine) -> None:
        """Read the next line."""
        match parsed(line.text):
            case PlatformLine() as said:
                self._platform(line, said)
            case StageEnded() as record:
                self._stage(line, record)
            case AfterSnapshot() as record:
                self._after_snapshot(line, record)
            case CutOff():
                self.unreadable += 1

    def _mine(self, line: LogLine) -> list[_OpenStart]:
        """The starts of the line's container, newest first; of all containers if the log names none."""
        return self._by_container.get(line.container, [])[: -_MOST_OPEN - 1 : -1]

    def _longest_waiting(self, line: LogLine) -> _OpenStart | None:
        return next((start for start in reversed(self._mine(line)) if start.waits), None)

    def _new(self, line: LogLine, kind: Kind) -> _OpenStart:
        start = _OpenStart(kind, line.container, began_at=line.at)
        self.starts.append(start)
        self._by_container.setdefault(line.container, []).append(start)
        return start

    # --- the platform's lines -----------------------------------------------------------------------------------------

    def _platform(self, line: LogLine, said: PlatformLine) -> None:
        if said.said == "creating":
            self._creating(line)
        elif said.said == "created":
            self._created(line, restores=said.restores)
        elif said.said == "restoring":
            self._restoring(line)
        elif said.said == "failed":
            self._failed(line, said.exit_code)
        else:
            self._segfault(line, said.exit_code)

    def _creating(self, line: LogLine) -> None:
        mine = self._mine(line)
        start = next((one for one in mine if one.cold and not one.woke and not one.creating), None)
        (start or self._new(line, "cold")).creating = True

    def _created(self, line: LogLine, *, restores: bool) -> None:
        asleep = [one for one in self._mine(line) if one.kind == "cold" and not one.woke]
        start = next((one for one in asleep if one.creating), asleep[0] if asleep else None)
        start = start or self._new(line, "cold")
        start.kind, start.claimed = "snapshot_created", restores

    def _restoring(self, line: LogLine) -> None:
        """A restore, or the second half of `Snapshot created. Restoring ...` on a line of its own."""
        mine = self._mine(line)
        created = next((one for one in mine if one.kind == "snapshot_created" and one.waits and not one.claimed), None)
        (created or self._new(line, "restored")).claimed = True

    def _failed(self, line: LogLine, exit_code: int | None) -> None:
        waiting = [one for one in self._mine(line) if one.waits and one.claimed]
        start = waiting[-1] if waiting else self._new(line, "restored")
        start.kind, start.claimed, start.exit_code = "restore_failed", True, exit_code

    def _segfault(self, line: LogLine, exit_code: int | None) -> None:
        start = self._longest_waiting(line) or next(iter(self._mine(line)), None) or self._new(line, "segfault")
        start.exit_code = exit_code
        if start.served_at is None:
            start.kind = "segfault"
        else:
            start.note = "it served, and then ended with a segmentation fault"

    # --- the replica's records ----------------------------------------------------------------------------------------

    def _stage(self, line: LogLine, record: StageEnded) -> None:
        if record.boot == "cold":
            start = self._cold_start(line, record)
            start.cold = True
        else:
            start = self._woken(line, record)
            start.woke = True
            if record.boot == "woken" and start.restored is None:
                start.restored = False
            start.wake_s = (start.wake_s or 0.0) + (record.seconds or 0.0)
        start.replica_id = record.replica_id or start.replica_id
        start.restore_count = start.restore_count if record.restore_count is None else record.restore_count
        if record.ended_at is not None:  # a stage is logged at its end, a line of the platform at the beginning
            start.began_before(record.ended_at - (record.seconds or 0.0))
        if record.failure:
            start.note = record.failure
        elif record.stage == Stage.SERVE:
            start.served_at = record.ended_at if record.ended_at is not None else line.at

    def _cold_start(self, line: LogLine, record: StageEnded) -> _OpenStart:
        mine = self._mine(line)
        for start in mine:
            if start.starts_cold and start.replica_id in ("", record.replica_id):  # a preflight has no replica id yet
                return start
        retried = [one for one in mine if one.kind == "restore_failed" and not one.cold]
        if retried:
            return retried[-1]
        if line.container and mine and mine[0].waits:
            return mine[0]  # the platform said that it restores this container, which launches an engine
        return self._new(line, "cold")

    def _woken(self, line: LogLine, record: StageEnded) -> _OpenStart:
        """The start that a stage after a sleep belongs to."""
        for start in self._mine(line):
            goes_on = start.woke and (record.stage != Stage.POST_RESTORE or start.wake_s is None)
            if start.replica_id == record.replica_id and start.served_at is None and (goes_on or not start.woke):
                return start
        return self._longest_waiting(line) or self._new(line, "cold" if record.boot == "woken" else "restored")

    def _after_snapshot(self, line: LogLine, record: AfterSnapshot) -> None:
        start = None
        if not record.restored:
            start = self._asleep(line, record.captured_replica_id)
        start = start or self._longest_waiting(line) or self._new(line, "restored")
        start.woke, start.restored = True, record.restored
        start.replica_id = record.replica_id
        start.captured_at = record.captured_at
        start.restore_count = record.restore_count

    def _asleep(self, line: LogLine, replica_id: str) -> _OpenStart | None:
        """The replica of that id that went to sleep in this container."""
        mine = self._mine(line)
        return next((one for one in mine if one.cold and not one.woke and one.replica_id == replica_id), None)
