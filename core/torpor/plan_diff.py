"""What differs between two plans, value by value."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["Change", "changes"]


@dataclass(frozen=True, kw_only=True)
class Change:
    """One value that differs.

    Attributes:
        path: where it stands in the plan, e.g. `engine.command` or `image.env.HF_HOME`.
        kind: `added`, `removed` or `changed`; in a list every word is a value of its own.
        before: its value in the first plan; None for an added one.
        after: its value in the second plan; None for a removed one.
    """

    path: str
    kind: Literal["added", "removed", "changed"]
    before: object
    after: object


def changes(before: Mapping[str, object], after: Mapping[str, object]) -> tuple[Change, ...]:
    """What has to change in the first plan to become the second, in the plans' order."""
    return tuple(_changes(before, after, ""))


def _changes(before: Mapping[str, object], after: Mapping[str, object], above: str) -> Iterator[Change]:
    for name in (*before, *(name for name in after if name not in before)):
        path = f"{above}.{name}" if above else name
        if name not in after:
            yield Change(path=path, kind="removed", before=before[name], after=None)
        elif name not in before:
            yield Change(path=path, kind="added", before=None, after=after[name])
        elif isinstance(before[name], dict) and isinstance(after[name], dict):
            yield from _changes(cast("dict[str, object]", before[name]), cast("dict[str, object]", after[name]), path)
        elif (old := _by_name(before[name])) and (new := _by_name(after[name])):
            yield from _changes(old, new, path)
        elif isinstance(before[name], list) and isinstance(after[name], list):
            yield from _changes_in_list(cast("list[object]", before[name]), cast("list[object]", after[name]), path)
        elif before[name] != after[name]:
            yield Change(path=path, kind="changed", before=before[name], after=after[name])


def _by_name(items: object) -> dict[str, object]:
    """A list of things with names of their own (build steps) as a mapping; empty for anything else."""
    if not isinstance(items, list) or not all(isinstance(item, dict) and "name" in item for item in items):
        return {}
    return {f"{item['name']!r}": item for item in items}


def _changes_in_list(before: Sequence[object], after: Sequence[object], path: str) -> Iterator[Change]:
    old, new = [repr(item) for item in before], [repr(item) for item in after]
    for kind, first, last, other_first, other_last in difflib.SequenceMatcher(
        None, old, new, autojunk=False
    ).get_opcodes():
        if kind == "equal":
            continue
        gone, come = before[first:last], after[other_first:other_last]
        for one, other in zip(gone, come, strict=False):
            yield Change(path=path, kind="changed", before=one, after=other)
        for one in gone[len(come) :]:
            yield Change(path=path, kind="removed", before=one, after=None)
        for other in come[len(gone) :]:
            yield Change(path=path, kind="added", before=None, after=other)
