"""One list of the patches that any Python engine needs so that its processes can be captured and restored.

    report = apply_patches(os.environ, snapshot_patches(("1.4.0",)))

Call it first in the launcher, in the server's process and in each process that it spawns: with the start method `spawn` a
spawned process imports the launcher's module again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torpor.engine_patches.named_locks import named_locks
from torpor.engine_patches.orphans import orphans
from torpor.engine_patches.process_identity import process_identity
from torpor.engine_patches.published_files import published_files
from torpor.engine_patches.tqdm_lock import tqdm_lock

if TYPE_CHECKING:
    from torpor.engine_patches.patches import Patch

__all__ = ["snapshot_patches"]


def snapshot_patches(versions: tuple[str, ...] = ()) -> tuple[Patch, ...]:
    """The patches `orphans`, `process-identity`, `tqdm-lock`, `named-locks` and `published-files`.

    Args:
        versions: the engine's versions with which they were tested; for any other version the launcher's log says so.
    """
    return (
        orphans(versions),
        process_identity(versions),
        tqdm_lock(versions),
        named_locks(versions),
        published_files(versions),
    )
