"""`torpor snapshot push`, `pull` and `ls`, and the keys that they take."""

from __future__ import annotations

import json
import shlex
import time
from typing import TYPE_CHECKING

from rich.table import Table

from torpor.cli.console import console as make_console
from torpor.cli.console import shown
from torpor.cli.interrupts import ends_on_sigterm
from torpor.cli.progress import Progress
from torpor.cli.terminal import claim_output, result, say
from torpor.errors import ConfigurationError
from torpor.snapshots.remote.encryption import new_identity, read_recipients
from torpor.snapshots.remote.listing import list_store
from torpor.snapshots.remote.location import location_of, shown_url
from torpor.snapshots.remote.obtaining import bring
from torpor.snapshots.remote.opening import open_remote
from torpor.snapshots.remote.portable import portable
from torpor.snapshots.remote.pull import pull
from torpor.snapshots.remote.push import push
from torpor.snapshots.remote.signature import fingerprint, new_signing_key, read_trust
from torpor.snapshots.remote.store import Store
from torpor.telemetry.events import warnings_only
from torpor.values.plain_text import one_line

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torpor.snapshots.remote.listing import Listed

__all__ = ["run_ls", "run_new_identity", "run_new_signing_key", "run_pull", "run_push"]

_MOST_JOBS = 256


def run_push(
    folder: Path,
    url: str,
    *,
    key: Path | None,
    recipients: Sequence[str],
    recipients_file: Path | None,
    again: bool,
    jobs: int,
    as_json: bool,
) -> None:
    """Push a snapshot, and say what was sent."""
    check_jobs(jobs)
    store = Store(location_of(url).store)
    _begin()
    console = make_console()
    with Progress(console, as_json=as_json).listening():
        store.check_writable()
        to = read_recipients(recipients, recipients_file)
        pushed = push(folder, url, key=key, recipients=to, again=again, jobs=jobs, **portable(folder)._asdict())
    if as_json:
        result(json.dumps({**pushed._asdict(), "label": pushed.label._asdict()}, indent=2))
        return
    console.print(
        f"pushed {one_line(folder)} to {pushed.url} in {pushed.seconds:.1f} s: {pushed.sent} of {pushed.chunks} chunks sent, "
        f"{_size(pushed.sent_bytes)}; {_size(pushed.label.size)} take {_size(pushed.label.stored_size)} in the store",
        markup=False,
        soft_wrap=True,
    )
    console.print(f"pull it: torpor snapshot pull {shlex.quote(pushed.url)} DIR", markup=False, soft_wrap=True)


def run_pull(
    url: str,
    folder: Path,
    *,
    trust: Path | None,
    unsigned: bool,
    identity: Path | None,
    any_machine: bool,
    jobs: int,
    as_json: bool,
) -> None:
    """Pull a snapshot if it fits this machine (or `any_machine` is set), and say what was fetched."""
    check_jobs(jobs)
    _begin()
    console = make_console()
    with Progress(console, as_json=as_json).listening():
        remote = open_remote(url, trust=read_trust(trust, unsigned=unsigned), identity=identity)
        pulled = pull(remote, folder, jobs=jobs) if any_machine else bring(remote, folder, jobs=jobs).pulled
    if as_json:
        told = {"folder": str(pulled.folder), "digest": remote.digest, "signed_by": remote.signed_by}
        result(json.dumps({**pulled._asdict(), **told}, indent=2))
        return
    if pulled.already:
        console.print(f"{one_line(folder)} holds this snapshot already", markup=False, soft_wrap=True)
    else:
        kept = f", {pulled.kept} were here from an interrupted pull" if pulled.kept else ""
        console.print(
            f"pulled {shown_url(url)} to {one_line(folder)} in {pulled.seconds:.1f} s: {pulled.fetched} chunks, "
            f"{_size(pulled.fetched_bytes)}{kept}",
            markup=False,
            soft_wrap=True,
        )
    signer = f"signed by {remote.signed_by}" if remote.signed_by else "not checked against a trusted key"
    console.print(
        f"{signer}; restore it: torpor snapshot restore {shlex.quote(str(folder))}", markup=False, soft_wrap=True
    )


def run_ls(url: str, *, trust: Path | None, as_json: bool) -> None:
    """Show the snapshots of a store."""
    warnings_only()
    entries = list_store(url, trust=read_trust(trust))
    if as_json:
        result(json.dumps({"store": shown_url(url), "snapshots": [_as_json(entry) for entry in entries]}, indent=2))
        return
    console = make_console(results=True)
    if not entries:
        console.print(f"there are no snapshots in {shown_url(url)}", markup=False, soft_wrap=True)
        return
    console.print(_table(entries))
    for entry in entries:
        if entry.problem:
            console.print(f"{one_line(entry.name)}: {one_line(entry.problem)}", markup=False, soft_wrap=True)


def run_new_signing_key(file: Path, *, as_json: bool) -> None:
    """Make a pair of keys, and show the public one."""
    public = new_signing_key(file)
    if as_json:
        result(json.dumps({"file": str(file), "public": public, "fingerprint": fingerprint(public)}))
        return
    result(public)
    say(f"The private key is in {file}: torpor snapshot push DIR URL --key {shlex.quote(str(file))}")
    say(
        f"Whoever pulls needs the line above, which is in {file}.pub: torpor snapshot pull URL DIR --trust {file.name}.pub"
    )


def run_new_identity(file: Path, *, as_json: bool) -> None:
    """Make an age identity, and show its recipient."""
    recipient = new_identity(file)
    if as_json:
        result(json.dumps({"file": str(file), "recipient": recipient}))
        return
    result(recipient)
    say("Whoever pushes needs the line above: torpor snapshot push DIR URL --recipient age1...")
    say(f"The identity is in {file}: torpor snapshot pull URL DIR --identity {shlex.quote(str(file))}")


def _begin() -> None:
    claim_output()
    warnings_only()
    ends_on_sigterm()


def check_jobs(jobs: int) -> None:
    """Check `--jobs`.

    Raises:
        ConfigurationError: it is out of range.
    """
    if not 0 <= jobs <= _MOST_JOBS:
        raise ConfigurationError(f"--jobs is {jobs}; allowed are 1 to {_MOST_JOBS}, or 0 for what suits this machine.")


def _table(entries: Sequence[Listed]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("name", "captured", "engine", "model", "GPUs"):
        table.add_column(name, overflow="fold")
    for name in ("size", "stored"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("signed", "encrypted"):
        table.add_column(name, overflow="fold")
    for entry in entries:
        table.add_row(*(shown(cell) for cell in _cells(entry)))
    return table


def _cells(entry: Listed) -> tuple[str, ...]:
    label = entry.label
    if label is None:
        return entry.name, "damaged", "", "", "", "", "", "", ""
    captured = time.strftime("%Y-%m-%d %H:%M", time.localtime(label.captured_at))
    kinds = [f"{label.gpus.count(kind)} x {kind}" for kind in dict.fromkeys(label.gpus)]
    signed = f"{entry.signer[:15]}{'' if entry.trusted else ' (not trusted)'}" if entry.signer else "no"
    return (
        entry.name,
        captured,
        label.engine,
        label.model,
        ", ".join(kinds) or "none",
        _size(label.size),
        _size(label.stored_size),
        signed,
        "yes" if label.encrypted else "no",
    )


def _as_json(entry: Listed) -> dict[str, object]:
    return {
        "name": entry.name,
        "damaged": entry.problem or None,
        "signer": entry.signer or None,
        "trusted": entry.trusted,
        "label": entry.label._asdict() if entry.label else None,
    }


def _size(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"  # noqa: PLR2004 - a billion
