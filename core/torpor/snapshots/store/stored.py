"""A stored snapshot: its manifest, and the identity of the engine in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torpor.errors import DamagedSnapshotError
from torpor.snapshots.store.fields import NEW_ONE
from torpor.snapshots.store.folder import check_same, checked, real_folder
from torpor.snapshots.store.manifest import PRIVATE, read_manifest
from torpor.snapshots.store.reading import read_part

if TYPE_CHECKING:
    from pathlib import Path

    from torpor.snapshots.store.fields import Fields
    from torpor.snapshots.store.manifest import Manifest

__all__ = ["Identity", "inspect", "read_identity"]

_PRIVATE_BYTES = 64 << 10
_WORD_CHARACTERS = 1024


class Identity(NamedTuple):
    """Replica id and lifecycle key of the original; a restored engine answers to them until its wake."""

    replica_id: str
    guard_key: str | None


def inspect(folder: Path) -> Manifest:
    """Read the manifest of a snapshot, and check that the folder is private.

    Raises:
        SnapshotError: there is none, it is open to others, damaged, or of another format.
    """
    folder = real_folder(folder)
    mark = checked(folder)
    manifest = read_manifest(folder)
    check_same(folder, mark)
    return manifest


def read_identity(folder: Path) -> Identity:
    """The identity of the engine in a snapshot.

    Raises:
        DamagedSnapshotError: it is missing or damaged.
    """
    fields = _read(folder, PRIVATE, most=_PRIVATE_BYTES)
    key = None if fields.content.get("guard_key") is None else _word(fields, "guard_key")
    if key is None:
        fields.take("guard_key")
    identity = Identity(replica_id=_word(fields, "replica_id"), guard_key=key)
    fields.end()
    return identity


def _read(folder: Path, name: str, *, most: int) -> Fields:
    try:
        return read_part(folder, name, most=most)
    except OSError as error:
        raise DamagedSnapshotError(f"{folder / name} cannot be read ({error.strerror}); {NEW_ONE}") from error


def _word(fields: Fields, name: str) -> str:
    """A word that fits into an HTTP header: visible ASCII, of limited length."""
    word = fields.text(name, empty=False)
    if len(word) > _WORD_CHARACTERS or not word.isascii() or not word.isprintable():
        fields.refuse(name, "(not shown)", f"1 to {_WORD_CHARACTERS} visible ASCII characters")
    return word
