"""Fails a rule's test with one paragraph: what was seen, which rule it breaks, what to do."""

from __future__ import annotations

from typing import NoReturn

import pytest

__all__ = ["broken", "told"]


def broken(seen: str, *, rule: str, cure: str) -> NoReturn:
    """Fail a rule's test: what was seen, which rule that breaks, what to do."""
    pytest.fail(f"{seen} Rule: {rule} To do: {cure}", pytrace=False)


def told(seen: list[str], failure: Exception | None) -> str:
    """What the code tried, or how it failed, as the rest of a sentence."""
    if seen:
        return f"acts ({'; '.join(dict.fromkeys(seen))})"
    return f"raises {type(failure).__name__}: {failure}"
