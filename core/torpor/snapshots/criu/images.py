"""Reads and writes CRIU's image files: a magic, then entries, each a length and a protobuf message.

A message is the list of its fields in order, including unknown ones, so that writing changes nothing else. Format: criu/image.c and
images/*.proto of CRIU 4.2. Wire format: protobuf.dev, "Encoding".
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from torpor.errors import DamagedSnapshotError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

__all__ = ["BYTES", "VARINT", "Field", "Image", "Message"]

Field = tuple[int, int, int | bytes]
"""Number, wire type, value; the value is an int for a varint and bytes otherwise."""

_MAGIC_BYTES = 8
_LENGTH = struct.Struct("<I")
VARINT, _FIXED64, BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_FIXED_BYTES = {_FIXED64: 8, _FIXED32: 4}
_MORE, _LOW_BITS = 0x80, 0x7F


class Message:
    """One protobuf message: its fields in their order."""

    def __init__(self, fields: Iterable[Field] = ()) -> None:
        self.fields: list[Field] = list(fields)

    @classmethod
    def parse(cls, data: bytes) -> Message:
        """Parse a message.

        Raises:
            ValueError, IndexError, KeyError: the data is not a message.
        """
        fields: list[Field] = []
        at = 0
        while at < len(data):
            key, at = _varint(data, at)
            kind = key & 7
            value: int | bytes
            if kind == VARINT:
                value, at = _varint(data, at)
            else:
                if kind == BYTES:
                    length, at = _varint(data, at)
                else:
                    length = _FIXED_BYTES[kind]
                value, at = data[at : at + length], at + length
                if len(value) != length:
                    raise ValueError("a message is cut off")
            fields.append((key >> 3, kind, value))
        return cls(fields)

    def pack(self) -> bytes:
        """Serialize the message."""
        parts = []
        for number, kind, value in self.fields:
            parts.append(_packed(number << 3 | kind))
            if isinstance(value, int):
                parts.append(_packed(value))
            else:
                parts += [_packed(len(value)), value] if kind == BYTES else [value]
        return b"".join(parts)

    def number(self, field: int, default: int = 0) -> int:
        """The value of an integer field."""
        return next((cast("int", value) for number, _, value in self.fields if number == field), default)

    def data(self, field: int) -> bytes:
        """The value of a string, bytes or message field; empty when the field is missing."""
        return next((cast("bytes", value) for number, _, value in self.fields if number == field), b"")

    def replaced(self, numbers: Mapping[int, int]) -> Message:
        """This message with new integers, by field number; missing fields are added at the end."""
        wanted = dict(numbers)
        fields: list[Field] = [
            (number, kind, wanted.pop(number) if number in wanted else value) for number, kind, value in self.fields
        ]
        return Message([*fields, *((number, VARINT, value) for number, value in wanted.items())])


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image file: its magic and its messages."""

    magic: bytes
    messages: list[Message]

    @classmethod
    def read(cls, file: Path) -> Image:
        """Read an image file.

        Raises:
            DamagedSnapshotError: the file is missing or damaged.
        """
        try:
            data = file.read_bytes()
            at, messages = _MAGIC_BYTES, []
            while at < len(data):
                (length,) = _LENGTH.unpack_from(data, at)
                at += _LENGTH.size
                if at + length > len(data):
                    raise ValueError("an entry is cut off")  # noqa: TRY301 - one wording for all damage
                messages.append(Message.parse(data[at : at + length]))
                at += length
        except (OSError, ValueError, IndexError, KeyError, struct.error) as error:
            raise DamagedSnapshotError(f"CRIU's image {file} cannot be read: {error}") from error
        return cls(magic=data[:_MAGIC_BYTES], messages=messages)

    def write(self, file: Path) -> None:
        """Replace an image file (0600), completely or not at all.

        Raises:
            OSError: the file cannot be written.
        """
        packed = [message.pack() for message in self.messages]
        unfinished = file.with_name(f".{file.name}.unfinished")
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
            stream.write(self.magic)
            for one in packed:
                stream.write(_LENGTH.pack(len(one)) + one)
        unfinished.rename(file)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & _LOW_BITS) << shift
        if byte < _MORE:
            return value, at
        shift += 7


def _packed(value: int) -> bytes:
    out = bytearray()
    while value > _LOW_BITS:
        out.append(value & _LOW_BITS | _MORE)
        value >>= 7
    out.append(value)
    return bytes(out)
