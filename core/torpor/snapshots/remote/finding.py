"""Find the snapshot of a deployment that fits this machine, in a store that holds those of several kinds of machines."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, NamedTuple

from torpor.errors import DamagedSnapshotError, SnapshotMisfitError, UntrustedSnapshotError
from torpor.snapshots.remote.listing import list_store
from torpor.snapshots.remote.location import shown_url
from torpor.snapshots.remote.obtaining import obtain
from torpor.snapshots.remote.source import Source
from torpor.snapshots.remote.values import Trust

if TYPE_CHECKING:
    from pathlib import Path

    from torpor.app_file import App
    from torpor.snapshots.remote.obtaining import Obtained

__all__ = ["Finding", "find_fitting"]

_NOBODY = Trust()


class Finding(NamedTuple):
    """What a store has for a deployment on this machine.

    Attributes:
        obtained: the newest snapshot that fits, on this machine now; None if none does.
        reasons: why each of the others does not fit, a paragraph each.
    """

    obtained: Obtained | None
    reasons: tuple[str, ...]


def find_fitting(store: str, app: App, *, trust: Trust = _NOBODY, identity: Path | None = None) -> Finding:
    """Get the newest snapshot of a deployment that fits this machine. Nothing of the others is fetched.

    Args:
        store: URL of the store.
        app: what to serve.
        trust: whose snapshots may run here.
        identity: file with an age identity, for encrypted snapshots.

    Raises:
        ConfigurationError: the URL or a key is wrong, or a package is missing.
        SnapshotError: the store cannot be read, or the disk has too little room.
    """
    here, name = platform.machine(), app.deployment.name
    listed = [one for one in list_store(store, trust=trust) if one.label is not None and one.label.deployment == name]
    labels = sorted((one.label for one in listed if one.label), key=lambda label: label.captured_at, reverse=True)
    reasons = []
    for label in labels:
        if label.architecture != here:
            reasons.append(f"{label.name} was captured on {label.architecture}, and this machine is {here}.")
            continue
        source = Source(f"{store.rstrip('/')}/{label.name}", trust, identity)
        try:
            return Finding(obtain(source, app), tuple(reasons))
        except (SnapshotMisfitError, DamagedSnapshotError, UntrustedSnapshotError) as error:
            reasons.append(str(error))
    if not labels:
        reasons.append(f"The store {shown_url(store)} holds no snapshot of {name!r}.")
    return Finding(None, tuple(reasons))
