"""`torpor snapshot rm` of folders and of snapshots in a store, and `torpor snapshot gc`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from torpor.cli.catalog import seconds_of
from torpor.cli.console import console as make_console
from torpor.cli.interrupts import ends_on_sigterm
from torpor.cli.snapshot import remove_folder
from torpor.cli.store import check_jobs
from torpor.cli.terminal import claim_output, result
from torpor.errors import StoreError
from torpor.snapshots import remote
from torpor.snapshots.remote.location import location_of, names_store, shown_url
from torpor.telemetry.events import warnings_only

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torpor.snapshots.remote.garbage import Collected

__all__ = ["run_gc", "run_rm"]


def run_rm(targets: Sequence[str]) -> None:
    """Remove snapshots: folders of this machine, and snapshots of stores with the chunks that no other needs.

    Raises:
        ConfigurationError: a URL is wrong; nothing was removed.
        SnapshotError: one cannot be removed; those before it were.
    """
    for target in filter(names_store, targets):
        location_of(target)
    stores = dict.fromkeys(store for target in targets if (store := _removed(target)))
    for store in stores:
        _clear(store)


def run_gc(url: str, *, older_than: str, dry_run: bool, jobs: int, as_json: bool) -> None:
    """Remove the chunks of a store that no snapshot needs, and say what was freed."""
    seconds = seconds_of("--older-than", older_than)
    check_jobs(jobs)
    claim_output()
    warnings_only()
    ends_on_sigterm()
    found = remote.collect(url, older_than_s=seconds, dry_run=dry_run, jobs=jobs)
    if as_json:
        result(json.dumps({"store": shown_url(url), "dry_run": dry_run, **found._asdict()}, indent=2))
        return
    console = make_console(results=True)
    console.print(_told(found, shown_url(url), older_than, pretend=dry_run), markup=False, soft_wrap=True)


def _removed(target: str) -> str:
    """Remove one; the URL of its store, empty for a folder."""
    if not names_store(target):
        remove_folder(Path(target))
        return ""
    warnings_only()
    store = remote.remove(target)
    make_console().print(f"removed {shown_url(target)}", markup=False, soft_wrap=True)
    return store


def _clear(store: str) -> None:
    """Remove what the snapshots of a store no longer need; if that has to wait, say why."""
    console = make_console()
    try:
        found = remote.collect(store)
    except StoreError as error:
        console.print(f"its chunks are still there: {error}", markup=False, soft_wrap=True)
    else:
        console.print(_told(found, shown_url(store), "1d", pretend=False), markup=False, soft_wrap=True)


def _told(found: Collected, store: str, older_than: str, *, pretend: bool) -> str:
    done = "would remove" if pretend else "removed"
    text = f"{done} {found.chunks} chunks that no snapshot of {store} needs, {found.removed_bytes / 1e6:.1f} MB"
    if not found.young:
        return text
    return (
        f"{text}; {found.young} more, {found.young_bytes / 1e6:.1f} MB, are younger than {older_than} and stay for now: torpor "
        f"snapshot gc {store}"
    )
