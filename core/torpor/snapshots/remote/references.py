"""Which chunks the snapshots of a store need.

The body of a manifest lists them. Only its recipients can read that of an encrypted one, so its push writes the names into a file
of their own, `references/BODY.zst`, named by the hash of the body: whoever removes snapshots needs no key. The names are keyed
hashes, and tell nothing of the content.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from torpor.errors import DamagedSnapshotError, StoreError
from torpor.snapshots.remote.chunks import NAME_DIGITS, unpacked
from torpor.snapshots.remote.manifest_file import MOST_BYTES, check_body, read_body, read_head
from torpor.snapshots.remote.packages import zstandard
from torpor.snapshots.remote.parallel import each, jobs_here
from torpor.snapshots.remote.store import manifest_path

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torpor.snapshots.remote.manifest_file import Head
    from torpor.snapshots.remote.store import Store
    from torpor.snapshots.remote.values import Stored

__all__ = ["FOLDER", "needed", "reference_files", "reference_name", "write_references"]

FOLDER = "references"
_NAME = re.compile(r"[0-9a-f]{64}\.zst")
_MOST_UNPACKED = 512 << 20


def reference_name(body_sha256: str) -> str:
    """The file of a body's references, under `FOLDER`."""
    return f"{body_sha256}.zst"


def reference_files(store: Store) -> dict[str, Stored]:
    """The files of `write_references` under `FOLDER`, by name. What else lies there is somebody else's."""
    return {name: one for name, one in store.listed(FOLDER).items() if _NAME.fullmatch(name)}


def write_references(store: Store, body_sha256: str, chunks: Iterable[str]) -> None:
    """Write the names of an encrypted snapshot's chunks.

    Args:
        store: where.
        body_sha256: hash of the encrypted body (hex).
        chunks: names.
    """
    text = json.dumps(sorted(chunks)).encode()
    packed = zstandard.ZstdCompressor(level=3, write_checksum=True).compress(text)
    store.write(f"{FOLDER}/{reference_name(body_sha256)}", packed)


def needed(store: Store) -> tuple[set[str], set[str]]:
    """The chunks that the snapshots of a store need, and their files under `FOLDER`, by name.

    Raises:
        StoreError: what one of them needs cannot be known, or the store cannot be read.
    """
    chunks: set[str] = set()
    files: set[str] = set()

    def look(name: str) -> None:
        try:
            data = store.read(manifest_path(name), MOST_BYTES + 1)
        except FileNotFoundError:
            return  # removed meanwhile
        try:
            head = read_head(data, name)
            found = _chunks_of(store, head, data[head.size :])
        except DamagedSnapshotError as error:
            raise StoreError(
                f"Nothing was removed from {store.url}: which chunks {name!r} needs cannot be known. {error} Or remove it: torpor "
                f"snapshot rm {store.url.rstrip('/')}/{name}"
            ) from error
        chunks.update(found)
        files.add(reference_name(head.label.body_sha256))

    each(store.manifests(), look, count=jobs_here())
    return chunks, files


def _chunks_of(store: Store, head: Head, body: bytes) -> set[str]:
    check_body(body, head)
    if not head.label.encrypted:
        return {chunk.name for chunk in read_body(body, head.label.name).chunks}
    path = f"{FOLDER}/{reference_name(head.label.body_sha256)}"
    try:
        return _read(store.read(path, MOST_BYTES))
    except FileNotFoundError:
        raise DamagedSnapshotError(f"It is encrypted, and there is no {path}; push it again.") from None
    except (ValueError, zstandard.ZstdError, DamagedSnapshotError):
        raise DamagedSnapshotError(f"It is encrypted, and {path} is damaged; push it again.") from None


def _read(packed: bytes) -> set[str]:
    size = zstandard.get_frame_parameters(packed).content_size
    names = json.loads(unpacked(packed, size)) if size <= _MOST_UNPACKED else None
    if not isinstance(names, list) or not all(isinstance(one, str) and len(one) == NAME_DIGITS for one in names):
        raise ValueError("no list of chunks")
    return set(names)
