"""`torpor.snapshots.store.paths`: the working folders of replicas, in a cache with other files."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from torpor import NoRoomError, SnapshotError
from torpor.snapshots.store.paths import CACHE_VARIABLE, release_work_folder, work_folder

if TYPE_CHECKING:
    from collections.abc import Callable

LONG_AGO = (1, 1)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The parent of working folders, in a cache for this test only."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "run"
    folder.mkdir(parents=True)
    return folder


def stray_file(run: Path) -> Path:
    """A file."""
    (run / "x").write_text("")
    return run / "x"


def stray_name(run: Path) -> Path:
    """A folder with another name."""
    (run / "notes-of-mine").mkdir()
    return run / "notes-of-mine"


def named_file(run: Path) -> Path:
    """A file with the name of a working folder."""
    (run / "kept-4194999-0123abcd").write_text("")
    return run / "kept-4194999-0123abcd"


def named_link(run: Path) -> Path:
    """A link with the name of a working folder, to a folder with files."""
    (run.parent / "work").mkdir()
    (run.parent / "work" / "x").write_text("years of work")
    (run / "kept-4194999-0123abcd").symlink_to(run.parent / "work")
    return run.parent / "work" / "x"


def foreign_folder(run: Path) -> Path:
    """A working folder of another user."""
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    folder = run / "kept-4194999-0123abcd"
    folder.mkdir()
    os.chown(folder, 65534, 65534)
    os.utime(folder, LONG_AGO)
    return folder


def strange_name(run: Path) -> Path:
    """A name that is not valid text."""
    folder = Path(os.fsdecode(os.fsencode(run) + b"/\xff\n-1"))
    folder.mkdir()
    return folder


@pytest.mark.fault("something else lies among the working folders of the cache", area="cache", outcome="held")
@pytest.mark.parametrize(
    "put", [stray_file, stray_name, named_file, named_link, foreign_folder, strange_name], ids=lambda put: put.__name__
)
def test_other_files_in_the_cache_do_not_fail_a_restore(run: Path, put: Callable[[Path], Path]) -> None:
    """They stay; the working folder is made beside them."""
    stays = put(run)
    if not stays.is_symlink() and stays.parent == run:
        os.utime(stays, LONG_AGO)
    folder = work_folder("kept")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert os.path.lexists(stays)
    release_work_folder(folder)
    assert not folder.exists()


@pytest.mark.fault("the cache's folder for replicas is a file", area="cache", outcome="refused")
def test_a_cache_in_which_no_folder_can_be_made_is_named(run: Path) -> None:
    """With a cure."""
    run.rmdir()
    run.write_text("")
    with pytest.raises(
        SnapshotError, match=rf"{run} must be a folder that you may write to: free it, or set {CACHE_VARIABLE}"
    ):
        work_folder("kept")


def test_a_cache_on_a_full_disk_is_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when only the quota is used up."""

    def full(self: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(self))

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(NoRoomError, match=rf"{run}.* cannot be made: Disk quota exceeded"):
        work_folder("kept")


@pytest.mark.fault("the cache's folder for replicas is a link to another disk", area="cache", outcome="held")
def test_a_cache_on_another_disk_may_be_a_link(run: Path, tmp_path: Path) -> None:
    """The user may have chosen so."""
    run.rmdir()
    (tmp_path / "disk").mkdir()
    run.symlink_to(tmp_path / "disk")
    folder = work_folder("kept")
    assert folder.is_dir()
    release_work_folder(folder)


HOLDS = """
from torpor.snapshots.store.paths import work_folder
print(work_folder("kept"), flush=True)
input()
"""


@pytest.mark.fault("a replica of another container serves for longer than an hour", area="cache", outcome="held")
def test_a_working_folder_is_removed_once_no_container_has_its_process(run: Path) -> None:
    """A pid means nothing in another pid namespace; the lock does."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        served = Path(process.stdout.readline().strip())
        renamed = served.rename(run / "kept-4194999-0123abcd")  # a pid that nobody has here
        os.utime(renamed, LONG_AGO)
        release_work_folder(work_folder("kept"))
        assert renamed.exists()
        process.kill()
        process.wait()
        release_work_folder(work_folder("kept"))
        assert not renamed.exists()
        assert list(run.iterdir()) == []


def test_releasing_keeps_no_descriptor(run: Path) -> None:
    """Whether the folder is removed or not."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    for remove in (True, False):
        for _ in range(3):
            release_work_folder(work_folder("kept"), remove=remove)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert len(list(run.iterdir())) == 3
