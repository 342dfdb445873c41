"""Chunks that no snapshot of a store needs are removed, and never one that a snapshot or a push needs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from tests.snapshots.remote import garbage_program
from tests.snapshots.remote.remote_store import chunk_files, large_snapshot
from tests.snapshots.small_snapshot import small_snapshot
from torpor import ConfigurationError, StoreError
from torpor.cli.removal import run_gc, run_rm
from torpor.snapshots.remote import at_work as at_work_module
from torpor.snapshots.remote.at_work import AtWork, at_work
from torpor.snapshots.remote.encryption import new_identity
from torpor.snapshots.remote.garbage import collect, remove
from torpor.snapshots.remote.listing import list_store
from torpor.snapshots.remote.opening import open_remote
from torpor.snapshots.remote.pull import pull
from torpor.snapshots.remote.push import push
from torpor.snapshots.remote.store import Store
from torpor.snapshots.remote.values import Trust

if TYPE_CHECKING:
    from collections.abc import Callable

WEEK_S = 7 * 86_400


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORPOR_CACHE", str(tmp_path / "cache"))


def aged(store: Path) -> None:
    """Make everything in a store a week old."""
    for file in store.rglob("*"):
        if file.is_file():
            os.utime(file, (time.time() - WEEK_S,) * 2)


def wait_for(file: Path, process: subprocess.Popen[str]) -> None:
    """Wait until a program made a file."""
    end = time.monotonic() + 60
    while not file.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def program(*words: object) -> subprocess.Popen[str]:
    """Start `garbage_program.py`."""
    argv = [sys.executable, "-m", garbage_program.__name__, *map(str, words)]
    return subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]
    )


@pytest.mark.parametrize("scheme", ["", "memory://"])
def test_what_no_snapshot_needs_goes(tmp_path: Path, scheme: str) -> None:
    """Chunks that another snapshot needs stay, and it can be pulled."""
    store = f"memory://{uuid4().hex}" if scheme else f"{tmp_path}/store"
    push(large_snapshot(tmp_path / "one", seed=1), f"{store}/one")
    push(large_snapshot(tmp_path / "two", seed=2), f"{store}/two")
    before = len(Store(store).chunks())
    assert remove(f"{store}/one") == store
    assert [one.name for one in list_store(store)] == ["two"]
    pretended = collect(store, older_than_s=0.0, dry_run=True)
    assert len(Store(store).chunks()) == before
    found = collect(store, older_than_s=0.0)
    assert found == pretended
    assert (found.chunks > 0, found.young, found.needed) == (True, 0, before - found.chunks)
    assert len(Store(store).chunks()) == found.needed
    pull(open_remote(f"{store}/two", trust=Trust(unsigned=True)), tmp_path / "back")
    assert collect(store, older_than_s=0.0).chunks == 0


def test_young_chunks_stay(tmp_path: Path) -> None:
    """An interrupted push goes on with them."""
    push(small_snapshot(tmp_path / "one"), f"{tmp_path}/store/one")
    remove(f"{tmp_path}/store/one")
    assert collect(f"{tmp_path}/store")[:3] == (0, 0, 1)
    aged(tmp_path / "store")
    assert collect(f"{tmp_path}/store").chunks == 1
    assert chunk_files(tmp_path / "store") == []


def test_an_encrypted_snapshot_keeps_its_chunks_without_a_key(tmp_path: Path) -> None:
    """What it needs stands beside it; that goes with it."""
    recipient = new_identity(tmp_path / "identity")
    push(large_snapshot(tmp_path / "one"), f"{tmp_path}/store/one", recipients=[recipient])
    aged(tmp_path / "store")
    before = chunk_files(tmp_path / "store")
    assert collect(f"{tmp_path}/store")[:1] == (0,)
    assert chunk_files(tmp_path / "store") == before
    remove(f"{tmp_path}/store/one")
    assert collect(f"{tmp_path}/store").chunks == len(before)
    assert not [file for file in (tmp_path / "store").rglob("*") if file.is_file()]


@pytest.mark.fault("what a snapshot of a store needs cannot be known", area="snapshot store", outcome="refused")
@pytest.mark.parametrize("what", ["manifest cut", "references gone", "references cut", "references of nothing"])
def test_if_it_cannot_be_known_nothing_goes(tmp_path: Path, what: str) -> None:
    """The message names the snapshot; removing it helps."""
    store = tmp_path / "store"
    push(small_snapshot(tmp_path / "one"), f"{store}/one", recipients=[new_identity(tmp_path / "identity")])
    push(large_snapshot(tmp_path / "two"), f"{store}/two")
    remove(f"{store}/two")
    file = store / "snapshots" / "one.snapshot" if what == "manifest cut" else next((store / "references").iterdir())
    if what == "references gone":
        file.unlink()
    else:
        file.write_bytes(b"" if what == "references of nothing" else file.read_bytes()[:-9])
    aged(store)
    before = chunk_files(store)
    with pytest.raises(StoreError, match=rf"which chunks 'one' needs cannot be known.*torpor snapshot rm {store}/one"):
        collect(str(store))
    assert chunk_files(store) == before
    remove(f"{store}/one")
    assert collect(str(store)).chunks == len(before)


@pytest.mark.slow
@pytest.mark.fault("chunks are collected while a push relies on them", area="snapshot store", outcome="refused")
def test_a_push_at_work_keeps_every_chunk(tmp_path: Path) -> None:
    """Also old ones, which it found and does not send again. A killed push counts for a quarter of an hour."""
    store, snapshot = tmp_path / "store", large_snapshot(tmp_path / "one")
    push(snapshot, f"{store}/one")
    remove(f"{store}/one")
    aged(store)
    slow = program("slow", snapshot, f"{store}/two", tmp_path / "listed", tmp_path / "go")
    wait_for(tmp_path / "listed", slow)
    with pytest.raises(StoreError, match=r"A push to .* is at work"):
        collect(str(store), older_than_s=0.0)
    (tmp_path / "go").touch()
    assert slow.communicate(timeout=60)[0] == "0\n"
    assert collect(str(store), older_than_s=0.0).chunks == 0
    pull(open_remote(f"{store}/two"), tmp_path / "back")
    for name in ("listed", "go"):
        (tmp_path / name).unlink()
    killed = program("slow", snapshot, f"{store}/three", tmp_path / "listed", tmp_path / "go")
    wait_for(tmp_path / "listed", killed)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    with pytest.raises(StoreError, match="killed counts for 15 minutes"):
        collect(str(store))
    (left,) = (store / "at-work").iterdir()
    os.utime(left, (time.time() - at_work_module.LIVE_S - 5,) * 2)
    collect(str(store))
    assert list((store / "at-work").iterdir()) == []


def test_a_push_waits_for_whoever_collects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is listed before: what it finds then stays."""
    monkeypatch.setattr(at_work_module, "_LOOK_S", 0.01)
    store = Store(f"{tmp_path}/store")
    waited: list[str] = []

    def told(text: str) -> None:
        waited.append(text)
        aged(tmp_path / "store" / "at-work")

    with at_work(store, "collect"), at_work(store, "push") as pushing:
        assert len(pushing.others("collect")) == 1
        monkeypatch.setattr(at_work_module, "tell", told)
        own = AtWork(store, "push")
        monkeypatch.setattr(own, "now", time.time)
        own.wait_for_end_of("collect")
        own.end()
    assert len(waited) == 1


@pytest.mark.slow
def test_pushes_and_collections_at_once_lose_nothing(tmp_path: Path) -> None:
    """Two push and pull the same content under two names, a third collects whatever no snapshot needs, however young."""
    store = tmp_path / "store"
    push(large_snapshot(tmp_path / "one"), f"{store}/kept")
    snapshots = [large_snapshot(tmp_path / f"snapshot-{name}", seed=2) for name in "ab"]
    collector = program("collect", store, tmp_path / "end")
    pushers = [program("push", one, store, name, 12) for one, name in zip(snapshots, "ab", strict=True)]
    ends = [one.communicate(timeout=150) for one in pushers]
    (tmp_path / "end").touch()
    done, removed = map(int, collector.communicate(timeout=60)[0].split())
    assert [one.returncode for one in (*pushers, collector)] == [0, 0, 0], ends
    assert min(done, removed) > 0
    pull(open_remote(f"{store}/kept"), tmp_path / "back")


@pytest.mark.fault("a push was suspended for longer than others wait", area="snapshot store", outcome="refused")
@pytest.mark.parametrize("act", ["push", "collect"])
def test_who_was_suspended_does_nothing_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: str) -> None:
    """Others may have taken it for dead: no manifest is written, and no chunk deleted."""
    store, snapshot = tmp_path / "store", small_snapshot(tmp_path / "one")
    push(snapshot, f"{store}/one")
    remove(f"{store}/one")
    usual = at_work_module._clock
    monkeypatch.setattr(AtWork, "check", _late(AtWork.check, monkeypatch, usual))
    with pytest.raises(StoreError, match=r"was suspended or cut off from the store .* Run the same command again"):
        push(snapshot, f"{store}/two") if act == "push" else collect(str(store), older_than_s=0.0)
    assert (list_store(str(store)), len(chunk_files(store))) == ([], 1)


def _late(
    usual: Callable[[AtWork], None], monkeypatch: pytest.MonkeyPatch, clock: Callable[[], float]
) -> Callable[[AtWork], None]:
    """The check, ten minutes later than it is."""

    def late(own: AtWork) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(at_work_module, "_clock", lambda: clock() + 600)
            usual(own)

    return late


def test_a_store_without_times_is_not_collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hugging Face hub: nothing would tell what a push has just sent."""
    push(small_snapshot(tmp_path / "one"), f"{tmp_path}/store/one")
    monkeypatch.setattr(Store, "keeps_times", False)
    with pytest.raises(StoreError, match="does not tell when a chunk was written"):
        collect(f"{tmp_path}/store")
    push(small_snapshot(tmp_path / "two"), f"{tmp_path}/store/two")
    assert [one.name for one in list_store(f"{tmp_path}/store")] == ["one", "two"]


@pytest.mark.parametrize(
    ("url", "said"), [("nowhere/one", "There is no store at"), ("store/other", "holds no snapshot")]
)
def test_what_is_not_there_cannot_be_removed(tmp_path: Path, url: str, said: str) -> None:
    """The message says what is there."""
    push(small_snapshot(tmp_path / "one"), f"{tmp_path}/store/one")
    with pytest.raises(StoreError, match=said):
        remove(f"{tmp_path}/{url}")
    with pytest.raises(StoreError, match="There is no store at"):
        collect(f"{tmp_path}/nowhere")


def test_what_is_not_of_a_store_stays(tmp_path: Path) -> None:
    """Another program's folders may have the same names, and may be named by mistake. Nothing is written there, either."""
    store = tmp_path / "other"
    others = [
        store / path for path in ("chunks/ab/abacus", "references/paper.pdf", "incoming/letter", "at-work/push-ups")
    ]
    for other in others:
        other.parent.mkdir(parents=True)
        other.write_text("not ours")
    aged(store)
    before = sorted(store.rglob("*"))
    assert collect(str(store)) == (0, 0, 0, 0, 0)
    assert sorted(store.rglob("*")) == before
    push(small_snapshot(tmp_path / "one"), f"{store}/one")
    remove(f"{store}/one")
    assert collect(str(store), older_than_s=0.0).chunks == 1
    assert {other.read_text() for other in others} == {"not ours"}


def test_the_commands_say_what_went(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """`rm` takes folders and URLs; a wrong URL is told before anything is removed."""
    store = f"file://{tmp_path}/store"
    push(small_snapshot(tmp_path / "one"), f"{store}/one")
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    with pytest.raises(ConfigurationError, match="names no snapshot"):
        run_rm([str(tmp_path / "copy"), "s3://"])
    assert (tmp_path / "copy").exists()
    run_rm([str(tmp_path / "copy"), f"{store}/one"])
    told = capfd.readouterr().err
    assert f"removed {tmp_path}/copy" in told
    assert f"removed {store}/one" in told
    assert f"1 more, 0.0 MB, are younger than 1d and stay for now: torpor snapshot gc {store}" in told
    run_gc(store, older_than="0s", dry_run=False, jobs=0, as_json=False)
    assert f"removed 1 chunks that no snapshot of {store} needs" in capfd.readouterr().out
    with pytest.raises(ConfigurationError, match="--older-than is 'soon'"):
        run_gc(store, older_than="soon", dry_run=False, jobs=0, as_json=False)
    with pytest.raises(ConfigurationError, match="--jobs is -1"):
        run_gc(store, older_than="0s", dry_run=False, jobs=-1, as_json=False)
