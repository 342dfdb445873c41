"""The file of a snapshot in a store: signatures, label, body.

    {"torpor_store": 1, "signatures": [{"key": "ssh-ed25519 AAAA...", "signature": "hex"}]}   one line
    {"name": "qwen3", ..., "body_sha256": "hex"}                                              one line: the label
    body                                                                                     the rest

A signature covers the label's exact bytes, and the label holds size and hash of the body. The body is JSON, compressed by
zstandard; that of an encrypted snapshot is an age file with this in it. So the label can be listed, and its signature checked,
without the body.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torpor.errors import DamagedSnapshotError
from torpor.snapshots.remote.chunks import MOST_CHUNK_BYTES, NAME_DIGITS, unpacked
from torpor.snapshots.remote.packages import zstandard
from torpor.snapshots.remote.signature import Signature
from torpor.snapshots.remote.values import Chunk, Label, Piece, RemoteFile
from torpor.snapshots.store.fields import NEW_ONE, Fields, is_short_path, parsed
from torpor.snapshots.store.manifest import LAST_TIME_S, MANIFEST, OUTSIDE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "HEAD_BYTES",
    "MOST_BYTES",
    "MOST_LABEL_BYTES",
    "Body",
    "Head",
    "body_bytes",
    "check_body",
    "label_line",
    "push_again",
    "read_body",
    "read_head",
    "written",
]

FORMAT = 1
"""Version of the format of a store."""

HEAD_BYTES = 128 << 10
"""The most bytes of signatures and label together."""

MOST_LABEL_BYTES = 64 << 10
"""The most bytes of a label that is written."""

MOST_BYTES = 128 << 20
"""The most bytes of the file; that of a snapshot of 100 GB has 1 MB."""

_MOST_BODY_BYTES = 512 << 20
_MOST_SIGNATURES = 64
_MOST_FILES = 100_000
_MOST_CHUNKS = 4_000_000
_MOST_DOCUMENTS = 64
_SECRET_DIGITS = 64
_DIGITS = 64
_LONGEST_TEXT = 512
_NAME_BYTES = 255
_PUSH_AGAIN = "push it again."
_ABOUT_TEXT = frozenset(("name", "torpor", "deployment", "engine", "model", "revision", "architecture"))


class Head(NamedTuple):
    """What stands before the body.

    Attributes:
        signatures: none of them checked.
        line: exact bytes of the label, which a signature covers.
        label: the label.
        size: bytes before the body.
    """

    signatures: tuple[Signature, ...]
    line: bytes
    label: Label
    size: int


class Body(NamedTuple):
    """What stands in the body.

    Attributes:
        documents: small files by name.
        chunks: all chunks.
        files: files of the snapshot's folder, relative paths.
        outside: files outside of it, absolute paths.
        secret: of the chunks; empty if they are not encrypted.
    """

    documents: Mapping[str, bytes]
    chunks: tuple[Chunk, ...]
    files: tuple[RemoteFile, ...]
    outside: tuple[RemoteFile, ...]
    secret: bytes


def label_line(label: Label) -> bytes:
    """The bytes of a label, as they are signed and written."""
    return json.dumps(label._asdict()).encode() + b"\n"


def written(line: bytes, signatures: Sequence[Signature], body: bytes) -> bytes:
    """The whole file."""
    listed = [{"key": one.key, "signature": one.signature.hex()} for one in signatures]
    return json.dumps({"torpor_store": FORMAT, "signatures": listed}).encode() + b"\n" + line + body


def body_bytes(body: Body) -> bytes:
    """A body as it is hashed and written, or encrypted before that."""
    content = {
        "documents": {name: base64.b64encode(one).decode() for name, one in body.documents.items()},
        "secret": body.secret.hex(),
        "chunks": [list(chunk) for chunk in body.chunks],
        "files": [_file_json(file) for file in body.files],
        "outside": [_file_json(file) for file in body.outside],
    }
    return zstandard.ZstdCompressor(level=3).compress(json.dumps(content).encode())


def read_head(data: bytes, name: str) -> Head:
    """Read signatures and label.

    Args:
        data: at least the first `HEAD_BYTES` of the file, or all of it.
        name: of the snapshot in its store.

    Raises:
        DamagedSnapshotError: they are damaged, of another format, or of a snapshot with another name.
    """
    first, newline, rest = data[:HEAD_BYTES].partition(b"\n")
    line, other, _ = rest.partition(b"\n")
    if not newline or not other:
        raise _damaged(name, "it does not begin with two lines of JSON")
    try:
        signatures = _signatures(parsed(_shown(name), first), name)
        label = _label(parsed(_shown(name), line))
    except DamagedSnapshotError as error:
        raise push_again(error) from None
    if label.name != name:
        raise _damaged(name, f"it is the manifest of {label.name!r}")
    return Head(signatures, line + b"\n", label, len(first) + len(line) + 2)


def read_body(content: bytes, name: str) -> Body:
    """Read a body, decrypted and hashed before.

    Raises:
        DamagedSnapshotError: it is damaged, or breaks a rule.
    """
    try:
        claimed = zstandard.get_frame_parameters(content).content_size
        if claimed > _MOST_BODY_BYTES:
            raise _damaged(name, f"its body has more than {_MOST_BODY_BYTES} bytes")
        fields = parsed(_shown(name), unpacked(content, claimed))
        body = Body(
            documents=_documents(fields.inner("documents")),
            secret=bytes.fromhex(fields.digits("secret", _SECRET_DIGITS)),
            chunks=_chunks(fields),
            files=_files(fields, "files"),
            outside=_files(fields, "outside"),
        )
        fields.end()
        _check_files(body, fields)
    except zstandard.ZstdError:
        raise _damaged(name, "its body is not compressed by zstandard") from None
    except DamagedSnapshotError as error:
        raise push_again(error) from None
    return body


def _signatures(fields: Fields, name: str) -> tuple[Signature, ...]:
    if (found := fields.take("torpor_store")) != FORMAT:
        raise _damaged(name, f"it has format {found!r:.20}, and this version of Torpor reads {FORMAT}")
    signatures = []
    for one in fields.each("signatures"):
        signatures.append(Signature(one.text("key"), bytes.fromhex(one.digits("signature", 128))))
        one.end()
    if len(signatures) > _MOST_SIGNATURES:
        raise _damaged(name, f"it has more than {_MOST_SIGNATURES} signatures")
    fields.end()
    return tuple(signatures)


def _label(fields: Fields) -> Label:
    texts = {}
    for name in sorted(_ABOUT_TEXT):
        texts[name] = fields.text(name)
        if len(texts[name]) > _LONGEST_TEXT:
            fields.refuse(name, texts[name], f"at most {_LONGEST_TEXT} characters")
    if type(encrypted := fields.take("encrypted")) is not bool:
        fields.refuse("encrypted", encrypted, "true or false")
    label = Label(
        **texts,
        pushed_at=fields.number("pushed_at", LAST_TIME_S),
        captured_at=fields.number("captured_at", LAST_TIME_S),
        gpus=fields.texts("gpus"),
        size=fields.whole("size"),
        stored_size=fields.whole("stored_size"),
        encrypted=encrypted is True,
        body_size=fields.whole("body_size", 1, MOST_BYTES - HEAD_BYTES),
        body_sha256=fields.digits("body_sha256", _DIGITS),
    )
    fields.end()
    return label


def _documents(fields: Fields) -> dict[str, bytes]:
    documents: dict[str, bytes] = {}
    for name in fields.names():
        if "/" in name or "\0" in name or not name or len(name) > _NAME_BYTES or len(documents) == _MOST_DOCUMENTS:
            fields.refuse(name, name, f"one of at most {_MOST_DOCUMENTS} file names")
        try:
            documents[name] = base64.b64decode(fields.text(name), validate=True)
        except ValueError:
            fields.refuse(name, "(not shown)", "base64")
    for name in (MANIFEST, OUTSIDE):
        if name not in documents:
            fields.refuse(name, None, "a document")
    return documents


def _chunks(fields: Fields) -> tuple[Chunk, ...]:
    chunks = []
    for at, value in enumerate(fields.items("chunks")):
        match value:
            case [str(name), int(size)] if (
                len(name) == NAME_DIGITS
                and not name.strip("0123456789abcdef")
                and not isinstance(size, bool)
                and 0 < size <= MOST_CHUNK_BYTES
                and at < _MOST_CHUNKS
            ):
                chunks.append(Chunk(name, size))
            case _:
                fields.refuse(f"chunks[{at}]", value, f"a chunk's name and size, at most {MOST_CHUNK_BYTES}")
    return tuple(chunks)


def _files(fields: Fields, name: str) -> tuple[RemoteFile, ...]:
    files: list[RemoteFile] = []
    for one in fields.each(name):
        path = one.text("path", empty=False)
        if "\0" in path or not is_short_path(path) or len(files) == _MOST_FILES:
            one.refuse("path", path, f"the path of one of at most {_MOST_FILES} files")
        file = RemoteFile(path, one.whole("size"), one.digits("sha256", _DIGITS), _pieces(one))
        one.end()
        files.append(file)
    return tuple(files)


def _pieces(fields: Fields) -> tuple[Piece, ...]:
    pieces = []
    for at, value in enumerate(fields.items("pieces")):
        match value:
            case [int(), int(), int(), int()] if not any(isinstance(one, bool) or one < 0 for one in value):
                pieces.append(Piece(*value))
            case _:
                fields.refuse(f"pieces[{at}]", value, "four whole numbers")
    return tuple(pieces)


def _check_files(body: Body, fields: Fields) -> None:
    """Check paths, and that every piece lies inside its file and its chunk."""
    for kind, files in (("files", body.files), ("outside", body.outside)):
        if len({file.path for file in files}) != len(files):
            fields.refuse(kind, "(not shown)", "a list in which each path occurs once")
        for file in files:
            parts = file.path.split("/")
            inside = parts[1:] if kind == "outside" else parts
            absolute = file.path.startswith("/")
            if absolute != (kind == "outside") or not set(inside).isdisjoint(("", ".", "..")):
                fields.refuse(f"{kind}.path", file.path, f"{'an absolute' if kind == 'outside' else 'a relative'} path")
            _check_pieces(file, body.chunks, fields)


def _check_pieces(file: RemoteFile, chunks: Sequence[Chunk], fields: Fields) -> None:
    end = 0
    for piece in file.pieces:
        fits = (
            piece.length > 0
            and end <= piece.at
            and piece.at + piece.length <= file.size
            and piece.chunk < len(chunks)
            and piece.start + piece.length <= chunks[piece.chunk].size
        )
        if not fits:
            fields.refuse(
                f"pieces of {file.path}", list(piece), "inside of its file and its chunk, after the last piece"
            )
        end = piece.at + piece.length


def _file_json(file: RemoteFile) -> dict[str, object]:
    return {
        "path": file.path,
        "size": file.size,
        "sha256": file.sha256,
        "pieces": [list(piece) for piece in file.pieces],
    }


def check_body(body: bytes, head: Head) -> None:
    """Check that a body is the one that the label names.

    Raises:
        DamagedSnapshotError: it was cut or changed.
    """
    label = head.label
    if len(body) != label.body_size:
        raise _damaged(label.name, f"its body has {len(body)} bytes, not {label.body_size}")
    if hashlib.sha256(body).hexdigest() != label.body_sha256:
        raise _damaged(label.name, "its body is not what its label says")


def _shown(name: str) -> Path:
    return Path(f"The manifest of {name!r} in the store")


def _damaged(name: str, what: str) -> DamagedSnapshotError:
    return DamagedSnapshotError(f"{_shown(name)} is damaged: {what}; {_PUSH_AGAIN}")


def push_again(error: DamagedSnapshotError) -> DamagedSnapshotError:
    """The same error about a file of a snapshot, with advice that fits a store."""
    return DamagedSnapshotError(str(error).replace(NEW_ONE, _PUSH_AGAIN))
