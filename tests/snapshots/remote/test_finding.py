"""`torpor.snapshots.remote.finding`: the snapshot of a deployment that fits this machine, among those of a store."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.snapshots.remote.test_comparing import CRIU, World
from torpor import ConfigurationError, StoreError
from torpor.app_file import load_app
from torpor.snapshots.remote import comparing
from torpor.snapshots.remote.finding import find_fitting
from torpor.snapshots.remote.portable import portable
from torpor.snapshots.remote.push import push
from torpor.snapshots.remote.values import Trust

if TYPE_CHECKING:
    from pathlib import Path

    from torpor.app_file import App

ANYBODY = Trust(unsigned=True)


class Stored(NamedTuple):
    """A store with the snapshot of machine `a` under two names; this process is on machine `b`."""

    world: World
    store: str
    app: App


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stored:
    """See `Stored`."""
    monkeypatch.setattr(comparing, "known_criu", lambda _: CRIU)
    world = World(tmp_path, monkeypatch)
    store = f"file://{tmp_path}/store"
    sent = portable(world.folder)
    for name in ("kept-a", "kept-b"):
        push(world.folder, f"{store}/{name}", outside=sent.outside, documents=sent.documents)
    app = load_app(str(world.app))
    world.moved()
    return Stored(world, store, app)


def test_one_that_fits_is_fetched_once(stored: Stored) -> None:
    """The next replica of this machine finds it there."""
    first, second = (find_fitting(stored.store, stored.app, trust=ANYBODY) for _ in range(2))
    assert first.obtained
    assert second.obtained
    assert (first.obtained.already, second.obtained.already) == (False, True)
    assert (first.reasons, second.reasons) == ((), ())


def test_none_that_fits_is_said_with_every_reason(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was fetched."""
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    found = find_fitting(stored.store, stored.app, trust=ANYBODY)
    assert found.obtained is None
    assert [one.partition(" ")[0] for one in found.reasons] == ["kept-a", "kept-b"]
    assert not (stored.world.root / "b" / "snapshots").exists()


def test_a_store_without_this_deployment_says_so(stored: Stored, tmp_path: Path) -> None:
    """A snapshot of another deployment is never looked at."""
    text = stored.app.file.read_text()
    other = tmp_path / "other.py"
    other.write_text(text.replace('"kept"', '"other"'))
    found = find_fitting(stored.store, load_app(str(other)), trust=ANYBODY)
    assert found.obtained is None
    assert len(found.reasons) == 1
    assert "holds no snapshot of 'other'" in found.reasons[0]


def test_what_nobody_trusted_signed_is_a_reason(stored: Stored) -> None:
    """A replica then starts cold; it does not run memory of strangers."""
    found = find_fitting(stored.store, stored.app, trust=Trust(keys=("ssh-ed25519 " + "A" * 68,)))
    assert found.obtained is None
    assert all("not signed by a trusted key" in one for one in found.reasons)


def test_a_store_that_is_not_there_is_an_error(stored: Stored) -> None:
    """As in every command."""
    with pytest.raises((ConfigurationError, StoreError)):
        find_fitting(f"{stored.store}-gone", stored.app, trust=ANYBODY)
