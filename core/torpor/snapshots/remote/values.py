"""The values of a snapshot in a store: its label, its files, its chunks, and whom a pull trusts.

A chunk is a run of bytes that the store keeps once, whichever snapshots need it. A file is a list of pieces, each a part of a
chunk; what no piece covers is zeros.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torpor.snapshots.store.manifest import Manifest

__all__ = ["Chunk", "Codec", "Label", "Piece", "Pulled", "Pushed", "RemoteFile", "RemoteSnapshot", "Stored", "Trust"]


class Trust(NamedTuple):
    """Whose snapshots may run here. A snapshot is memory, so whoever wrote it runs code as this user.

    Attributes:
        keys: public keys in OpenSSH's form, `ssh-ed25519 AAAA...`. If there are any, one of them has to have signed.
        unsigned: accept a snapshot without a signature by one of these keys. Without keys and without this, only a store in a
            folder of this user, to which nobody else may write, is trusted.
    """

    keys: tuple[str, ...] = ()
    unsigned: bool = False


class Label(NamedTuple):
    """What a store tells everybody who may read it, also of an encrypted snapshot. A signature covers the label.

    Attributes:
        name: of the snapshot in its store.
        pushed_at: Unix time, seconds.
        captured_at: Unix time, seconds.
        torpor: Torpor's version at the capture.
        deployment: its name.
        engine: name and version.
        model: repository or folder.
        revision: commit of the repository; empty for a folder.
        architecture: e.g. `x86_64`.
        gpus: kind of each GPU that the engine used, e.g. `NVIDIA H200`.
        size: bytes of all files.
        stored_size: bytes of its chunks in the store.
        encrypted: whether body and chunks are encrypted.
        body_size: bytes of the body, which follows the label.
        body_sha256: hash of the body (hex).
    """

    name: str
    pushed_at: float
    captured_at: float
    torpor: str
    deployment: str
    engine: str
    model: str
    revision: str
    architecture: str
    gpus: tuple[str, ...]
    size: int
    stored_size: int
    encrypted: bool
    body_size: int
    body_sha256: str


class Chunk(NamedTuple):
    """A chunk: its name in the store (hex, a hash of its content) and the size of its content in bytes."""

    name: str
    size: int


class Piece(NamedTuple):
    """A part of a file.

    Attributes:
        at: where it begins in the file, bytes.
        length: bytes.
        chunk: index of its chunk in `RemoteSnapshot.chunks`.
        start: where it begins in the chunk's content, bytes.
    """

    at: int
    length: int
    chunk: int
    start: int


class RemoteFile(NamedTuple):
    """A file.

    Attributes:
        path: under the snapshot's folder, or absolute for a file outside of it.
        size: bytes.
        sha256: hash of its content (hex).
        pieces: in the order of the file, none over another.
    """

    path: str
    size: int
    sha256: str
    pieces: tuple[Piece, ...]


class Stored(NamedTuple):
    """A file of a store.

    Attributes:
        size: bytes.
        changed: when it was written, by the store's clock (Unix time); None if the store does not tell.
    """

    size: int
    changed: float | None


class Codec(Protocol):
    """How content becomes a stored chunk, and back."""

    def name(self, content: bytes | memoryview) -> str:
        """The name of a chunk in the store: a hash of its content, keyed if it is encrypted."""
        ...

    def pack(self, content: bytes | memoryview, name: str) -> bytes:
        """The bytes to store: compressed, and encrypted if asked."""
        ...

    def unpack(self, stored: bytes, chunk: Chunk) -> bytes:
        """The content of a chunk, checked.

        Raises:
            DamagedSnapshotError: it is not what was pushed.
        """
        ...


class RemoteSnapshot(NamedTuple):
    """A snapshot in a store, opened: its manifest was read and checked, none of its chunks was fetched.

    Attributes:
        url: as the user gave it.
        label: what everybody may read.
        digest: SHA-256 of the snapshot's `manifest.json` (hex). It identifies the content, wherever and however often it
            was pushed.
        signed_by: fingerprint of the trusted key that signed, as `ssh-keygen -l` shows it; empty if no trust was demanded.
        manifest: the snapshot's own manifest, with the facts of the machine and the deployment.
        documents: small files that can be read before a chunk is fetched, by name: `manifest.json`, `outside.json`, and
            whatever else was given to `push`. Exact bytes.
        files: the files of the folder, without `manifest.json` and `outside.json`.
        outside: files outside of the folder that were pushed with it, such as kept weights.
        chunks: all chunks of these files.
        codec: reads the chunks.
    """

    url: str
    label: Label
    digest: str
    signed_by: str
    manifest: Manifest
    documents: Mapping[str, bytes]
    files: tuple[RemoteFile, ...]
    outside: tuple[RemoteFile, ...]
    chunks: tuple[Chunk, ...]
    codec: Codec


class Pushed(NamedTuple):
    """The outcome of a push.

    Attributes:
        label: of the snapshot in the store.
        url: of the snapshot.
        chunks: how many chunks the snapshot has.
        sent: how many of them the store lacked.
        sent_bytes: bytes that were sent.
        seconds: time of the push.
    """

    label: Label
    url: str
    chunks: int
    sent: int
    sent_bytes: int
    seconds: float


class Pulled(NamedTuple):
    """The outcome of a pull.

    Attributes:
        folder: the snapshot's folder.
        already: whether the folder held this snapshot before, so that nothing was fetched.
        fetched: how many chunks were fetched.
        fetched_bytes: bytes that were read from the store.
        kept: how many chunks an interrupted pull had left.
        seconds: time of the pull.
    """

    folder: Path
    already: bool
    fetched: int
    fetched_bytes: int
    kept: int
    seconds: float
