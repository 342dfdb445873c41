"""`torpor.values.given_files`: `torpor report`, `plan --diff` and `boots --file` take a file with any content."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from torpor import ConfigurationError
from torpor.cli.boots import _text
from torpor.plan.diff import saved_plan
from torpor.report.reading import read_report
from torpor.telemetry.records import read_records
from torpor.values.given_files import is_shallow, read_given

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RECORD = '{"schema": 2, "stage": "launch", "seconds": 1.0, "boot": "cold", "replica_id": "x", "restore_count": 0, "ended_at": 1.0}'


def a_pipe(file: Path) -> None:
    """A pipe that nobody writes to."""
    os.mkfifo(file)


def a_folder(file: Path) -> None:
    """Not a file at all."""
    file.mkdir()


def holes(file: Path) -> None:
    """A sparse file of a terabyte."""
    with file.open("wb") as stream:
        stream.truncate(1 << 40)


def nested(file: Path) -> None:
    """JSON nested deeper than Python's own limit."""
    file.write_text("[" * 100_000)


def bytes_of_no_text(file: Path) -> None:
    """Bytes that are not UTF-8."""
    file.write_bytes(b"\xff\xfe\x00")


READERS: list[Callable[[Path], object]] = [read_report, read_records, lambda file: saved_plan(str(file)), _text]


@pytest.mark.slow
@pytest.mark.fault(
    "a file that is given to a command is a pipe, a folder, endless or no text", area="given files", outcome="refused"
)
@pytest.mark.parametrize("reader", READERS, ids=["report", "records", "plan", "log"])
@pytest.mark.parametrize("made", [a_pipe, a_folder, holes, nested, bytes_of_no_text])
def test_a_strange_file_is_one_clear_error(
    tmp_path: Path, reader: Callable[[Path], object], made: Callable[[Path], None]
) -> None:
    """It names the file. The command does not hang and uses little memory. Any bytes are a log, but one without starts."""
    file = tmp_path / "given.json"
    made(file)
    began = time.monotonic()
    if reader is _text and made in (nested, bytes_of_no_text):
        assert _text(file)
        return
    with pytest.raises(ConfigurationError, match=r"given\.json"):
        reader(file)
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    "text",
    [
        '{"deployment": {}, "engine": [], "image": {}}',
        '{"deployment": 1, "engine": 2, "image": 3}',
        '{"deployment": {}, "engine": {}, "image": {"a": ' + "[" * 400 + "]" * 400 + "}}",
        "[]",
        "7",
        "",
    ],
)
def test_a_plan_has_its_parts(tmp_path: Path, text: str) -> None:
    """Each is an object, and not nested deeper than in a plan."""
    file = tmp_path / "plan.json"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match="plan"):
        saved_plan(str(file))


@pytest.mark.fault("a stage record has a field of another kind", area="given files", outcome="refused")
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"launch"', "7"),
        ('"cold"', "[]"),
        ('"cold"', '"warm"'),
        ("1.0,", '"1",'),
        ("1.0,", "NaN,"),
        ("1.0,", "-1,"),
        ('"x"', "null"),
        ('"restore_count": 0', '"restore_count": "0"'),
        ('"restore_count": 0', '"restore_count": 0, "ok": "yes"'),
        ('"restore_count": 0', '"restore_count": 0, "error": {}'),
        ('"restore_count": 0', '"restore_count": 0, "plugins": []'),
        ('"restore_count": 0', '"restore_count": 0, "other": 1'),
    ],
)
def test_a_record_is_checked_field_by_field(tmp_path: Path, old: str, new: str) -> None:
    """The message names file and line."""
    file = tmp_path / "records.jsonl"
    file.write_text(RECORD + "\n")
    read_report(file)
    file.write_text(f"{RECORD}\n{RECORD.replace(old, new, 1)}\n")
    with pytest.raises(ConfigurationError, match=r"records\.jsonl:2: "):
        read_report(file)


def test_a_file_of_the_allowed_length_is_read_whole(tmp_path: Path) -> None:
    """One more byte is refused."""
    file = tmp_path / "file"
    file.write_bytes(b"x" * 100)
    assert read_given(file, "", most=100) == b"x" * 100
    with pytest.raises(ConfigurationError, match="more than"):
        read_given(file, "", most=99)


def test_the_depth_of_json_is_checked() -> None:
    """Without recursion."""
    assert is_shallow({"a": [1, {"b": []}]})
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert not is_shallow(deep)
    _drop(deep)


def _drop(deep: list[object]) -> None:
    """Take it apart from the outside, because the interpreter would free it by recursion."""
    while deep:
        inner = deep.pop()
        assert isinstance(inner, list)
        deep = inner
