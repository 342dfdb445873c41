"""Each command imports the app file once, and registers its plugins once."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.cli.test_snapshot_commands import cli  # noqa: F401 - a fixture
from tests.command_line import torpor
from tests.snapshots.kept import write_app
from torpor.testing.ports import unused_port

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.test_snapshot_commands import Cli

pytestmark = pytest.mark.slow

COUNTING = """
import os, sys
from torpor.lifecycle import Lifecycle


def note(event):
    with open({journal!r}, "a") as file:
        file.write(f"{{os.getpid()}} {{event}}\\n")


def counted(self, *args, **kwargs):
    if not sys._getframe(1).f_globals["__name__"].startswith("torpor.testing"):  # the contract registers plugins to test that
        note("registered")
    registering(self, *args, **kwargs)


note("imported")
registering, Lifecycle.__init__ = Lifecycle.__init__, counted
"""


class Journal:
    """An app file that records its imports and each registration of plugins, by process."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "journal"
        self.app = write_app(folder / "app", port=unused_port())
        self.app.write_text(self.app.read_text() + COUNTING.format(journal=str(self._file)))

    def take(self) -> Counter[tuple[str, str]]:
        """How often each process did what, since the last look."""
        counts = Counter(tuple(line.split()) for line in self._file.read_text().splitlines())
        self._file.unlink()
        return counts  # type: ignore[return-value] # two words a line


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """Of an app in a folder of its own."""
    return Journal(tmp_path)


def once(journal: Journal, *, processes: int = 1) -> bool:
    """Whether so many processes imported the app, each once, and registered its plugins once."""
    counts = journal.take()
    assert set(counts.values()) == {1}, counts
    assert Counter(event for _, event in counts) == {"imported": processes, "registered": processes}, counts
    return True


@pytest.mark.parametrize(
    "words", [("plan",), ("plan", "--json"), ("doctor",), ("up", "--ask", "Hi", "--backend", "standby")]
)
def test_a_command_imports_the_app_once(tmp_path: Path, journal: Journal, words: tuple[str, ...]) -> None:
    """Also if the command uses it in several places."""
    command, *options = words
    torpor(command, str(journal.app), *options, env={"TORPOR_CACHE": str(tmp_path / "cache")})
    assert once(journal)


def test_a_bench_imports_the_app_once_in_each_of_its_processes(tmp_path: Path, journal: Journal) -> None:
    """One measures and keeps the engine that it wakes; one starts cold."""
    words = ("bench", str(journal.app), "--starts", "1", "--backend", "standby")
    assert torpor(*words, env={"TORPOR_CACHE": str(tmp_path / "cache")}).returncode == 0
    assert once(journal, processes=2)


@pytest.mark.criu
def test_a_snapshot_and_its_restore_import_the_app_once_each(cli: Cli, journal: Journal, tmp_path: Path) -> None:  # noqa: F811
    """A start that writes a snapshot, one that restores it in `up`, and a plain restore."""
    folder = tmp_path / "kept"
    cli.run("snapshot", "create", journal.app, folder)
    assert once(journal)
    cli.run("up", journal.app, "--snapshot", folder, "--ask", "Hi")
    assert once(journal)
    cli.run("snapshot", "inspect", folder)
    assert once(journal)
    with cli.running("snapshot", "restore", folder, "--replicas", "2") as restore:
        restore.says("Ctrl-C ends it")
    assert once(journal)
