"""The result of `torpor bench` as a value: it is written as JSON and read back from it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, cast

from torpor.report.starts import KINDS, MILESTONES, Kind, Span, Spread, Start

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["BACKENDS", "CLOCKS", "FORMAT", "GREATEST", "SCHEMA", "Bench", "Floor", "Machine"]

FORMAT, SCHEMA = "torpor.bench", 1
GREATEST = 1e15
"""Largest number of bytes or seconds in a file, so that sums, ratios and scales can be drawn."""
_LAST_DATE = 253_402_300_799.0
"""The last second of the year 9999."""
BACKENDS = ("criu", "standby")

CLOCKS = {
    "zero of a cold or restored start": "just before the command is started: torpor up APP --backend none, or torpor "
    "snapshot restore DIR. Interpreter and imports are in the figure.",
    "zero of a wake": "the call that wakes the sleeping process (backend standby); its start and its sleep are not in the figure.",
    "port_s": "until the public port accepts a connection on loopback, tried every 2 ms; none for a wake, whose port is open.",
    "ready_s": "until /health answers 200, asked every 2 ms.",
    "first_token_s": "until the first token of a streamed greedy chat arrives, asked as soon as /health is 200.",
    "spans": "seconds of each stage by the monotonic clock of its process. A span begins at its wall-clock time or, if exact is "
    "false, at the end of the previous span.",
}


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The machine of a measurement.

    Attributes:
        cpus: how many this process may use.
        architecture: e.g. `x86_64`.
        kernel: its release.
        load: the load average of the last minute before the first start.
    """

    cpus: int
    architecture: str
    kernel: str
    load: float


@dataclass(frozen=True, kw_only=True)
class Floor:
    """The bytes of a snapshot, and the least time to move them.

    Attributes:
        image_bytes: CRIU's images.
        mapped_bytes: memory that a replica maps from the images; a page is read only when the replica uses it.
        side_file_bytes: the content of the private folders.
        bandwidth_bytes_per_s: the fastest at which one thread read the image files from the page cache, right after the starts.
    """

    image_bytes: int
    mapped_bytes: int
    side_file_bytes: int
    bandwidth_bytes_per_s: float

    @property
    def copied_bytes(self) -> int:
        """Bytes that are copied into every replica: all that it does not map.

        `mapped_bytes` may exceed `image_bytes`: a page that several processes map counts once for each, and a page of zeroes
        takes no room in the images.
        """
        return max(0, self.image_bytes - self.mapped_bytes) + self.side_file_bytes

    @property
    def copied_s(self) -> float:
        """The floor of a restore: seconds to move what is copied."""
        return self.copied_bytes / self.bandwidth_bytes_per_s

    @property
    def all_s(self) -> float:
        """The floor of a restore that copies everything."""
        return (self.image_bytes + self.side_file_bytes) / self.bandwidth_bytes_per_s

    def as_json(self) -> dict[str, object]:
        """The floor as the file holds it."""
        return {**asdict(self), "copied_bytes": self.copied_bytes, "copied_s": self.copied_s, "all_s": self.all_s}


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Cold starts and restored or woken starts of one app, in turn.

    Attributes:
        torpor: version.
        app: the app file as it was given.
        deployment: its name.
        engine: the engine plugin's name.
        model: the served name.
        backend: `criu` or `standby`.
        at: Unix time of the first start, seconds.
        machine: where it was measured.
        starts: in the order in which they ran.
        floor: of the snapshot; None for standby, which moves nothing through files.
    """

    torpor: str
    app: str
    deployment: str
    engine: str
    model: str
    backend: str
    at: float
    machine: Machine
    starts: tuple[Start, ...]
    floor: Floor | None

    @property
    def kind(self) -> Kind:
        """What is compared with cold starts: `restored` or, with standby, `woken`."""
        return "woken" if self.backend == "standby" else "restored"

    @property
    def spread(self) -> dict[str, dict[str, Spread]]:
        """Median and spread by kind of start and clock; without clocks that a start lacks."""
        found: dict[str, dict[str, Spread]] = {}
        for boot in ("cold", self.kind):
            found[boot] = {}
            for clock in MILESTONES:
                values = [getattr(start, clock) for start in self.starts if start.boot == boot]
                if values and None not in values:
                    found[boot][clock] = Spread.of(values)
        return found

    @property
    def ratio(self) -> float:
        """How many times faster a restored start is: medians, to the first token."""
        spread = self.spread
        return spread["cold"]["first_token_s"].median / spread[self.kind]["first_token_s"].median

    def as_json(self) -> dict[str, object]:
        """The measurement as the file holds it, with the clocks in words and the figures that follow from the starts."""
        return {
            "format": FORMAT,
            "schema": SCHEMA,
            **asdict(self),
            "floor": self.floor.as_json() if self.floor else None,
            "starts": [{**asdict(start), "spans": list(map(asdict, start.spans))} for start in self.starts],
            "spread": {boot: {name: asdict(one) for name, one in of.items()} for boot, of in self.spread.items()},
            "ratio": self.ratio,
            "clocks": CLOCKS,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, object]) -> Bench:
        """The value of a file's content.

        Raises:
            ValueError: a field is missing or has a wrong type, or the figures do not follow from the starts.
        """
        if content.get("schema") != SCHEMA:
            raise ValueError(f"it has schema {content.get('schema')!r}; this Torpor reads {SCHEMA}")
        machine, floor = _part(content, "machine"), content.get("floor")
        standby = content.get("backend") == "standby"
        bench = cls(
            **{name: _text(content, name) for name in ("torpor", "app", "deployment", "engine", "model")},
            backend=_one_of(content, "backend", BACKENDS),
            at=_number(content, "at"),
            machine=Machine(
                cpus=_whole(machine, "cpus"),
                architecture=_text(machine, "architecture"),
                kernel=_text(machine, "kernel"),
                load=_number(machine, "load"),
            ),
            starts=tuple(_start(start, woken=standby) for start in _parts(content, "starts")),
            floor=None if floor is None else _floor(_part(content, "floor")),
        )
        if bench.at > _LAST_DATE:
            raise ValueError(f"at is {bench.at!r}, a time after the year 9999")
        if not all("first_token_s" in of for of in bench.spread.values()):
            raise ValueError(f"it needs a cold and a {bench.kind} start at least, each with first_token_s")
        if not bench.spread[bench.kind]["first_token_s"].median:
            raise ValueError(f"its median first_token_s of a {bench.kind} start is 0")
        written = bench.as_json()
        for name in ("spread", "ratio", "floor"):
            if not _follows(content.get(name), written[name]):
                raise ValueError(f"its {name} does not follow from what was measured: the file was changed")
        return bench


def _follows(value: object, written: object) -> bool:
    """Whether a figure of a file is the one that this version would write.

    Older files call wakes `restored`, have a 95th percentile of any number of starts, and negative bytes if more is mapped
    than the images have.
    """
    if not isinstance(value, dict) or not isinstance(written, dict):
        return value == written
    found = {"woken" if name == "restored" and "woken" in written else name: one for name, one in value.items()}
    if found.keys() != written.keys():
        return False
    loose = {name for name, one in written.items() if name == "p95" and one is None}
    if "mapped_bytes" in written and written["mapped_bytes"] > written["image_bytes"]:
        loose |= {"copied_bytes", "copied_s"}
    return all(name in loose or _follows(found[name], written[name]) for name in written)


def _start(content: Mapping[str, object], *, woken: bool) -> Start:
    clocks = {name: None if content.get(name) is None else _number(content, name) for name in MILESTONES}
    boot = cast("Kind", _one_of(content, "boot", KINDS))
    return Start(
        number=_whole(content, "number"),
        boot="woken" if woken and boot == "restored" else boot,
        spans=tuple(map(_span, _parts(content, "spans"))),
        **clocks,
    )


def _span(content: Mapping[str, object]) -> Span:
    return Span(
        stage=_text(content, "stage"),
        start_s=_number(content, "start_s"),
        seconds=_number(content, "seconds"),
        exact=content.get("exact") is True,
        error=_text(content, "error"),
    )


def _floor(content: Mapping[str, object]) -> Floor:
    bandwidth = _number(content, "bandwidth_bytes_per_s")
    if not bandwidth:
        raise ValueError("bandwidth_bytes_per_s is 0")
    sizes = {name: _whole(content, name) for name in ("image_bytes", "mapped_bytes", "side_file_bytes")}
    return Floor(**sizes, bandwidth_bytes_per_s=bandwidth)


def _number(content: Mapping[str, object], name: str) -> float:
    value = content.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= GREATEST:
        raise ValueError(f"{name} is {value!r:.80}, not a number of 0 or more, up to {GREATEST:.0e}")
    return value


def _whole(content: Mapping[str, object], name: str) -> int:
    value = _number(content, name)
    if not isinstance(value, int):
        raise ValueError(f"{name} is {value!r}, not a whole number")  # noqa: TRY004 - the file is wrong, not a call
    return value


def _text(content: Mapping[str, object], name: str) -> str:
    if not isinstance(value := content.get(name), str):
        raise ValueError(f"{name} is {value!r}, not a text")  # noqa: TRY004
    return value


def _one_of(content: Mapping[str, object], name: str, allowed: tuple[str, ...]) -> str:
    if (value := _text(content, name)) not in allowed:
        raise ValueError(f"{name} is {value!r}, none of {', '.join(allowed)}")
    return value


def _part(content: Mapping[str, object], name: str) -> Mapping[str, object]:
    if not isinstance(value := content.get(name), dict):
        raise ValueError(f"{name} is no object")  # noqa: TRY004
    return value


def _parts(content: Mapping[str, object], name: str) -> list[Mapping[str, object]]:
    value = content.get(name)
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise ValueError(f"{name} is no list of objects")
    return value
