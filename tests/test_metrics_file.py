"""Stage records as a Prometheus text file: what is in it, and when it is written."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from torpor.records import METRICS_VARIABLE, StageRecord, StageReport, metrics_text

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def record(stage: str, seconds: float, *, boot: str = "cold", restores: int = 0, ok: bool = True) -> StageRecord:
    """A record with fixed times."""
    return StageRecord(
        stage=stage,
        seconds=seconds,
        boot=boot,  # type: ignore[arg-type]
        boot_id="0" * 16,
        restore_count=restores,
        ended_at=1700000000.5,
        ok=ok,
    )


def test_every_stage_is_there_once_for_each_kind_of_boot() -> None:
    """The latest of each; HELP and TYPE stand once before the samples of a metric, as the format demands."""
    records = [
        record("ready", 10.0),
        record("post_restore", 0.5, boot="restored", restores=1),
        record("post_restore", 0.25, boot="restored", restores=2, ok=False),
    ]
    assert metrics_text(records) == (
        "# HELP torpor_stage_seconds Wall time of the latest run of a stage.\n"
        "# TYPE torpor_stage_seconds gauge\n"
        'torpor_stage_seconds{stage="ready",boot="cold"} 10.000000\n'
        'torpor_stage_seconds{stage="post_restore",boot="restored"} 0.250000\n'
        "# HELP torpor_stage_ok Whether the latest run of a stage succeeded.\n"
        "# TYPE torpor_stage_ok gauge\n"
        'torpor_stage_ok{stage="ready",boot="cold"} 1\n'
        'torpor_stage_ok{stage="post_restore",boot="restored"} 0\n'
        "# HELP torpor_stage_end_timestamp_seconds When it ended, Unix time.\n"
        "# TYPE torpor_stage_end_timestamp_seconds gauge\n"
        'torpor_stage_end_timestamp_seconds{stage="ready",boot="cold"} 1700000000.500\n'
        'torpor_stage_end_timestamp_seconds{stage="post_restore",boot="restored"} 1700000000.500\n'
        "# HELP torpor_restores_total Wakes of this replica.\n"
        "# TYPE torpor_restores_total counter\n"
        "torpor_restores_total 2\n"
    )


def test_restarts_are_counted_by_their_reason() -> None:
    """Each restart once, however many stages it had; without one the metric is not there (see above)."""
    first = replace(record("serve", 0.1), restarts=1, reason="engine ended")
    records = [record("serve", 0.1), replace(first, stage="launch"), first, replace(first, restarts=2)]
    records += [replace(first, restarts=3, reason="wake failed")]
    lines = metrics_text(records).splitlines()
    assert lines[-4:] == [
        "# HELP torpor_restarts_total Restarts of this replica.",
        "# TYPE torpor_restarts_total counter",
        'torpor_restarts_total{reason="engine ended"} 2',
        'torpor_restarts_total{reason="wake failed"} 1',
    ]


def test_the_file_is_whole_after_each_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing else is left beside it."""
    file = tmp_path / "torpor.prom"
    monkeypatch.setenv(METRICS_VARIABLE, str(file))
    report = StageReport()
    for number in (1, 2):
        report.end(record(f"stage{number}", number))
        assert file.read_text() == metrics_text(report.records)
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_cannot_be_written_costs_no_replica(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is said once."""
    monkeypatch.setenv(METRICS_VARIABLE, str(tmp_path / "nowhere" / "torpor.prom"))
    report = StageReport()
    report.end(record("one", 1.0))
    report.end(record("two", 2.0))
    assert len(report.records) == 2
    assert capsys.readouterr().out.count("metrics_not_written") == 1


def test_without_a_request_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written anywhere."""
    monkeypatch.delenv(METRICS_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    StageReport().end(record("one", 1.0))
    assert list(tmp_path.iterdir()) == []


def test_copies_that_wake_side_by_side_do_not_cross(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of several threads writes the file whole; nothing fails and nothing is left."""
    file = tmp_path / "torpor.prom"
    monkeypatch.setenv(METRICS_VARIABLE, str(file))
    reports = [StageReport() for _ in range(8)]

    def write(report: StageReport) -> None:
        for number in range(25):
            report.end(record("serve", float(number), boot="restored"))

    threads = [threading.Thread(target=write, args=(report,)) for report in reports]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not any(report._metrics_failed for report in reports)
    assert file.read_text() == metrics_text(reports[0].records)
    assert list(tmp_path.iterdir()) == [file]
