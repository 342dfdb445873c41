"""`torpor snapshot restore` with every option: of a folder, or of a snapshot in a store, which is pulled first."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict, Unpack

from torpor.cli.restore import run_restore
from torpor.cli.sources import source_of
from torpor.cli.terminal import claim_output, say, say_live
from torpor.snapshots import remote
from torpor.telemetry.events import warnings_only
from torpor.telemetry.progress import listening

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["run_restored"]


class _Options(TypedDict):
    """Options that `run_restore` takes as they are."""

    replicas: int
    port: int | None
    host: str | None
    verify: str
    as_json: bool
    records: Path | str
    gpus: str
    even_if_bad: bool


def run_restored(
    snapshot: str, *, trust: Path | None, unsigned: bool, identity: Path | None, **options: Unpack[_Options]
) -> None:
    """Pull a snapshot of a store if it fits this machine; then restore and serve.

    Args:
        snapshot: a folder, or the URL of a snapshot in a store.
        trust: file of public keys.
        unsigned: accept a snapshot that no trusted key signed.
        identity: file with an age identity.
        **options: see `torpor.cli.restore.run_restore`.
    """
    source = source_of(snapshot, trust=trust, unsigned=unsigned, identity=identity)
    if source is None:
        run_restore(folder=snapshot, **options)
        return
    claim_output()
    warnings_only()
    with listening(say if options["as_json"] else say_live):
        obtained = remote.obtain(source)
    say(obtained.described())
    run_restore(folder=obtained.folder, fetched=obtained.as_json(), **options)
