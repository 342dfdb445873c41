"""The store from which replicas get their snapshots: which one, and the snapshot in it that fits a node."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torpor.errors import ConfigurationError, TorporError
from torpor.snapshots import remote
from torpor.snapshots.remote.location import has_password, store_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torpor.app_file import App

__all__ = ["NO_STORE", "SnapshotStore", "check_store_files", "check_store_url", "fitting_snapshot"]

_CONTAINER_FIRST = ("abfs://", "abfss://")
"""Azure's URLs have a container before the `@`, and no user."""


class SnapshotStore(NamedTuple):
    """Where replicas get their snapshots. Files have the same path on every node.

    Attributes:
        url: of the store; empty for none: every replica starts cold.
        trust: file of public keys, one of which has to have signed a snapshot; empty for none.
        unsigned: accept a snapshot that no trusted key signed.
        identity: file with the age identity for encrypted snapshots; empty for none.
    """

    url: str = ""
    trust: str = ""
    unsigned: bool = False
    identity: str = ""


NO_STORE = SnapshotStore()
"""Every replica starts cold."""


def check_store_url(url: str) -> None:
    """Refuse a URL that must not stand in a cluster's configuration, or that names no store.

    Args:
        url: of the store; empty for none.

    Raises:
        ConfigurationError: says what to do instead.
    """
    host = url.partition("://")[2].partition("/")[0]
    if has_password(url) or ("@" in host and not url.startswith(_CONTAINER_FIRST)):
        raise ConfigurationError(
            "The URL of the store has a user or a password in it, and everybody who sees the cluster's configuration would "
            "read it. Give credentials to the nodes: a role of the cloud, or the store's own variables."
        )
    if url:
        store_of(url)


def check_store_files(store: SnapshotStore) -> None:
    """Read the files of a store's keys on this machine, which is a node like the others.

    Raises:
        ConfigurationError: one cannot be used, or trusted keys are named although any snapshot is accepted.
    """
    if store.url:
        remote.read_trust(Path(store.trust) if store.trust else None, unsigned=store.unsigned)
    if store.identity:
        remote.read_identities(Path(store.identity))


def fitting_snapshot(app: App, store: SnapshotStore, tell: Callable[[str], None]) -> Path | None:
    """The folder of the newest snapshot that fits this node, fetched if need be; None to start cold.

    Args:
        app: what to serve.
        store: where to look.
        tell: called with one line: where the snapshot is, or why there is none.
    """
    if not store.url or not app.deployment.snapshot:
        return None
    name = app.deployment.name
    try:
        trust = remote.read_trust(Path(store.trust) if store.trust else None, unsigned=store.unsigned)
        identity = Path(store.identity) if store.identity else None
        found = remote.find_fitting(store.url, app, trust=trust, identity=identity)
    except TorporError as error:
        tell(f"{name} starts cold, because the store cannot be used: {error}")
        return None
    if found.obtained is None:
        tell(f"{name} starts cold, because no snapshot fits: {' '.join(found.reasons)}")
        return None
    tell(f"{name}: {found.obtained.described()}")
    return found.obtained.folder
