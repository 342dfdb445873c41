"""Makes text from outside (paths, names, log lines, answers of a model) safe for a terminal or a log."""

from __future__ import annotations

__all__ = ["one_line", "plain"]

_KEPT = "\n\t"


def plain(text: str) -> str:
    """The text with control characters and invalid characters escaped; line ends and tabs stay."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in _KEPT else repr(one)[1:-1] for one in text)


def one_line(text: object) -> str:
    """A name or a path on one line: like `plain`, with line ends and tabs escaped too."""
    text = str(text)
    return text if text.isprintable() else "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)
