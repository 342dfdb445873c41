"""Open a snapshot of a store: read its manifest, check who signed it. No chunk is fetched."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torpor.snapshots.remote.values import Trust

if TYPE_CHECKING:
    from pathlib import Path

    from torpor.snapshots.remote.values import RemoteSnapshot

__all__ = ["open_remote"]


def open_remote(url: str, *, trust: Trust = Trust(), identity: Path | None = None) -> RemoteSnapshot:  # noqa: B008
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
    raise NotImplementedError(url, trust, identity)
