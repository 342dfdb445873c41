"""Text from outside (paths, names, log lines, a model's words) as a terminal or a log may show it."""

from __future__ import annotations

__all__ = ["one_line", "plain"]

_KEPT = "\n\t"


def plain(text: str) -> str:
    """Lines stay lines; other control characters, and what is no character, are shown escaped."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in _KEPT else repr(one)[1:-1] for one in text)


def one_line(text: object) -> str:
    """A name or a path: as `plain`, and line ends are escaped too."""
    text = str(text)
    return text if text.isprintable() else "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)
