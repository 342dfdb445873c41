"""Hashes of files that this user has read before, so that a gigabyte of libraries is not read at every pull.

An entry counts only while device, inode, size, time of change and time of the inode's change are the same. The kernel sets the last
one at every write, and no call can set it back. A file that changed less than two seconds before it was read is not noted: a
later change could have the same time.

The file is private, and written by this user only; one that is damaged, or open to others, is ignored.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from torpor._override import override
from torpor.errors import DamagedSnapshotError
from torpor.snapshots.store.outside import Hashes, file_hash, folder_hash, python_files
from torpor.snapshots.store.paths import cache_root
from torpor.snapshots.store.reading import opened_file, opened_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["KnownHashes", "known_hashes", "whole_hash"]

_FILE = "hashes.json"
_SCHEMA = 1
_MOST_ENTRIES = 20_000
_MOST_BYTES = 16 << 20
_SETTLED_NS = 2_000_000_000

_Entries = dict[str, tuple[str, str]]
"""By kind and path: identity and hash. Those that were used last come last."""


class KnownHashes(Hashes):
    """Hashes by what a file was when it was read.

    Args:
        entries: from the disk.
    """

    def __init__(self, entries: _Entries) -> None:
        self._entries = entries
        self.changed = False

    @override
    def file(self, name: str) -> str:
        return self._of(f"file:{name}", lambda: _identity(name), lambda: file_hash(name))

    @override
    def folder(self, name: str) -> str:
        return self._of(f"folder:{name}", lambda: _folder_identity(name), lambda: folder_hash(name))

    def whole(self, name: str) -> str:
        """SHA-256 of a whole file (hex); empty if it cannot be read."""
        return self._of(f"whole:{name}", lambda: _identity(name), lambda: whole_hash(name))

    def entries(self) -> _Entries:
        """What to keep, at most `_MOST_ENTRIES`: those that were used last."""
        return dict(list(self._entries.items())[-_MOST_ENTRIES:])

    def _of(self, key: str, identity: Callable[[], tuple[str, int]], hashed: Callable[[], str]) -> str:
        before, newest = identity()
        known = self._entries.pop(key, None)
        if known and known[0] == before:
            self._entries[key] = known
            return known[1]
        found = hashed()
        if found and before and newest < time.time_ns() - _SETTLED_NS and identity()[0] == before:
            self._entries[key] = (before, found)
            self.changed = True
        return found


@contextlib.contextmanager
def known_hashes() -> Iterator[KnownHashes]:
    """What is known of earlier pulls and pushes; what the block adds is kept, if the disk allows."""
    hashes = KnownHashes(_read())
    try:
        yield hashes
    finally:
        if hashes.changed:
            with contextlib.suppress(OSError):
                _write(hashes.entries())


def whole_hash(name: str) -> str:
    """SHA-256 of a file (hex), read now; empty if it cannot be read."""
    try:
        with open(name, "rb", buffering=0) as stream:  # noqa: PTH123
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except (OSError, ValueError):
        return ""


def _identity(name: str) -> tuple[str, int]:
    """What a file is, without a look into it, and when it changed last (ns); empty if it is not there."""
    try:
        return _facts(os.stat(name))  # noqa: PTH116 - for thousands of files; pathlib would double the time
    except (OSError, ValueError):
        return "", 0


def _folder_identity(name: str) -> tuple[str, int]:
    """The same for the Python files of a folder."""
    digest, newest = hashlib.sha256(), 0
    for path, files in python_files(name):
        for file, facts in files:
            identity, changed = _facts(facts)
            newest = max(newest, changed)
            digest.update(f"{path}{file}\0{identity}\0".encode(errors="surrogateescape"))
    return digest.hexdigest(), newest


def _facts(facts: os.stat_result) -> tuple[str, int]:
    parts = (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
    return ":".join(map(str, parts)), max(facts.st_mtime_ns, facts.st_ctime_ns)


def _read() -> _Entries:
    """The entries on the disk; none if they cannot be trusted."""
    try:
        folder_fd = opened_folder(cache_root())
        try:
            descriptor, facts = opened_file(_FILE, folder_fd)
        finally:
            os.close(folder_fd)
        with os.fdopen(descriptor, "rb") as stream:
            content = json.loads(stream.read(_MOST_BYTES)) if facts.st_size < _MOST_BYTES else None
    except (OSError, ValueError, RecursionError, DamagedSnapshotError):
        return {}
    return _checked(content)


def _checked(content: object) -> _Entries:
    entries: _Entries = {}
    match content:
        case {"schema": 1, "entries": {**listed}}:
            for key, value in listed.items():
                match value:
                    case [str(identity), str(found)] if isinstance(key, str):
                        entries[key] = (identity, found)
                    case _:
                        return {}
    return entries


def _write(entries: _Entries) -> None:
    """Replace the file in one step; of two that write at once, one wins."""
    file = Path(cache_root()) / _FILE
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    unfinished = file.with_name(f".{_FILE}-{os.urandom(4).hex()}")
    text = json.dumps({"schema": _SCHEMA, "entries": entries})
    try:
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(text.encode(errors="surrogateescape"))
        unfinished.rename(file)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise
