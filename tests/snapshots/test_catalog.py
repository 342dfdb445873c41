"""`torpor.snapshots.catalog`: list the snapshots, and remove those that `torpor snapshot prune` chooses."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from tests.platforms.local.test_running import FACTS
from tests.snapshots.small_snapshot import content_of, rewrite, small_snapshot
from tests.snapshots.test_kept_weights import kept_weights, snapshot_with
from torpor.platforms.local.running import RunFile, snapshot_users
from torpor.snapshots.catalog import Choice, Entry, catalog, chosen, clear_left_overs, disk_bytes, removed
from torpor.snapshots.kept_weights import kept_files
from torpor.snapshots.store.hold import Hold
from torpor.snapshots.store.manifest import MANIFEST
from torpor.snapshots.store.paths import CACHE_VARIABLE

if TYPE_CHECKING:
    from pathlib import Path

DAY_S = 86400.0
NOW = 1_700_000_000.0


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache root for this test only."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def listed(*folders: Path) -> dict[str, Entry]:
    """The entries by folder name, without asking whether they fit."""
    return {entry.folder.name: entry for entry in catalog(folders, users=snapshot_users, fit=False)}


def aged(folder: Path, *, days: float = 0.0) -> Path:
    """Make it look captured so many days before `NOW`, and never used."""
    content = content_of(folder)
    content["captured_at"] = NOW - days * DAY_S
    rewrite(folder, content)
    os.utime(folder, (NOW - days * DAY_S,) * 2)
    return folder


def entry(folder: Path, name: str, *, days: float, used: float | None = None, unfit: bool | None = None) -> Entry:
    """A snapshot of a deployment, captured and used so many days before `NOW`."""
    return Entry(
        folder / f"{name}-{days:g}",
        "snapshot",
        deployment=name,
        captured_at=NOW - days * DAY_S,
        used_at=None if used is None else NOW - used * DAY_S,
        misfits=None if unfit is None else ("another kernel",) if unfit else (),
    )


def names(picked: list[tuple[Entry, str]]) -> list[str]:
    """The names of the chosen folders."""
    return [one.folder.name for one, _ in picked]


def test_snapshots_of_the_cache_root_noted_ones_and_given_folders_are_listed(cache: Path, tmp_path: Path) -> None:
    """Each once, with deployment, times and size; a link stands for its target."""
    default = aged(small_snapshot(cache / "snapshots" / "default"), days=3)
    noted = snapshot_with(tmp_path / "srv" / "noted")
    given = small_snapshot(tmp_path / "more" / "given")
    (tmp_path / "link").symlink_to(given)
    found = listed(tmp_path / "more", given, tmp_path / "link")
    assert {name: one.folder for name, one in found.items()} == {"default": default, "noted": noted, "given": given}
    one = found["default"]
    assert (one.kind, one.deployment, one.captured_at, one.used_at) == ("snapshot", "small", NOW - 3 * DAY_S, None)
    assert one.size == disk_bytes(default) >= 4096
    assert one.fits is None


def test_a_restore_notes_when_it_used_a_snapshot(cache: Path) -> None:
    """By the folder's time of change; no file is written."""
    folder = aged(small_snapshot(cache / "snapshots" / "one"), days=3)
    before = sorted(folder.iterdir())
    hold = Hold()
    hold.take(folder)
    assert listed()["one"].used_at == pytest.approx(time.time(), abs=5)
    assert sorted(folder.iterdir()) == before
    hold.release()


@pytest.mark.fault(
    "folders among the snapshots are damaged, another version's or not Torpor's", area="snapshot list", outcome="held"
)
def test_damaged_and_foreign_folders_are_listed_as_such(cache: Path) -> None:
    """Never an exception. Only a folder that Torpor certainly wrote counts as damaged and may be removed."""
    root = cache / "snapshots"
    small_snapshot(root / "whole")
    rewrite(small_snapshot(root / "old"), content_of(root / "whole") | {"schema": 1})
    rewrite(small_snapshot(root / "lacking"), {"schema": 1, "deployment": {"torpor": "0.1.0"}})
    (small_snapshot(root / "cut") / MANIFEST).write_text("{")
    (root / "mine").mkdir()
    (root / "mine" / "thesis").write_text("years of work")
    (small_snapshot(root / "mixed") / "notes").write_text("beside")
    (root / "file").write_text("")
    found = listed()
    assert {name: one.kind for name, one in found.items()} == {
        "cut": "foreign",
        "lacking": "damaged",
        "mine": "foreign",
        "mixed": "foreign",
        "old": "damaged",
        "whole": "snapshot",
    }
    assert "it holds thesis" in found["mine"].problem
    assert "not JSON" in found["cut"].problem
    assert "format 1" in found["old"].problem
    assert names(chosen(list(found.values()), Choice(unfit=True))) == ["lacking", "old"]
    assert names(chosen(list(found.values()), Choice(keep=0), now=NOW)) == ["whole"]


def test_the_newest_of_each_deployment_are_kept(tmp_path: Path) -> None:
    """By the time of their capture."""
    entries = [entry(tmp_path, name, days=days) for name in ("a", "b") for days in (1, 2, 3)]
    assert names(chosen(entries, Choice(keep=2), now=NOW)) == ["a-3", "b-3"]
    assert names(chosen(entries, Choice(keep=0), now=NOW)) == [one.folder.name for one in entries]


def test_old_ones_are_those_neither_captured_nor_used_since(tmp_path: Path) -> None:
    """With `keep` the newest stay at any age."""
    entries = [
        entry(tmp_path, "a", days=30, used=1),
        entry(tmp_path, "a", days=20),
        entry(tmp_path, "a", days=10, used=9),
        entry(tmp_path, "a", days=1),
        entry(tmp_path, "b", days=40),
    ]
    assert names(chosen(entries, Choice(older_than_s=7 * DAY_S), now=NOW)) == ["a-20", "a-10", "b-40"]
    assert names(chosen(entries, Choice(keep=2, older_than_s=7 * DAY_S), now=NOW)) == ["a-20"]


def test_unfit_ones_are_removed_first_and_unknown_ones_stay(tmp_path: Path) -> None:
    """`keep` counts only the usable ones."""
    entries = [
        entry(tmp_path, "a", days=1, unfit=True),
        entry(tmp_path, "a", days=2, unfit=False),
        entry(tmp_path, "a", days=3),
    ]
    assert names(chosen(entries, Choice(unfit=True), now=NOW)) == ["a-1"]
    assert names(chosen(entries, Choice(keep=1, unfit=True), now=NOW)) == ["a-1", "a-3"]


@pytest.mark.fault("two prunes remove the same snapshot at the same time", area="snapshot prune", outcome="held")
def test_a_snapshot_that_another_prune_removed_is_not_a_failure(cache: Path) -> None:
    """It is removed, but this prune freed nothing."""
    one = small_snapshot(cache / "snapshots" / "one")
    picked = chosen(catalog(users=snapshot_users, fit=False), Choice(keep=0))
    assert [removal.freed > 0 for removal in removed(picked, users=snapshot_users)[0]] == [True]
    (again,), weights = removed(picked, users=snapshot_users)
    assert (again.freed, again.stays, weights, one.exists()) == (0, "", (), False)


@pytest.mark.fault("a link to itself lies among the snapshots", area="snapshot list", outcome="held")
def test_a_link_to_itself_hides_no_snapshot(cache: Path) -> None:
    """In any order of the entries; other files do not hide one either."""
    place = cache / "snapshots"
    names = {small_snapshot(place / f"{number}").name for number in range(4)}
    for number in range(40):
        (place / f"loop-{number}").symlink_to(f"loop-{number}")
    (place / "nowhere").symlink_to("/nowhere/at/all")
    os.mkfifo(place / "pipe")
    assert set(listed()) == names
    assert set(listed(place)) == names


@pytest.mark.fault("a snapshot that a replica was restored from is to be pruned", area="snapshot prune", outcome="held")
def test_a_snapshot_in_use_is_never_removed(cache: Path) -> None:
    """Its user locks the folder, which every pid namespace can see, or is a server that says so."""
    locked, told, free = (small_snapshot(cache / "snapshots" / name) for name in ("locked", "told", "free"))
    hold, file = Hold(), RunFile("up")
    hold.take(locked)
    file.write(FACTS | {"snapshot": str(told)})
    removals, _ = removed(chosen(catalog(users=snapshot_users, fit=False), Choice(keep=0)), users=snapshot_users)
    stays = {one.entry.folder.name: one.stays for one in removals}
    assert stays == {
        "free": "",
        "locked": "in use by a process",
        "told": f"in use by torpor up (pid {os.getpid()})",
    }
    assert (free.exists(), locked.exists(), told.exists()) == (False, True, True)
    hold.release()
    file.close()
    removals, _ = removed(chosen(catalog(users=snapshot_users, fit=False), Choice(keep=0)), users=snapshot_users)
    assert [one.stays for one in removals] == ["", ""]
    assert catalog(users=snapshot_users, fit=False) == []


def test_kept_weights_are_removed_with_the_last_snapshot_that_needs_them(cache: Path, tmp_path: Path) -> None:
    """Weights that no snapshot needed before are another command's task. A dry run says the same and removes nothing."""
    both, one, none = (kept_weights(cache, f"weights-{number}.bin") for number in range(3))
    first = snapshot_with(cache / "snapshots" / "first", both, one)
    second = snapshot_with(tmp_path / "second", both)
    found = catalog(users=snapshot_users, fit=False)
    assert {entry.folder.name: entry.kept for entry in found} == {"first": (both, one), "second": (both,)}
    picked = [(entry, "asked") for entry in found if entry.folder == first]
    for pretend in (True, False):
        removals, weights = removed(picked, users=snapshot_users, pretend=pretend)
        assert [file.path for file in weights] == [one]
        assert removals[0].freed > 0
        assert first.exists() == one.exists() == pretend
    _, weights = removed([(entry, "asked") for entry in catalog(users=snapshot_users, fit=False)], users=snapshot_users)
    assert [file.path for file in weights] == [both]
    assert not second.exists()
    assert [file.path for file in kept_files()] == [none]


@pytest.mark.fault("a snapshot is replaced by something else while prune runs", area="snapshot prune", outcome="held")
def test_a_folder_that_is_no_longer_a_snapshot_stays(cache: Path) -> None:
    """Each folder is checked again just before its removal; the others are still removed."""
    first, second = (small_snapshot(cache / "snapshots" / name) for name in ("first", "second"))
    picked = chosen(catalog(users=snapshot_users, fit=False), Choice(keep=0))
    (first / MANIFEST).unlink()
    (first / "thesis").write_text("years of work")
    removals, _ = removed(picked, users=snapshot_users)
    assert "holds no snapshot" in removals[0].stays
    assert removals[0].freed == 0
    assert (first / "thesis").exists()
    assert not second.exists()


def test_left_overs_of_killed_captures_are_cleared_and_nothing_else(cache: Path, tmp_path: Path) -> None:
    """Under the cache root all of them; elsewhere only those beside a listed snapshot."""
    elsewhere = snapshot_with(tmp_path / "srv" / "one")
    default = cache / "snapshots"
    left = [default / ".gone.partial-0123456789abcdef", elsewhere.parent / ".one.removed-0123456789abcdef"]
    strange = [elsewhere.parent / ".other.removed-0123456789abcdef", default / ".hidden"]
    for folder in (*left, *strange):
        folder.mkdir(parents=True)
        os.utime(folder, (1, 1))
    assert clear_left_overs(catalog(users=snapshot_users, fit=False)) == 2
    assert [folder.exists() for folder in (*left, *strange)] == [False, False, True, True]


def test_room_on_the_disk_counts_a_file_once_and_follows_no_link(tmp_path: Path) -> None:
    """As `du` does."""
    (tmp_path / "in").mkdir()
    (tmp_path / "out").write_bytes(b"x" * 65536)
    (tmp_path / "in" / "one").write_bytes(b"x" * 65536)
    (tmp_path / "in" / "same").hardlink_to(tmp_path / "in" / "one")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "out")
    (tmp_path / "in" / "circle").symlink_to(tmp_path)
    blocks = sum((tmp_path / "in" / name).lstat().st_blocks for name in ("one", "link", "circle"))
    assert disk_bytes(tmp_path / "in") == blocks * 512
    assert disk_bytes(tmp_path / "gone") == 0
