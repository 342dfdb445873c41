"""A snapshot comes back from a store as it was pushed; what is known is not sent, what is there is not fetched."""

from __future__ import annotations

import os
import shutil
import stat
import threading
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from tests.snapshots.remote.remote_store import MIB, beside, chunk_files, files_of, large_snapshot
from tests.snapshots.small_snapshot import small_snapshot
from torpor import NoRoomError, SnapshotError, StoreError
from torpor.snapshots.remote import pull as pull_module
from torpor.snapshots.remote.listing import list_store
from torpor.snapshots.remote.opening import open_remote
from torpor.snapshots.remote.pull import pull, pull_file
from torpor.snapshots.remote.push import push
from torpor.snapshots.remote.store import Store
from torpor.snapshots.remote.values import Trust
from torpor.snapshots.store.manifest import MANIFEST, OUTSIDE
from torpor.snapshots.store.stored import inspect

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORPOR_CACHE", str(tmp_path / "cache"))


def interrupt(monkeypatch: pytest.MonkeyPatch, method: str, after: int) -> Callable[[], int]:
    """Have the store fail at every call of a method after the first few; returns the count. The sign of a push does not count."""
    whole = getattr(Store, method)
    lock, calls = threading.Lock(), [0]

    def failing(store: Store, path: str, what: object) -> object:
        with lock:
            calls[0] += not path.startswith("at-work/")
            if calls[0] > after:
                raise StoreError("the link is down")
        return whole(store, path, what)

    monkeypatch.setattr(Store, method, failing)
    return lambda: calls[0]


@pytest.mark.parametrize("scheme", ["", "file://", "memory://"])
def test_a_snapshot_comes_back_as_it_was(tmp_path: Path, scheme: str) -> None:
    """Every byte, private, with its holes; through a path, a URL of a folder, and an object store."""
    snapshot = large_snapshot(tmp_path / "one")
    url = f"memory://{uuid4().hex}/one" if scheme == "memory://" else f"{scheme}{tmp_path / 'store' / 'one'}"
    pushed = push(snapshot, url, documents={"more.json": b"{}"})
    assert (pushed.label.deployment, pushed.label.gpus) == ("small", ("NVIDIA H200",))
    remote = open_remote(url, trust=Trust(unsigned=scheme == "memory://"))
    assert remote.manifest == inspect(snapshot)
    assert remote.documents["more.json"] == b"{}"
    pulled = pull(remote, tmp_path / "back")
    assert (pulled.already, pulled.fetched, pulled.kept) == (False, pushed.chunks, 0)
    assert files_of(tmp_path / "back") == files_of(snapshot)
    assert inspect(tmp_path / "back") == inspect(snapshot)
    for file in (tmp_path / "back", *(tmp_path / "back").rglob("*")):
        assert stat.S_IMODE(file.stat().st_mode) == (0o700 if file.is_dir() else 0o600)
    facts = (tmp_path / "back" / "images" / "memory-1000.img").stat()
    assert (facts.st_size, facts.st_blocks * 512 <= 2 * MIB) == (20 * MIB, True)
    assert pull(remote, tmp_path / "back").already
    assert beside(tmp_path / "back") == ["one", *(["store"] if scheme != "memory://" else [])]


def test_what_the_store_has_is_not_sent_again(tmp_path: Path) -> None:
    """Zeros and holes are no chunks, equal files are one, and a second name costs a manifest."""
    snapshot = large_snapshot(tmp_path / "one")
    pushed = push(snapshot, f"{tmp_path}/store/one")
    assert pushed.chunks == pushed.sent == len(chunk_files(tmp_path / "store")) == 3
    assert pushed.label.stored_size == sum(file.stat().st_size for file in chunk_files(tmp_path / "store"))
    other = push(snapshot, f"{tmp_path}/store/other")
    assert (other.sent, other.chunks, other.sent_bytes) == (0, 3, 0)
    assert push(snapshot, f"{tmp_path}/store/other", again=True).sent == 3
    assert [one.name for one in list_store(f"{tmp_path}/store")] == ["one", "other"]


def test_a_push_that_was_interrupted_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is listed before the last chunk is there; the next push sends the rest."""
    snapshot = large_snapshot(tmp_path / "one")
    with monkeypatch.context() as patched:
        interrupt(patched, "write", after=2)
        with pytest.raises(StoreError, match="the link is down"):
            push(snapshot, f"{tmp_path}/store/one", jobs=1)
    assert len(chunk_files(tmp_path / "store")) == 2
    assert list_store(f"{tmp_path}/store") == []
    assert push(snapshot, f"{tmp_path}/store/one").sent == 1
    assert pull(open_remote(f"{tmp_path}/store/one"), tmp_path / "back").fetched == 3


def test_a_pull_that_was_interrupted_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there counts if its hash is right: a chunk that was half written is fetched again."""
    snapshot = large_snapshot(tmp_path / "one")
    push(snapshot, f"{tmp_path}/store/one")
    remote = open_remote(f"{tmp_path}/store/one")
    with monkeypatch.context() as patched:
        interrupt(patched, "read", after=2)
        with pytest.raises(StoreError, match="the link is down"):
            pull(remote, tmp_path / "back", jobs=1)
    assert not (tmp_path / "back").exists()
    (left,) = (name for name in beside(tmp_path / "back") if name.startswith(".back.pull-"))
    image = tmp_path / left / "images" / "memory-1000.img"
    with image.open("r+b") as stream:
        stream.seek(1000)
        stream.write(b"half")
    pulled = pull(remote, tmp_path / "back")
    assert (pulled.kept, pulled.fetched) == (1, 2)
    assert files_of(tmp_path / "back") == files_of(snapshot)
    assert left not in beside(tmp_path / "back")


def test_pulls_at_the_same_time_fetch_once(tmp_path: Path) -> None:
    """The second waits for the first, and finds its result."""
    push(large_snapshot(tmp_path / "one"), f"{tmp_path}/store/one")
    remote = open_remote(f"{tmp_path}/store/one")
    found = []
    threads = [threading.Thread(target=lambda: found.append(pull(remote, tmp_path / "back"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(one.already for one in found) == [False, True, True]


def test_pushes_at_the_same_time_are_harmless(tmp_path: Path) -> None:
    """Of one snapshot, under one name."""
    snapshot = large_snapshot(tmp_path / "one")
    failed: list[BaseException] = []

    def run() -> None:
        try:
            push(snapshot, f"{tmp_path}/store/one")
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == []
    pull(open_remote(f"{tmp_path}/store/one"), tmp_path / "back")
    assert files_of(tmp_path / "back") == files_of(snapshot)
    assert list((tmp_path / "store" / "incoming").iterdir()) == []


def test_a_file_outside_can_be_fetched_by_several_at_the_same_time(tmp_path: Path) -> None:
    """Each ends with the whole file, and nothing else is left."""
    weights = tmp_path / "kept.bin"
    weights.write_bytes(os.urandom(3 * MIB))
    push(small_snapshot(tmp_path / "one"), f"{tmp_path}/store/one", outside=[weights])
    remote = open_remote(f"{tmp_path}/store/one")
    found: list[int] = []
    there = threading.Barrier(3)

    def run() -> None:
        there.wait(30)
        found.append(pull_file(remote, remote.outside[0], tmp_path / "here.bin"))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 3
    assert (tmp_path / "here.bin").read_bytes() == weights.read_bytes()
    assert beside(tmp_path / "here.bin") == ["kept.bin", "one", "store"]


def test_a_file_outside_goes_along(tmp_path: Path) -> None:
    """Kept weights are pushed with a snapshot, once, and fetched by themselves."""
    snapshot = small_snapshot(tmp_path / "one")
    weights = tmp_path / "kept.bin"
    weights.write_bytes(os.urandom(3 * MIB))
    push(snapshot, f"{tmp_path}/store/one", outside=[weights])
    assert push(snapshot, f"{tmp_path}/store/two", outside=[weights]).sent == 0
    remote = open_remote(f"{tmp_path}/store/one")
    (file,) = remote.outside
    assert (file.path, file.size) == (str(weights), 3 * MIB)
    assert pull_file(remote, file, tmp_path / "here.bin") > 0
    assert (tmp_path / "here.bin").read_bytes() == weights.read_bytes()
    assert stat.S_IMODE((tmp_path / "here.bin").stat().st_mode) == 0o600
    pull(remote, tmp_path / "back")
    assert not (tmp_path / "back" / "kept.bin").exists()


@pytest.mark.fault("the disk has too little room for a pull", area="snapshot store", outcome="refused")
def test_too_little_room_is_known_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is fetched, and nothing is left."""
    push(large_snapshot(tmp_path / "one"), f"{tmp_path}/store/one")
    remote = open_remote(f"{tmp_path}/store/one")
    monkeypatch.setattr(pull_module, "_SPARE_BYTES", 1 << 60)
    calls = interrupt(monkeypatch, "read", after=99)
    with pytest.raises(NoRoomError, match="the pull needs"):
        pull(remote, tmp_path / "back")
    assert calls() == 0
    assert beside(tmp_path / "back") == ["one", "store"]


@pytest.mark.fault("a pull is to replace a folder that is no snapshot", area="snapshot store", outcome="refused")
def test_only_a_snapshot_is_replaced(tmp_path: Path) -> None:
    """Another folder stays; an older snapshot is replaced."""
    push(large_snapshot(tmp_path / "one"), f"{tmp_path}/store/one")
    remote = open_remote(f"{tmp_path}/store/one")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(SnapshotError, match="exists and is not a snapshot"):
        pull(remote, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"
    small_snapshot(tmp_path / "old")
    pull(remote, tmp_path / "old")
    assert files_of(tmp_path / "old") == files_of(tmp_path / "one")


@pytest.mark.fault("a snapshot with a changed file is pushed", area="snapshot store", outcome="refused")
def test_a_damaged_snapshot_is_not_pushed(tmp_path: Path) -> None:
    """Not even if size and first bytes are right."""
    snapshot = large_snapshot(tmp_path / "one")
    with (snapshot / "images" / "memory-1000.img").open("r+b") as stream:
        stream.seek(9 * MIB)
        stream.write(b"other")
    with pytest.raises(SnapshotError, match=r"is not pushed: its file images/memory-1000.img was changed"):
        push(snapshot, f"{tmp_path}/store/one")
    assert list_store(f"{tmp_path}/store") == []


def test_a_store_gives_its_files_the_permissions_of_its_folder(tmp_path: Path) -> None:
    """A store that a push makes is private; one that its owner shares with a group is shared."""
    snapshot = small_snapshot(tmp_path / "one")
    push(snapshot, f"{tmp_path}/store/one")
    assert {stat.S_IMODE(file.stat().st_mode) for file in chunk_files(tmp_path / "store")} == {0o600}
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o750)
    push(snapshot, f"{tmp_path}/shared/one")
    assert {stat.S_IMODE(file.stat().st_mode) for file in chunk_files(tmp_path / "shared")} == {0o640}
    assert stat.S_IMODE((tmp_path / "shared" / "snapshots").stat().st_mode) == 0o750


def test_opening_reads_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison of machines needs no chunk."""
    push(large_snapshot(tmp_path / "one"), f"{tmp_path}/store/one")
    shutil.rmtree(tmp_path / "store" / "chunks")
    calls = interrupt(monkeypatch, "read", after=1)
    remote = open_remote(f"{tmp_path}/store/one")
    assert calls() == 1
    assert set(remote.documents) == {MANIFEST, OUTSIDE}
    assert remote.manifest.machine.criu == "4.2.1"
