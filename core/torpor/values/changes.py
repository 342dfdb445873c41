"""What differs between two nested values (plans, facts of a deployment), part by part."""

from __future__ import annotations

import contextlib
import difflib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

from torpor.values.given_files import is_shallow

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["Change", "changes"]


@dataclass(frozen=True, kw_only=True)
class Change:
    """One value that differs.

    Attributes:
        path: where it stands, e.g. in a plan `engine.command` or `image.env.HF_HOME`.
        kind: `added`, `removed` or `changed`; in a list every word is a value of its own.
        before: its value in the first; None for an added one.
        after: its value in the second; None for a removed one.
    """

    path: str
    kind: Literal["added", "removed", "changed"]
    before: object
    after: object


def changes(before: Mapping[str, object], after: Mapping[str, object]) -> tuple[Change, ...]:
    """What has to change in the first to become the second, in their order."""
    return tuple(_changes(before, after, ""))


def _changes(before: Mapping[str, object], after: Mapping[str, object], above: str) -> Iterator[Change]:
    for name in (*before, *(name for name in after if name not in before)):
        path = f"{above}.{name}" if above else name
        if name not in after:
            yield Change(path=path, kind="removed", before=before[name], after=None)
        elif name not in before:
            yield Change(path=path, kind="added", before=None, after=after[name])
        else:
            yield from _changed(before[name], after[name], path)


def _changed(before: object, after: object, path: str) -> Iterator[Change]:
    """What differs in one value, as deep as both have parts of the same kind."""
    old, new = _parts(before), _parts(after)
    if (old and new) or (isinstance(before, dict) and isinstance(after, dict)):
        yield from _changes(old, new, path)
    elif isinstance(before, list) and isinstance(after, list):
        yield from _changes_in_list(cast("list[object]", before), cast("list[object]", after), path)
    elif before != after or isinstance(before, bool) is not isinstance(after, bool):
        yield Change(path=path, kind="changed", before=before, after=after)


def _parts(value: object) -> Mapping[str, object]:
    """A value with named parts as a mapping: an object, JSON of one in a text, a list of things with names of their own.

    Nothing for anything else.
    """
    if isinstance(value, dict):
        return cast("dict[str, object]", value)
    if isinstance(value, str):
        return _in_json(value)
    return _by_name(value) if isinstance(value, list) else {}


def _in_json(text: str) -> Mapping[str, object]:
    """The object in a flag's value, e.g. `{"max_depth": 3}`."""
    if text.startswith("{"):
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(text)
            return value if isinstance(value, dict) and is_shallow(value) else {}
    return {}


def _by_name(items: Sequence[object]) -> dict[str, object]:
    """Things with names of their own (build steps, findings) by these; nothing where two have the same."""
    for key in ("name", "what"):
        names = [item.get(key) if isinstance(item, dict) else None for item in items]
        if all(isinstance(name, str) for name in names) and len({*names}) == len(names):
            return {repr(name): item for name, item in zip(names, items, strict=True)}
    return {}


def _changes_in_list(before: Sequence[object], after: Sequence[object], path: str) -> Iterator[Change]:
    old, new = [repr(item) for item in before], [repr(item) for item in after]
    for kind, first, last, other_first, other_last in difflib.SequenceMatcher(
        None, old, new, autojunk=False
    ).get_opcodes():
        if kind == "equal":
            continue
        gone, come = before[first:last], after[other_first:other_last]
        for number, (one, other) in enumerate(zip(gone, come, strict=False), start=first):
            yield from _changed(one, other, f"{path}[{number}]" if _parts(one) and _parts(other) else path)
        for one in gone[len(come) :]:
            yield Change(path=path, kind="removed", before=one, after=None)
        for other in come[len(gone) :]:
            yield Change(path=path, kind="added", before=None, after=other)
