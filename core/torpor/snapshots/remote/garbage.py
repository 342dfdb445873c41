"""Remove snapshots from a store, and the chunks that no snapshot needs any more.

Nothing is deleted while a push is at work (`torpor.snapshots.remote.at_work`). Chunks that were written in the last day stay as
well: an interrupted push goes on with them. A pull that runs meanwhile fails if its snapshot is removed, and leaves nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torpor.errors import StoreError
from torpor.snapshots.remote.at_work import LIVE_S, at_work
from torpor.snapshots.remote.location import location_of, store_of
from torpor.snapshots.remote.parallel import each, jobs_here
from torpor.snapshots.remote.references import FOLDER, needed, reference_files
from torpor.snapshots.remote.store import Store, chunk_path, manifest_path

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torpor.snapshots.remote.at_work import AtWork
    from torpor.snapshots.remote.values import Stored

__all__ = ["GRACE_S", "Collected", "collect", "remove"]

GRACE_S = 86_400.0
"""Chunks that are younger stay by default: an interrupted push may go on with them."""


class Collected(NamedTuple):
    """The outcome of `collect`.

    Attributes:
        chunks: how many were removed, or would be.
        removed_bytes: what they took in the store.
        young: how many more no snapshot needs, but are too young.
        young_bytes: what these take.
        needed: how many the snapshots need.
    """

    chunks: int
    removed_bytes: int
    young: int
    young_bytes: int
    needed: int


def remove(url: str) -> str:
    """Remove a snapshot from its store; its chunks stay until `collect`.

    Args:
        url: of the snapshot.

    Returns:
        The URL of its store.

    Raises:
        ConfigurationError: the URL is wrong, or a package is missing.
        StoreError: there is no such snapshot, or it cannot be removed.
    """
    location = location_of(url)
    store = Store(location.store)
    if location.name not in store.manifests():
        store.check_there()
        raise StoreError(
            f"The store {store.url} holds no snapshot {location.name!r}. `torpor snapshot ls {store.url}` lists what it holds."
        )
    store.delete(manifest_path(location.name))
    return location.store


def collect(url: str, *, older_than_s: float = GRACE_S, dry_run: bool = False, jobs: int = 0) -> Collected:
    """Remove the chunks of a store that no snapshot needs.

    Args:
        url: of the store.
        older_than_s: chunks that were written later stay.
        dry_run: remove nothing.
        jobs: how many are deleted at once; 0 for a number that suits this machine.

    Raises:
        ConfigurationError: the URL is wrong, or a package is missing.
        StoreError: a push is at work, a manifest is damaged, or the store cannot be used.
    """
    store = Store(store_of(url))
    if not store.manifests():
        store.check_there()
        if not store.chunks() and not reference_files(store):
            return Collected(0, 0, 0, 0, 0)  # perhaps no store at all: nothing is written there
    if not store.keeps_times:
        raise StoreError(
            f"The store {store.url} does not tell when a chunk was written, so nothing tells what a push has just sent. Push "
            "what you keep to a new store, and delete this one."
        )
    with at_work(store, "collect") as own:
        if pushes := own.others("push"):
            raise StoreError(_busy(store, min(pushes.values())))
        return _collected(store, own, older_than_s, dry_run=dry_run, jobs=jobs or jobs_here())


def _collected(store: Store, own: AtWork, older_than_s: float, *, dry_run: bool, jobs: int) -> Collected:
    chunks, (wanted, files) = store.chunks(), needed(store)
    limit = own.now() - older_than_s
    idle = {name: one for name, one in chunks.items() if name not in wanted}
    old = {name: one for name, one in idle.items() if _is_older(one, limit)}
    references = {name: one for name, one in reference_files(store).items() if name not in files}
    paths = [
        *map(chunk_path, old),
        *(f"{FOLDER}/{name}" for name, one in references.items() if _is_older(one, limit)),
    ]

    def delete(path: str) -> None:
        own.check()
        store.delete(path)

    if not dry_run:
        each(paths, delete, count=jobs)
    removed, every = _bytes(old), _bytes(idle)
    return Collected(len(old), removed, len(idle) - len(old), every - removed, len(chunks) - len(idle))


def _is_older(one: Stored, limit: float) -> bool:
    return one.changed is not None and one.changed <= limit


def _bytes(files: Mapping[str, Stored]) -> int:
    return sum(one.size for one in files.values())


def _busy(store: Store, age: float) -> str:
    return (
        f"A push to {store.url} is at work (seen {max(age, 0):.0f} s ago), and may rely on chunks that no snapshot names yet. No "
        f"chunk was removed; run it again later: torpor snapshot gc {store.url}. A push that was killed counts for "
        f"{LIVE_S / 60:.0f} minutes."
    )
