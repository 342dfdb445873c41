"""`torpor.snapshots.gpu.calls`: what the program of the CUDA calls answers is looked at before anything is taken from it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, cast

import pytest

from torpor.snapshots.gpu.calls import UnansweredError, run_calls
from torpor.snapshots.gpu.calls_program import MARK
from torpor.snapshots.sandbox.sandbox import Finished

if TYPE_CHECKING:
    from torpor.snapshots.sandbox.sandbox import Sandbox

GOOD: dict[str, object] = {"seconds": {"cuInit": {"0": 0.5}}, "failures": [], "left": [], "hung": False}
FAILURE: dict[str, object] = {"pid": 1, "call": "cuInit", "name": "E", "text": "words"}


class Answering:
    """In the place of a sandbox: its program prints what it is told to."""

    name = "small"

    def __init__(self, output: str) -> None:
        self.output = output

    def run(self, argv: list[str], *, env: dict[str, str], timeout_s: float) -> Finished:
        """End at once."""
        assert argv
        assert env
        assert timeout_s > 0
        return Finished(0, self.output)


def asked(output: str) -> object:
    """What is taken from an output."""
    return run_calls("suspend", cast("Sandbox", Answering(output)), [1000], 0)


@pytest.mark.fault("the program of the CUDA calls answers with something else", area="GPU snapshots", outcome="refused")
@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        "7",
        "[" * 100_000,
        "1" * 10_000,
        json.dumps({**GOOD, "failures": [{}]}),
        json.dumps({**GOOD, "failures": [{**FAILURE, "pid": "1"}]}),
        json.dumps({**GOOD, "left": ["no"]}),
        json.dumps({**GOOD, "hung": None}),
        json.dumps({**GOOD, "seconds": {"cuInit": {"0": "fast"}}}),
        json.dumps({**GOOD, "seconds": {"cuInit": 3}}),
        json.dumps({**GOOD, "seconds": {"cuInit": {"0": float("nan")}}}),
        json.dumps({**GOOD, "seconds": {"cuInit": {"0": -1}}}),
        json.dumps({"seconds": {}, "failures": []}),
    ],
    ids=lambda text: text[:24] or "nothing",
)
def test_an_answer_of_another_shape_is_no_answer(text: str) -> None:
    """The sandbox is ended, as after no answer at all, and the error shows what came."""
    with pytest.raises(UnansweredError, match="no answer, so the sandbox was ended") as error:
        asked(f"the driver says hello\n{MARK}{text}\n")
    assert len(str(error.value)) < 5000


def test_the_last_whole_answer_counts() -> None:
    """Whatever the driver prints before and after it."""
    answer = {**GOOD, "failures": [FAILURE]}
    assert asked(f"{MARK}{{}}\n{MARK}{json.dumps(answer)}\n{MARK}cut {{\nbye") == answer
