"""The task that SGLang runs behind each stream, with the real modules of all supported versions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.plugins.local_engines import Questions

pytestmark = [pytest.mark.sglang, pytest.mark.slow]


def test_a_complete_answer_is_not_waited_for(questions: Questions) -> None:
    """Its request is over with its last byte."""
    assert questions.ask("stream_ends", rid="r", running=["other"], answers=1) == {"waited": [], "aborted": []}


@pytest.mark.parametrize(("rid", "answers"), [("r", 1), ("r", 2)])
def test_what_a_client_left_behind_is_aborted_as_before(questions: Questions, rid: str, answers: int) -> None:
    """Two seconds later, so that a request on its way to the scheduler is aborted, too."""
    running = [rid] if answers == 1 else ["of-its-own"]
    found = questions.ask("stream_ends", rid=rid, running=running, answers=answers)
    assert found["waited"] == [2]
    assert found["aborted"] in ([rid], [])  # newer versions abort only what still runs
    assert (found["aborted"] == [rid]) or answers > 1
