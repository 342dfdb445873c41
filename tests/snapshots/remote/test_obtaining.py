"""`torpor.snapshots.remote.obtaining`: compare, fetch once, and find everything again at the next start."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.snapshots.remote.test_comparing import CHANGES, CRIU, World
from torpor import ConfigurationError, SnapshotMisfitError, StoreError
from torpor.app_file import load_app
from torpor.cli.sources import source_of
from torpor.platforms.local.start import StartOptions, Way, start_here
from torpor.snapshots.fit import changed_files
from torpor.snapshots.remote import comparing
from torpor.snapshots.remote.obtaining import obtain
from torpor.snapshots.remote.portable import portable
from torpor.snapshots.remote.push import push
from torpor.snapshots.remote.source import Source
from torpor.snapshots.remote.store import Store
from torpor.snapshots.remote.values import Trust
from torpor.snapshots.store.here import read_here
from torpor.snapshots.store.index import known_snapshots
from torpor.snapshots.store.stored import inspect

if TYPE_CHECKING:
    from pathlib import Path


class Pushed(NamedTuple):
    """Machine `b`, and what machine `a` pushed.

    Attributes:
        world: both machines; this process is on the second one.
        source: the snapshot in the store.
        read: the store's files that were read so far.
    """

    world: World
    source: Source
    read: list[str]

    @property
    def chunks(self) -> list[str]:
        """The chunks that were read so far."""
        return [path for path in self.read if path.startswith("chunks/")]


@pytest.fixture
def pushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pushed:
    """A snapshot in a store, with kept weights; machine `b` has the model."""
    monkeypatch.setattr(comparing, "known_criu", lambda _: CRIU)
    world = World(tmp_path, monkeypatch)
    url = f"file://{tmp_path}/store/kept"
    sent = portable(world.folder)
    push(world.folder, url, outside=sent.outside, documents=sent.documents)
    world.moved()
    read: list[str] = []
    usual = Store.read

    def noted(store: Store, path: str, most: int) -> bytes:
        read.append(path)
        return usual(store, path, most)

    monkeypatch.setattr(Store, "read", noted)
    return Pushed(world, Source(url, Trust(unsigned=True)), read)


def test_a_snapshot_comes_with_its_kept_weights_and_is_found_again(pushed: Pushed) -> None:
    """The folder is a snapshot like any other; the second start reads the store's manifest only."""
    world = pushed.world
    first = obtain(pushed.source)
    assert not first.already
    assert [one.stage for one in first.stages] == ["open", "compare", "pull_weights", "pull"]
    assert first.folder.parent == world.root / "b" / "snapshots"
    assert inspect(first.folder).deployment.name == "kept"
    assert world.here(world.kept).read_bytes() == b"weights"
    assert world.here(world.kept).stat().st_mode & 0o777 == 0o600
    assert changed_files(first.folder) == ()
    assert known_snapshots() == (first.folder,)
    assert read_here(first.folder).moved == ((str(world.root / "a"), str(world.root / "b")),)
    pushed.read.clear()
    second = obtain(pushed.source)
    assert (second.folder, second.already, second.fetched_bytes) == (first.folder, True, 0)
    assert len(pushed.read) == 1
    assert not pushed.chunks


def test_lost_weights_are_fetched_again_and_the_snapshot_is_not(pushed: Pushed) -> None:
    """Somebody pruned them."""
    obtain(pushed.source)
    pushed.world.here(pushed.world.kept).unlink()
    pushed.read.clear()
    again = obtain(pushed.source)
    assert again.fetched_bytes < 1000
    assert len(pushed.chunks) == 1
    assert changed_files(again.folder) == ()


@pytest.mark.fault("two starts want the same snapshot of a store at once", area="another machine", outcome="held")
def test_two_at_once_pull_once(pushed: Pushed) -> None:
    """One chunk holds all of these small files; it is read for the weights, and for the folder."""
    done = []
    threads = [threading.Thread(target=lambda: done.append(obtain(pushed.source))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30.0)
    assert len({one.folder for one in done}) == 1
    assert len(done) == 2
    assert len(pushed.chunks) == 2
    assert [one.already for one in done].count(True) <= 1


@pytest.mark.fault("a machine does not fit a snapshot of a store", area="another machine", outcome="refused")
@pytest.mark.parametrize("change", ["another CRIU", "no such package", "no model"])
def test_what_does_not_fit_is_not_fetched(pushed: Pushed, change: str) -> None:
    """No chunk is read, and nothing lies on the disk."""
    CHANGES[change][0](pushed.world)
    with pytest.raises(SnapshotMisfitError, match="Nothing was fetched"):
        obtain(pushed.source)
    assert pushed.chunks == []
    assert not (pushed.world.root / "b" / "snapshots").exists()
    assert not pushed.world.here(pushed.world.kept).exists()


@pytest.mark.fault(
    "a start's snapshot of a store does not fit, or is not there", area="another machine", outcome="held"
)
@pytest.mark.parametrize(
    ("name", "said"),
    [("kept", "here it is not installed"), ("other", "lists what it holds"), ("signed", "pushed with --key")],
)
def test_a_start_says_why_it_is_cold(pushed: Pushed, monkeypatch: pytest.MonkeyPatch, name: str, said: str) -> None:
    """And is cold: the server starts without the snapshot."""
    CHANGES["no such package"][0](pushed.world)
    cold: list[bool] = []
    ways: list[Way] = []
    monkeypatch.setattr("torpor.platforms.local.start._started_cold", lambda *_, failed: cold.append(failed))
    trust = Trust(unsigned=name != "signed", keys=("ssh-ed25519 AAAA",) if name == "signed" else ())
    source = Source(pushed.source.url.replace("/kept", "/other") if name == "other" else pushed.source.url, trust)
    app = load_app(str(pushed.world.app))
    start_here(app, StartOptions(source=source, on_way=ways.append))
    assert cold == [False]
    assert [way.boot for way in ways] == ["cold"]
    assert said in ways[0].said
    assert pushed.chunks == []


def test_a_store_that_is_not_there_is_named(pushed: Pushed) -> None:
    """A restore cannot start cold, so it fails."""
    with pytest.raises(StoreError, match="other"):
        obtain(Source(pushed.source.url.replace("/kept", "/other"), Trust(unsigned=True)))


def test_a_url_names_a_store_and_a_path_a_folder(tmp_path: Path) -> None:
    """Options that only a store has are refused for a folder."""
    found = source_of("s3://bucket/kept", trust=None, unsigned=True, identity=tmp_path)
    assert found == Source("s3://bucket/kept", Trust(unsigned=True), tmp_path)
    assert source_of("/mnt/store/kept", trust=None, unsigned=False, identity=None) is None
    with pytest.raises(ConfigurationError, match="--unsigned is for a snapshot of a store, and /mnt/kept is none"):
        source_of("/mnt/kept", trust=None, unsigned=True, identity=None)
    with pytest.raises(ConfigurationError, match="--trust is for a snapshot of a store, and no snapshot is none"):
        source_of("", trust=tmp_path, unsigned=False, identity=None)
