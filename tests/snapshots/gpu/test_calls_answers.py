"""`torpor.snapshots.gpu.calls`: the answer of the calls' program is checked before it is used."""

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
    """Stands in for a sandbox whose program prints a given output."""

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
    """The answer that `run_calls` finds in an output."""
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
def test_a_malformed_answer_counts_as_no_answer(text: str) -> None:
    """It raises the same error as a missing answer, with the output."""
    with pytest.raises(UnansweredError, match="no answer, so the sandbox was ended") as error:
        asked(f"the driver says hello\n{MARK}{text}\n")
    assert len(str(error.value)) < 5000


def test_the_last_complete_answer_counts() -> None:
    """Whatever the driver prints before and after it."""
    answer = {**GOOD, "failures": [FAILURE]}
    assert asked(f"{MARK}{{}}\n{MARK}{json.dumps(answer)}\n{MARK}cut {{\nbye") == answer
