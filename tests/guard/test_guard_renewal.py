"""A wake renews what replicas of a snapshot share, and calls the engine's own renewal."""

from __future__ import annotations

import asyncio
import gc
import random
import sys
import tempfile
import uuid
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from tests.guard.engine import KEY, REPLICA_ID, RULES, TinyEngine
from tests.guard.exchange import ask, control, in_loop, to_asleep, to_serving, to_waking
from torpor import GuardStateError, start_engine
from torpor.engine_patches import renewal
from torpor.engine_patches.renewal import generators_of_their_own, renew_random_state
from torpor.guard import Guard, GuardRules
from torpor.runtime.guard_client import GuardControl, open_client
from torpor.runtime.readiness import wait_ready

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torpor.guard.control import OnWake


@pytest.fixture(autouse=True)
def _states() -> Iterator[None]:
    """This process's own state is what it was afterwards."""
    state, facts = random.getstate(), {**vars(uuid)}
    yield
    random.setstate(state)
    vars(uuid).update({name: facts[name] for name in ("_node", "_generate_time_safe", "_last_timestamp")})


def guarded(on_wake: OnWake | None = None) -> Guard:
    """A tiny engine's guard."""
    engine = TinyEngine()
    engine.guard = Guard(engine, RULES, key=KEY, replica_id=REPLICA_ID, on_wake=on_wake)
    return engine.guard


def replicas(draw: Callable[[], object]) -> tuple[object, object]:
    """What two replicas of one snapshot draw first after their wakes."""
    state = random.getstate()
    drawn = []
    for _ in range(2):
        random.setstate(state)
        renew_random_state()
        drawn.append(draw())
    return drawn[0], drawn[1]


@pytest.mark.fault("two replicas are restored from one snapshot", area="random state", outcome="held")
def test_two_replicas_draw_different_numbers() -> None:
    """The default generator of Python, and names of temporary files."""
    first, second = replicas(lambda: random.getrandbits(64))
    assert first != second
    names = tempfile._get_candidate_names()  # type: ignore[attr-defined]
    next(names)
    kept = names.rng.getstate()

    def next_name() -> object:
        names._rng.setstate(kept)
        renew_random_state()
        return next(names)

    assert next_name() != next_name()


def test_two_replicas_make_different_time_based_ids() -> None:
    """At the same moment: node and clock sequence are random, and libuuid's hidden state is not asked."""
    first, second = replicas(uuid.uuid1)
    assert isinstance(first, uuid.UUID)
    assert isinstance(second, uuid.UUID)
    assert first.node != second.node
    assert first.node >> 40 & 1, "no network card's address"
    assert first.version == 1


def test_ranks_that_sample_together_take_one_seed() -> None:
    """As tensor-parallel ranks do, each of which samples for itself."""
    drawn = []
    for _ in range(2):
        renew_random_state(seed=7)
        drawn.append(random.random())
    assert drawn[0] == drawn[1]


class Library:
    """A module that notes what it is seeded with."""

    def __init__(self) -> None:
        self.seeds: list[int] = []
        self.entropy: list[bytes] = []

    def seed(self, seed: int) -> None:
        self.seeds.append(seed)

    manual_seed = seed

    def RAND_add(self, data: bytes, entropy: float) -> None:  # noqa: N802 - OpenSSL's name
        assert len(data) == entropy
        self.entropy.append(data)


def test_only_what_is_imported_is_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of numpy and torch the default generators; OpenSSL gets other bits each time, whatever the seed is."""
    numpy, torch, openssl = Library(), Library(), Library()
    modules = {"numpy.random": numpy, "torch": torch, "_ssl": openssl}
    monkeypatch.setattr(renewal, "sys", SimpleNamespace(modules=modules))
    for _ in range(2):
        renew_random_state(seed=2**32 - 1)
    assert numpy.seeds == torch.seeds == [2**32 - 1] * 2
    assert len(set(openssl.entropy)) == 2
    monkeypatch.setattr(renewal, "sys", SimpleNamespace(modules={"torch": object()}))
    renew_random_state()


@in_loop
async def test_a_wake_renews_the_state_of_the_guards_process() -> None:
    """With a new replica id and without one."""
    for options in ({}, {"replica_id": "copy"}):
        guard = guarded()
        await to_asleep(guard)
        random.seed(1)
        expected = random.Random(1).random()
        assert (await control(guard, "wake", options)).status == 200
        assert random.random() != expected


@in_loop
async def test_the_engines_own_renewal_comes_between_wake_and_service() -> None:
    """Once for each wake, after every step and before any other request."""
    seen: list[tuple[str, int]] = []
    guard = guarded(lambda: seen.append((guard.state, guard.in_flight)))
    await to_serving(guard)
    assert seen == [], "a start is no wake"
    for number in (1, 2):
        await to_waking(guard)
        assert (await control(guard, "serve")).status == 409
        for step in ("/resume", "/continue"):
            assert (await ask(guard, step, method="POST", key=KEY)).status == 200
        assert (await control(guard, "serve")).status == 200
        assert seen == [("waking", 0)] * number
    assert (await ask(guard, "/v1/models")).status == 200


@in_loop
async def test_a_coroutine_is_awaited_and_every_other_call_refused() -> None:
    """A second call to serve, and one to the engine, are refused meanwhile."""
    began, go = asyncio.Event(), asyncio.Event()
    calls: list[int] = []

    async def renew() -> None:
        calls.append(1)
        began.set()
        await go.wait()

    guard = guarded(renew)
    await to_waking(guard)
    for step in ("/resume", "/continue"):
        await ask(guard, step, method="POST", key=KEY)
    serving = asyncio.ensure_future(control(guard, "serve"))
    await began.wait()
    assert (await control(guard, "serve")).status == 409
    assert (await ask(guard, "/info", key=KEY)).status == 409
    assert (await ask(guard, "/v1/models")).status == 503
    go.set()
    assert (await serving).status == 200
    assert calls == [1]


@pytest.mark.fault("an engine cannot make its own random state new at a wake", area="random state", outcome="refused")
@in_loop
async def test_a_renewal_that_fails_fails_the_wake() -> None:
    """Nothing is served after that; the answer names the exception."""

    def fail() -> None:
        raise RuntimeError("no generator")

    guard = guarded(fail)
    await to_waking(guard)
    for step in ("/resume", "/continue"):
        await ask(guard, step, method="POST", key=KEY)
    answer = await control(guard, "serve")
    assert (answer.status, answer.json["error"]) == (500, "the engine's on_wake failed: RuntimeError: no generator")
    assert (await control(guard, "serve")).status == 409
    assert (await ask(guard, "/v1/models")).status == 503


FAILING = """
import sys, uvicorn
from torpor.guard import Guard, read_boot
boot = read_boot()
def fail(): raise RuntimeError("no generator")
async def engine(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})
guard = Guard(engine, boot.rules, key=boot.key, replica_id=boot.replica_id, on_wake=fail)
uvicorn.run(guard, port=int(sys.argv[1]), lifespan="off", log_level="warning")
"""


@pytest.mark.fault("an engine's on_wake raises", area="random state", outcome="refused")
def test_core_says_what_the_engine_raised_at_its_wake(free_port: int) -> None:
    """The message has the error and no advice that is about something else."""
    engine = start_engine([sys.executable, "-c", FAILING, str(free_port)], guard=GuardRules(public=("/v1/models",)))
    try:
        with open_client(engine, port=free_port, timeout_s=30) as client:
            wait_ready(engine, client, port=free_port, ready_path="/v1/models", timeout_s=60)
            guard = GuardControl(engine, client)
            guard.drain(1.0)
            guard.asleep()
            guard.wake()
            with pytest.raises(
                GuardStateError, match=r"could not serve: .*on_wake failed: RuntimeError: no generator"
            ) as told:
                guard.serve()
        assert "once each" not in str(told.value)
    finally:
        engine.terminate(0.0)


@in_loop
async def test_generators_that_no_wake_renews_are_logged_once(capsys: pytest.CaptureFixture[str]) -> None:
    """In the engine's log, before the first snapshot; an engine with an on_wake of its own knows."""
    gc.collect()
    before = generators_of_their_own().get("random.Random", 0)
    mine = [random.Random() for _ in range(3)]
    assert generators_of_their_own()["random.Random"] == before + len(mine)
    for on_wake, lines in ((None, 1), (lambda: None, 0)):
        guard = guarded(on_wake)
        for _ in range(2):
            await to_waking(guard)
            for step in ("/resume", "/continue"):
                assert (await ask(guard, step, method="POST", key=KEY)).status == 200
            assert (await control(guard, "serve")).status == 200
        said = capsys.readouterr().err
        assert said.count("a wake does not renew these random generators") == lines
        assert (f"{before + 3} of random.Random" in said) == bool(lines)


@in_loop
async def test_a_state_that_cannot_be_renewed_fails_the_wake(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica that would answer like all the others must not serve."""

    class Broken:
        def seed(self, _seed: int) -> None:
            raise OSError("no entropy")

    guard = guarded()
    await to_asleep(guard)
    monkeypatch.setitem(sys.modules, "numpy.random", Broken())
    answer = await control(guard, "wake")
    assert (answer.status, answer.json["error"]) == (500, "the random state cannot be made new: OSError: no entropy")
    for step in ("/resume", "/continue"):
        assert (await ask(guard, step, method="POST", key=KEY)).status == 409
    assert (await control(guard, "serve")).status == 409
