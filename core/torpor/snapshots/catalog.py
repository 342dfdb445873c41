"""List the snapshots of this machine, and remove some of them.

    catalog    every snapshot: under the cache root, noted by a capture, or in given folders; it never raises
    chosen     the snapshots that `torpor snapshot prune` is asked to remove
    removed    removes them one by one, with the kept weights that no other snapshot needs

To find out whether one fits, `torpor snapshot inspect` runs in its own process with a deadline: it imports the snapshot's app
file, which may print, exit or hang.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torpor.engine.child_process import run_child
from torpor.errors import SnapshotError
from torpor.snapshots.kept_weights import kept_files, prune
from torpor.snapshots.store.folder import real_folder
from torpor.snapshots.store.found import found_instead
from torpor.snapshots.store.hold import unused
from torpor.snapshots.store.index import known_snapshots, remove
from torpor.snapshots.store.manifest import MANIFEST, read_manifest
from torpor.snapshots.store.outside import outside_files
from torpor.snapshots.store.paths import cache_root
from torpor.snapshots.store.placing import left_overs, recover
from torpor.values.plain_text import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from torpor.snapshots.kept_weights import KeptFile
    from torpor.snapshots.store.manifest import Manifest

    Users = Callable[[], Sequence[tuple[str, Path]]]
    """Gives the servers that use a snapshot now: each in words, with the snapshot's folder without links."""

__all__ = ["Choice", "Entry", "Removal", "catalog", "chosen", "clear_left_overs", "disk_bytes", "removed"]

_INSPECTED_FOR_S = 60.0
_AT_ONCE = 4
_FRESH_S = 1.0


class Entry(NamedTuple):
    """A folder among the snapshots.

    Attributes:
        folder: without links.
        kind: `snapshot`; `damaged` if it cannot be restored on any machine; `foreign` if it is not a snapshot of this user.
        problem: what is wrong with a damaged or foreign one; empty otherwise.
        size: bytes on the disk, without kept weights; 0 for a foreign one.
        kept: files outside of it that its engine keeps for it (`torpor snapshot weights`).
        used_by: servers that use it now, in words.
        deployment: name; empty if unknown.
        app_file: file of the deployment.
        captured_at: Unix time, seconds; None if unknown.
        used_at: Unix time of its last restore; None for none.
        misfits: why it does not fit here, a sentence each; None if that was not asked, or not found out.
        unasked: why `misfits` is None.
    """

    folder: Path
    kind: str
    problem: str = ""
    size: int = 0
    kept: tuple[Path, ...] = ()
    used_by: tuple[str, ...] = ()
    deployment: str = ""
    app_file: str = ""
    captured_at: float | None = None
    used_at: float | None = None
    misfits: tuple[str, ...] | None = None
    unasked: str = ""

    @property
    def fits(self) -> bool | None:
        """Whether it can be restored here; None if unknown."""
        if self.kind != "snapshot":
            return False
        return None if self.misfits is None else not self.misfits

    @property
    def touched_at(self) -> float:
        """When it was last used, or captured."""
        return max(self.used_at or 0.0, self.captured_at or 0.0)


class Choice(NamedTuple):
    """Which snapshots to remove.

    Attributes:
        keep: all but so many of the newest of each deployment; None for no such limit.
        older_than_s: those that were neither used nor captured for so many seconds; None for no such limit.
        unfit: those that are damaged or do not fit here.
    """

    keep: int | None = None
    older_than_s: float | None = None
    unfit: bool = False


class Removal(NamedTuple):
    """The outcome for one chosen snapshot.

    Attributes:
        entry: the snapshot.
        reason: why it was chosen.
        freed: bytes; 0 if it stays.
        stays: why it stays; empty if it was removed.
    """

    entry: Entry
    reason: str
    freed: int
    stays: str = ""


def catalog(folders: Iterable[Path] = (), *, users: Users, fit: bool = True) -> list[Entry]:
    """Every snapshot, and whatever else lies among them, in the order of their paths.

    Args:
        folders: further snapshots, or folders with snapshots.
        users: gives the servers that use a snapshot now.
        fit: find out whether each fits; that takes half a second for four.
    """
    found = users()
    kept = {path for file in kept_files() for path in (file.path, file.path.resolve())}
    entries = [_entry(folder, found, kept) for folder in _folders(folders)]
    return _asked(entries) if fit else entries


def chosen(entries: Sequence[Entry], choice: Choice, *, now: float | None = None) -> list[tuple[Entry, str]]:
    """The snapshots to remove, each with the reason, in the order of their paths.

    `keep` does not count unfit ones if they are removed anyway. With both `keep` and `older_than_s`, the newest `keep` stay at
    any age, and the others are removed only if they are old.

    Args:
        entries: from `catalog`.
        choice: which to remove.
        now: Unix time, seconds.
    """
    now = time.time() if now is None else now
    reasons: dict[Path, str] = {}
    rest: dict[str, list[Entry]] = {}
    for entry in entries:
        if choice.unfit and entry.fits is False and entry.kind != "foreign":
            reasons[entry.folder] = f"does not fit: {entry.problem or (entry.misfits or ('?',))[0]}"
        elif entry.kind == "snapshot":
            rest.setdefault(entry.deployment, []).append(entry)
    for same in rest.values():
        newest_first = sorted(same, key=lambda entry: entry.captured_at or 0.0, reverse=True)
        for entry in newest_first[choice.keep or 0 :]:
            old = choice.older_than_s is not None and now - entry.touched_at > choice.older_than_s
            if old:
                reasons[entry.folder] = f"not used for {(now - entry.touched_at) / 86400:.1f} days"
            elif choice.keep is not None and choice.older_than_s is None:
                reasons[entry.folder] = f"not among the newest {choice.keep} of {entry.deployment!r}"
    return [(entry, reasons[entry.folder]) for entry in entries if entry.folder in reasons]


def removed(
    picked: Sequence[tuple[Entry, str]],
    *,
    users: Users,
    pretend: bool = False,
    tell: Callable[[Removal], None] | None = None,
) -> tuple[list[Removal], tuple[KeptFile, ...]]:
    """Remove snapshots that nobody uses, and the kept weights that only they needed.

    Args:
        picked: from `chosen`.
        users: gives the servers that use a snapshot now; asked before each removal.
        pretend: remove nothing, only say what would be removed.
        tell: called with each outcome.

    Returns:
        The outcome for each, and the deleted weights.
    """
    removals = []
    gone: set[Path] = set()
    for entry, reason in picked:
        removal = _removed(entry, reason, users, pretend=pretend)
        removals.append(removal)
        if not removal.stays:
            gone.add(entry.folder)
        if tell:
            tell(removal)
    theirs = {path for removal in removals if not removal.stays for path in removal.entry.kept}
    if pretend:
        return removals, tuple(file for file in kept_files() if file.path in theirs and set(file.snapshots) <= gone)
    return removals, prune(theirs) if theirs else ()


def clear_left_overs(entries: Sequence[Entry]) -> int:
    """Remove what killed captures and removals left: under the cache root all of it, elsewhere beside these snapshots.

    A folder that somebody may still write stays; see `torpor.snapshots.store.placing.recover`.

    Returns:
        The number of removed folders.
    """
    default = cache_root() / "snapshots"
    targets = {entry.folder for entry in entries if entry.kind != "foreign"} | set(left_overs(default).values())
    parents = {target.parent for target in targets}
    before = sum(len(left_overs(parent)) for parent in parents)
    for target in targets:
        recover(target)
    return before - sum(len(left_overs(parent)) for parent in parents)


def disk_bytes(folder: Path) -> int:
    """Bytes that a folder takes on the disk: links are not followed, a file with several names counts once."""
    seen: set[tuple[int, int]] = set()
    total = 0
    waiting = [folder]
    while waiting:
        with contextlib.suppress(OSError):
            for entry in os.scandir(waiting.pop()):
                with contextlib.suppress(OSError):
                    facts = entry.stat(follow_symlinks=False)
                    if (facts.st_dev, facts.st_ino) not in seen:
                        seen.add((facts.st_dev, facts.st_ino))
                        total += facts.st_blocks * 512
                        waiting += [Path(entry.path)] if stat.S_ISDIR(facts.st_mode) else []
    return total


def _folders(given: Iterable[Path]) -> list[Path]:
    """Known snapshots, every folder in the default place, and the given folders or the folders in them."""
    found = {real_folder(folder) for folder in known_snapshots()}
    for folder in (cache_root() / "snapshots", *map(real_folder, given)):
        if os.path.exists(folder / MANIFEST):  # noqa: PTH110 - also False for a folder that this user may not open
            found.add(folder)
        else:
            found |= {real_folder(inner) for inner in _inside(folder)}
    return sorted(found)


def _inside(folder: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            with contextlib.suppress(OSError):  # a link to itself: the entries after it are still listed
                if entry.is_dir() and not entry.name.startswith("."):
                    yield folder / entry.name


def _entry(folder: Path, users: Sequence[tuple[str, Path]], kept: set[Path]) -> Entry:
    if reason := found_instead(folder):
        return Entry(folder, "foreign", plain(reason))
    used_by = tuple(name for name, where in users if where == folder)
    size, used_at = disk_bytes(folder), _changed(folder)
    try:
        manifest = read_manifest(folder)
    except SnapshotError as error:
        return Entry(folder, "damaged", plain(str(error)), size, _kept(folder, kept), used_by, used_at=used_at)
    return Entry(
        folder,
        "snapshot",
        size=size,
        kept=_kept(folder, kept),
        used_by=used_by,
        deployment=manifest.deployment.name,
        app_file=manifest.app_file,
        captured_at=manifest.captured_at,
        used_at=_used(manifest, used_at),
    )


def _used(manifest: Manifest, changed_at: float | None) -> float | None:
    """When a snapshot was last used: a capture sets the folder's time to its own (`torpor.snapshots.store.hold.Hold`)."""
    return changed_at if changed_at is not None and changed_at - manifest.captured_at > _FRESH_S else None


def _changed(folder: Path) -> float | None:
    try:
        return folder.stat().st_mtime
    except OSError:
        return None


def _kept(folder: Path, kept: set[Path]) -> tuple[Path, ...]:
    if not kept:
        return ()
    with contextlib.suppress(SnapshotError):
        return tuple(sorted(kept & {Path(name) for name in outside_files(folder)}))
    return ()


def _asked(entries: Sequence[Entry]) -> list[Entry]:
    """The entries, with their misfits."""
    asked = list(entries)
    waiting = [at for at, entry in enumerate(entries) if entry.kind == "snapshot"]
    taking = threading.Lock()

    def ask() -> None:
        while True:
            with taking:
                if not waiting:
                    return
                at = waiting.pop(0)
            misfits, unasked = _misfits(entries[at].folder)
            asked[at] = entries[at]._replace(misfits=misfits, unasked=unasked)

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(min(_AT_ONCE, len(waiting)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return asked


def _misfits(folder: Path) -> tuple[tuple[str, ...] | None, str]:
    """What does not fit, or why that is unknown."""
    argv = [sys.executable, "-m", "torpor.cli", "snapshot", "inspect", str(folder), "--json"]
    try:
        told = run_child(argv, timeout_s=_INSPECTED_FOR_S)
    except subprocess.TimeoutExpired:
        return None, f"its app file was not read within {_INSPECTED_FOR_S:g} s"
    except OSError as error:
        return None, plain(f"it could not be inspected: {type(error).__name__}: {error}")
    return _read_misfits(told)


def _read_misfits(told: subprocess.CompletedProcess[bytes]) -> tuple[tuple[str, ...] | None, str]:
    with contextlib.suppress(ValueError, RecursionError):
        answer = json.loads(told.stdout)
        if isinstance(answer, dict) and isinstance(misfits := answer.get("misfits"), list):
            return tuple(plain(str(one)) for one in misfits), ""
    said = told.stderr.decode(errors="replace").strip().splitlines()
    return None, plain(f"it could not be inspected: {said[-1] if said else f'exit code {told.returncode}'}")


def _removed(entry: Entry, reason: str, users: Users, *, pretend: bool) -> Removal:
    """Remove one, unless somebody uses it now."""
    with unused(entry.folder) as nobody:
        used_by = [name for name, where in users() if where == entry.folder]
        if used_by or not nobody:
            return Removal(entry, reason, 0, f"in use by {', '.join(used_by) or 'a process'}")
        if not pretend:
            try:
                remove(entry.folder)
            except SnapshotError as error:
                gone = not os.path.lexists(entry.folder)
                return Removal(entry, reason, 0, "" if gone else plain(str(error)))
    return Removal(entry, reason, entry.size)
