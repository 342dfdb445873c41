"""`torpor snapshot list` and `prune`."""

from __future__ import annotations

import json
import os
import re
import time
from typing import TYPE_CHECKING

from rich.table import Table

from torpor.cli.console import console as make_console
from torpor.cli.console import shown
from torpor.cli.terminal import result
from torpor.errors import ConfigurationError, SnapshotError
from torpor.platforms.local.running import snapshot_users
from torpor.snapshots.catalog import Choice, catalog, chosen, clear_left_overs, removed
from torpor.snapshots.kept_weights import kept_files
from torpor.snapshots.store.folder import real_folder
from torpor.snapshots.store.paths import cache_root
from torpor.values.plain_text import one_line

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.console import Console

    from torpor.snapshots.catalog import Entry, Removal
    from torpor.snapshots.kept_weights import KeptFile

__all__ = ["run_list", "run_prune", "seconds_of"]

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)([smhdw])")
_NAME_WIDTH = 16
_MOST_KEPT = 1_000_000


def run_list(folders: Sequence[Path], *, as_json: bool) -> None:
    """Show every snapshot with its size and whether it fits."""
    _check_folders(folders)
    entries = catalog(folders, users=snapshot_users)
    kept = kept_files()
    if as_json:
        told = {
            "snapshots": [_as_json(entry) for entry in entries],
            "kept": [_kept_json(file) for file in kept],
            "bytes": _total(entries, kept),
        }
        result(json.dumps(told, indent=2))
        return
    console = make_console(results=True)
    if not entries and not kept:
        console.print("there are no snapshots")
        return
    console.print(_table(entries))
    for entry in entries:
        for line in _remarks(entry):
            console.print(f"{one_line(entry.folder)}: {line}", soft_wrap=True)
    for file in kept:
        needed = (
            ", ".join(one_line(folder) for folder in file.snapshots) or "no snapshot (torpor snapshot weights --prune)"
        )
        console.print(f"kept weights {one_line(file.path)} {_size(file.size)}: {needed}", soft_wrap=True)
    console.print(f"{_size(_total(entries, kept))} in all")


def run_prune(
    folders: Sequence[Path], *, keep: int | None, older_than: str | None, unfit: bool, dry_run: bool, as_json: bool
) -> None:
    """Remove snapshots that no server uses, and say what was freed.

    Raises:
        ConfigurationError: no option says which, or one is wrong.
        SnapshotError: one could not be removed; the others were.
    """
    choice = _choice(keep, older_than, unfit=unfit)
    _check_folders(folders)
    entries = catalog(folders, users=snapshot_users, fit=unfit)
    console = make_console(results=not as_json)
    removals, weights = removed(
        chosen(entries, choice),
        users=snapshot_users,
        pretend=dry_run,
        tell=lambda one: console.print(_removal_text(one, pretend=dry_run), soft_wrap=True),
    )
    cleared = 0 if dry_run else clear_left_overs(entries)
    freed = sum(one.freed for one in removals) + sum(file.size for file in weights)
    if as_json:
        told = {
            "dry_run": dry_run,
            "snapshots": [_removal_json(one) for one in removals],
            "kept": [_kept_json(file) for file in weights],
            "left_overs": cleared,
            "freed_bytes": freed,
        }
        result(json.dumps(told, indent=2))
    else:
        _show_end(console, weights, cleared, freed, dry_run=dry_run)
    if failed := [one for one in removals if one.stays and not one.stays.startswith("in use")]:
        raise SnapshotError(
            f"{len(failed)} of {len(removals)} snapshots could not be removed; the reason of each stands above."
        )


def _choice(keep: int | None, older_than: str | None, *, unfit: bool) -> Choice:
    """Which snapshots to remove.

    Raises:
        ConfigurationError: no option says which, or one is wrong.
    """
    if keep is not None and not 0 <= keep <= _MOST_KEPT:
        raise ConfigurationError(f"--keep is {keep}; allowed are 0 to {_MOST_KEPT} snapshots of each deployment.")
    choice = Choice(keep, None if older_than is None else seconds_of("--older-than", older_than), unfit)
    if choice == Choice():
        raise ConfigurationError(
            "Nothing says which snapshots to remove: give --keep N, --older-than 7d or --unfit (more than one is allowed); "
            "--dry-run shows what would go. `torpor snapshot rm DIR` removes a single one."
        )
    return choice


def seconds_of(option: str, text: str) -> float:
    """Seconds of a duration as a user writes it: a number and s, m, h, d or w.

    Raises:
        ConfigurationError: it is no duration.
    """
    if not (match := _DURATION.fullmatch(text)):
        raise ConfigurationError(
            f"{option} is {text!r}; allowed are a number and one of s, m, h, d, w, e.g. 12h or 7d."
        )
    return float(match[1]) * _SECONDS[match[2]]


def _check_folders(folders: Sequence[Path]) -> None:
    for folder in folders:
        if not os.path.isdir(folder):  # noqa: PTH112 - False for a name that is too long, too
            raise ConfigurationError(f"{folder} is no folder; name a snapshot, or a folder that holds some.")


def _table(entries: Sequence[Entry]) -> Table:
    """One row for each snapshot, within 80 columns if names allow it; one in the default folder is shown by its name."""
    table = Table(box=None, pad_edge=False)
    table.add_column("name", overflow="fold", min_width=_NAME_WIDTH)
    table.add_column("deployment", overflow="fold", min_width=len("deployment"))
    table.add_column("size", justify="right", no_wrap=True)
    for name in ("captured", "last used", "fits"):
        table.add_column(name, no_wrap=True)
    for entry in entries:
        default = entry.folder.parent == real_folder(cache_root() / "snapshots")
        cells = (
            entry.folder.name if default else str(entry.folder),
            entry.deployment,
            _size(entry.size) if entry.size else "",
            "" if entry.captured_at is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.captured_at)),
            _age(entry.used_at) or ("never" if entry.kind == "snapshot" else ""),
            _fits(entry),
        )
        table.add_row(*(shown(cell) for cell in cells))
    return table


def _fits(entry: Entry) -> str:
    words = {"foreign": "foreign", "damaged": "damaged"}
    return words.get(entry.kind) or {True: "yes", False: "no", None: "unknown"}[entry.fits]


def _remarks(entry: Entry) -> list[str]:
    """What does not fit into the table."""
    lines = [entry.problem] if entry.problem else []
    lines += [f"does not fit: {reason}" for reason in entry.misfits or ()]
    lines += [entry.unasked] if entry.unasked else []
    return lines + [f"in use by {user}" for user in entry.used_by]


def _age(at: float | None) -> str:
    """How long ago, in the largest unit; empty for never."""
    if at is None:
        return ""
    ago = max(0.0, time.time() - at)
    unit = next((unit for unit in "dhm" if ago >= _SECONDS[unit]), "s")
    return f"{ago // _SECONDS[unit]:.0f} {'min' if unit == 'm' else unit} ago"


def _size(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"  # noqa: PLR2004 - a billion


def _total(entries: Sequence[Entry], kept: Sequence[KeptFile]) -> int:
    """Snapshots, and kept weights once each."""
    return sum(entry.size for entry in entries) + sum(file.size for file in kept)


def _as_json(entry: Entry) -> dict[str, object]:
    return {
        "folder": str(entry.folder),
        "kind": entry.kind,
        "problem": entry.problem,
        "deployment": entry.deployment,
        "app_file": entry.app_file,
        "bytes": entry.size,
        "captured_at": entry.captured_at,
        "used_at": entry.used_at,
        "fits": entry.fits,
        "misfits": None if entry.misfits is None else list(entry.misfits),
        "unknown_because": entry.unasked,
        "used_by": list(entry.used_by),
        "kept": [str(path) for path in entry.kept],
    }


def _kept_json(file: KeptFile) -> dict[str, object]:
    return {"path": str(file.path), "bytes": file.size, "snapshots": [str(folder) for folder in file.snapshots]}


def _removal_json(one: Removal) -> dict[str, object]:
    return {
        "folder": str(one.entry.folder),
        "deployment": one.entry.deployment,
        "reason": one.reason,
        "freed_bytes": one.freed,
        "stays": one.stays,
    }


def _removal_text(one: Removal, *, pretend: bool) -> str:
    folder = one_line(one.entry.folder)
    if one.stays:
        return f"kept {folder}: {one.stays} ({one.reason})"
    return f"{'would remove' if pretend else 'removed'} {folder} ({_size(one.freed)}): {one.reason}"


def _show_end(console: Console, weights: Sequence[KeptFile], cleared: int, freed: int, *, dry_run: bool) -> None:
    would = "would " if dry_run else ""
    for file in weights:
        text = f"{would}delete{'' if dry_run else 'd'} kept weights {one_line(file.path)} ({_size(file.size)})"
        console.print(text, soft_wrap=True)
    if cleared:
        console.print(f"cleared {cleared} folder(s) that killed captures left")
    console.print(f"{would}free{'' if dry_run else 'd'} {_size(freed)}")
