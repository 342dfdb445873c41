"""List the snapshots of a store. A damaged one is listed as damaged; it does not hide the others."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NamedTuple

from torpor.errors import ConfigurationError, DamagedSnapshotError, StoreError
from torpor.snapshots.remote.location import location_of, shown_url, store_of
from torpor.snapshots.remote.manifest_file import HEAD_BYTES, read_head
from torpor.snapshots.remote.parallel import each, jobs_here
from torpor.snapshots.remote.signature import fingerprint, is_public_key, signed_by
from torpor.snapshots.remote.store import Store, manifest_path
from torpor.snapshots.remote.values import Label, Trust

if TYPE_CHECKING:
    from torpor.snapshots.remote.manifest_file import Head

__all__ = ["Listed", "list_store"]

_NOBODY = Trust()


class Listed(NamedTuple):
    """A snapshot of a store.

    Attributes:
        name: in the store.
        label: what it says of itself; None for a damaged one.
        signer: fingerprint of the key that signed; without trusted keys the key that it names, if its signature is right.
        trusted: whether that is a trusted key.
        problem: what is wrong with a damaged one; empty otherwise.
    """

    name: str
    label: Label | None
    signer: str = ""
    trusted: bool = False
    problem: str = ""


def list_store(url: str, *, trust: Trust = _NOBODY) -> list[Listed]:
    """Every snapshot of a store, in the order of names. The head of each manifest is read, and no chunk.

    Args:
        url: of the store.
        trust: whose signatures count as trusted.

    Raises:
        ConfigurationError: the URL cannot be used, or its package is missing.
        StoreError: there is no store, or it cannot be read.
    """
    store = Store(store_of(url))
    found: list[Listed] = []
    if not (sizes := store.manifests()):
        _check_there(store, url)
    each(sizes, lambda name: found.append(_listed(store, name, sizes[name], trust)), count=jobs_here())
    return sorted(found, key=lambda one: one.name)


def _check_there(store: Store, url: str) -> None:
    """Check that there is a store, and say so if the URL is that of a snapshot.

    Raises:
        StoreError: there is none.
    """
    if not store.missing():
        return
    with contextlib.suppress(ConfigurationError):
        above, name = location_of(url)
        if name in Store(above).manifests():
            shown = shown_url(above)
            raise StoreError(
                f"{store.url} is the snapshot {name!r} of the store {shown}. List the store: torpor snapshot ls {shown}"
            )
    store.check_there()


def _listed(store: Store, name: str, size: int, trust: Trust) -> Listed:
    try:
        head = read_head(store.read(manifest_path(name), HEAD_BYTES), name)
    except FileNotFoundError:
        return Listed(name, None, problem="it was removed meanwhile")
    except DamagedSnapshotError as error:
        return Listed(name, None, problem=str(error))
    if size != (whole := head.size + head.label.body_size):
        return Listed(
            name, None, problem=f"its manifest has {size} bytes, not {whole}: it was cut or changed; push it again."
        )
    signer, trusted = _signer(head, trust)
    return Listed(name, head.label, signer, trusted)


def _signer(head: Head, trust: Trust) -> tuple[str, bool]:
    """The fingerprint of whoever signed, and whether it is trusted."""
    if key := signed_by(head.line, head.signatures, trust.keys):
        return fingerprint(key), True
    named = [one.key for one in head.signatures if is_public_key(one.key)]
    key = signed_by(head.line, head.signatures, named)
    return (fingerprint(key), False) if key else ("", False)
