"""How a rule's test fails: one paragraph that says what was seen, which rule that breaks and what to do."""

from __future__ import annotations

from typing import NoReturn

import pytest

__all__ = ["broken", "told"]


def broken(seen: str, *, rule: str, cure: str) -> NoReturn:
    """Fail a rule's test: what was seen, which rule that breaks, what to do."""
    pytest.fail(f"{seen} Rule: {rule} To do: {cure}", pytrace=False)


def told(seen: list[str], failure: Exception | None) -> str:
    """What was tried or went wrong, as the rest of a sentence."""
    if seen:
        return f"acts ({'; '.join(dict.fromkeys(seen))})"
    return f"raises {type(failure).__name__}: {failure}"
