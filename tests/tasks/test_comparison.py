"""Whether two answers of a task are the same."""

from __future__ import annotations

import math

import pytest

from torpor.tasks.comparison import difference

VECTORS = {"vectors": [[3.0, 4.0], [1.0, 0.0]]}
RANKING = {"order": [1, 0, 2], "scores": [0.5, 0.9, 0.1]}
LABELS = {"labels": ["calm", "rough"], "scores": [[0.9, 0.1], [0.2, 0.8]]}


@pytest.mark.parametrize(
    "answer", [{"text": "a"}, VECTORS, RANKING, LABELS, {"scores": [0.1, -2.0]}, {"vectors": [[0.0, 0.0]]}]
)
def test_an_answer_does_not_differ_from_itself(answer: dict[str, object]) -> None:
    """The size is 0."""
    assert difference(answer, dict(answer)).size == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize(
    ("old", "new", "size", "where"),
    [
        ({"text": "a"}, {"text": "b"}, math.inf, "text 'a' became 'b'"),
        (LABELS, {**LABELS, "labels": ["calm", "calm"]}, math.inf, "labels ['calm', 'rough'] became"),
        (VECTORS, {"vectors": [[3.0, 4.0]]}, math.inf, "the shape [2, 2] became [2]"),
        (VECTORS, {"vectors": [[3.0, 4.0], [0.0, 0.0]]}, math.inf, "vector 1 became 0"),
        (VECTORS, {"vectors": [[3.0, 4.0], [0.0, 1.0]]}, 1.0, "vector 1 has a cosine of 0.000000"),
        (VECTORS, {"vectors": [[6.0, 8.0], [1.0, 0.0]]}, 1.0, "2.000000 of its length"),
        ({"scores": [0.002, 0.004]}, {"scores": [0.002, 0.003]}, 0.25, "score 0 was 0.004 and is 0.003"),
        (RANKING, {"order": [1, 0, 2], "scores": [0.5, 0.99, 0.1]}, 0.1, "score 0 was 0.9 and is 0.99"),
        (RANKING, {"order": [0, 1, 2], "scores": [0.5, 0.9, 0.1]}, math.inf, "the order [1, 0, 2] became [0, 1, 2]"),
    ],
)
def test_a_difference_has_its_size_and_its_place(
    old: dict[str, object], new: dict[str, object], size: float, where: str
) -> None:
    """A cosine, a length and a score have a number; another text, label, shape or order is without measure."""
    found = difference(old, new)
    assert found.size == pytest.approx(size)
    assert where in found.where


def test_documents_that_are_as_close_as_the_scores_moved_may_change_places() -> None:
    """Near-ties resolve differently; the scores' difference is what remains."""
    old = {"order": [0, 1], "scores": [1.0, 0.999]}
    new = {"order": [1, 0], "scores": [0.999, 1.0]}
    assert difference(old, new).size == pytest.approx(0.001)
