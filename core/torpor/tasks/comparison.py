"""Whether two answers to one question are the same, within a tolerance.

Text, labels and numbers of items are compared exactly. Vectors are compared by the cosine of their angle and by their length:
a model whose vectors are not of length 1 shows a scaled layer in the length alone. Scores are compared by their difference,
relative to the largest, and a ranking by its order as well, except among documents whose scores are closer than the scores
moved.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, cast

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Difference", "difference"]


class Difference(NamedTuple):
    """How far two answers are apart.

    Attributes:
        size: 0 for equal ones; `inf` for another text, label or shape. For vectors the larger of 1 minus the cosine and the
            relative difference in length; for scores the largest difference, relative to the largest score.
        where: the part that differs most, in words; empty for equal answers.
    """

    size: float
    where: str


def difference(old: Mapping[str, object], new: Mapping[str, object]) -> Difference:
    """Compare two answers of one task, as `read_answer` gives them."""
    for name in ("text", "labels"):
        if old.get(name) != new.get(name):
            return Difference(math.inf, f"{name} {_short(old.get(name))} became {_short(new.get(name))}")
    found = [
        *_of_vectors(_lists(old.get("vectors")), _lists(new.get("vectors"))),
        *_of_scores(_lists(old.get("scores")), _lists(new.get("scores"))),
    ]
    if "order" in old:
        found.append(_of_order(old, new, max((one.size for one in found), default=0.0)))
    return max(found, key=lambda one: one.size, default=Difference(0.0, ""))


def _of_vectors(old: list[list[float]], new: list[list[float]]) -> list[Difference]:
    if (shapes := _shapes(old, new)) is not None:
        return [Difference(math.inf, f"vectors of {shapes}")]
    return [_of_vector(number, one, other) for number, (one, other) in enumerate(zip(old, new, strict=True))]


def _of_vector(number: int, old: list[float], new: list[float]) -> Difference:
    lengths = math.hypot(*old), math.hypot(*new)
    if 0.0 in lengths:
        return (
            Difference(0.0, "") if lengths == (0.0, 0.0) else Difference(math.inf, f"vector {number} became 0 or was 0")
        )
    cosine = sum(one * other for one, other in zip(old, new, strict=True)) / (lengths[0] * lengths[1])
    turned, stretched = max(0.0, 1.0 - cosine), abs(lengths[1] / lengths[0] - 1.0)
    told = f"vector {number} has a cosine of {cosine:.6f} with the recorded one, and {lengths[1] / lengths[0]:.6f} of its length"
    return Difference(max(turned, stretched), told)


def _of_scores(old: list[list[float]], new: list[list[float]]) -> list[Difference]:
    if (shapes := _shapes(old, new)) is not None:
        return [Difference(math.inf, f"scores of {shapes}")]
    largest = max((abs(score) for one in old for score in one), default=0.0) or 1.0
    return [
        Difference(abs(after - before) / largest, f"score {number} was {before:.6g} and is {after:.6g}")
        for number, (one, other) in enumerate(zip(old, new, strict=True))
        for before, after in zip(one, other, strict=True)
    ]


def _of_order(old: Mapping[str, object], new: Mapping[str, object], moved: float) -> Difference:
    """Documents in another order, whose scores were farther apart than two that moved can be."""
    was, now = cast("list[int]", old["order"]), cast("list[int]", new["order"])
    scores = cast("list[float]", old["scores"])
    largest = max(map(abs, scores), default=0.0) or 1.0
    if len(was) == len(now) and all(
        abs(scores[one] - scores[other]) / largest <= 2 * moved for one, other in zip(was, now, strict=True)
    ):
        return Difference(0.0, "")
    return Difference(math.inf, f"the order {was} became {now}")


def _shapes(old: Sequence[list[float]], new: Sequence[list[float]]) -> str | None:
    """Both shapes if they differ."""
    shapes = [[len(item) for item in items] for items in (old, new)]
    return None if shapes[0] == shapes[1] else f"the shape {shapes[0]} became {shapes[1]}"


def _lists(value: object) -> list[list[float]]:
    """Lists of numbers; a flat list is one of them."""
    items = cast("list[object]", value or [])
    return (
        [cast("list[float]", items)] if items and not isinstance(items[0], list) else cast("list[list[float]]", items)
    )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."  # noqa: PLR2004 - what a message can show
