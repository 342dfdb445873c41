"""`torpor.engine.logs`: limited in bytes and number, complete after an interrupted rotation, readable by the owner only."""

from __future__ import annotations

import os
import stat
import sys
from typing import TYPE_CHECKING

import pytest

from torpor.cli.logs import Reader
from torpor.engine.logs import (
    ENDED_KEPT,
    LOG_VARIABLE,
    Follower,
    LogFile,
    new_log,
    replica_log,
    segments,
    stored_logs,
)
from torpor.engine.start import start_engine

if TYPE_CHECKING:
    from pathlib import Path


def content(path: Path) -> bytes:
    """The content of all files of a log, oldest first."""
    return b"".join(file.read_bytes() for file in segments(path))


def test_a_log_is_bounded_in_bytes_and_files(tmp_path: Path) -> None:
    """The newest lines stay, in order."""
    log = LogFile(tmp_path / "d" / "r.log", file_bytes=100, files=3)
    for number in range(100):
        log.write(b"line %02d, a few words\n" % number)
    log.close()
    files = segments(log.path)
    assert [file.name for file in files] == ["r.log.2", "r.log.1", "r.log"]
    assert all(file.stat().st_size <= 100 for file in files)
    kept = content(log.path).splitlines()
    assert kept == [b"line %02d, a few words" % number for number in range(100 - len(kept), 100)]


def test_a_log_is_for_its_owner_alone(tmp_path: Path) -> None:
    """Whatever the umask: a log may contain prompts."""
    before = os.umask(0)
    try:
        log = LogFile(tmp_path / "logs" / "d" / "r.log", file_bytes=10)
        log.write(b"x" * 8)
        log.write(b"y" * 8)
        log.close()
    finally:
        os.umask(before)
    assert stat.S_IMODE(log.path.parent.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in segments(log.path)} == {0o600}


@pytest.mark.fault("a rotation of a log is cut short", area="logs", outcome="held")
@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_rotation_that_was_cut_short_loses_nothing(tmp_path: Path, missing: int) -> None:
    """A rotation renames the last file first. If it is interrupted, one number has no file; the next rotation stops there."""
    names = ["r.log", "r.log.1", "r.log.2", "r.log.3"]
    for age, name in enumerate(names):
        if age != missing:
            (tmp_path / name).write_text(f"age {age}\n")
    before = content(tmp_path / "r.log")
    log = LogFile(tmp_path / "r.log", file_bytes=8, files=4)
    log.write(b"newer\n")
    log.close()
    assert content(log.path) == before + b"newer\n"


@pytest.mark.fault("the folder of logs is removed while an engine runs", area="logs", outcome="held")
def test_a_log_whose_folder_was_removed_goes_on_in_a_new_one(tmp_path: Path) -> None:
    """The next rotation creates the folder again."""
    log = LogFile(tmp_path / "d" / "r.log", file_bytes=10)
    log.write(b"12345678")
    log.path.unlink()
    log.path.parent.rmdir()
    log.write(b"abcdefgh")
    log.close()
    assert content(log.path) == b"abcdefgh"


@pytest.mark.fault("the disk of the logs is full", area="logs", outcome="held")
def test_a_log_on_a_full_disk_stops_nobody(tmp_path: Path) -> None:
    """Output that cannot be written is dropped."""
    log = LogFile(tmp_path / "r.log")
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, log._descriptor)
    os.close(full)
    log.write(b"lost\n")
    log.close()
    assert content(log.path) == b""


def test_ended_logs_are_kept_a_bounded_while_and_running_ones_always(tmp_path: Path) -> None:
    """This holds for each deployment. Other files stay."""
    folder = tmp_path / "d"
    running = new_log("", (folder, "first"))
    assert running is not None
    (folder / "notes.txt").write_text("mine")
    (folder / "other.log").write_text("mine, too")
    for number in range(ENDED_KEPT + 5):
        log = new_log("", (folder, "r"))
        assert log is not None
        assert log.path is not None
        log.write(b"%d\n" % number)
        log.close()
        os.utime(log.path, (number + 1, number + 1))
    kept = stored_logs(tmp_path)
    assert [(one.replica, one.runs) for one in kept[:1]] == [("first", True)]
    assert len(kept) == 1 + ENDED_KEPT + 1  # the newest had not ended at the last clean-up
    assert (folder / "notes.txt").exists()
    assert (folder / "other.log").exists()
    running.close()


@pytest.mark.fault("a link stands in the place of a log", area="logs", outcome="held")
def test_links_in_the_folder_are_no_logs(tmp_path: Path) -> None:
    """Nothing outside the folder is read or removed."""
    folder = tmp_path / "d"
    folder.mkdir()
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (folder / "r-20260101T000000-abcdef.log").symlink_to(secret)
    assert stored_logs(tmp_path) == []
    assert segments(folder / "r-20260101T000000-abcdef.log") == []


def test_an_engine_keeps_a_log_that_can_be_read_while_it_runs(tmp_path: Path) -> None:
    """The log is complete from the first byte, and the engine knows its path."""
    code = "import time; print('hello', flush=True); time.sleep(60)"
    with replica_log(tmp_path / "d", "small"):
        engine = start_engine([sys.executable, "-c", code])
    try:
        assert engine.log_path is not None
        while not engine.log_tail():
            assert engine.wait(0.02) is None
        assert content(engine.log_path) == b"hello\n"
        (kept,) = stored_logs(tmp_path)
        assert (kept.replica, kept.deployment, kept.runs) == ("small", "d", True)
    finally:
        engine.terminate(0.0)
    engine.log_tail()
    assert not stored_logs(tmp_path)[0].runs


@pytest.mark.fault("the cache root cannot be written", area="logs", outcome="held")
def test_an_engine_without_a_place_for_its_log_runs_all_the_same(tmp_path: Path) -> None:
    """Its last lines are still kept in memory."""
    (tmp_path / "file").write_text("")
    with replica_log(tmp_path / "file" / "d", "small"):
        engine = start_engine([sys.executable, "-c", "print('hello')"])
    assert engine.wait(20) == 0
    assert (engine.log_path, engine.log_tail()) == (None, ("hello",))
    engine.terminate(0.0)


def test_the_variable_names_another_place(tmp_path: Path) -> None:
    """Then no file is written below the cache root."""
    with replica_log(tmp_path / "d", "small"):
        engine = start_engine([sys.executable, "-c", "print('hello')"], env={LOG_VARIABLE: str(tmp_path / "mine")})
    assert engine.wait(20) == 0
    assert engine.log_tail() == ("hello",)
    assert engine.log_path == tmp_path / "mine"
    assert (tmp_path / "mine").read_text() == "hello\n"
    assert not (tmp_path / "d").exists()
    engine.terminate(0.0)


def test_what_a_sandbox_prints_is_copied_to_its_end(tmp_path: Path) -> None:
    """The file appears later, grows, and loses its beginning to a hole."""
    folder = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    log = LogFile(tmp_path / "out" / "r.log")
    follower = Follower(folder, (tmp_path / "engine.log").relative_to(tmp_path), log)
    with (tmp_path / "engine.log").open("wb") as engine:
        engine.seek(1 << 20)
        engine.write(b"after the hole\n")
        engine.flush()
        engine.write(b"last words\n")
    follower.finish()
    follower.finish()
    os.close(folder)
    assert content(log.path).replace(b"\0", b"") == b"after the hole\nlast words\n"
    assert len(content(log.path)) < 1 << 14


def test_a_reader_goes_on_across_rotations(tmp_path: Path) -> None:
    """This holds for several rotations between two reads too. A line is shown once it is complete."""
    log = LogFile(tmp_path / "r.log", file_bytes=60, files=5)
    for number in range(6):
        log.write(b"early %d\n" % number)
    reader = Reader(log.path)
    assert reader.last(2, whole=True) == ["early 4", "early 5"]
    for number in range(20):
        log.write(b"line %02d\n" % number)
    log.write(b"half")
    assert reader.more() == [f"line {number:02}" for number in range(20)]
    log.write(b" a line\n\x1b[31mred\r\n")
    assert reader.more() == ["half a line", "\\x1b[31mred"]
    assert reader.more() == []
    reader.close()
    log.close()


def test_the_last_lines_come_from_as_many_files_as_it_takes(tmp_path: Path) -> None:
    """The lines are in order; 0 gives none."""
    log = LogFile(tmp_path / "r.log", file_bytes=30, files=4)
    for number in range(10):
        log.write(b"line %02d\n" % number)
    log.write(b"and a half")
    log.close()
    assert Reader(log.path).last(5) == ["line 06", "line 07", "line 08", "line 09", "and a half"]
    assert Reader(log.path).last(0) == []
