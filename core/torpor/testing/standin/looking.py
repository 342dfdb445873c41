"""The stand-in's eyes and ears: it tells a picture from a sound, and knows neither's content."""

from __future__ import annotations

import base64
import binascii

__all__ = ["media_of"]

_KINDS = {
    "image_url": ("data:image/png;base64,", b"\x89PNG\r\n\x1a\n"),
    "audio_url": ("data:audio/wav;base64,", b"RIFF"),
}
"""How the address of each medium begins, and its content."""


def media_of(messages: list[object]) -> tuple[str, ...] | None:
    """The kinds of media in a chat's messages; None if one of them is no picture and no sound."""
    found = []
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            kind = part.get("type") if isinstance(part, dict) else None
            if kind == "text":
                continue
            if kind not in _KINDS or not _holds(part.get(kind), *_KINDS[kind]):
                return None
            found.append(kind)
    return tuple(found)


def _holds(value: object, begins: str, content: bytes) -> bool:
    url = value.get("url") if isinstance(value, dict) else None
    if not isinstance(url, str) or not url.startswith(begins):
        return False
    try:
        return base64.b64decode(url.removeprefix(begins), validate=True).startswith(content)
    except binascii.Error:
        return False
