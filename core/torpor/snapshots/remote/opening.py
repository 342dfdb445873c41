"""Open a snapshot of a store: read its manifest, check who signed it. No chunk is fetched."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from torpor.errors import DamagedSnapshotError, StoreError, UntrustedSnapshotError
from torpor.snapshots.remote.chunks import codec_for
from torpor.snapshots.remote.encryption import decrypted
from torpor.snapshots.remote.location import location_of, shown_url
from torpor.snapshots.remote.manifest_file import MOST_BYTES, check_body, push_again, read_body, read_head
from torpor.snapshots.remote.parallel import within
from torpor.snapshots.remote.signature import fingerprint, is_public_key, signed_by
from torpor.snapshots.remote.store import Store, manifest_path
from torpor.snapshots.remote.values import RemoteSnapshot, Trust
from torpor.snapshots.store.fields import parsed
from torpor.snapshots.store.manifest import MANIFEST, MANIFEST_BYTES, OUTSIDE, PRIVATE, parsed_manifest
from torpor.telemetry.events import log

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torpor.snapshots.remote.manifest_file import Body, Head
    from torpor.snapshots.store.manifest import Manifest

__all__ = ["open_remote"]

_NOBODY = Trust()


def open_remote(url: str, *, trust: Trust = _NOBODY, identity: Path | None = None) -> RemoteSnapshot:
    """Read the manifest of a snapshot in a store.

    One file of the store is read, nothing else.

    Args:
        url: of the snapshot, e.g. `s3://bucket/snapshots/qwen3` or a path.
        trust: whose snapshots may run here.
        identity: file with an age identity (`AGE-SECRET-KEY-1...`), for an encrypted snapshot.

    Raises:
        ConfigurationError: the URL is wrong, a package is missing, or a key file cannot be used.
        StoreError: the store cannot be reached, or holds no such snapshot.
        UntrustedSnapshotError: no trusted key has signed it, or the identity does not open it.
        DamagedSnapshotError: its manifest is damaged, or breaks a rule.
    """
    location = location_of(url)
    store = Store(location.store)
    data = _read(store, location.name)
    head = read_head(data, location.name)
    signed = _trusted(store, head, trust)
    body = data[head.size :]
    check_body(body, head)
    if head.label.encrypted:
        body = decrypted(body, identity, shown_url(url))
    content = read_body(body, location.name)
    manifest = _manifest(content, location.name)
    return RemoteSnapshot(
        url=url,
        label=head.label,
        digest=hashlib.sha256(content.documents[MANIFEST]).hexdigest(),
        signed_by=signed,
        manifest=manifest,
        documents=content.documents,
        files=content.files,
        outside=content.outside,
        chunks=content.chunks,
        codec=codec_for(content.secret),
    )


def _read(store: Store, name: str) -> bytes:
    try:
        data = within(lambda: store.read(manifest_path(name), MOST_BYTES + 1))
    except FileNotFoundError:
        store.check_there()
        raise StoreError(
            f"The store {store.url} holds no snapshot {name!r}. `torpor snapshot ls {store.url}` lists what it holds."
        ) from None
    if len(data) > MOST_BYTES:
        raise DamagedSnapshotError(
            f"The manifest of {name!r} in the store {store.url} has more than {MOST_BYTES} bytes; push it again."
        )
    return data


def _trusted(store: Store, head: Head, trust: Trust) -> str:
    """The fingerprint of the trusted key that signed; empty if none is needed.

    Raises:
        UntrustedSnapshotError: one is needed.
    """
    name = head.label.name
    if trust.keys:
        if key := signed_by(head.line, head.signatures, trust.keys):
            return fingerprint(key)
        raise UntrustedSnapshotError(
            f"{name!r} in the store {store.url} is not signed by a trusted key ({_claimed(head)}). It is memory that would run as "
            "you: pull it only if you know who wrote it. Have it pushed with --key, or add the signer's key to the trusted ones."
        )
    if not (why := store.foreign(manifest_path(name))):
        return ""
    if not trust.unsigned:
        raise UntrustedSnapshotError(
            f"Nothing says who wrote {name!r} in the store {store.url}: {why}. It is memory that would run as you. Name the keys "
            f"that you trust (--trust FILE, or TORPOR_TRUSTED_KEYS), or accept it with --unsigned ({_claimed(head)})."
        )
    log("warning", "unsigned_snapshot", snapshot=name, store=store.url, reason=f"{why}; {_claimed(head)}")
    return ""


def _claimed(head: Head) -> str:
    """Who claims to have signed, in words; nothing is checked."""
    keys = [fingerprint(one.key) for one in head.signatures if is_public_key(one.key)]
    return f"it names the signer {', '.join(keys)}" if keys else "it has no signature"


def _manifest(body: Body, name: str) -> Manifest:
    """The snapshot's own manifest, checked against the list of files.

    Raises:
        DamagedSnapshotError: they differ, or it is damaged.
    """
    data = body.documents[MANIFEST]
    if len(data) > MANIFEST_BYTES:
        raise DamagedSnapshotError(f"The manifest of {name!r} holds one of {len(data)} bytes; push it again.")
    try:
        manifest = parsed_manifest(parsed(Path(f"{name}/{MANIFEST}"), data))
    except DamagedSnapshotError as error:
        raise push_again(error) from None
    wanted = {path: (facts.size, facts.sha256) for path, facts in manifest.files.items()}
    inner = wanted.pop(OUTSIDE, None)
    if {file.path: (file.size, file.sha256) for file in body.files} != wanted or PRIVATE not in wanted:
        raise DamagedSnapshotError(f"The manifest of {name!r} lists other files than its snapshot; push it again.")
    outside = body.documents[OUTSIDE]
    if inner != (len(outside), hashlib.sha256(outside).hexdigest()):
        raise DamagedSnapshotError(
            f"The manifest of {name!r} holds another {OUTSIDE} than its snapshot; push it again."
        )
    _check_folders([*wanted, OUTSIDE], name)
    return manifest


def _check_folders(paths: Sequence[str], name: str) -> None:
    """Check that no file is also the folder of another."""
    files = set(paths)
    for path in paths:
        parts = path.split("/")
        if any("/".join(parts[:length]) in files for length in range(1, len(parts))):
            raise DamagedSnapshotError(f"The manifest of {name!r} lists {path!r:.80} below a file; push it again.")
