"""The files of a store that fsspec reaches: S3, Google Cloud Storage, Azure, the Hugging Face hub, SFTP and others.

An object store writes an object in one step. On any other file system a file is written under a temporary name and moved.
"""

from __future__ import annotations

import contextlib
import os
from datetime import datetime
from typing import TYPE_CHECKING, cast

from torpor.snapshots.remote.local_files import INCOMING
from torpor.snapshots.remote.values import Stored

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fsspec import AbstractFileSystem

__all__ = ["FsspecFiles"]

_IN_ONE_STEP = {"memory", "s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oci", "oss", "tos", "hf"}
_WITH_BUCKETS = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oci", "oss", "tos"}
_WITHOUT_TIMES = {"hf"}  # a write or a delete is a commit there, and a listing has no times
_NOTHING = "nothing lies there"
_IS_FILE = "it is a file; a store is a folder"
_TIMES = ("mtime", "LastModified", "last_modified", "created")


class FsspecFiles:
    """Files below a path of a file system of fsspec.

    Args:
        system: the file system.
        root: path of the store in it.
    """

    def __init__(self, system: AbstractFileSystem, root: str) -> None:
        self._system = system
        self._root = root.rstrip("/")
        names = system.protocol if isinstance(system.protocol, tuple) else (system.protocol,)
        self.in_one_step = not _IN_ONE_STEP.isdisjoint(names)
        self.keeps_times = _WITHOUT_TIMES.isdisjoint(names)
        self._in_bucket = not _WITH_BUCKETS.isdisjoint(names)
        self._made: set[str] = set()

    def read(self, path: str, most: int) -> bytes:
        """The content of a file, but at most `most` bytes of it."""
        content = cast("bytes", self._system.cat_file(f"{self._root}/{path}", start=0, end=most))
        return content[:most]  # a server may ignore a range

    def write(self, path: str, content: bytes) -> None:
        """Write a file; it appears complete."""
        target = f"{self._root}/{path}"
        if self.in_one_step:
            self._system.pipe_file(target, content)
            return
        self._make(f"{self._root}/{INCOMING}")
        self._make(target.rpartition("/")[0])
        unfinished = f"{self._root}/{INCOMING}/{os.urandom(16).hex()}"
        try:
            self._system.pipe_file(unfinished, content)
            self._system.mv(unfinished, target)
        except BaseException:
            with contextlib.suppress(Exception):
                self._system.rm_file(unfinished)
            raise

    def listed(self, folder: str) -> dict[str, Stored]:
        """Every file below a folder by its path under the folder. Empty if there is no such folder."""
        begin = f"{self._root}/{folder}/".lstrip("/")
        return {
            name.lstrip("/").removeprefix(begin): Stored(size, _changed(facts))
            for name, facts in self._found(folder).items()
            if facts.get("type") == "file" and isinstance(size := facts.get("size"), int)
        }

    def delete(self, path: str) -> None:
        """Delete a file; one that is gone is no error."""
        with contextlib.suppress(FileNotFoundError):
            self._system.rm_file(f"{self._root}/{path}")

    def missing(self) -> str:
        """Why there is no store in this place, as the rest of a sentence; empty if there can be one."""
        self._system.invalidate_cache()
        try:
            found = self._system.ls(self._root, detail=True)
        except NotADirectoryError:
            return _IS_FILE
        except FileNotFoundError:
            return _NOTHING if self._has_bucket() else f"there is no bucket {self._bucket}"
        same = [one["type"] for one in found if one["name"].strip("/") == self._root.strip("/")]
        return _IS_FILE if "file" in same else ""

    def unwritable(self) -> str:
        """Why a push cannot make its files here, as the rest of a sentence; empty if nothing is known against it."""
        why = self.missing()
        return "" if why == _NOTHING else why

    def foreign(self, path: str) -> str:
        """Why a file of the store may be somebody else's work."""
        return f"{path} lies on another machine, where this one cannot see who wrote it"

    @property
    def _bucket(self) -> str:
        return self._root.partition("/")[0]

    def _has_bucket(self) -> bool:
        """Whether the bucket of the store exists, after nothing was found in its place; True without buckets."""
        if not self._in_bucket:
            return True
        try:
            self._system.ls(self._bucket, detail=False)
        except FileNotFoundError:
            return False
        except PermissionError:  # a user may have rights to a part of the bucket only
            return True
        return True

    def _found(self, folder: str) -> Mapping[str, Mapping[str, object]]:
        self._system.invalidate_cache()
        try:
            found = self._system.find(f"{self._root}/{folder}", detail=True)
        except FileNotFoundError:
            return {}
        return cast("Mapping[str, Mapping[str, object]]", found)

    def _make(self, folder: str) -> None:
        if folder not in self._made:
            self._system.makedirs(folder, exist_ok=True)
            self._made.add(folder)


def _changed(facts: Mapping[str, object]) -> float | None:
    """When a file was written (Unix time), as its file system tells it; None if it does not."""
    changed = next((facts[one] for one in _TIMES if one in facts), None)
    if isinstance(changed, datetime):
        return changed.timestamp()
    return float(changed) if isinstance(changed, int | float) else None
