"""`torpor.snapshots.store.folder`: only what is ours is replaced or removed, in one step, and only what is dead is swept."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from tests import ROOT
from tests.snapshots.small_snapshot import content_of, rewrite, small_snapshot
from torpor import SnapshotError
from torpor.snapshots.store.folder import checked, unchanged
from torpor.snapshots.store.index import remove
from torpor.snapshots.store.manifest import IMAGES, MANIFEST
from torpor.snapshots.store.placing import made_whole, recover
from torpor.snapshots.store.stored import inspect
from torpor.snapshots.targets import check_target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torpor.snapshots.store.folder import Mark


def foreign_manifest(folder: Path) -> None:
    """A browser extension."""
    folder.mkdir()
    (folder / MANIFEST).write_text('{"manifest_version": 3, "name": "mine", "files": {}}')


def container_image(folder: Path) -> None:
    """What `docker save` writes: a list."""
    folder.mkdir()
    (folder / MANIFEST).write_text('[{"Config": "x.json", "Layers": []}]')


def oci_manifest(folder: Path) -> None:
    """An image of the Open Container Initiative, with a field and a folder of our names."""
    folder.mkdir()
    (folder / "images").mkdir()
    (folder / MANIFEST).write_text('{"schemaVersion": 2, "schema": 3, "config": {}}')


def broken_manifest(folder: Path) -> None:
    """Half of a manifest."""
    folder.mkdir()
    (folder / MANIFEST).write_text("{")


def plain_folder(folder: Path) -> None:
    """A folder without any manifest."""
    folder.mkdir()


def one_file(folder: Path) -> None:
    """A file."""
    folder.write_text("years of work")


def without_images(folder: Path) -> None:
    """Our manifest, copied beside somebody's work."""
    small_snapshot(folder)
    shutil.rmtree(folder / IMAGES)


def with_work_beside(folder: Path) -> None:
    """A complete snapshot, unpacked into somebody's project."""
    small_snapshot(folder)


def linked_images(folder: Path) -> None:
    """The folder of images is a link."""
    small_snapshot(folder)
    (folder / IMAGES).rename(folder.parent / "elsewhere")
    (folder / IMAGES).symlink_to(folder.parent / "elsewhere")


def linked_manifest(folder: Path) -> None:
    """The manifest is a link."""
    small_snapshot(folder)
    (folder / MANIFEST).rename(folder.parent / "aside.json")
    (folder / MANIFEST).symlink_to(folder.parent / "aside.json")


def piped_manifest(folder: Path) -> None:
    """The manifest is a pipe without a writer."""
    folder.mkdir()
    os.mkfifo(folder / MANIFEST)


def with_work_among_images(folder: Path) -> None:
    """A complete snapshot with somebody's folder among the images."""
    small_snapshot(folder)
    (folder / IMAGES / "mine").mkdir()
    (folder / IMAGES / "mine" / "thesis.tex").write_text("years of work")


def with_a_file_among_logs(folder: Path) -> None:
    """A complete snapshot with somebody's note among the logs."""
    small_snapshot(folder)
    (folder / "logs" / "notes.txt").write_text("years of work")


def with_a_link_among_images(folder: Path) -> None:
    """A complete snapshot with a foreign link among the images."""
    small_snapshot(folder)
    (folder / IMAGES / "weights").symlink_to(folder.parent)


def with_a_folder_and_no_list(folder: Path) -> None:
    """A snapshot whose manifest lists no files, with a folder among the images."""
    small_snapshot(folder)
    rewrite(folder, {name: value for name, value in content_of(folder).items() if name != "files"})
    (folder / IMAGES / "mine").mkdir()


OTHERS = [
    (with_work_among_images, "beside the files of a snapshot it holds images/mine, which Torpor did not write"),
    (with_a_file_among_logs, "beside the files of a snapshot it holds logs/notes.txt, which Torpor did not write"),
    (with_a_link_among_images, "beside the files of a snapshot it holds images/weights, which Torpor did not write"),
    (with_a_folder_and_no_list, "beside the files of a snapshot it holds images/mine, which Torpor did not write"),
    (foreign_manifest, "its manifest.json is not that of a snapshot: it has the fields files, manifest_version, name"),
    (container_image, "manifest.json is damaged: it is an array, not an object"),
    (oci_manifest, "its manifest.json is not that of a snapshot: it has the fields config, schema, schemaVersion"),
    (broken_manifest, "manifest.json is damaged: it is not JSON"),
    (plain_folder, "there is no manifest.json in it; it holds work.js"),
    (one_file, "it is a regular file, not a folder"),
    (without_images, "there is no folder images in it"),
    (with_work_beside, "beside a snapshot it holds work.js, which Torpor did not write"),
    (linked_images, "its folder images is a symbolic link, not a folder"),
    (linked_manifest, "manifest.json cannot be used: it is a symbolic link, not a regular file"),
    (piped_manifest, "manifest.json cannot be used: it is a named pipe, not a regular file"),
]


def with_work(folder: Path) -> None:
    """Put a file that must never be lost into an empty folder."""
    if folder.is_dir() and not [
        *folder.glob("*/notes.txt"),
        *folder.glob("images/mine"),
        *folder.glob("images/weights"),
    ]:
        (folder / "work.js").write_text("years of work")


def everything(folder: Path) -> dict[str, str]:
    """Everything in and beside a folder."""
    return {
        str(path.relative_to(folder.parent)): path.read_text() if path.is_file() and path.name == "work.js" else ""
        for path in folder.parent.rglob("*")
    }


@pytest.mark.timeout(20)
@pytest.mark.fault(
    "a folder that is no snapshot is to be removed or replaced", area="snapshot folders", outcome="refused"
)
@pytest.mark.parametrize(("make", "said"), OTHERS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_folder_that_is_not_our_snapshot_is_never_deleted(
    tmp_path: Path, make: Callable[[Path], None], said: str
) -> None:
    """Neither by `rm` nor by a capture; the message says what was found."""
    folder = tmp_path / "mine"
    make(folder)
    with_work(folder)
    before = everything(folder)
    with pytest.raises(SnapshotError) as removed:
        remove(folder)
    with pytest.raises(SnapshotError) as target:
        check_target(folder)
    with pytest.raises(SnapshotError) as replaced, made_whole(folder) as partial:
        small_snapshot(partial / "new")
    for error in (removed, target, replaced):
        assert said in str(error.value)
    assert everything(folder) == before


@pytest.mark.fault(
    "a snapshot of an older format or with damaged files is to be removed", area="snapshot folders", outcome="held"
)
def test_a_snapshot_that_is_recognisably_ours_can_be_removed_and_replaced(tmp_path: Path) -> None:
    """Even in another format, open to others, with damaged fields, or without its files."""
    changes: tuple[Callable[[Path], object], ...] = (
        lambda folder: rewrite(folder, {**content_of(folder), "schema": 1}),
        lambda folder: rewrite(folder, {**content_of(folder), "stages": 7, "more": True}),
        lambda folder: (folder / "images" / "side.tar").unlink(),
        lambda folder: (folder / "private.json").unlink(),
        lambda folder: folder.chmod(0o777),
        lambda folder: (folder / MANIFEST).chmod(0o666),
    )
    for number, change in enumerate(changes):
        folder = small_snapshot(tmp_path / str(number))
        change(folder)
        check_target(folder)
        assert remove(folder) == folder
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
@pytest.mark.fault("another disk is mounted in a snapshot", area="snapshot folders", outcome="refused")
@pytest.mark.parametrize("where", ["images", "logs", "images/a disk"])
def test_a_disk_mounted_in_a_snapshot_is_not_deleted_with_it(tmp_path: Path, where: str) -> None:
    """Nor with the left-over of a killed removal. The message names the mount point."""
    work, folder = tmp_path / "work", small_snapshot(tmp_path / "kept")
    work.mkdir()
    place = folder / where
    if not place.exists():
        place.mkdir()
        files = cast("dict[str, object]", content_of(folder)["files"])
        rewrite(folder, {**content_of(folder), "files": {**files, where: {}}})
    for file in place.iterdir():
        shutil.copy(file, work)
    (work / "work.js").write_text("years of work")
    files = cast("dict[str, object]", content_of(folder)["files"])
    rewrite(folder, {**content_of(folder), "files": {**files, f"{where}/work.js": {}}})
    if subprocess.run(["mount", "--bind", work, place], check=False, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    left = tmp_path / ".kept.removed-4711"
    try:
        for act in (remove, check_target):
            with pytest.raises(SnapshotError, match=r"something is mounted in it, at .*/kept/" + where):
                act(folder)
        folder.rename(left)
        for path in (left, left / IMAGES, left / "logs"):
            os.utime(path, (0, 0))
        recover(folder)
        assert (work / "work.js").exists()
    finally:
        for path in (place, left / where):
            subprocess.run(["umount", path], check=False, capture_output=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.fault(
    "a snapshot of another user is to be removed or replaced", area="snapshot folders", outcome="refused"
)
@pytest.mark.parametrize("part", ["", "images", MANIFEST])
def test_a_snapshot_of_another_user_is_neither_removed_nor_replaced(tmp_path: Path, part: str) -> None:
    """Not even by root."""
    folder = small_snapshot(tmp_path / "theirs")
    os.chown(folder / part, 65534, 65534)
    with pytest.raises(SnapshotError, match=r"Nothing was removed"):
        remove(folder)
    with pytest.raises(SnapshotError, match=r"belongs to user 65534, not to you \(0\)"):
        check_target(folder)
    assert (folder / "images" / "inventory.img").exists()


@pytest.mark.fault("the path of a snapshot is a symbolic link", area="snapshot folders", outcome="held")
def test_a_link_stands_for_its_target(tmp_path: Path) -> None:
    """To read, replace and remove. The link stays, and the next capture through it writes to the same place."""
    real, link = tmp_path / "disk" / "kept", tmp_path / "current"
    small_snapshot(real)
    link.symlink_to("disk/kept")
    assert inspect(link) == inspect(real)
    check_target(link)
    assert remove(link) == real
    assert link.is_symlink()
    assert list(real.parent.iterdir()) == []
    check_target(link)
    with pytest.raises(SnapshotError, match=r"disk/kept holds no snapshot: there is nothing"):
        remove(link)


@pytest.mark.fault("the path of a snapshot is a loop of links", area="snapshot folders", outcome="refused")
def test_a_link_to_nowhere_is_an_error(tmp_path: Path) -> None:
    """In every command; the link stays."""
    (tmp_path / "loop").symlink_to("loop")
    for act in (inspect, remove, check_target):
        with pytest.raises(SnapshotError, match="loop"):
            act(tmp_path / "loop")
    assert (tmp_path / "loop").is_symlink()


@pytest.mark.fault(
    "a snapshot is to go to a mount point or to a place that cannot be written",
    area="snapshot folders",
    outcome="refused",
)
def test_an_impossible_target_is_found_before_a_start(tmp_path: Path) -> None:
    """Not after the minutes of a cold start."""
    (tmp_path / "file").write_text("")
    for folder, said in (
        (Path("/proc"), "is a mount point"),
        (Path("/"), "is a mount point"),
        (tmp_path / "file" / "kept", "is not a folder"),
        (tmp_path / ("n" * 300), "its name is too long"),
    ):
        with pytest.raises(SnapshotError, match=said):
            check_target(folder)


def write_into(partial: Path, text: str) -> None:
    """What a capture does while its new folder is open."""
    made = small_snapshot(partial / "made", text=text)
    for path in made.iterdir():
        path.rename(partial / path.name)
    made.rmdir()


def test_a_new_snapshot_takes_the_place_of_nothing_of_an_empty_folder_and_of_an_old_one(tmp_path: Path) -> None:
    """Nothing else stays beside it."""
    folder = tmp_path / "kept"
    for text in ("first", "second", "third"):
        with made_whole(folder) as partial:
            assert partial.stat().st_mode & 0o777 == 0o700
            write_into(partial, text)
        assert inspect(folder).canary.answer["text"] == text
        assert [path.name for path in tmp_path.iterdir()] == ["kept"]
        if text == "first":
            remove(folder)
            folder.mkdir()


def test_a_capture_that_fails_leaves_the_old_snapshot_and_nothing_else(tmp_path: Path) -> None:
    """The temporary folder is deleted."""
    small_snapshot(tmp_path / "kept", text="old")

    def capture() -> None:
        with made_whole(tmp_path / "kept") as partial:
            write_into(partial, "new")
            raise ValueError("no room")

    with pytest.raises(ValueError, match="no room"):
        capture()
    assert inspect(tmp_path / "kept").canary.answer["text"] == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.fault(
    "somebody puts a folder of their own in the place of a snapshot while its successor is made",
    area="snapshot folders",
    outcome="refused",
)
@pytest.mark.parametrize("make", [foreign_manifest, one_file, plain_folder])
def test_a_foreign_folder_that_appears_meanwhile_is_not_replaced(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """The target is checked again when the new snapshot is complete."""
    folder = small_snapshot(tmp_path / "kept")

    def capture() -> None:
        with made_whole(folder) as partial:
            write_into(partial, "new")
            shutil.rmtree(folder)
            make(folder)
            with_work(folder)

    with pytest.raises(SnapshotError, match="was not replaced"):
        capture()
    assert (folder / "work.js" if folder.is_dir() else folder).read_text() == "years of work"
    assert "kept" in [path.name for path in tmp_path.iterdir()]
    assert not list(tmp_path.glob(".kept.*"))


KILLED = """
import os, shutil, signal, sys
from pathlib import Path

from tests.snapshots.store.test_folder import write_into
from torpor.snapshots.store import placing

folder, moment, one_step = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "one-step"
seen = 0

def dies(call):
    # Before the call, and after it.
    def wrapped(*args, **kwargs):
        global seen
        for _ in range(2):
            if seen == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1
            if _ == 0:
                result = call(*args, **kwargs)
        return result
    return wrapped

with placing.made_whole(folder) as partial:
    write_into(partial, "new")
    os.rename, Path.rename = dies(os.rename), dies(Path.rename)
    shutil.rmtree = dies(shutil.rmtree)
    placing._exchanged = dies(placing._exchanged if one_step else lambda one, other: False)
print(seen)
"""


def killed_at(folder: Path, moment: int, how: str) -> int:
    """Replace a snapshot in a process that is killed before or after one step, and return how it ended."""
    ran = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder), str(moment), how],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode in (0, -signal.SIGKILL), ran.stderr
    return ran.returncode


@pytest.mark.slow
@pytest.mark.fault("a capture is killed while it replaces a snapshot", area="snapshot folders", outcome="held")
@pytest.mark.parametrize("how", ["one-step", "two-steps"])
def test_a_kill_at_any_step_leaves_the_old_or_the_new_snapshot(tmp_path: Path, how: str) -> None:
    """With one step the target always holds a snapshot. With two, the next check restores the old one."""
    found = set()
    for moment in range(30):
        folder = tmp_path / str(moment) / "kept"
        small_snapshot(folder, text="old")
        ended = killed_at(folder, moment, how)
        if how == "one-step":
            assert (folder / MANIFEST).is_file(), moment
        found.add(inspect(folder).canary.answer["text"])
        with made_whole(folder) as partial:
            write_into(partial, "newest")
        assert inspect(folder).canary.answer["text"] == "newest"
        assert [path.name for path in folder.parent.iterdir()] == ["kept"], moment
        if ended == 0:
            break
    assert ended == 0
    assert found == {"old", "new"}


HOLDS = """
import sys, time
from pathlib import Path
from torpor.snapshots.store.placing import made_whole

with made_whole(Path(sys.argv[1])) as partial:
    (partial / "pages.img").write_bytes(b"x")
    print(partial, flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def capturing(folder: Path, *before: str) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Another process in the middle of a capture, and its temporary folder."""
    with subprocess.Popen(
        [*before, sys.executable, "-c", HOLDS, str(folder)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process, Path(process.stdout.readline().strip())
        finally:
            process.kill()


@pytest.mark.fault(
    "two captures of one target run in two containers that share its disk", area="snapshot folders", outcome="held"
)
def test_the_temporary_folder_of_a_capture_in_another_pid_namespace_is_left_alone(tmp_path: Path) -> None:
    """Its pid means nothing here. Its lock does, and the kernel releases that when the process is killed."""
    if subprocess.run(["unshare", "--pid", "--fork", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no pid namespace can be made here")
    with capturing(tmp_path / "kept", "unshare", "--pid", "--fork", "--kill-child") as (process, partial):
        os.utime(partial, (1, 1))
        recover(tmp_path / "kept")
        assert (partial / "pages.img").exists()
        process.kill()
        process.wait()
        deadline = time.monotonic() + 10
        while partial.exists() and time.monotonic() < deadline:
            recover(tmp_path / "kept")
            time.sleep(0.01)
    assert not partial.exists()


@pytest.mark.fault("a capture on another machine shares the disk", area="snapshot folders", outcome="held")
def test_what_another_kernel_may_still_write_is_left_alone_for_an_hour(tmp_path: Path) -> None:
    """Locks of another machine are invisible here: folders of another boot, and folders of older versions, named by pid."""
    for name in (".kept.partial-4194000", ".kept.removed-" + "0" * 16, ".kept.partial-" + "f" * 16):
        left = tmp_path / name
        left.mkdir()
        (left / "pages.img").write_bytes(b"x")
        recover(tmp_path / "kept")
        assert left.exists(), name
        os.utime(left, (1, 1))
        (left / "images").mkdir()  # written to just now
        recover(tmp_path / "kept")
        assert left.exists(), name
        for path in (left / "images", left):
            os.utime(path, (1, 1))
        recover(tmp_path / "kept")
        assert not left.exists(), name


@pytest.mark.fault("a snapshot is called like a pattern of other names", area="snapshot folders", outcome="held")
@pytest.mark.parametrize("name", ["*", "?b", "[a]b", "a*", "a\nb", "[!x]b"])
def test_a_name_is_not_a_pattern(tmp_path: Path, name: str) -> None:
    """Only left-overs of this target are removed."""
    others = [tmp_path / f".{other}.partial-4194001" for other in ("ab", "a", "b", "aab")]
    own = tmp_path / f".{name}.partial-4194001"
    for left in (*others, own):
        left.mkdir()
        (left / "pages.img").write_bytes(b"x")
        os.utime(left, (1, 1))
    recover(tmp_path / name)
    assert all(left.exists() for left in others)
    assert not own.exists()


@pytest.mark.fault(
    "the name of a temporary folder was taken before by a link or another's folder",
    area="snapshot folders",
    outcome="held",
)
@pytest.mark.ordinary_user
def test_a_left_over_that_is_a_link_or_of_another_user_is_left_alone(tmp_path: Path) -> None:
    """It is neither followed nor deleted."""
    victim = tmp_path / "victim"
    victim.mkdir()
    with_work(victim)
    link, theirs = tmp_path / ".kept.partial-1", tmp_path / ".kept.removed-2"
    link.symlink_to(victim)
    theirs.mkdir()
    os.utime(theirs, (1, 1))
    if os.geteuid() == 0:
        os.chown(theirs, 65534, 65534)
    recover(tmp_path / "kept")
    assert (victim / "work.js").exists()
    assert link.is_symlink()
    assert theirs.exists() == (os.geteuid() == 0)


@pytest.mark.fault(
    "another snapshot comes in the place of the one that is being restored", area="snapshot folders", outcome="refused"
)
def test_a_snapshot_that_is_swapped_between_check_and_use_is_refused(tmp_path: Path) -> None:
    """CRIU opens files by path, so the path must lead to the checked folder from begin to end."""
    folder = small_snapshot(tmp_path / "kept")
    mark = checked(folder)

    def restore(mark: Mark, meanwhile: Callable[[], object], error: SnapshotError | None = None) -> None:
        with unchanged(folder, mark):
            meanwhile()
            if error:
                raise error

    def swap() -> None:
        folder.rename(tmp_path / "old")
        small_snapshot(folder)

    restore(mark, list)
    with pytest.raises(SnapshotError, match="was replaced by another"):
        restore(mark, swap)
    with pytest.raises(SnapshotError, match="was replaced by another"):
        restore(mark, lambda: pytest.fail("CRIU was started"))
    with pytest.raises(SnapshotError, match="was changed while"):
        restore(checked(folder), lambda: remove(folder), SnapshotError("CRIU found no images"))
