"""A repository of the loopback hub: its files, its access rules, and its faults."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["COMMIT", "Repository"]

COMMIT = "220b46e3b2180893580a4454f21f22d3ebb187d3"


@dataclass
class Repository:
    """One model repository with one commit.

    Attributes:
        files: path to content.
        lfs: paths kept as LFS objects, so that the hub names their SHA-256.
        commit: the only revision there is.
        gated: the tokens with access to a gated repository; None for an open one.
        corrupt: path to wrong content that is sent with the file's own headers.
        shrunk: path to shorter content that is sent with headers that fit it (a stale proxy). Only the listing has the true size.
        cut: path to the number of bytes that are sent before the connection closes.
        slow: path to the seconds of a pause in the middle of a body.
        strange: additional entries of the listing.
        etags: path to an ETag that replaces the file's.
        failures: path to the number of requests that first get 503.
    """

    files: dict[str, bytes]
    lfs: tuple[str, ...] = ()
    commit: str = COMMIT
    gated: frozenset[str] | None = None
    corrupt: Mapping[str, bytes] = field(default_factory=dict)
    shrunk: Mapping[str, bytes] = field(default_factory=dict)
    cut: Mapping[str, int] = field(default_factory=dict)
    slow: Mapping[str, float] = field(default_factory=dict)
    strange: tuple[Mapping[str, object], ...] = ()
    etags: Mapping[str, str] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)

    def sha256(self, path: str) -> str:
        """The LFS object's name."""
        return hashlib.sha256(self.files[path]).hexdigest()

    def git_oid(self, path: str) -> str:
        """The git object's name: of the content, or of the pointer file that stands for an LFS object."""
        content = self.files[path]
        if path in self.lfs:
            content = self._pointer(path)
        return hashlib.sha1(b"blob %d\0%s" % (len(content), content)).hexdigest()

    def etag(self, path: str) -> str:
        """The (linked) ETag of the hub, which the client uses as the blob's file name."""
        if path in self.etags:
            return self.etags[path]
        return self.sha256(path) if path in self.lfs else self.git_oid(path)

    def entry(self, path: str) -> dict[str, object]:
        """The file's line in a tree listing."""
        found: dict[str, object] = {
            "type": "file",
            "oid": self.git_oid(path),
            "size": len(self.files[path]),
            "path": path,
        }
        if path in self.lfs:
            found["lfs"] = {
                "oid": self.sha256(path),
                "size": len(self.files[path]),
                "pointerSize": len(self._pointer(path)),
            }
        return found

    def sent(self, path: str) -> bytes:
        """The bytes that a download gets."""
        return self.corrupt.get(path, self.shrunk.get(path, self.files[path]))

    def _pointer(self, path: str) -> bytes:
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256(path)}\nsize {len(self.files[path])}\n"
        return text.encode()
