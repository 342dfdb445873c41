"""How content becomes a stored chunk, and back: named by a hash, compressed by zstandard, and encrypted if asked.

plain      the name is the SHA-256 of the content, what is stored is one zstandard frame
encrypted  the name is a keyed hash, so names tell nothing of the content; the frame is encrypted with AES-256-GCM and a random
           nonce, bound to the name. Both keys come from a secret that the manifest's body holds, which age encrypts.

Chunks are not encrypted by age itself: pyrage 1.4 decrypts 130 MiB/s and holds Python's lock meanwhile, AES-GCM of `cryptography`
650 MiB/s for each thread.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import threading
from typing import TYPE_CHECKING

from torpor._override import override
from torpor.errors import DamagedSnapshotError
from torpor.snapshots.remote.packages import AESGCM, HKDF, InvalidTag, hashes, zstandard

if TYPE_CHECKING:
    from torpor.snapshots.remote.values import Chunk, Codec

__all__ = ["CHUNK_BYTES", "MOST_CHUNK_BYTES", "NAME_DIGITS", "codec_for", "stored_limit", "unpacked"]

CHUNK_BYTES = 8 << 20
"""The content of a chunk. Two captures of one engine share next to nothing at any size down to 64 KiB, because addresses differ
everywhere; what is shared is whole files. So chunks are as large as few requests and an even load of the threads allow."""

MOST_CHUNK_BYTES = 64 << 20
"""The largest content of a chunk that a pull accepts."""

NAME_DIGITS = 64
"""Hexadecimal digits of a chunk's name."""

_LEVEL = (
    -1
)  # an engine's memory shrinks to 21 %, and decompresses at 920 MB/s; at level 1 to 19 % and 700, at 3 to 17 % and 720
_NONCE_BYTES, _TAG_BYTES = 12, 16
_SECRET_BYTES = 32


def codec_for(secret: bytes) -> Codec:
    """The codec of a snapshot's chunks.

    Args:
        secret: 32 bytes; empty for chunks that are not encrypted.
    """
    return Encrypted(secret) if secret else Plain()


def stored_limit(chunk: Chunk) -> int:
    """The most bytes that a chunk can take in a store: zstandard adds 0.4 % to what it cannot compress."""
    return chunk.size + chunk.size // 256 + 1024


class Plain:
    """Chunks that are not encrypted."""

    def name(self, content: bytes | memoryview) -> str:
        """SHA-256 of the content."""
        return hashlib.sha256(content).hexdigest()

    def pack(self, content: bytes | memoryview, name: str) -> bytes:  # noqa: ARG002 - an encrypted chunk is bound to it
        """One zstandard frame that says its size."""
        return _compressor().compress(content)

    def unpack(self, stored: bytes, chunk: Chunk) -> bytes:
        """The content, if it is the right one."""
        content = unpacked(stored, chunk.size)
        if self.name(content) != chunk.name:
            raise DamagedSnapshotError("its content is not what its name says")
        return content


class Encrypted(Plain):
    """Chunks that only the owner of the secret can read, or name.

    Args:
        secret: 32 bytes.
    """

    def __init__(self, secret: bytes) -> None:
        self._name_key = _derived(secret, b"torpor chunk name")
        self._cipher = AESGCM(_derived(secret, b"torpor chunk content"))

    @override
    def name(self, content: bytes | memoryview) -> str:
        return hmac.new(self._name_key, content, hashlib.sha256).hexdigest()

    @override
    def pack(self, content: bytes | memoryview, name: str) -> bytes:
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, super().pack(content, name), name.encode())

    @override
    def unpack(self, stored: bytes, chunk: Chunk) -> bytes:
        if len(stored) < _NONCE_BYTES + _TAG_BYTES:
            raise DamagedSnapshotError(f"it has only {len(stored)} bytes")
        try:
            frame = self._cipher.decrypt(stored[:_NONCE_BYTES], stored[_NONCE_BYTES:], chunk.name.encode())
        except InvalidTag:
            raise DamagedSnapshotError("it cannot be decrypted: it was cut or changed") from None
        return super().unpack(frame, chunk)


def unpacked(frame: bytes, size: int) -> bytes:
    """Decompress a zstandard frame whose size is known.

    Args:
        frame: the frame; nothing may follow it.
        size: of its content, bytes. No more memory is taken, whatever the frame claims.

    Raises:
        DamagedSnapshotError: it is no frame of that size; the message is the rest of a sentence.
    """
    try:
        claimed = zstandard.get_frame_parameters(frame).content_size
        if claimed != size:
            raise DamagedSnapshotError(f"it does not have {size} bytes of content")
        content = _decompressor().decompress(frame, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise DamagedSnapshotError(f"it cannot be decompressed ({error}): it was cut or changed") from None
    if len(content) != size:
        raise DamagedSnapshotError(f"it has {len(content)} bytes of content, not {size}")
    return content


_contexts = threading.local()  # a context of zstandard serves one thread at a time, and takes 0.3 ms to make


def _compressor() -> zstandard.ZstdCompressor:
    if not hasattr(_contexts, "compressor"):
        _contexts.compressor = zstandard.ZstdCompressor(level=_LEVEL)
    found: zstandard.ZstdCompressor = _contexts.compressor
    return found


def _decompressor() -> zstandard.ZstdDecompressor:
    if not hasattr(_contexts, "decompressor"):
        _contexts.decompressor = zstandard.ZstdDecompressor()
    found: zstandard.ZstdDecompressor = _contexts.decompressor
    return found


def _derived(secret: bytes, purpose: bytes) -> bytes:
    return HKDF(algorithm=hashes.SHA256(), length=_SECRET_BYTES, salt=None, info=purpose).derive(secret)
