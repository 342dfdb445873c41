"""A project is written completely or not at all."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from torpor import ConfigurationError
from torpor.scaffold import write_project

if TYPE_CHECKING:
    from collections.abc import Iterator

FILES = (("README.md", "read me\n"), ("src/a/b.py", "b = 1\n"), (".gitignore", "é\n"))


def everything(folder: Path) -> dict[str, str]:
    """Every file under a folder with its text, including hidden files; an empty folder has the text `/`."""
    found = {}
    for entry in sorted(folder.rglob("*")):
        if entry.is_file() or not any(entry.iterdir()):
            found[str(entry.relative_to(folder))] = entry.read_text("utf-8") if entry.is_file() else "/"
    return found


@contextlib.contextmanager
def as_an_ordinary_user() -> Iterator[None]:
    """Run the block as another user, because root may write to every folder."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_missing_parents_of_a_new_folder_are_made(tmp_path: Path) -> None:
    """Their permissions follow the user's umask, like with `mkdir`."""
    folder = tmp_path / "a" / "b" / "c"
    write_project(folder, FILES)
    assert everything(tmp_path) == {f"a/b/c/{path}": text for path, text in FILES}
    (tmp_path / "plain").mkdir()
    assert folder.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_empty_folder_is_filled_and_stays_the_same_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell in this folder sees the files."""
    monkeypatch.chdir(tmp_path)
    before = tmp_path.stat().st_ino
    write_project(Path(), FILES)
    assert tmp_path.stat().st_ino == before
    assert everything(tmp_path) == dict(FILES)


def test_a_folder_that_is_not_empty_stays_unchanged(tmp_path: Path) -> None:
    """The message names some of its files."""
    for name in ("e", "d", "b", "c"):
        (tmp_path / name).touch()
    with pytest.raises(
        ConfigurationError, match=r"is not empty \(b, c, d, \.\.\.\), and its files are not overwritten"
    ):
        write_project(tmp_path, FILES)
    assert everything(tmp_path) == dict.fromkeys("bcde", "")


@pytest.mark.parametrize("kind", ["file", "link to nowhere"])
def test_a_path_that_is_not_a_folder_stays_unchanged(tmp_path: Path, kind: str) -> None:
    """It does not count as missing either."""
    place = tmp_path / "place"
    if kind == "file":
        place.write_text("mine")
    else:
        place.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigurationError, match="place exists and is not a folder"):
        write_project(place, FILES)
    assert (place.is_symlink(), list(tmp_path.iterdir())) == (kind != "file", [place])


@pytest.mark.parametrize("there", [False, True], ids=["new", "empty"])
def test_a_file_that_cannot_be_written_undoes_the_others(tmp_path: Path, there: bool) -> None:
    """Parents that were made for the project are removed, too; the message contains the system's error."""
    folder = tmp_path / "a" / "b"
    if there:
        folder.mkdir(parents=True)
    too_long = "x" * 300
    with pytest.raises(ConfigurationError, match=rf"cannot be written to .*/a/b: File name too long \(.*{too_long}\)"):
        write_project(folder, (*FILES, (too_long, "")))
    assert everything(tmp_path) == ({"a/b": "/"} if there else {})


@pytest.mark.parametrize("there", [False, True], ids=["new", "empty"])
def test_an_interrupt_undoes_what_was_written(tmp_path: Path, there: bool) -> None:
    """Ctrl-C after the second file, by a real signal."""
    folder = tmp_path / "a" / "b"
    if there:
        folder.mkdir(parents=True)

    def interrupted() -> Iterator[tuple[str, str]]:
        yield from FILES[:2]
        assert len([entry for entry in everything(tmp_path) if entry != "a/b"]) == 2
        os.kill(os.getpid(), signal.SIGINT)
        yield FILES[2]

    with pytest.raises(KeyboardInterrupt):
        write_project(folder, interrupted())
    assert everything(tmp_path) == ({"a/b": "/"} if there else {})


@pytest.mark.parametrize("there", [False, True], ids=["new", "empty"])
def test_a_folder_that_another_process_fills_meanwhile_stays_unchanged(tmp_path: Path, there: bool) -> None:
    """For a new folder the final rename fails; an existing empty folder is checked again."""
    folder = tmp_path / "a"
    if there:
        folder.mkdir()

    def overtaken() -> Iterator[tuple[str, str]]:
        yield from FILES
        folder.mkdir(exist_ok=True)
        (folder / "README.md").write_text("theirs")

    said = r"is not empty \(README.md\), and its files are not overwritten" if there else "/a: Directory not empty"
    with pytest.raises(ConfigurationError, match=said):
        write_project(folder, overtaken())
    assert everything(tmp_path) == {"a/README.md": "theirs"}


@pytest.mark.parametrize("name", ["new", "closed"])
def test_a_folder_without_write_permission_is_reported(name: str) -> None:
    """The project would be written into it or next to it."""
    with tempfile.TemporaryDirectory() as outer:
        closed = Path(outer) / "closed"
        closed.mkdir()
        Path(outer).chmod(0o755)
        closed.chmod(0o555)
        place = closed if name == "closed" else closed / name
        with (
            as_an_ordinary_user(),
            pytest.raises(ConfigurationError, match=r"Permission denied \(.*closed/\.torpor-new-"),
        ):
            write_project(place, FILES)
        assert everything(Path(outer)) == {"closed": "/"}
