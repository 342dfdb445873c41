"""Push a snapshot to a store: chunks first, the manifest last."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torpor.snapshots.remote.values import Pushed

__all__ = ["push"]


def push(
    folder: Path,
    url: str,
    *,
    key: Path | None = None,
    recipients: Sequence[str] = (),
    outside: Sequence[Path] = (),
    documents: Mapping[str, bytes] | None = None,
    again: bool = False,
    jobs: int = 0,
) -> Pushed:
    """Push a snapshot. It replaces a snapshot of that name in one step; a push that was interrupted goes on.

    Args:
        folder: the snapshot.
        url: where it goes: the store, and a name in it as the last part.
        key: file with an Ed25519 private key in OpenSSH's form; signs.
        recipients: age recipients (`age1...`); encrypts for each of them.
        outside: files outside of the folder that are pushed with it, by absolute path.
        documents: further small files for whoever opens the snapshot, by name.
        again: send every chunk, also those that the store has.
        jobs: how many transfers run at once; 0 for a number that suits this machine.

    Raises:
        ConfigurationError: the URL, a key or a recipient is wrong, or a package is missing.
        SnapshotError: the folder holds no snapshot, or a damaged one.
        StoreError: the store cannot be written.
    """
    raise NotImplementedError(folder, url, key, recipients, outside, documents, again, jobs)
