"""What a push sends beside a snapshot's folder, so that another machine can compare before it fetches anything.

    needs.json     the whole hash of each large file that a process had open: there every byte counts
    kept weights   files that the engine keeps outside of its snapshots, named by their content; pushed once

The model's own files are not pushed: another machine has them from where this one got them. They are compared by content.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torpor.errors import DamagedSnapshotError
from torpor.snapshots.fit import changed_files, misfit
from torpor.snapshots.store.fields import parsed
from torpor.snapshots.store.folder import real_folder
from torpor.snapshots.store.here import read_here
from torpor.snapshots.store.known_hashes import known_hashes
from torpor.snapshots.store.manifest import OUTSIDE
from torpor.snapshots.store.outside import entries, hashed_bytes
from torpor.snapshots.store.paths import KEPT, cache_root
from torpor.snapshots.store.reading import read_part
from torpor.snapshots.store.stored import inspect

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torpor.snapshots.store.known_hashes import KnownHashes
    from torpor.snapshots.store.outside import Noted

__all__ = ["NEEDS", "OUTSIDE_BYTES", "Needs", "Portable", "portable", "read_needs"]

NEEDS = "needs.json"
OUTSIDE_BYTES = 64 << 20
"""The largest list of outside files that is read."""

_SCHEMA = 1
_SHA256_DIGITS = 64
_THREADS = 4


class Needs(NamedTuple):
    """What a push notes about outside files; each by its path at the capture.

    Attributes:
        whole: SHA-256 of each large file that a process had open (hex).
        kept: kept weights, with the path under which they were pushed (`RemoteSnapshot.outside`).
    """

    whole: Mapping[str, str]
    kept: Mapping[str, str]


class Portable(NamedTuple):
    """What to give to `torpor.snapshots.remote.push.push`.

    Attributes:
        outside: kept weights.
        documents: small files by name.
    """

    outside: tuple[Path, ...]
    documents: Mapping[str, bytes]


def portable(folder: Path) -> Portable:
    """What a push of this snapshot sends beside its folder. A large file that the engine had open is read unless its hash is known.

    Raises:
        SnapshotError: the folder holds no snapshot, or a damaged one.
        SnapshotMisfitError: a file outside of the snapshot has changed since the capture, so nobody could know what it was.
    """
    folder = real_folder(folder)
    inspect(folder)
    with known_hashes() as hashes:
        return _portable(folder, hashes)


def _portable(folder: Path, hashes: KnownHashes) -> Portable:
    if reasons := changed_files(folder, full=True, hashes=hashes):
        raise misfit(folder, reasons)
    here = read_here(folder)
    noted = list(entries(read_part(folder, OUTSIDE, most=OUTSIDE_BYTES)))
    kept = {one.name: here.path(one.name) for one in noted if _is_kept(here.path(one.name))}
    large = [one.name for one in noted if one.name not in kept and needs_whole(one)]
    with ThreadPoolExecutor(_THREADS) as pool:
        whole = dict(zip(large, pool.map(hashes.whole, map(here.path, large)), strict=True))
    needs = {"schema": _SCHEMA, "whole": whole, "kept": kept}
    document = json.dumps(needs, indent=1).encode(errors="surrogateescape")
    return Portable(outside=tuple(sorted(map(Path, set(kept.values())))), documents={NEEDS: document})


def needs_whole(entry: Noted) -> bool:
    """Whether the noted hash covers only pieces of a file that a process had open."""
    return entry.opened and hashed_bytes(entry.size) < entry.size


def read_needs(documents: Mapping[str, bytes], place: str) -> Needs:
    """What the push noted.

    Args:
        documents: of an opened snapshot.
        place: for messages.

    Raises:
        DamagedSnapshotError: it is missing or damaged.
    """
    if NEEDS not in documents:
        raise DamagedSnapshotError(f"{place} has no {NEEDS}, so this machine cannot be compared. Push it again.")
    fields = parsed(Path(place) / NEEDS, documents[NEEDS])
    if (schema := fields.whole("schema")) != _SCHEMA:
        fields.refuse("schema", schema, f"{_SCHEMA}; use the version of Torpor that pushed it")
    whole, kept = fields.inner("whole"), fields.inner("kept")
    needs = Needs(
        whole={name: whole.digits(name, _SHA256_DIGITS) for name in whole.names()},
        kept={name: kept.path(name) for name in kept.names()},
    )
    fields.end()
    return needs


def _is_kept(path: str) -> bool:
    """Whether a file lies where engines keep weights outside of snapshots; see `torpor.snapshots.kept_weights`."""
    images = cache_root() / "images"
    place = Path(path)
    return place.is_relative_to(images) and len(parts := place.relative_to(images).parts) == 3 and parts[1] == KEPT  # noqa: PLR2004
