"""A store: where its files lie, and attempts, deadlines and errors for every access.

    snapshots/NAME.snapshot    a manifest: signatures, label, body (`torpor.snapshots.remote.manifest_file`)
    chunks/ab/ab12...          a chunk, named by a hash of its content
    references/BODY.zst        which chunks an encrypted snapshot needs (`torpor.snapshots.remote.references`)
    at-work/                   who pushes or collects garbage now (`torpor.snapshots.remote.at_work`)
    incoming/                  files that are being written, on file systems that need it

Nothing is ever changed in place, and manifests are written last: whatever is listed is complete.
"""

from __future__ import annotations

import contextlib
import errno
import random
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from torpor.errors import ConfigurationError, NoRoomError, StoreError
from torpor.network.shortage import is_disk_full
from torpor.snapshots.remote.chunks import NAME_DIGITS
from torpor.snapshots.remote.fsspec_files import FsspecFiles
from torpor.snapshots.remote.local_files import INCOMING, LocalFiles
from torpor.snapshots.remote.location import shown_url
from torpor.snapshots.remote.packages import LocalFileSystem, url_to_fs
from torpor.snapshots.remote.parallel import within
from torpor.values.plain_text import one_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from torpor.snapshots.remote.values import Stored

__all__ = ["Store", "chunk_path", "manifest_path"]

_CHUNK_NAME = re.compile(rf"[0-9a-f]{{{NAME_DIGITS}}}")
_UNFINISHED = re.compile(r"[0-9a-f]{32}")
"""Another program may keep other files in folders of these names; only what is named so is deleted."""
_CHUNKS, _SNAPSHOTS, _SUFFIX = "chunks", "snapshots", ".snapshot"
_ATTEMPTS = 5
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.3, 8.0
_LEFT_FOR_S = 86_400.0
_SHOWN = 300
_FINAL = (ImportError, ValueError, TypeError, NotImplementedError, MemoryError, FileExistsError, NotADirectoryError)
_NO_ACCESS = (PermissionError, IsADirectoryError)
_FINAL_NUMBERS = {errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.EFBIG, errno.EACCES, errno.EPERM}

Answer = TypeVar("Answer")


class Files(Protocol):
    """The files below a store's root; see `LocalFiles` and `FsspecFiles`."""

    def read(self, path: str, most: int) -> bytes:
        """At most `most` bytes of a file."""
        ...

    def write(self, path: str, content: bytes) -> None:
        """Write a file, complete or not at all."""
        ...

    @property
    def in_one_step(self) -> bool:
        """Whether a file is written in one step, so that an interrupted write leaves nothing."""
        ...

    @property
    def keeps_times(self) -> bool:
        """Whether a listing tells when a file was written."""
        ...

    def listed(self, folder: str) -> dict[str, Stored]:
        """Files below a folder, by path under it."""
        ...

    def delete(self, path: str) -> None:
        """Delete a file; one that is gone is no error."""
        ...

    def foreign(self, path: str) -> str:
        """Why a file may be somebody else's work; empty if it cannot."""
        ...

    def missing(self) -> str:
        """Why there is no store in this place, as the rest of a sentence; empty if there can be one."""
        ...

    def unwritable(self) -> str:
        """Why a push cannot make its files here, as the rest of a sentence; empty if nothing is known against it."""
        ...


def manifest_path(name: str) -> str:
    """Where the manifest of a snapshot lies in its store."""
    return f"{_SNAPSHOTS}/{name}{_SUFFIX}"


def chunk_path(name: str) -> str:
    """Where a chunk lies in its store."""
    return f"{_CHUNKS}/{name[:2]}/{name}"


class Store:
    """A store of snapshots.

    Args:
        url: a path of a folder, or a URL that fsspec understands.

    Raises:
        ConfigurationError: the URL cannot be used, or its package is missing.
    """

    def __init__(self, url: str) -> None:
        self.url = shown_url(url)
        try:
            system, root = url_to_fs(url)
        except ImportError as error:
            raise ConfigurationError(f"The store {self.url} needs a package that is not installed: {error}.") from error
        except (ValueError, TypeError, OSError) as error:
            raise ConfigurationError(
                f"The store {self.url} cannot be used: {_said(error)}. Allowed are a path and the URLs of fsspec, such as "
                "s3://, gs://, hf:// and sftp://."
            ) from error
        local = isinstance(system, LocalFileSystem)
        self._files: Files = LocalFiles(Path(root)) if local else FsspecFiles(system, root)
        self.id = root if local else f"{system.protocol}:{root}"

    def read(self, path: str, most: int) -> bytes:
        """At most `most` bytes of a file.

        Raises:
            FileNotFoundError: there is none.
            StoreError: it cannot be read.
        """
        return self._tried(lambda: self._files.read(path, most), f"read {path}")

    def write(self, path: str, content: bytes) -> None:
        """Write a file, complete or not at all.

        Raises:
            NoRoomError: the disk is full.
            StoreError: it cannot be written.
        """
        try:
            self._tried(lambda: self._files.write(path, content), f"write {path}")
        except FileNotFoundError as error:
            raise StoreError(
                f"The store {self.url} cannot be written: there is no such bucket or disk ({_said(error)}). Make it first."
            ) from error

    def delete(self, path: str) -> None:
        """Delete a file; one that is gone is no error.

        Raises:
            StoreError: it cannot be deleted.
        """
        self._tried(lambda: self._files.delete(path), f"delete {path}")

    def listed(self, folder: str) -> dict[str, Stored]:
        """Files below a folder by path under it; one listing."""
        return within(lambda: self._tried(lambda: self._files.listed(folder), f"list {folder}"))

    def chunks(self) -> dict[str, Stored]:
        """All chunks by name; one listing."""
        found = self.listed(_CHUNKS)
        return {
            name: one
            for path, one in found.items()
            if _CHUNK_NAME.fullmatch(name := path[3:]) and path == f"{name[:2]}/{name}"
        }

    def manifests(self) -> dict[str, int]:
        """The names of all snapshots, with the bytes of their manifests; one listing."""
        found = self.listed(_SNAPSHOTS)
        return {
            path.removesuffix(_SUFFIX): one.size
            for path, one in found.items()
            if path.endswith(_SUFFIX) and "/" not in path
        }

    @property
    def keeps_times(self) -> bool:
        """Whether the store tells when a file was written."""
        return self._files.keeps_times

    def clear(self) -> None:
        """Delete what pushes that were interrupted more than a day ago left; an error is none of the caller's."""
        if self._files.in_one_step:
            return
        with contextlib.suppress(StoreError):
            for path, one in self.listed(INCOMING).items():
                old = one.changed is not None and time.time() - one.changed > _LEFT_FOR_S
                if old and _UNFINISHED.fullmatch(path):
                    self.delete(f"{INCOMING}/{path}")

    def missing(self) -> str:
        """Why there is no store, as the rest of a sentence; empty if there is a folder or a bucket for one."""
        return within(lambda: self._tried(self._files.missing, "look into it"))

    def check_there(self) -> None:
        """Check that there is a folder or a bucket, after nothing was found in the store.

        Raises:
            StoreError: there is none, or it cannot be reached.
        """
        if why := self.missing():
            raise StoreError(
                f"There is no store at {self.url}: {why}. Check the URL; a push makes a store: torpor snapshot push DIR "
                f"{self.url.rstrip('/')}/NAME"
            )

    def check_writable(self) -> None:
        """Check what can be known before a push writes anything.

        Raises:
            StoreError: there is no such bucket, a file is in the way, or this user may not write there.
        """
        if why := within(lambda: self._tried(self._files.unwritable, "look into it")):
            raise StoreError(
                f"The store {self.url} cannot be written: {why}. A push makes folders, but no bucket and no disk; choose "
                "another place, or make it first."
            )

    def foreign(self, path: str) -> str:
        """Why a file may be somebody else's work; empty if only this user can have written it."""
        try:
            return self._files.foreign(path)
        except OSError as error:
            return f"{path} cannot be checked ({_said(error)})"

    def _tried(self, work: Callable[[], Answer], what: str) -> Answer:
        """Try until it works or can never work: a network fails now and then, a missing permission does not."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return work()
            except FileNotFoundError:
                raise
            except Exception as error:
                if is_disk_full(error):
                    raise NoRoomError(
                        f"The store {self.url} has no room left: cannot {what} ({_said(error)})."
                    ) from error
                if attempt == _ATTEMPTS or _is_final(error):
                    raise StoreError(
                        f"The store {self.url} failed: cannot {what} ({_said(error)}); {_advice(error, attempt)}"
                    ) from error
                time.sleep(min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**attempt) * random.uniform(0.5, 1.0))  # noqa: S311
        raise AssertionError(what)


def _is_final(error: Exception) -> bool:
    number = error.errno if isinstance(error, OSError) else None
    return isinstance(error, (*_FINAL, *_NO_ACCESS)) or number in _FINAL_NUMBERS or _lacks_credentials(error)


def _lacks_credentials(error: Exception) -> bool:
    """Whether a cloud's own package says that this machine has no credentials, or wrong ones: each has classes of its own."""
    return any(word in type(error).__name__ for word in ("Credential", "Authentication", "Unauthorized"))


def _advice(error: Exception, attempts: int) -> str:
    if isinstance(error, _NO_ACCESS) or _lacks_credentials(error):
        return "check the permissions, or the credentials of this machine."
    if attempts == 1:
        return "trying again would not help."
    return f"it was tried {attempts} times. Run the same command again: it goes on where it was."


def _said(error: Exception) -> str:
    """An error on one line, shortened."""
    return f"{type(error).__name__}: {one_line(shown_url(str(error)))[:_SHOWN]}"
