"""The commands of `torpor snapshot` and their options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from torpor.cli import actions
from torpor.cli.options import (
    AppFile,
    AsJson,
    CommandGroup,
    Gpus,
    Host,
    Identity,
    Jobs,
    Port,
    Prove,
    Records,
    TrustedKeys,
    Unsigned,
)

__all__ = ["snapshot"]

snapshot = typer.Typer(
    cls=CommandGroup,
    help="Capture a sleeping server into a folder, and restore any number of replicas from it (CRIU).",
    no_args_is_help=True,
)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The snapshot's folder.")]
SnapshotUrl = Annotated[
    str,
    typer.Argument(
        metavar="URL", help="A store and a name in it: s3://bucket/snapshots/qwen3 or /mnt/snapshots/qwen3."
    ),
]
Restorable = Annotated[
    str,
    typer.Argument(metavar="DIR|URL", help="The snapshot's folder, or a URL of a store: it is pulled if it fits."),
]
Store = Annotated[str, typer.Argument(metavar="URL", help="A store: s3://bucket/snapshots or a folder.")]
Folders = Annotated[
    list[Path] | None,
    typer.Argument(metavar="[DIR...]", help="Further snapshots, or folders that hold some, besides the known ones."),
]


@snapshot.command()
def create(
    app_file: AppFile,
    folder: Folder,
    *,
    mode: Annotated[str, typer.Option(help="root or rootless; by default what works here, rootless first.")] = "",
    copy_memory: Annotated[
        bool,
        typer.Option("--copy-memory", help="Copy memory into each replica; the folder is then no longer needed."),
    ] = False,
    prove: Prove = None,
    gpus: Gpus = "",
    as_json: AsJson = False,
) -> None:
    """Start an app cold, put it to sleep and capture it into a folder."""
    actions.run_create(app_file, folder, mode=mode, copy_memory=copy_memory, as_json=as_json, prove=prove, gpus=gpus)


@snapshot.command()
def inspect(folder: Folder, as_json: AsJson = False) -> None:
    """Show what a snapshot holds, and whether it fits this machine and its app as it is now.

    Exit code 0: it fits; 1: it does not fit, every reason is listed; 2: there is no usable snapshot.
    """
    actions.run_inspect(folder, as_json=as_json)


@snapshot.command()
def restore(
    folder: Restorable,
    *,
    trust: TrustedKeys = None,
    unsigned: Unsigned = False,
    identity: Identity = None,
    replicas: Annotated[int, typer.Option(help="How many replicas to restore.")] = 1,
    host: Host = None,
    port: Port = None,
    verify: Annotated[str, typer.Option(help="fast: sizes and first bytes; full: hashes, too.")] = "fast",
    records: Records = None,
    gpus: Gpus = "",
    even_if_bad: Annotated[
        bool,
        typer.Option("--even-if-bad", help="Also restore a snapshot that is marked bad: its replicas did not wake."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Restore replicas of a snapshot and serve until Ctrl-C, SIGTERM or a closed terminal, which end it as they end `up`.

    A replica that ends by itself is restored again, the first time at once. SIGHUP restores those that wait or were given up.
    """
    actions.run_restored(
        folder,
        trust=trust,
        unsigned=unsigned,
        identity=identity,
        replicas=replicas,
        host=host,
        port=port,
        verify=verify,
        as_json=as_json,
        records=records or "",
        gpus=gpus,
        even_if_bad=even_if_bad,
    )


@snapshot.command("list")
def list_snapshots(folders: Folders = None, as_json: AsJson = False) -> None:
    """List the snapshots here: deployment, size, time of the capture and of the last use, and whether each fits.

    Those under the cache root, those that `create` and `up` put elsewhere, and kept weights.
    """
    actions.run_list(folders or [], as_json=as_json)


@snapshot.command("prune")
def prune_snapshots(
    folders: Folders = None,
    *,
    keep: Annotated[
        int | None, typer.Option(metavar="N", help="Keep the N newest of each deployment, remove the others.")
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option(metavar="AGE", help="Remove those neither captured nor used since, e.g. 7d; with --keep, N stay."),
    ] = None,
    unfit: Annotated[
        bool, typer.Option("--unfit", help="Remove those that are damaged, or do not fit this machine and their app.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be removed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove snapshots, and the kept weights that no other snapshot needs.

    It never removes one that a running server uses, nor anything that Torpor did not write for this user.
    """
    actions.run_prune(folders or [], keep=keep, older_than=older_than, unfit=unfit, dry_run=dry_run, as_json=as_json)


@snapshot.command()
def rm(
    snapshots: Annotated[
        list[str], typer.Argument(metavar="DIR|URL...", help="Folders of snapshots, or URLs of snapshots in a store.")
    ],
) -> None:
    """Delete snapshots; running replicas serve on.

    For a URL, the chunks that no other snapshot of the store needs are removed, too, as `torpor snapshot gc` does it.
    """
    actions.run_rm(snapshots)


@snapshot.command()
def weights(
    prune: Annotated[bool, typer.Option("--prune", help="Delete those that no snapshot needs.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the weights that are kept outside of snapshots, with the snapshots that need them."""
    actions.run_weights(delete=prune, as_json=as_json)


@snapshot.command()
def setup(
    mirror: Annotated[str, typer.Option(help="URL of a Debian mirror; by default the one that apt uses here.")] = "",
    again: Annotated[bool, typer.Option("--again", help="Download CRIU even if it is there.")] = False,
) -> None:
    """Install CRIU into a private folder of this user, and try it; it needs no root and changes nothing in the system."""
    actions.run_setup(mirror=mirror, again=again)


@snapshot.command()
def compare(
    app_file: AppFile,
    *,
    restores: Annotated[int, typer.Option(help="How many restores to time.")] = 3,
    host: Host = None,
    port: Port = None,
    gpus: Gpus = "",
    as_json: AsJson = False,
) -> None:
    """Time one cold start against restores of the same app: process start to first token."""
    actions.run_compare(app_file, restores=restores, as_json=as_json, host=host, port=port, gpus=gpus)


@snapshot.command()
def push(
    folder: Folder,
    url: SnapshotUrl,
    *,
    key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Sign with this Ed25519 key (torpor key signing).", show_default=False),
    ] = None,
    recipient: Annotated[
        list[str] | None,
        typer.Option(
            metavar="AGE", help="Encrypt for this age recipient, age1...; may be repeated.", show_default=False
        ),
    ] = None,
    recipients_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Encrypt for the age recipients in this file.", show_default=False),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Send every chunk, also those that the store has.")] = False,
    jobs: Jobs = 0,
    as_json: AsJson = False,
) -> None:
    """Push a snapshot to a store that other machines reach: only chunks that the store lacks are sent.

    The manifest is written last, so a push that was interrupted leaves nothing half; run it again, and it goes on.
    """
    actions.run_push(
        folder,
        url,
        key=key,
        recipients=recipient or [],
        recipients_file=recipients_file,
        again=again,
        jobs=jobs,
        as_json=as_json,
    )


@snapshot.command()
def pull(
    url: SnapshotUrl,
    folder: Folder,
    *,
    trust: TrustedKeys = None,
    unsigned: Unsigned = False,
    identity: Identity = None,
    any_machine: Annotated[
        bool,
        typer.Option("--any-machine", help="Pull it even if it does not fit this machine; without its kept weights."),
    ] = False,
    jobs: Jobs = 0,
    as_json: AsJson = False,
) -> None:
    """Pull a snapshot from a store into a folder, if it fits this machine; every chunk is checked.

    A snapshot is memory that will run as you. So it has to be signed by a key that you trust, or lie in a folder that only you can
    write, or you say --unsigned.
    """
    actions.run_pull(
        url,
        folder,
        trust=trust,
        unsigned=unsigned,
        identity=identity,
        any_machine=any_machine,
        jobs=jobs,
        as_json=as_json,
    )


@snapshot.command()
def gc(
    store: Store,
    *,
    older_than: Annotated[
        str, typer.Option(metavar="AGE", help="Chunks that were written later stay: an interrupted push may need them.")
    ] = "1d",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be removed.")] = False,
    jobs: Jobs = 0,
    as_json: AsJson = False,
) -> None:
    """Remove the chunks of a store that no snapshot needs.

    It removes nothing while a push is at work there.
    """
    actions.run_gc(store, older_than=older_than, dry_run=dry_run, jobs=jobs, as_json=as_json)


@snapshot.command()
def ls(
    store: Store,
    *,
    trust: TrustedKeys = None,
    as_json: AsJson = False,
) -> None:
    """List the snapshots in a store: engine, model, GPUs, sizes, who signed, whether encrypted."""
    actions.run_ls(store, trust=trust, as_json=as_json)
