"""Stage records as a Prometheus text file: its content, and when it is written."""

from __future__ import annotations

import re
import threading
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from torpor.telemetry import metrics
from torpor.telemetry.metrics import EARLIER, MOST_REPLICAS, Metrics, metrics_text
from torpor.telemetry.records import StageRecord
from torpor.telemetry.stage_report import METRICS_VARIABLE, StageReport

if TYPE_CHECKING:
    from pathlib import Path

    from torpor.telemetry.records import BootKind

_SAMPLE = re.compile(r"(\w+)\{((?:\w+=\"(?:[^\"\\]|\\.)*\",?)*)\} (\S+)")


def record(
    stage: str,
    seconds: float = 1.0,
    *,
    boot: BootKind = "cold",
    restores: int = 0,
    ok: bool = True,
    replica: str = "tiny-1",
) -> StageRecord:
    """A record with fixed times."""
    return StageRecord(
        stage=stage,
        seconds=seconds,
        boot=boot,
        replica_id="0" * 16,
        restore_count=restores,
        ended_at=1700000000.5,
        ok=ok,
        deployment="tiny",
        replica=replica,
    )


def samples(text: str, name: str) -> dict[str, float]:
    """Values of one metric by its labels."""
    found = [_SAMPLE.fullmatch(line) for line in text.splitlines() if not line.startswith("#")]
    return {one[2]: float(one[3]) for one in found if one and one[1] == name}


@pytest.fixture(autouse=True)
def of_this_test_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what other tests of this process counted."""
    monkeypatch.setattr(metrics, "_HERE", Metrics())


def test_every_stage_is_there_once_for_each_kind_of_boot() -> None:
    """The latest of each. HELP and TYPE stand once before the samples of a metric, as the format demands."""
    records = [
        record("ready", 10.0),
        record("post_restore", 0.5, boot="restored", restores=1),
        record("post_restore", 0.25, boot="restored", restores=2, ok=False),
    ]
    who = 'deployment="tiny",replica="tiny-1"'
    assert metrics_text(records) == (
        "# HELP torpor_stage_seconds Wall time of the latest run of a stage.\n"
        "# TYPE torpor_stage_seconds gauge\n"
        f'torpor_stage_seconds{{{who},stage="ready",boot="cold"}} 10.000000\n'
        f'torpor_stage_seconds{{{who},stage="post_restore",boot="restored"}} 0.250000\n'
        "# HELP torpor_stage_ok Whether the latest run of a stage succeeded.\n"
        "# TYPE torpor_stage_ok gauge\n"
        f'torpor_stage_ok{{{who},stage="ready",boot="cold"}} 1\n'
        f'torpor_stage_ok{{{who},stage="post_restore",boot="restored"}} 0\n'
        "# HELP torpor_stage_end_timestamp_seconds When it ended, Unix time.\n"
        "# TYPE torpor_stage_end_timestamp_seconds gauge\n"
        f'torpor_stage_end_timestamp_seconds{{{who},stage="ready",boot="cold"}} 1700000000.500\n'
        f'torpor_stage_end_timestamp_seconds{{{who},stage="post_restore",boot="restored"}} 1700000000.500\n'
        "# HELP torpor_cold_starts_total Cold starts whose engine answered.\n"
        "# TYPE torpor_cold_starts_total counter\n"
        f"torpor_cold_starts_total{{{who}}} 0\n"
        "# HELP torpor_restores_total Restores from a snapshot whose replica served.\n"
        "# TYPE torpor_restores_total counter\n"
        f"torpor_restores_total{{{who}}} 0\n"
        "# HELP torpor_wakes_total Wakes in place whose replica served.\n"
        "# TYPE torpor_wakes_total counter\n"
        f"torpor_wakes_total{{{who}}} 0\n"
        "# HELP torpor_failures_total Stages that failed.\n"
        "# TYPE torpor_failures_total counter\n"
        f'torpor_failures_total{{{who},stage="post_restore",boot="restored"}} 1\n'
    )


def test_every_start_wake_and_failure_is_counted_for_its_replica() -> None:
    """A wake in place is no restore. Two replicas of one deployment have samples of their own."""
    records = [
        record("canary"),
        record("serve", boot="woken", restores=1),
        record("serve", boot="woken", restores=2),
        record("serve", boot="restored", restores=1, replica="tiny-2"),
        record("restore", boot="restored", restores=1, replica="tiny-3", ok=False),
        record("restore", boot="restored", restores=1, replica="tiny-3", ok=False),
    ]
    text = metrics_text(records)
    one, two, three = (f'deployment="tiny",replica="tiny-{number}"' for number in (1, 2, 3))
    assert samples(text, "torpor_cold_starts_total") == {one: 1, two: 0, three: 0}
    assert samples(text, "torpor_wakes_total") == {one: 2, two: 0, three: 0}
    assert samples(text, "torpor_restores_total") == {one: 0, two: 1, three: 0}
    assert samples(text, "torpor_failures_total") == {f'{three},stage="restore",boot="restored"': 2}


def test_restarts_are_counted_by_their_reason() -> None:
    """Each restart counts once, however many stages it had. Without a restart the metric is missing."""
    first = replace(record("serve", 0.1), restarts=1, reason="engine ended")
    records = [record("serve", 0.1), replace(first, stage="launch"), first, replace(first, restarts=2)]
    records += [replace(first, restarts=3, reason="wake failed")]
    lines = metrics_text(records).splitlines()
    assert lines[-4:] == [
        "# HELP torpor_restarts_total Restarts of this replica.",
        "# TYPE torpor_restarts_total counter",
        'torpor_restarts_total{deployment="tiny",replica="tiny-1",reason="engine ended"} 2',
        'torpor_restarts_total{deployment="tiny",replica="tiny-1",reason="wake failed"} 1',
    ]


def test_names_of_any_kind_stay_one_label() -> None:
    """Quotes, backslashes and line breaks are escaped. A lone surrogate does not prevent the file from being written."""
    name = 'a"b\\c\nd\udc80'
    (line,) = [
        line
        for line in metrics_text([replace(record("ready"), replica=name)]).splitlines()
        if line.startswith("torpor_wakes_total")
    ]
    assert line == 'torpor_wakes_total{deployment="tiny",replica="a\\"b\\\\c\\nd?"} 0'


def test_many_replicas_do_not_fill_the_file() -> None:
    """The oldest are counted together, and no restore, failure or restart is lost."""
    counted = Metrics()
    for number in range(3 * MOST_REPLICAS):
        name = f"tiny-{number}"
        counted.note(record("post_restore", boot="restored", ok=False, replica=name))
        counted.note(replace(record("serve", boot="restored", replica=name), restarts=number, reason="engine ended"))
    text = counted.text()
    restores = samples(text, "torpor_restores_total")
    assert sum(restores.values()) == sum(samples(text, "torpor_failures_total").values()) == 3 * MOST_REPLICAS
    assert sum(samples(text, "torpor_restarts_total").values()) == 3 * MOST_REPLICAS - 1
    assert len(restores) == MOST_REPLICAS + 1
    assert restores[f'deployment="tiny",replica="{EARLIER}"'] == 2 * MOST_REPLICAS
    assert len(samples(text, "torpor_stage_ok")) == 2 * MOST_REPLICAS


def test_the_file_is_whole_after_each_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No other file is left next to it."""
    file = tmp_path / "torpor.prom"
    monkeypatch.setenv(METRICS_VARIABLE, str(file))
    report = StageReport()
    for number in (1, 2):
        report.end(record(f"stage{number}", number))
        assert file.read_text() == metrics_text(report.records)
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_cannot_be_written_ends_no_replica(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The warning is logged once."""
    monkeypatch.setenv(METRICS_VARIABLE, str(tmp_path / "nowhere" / "torpor.prom"))
    report = StageReport()
    report.end(record("one", 1.0))
    report.end(record("two", 2.0))
    assert len(report.records) == 2
    assert capsys.readouterr().out.count("metrics_not_written") == 1


def test_without_the_variable_no_file_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written anywhere."""
    monkeypatch.delenv(METRICS_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    StageReport().end(record("one", 1.0))
    assert list(tmp_path.iterdir()) == []


def test_replicas_that_wake_side_by_side_do_not_overwrite_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has its own report in its own thread. The metrics file and the file of records have the stages of all."""
    file, lines = tmp_path / "torpor.prom", tmp_path / "records.jsonl"
    monkeypatch.setenv(METRICS_VARIABLE, str(file))
    reports = [StageReport(lines) for _ in range(8)]

    def write(number: int) -> None:
        for _ in range(25):
            reports[number].end(record("serve", boot="restored", replica=f"tiny-{number}"))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert samples(file.read_text(), "torpor_restores_total") == {
        f'deployment="tiny",replica="tiny-{number}"': 25 for number in range(8)
    }
    written = Counter(re.findall(r'"replica": "(tiny-\d)"\}$', lines.read_text(), re.MULTILINE))
    assert written == {f"tiny-{number}": 25 for number in range(8)}
    assert sorted(tmp_path.iterdir()) == [lines, file]
