"""`--snapshot` and the snapshot of a restore: a folder of this machine, or the URL of a snapshot in a store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torpor.errors import ConfigurationError
from torpor.snapshots import remote
from torpor.snapshots.remote.location import names_store
from torpor.snapshots.remote.source import Source

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["source_of"]


def source_of(snapshot: str, *, trust: Path | None, unsigned: bool, identity: Path | None) -> Source | None:
    """The snapshot of a store that a command line names; None if it names a folder of this machine.

    Args:
        snapshot: a folder, or a URL with a scheme. A store in a folder is `file:///...`.
        trust: file of public keys.
        unsigned: accept a snapshot that no trusted key signed.
        identity: file with an age identity.

    Raises:
        ConfigurationError: a file of keys cannot be used, or an option is for a store only.
    """
    if names_store(snapshot):
        return Source(snapshot, trust=remote.read_trust(trust, unsigned=unsigned), identity=identity)
    for option, given in (("--trust", trust), ("--unsigned", unsigned), ("--identity", identity)):
        if given:
            raise ConfigurationError(
                f"{option} is for a snapshot of a store, and {snapshot or 'no snapshot'} is none. Name a URL, e.g. "
                "s3://bucket/snapshots/qwen3 or file:///mnt/snapshots/qwen3."
            )
    return None
