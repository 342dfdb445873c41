"""A picture, generated: the canary and the warm-up of models that see send it, and no file has to be shipped."""

from __future__ import annotations

import struct
import zlib

__all__ = ["generated_picture"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_RGB_8_BITS = bytes((8, 2, 0, 0, 0))
_WHITE = 255


def generated_picture(side: int) -> bytes:
    """A PNG file (ISO/IEC 15948): a square with two gradients, and a white disc on it.

    Args:
        side: of the square, pixels.
    """
    rows = bytearray()
    radius, middle = side / 4, (side - 1) / 2
    for y in range(side):
        rows.append(0)  # no filter
        for x in range(side):
            inside = (x - middle) ** 2 + (y - middle) ** 2 < radius**2
            colours = (_WHITE, _WHITE, _WHITE) if inside else (x * _WHITE // side, y * _WHITE // side, (x + y) % 64)
            rows += bytes(colours)
    head = struct.pack(">II", side, side) + _RGB_8_BITS
    return _SIGNATURE + _chunk(b"IHDR", head) + _chunk(b"IDAT", zlib.compress(bytes(rows))) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
