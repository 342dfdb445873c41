"""`torpor.snapshots.store.index` and `torpor.snapshots.kept_weights`: known snapshots, and the weights kept outside of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.snapshots.small_snapshot import small_snapshot
from torpor import Deployment, Model
from torpor.recipe import IMAGE_ROOT
from torpor.snapshots.kept_weights import kept_files, prune
from torpor.snapshots.store.index import known_snapshots, note, remove
from torpor.snapshots.store.paths import CACHE_VARIABLE, KEPT
from torpor_sglang import SGLang
from torpor_sglang.places import FOLDER_VARIABLE

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache root of the test's own."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def kept_weights(cache: Path, name: str = "weights-0123.bin") -> Path:
    """A file that an engine keeps outside of its snapshots."""
    file = cache / "images" / "small" / KEPT / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"x" * 8192)
    return file


def snapshot_with(folder: Path, *files: Path) -> Path:
    """A known snapshot that needs these files."""
    small_snapshot(folder, outside={str(file): [8192, 0, "", True] for file in files} or None)
    note(folder)
    return folder


def test_snapshots_are_known_anywhere_while_they_exist(cache: Path, tmp_path: Path) -> None:
    """Noted by a capture, or in the default place. A note does not count if its folder is no longer a snapshot."""
    noted = snapshot_with(tmp_path / "srv" / "noted")
    default = small_snapshot(cache / "snapshots" / "default")
    gone = snapshot_with(tmp_path / "srv" / "gone")
    (cache / "snapshots" / "stray").write_text("")
    (cache / "known-snapshots" / "stray").write_bytes(b"/etc\xff")
    os.mkfifo(cache / "known-snapshots" / "pipe")
    assert known_snapshots() == tuple(sorted((default, gone, noted)))
    gone.rename(tmp_path / "srv" / "moved")
    assert known_snapshots() == (default, noted)
    remove(noted)
    remove(default)
    assert known_snapshots() == ()


def test_kept_weights_are_listed_with_their_snapshots_and_deleted_after_the_last(cache: Path, tmp_path: Path) -> None:
    """A snapshot anywhere counts. Weights that one needs are never deleted."""
    both, one, none = (kept_weights(cache, f"weights-{number}.bin") for number in range(3))
    first = snapshot_with(cache / "snapshots" / "first", both, one)
    second = snapshot_with(tmp_path / "second", both)
    listed = {file.path: file.snapshots for file in kept_files()}
    assert listed == {both: (first, second), one: (first,), none: ()}
    assert [file.path for file in prune()] == [none]
    remove(first)
    assert [file.path for file in prune()] == [one]
    assert both.exists()
    remove(second)
    assert [file.size for file in prune()] == [8192]
    assert kept_files() == ()


@pytest.mark.fault("kept weights are to be deleted while an engine sleeps on them", area="kept weights", outcome="held")
def test_weights_that_a_process_has_open_are_not_deleted(cache: Path) -> None:
    """Between an engine's sleep and its capture no snapshot lists them yet."""
    file = kept_weights(cache)
    with file.open("rb"):
        assert prune() == ()
    unfinished = kept_weights(cache, ".weights-9.bin.0123")
    assert [one.path for one in prune()] == [file]
    os.utime(unfinished, (1, 1))
    assert [one.path for one in prune()] == [unfinished]


@pytest.mark.fault("links and folders lie among the kept weights", area="kept weights", outcome="held")
def test_only_regular_files_count_as_kept_weights(cache: Path, tmp_path: Path) -> None:
    """The target of a link is not deleted."""
    victim = tmp_path / "victim"
    victim.write_text("years of work")
    folder = kept_weights(cache).parent
    (folder / "link.bin").symlink_to(victim)
    (folder / "folder.bin").mkdir()
    assert len(prune()) == 1
    assert victim.read_text() == "years of work"
    assert (folder / "link.bin").is_symlink()


def test_the_engine_keeps_its_weights_where_they_are_looked_for() -> None:
    """Plugin and core name the same folder."""
    engine = SGLang(version="0.5.16", image="registry/sglang:v0.5.16", weights_store="file")
    deployment = Deployment(name="d", model=Model(path="/m", served_name="m"), plugins=(engine,), gpu="H100")
    assert engine.prepare_image(deployment).env[FOLDER_VARIABLE] == f"{IMAGE_ROOT}/{KEPT}"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """Run `torpor snapshot` as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "torpor.cli", "snapshot", *words], capture_output=True, text=True, timeout=60, check=True
    )


@pytest.mark.slow
def test_the_command_line_lists_weights_and_deletes_them(cache: Path, tmp_path: Path) -> None:
    """`rm` names the weights that the snapshot leaves, and how to delete them."""
    file = kept_weights(cache)
    folder = snapshot_with(tmp_path / "srv", file)
    assert run("weights", "--prune").stdout == f"{file} (0.00 GB)\n  needed by {folder}\n"
    told = run("rm", str(folder)).stderr
    assert f"no snapshot needs {file} (0.00 GB) any more" in told
    assert "torpor snapshot weights --prune" in told
    deleted = json.loads(run("weights", "--prune", "--json").stdout)
    assert deleted == {"kept": [], "deleted": [{"path": str(file), "bytes": 8192, "snapshots": []}]}
    assert run("weights").stdout == "no weights are kept outside of snapshots\n"
