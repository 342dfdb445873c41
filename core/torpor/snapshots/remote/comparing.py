"""Compare this machine with an opened snapshot of a store, before a chunk is fetched: every reason against it at once.

    machine       architecture, kernel, C library, CPU, CRIU, GPUs     (torpor.snapshots.machines, ...gpu_state)
    deployment    the app file as it is here                           (torpor.snapshots.differences)
    files         interpreter, packages, engine, model, open files: by content

A file that a process had open has to be the same byte for byte. Of any other large file pieces are compared, as at every restore.
"""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torpor.errors import SnapshotError, SnapshotMisfitError, TorporError
from torpor.snapshots.facts import known_criu
from torpor.snapshots.fit import loaded_here, unfit_gpus, unfit_machine
from torpor.snapshots.remote.portable import needs_whole, read_needs
from torpor.snapshots.store.fields import parsed
from torpor.snapshots.store.here import Here
from torpor.snapshots.store.known_hashes import known_hashes
from torpor.snapshots.store.manifest import OUTSIDE
from torpor.snapshots.store.outside import changed_now, difference, entries
from torpor.snapshots.store.paths import cache_root
from torpor.values.plain_text import plain

if TYPE_CHECKING:
    from torpor.app_file import App
    from torpor.snapshots.remote.portable import Needs
    from torpor.snapshots.remote.values import RemoteFile, RemoteSnapshot
    from torpor.snapshots.store.known_hashes import KnownHashes
    from torpor.snapshots.store.manifest import Manifest
    from torpor.snapshots.store.outside import Noted

__all__ = ["Compared", "Missing", "compare", "misfit_here", "where"]

_THREADS = 4
_SHOWN = 40
_RECORD = re.compile(r"(.*)/([^/]+)-([^/-]+)\.dist-info/RECORD")
_HUB_FILE = re.compile(r"(.*)/models--([^/]+?)--([^/]+)/(?:snapshots/([^/]+)|blobs)/(.*)")


class Missing(NamedTuple):
    """A file of kept weights that is not here yet.

    Attributes:
        captured: its path at the capture.
        file: in the store.
        target: where it goes.
        before: time of change of another file at that place; None for none.
    """

    captured: str
    file: RemoteFile
    target: Path
    before: int | str | None


class Compared(NamedTuple):
    """The outcome of a comparison.

    Attributes:
        reasons: why the snapshot does not fit, a sentence each; empty if it fits.
        here: where its files lie on this machine, with their times.
        missing: kept weights to fetch.
    """

    reasons: tuple[str, ...]
    here: Here
    missing: tuple[Missing, ...]


def compare(remote: RemoteSnapshot, app: App | None = None) -> Compared:
    """Compare this machine with a snapshot.

    Args:
        remote: opened.
        app: the app to serve; by default the snapshot's own app file is imported.

    Raises:
        DamagedSnapshotError: what the push noted is damaged.
    """
    manifest = remote.manifest
    needs = read_needs(remote.documents, remote.url)
    listed = list(entries(parsed(Path(remote.url) / OUTSIDE, remote.documents.get(OUTSIDE, b""))))
    here = where(manifest, app)
    with known_hashes() as hashes, ThreadPoolExecutor(_THREADS) as pool:
        listed.sort(key=lambda entry: -entry.size)  # a large one that came last would run alone
        looked = pool.map(lambda entry: _look(entry, here, needs, remote, hashes), listed)
        reasons = [*_machine(manifest), *_places(here), *_deployment(manifest, app, here)]
        seen = list(looked)
    files = [one.reason for one in seen if one.reason]
    more = [f"{len(files) - _SHOWN} more files differ"] if len(files) > _SHOWN else []
    changed = {entry.name: one.changed for entry, one in zip(listed, seen, strict=True) if one.changed is not None}
    return Compared(
        reasons=tuple(map(plain, [*reasons, *files[:_SHOWN], *more])),
        here=here._replace(changed=changed),
        missing=tuple(one.missing for one in seen if one.missing),
    )


def misfit_here(url: str, reasons: tuple[str, ...]) -> SnapshotMisfitError:
    """The error for a snapshot of a store that does not fit this machine, with every reason."""
    listed = "\n".join(f"  - {reason}" for reason in reasons)
    return SnapshotMisfitError(
        f"The snapshot {url} does not fit this machine:\n{listed}\nNothing was fetched. Interpreter, packages and app file have to "
        "lie at the same paths, with the same content: use the same image, or the same lock. Or take a snapshot here: "
        "torpor snapshot create"
    )


def where(manifest: Manifest, app: App | None = None) -> Here:
    """Where a snapshot's files lie here: the cache root may be another, everything else is at the same path."""
    then, now = os.path.dirname(manifest.scratch), str(cache_root())  # noqa: PTH120 - see `scratch_folder`
    moved = ((then, now),) if then != now else ()
    app_file = str(app.file) if app and str(app.file) != Here(moved).path(manifest.app_file) else ""
    return Here(moved=moved, app_file=app_file)


def _machine(manifest: Manifest) -> list[str]:
    try:
        found = list(unfit_machine(manifest, known_criu(manifest.machine)))
    except SnapshotError as error:
        found = [str(error)]
    return [*found, *unfit_gpus(manifest), *_user(manifest)]


def _user(manifest: Manifest) -> list[str]:
    if manifest.mode == "root" and os.geteuid() != 0:
        return [
            "it was captured as root, and a restore needs root, too: use sudo, or take a rootless snapshot (--mode rootless)"
        ]
    return []


def _places(here: Here) -> list[str]:
    """Paths of the capture that no sandbox can show here."""
    found = []
    for then, _ in here.moved:
        top = f"/{then.split('/')[1]}"
        if not Path(top).is_dir():
            found.append(f"its cache root was {then}, and there is no folder {top} here to show it in: mkdir {top}")
    return found


def _deployment(manifest: Manifest, app: App | None, here: Here) -> list[str]:
    try:
        return loaded_here(manifest, app.lifecycle if app else None, here)[2]
    except TorporError as error:
        named = (
            ""
            if app
            else f" at {here.path(manifest.app_file)}, where it was at the capture (`torpor up APP` takes another)"
        )
        return [f"its app file{named} cannot be used: {error}"]


class _Seen(NamedTuple):
    """What was found for one entry: why it does not fit, or its time here, or that it has to be fetched."""

    reason: str = ""
    changed: int | str | None = None
    missing: Missing | None = None


def _look(entry: Noted, here: Here, needs: Needs, remote: RemoteSnapshot, hashes: KnownHashes) -> _Seen:
    local = entry._replace(name=here.path(entry.name))
    if entry.name in needs.kept:
        return _kept(local, entry.name, needs, remote, hashes)
    changed = changed_now(local.name)
    if changed is None:
        return _Seen(reason=_missing(local))
    if needs_whole(entry):
        same = os.path.getsize(local.name) == entry.size and hashes.whole(local.name) == needs.whole.get(entry.name)  # noqa: PTH202
        reason = "" if same else f"{local.name}, which the engine has open, differs from the file of the capture"
    else:
        reason = difference(local, full=True, hashes=hashes)
    return _Seen(reason=_named(local, reason), changed=changed)


def _kept(local: Noted, captured: str, needs: Needs, remote: RemoteSnapshot, hashes: KnownHashes) -> _Seen:
    """Kept weights: found in place, or to be fetched. They are named by their content, so another content is damage."""
    pushed = {file.path: file for file in remote.outside}.get(needs.kept[captured])
    if pushed is None or pushed.size != local.size:
        return _Seen(reason=f"{remote.url} lacks its weights {captured}: push it again")
    changed = changed_now(local.name)
    if changed is not None and hashes.whole(local.name) == pushed.sha256:
        return _Seen(changed=changed)
    return _Seen(missing=Missing(captured, pushed, Path(local.name), changed))


def _named(local: Noted, reason: str) -> str:
    """A reason with the package's name, if the file is a package's list of files."""
    if reason and (found := _RECORD.fullmatch(local.name)):
        return f"package {found[2]} {found[3]} in {found[1]} has other files"
    return reason


def _missing(local: Noted) -> str:
    """Why a file is not here, and how to get it."""
    if found := _RECORD.fullmatch(local.name):
        others = sorted(one.name for one in Path(found[1]).glob(f"{found[2]}-*.dist-info"))
        versions = ", ".join(one.removesuffix(".dist-info").rpartition("-")[2] for one in others)
        return f"package {found[2]} was {found[3]} in {found[1]}; here it is {versions or 'not installed'}"
    if found := _HUB_FILE.fullmatch(local.name):
        revision = f" --revision {found[4]}" if found[4] else ""
        repo = f"{found[2]}/{found[3]}"
        cure = f"hf download {repo}{revision} --cache-dir {found[1]}"
        return f"a file of the model {repo} is missing: {local.name}. Download it: {cure}"
    if local.name.endswith("/"):
        return f"the code in {local.name}, which the engine runs, cannot be found"
    return f"{local.name}, which the engine has open or read, cannot be reached"
