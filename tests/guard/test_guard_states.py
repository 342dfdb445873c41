"""The states: every transition once and in order, everything else 409 with the state; drains that end."""

from __future__ import annotations

import asyncio
import json
from itertools import product

import pytest

from tests.guard.engine import KEY, OTHER_KEY, REPLICA_ID, RULES, guarded
from tests.guard.exchange import Exchange, ask, control, in_loop, settle, to_asleep, to_serving, to_waking
from torpor.guard import Guard, GuardRules, State

IN_ORDER = {
    ("starting", "serve"): "serving",
    ("starting", "drain"): "draining",
    ("serving", "drain"): "draining",
    ("draining", "serve"): "serving",  # nothing was put to sleep yet
    ("slept", "asleep"): "asleep",
    ("asleep", "wake"): "waking",
    ("woken", "serve"): "serving",
}
STATES = ("starting", "serving", "draining", "half asleep", "slept", "asleep", "waking", "half awake", "woken")


async def bring_to(guard: Guard, state: str) -> None:
    """Bring a new guard to a state; `half asleep` to `slept` are draining, `half awake` and `woken` are waking."""
    if state == "serving":
        await to_serving(guard)
    elif state in ("draining", "half asleep", "slept"):
        assert (await control(guard, "drain")).status == 200
        for step in {"draining": (), "half asleep": RULES.sleep[:1], "slept": RULES.sleep}[state]:
            assert (await ask(guard, step, method="POST", key=KEY)).status == 200
    elif state == "asleep":
        await to_asleep(guard)
    elif state in ("waking", "half awake", "woken"):
        await to_waking(guard)
        for step in {"waking": (), "half awake": RULES.wake[:1], "woken": RULES.wake}[state]:
            assert (await ask(guard, step, method="POST", key=KEY)).status == 200


@in_loop
async def test_a_whole_life_sleeps_and_wakes_twice() -> None:
    """Every step reaches the engine once per sleep."""
    engine, guard = guarded()
    await to_serving(guard)
    for _ in range(2):
        await to_waking(guard)
        for step in RULES.wake:
            assert (await ask(guard, step, method="POST", key=KEY)).status == 200
        assert guard.state is State.WAKING, "a wake serves only when it is told to"
        await to_serving(guard)
    assert engine.paths == ["/pause", "/release", "/resume", "/continue"] * 2
    assert engine.violations == []


@pytest.mark.parametrize(("state", "name"), list(product(STATES, ("serve", "drain", "asleep", "wake"))))
@in_loop
async def test_a_transition_out_of_order_is_409_with_the_state(state: str, name: str) -> None:
    """And changes nothing."""
    engine, guard = guarded()
    await bring_to(guard, state)
    before, calls = guard.state, len(engine.calls)
    answer = await control(guard, name)
    if (after := IN_ORDER.get((state, name))) is not None:
        assert (answer.status, answer.json) == (200, {"state": after})
        assert guard.state == after
    else:
        assert (answer.status, answer.json) == (409, {"error": f"{name} is out of order", "state": before})
        assert guard.state is before
    assert len(engine.calls) == calls


@pytest.mark.parametrize(("state", "path"), list(product(STATES, RULES.sleep + RULES.wake)))
@in_loop
async def test_a_step_out_of_order_is_409_and_never_reaches_the_engine(state: str, path: str) -> None:
    """A repeated resume ends the engine."""
    engine, guard = guarded()
    await bring_to(guard, state)
    before, calls = guard.state, len(engine.calls)
    answer = await ask(guard, path, method="POST", key=KEY)
    next_step = {"draining": "/pause", "half asleep": "/release", "waking": "/resume", "half awake": "/continue"}
    if next_step.get(state) == path:
        assert answer.status == 200
    else:
        assert (answer.status, answer.json["state"]) == (409, before)
        assert len(engine.calls) == calls
    assert guard.state is before
    assert engine.violations == []


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("path", ["/info", "/v1/chat", "/metrics"])
@in_loop
async def test_the_key_opens_the_engine_only_while_it_is_awake(state: str, path: str) -> None:
    """Between the first sleep step and the last wake step its memory may be gone."""
    engine, guard = guarded()
    await bring_to(guard, state)
    calls = len(engine.calls)
    answer = await ask(guard, path, method="POST", key=KEY)
    if state in ("starting", "serving", "draining", "woken"):
        assert answer.status == 200
    else:
        assert (answer.status, answer.json["state"]) == (409, guard.state)
        assert len(engine.calls) == calls
    assert engine.violations == []


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT"])
@in_loop
async def test_a_step_is_a_post(method: str) -> None:
    """An engine might answer 200 to another method and do nothing, which must not count as done."""
    engine, guard = guarded()
    await bring_to(guard, "draining")
    assert (await ask(guard, "/pause", method=method, key=KEY)).status == 405
    assert engine.calls == []
    assert (await ask(guard, "/pause", method="POST", key=KEY)).status == 200


@pytest.mark.parametrize("state", ["draining", "half asleep", "waking", "half awake"])
@pytest.mark.parametrize("status", [199, 302, 400, 500])
@in_loop
async def test_after_a_failed_step_every_call_is_refused(state: str, status: int) -> None:
    """Core ends such an engine: its memory may be half released. It never serves again."""
    engine, guard = guarded()
    await bring_to(guard, state)
    step = {"draining": "/pause", "half asleep": "/release", "waking": "/resume", "half awake": "/continue"}[state]
    engine.statuses[step] = status
    assert (await ask(guard, step, method="POST", key=KEY)).status == status
    calls, before = len(engine.calls), guard.state
    for path in (*RULES.sleep, *RULES.wake, "/info", "/v1/chat"):
        assert (await ask(guard, path, method="POST", key=KEY)).status == 409
    for name in ("serve", "drain", "asleep", "wake"):
        assert (await control(guard, name)).status == 409
    assert (await ask(guard, "/v1/chat", method="POST")).status == 503
    assert (await ask(guard, "/health")).status == 503
    assert (len(engine.calls), guard.state) == (calls, before)


@pytest.mark.parametrize("how", ["raises", "stays silent", "answers half"])
@in_loop
async def test_a_step_without_a_complete_answer_has_failed(how: str) -> None:
    """A status line with 200 is not enough."""

    async def app(_scope: object, _receive: object, send: object) -> None:
        assert callable(send)
        if how == "answers half":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"{", "more_body": True})
        if how == "raises":
            raise RuntimeError("no memory")

    guard = Guard(app, RULES, key=KEY, replica_id=REPLICA_ID)
    assert (await control(guard, "drain")).status == 200
    exchange = Exchange(guard, "/pause", method="POST", key=KEY)
    await asyncio.gather(exchange.task, return_exceptions=True)
    assert guard.in_flight == 0
    assert (await ask(guard, "/release", method="POST", key=KEY)).status == 409
    assert (await control(guard, "serve")).status == 409


@in_loop
async def test_a_step_whose_caller_hung_up_is_done_when_the_engine_has_done_it() -> None:
    """The engine finished the step, so the next one may follow."""
    engine, guard = guarded()
    await bring_to(guard, "draining")
    exchange = Exchange(guard, "/pause", method="POST", key=KEY)
    exchange.hang_up()
    await exchange.task
    assert engine.paths == ["/pause"]
    assert (await ask(guard, "/release", method="POST", key=KEY)).status == 200


@in_loop
async def test_while_a_step_runs_everything_waits() -> None:
    """No second step, no request, no transition."""
    release = asyncio.Event()

    async def app(_scope: object, _receive: object, send: object) -> None:
        assert callable(send)
        await release.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    guard = Guard(app, RULES, key=KEY, replica_id=REPLICA_ID)
    await control(guard, "drain")
    step = Exchange(guard, "/pause", method="POST", key=KEY)
    await settle()
    assert guard.in_flight == 1
    for path in ("/pause", "/release", "/info"):
        assert (await ask(guard, path, method="POST", key=KEY)).status == 409
    for name in ("serve", "drain", "asleep", "wake"):
        assert (await control(guard, name)).status == 409
    release.set()
    await step.task
    assert step.status == 200


@in_loop
async def test_nothing_sleeps_while_a_keyed_request_is_in_flight() -> None:
    """The holder of the key may still ask after the drain; a sleep step then would kill its request."""
    engine, guard = guarded()
    await bring_to(guard, "draining")
    engine.gate.clear()
    keyed = Exchange(guard, "/v1/chat", method="POST", key=KEY)
    await settle()
    assert (await ask(guard, "/pause", method="POST", key=KEY)).status == 409
    engine.gate.set()
    await keyed.task
    assert (await ask(guard, "/pause", method="POST", key=KEY)).status == 200
    assert engine.violations == []


@in_loop
async def test_an_engine_without_steps_only_drains() -> None:
    """Not every engine can release memory."""
    engine, guard = guarded(GuardRules(public=RULES.public))
    for name in ("serve", "drain", "asleep", "wake", "serve"):
        assert (await control(guard, name)).status == 200
    assert (engine.calls, guard.state) == ([], State.SERVING)


# Keys ----------------------------------------------------------------------------------------------------------------


@in_loop
async def test_a_wake_brings_a_new_key_and_the_old_one_opens_nothing() -> None:
    """The old one is in every replica of the snapshot."""
    engine, guard = guarded()
    await to_asleep(guard)
    assert (await control(guard, "wake", {"key": OTHER_KEY})).status == 200
    calls = len(engine.calls)
    for path in ("/_torpor/state", "/_torpor/serve", "/resume", "/info", "/v1/chat"):
        assert (await ask(guard, path, method="POST", key=KEY)).status == 403
    assert len(engine.calls) == calls
    for step in RULES.wake:
        assert (await ask(guard, step, method="POST", key=OTHER_KEY)).status == 200
    assert (await control(guard, "serve", key=OTHER_KEY)).status == 200


@pytest.mark.parametrize("key", ["short", "", None, 5, ["k" * 43], "k" * 20 + "\n", "k" * 20 + " ", "ü" * 20, KEY])
@in_loop
async def test_a_wake_with_an_invalid_or_the_old_key_is_refused(key: object) -> None:
    """400, still asleep, and the old key stays."""
    _, guard = guarded()
    await to_asleep(guard)
    answer = await control(guard, "wake", {"key": key})
    assert answer.status == 400
    assert "key has to be" in str(answer.json["error"])
    assert guard.state is State.ASLEEP
    assert (await control(guard, "state")).status == 200


@in_loop
async def test_a_wake_may_bring_a_new_replica_id() -> None:
    """Several replicas may wake from one snapshot; each tells its own name from then on."""
    _, guard = guarded()
    await to_asleep(guard)
    for wrong in ("", 5, None):
        assert (await control(guard, "wake", {"replica_id": wrong})).status == 400
    assert (await control(guard, "state")).json["replica_id"] == REPLICA_ID
    assert (await control(guard, "wake", {"replica_id": "another"})).status == 200
    assert (await control(guard, "state")).json["replica_id"] == "another"


@pytest.mark.parametrize("path", ["/health", "/ready"])
@in_loop
async def test_health_tells_everybody_what_the_start_was_and_nothing_secret(path: str) -> None:
    """Cold, woken in the same process, or restored under a new replica id. A restored replica stays restored."""
    _, guard = guarded()
    told: list[tuple[str, str]] = []
    tags: list[str] = []
    for identity in (None, {}, {"replica_id": "fedcba9876543210"}, {"replica_id": "fedcba9876543210"}):
        if identity is not None:
            await to_asleep(guard)
            assert (await control(guard, "wake", identity)).status == 200
            for step in RULES.wake:
                assert (await ask(guard, step, method="POST", key=KEY)).status == 200
        await to_serving(guard)
        answer = await ask(guard, path)
        assert answer.status == 200
        told.append((answer.headers["torpor-boot"], answer.headers["torpor-wakes"]))
        tags.append(answer.headers["torpor-replica"])
        said = str(answer.headers) + str(answer.json)
        assert not any(secret in said for secret in (KEY, REPLICA_ID, "fedcba9876543210"))
    assert told == [("cold", "0"), ("woken", "1"), ("restored", "2"), ("restored", "3")]
    assert [tag == tags[0] for tag in tags] == [True, True, False, False]
    assert tags[2] == tags[3]
    assert len(tags[0]) == 12


@in_loop
async def test_a_refused_wake_changes_no_header() -> None:
    """A wake out of order does not take effect, and neither does its replica id."""
    _, guard = guarded()
    await to_serving(guard)
    before = (await ask(guard, "/ready")).headers
    assert (await control(guard, "wake", {"replica_id": "another"})).status == 409
    assert (await ask(guard, "/ready")).headers == before


@in_loop
async def test_no_other_path_reports_the_kind_of_start() -> None:
    """Neither on the engine's answers, which the guard does not touch, nor on a refusal."""
    _, guard = guarded()
    await to_serving(guard)
    for path in ("/v1/models", "/secret", "/metrics"):
        headers = (await ask(guard, path)).headers
        assert [name for name in headers if name.startswith("torpor-")] == []


@in_loop
async def test_a_key_sent_at_the_wrong_time_is_not_taken() -> None:
    """Only asleep -> waking replaces it."""
    _, guard = guarded()
    await to_serving(guard)
    assert (await control(guard, "wake", {"key": OTHER_KEY})).status == 409
    assert (await control(guard, "state", key=OTHER_KEY)).status == 403
    assert (await control(guard, "state")).status == 200


@in_loop
async def test_of_two_wakes_at_once_one_wins() -> None:
    """The other finds the engine waking."""
    _, guard = guarded()
    await to_asleep(guard)
    both = [Exchange(guard, "/_torpor/wake", method="POST", key=KEY) for _ in range(2)]
    await asyncio.gather(*(exchange.task for exchange in both))
    assert sorted(exchange.status for exchange in both) == [200, 409]


# Control requests ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b"1",
        b'"x"',
        b"null",
        b"\xff",
        b"[" * 4000,
        b'{"a": ' * 600,
        b" " * 4097,
        b'{"x": "' + b"y" * 4096 + b'"}',
    ],
)
@pytest.mark.parametrize("name", ["serve", "drain", "asleep", "wake"])
@in_loop
async def test_a_control_body_that_is_no_small_json_object_is_400(name: str, body: bytes) -> None:
    """With the key, in whatever state; nothing changes."""
    _, guard = guarded()
    for pieces in (body, (body[:2], body[2:])):
        answer = await ask(guard, f"/_torpor/{name}", method="POST", key=KEY, body=pieces)
        assert answer.status == 400
        assert "4096 bytes" in str(answer.json["error"])
    assert guard.state is State.STARTING


@pytest.mark.parametrize("deadline_s", [-1, 86401, 1e400, float("nan"), True, "5", None, [1], {}])
@in_loop
async def test_an_invalid_deadline_is_400(deadline_s: object) -> None:
    """Python's JSON parser accepts infinity and NaN; a deadline is neither."""
    _, guard = guarded()
    await to_serving(guard)
    assert (await control(guard, "drain", {"deadline_s": deadline_s})).status == 400
    assert guard.state is State.SERVING


WRONG_METHODS = [
    (name, method)
    for name in ("serve", "drain", "asleep", "wake", "state")
    for method in ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE")
    if method != ("GET" if name == "state" else "POST")
]


@pytest.mark.parametrize(("name", "method"), WRONG_METHODS)
@in_loop
async def test_control_calls_have_one_method(name: str, method: str) -> None:
    """A GET changes nothing, ever."""
    _, guard = guarded()
    await to_serving(guard)
    assert (await ask(guard, f"/_torpor/{name}", method=method, key=KEY)).status == 405
    assert guard.state is State.SERVING


@in_loop
async def test_a_caller_that_hangs_up_within_its_body_changes_nothing() -> None:
    """An incomplete call has no effect."""
    _, guard = guarded()
    half = Exchange(guard, "/_torpor/serve", method="POST", key=KEY, body=(b'{"a"',), ends=False)
    half.hang_up()
    await half.task
    assert guard.state is State.STARTING


# Drain ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/chat", "/v1/stream"])
@in_loop
async def test_a_drain_ends_when_the_last_answer_does(path: str) -> None:
    """Requests that arrive meanwhile get 503, with the key 409; those in flight finish."""
    engine, guard = guarded()
    await to_serving(guard)
    engine.gate.clear()
    running = [Exchange(guard, path, method="POST") for _ in range(2)]
    await settle()
    drain = Exchange(guard, "/_torpor/drain", method="POST", key=KEY, body=b'{"deadline_s": 60}')
    await settle()
    assert (guard.state, drain.complete) == (State.DRAINING, False)
    late = await ask(guard, "/v1/chat", method="POST")
    assert (late.status, late.headers["retry-after"]) == (503, "7")
    assert (await ask(guard, "/info", key=KEY)).status == 409
    assert (await ask(guard, "/health")).status == 503
    engine.gate.set()
    await drain.task
    assert [exchange.complete for exchange in running] == [True, True]
    assert (drain.status, drain.json, guard.in_flight) == (200, {"state": "draining"}, 0)


@in_loop
async def test_a_drain_from_starting_waits_for_keyed_requests() -> None:
    """For example the warm-up's."""
    engine, guard = guarded()
    engine.gate.clear()
    warmup = Exchange(guard, "/v1/chat", method="POST", key=KEY)
    await settle()
    answer = await control(guard, "drain", {"deadline_s": 0.01})
    assert (answer.status, answer.json["in_flight"], guard.state) == (409, 1, State.STARTING)
    engine.gate.set()
    await warmup.task
    assert (await control(guard, "drain")).status == 200


@pytest.mark.parametrize("deadline_s", [0, 0.02])
@in_loop
async def test_at_the_deadline_a_drain_ends_and_reports_the_requests_in_flight(deadline_s: float) -> None:
    """No request was lost, and the server goes on serving."""
    engine, guard = guarded()
    await to_serving(guard)
    engine.gate.clear()
    running = [Exchange(guard, "/v1/chat", method="POST") for _ in range(2)]
    await settle()
    answer = await control(guard, "drain", {"deadline_s": deadline_s})
    assert (answer.status, guard.state) == (409, State.SERVING)
    assert answer.json == {"error": "requests are still in flight", "state": "serving", "in_flight": 2}
    engine.gate.set()
    await settle()
    assert [exchange.status for exchange in running] == [200, 200]
    assert (await ask(guard, "/v1/chat", method="POST")).status == 200
    assert (await control(guard, "drain")).status == 200


@in_loop
async def test_a_drain_waits_for_every_answer_not_for_one() -> None:
    """Two are in flight and one of them ends."""
    engine, guard = guarded()
    await to_serving(guard)
    engine.gate.clear()
    leaves, stays = (Exchange(guard, "/v1/chat", method="POST") for _ in range(2))
    await settle()
    drain = Exchange(guard, "/_torpor/drain", method="POST", key=KEY, body=b'{"deadline_s": 60}')
    await settle()
    leaves.hang_up()
    await settle()
    assert (guard.in_flight, drain.complete) == (1, False)
    engine.gate.set()
    await drain.task
    assert (stays.status, drain.status) == (200, 200)


@in_loop
async def test_a_drain_fails_if_its_caller_hangs_up() -> None:
    """The caller assumes that the drain failed, so the guard has to open again."""
    engine, guard = guarded()
    await to_serving(guard)
    engine.gate.clear()
    running = Exchange(guard, "/v1/chat", method="POST")
    await settle()
    drain = Exchange(guard, "/_torpor/drain", method="POST", key=KEY, body=b'{"deadline_s": 60}')
    await settle()
    drain.hang_up()
    await drain.task
    assert guard.state is State.SERVING
    engine.gate.set()
    await running.task
    assert running.status == 200
    assert (await control(guard, "drain")).status == 200


@in_loop
async def test_a_drain_fails_if_its_caller_hangs_up_with_the_last_answer() -> None:
    """The drain sees both at once; the caller would not learn that it succeeded."""
    release = asyncio.Event()

    async def app(_scope: object, _receive: object, send: object) -> None:
        assert callable(send)
        await release.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    guard = Guard(app, RULES, key=KEY, replica_id=REPLICA_ID)
    await to_serving(guard)
    running = Exchange(guard, "/v1/chat", method="POST")
    drain = Exchange(guard, "/_torpor/drain", method="POST", key=KEY, body=b'{"deadline_s": 60}')
    await settle()
    assert guard.state is State.DRAINING
    release.set()
    drain.hang_up()
    await asyncio.gather(running.task, drain.task)
    assert await serves(guard)


async def serves(guard: Guard) -> bool:
    """Whether it does."""
    return (await ask(guard, "/health")).status == 200


@in_loop
async def test_a_drain_that_the_server_cancels_goes_back() -> None:
    """A server that shuts down cancels its tasks."""
    engine, guard = guarded()
    await to_serving(guard)
    engine.gate.clear()
    running = Exchange(guard, "/v1/chat", method="POST")
    await settle()
    drain = Exchange(guard, "/_torpor/drain", method="POST", key=KEY, body=b'{"deadline_s": 60}')
    await settle()
    drain.task.cancel()
    await asyncio.gather(drain.task, return_exceptions=True)
    assert guard.state is State.SERVING
    engine.gate.set()
    await running.task


@in_loop
async def test_while_a_drain_waits_every_other_call_is_out_of_order() -> None:
    """Only one control call at a time takes effect."""
    engine, guard = guarded()
    await to_serving(guard)
    engine.gate.clear()
    running = Exchange(guard, "/v1/chat", method="POST")
    await settle()
    drain = Exchange(guard, "/_torpor/drain", method="POST", key=KEY, body=b'{"deadline_s": 60}')
    await settle()
    for name in ("serve", "drain", "asleep", "wake"):
        answer = await control(guard, name, {"deadline_s": 60})
        assert (answer.status, answer.json["state"]) == (409, "draining")
    assert (await ask(guard, "/pause", method="POST", key=KEY)).status == 409
    engine.gate.set()
    await asyncio.gather(drain.task, running.task)
    assert (drain.status, guard.state) == (200, State.DRAINING)


@pytest.mark.parametrize(
    "rules", [RULES, GuardRules(public=RULES.public, keyed=RULES.keyed)], ids=["steps", "no steps"]
)
@in_loop
async def test_no_request_passes_between_the_last_answer_and_the_drains_own(rules: GuardRules) -> None:
    """The drain is about to report that nothing is in flight; a call at that moment would make the report wrong."""
    engine, guard = guarded(rules)
    await to_serving(guard)
    engine.gate.clear()
    running = Exchange(guard, "/v1/chat", method="POST")
    await settle()
    drain = Exchange(guard, "/_torpor/drain", method="POST", key=KEY, body=b'{"deadline_s": 60}')
    await settle()
    engine.gate.set()
    seen = set()
    paths = ("/info", "/_torpor/asleep", "/_torpor/serve", *rules.sleep[:1])
    moments = 0
    while not drain.complete:
        moments += running.complete
        calls = [Exchange(guard, path, method="POST", key=KEY) for path in paths]
        await asyncio.sleep(0)
        if not drain.complete:
            seen |= {call.status for call in calls}
            assert guard.in_flight == (0 if running.complete else 1)
    assert seen == {409}
    assert moments, "there was such a moment"


@in_loop
async def test_an_engine_without_steps_is_not_asleep_while_it_answers() -> None:
    """The holder of the key may still ask after the drain."""
    engine, guard = guarded(GuardRules(public=RULES.public))
    assert (await control(guard, "drain")).status == 200
    engine.gate.clear()
    keyed = Exchange(guard, "/v1/chat", method="POST", key=KEY)
    await settle()
    assert (await control(guard, "asleep")).status == 409
    engine.gate.set()
    await keyed.task
    assert (await control(guard, "asleep")).status == 200


@in_loop
async def test_no_timer_is_pending_while_asleep() -> None:
    """A snapshot keeps timers; after a restore the clock has jumped, and they would all fire at once."""
    engine, guard = guarded()
    await to_serving(guard)
    engine.gate.clear()
    running = Exchange(guard, "/v1/chat", method="POST")
    await settle()
    loop = asyncio.get_running_loop()
    timers = _pending_timers(loop)
    drain = Exchange(guard, "/_torpor/drain", method="POST", key=KEY, body=b'{"deadline_s": 3600}')
    await settle()
    assert _pending_timers(loop) == timers + 1, "the deadline"
    engine.gate.set()
    await asyncio.gather(drain.task, running.task)
    for step in RULES.sleep:
        await ask(guard, step, method="POST", key=KEY)
    assert (await control(guard, "asleep")).status == 200
    assert _pending_timers(loop) == timers
    assert len(asyncio.all_tasks()) == 2, "this test, and the limit on it"


def _pending_timers(loop: asyncio.AbstractEventLoop) -> int:
    scheduled = loop._scheduled  # type: ignore[attr-defined]
    return sum(not handle.cancelled() for handle in scheduled)


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0])
def test_a_clock_that_jumps_while_asleep_changes_nothing(jump_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a restore the monotonic clock may be an hour on, or back where another machine's is."""

    async def life() -> None:
        engine, guard = guarded()
        await to_serving(guard)
        await to_asleep(guard)
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "time", lambda now=loop.time: now() + jump_s)
        assert (await control(guard, "wake")).status == 200
        for step in RULES.wake:
            assert (await ask(guard, step, method="POST", key=KEY)).status == 200
        await to_serving(guard)
        engine.gate.clear()
        running = Exchange(guard, "/v1/chat", method="POST")
        await settle()
        answer = await control(guard, "drain", {"deadline_s": 0.02})
        assert (answer.status, answer.json["in_flight"]) == (409, 1)
        engine.gate.set()
        await running.task

    asyncio.run(life())


@in_loop
async def test_the_answer_to_a_conflict_is_json_with_error_and_state() -> None:
    """Core prints it when a lifecycle call fails."""
    _, guard = guarded()
    answer = await control(guard, "asleep")
    assert answer.headers["content-type"] == "application/json"
    assert set(json.loads(answer.body)) == {"error", "state"}
