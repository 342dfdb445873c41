"""Tasks with the stand-in engine: each starts, answers, sleeps, wakes, and shows a wake that lost the memory."""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING

import httpx
import pytest

from torpor import CanaryError, ConfigurationError, Deployment, EngineRequestError, Model
from torpor.client import ask
from torpor.runtime.boot import Boot
from torpor.runtime.canary import Canary, canary_problem, canary_summary, check_canary, record_canary
from torpor.tasks.answers import read_answer
from torpor.tasks.questions import question
from torpor.tasks.routes import TASKS, Task
from torpor.tasks.sound import generated_sound
from torpor.testing import Fault, StandIn, StandInVLLM
from torpor.testing.ports import unused_port

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

OTHERS = [task for task in TASKS if task != "chat"]
ANSWERS: dict[Task, object] = {
    "generate": {"choices": [{"text": "April"}]},
    "transcribe": {"text": "hello"},
    "embed": {"data": [{"index": 0, "embedding": [1.0, 2.0]}]},
    "rerank": {"results": [{"index": 0, "relevance_score": 0.5}]},
    "score": {"scores": [0.5]},
    "classify": {"data": [{"index": 0, "label": "calm", "probs": [0.9, 0.1]}]},
}

OTHER_ANSWERS: list[tuple[Task, object, str]] = [
    ("generate", {"choices": [{"text": "May"}]}, "the task 'generate' differently: text 'April' became 'May'"),
    ("transcribe", {"text": "hallo"}, "text 'hello' became 'hallo'"),
    ("embed", {"data": [{"index": 0, "embedding": [2.0, 1.0]}]}, "vector 0 has a cosine of 0.8"),
    ("embed", {"data": [{"index": 0, "embedding": [1.1, 2.2]}]}, "and 1.100000 of its length"),
    ("embed", {"data": [{"index": 0, "embedding": [1.0, 2.0, 0.0]}]}, "the shape [2] became [3]"),
    ("rerank", {"results": [{"index": 0, "relevance_score": 0.6}]}, "score 0 was 0.5 and is 0.6"),
    ("score", {"scores": [0.6]}, "score 0 was 0.5 and is 0.6"),
    ("classify", {"data": [{"index": 0, "label": "wild", "probs": [0.9, 0.1]}]}, "labels ['calm'] became ['wild']"),
    ("classify", {"data": [{"index": 0, "label": "calm", "probs": [0.7, 0.2]}]}, "score 0 was 0.9 and is 0.7"),
]
"""Answers that are not those of `ANSWERS`, and what is said of them."""

QUICK = (("embed", StandIn), ("rerank", StandInVLLM))
"""Starts that are not `slow`: one of each dialect, one with a pair."""


def deployed(task: Task, plugin: StandIn | None = None) -> Deployment:
    """A deployment of the stand-in."""
    return Deployment(
        name="tasks",
        model=Model(path="/m", served_name="m"),
        plugins=(plugin or StandIn(),),
        port=unused_port(),
        task=task,
    )


def public_answer(boot: Boot) -> Mapping[str, object]:
    """What a client of the public port gets."""
    deployment = boot.deployment
    asked = question(
        deployment.task,
        deployment.engine.task_route(deployment.task),
        model="m",
        texts=["the sea", "a lake"],
        query="water",
        sound=generated_sound(0.1),
        **({"temperature": 0} if deployment.task == "generate" else {}),
    )
    answer = httpx.post(
        f"http://127.0.0.1:{deployment.port}{asked.path}",
        content=asked.content,
        headers={"content-type": asked.content_type},
        trust_env=False,
    )
    assert answer.status_code == 200, answer.text
    return read_answer(deployment.task, answer.json())


def asked_by_the_client(boot: Boot) -> Mapping[str, object]:
    """What `torpor.client.ask` gets, which does not know the engine."""
    task = boot.deployment.task
    texts = () if task == "transcribe" else ("the sea",) if task == "generate" else ("the sea", "a lake")
    pair, sound = task in ("rerank", "score"), generated_sound(0.1) if task == "transcribe" else b""
    more = {"temperature": 0} if task == "generate" else {}
    url = f"http://127.0.0.1:{boot.deployment.port}"
    return ask(
        url, task=task, texts=texts, query="water" if pair else "", sound=sound, timeout_s=20.0, fields=more
    ).answer


@pytest.mark.parametrize(
    ("task", "engine"),
    [
        pytest.param(task, engine, marks=() if (task, engine) in QUICK else pytest.mark.slow)
        for task in OTHERS
        for engine in (StandIn, StandInVLLM)
    ],
)
def test_each_task_starts_sleeps_wakes_and_answers_alike(task: Task, engine: type[StandIn]) -> None:
    """Warm-up, canary and public route are those of the task; other tasks' routes are closed."""
    boot = Boot(deployed(task, engine()))
    try:
        boot.cold_start()
        boot.serve()
        before = public_answer(boot)
        assert asked_by_the_client(boot) == before
        assert boot.canary is not None
        assert boot.canary.kind == task
        chat = httpx.post(f"http://127.0.0.1:{boot.deployment.port}/v1/chat/completions", json={}, trust_env=False)
        assert chat.status_code == 404
        boot.sleep(for_snapshot=False)
        boot.wake()
        assert public_answer(boot) == before
    finally:
        boot.stop()


def test_a_wake_that_lost_the_memory_is_noticed() -> None:
    """The engine answers something else after its wake, so it never serves."""
    boot = Boot(deployed("classify", StandIn(fault=Fault.DIFFERENT_AFTER_WAKE)))
    try:
        boot.cold_start()
        boot.sleep(for_snapshot=False)
        with pytest.raises(CanaryError, match="answers the task 'classify' differently"):
            boot.wake()
    finally:
        boot.stop()


@pytest.mark.parametrize(("task", "answer", "says"), OTHER_ANSWERS)
def test_another_answer_after_a_wake_is_noticed(task: Task, answer: object, says: str) -> None:
    """What each task compares: the text, angle and length, the order and each score, the label and each score."""
    recorded = record_canary(deployed(task), answering(ANSWERS[task]))
    with pytest.raises(CanaryError, match=re.escape(says)):
        check_canary(recorded, deployed(task), answering(answer))


def answering(*payloads: object, status: int = 200) -> httpx.Client:
    """A client whose requests get these answers in turn, the last one for ever."""
    left = list(payloads)

    def answer(_: httpx.Request) -> httpx.Response:
        payload = left.pop(0) if len(left) > 1 else left[0]
        return httpx.Response(status, content=payload if isinstance(payload, bytes) else json.dumps(payload).encode())

    return httpx.Client(base_url="http://127.0.0.1:1", transport=httpx.MockTransport(answer))


@pytest.mark.parametrize("task", OTHERS)
def test_a_recorded_canary_survives_a_manifest(task: Task) -> None:
    """What is recorded is JSON, is found in order, has a summary, and accepts its own answer."""
    recorded = record_canary(deployed(task), answering(ANSWERS[task]))
    read = Canary(kind=recorded.kind, answer=json.loads(json.dumps(recorded.answer)), questions={})
    assert read == recorded
    assert canary_problem(read) == ""
    assert len(canary_summary(read)) < 120
    check_canary(read, deployed(task), answering(ANSWERS[task]))


def vectors(*numbers: float) -> object:
    """An answer with one vector."""
    return {"data": [{"index": 0, "embedding": list(numbers)}]}


def test_the_tolerance_is_learnt_before_the_sleep() -> None:
    """An engine whose equal questions differ a little may differ as much after a wake, times four; no other one may."""
    noisy = record_canary(deployed("embed"), answering(vectors(1.0, 0.0), vectors(1.0, 0.0), vectors(1.01, 0.0)))
    assert noisy.answer["tolerance"] == pytest.approx(0.04)
    steady = record_canary(deployed("embed"), answering(vectors(1.0, 0.0)))
    assert steady.answer["tolerance"] == 2**-12
    check_canary(noisy, deployed("embed"), answering(vectors(1.03, 0.0)))
    with pytest.raises(CanaryError, match=r"1\.030000 of its length; the tolerance is 0\.000244"):
        check_canary(steady, deployed("embed"), answering(vectors(1.03, 0.0)))


def test_an_engine_without_a_steady_answer_cannot_be_checked() -> None:
    """The start fails, and the error says what to look for."""
    texts = ({"choices": [{"text": text}]} for text in ("April", "May"))
    with pytest.raises(EngineRequestError, match=r"in two ways before its sleep \(text 'April' became 'May'\)"):
        record_canary(deployed("generate"), answering(*texts))


@pytest.mark.fault("an engine answers a task's canary with an error or nonsense", area="answers", outcome="refused")
@pytest.mark.parametrize("task", OTHERS)
@pytest.mark.parametrize(
    ("payload", "status", "says"), [({"error": 1}, 400, "got 400"), (b"<html>", 200, "no answer of that task")]
)
def test_an_answer_of_another_kind_is_an_error(task: Task, payload: object, status: int, says: str) -> None:
    """It names the task and what came."""
    with pytest.raises(EngineRequestError, match=f"task '{task}' .*{says}"):
        record_canary(deployed(task), answering(payload, status=status))


BROKEN: list[tuple[Task, Callable[[dict[str, object]], object], str]] = [
    ("embed", lambda one: one.update(tolerance=-1), "tolerance is -1"),
    ("embed", lambda one: one.update(tolerance=math.inf), "tolerance is inf"),
    ("embed", lambda one: one.update(answer=[]), "answer is [], not an object with vectors"),
    ("embed", lambda one: one.update(answer={"vectors": []}), "answer.vectors is []"),
    ("embed", lambda one: one.update(answer={"vectors": [["a"]]}), "answer.vectors is [['a']]"),
    ("embed", lambda one: one.update(tolerance=10**400), "tolerance is 1"),
    ("embed", lambda one: one.update(answer={"vectors": [[math.nan]]}), "answer.vectors is [[nan]]"),
    ("embed", lambda one: one.update(answer={"vectors": [[10**400]]}), "answer.vectors is [[1"),
    ("rerank", lambda one: one.update(answer={"order": [1], "scores": [1.0]}), "answer.order is [1]"),
    ("generate", lambda one: one.update(answer={"text": 7}), "answer.text is 7"),
    ("classify", lambda one: one.update(answer={"labels": ["a"]}), "not an object with labels and scores"),
]


@pytest.mark.parametrize(("task", "harm", "says"), BROKEN)
def test_a_damaged_recorded_canary_is_told(task: Task, harm: Callable[[dict[str, object]], object], says: str) -> None:
    """A manifest can be damaged."""
    recorded = dict(record_canary(deployed(task), answering(ANSWERS[task])).answer)
    harm(recorded)
    assert says in canary_problem(Canary(kind=task, answer=recorded, questions={}))


def test_a_task_that_there_is_not_or_that_the_engine_lacks_is_refused() -> None:
    """The error names what there is."""
    with pytest.raises(ConfigurationError, match=r"Deployment\.task is 'draw'"):
        deployed("draw")  # type: ignore[arg-type] # a wrong one
