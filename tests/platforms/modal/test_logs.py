"""What a log says about starts: on saved logs of every kind, and through the real client's own log calls."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from grpclib import Status
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from modal_proto import api_pb2

from tests.modal_plane import LogEntry, ModalPlane
from tests.platforms.modal.modal_lines import (
    AT,
    COLD_ID,
    CREATED,
    CREATING,
    FAILED,
    RESTORING,
    SEGFAULT,
    after,
    cold,
    log,
    on_console,
    stage,
    woken,
)
from torpor.cli.boots import as_values, plain_lines
from torpor.platforms.modal.log import KINDS, BootsReport, Start, classify
from torpor.platforms.modal.log_lines import LogLine, read_lines

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Row = tuple[float, str, str]


def read(*rows: Row) -> BootsReport:
    """The starts in a log with times and containers."""
    return classify(read_lines(log(*rows)))


def rows(second: float, container: str, *texts: str) -> list[Row]:
    return [(second, container, text) for text in texts]


def kinds(report: BootsReport) -> list[tuple[str, str, str]]:
    return [(start.container, start.kind, start.proof) for start in report.starts]


def test_a_cold_start_is_timed_from_its_first_stage_to_its_open_guard() -> None:
    """The log has no line of the platform; the replica's record has every stage."""
    report = read(*rows(10, "ta-A", *cold(10, serves=True)))
    assert report.starts == (
        Start(
            kind="cold",
            container="ta-A",
            replica_id=COLD_ID,
            began_at=AT,
            served_at=AT + 10,
            seconds=10.0,
            restore_count=0,
        ),
    )
    assert (report.success_rate, report.restores_tried, report.lines) == (None, 0, 3)


def test_a_start_that_makes_the_snapshot_includes_its_wake() -> None:
    """Cold start, sleep, capture and wake in the same container are one start."""
    report = read(
        *rows(10, "ta-A", *cold(10), CREATING),
        *rows(30, "ta-A", CREATED, after(COLD_ID, restored=False), *woken(COLD_ID, 31)),
    )
    (start,) = report.starts
    assert (start.kind, start.proof, start.note) == ("snapshot_created", "", "")
    assert (start.seconds, start.wake_s, start.restore_count) == (31.0, 0.5, 1)
    assert (start.captured_at, start.replica_id) == (AT + 20, COLD_ID)
    assert report.restores_tried == 0


def test_a_restore_that_platform_and_replica_report_is_proved() -> None:
    """The platform logs it, and the replica's record says that it woke in another container than it slept in."""
    report = read(*rows(100, "ta-B", RESTORING, after("b1", restored=True), *woken("b1", 103)))
    assert report.starts == (
        Start(
            kind="restored",
            container="ta-B",
            replica_id="b1",
            proof="proved",
            began_at=AT + 100,
            served_at=AT + 103,
            seconds=3.0,
            wake_s=0.5,
            captured_at=AT + 20,
            restore_count=1,
        ),
    )
    assert (report.restores_tried, report.success_rate) == (1, 1.0)


def test_a_restore_without_a_record_is_claimed() -> None:
    """Only the platform reports it."""
    report = read(*rows(100, "ta-B", RESTORING))
    assert kinds(report) == [("ta-B", "restored", "claimed")]
    assert report.starts[0].seconds is None


def test_a_restore_without_the_platforms_line_is_record_only() -> None:
    """The log may begin in the middle."""
    report = read(*rows(100, "ta-B", after("b1", restored=True), *woken("b1", 103)))
    assert kinds(report) == [("ta-B", "restored", "record only")]


def test_a_container_called_restored_that_launches_an_engine_is_contradicted() -> None:
    """The note names both sides. The start counts as a failed restore."""
    report = read(*rows(100, "ta-B", RESTORING, *cold(140, serves=True)))
    assert kinds(report) == [("ta-B", "restored", "contradicted")]
    assert report.starts[0].note == "the platform says restored, its own record says that it launched an engine"
    assert (report.restores_tried, report.restores_succeeded, report.success_rate) == (1, 0, 0.0)


def test_a_container_called_restored_that_woke_in_place_is_contradicted() -> None:
    """A wake alone is no restore: the replica knows the container that it slept in."""
    report = read(*rows(100, "ta-B", RESTORING, after("b1", restored=False), *woken("b1", 103)))
    assert kinds(report) == [("ta-B", "restored", "contradicted")]
    assert "woke where it went to sleep" in report.starts[0].note


def test_a_wake_in_place_without_a_snapshot_stays_a_cold_start() -> None:
    """This is what `modal run` does: the engine sleeps and wakes, and nothing is restored."""
    report = read(*rows(10, "ta-A", *cold(10), after(COLD_ID, restored=False), *woken(COLD_ID, 11)))
    assert kinds(report) == [("ta-A", "cold", "")]
    assert report.starts[0].seconds == 11.0


def test_a_wake_in_place_is_never_a_restore_by_its_records_alone() -> None:
    """The log begins after the sleep, or the platform reports a restore; the records say `woken`."""
    late = read(*rows(100, "ta-A", *woken(COLD_ID, 103)))
    assert (kinds(late), late.restores_tried) == ([("ta-A", "cold", "")], 0)
    claimed = read(*rows(100, "ta-B", RESTORING, *woken(COLD_ID, 103)))
    assert kinds(claimed) == [("ta-B", "restored", "contradicted")]


def test_a_failed_restore_and_its_cold_retry_are_one_start() -> None:
    """The retry's stages belong to the failed restore in the same container."""
    report = read(*rows(100, "ta-B", RESTORING, FAILED), *rows(150, "ta-B", *cold(150, serves=True)))
    (start,) = report.starts
    assert (start.kind, start.exit_code, start.seconds, start.replica_id) == ("restore_failed", 222, 50.0, COLD_ID)
    assert (report.restores_tried, report.restores_succeeded) == (1, 0)


def test_a_segmentation_fault_in_a_restore_fails_that_restore() -> None:
    """The next start of the same container is a start of its own."""
    report = read(*rows(100, "ta-B", RESTORING, SEGFAULT), *rows(150, "ta-B", *cold(150, serves=True)))
    assert kinds(report) == [("ta-B", "segfault", ""), ("ta-B", "cold", "")]
    assert report.starts[0].exit_code == 139
    assert (report.restores_tried, report.restores_succeeded) == (1, 0)


def test_a_segmentation_fault_after_serving_is_a_note_on_the_restore() -> None:
    """The start stays `restored`, but its note counts against it."""
    report = read(*rows(100, "ta-B", RESTORING, after("b1", restored=True), *woken("b1", 103)), (500, "ta-B", SEGFAULT))
    assert kinds(report) == [("ta-B", "restored", "proved")]
    assert report.starts[0].note == "it served, and then ended with a segmentation fault"


def test_a_failed_wake_is_a_failed_restore() -> None:
    """The platform reported success, but the canary failed."""
    error = "CanaryError: the engine answers 'a b=c' differently"
    report = read(*rows(100, "ta-B", RESTORING, after("b1", restored=True), *woken("b1", 103, error=error)))
    assert report.starts[0].note == error
    assert (report.starts[0].proof, report.starts[0].served_at) == ("proved", None)
    assert (report.restores_tried, report.restores_succeeded) == (1, 0)


def test_interleaved_containers_are_kept_apart() -> None:
    """Of four containers at once, one creates the snapshot, two are restored and one fails."""
    created = rows(10, "ta-A", *cold(10), CREATING, CREATED, after(COLD_ID, restored=False), *woken(COLD_ID, 31))
    first = rows(100, "ta-B", RESTORING, after("b1", restored=True), *woken("b1", 103))
    second = rows(100, "ta-C", RESTORING, after("c1", restored=True), *woken("c1", 105))
    failed = rows(100, "ta-D", RESTORING, FAILED, *cold(150, replica_id="d1", serves=True))
    mixed = [row for group in zip(first, second, failed, strict=True) for row in group]
    report = read(*created, *mixed)
    assert kinds(report) == [
        ("ta-A", "snapshot_created", ""),
        ("ta-B", "restored", "proved"),
        ("ta-C", "restored", "proved"),
        ("ta-D", "restore_failed", ""),
    ]
    assert [start.seconds for start in report.starts] == [31.0, 3.0, 5.0, 50.0]
    assert report.counts == {"cold": 0, "snapshot_created": 1, "restored": 2, "restore_failed": 1, "segfault": 0}
    assert report.success_rate == 2 / 3
    assert report.median_s("restored") == 4.0


def test_without_containers_replicas_are_told_apart_by_their_replica_ids() -> None:
    """`modal app logs` without options: a platform line goes to the replica that has waited longest for one."""
    first, second = woken("b1", 103), woken("c1", 105)
    lines = [RESTORING, RESTORING, after("b1", restored=True), after("c1", restored=True)]
    lines += [line for pair in zip(first, second, strict=True) for line in pair]
    report = classify(read_lines("\n".join(lines)))
    assert [(start.replica_id, start.proof, start.served_at) for start in report.starts] == [
        ("b1", "proved", AT + 103),
        ("c1", "proved", AT + 105),
    ]


def test_without_containers_or_an_after_snapshot_record_a_restore_is_only_claimed() -> None:
    """In older logs a wake in place said `restored` too."""
    report = classify(read_lines("\n".join([RESTORING, *woken(COLD_ID, 103, boot="restored")])))
    assert kinds(report) == [("", "restored", "claimed")]
    assert report.starts[0].served_at == AT + 103


def test_a_snapshot_line_in_two_halves_is_one_event() -> None:
    """Some clients split the line in two."""
    report = read(*rows(10, "ta-A", *cold(10), CREATING, "Snapshot created.", RESTORING, *woken(COLD_ID, 31)))
    assert kinds(report) == [("ta-A", "snapshot_created", "")]


@pytest.mark.parametrize(
    "text",
    [
        "Restoring Function from memory snapshot.",
        "Restoring Function from mem",
        "restoring container from a GPU snapshot ...",
        "\x1b[33mRestoring Function\x1b[0m from memory snapshot.\r",
        "  Restoring  Function".replace("  ", " "),
    ],
)
def test_wordings_colours_and_cut_ends_are_tolerated(text: str) -> None:
    """Modal does not promise the wording of its lines."""
    assert kinds(read((1, "ta-B", text))) == [("ta-B", "restored", "claimed")]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Creating memory snapshot for Function.", "cold"),
        ("Memory snapshot created.", "snapshot_created"),
        ("Snapshot crea", None),
        ("Failed to restore container from snapshot (exit code: 7)", "restore_failed"),
        ("Runner segmentation fault", "segfault"),
        ("Fatal Python error: Segmentation fault", None),
        ("user: how does Restoring Function from memory snapshot work?", None),
        ('INFO:     127.0.0.1 - "GET /health HTTP/1.1" 200 OK', None),
        ("", None),
    ],
)
def test_each_line_of_the_platform_is_recognised(text: str, kind: str | None) -> None:
    """Any other line starts nothing."""
    assert [start.kind for start in read((1, "ta-B", text)).starts] == ([kind] if kind else [])


def test_colours_and_windows_line_ends_change_nothing() -> None:
    """A terminal's log has colours; a pasted one may have other line ends."""
    plain = log(*rows(100, "ta-B", RESTORING, after("b1", restored=True), *woken("b1", 103)))
    coloured = plain.replace(RESTORING, f"\x1b[33m{RESTORING}\x1b[0m").replace('{"torpor"', '\x1b[2m{"torpor"')
    assert coloured.count("\x1b") == 6
    expected = classify(read_lines(plain)).starts
    assert classify(read_lines(coloured)).starts == expected
    assert classify(read_lines(plain.replace("\n", "\r\n"))).starts == expected


def test_an_older_log_is_read_with_and_without_its_colours() -> None:
    """Records used to be lines of structlog, for a console or as JSON."""
    new = [
        RESTORING,
        after("b1", restored=True),
        *woken("b1", 103, error="CanaryError: the engine answers 'a b=c' differently"),
    ]
    old = [RESTORING, *map(on_console, new[1:])]
    coloured = [re.sub(r"(\w+)=(\S+)", "\x1b[36m\\1\x1b[0m=\x1b[35m\\2\x1b[0m", line) for line in old]
    as_json = [RESTORING, *(line.replace('"torpor": ', '"event": ') for line in new[1:])]
    expected = read(*rows(100, "ta-B", *new)).starts
    for lines in (old, coloured, as_json):
        assert read(*rows(100, "ta-B", *lines)).starts == expected


def test_other_json_is_no_record() -> None:
    """An engine may log JSON of its own. A record that was cut inside its mark is ignored too."""
    lines = [
        '{"event": "other", "stage": "serve"}',
        '{"torpor": "sta',
        '{"torpor": "engine_ended", "stage": "se',
        "[1, 2",
    ]
    report = classify(read_lines("\n".join(lines)))
    assert (report.starts, report.unreadable) == ((), 0)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 0.99])
@pytest.mark.parametrize("record", [after("b1", restored=True), stage("serve", "cold", COLD_ID, 10, 1.0, 0)])
def test_a_record_that_was_cut_off_is_counted_and_not_guessed(record: str, share: float) -> None:
    """A guess could be wrong: a restored replica would seem woken in place, or a stage would be lost."""
    cut = record[: max(int(len(record) * share), len('{"torpor": "after_snapshot"'))]
    report = read((9, "ta-A", RESTORING), (10, "ta-A", cut))
    assert (kinds(report), report.unreadable) == ([("ta-A", "restored", "claimed")], 1)


def test_a_record_after_an_unfinished_line_is_read() -> None:
    """Another program may print without a line end, so the record does not begin its line."""
    report = read((9, "ta-B", RESTORING), (10, "ta-B", "loading ... " + after("b1", restored=True)))
    assert kinds(report) == [("ta-B", "restored", "proved")]


@pytest.mark.fault("a prompt holds the record of a restore, and the engine logs it", area="logs", outcome="held")
def test_a_quoted_record_is_ignored() -> None:
    """A log of requests contains the words of users. Text follows the quotation."""
    quoted = f"Receive: text={after('evil', restored=True)!r}, sampling_params=None"
    report = read((9, "ta-B", RESTORING), (10, "ta-B", quoted))
    assert kinds(report) == [("ta-B", "restored", "claimed")]


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["cold", "restored", "serve"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
FIELDS = (
    "stage",
    "boot",
    "replica_id",
    "seconds",
    "ended_at",
    "ok",
    "error",
    "restore_count",
    "restored",
    "captured_at",
)


@pytest.mark.fault("a log holds records with any values", area="logs", outcome="held")
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)  # a busy machine is no fault
@given(
    st.lists(
        st.dictionaries(st.sampled_from(FIELDS), VALUES).map(
            lambda odd: {"torpor": "stage", "stage": "serve", "boot": "cold", "seconds": 1.0, "ended_at": AT, **odd}
        )
        | st.dictionaries(st.sampled_from(FIELDS), VALUES).map(
            lambda odd: {"torpor": "after_snapshot", "replica_id": "b", "restored": True, **odd}
        ),
        max_size=4,
    )
)
def test_strange_values_in_a_record_cause_no_error_and_can_be_shown(records: list[dict[str, object]]) -> None:
    """Times beyond every calendar, texts in place of numbers, control characters that move a cursor."""
    report = classify(read_lines("\n".join(json.dumps(record) for record in records)))
    assert len(report.starts) <= len(records)
    assert json.loads(json.dumps(as_values(report), allow_nan=False))["lines"] <= len(records)
    shown = plain_lines(report)
    assert all(line.isprintable() for line in shown)


@pytest.mark.fault("a log names an exit code or a time that is none", area="logs", outcome="held")
@pytest.mark.parametrize(
    "line",
    [
        FAILED.replace("222", "9" * 5000),
        "0001-01-01T00:00:00+14:00 " + RESTORING,
        "9999-12-31T23:59:59-14:00 " + RESTORING,
        '{"torpor": "stage", "boot": "cold", "stage": "serve", "seconds": 1, "ended_at": 1e300}',
        '{"torpor": "stage", "boot": "cold", "stage": "serve", "seconds": NaN, "ended_at": Infinity}',
        '{"torpor": "stage", "boot": "cold", "stage": "serve", "seconds": 1, "restore_count": ' + "9" * 4000 + "}",
        '{"torpor": "stage", "a": ' + "[" * 100_000,
        "exit code " * 1000,
    ],
)
def test_impossible_numbers_and_times_are_left_out(line: str) -> None:
    """The start is counted without them."""
    report = classify(read_lines(line))
    assert all(text.isprintable() for text in plain_lines(report))
    assert json.dumps(as_values(report), allow_nan=False)


@pytest.mark.slow
def test_the_time_to_read_a_log_grows_linearly() -> None:
    """A busy app logs for a month; also without containers."""
    lines = [LogLine(text=RESTORING, at=AT, container=f"ta-{number}") for number in range(30_000)]
    began = time.process_time()
    assert len(classify(lines).starts) == 30_000
    assert len(classify(replace(line, container="") for line in lines[:5000]).starts) == 5000
    assert time.process_time() - began < 5


def test_a_failed_start_and_the_next_one_are_two_starts() -> None:
    """Also if the log names no containers."""
    lines = [stage("preflight", "cold", "", 5, 1.0, 0, "PreflightError: no weights"), *cold(20, serves=True)]
    starts = classify(read_lines("\n".join(lines))).starts
    assert [(start.kind, start.note, start.served_at) for start in starts] == [
        ("cold", "PreflightError: no weights", None),
        ("cold", "", AT + 20),
    ]


@given(st.lists(st.sampled_from([RESTORING, CREATED, CREATING, FAILED, SEGFAULT, after("b", restored=True), *cold(9)])))
def test_any_order_of_lines_gives_starts_and_no_more_successes_than_tries(lines: list[str]) -> None:
    """Logs begin and end anywhere."""
    report = classify(LogLine(text=line) for line in lines)
    assert sum(report.counts.values()) == len(report.starts) <= len(lines)
    assert report.restores_succeeded <= report.restores_tried


@given(st.text() | st.from_regex(r"x \] stage  boot=cold stage=serve seconds=\S+ ended_at=\S+ restore_count=\S+"))
def test_any_text_is_read_without_an_error(text: str) -> None:
    """Anybody can write into a log."""
    assert set(classify(read_lines(text)).counts) == set(KINDS)


# --- the real client --------------------------------------------------------------------------------------------------


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ModalPlane]:
    """A control plane with one deployed app, `small`."""
    home = tmp_path / "home"
    home.mkdir()
    with ModalPlane(home) as started:
        started.publish("small")
        yield started
        assert started.store.unknown_calls == []


@pytest.mark.slow
def test_the_log_comes_through_the_clients_own_calls(plane: ModalPlane, tmp_path: Path) -> None:
    """Entries come from several containers, in pieces that are not whole lines, and are joined again."""
    now = time.time() - 600
    ours = "\n".join([after("b1", restored=True), *woken("b1", now - AT + 3)]) + "\n"
    entries = [
        LogEntry(data=RESTORING + "\n", at=now, container="ta-B", source=api_pb2.FILE_DESCRIPTOR_INFO),
        LogEntry(data=ours[:100], at=now + 1, container="ta-B"),
        LogEntry(data=RESTORING + "\n", at=now + 1.5, container="ta-C", source=api_pb2.FILE_DESCRIPTOR_INFO),
        LogEntry(data=ours[100:], at=now + 2, container="ta-B"),
        LogEntry(data=FAILED, at=now + 3, container="ta-C", source=api_pb2.FILE_DESCRIPTOR_INFO),
    ]
    plane.add_logs(plane.app("small").app_id, *entries)
    done = plane.python("-m", "torpor.cli", "boots", "small", "--json", cwd=tmp_path)
    assert done.code == 0, done.output
    said = json.loads(done.output)
    assert [(start["container"], start["kind"], start["proof"]) for start in said["starts"]] == [
        ("ta-B", "restored", "proved"),
        ("ta-C", "restore_failed", ""),
    ]
    assert said["starts"][0]["seconds"] == pytest.approx(3.0)
    assert said["restores"] == {"tried": 2, "succeeded": 1, "success_rate": 0.5}
    assert plane.store.of(api_pb2.AppFetchLogsRequest)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (("nosuch",), 2, "Modal has no app 'nosuch'"),
        (("small", "--hours", "0"), 2, "at most 840 hours"),
        (("small", "--timeout", "0"), 2, "--timeout is 0"),
        (("not/a name",), 2, "Modal has no app 'not/a name'"),
    ],
)
def test_an_unknown_app_or_a_wrong_range_is_one_paragraph(
    plane: ModalPlane, tmp_path: Path, argv: tuple[str, ...], code: int, words: str
) -> None:
    """Exit code 2, what to change, no traceback."""
    done = plane.python("-m", "torpor.cli", "boots", *argv, cwd=tmp_path)
    assert (done.code, "Traceback" in done.output) == (code, False)
    assert words in done.output


@pytest.mark.slow
def test_refused_credentials_say_how_to_log_in(plane: ModalPlane, tmp_path: Path) -> None:
    """As with every other request to Modal."""
    plane.store.logs_fail = Status.UNAUTHENTICATED
    done = plane.python("-m", "torpor.cli", "boots", "small", cwd=tmp_path)
    assert (done.code, "Traceback" in done.output) == (2, False)
    assert "Log in with `modal setup`" in done.output


@pytest.mark.slow
def test_a_log_that_does_not_arrive_ends_at_the_deadline(plane: ModalPlane, tmp_path: Path) -> None:
    """The deadline covers all calls. Exit code 1, because the request itself is right."""
    plane.store.logs_hang = True
    began = time.monotonic()
    done = plane.python("-m", "torpor.cli", "boots", "small", "--timeout", "2", cwd=tmp_path)
    assert (done.code, "Traceback" in done.output) == (1, False)
    assert "did not send the log of 'small' within 2 s" in done.output
    assert time.monotonic() - began < 40


@pytest.mark.slow
def test_an_unreachable_platform_is_reported(tmp_path: Path) -> None:
    """In time, even if the client retries."""
    home = tmp_path / "home"
    home.mkdir()
    with ModalPlane(home) as gone:
        pass
    done = gone.python("-m", "torpor.cli", "boots", "small", "--timeout", "3", cwd=tmp_path)
    assert (done.code, "Traceback" in done.output) == (1, False)
    assert re.search(r"Modal cannot be reached|within 3 s", done.output)
