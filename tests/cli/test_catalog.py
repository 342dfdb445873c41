"""`torpor snapshot list` and `prune` as a user types them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.command_line import torpor
from tests.snapshots.small_snapshot import small_snapshot
from torpor.cli.catalog import run_list, run_prune, seconds_of
from torpor.errors import ConfigurationError
from torpor.snapshots.store.paths import CACHE_VARIABLE

if TYPE_CHECKING:
    from pathlib import Path


def test_an_empty_cache_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, or an empty list."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    run_list([], as_json=False)
    assert capsys.readouterr().out == "there are no snapshots\n"
    run_list([tmp_path], as_json=True)
    assert json.loads(capsys.readouterr().out) == {"snapshots": [], "kept": [], "bytes": 0}
    run_prune([], keep=3, older_than=None, unfit=True, dry_run=False, as_json=False)
    assert capsys.readouterr().out == "freed 0.0 MB\n"


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("1.5h", 5400), ("7d", 604_800), ("2w", 1_209_600), ("0s", 0)]
)
def test_an_age_is_a_number_and_a_unit(text: str, seconds: float) -> None:
    """From seconds to weeks."""
    assert seconds_of("--older-than", text) == seconds


@pytest.mark.parametrize(
    "text", ["7", "d", "-7d", "7 d", "7days", "1e3d", "nan", "inf", "7d\n", "9999999999d", "\u0667d"]
)
def test_any_other_age_is_refused(text: str) -> None:
    """The message names the option and what is allowed."""
    with pytest.raises(ConfigurationError, match=r"--older-than is .*; allowed are a number and one of s, m, h, d, w"):
        seconds_of("--older-than", text)


@pytest.mark.parametrize(
    ("keep", "older_than", "folders", "said"),
    [
        (None, None, [], "Nothing says which snapshots to remove"),
        (-1, None, [], "--keep is -1"),
        (0, "", [], "--older-than is ''"),
        (None, "week", [], "--older-than is 'week'"),
        (1, None, ["nowhere"], "nowhere is no folder"),
        (1, None, ["x" * 300], "xxx is no folder"),
    ],
)
def test_contradictory_options_are_refused(
    tmp_path: Path, keep: int | None, older_than: str | None, folders: list[str], said: str
) -> None:
    """Before any folder is read."""
    with pytest.raises(ConfigurationError, match=said):
        run_prune(
            [tmp_path / name for name in folders],
            keep=keep,
            older_than=older_than,
            unfit=False,
            dry_run=False,
            as_json=False,
        )


@pytest.mark.slow
def test_the_command_line_lists_snapshots_and_removes_unfit_ones(tmp_path: Path) -> None:
    """A snapshot of another machine, and a folder of another program."""
    env = {CACHE_VARIABLE: str(tmp_path / "cache"), "COLUMNS": "80"}
    unfit = small_snapshot(tmp_path / "cache" / "snapshots" / "[bold]unfit")
    mine = tmp_path / "cache" / "snapshots" / "mine"
    mine.mkdir()
    said = torpor("snapshot", "list", env=env)
    assert said.returncode == 0, said.stderr
    lines = said.stdout.splitlines()
    assert lines[0].split() == ["name", "deployment", "size", "captured", "last", "used", "fits"]
    assert max(map(len, lines[:3])) <= 80
    assert "[bold]unfit" in lines[1]
    assert lines[1].split()[-1] == "no"
    assert lines[2].endswith("foreign")
    assert f"{unfit}: does not fit: " in said.stdout
    (one, other) = json.loads(torpor("snapshot", "list", "--json", env=env).stdout)["snapshots"]
    assert (one["fits"], other["kind"]) == (False, "foreign")
    assert len(one["misfits"]) > 1
    would = torpor("snapshot", "prune", "--unfit", "--dry-run", env=env).stdout
    assert f"would remove {unfit}" in would
    assert unfit.exists()
    done = json.loads(torpor("snapshot", "prune", "--unfit", "--json", env=env).stdout)
    assert done["freed_bytes"] == one["bytes"] == done["snapshots"][0]["freed_bytes"]
    assert (unfit.exists(), mine.exists()) == (False, True)
