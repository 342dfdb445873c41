"""Reads a file of recorded starts: a measurement of `torpor bench`, or stage records."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torpor.errors import ConfigurationError
from torpor.report.measured import FORMAT, GREATEST, Bench
from torpor.report.starts import starts_of
from torpor.telemetry.records import BOOT_KINDS, read_records
from torpor.values.given_files import read_given

if TYPE_CHECKING:
    from pathlib import Path

    from torpor.report.starts import Start
    from torpor.telemetry.records import StageRecord

__all__ = ["Recorded", "read_report"]

_WANTED = (
    "Give the JSON of `torpor bench APP --json FILE`, or a file of stage records: `torpor up` prints their path when it "
    "ends; they are in the folder `records` of the cache root."
)


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """The starts of a file of stage records.

    Attributes:
        name: the file's name.
        starts: starts, sleeps and wakes, in order.
    """

    name: str
    starts: tuple[Start, ...]


def read_report(file: Path) -> Bench | Recorded:
    """Read one file.

    Raises:
        ConfigurationError: it cannot be read, or is of neither kind; the message says what to give instead.
    """
    try:
        text = read_given(file, _WANTED).decode()
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{file} is not text, so it holds no JSON. {_WANTED}") from error
    content = _first_value(text)
    if content is None:
        raise ConfigurationError(f"{file} holds no JSON{'' if text.strip() else ': it is empty'}. {_WANTED}")
    if content.get("format") == FORMAT:
        try:
            return Bench.from_json(json.loads(text))
        except (ValueError, RecursionError, OverflowError) as error:
            raise ConfigurationError(f"{file} is a damaged file of `torpor bench`: {error}. Measure again.") from error
    if "stage" in content and "seconds" in content:
        records = read_records(file)
        for number, record in enumerate(records, start=1):
            _check(record, f"{file}:{number}")
        return Recorded(name=file.name, starts=starts_of(records))
    raise ConfigurationError(f"{file} holds JSON of another kind. {_WANTED}")


def _first_value(text: str) -> dict[str, object] | None:
    """The whole text, or else its first line, as a JSON object; empty for other JSON; None for no JSON."""
    for part in (text, text.strip().partition("\n")[0]):
        try:
            value = json.loads(part)
        except (ValueError, RecursionError):
            continue
        return value if isinstance(value, dict) else {}
    return None


def _check(record: StageRecord, where: str) -> None:
    """Refuse a record that no page can show, because a file may hold any values."""
    for name in ("seconds", "ended_at"):
        value = getattr(record, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= GREATEST:
            raise ConfigurationError(
                f"{where}: {name} is {value!r:.80}, not a number of 0 or more, up to {GREATEST:.0e}; remove the line or the file."
            )
    for name, kind in (
        ("replica_id", str),
        ("error", str),
        ("reason", str),
        ("deployment", str),
        ("replica", str),
        ("restore_count", int),
        ("restarts", int),
        ("ok", bool),
    ):
        if not isinstance(value := getattr(record, name), kind):
            raise ConfigurationError(f"{where}: {name} is {value!r}, no {kind.__name__}; remove the line or the file.")
    if not isinstance(record.plugins, dict):
        raise ConfigurationError(f"{where}: plugins is {record.plugins!r}, no object; remove the line or the file.")
    if not isinstance(record.boot, str) or record.boot not in BOOT_KINDS or not isinstance(record.stage, str):
        raise ConfigurationError(
            f"{where}: stage {record.stage!r} of a start {record.boot!r} is unknown ({', '.join(BOOT_KINDS)}); remove the line."
        )
