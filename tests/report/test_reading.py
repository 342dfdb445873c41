"""Files of recorded starts: both kinds are read back as they were written; anything else is refused with the next step."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import pytest

from tests.report.recorded import RECORDS, measured
from torpor import ConfigurationError
from torpor.report import Floor, Recorded, read_report, starts_of
from torpor.report.page import page
from torpor.telemetry.stage_report import StageReport

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.mark.parametrize("backend", ["criu", "standby"])
def test_a_bench_is_read_back_as_it_was_written(tmp_path: Path, backend: str) -> None:
    """Every number to its last bit, so the page made from the file is the page of the bench."""
    bench = measured(backend=backend)
    file = tmp_path / "bench.json"
    file.write_text(json.dumps(bench.as_json(), indent=2))
    read = read_report(file)
    assert read == bench
    assert page([read]) == page([bench])


def test_stage_records_are_read_from_the_file_that_a_start_writes(tmp_path: Path) -> None:
    """`StageReport` writes it. One line is enough."""
    for records in (RECORDS, RECORDS[:1]):
        report = StageReport(tmp_path / f"{len(records)}.jsonl")
        for one in records:
            report.end(one)
        assert report.path is not None
        assert read_report(report.path) == Recorded(name=report.path.name, starts=starts_of(records))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b"a text\n", "holds no JSON"),
        (b"\xff\xfe\x00", "is not text"),
        (b"[" * 100_000, "holds no JSON"),
        (b"[1, 2]", "another kind"),
        (b"17", "another kind"),
        (b'{"stages": []}', "another kind"),
        (b'{"format": "torpor.bench", "schema": 2}', "schema 2; this Torpor reads 1"),
        (b'{"format": "torpor.bench", "schema": 1}\n{}', "damaged"),
        (b'{"stage": "launch", "seconds": 1}', "not a stage record"),
    ],
)
def test_a_file_of_another_kind_is_refused_with_what_to_give(tmp_path: Path, content: bytes, said: str) -> None:
    """One paragraph names the file and the next step."""
    file = tmp_path / "given.json"
    file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=said) as caught:
        read_report(file)
    message = str(caught.value)
    assert str(file) in message
    assert "\n" not in message
    assert any(word in message for word in ("Give the JSON", "Measure again", "remove the line"))


@pytest.mark.parametrize("place", ["missing.json", "."])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, place: str) -> None:
    """A missing file, or a folder."""
    with pytest.raises(ConfigurationError, match=r"cannot be read: .*Give the JSON"):
        read_report(tmp_path / place)


def _set(path: str, value: object) -> Callable[[dict[str, object]], None]:
    """Change one value in a file's content."""
    *way, name = path.split(".")

    def change(content: dict[str, object]) -> None:
        place: object = content
        for word in way:
            place = place[int(word)] if isinstance(place, list) else cast("dict[str, object]", place)[word]
        cast("dict[str, object]", place)[name] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_set("starts.0.first_token_s", 0.25), "spread does not follow"),
        (_set("spread.cold.first_token_s.median", 0.25), "spread does not follow"),
        (_set("ratio", 1000.0), "ratio does not follow"),
        (_set("floor.copied_s", 0.0), "floor does not follow"),
        (_set("starts", []), "a cold and a restored start"),
        (_set("starts.1.first_token_s", None), "a cold and a restored start"),
        (_set("starts.1.spans.0.seconds", "long"), "seconds is 'long', not a number"),
        (_set("starts.1.spans.0.seconds", float("nan")), "seconds is nan"),
        (_set("starts.1.spans.0.start_s", -1.0), "start_s is -1.0"),
        (_set("starts.0.boot", "warm"), "boot is 'warm'"),
        (_set("floor.bandwidth_bytes_per_s", 0), "bandwidth_bytes_per_s is 0"),
        (_set("machine.cpus", True), "cpus is True"),
        (_set("machine", None), "machine is no object"),
        (_set("model", 3), "model is 3, not a text"),
        (_set("starts.0.spans", {}), "spans is no list"),
    ],
)
def test_a_damaged_bench_is_refused(tmp_path: Path, change: Callable[[dict[str, object]], None], said: str) -> None:
    """It has impossible values, or figures that do not follow from its starts."""
    content = json.loads(json.dumps(measured().as_json()))
    change(content)
    file = tmp_path / "bench.json"
    file.write_text(json.dumps(content))
    with pytest.raises(ConfigurationError, match=f"damaged file of `torpor bench`: .*{said}"):
        read_report(file)


@pytest.mark.parametrize("backend", ["criu", "standby"])
def test_a_bench_of_an_older_version_is_still_read(tmp_path: Path, backend: str) -> None:
    """It has a 95th percentile of three starts, calls wakes `restored`, and may have negative bytes to copy."""
    bench = measured(backend=backend)
    if bench.floor:
        bench = replace(bench, floor=replace(bench.floor, mapped_bytes=bench.floor.image_bytes + 10_000))
    content = json.loads(
        json.dumps(bench.as_json()).replace('"woken"', '"restored"').replace('"p95": null', '"p95": 1.5')
    )
    if content["floor"]:
        content["floor"] |= {"copied_bytes": -5904, "copied_s": -5904 / content["floor"]["bandwidth_bytes_per_s"]}
    file = tmp_path / "bench.json"
    file.write_text(json.dumps(content))
    assert read_report(file) == bench


def test_no_floor_is_below_zero() -> None:
    """More may be mapped than the images have: a page that several processes map counts once for each."""
    floor = Floor(image_bytes=1000, mapped_bytes=5000, side_file_bytes=10, bandwidth_bytes_per_s=100.0)
    assert (floor.copied_bytes, floor.copied_s, floor.all_s) == (10, 0.1, 10.1)


@pytest.mark.parametrize(
    ("name", "value"), [("seconds", "x"), ("seconds", -1), ("ended_at", None), ("boot", "warm"), ("stage", 7)]
)
def test_a_record_that_cannot_be_drawn_is_named_with_its_line(tmp_path: Path, name: str, value: object) -> None:
    """Here the second line; the first one is right."""
    file = tmp_path / "records.jsonl"
    file.write_text(f"{json.dumps(RECORDS[0].as_json())}\n{json.dumps({**RECORDS[1].as_json(), name: value})}\n")
    with pytest.raises(ConfigurationError, match=r"records\.jsonl:2: .*remove the line"):
        read_report(file)


@pytest.mark.fault("a recorded text holds markup, quotes and control characters", area="report", outcome="held")
def test_no_text_of_a_file_is_markup_of_the_page(tmp_path: Path) -> None:
    """Each field of both kinds, and the file's name, is shown as text. The page is UTF-8 without control characters."""
    bad = "</title></style><script>a</script>'\"><b x=\x00\x1b[31m\r\u202e\x9b\ud800&amp;"

    def marked(value: object) -> object:
        if isinstance(value, dict):
            return {name: one if name in ("format", "backend", "boot") else marked(one) for name, one in value.items()}
        return list(map(marked, value)) if isinstance(value, list) else bad if isinstance(value, str) else value

    bench = measured(pairs=1).as_json()
    of_bench = {**cast("dict[str, object]", marked(json.loads(json.dumps(bench)))), "spread": bench["spread"]}
    file = tmp_path / "bench.json"
    file.write_text(json.dumps(of_bench))
    records = tmp_path / "<script>'\"&\x1b.jsonl"
    texts = dict.fromkeys(("stage", "error", "replica_id", "reason", "deployment", "replica"), bad)
    records.write_text(json.dumps({**RECORDS[-1].as_json(), **texts, "plugins": {bad: 1.0}}) + "\n")
    drawn = page([read_report(file), read_report(records)])
    drawn.encode()
    assert not set(drawn) & set("\x00\x1b\r\u202e\x9b\ud800")
    assert [drawn.count(tag) for tag in ("<script", "</script", "</title>", "</style>", "<b ")] == [0, 0, 1, 1, 0]
    assert drawn.count("&lt;script&gt;a") > 5
    assert "&amp;amp;" in drawn


@pytest.mark.fault("a file of recorded starts holds numbers that no machine gives", area="report", outcome="refused")
@pytest.mark.parametrize("value", ["1e300", "1e16", "1" + "0" * 4000, "NaN", "Infinity", "-1", "true", '"1"'])
def test_a_number_that_cannot_be_drawn_is_refused(tmp_path: Path, value: str) -> None:
    """In both kinds: a date, a sum or a scale would be too large."""
    bench = json.dumps(measured(pairs=1).as_json())
    record = json.dumps(RECORDS[0].as_json())
    for content in (
        bench.replace('"at": 1790000000.25', f'"at": {value}'),
        bench.replace('"load": 0.31', f'"load": {value}'),
        record.replace('"seconds": 0.25', f'"seconds": {value}'),
        record.replace('"ended_at": 1000.25', f'"ended_at": {value}'),
    ):
        assert content not in (bench, record)
        file = tmp_path / "given.json"
        file.write_text(content)
        with pytest.raises(ConfigurationError) as refused:
            read_report(file)
        assert len(str(refused.value)) < 500


@pytest.mark.fault("a file of recorded starts holds starts that took no time", area="report", outcome="refused")
def test_starts_without_length_are_refused(tmp_path: Path) -> None:
    """Their ratio would be a division by 0. A date after the year 9999 is refused too."""
    content = measured(pairs=1).as_json()
    file = tmp_path / "given.json"
    starts = [{**start, "first_token_s": 0} for start in cast("list[dict[str, object]]", content["starts"])]
    for more, said in (({"starts": starts}, "first_token_s of a restored start is 0"), ({"at": 1e12}, "year 9999")):
        file.write_text(json.dumps({**content, **more}))
        with pytest.raises(ConfigurationError, match=said):
            read_report(file)
