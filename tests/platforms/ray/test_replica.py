"""`torpor.platforms.ray.replica`: the actor ends with its engine. With a cluster: tests/platforms/ray/test_cluster.py."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.platforms.ray.with_ray import needs_ray
from torpor import TorporError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torpor.platforms.ray.replica import EngineReplica


class Engine:
    """What the actor watches."""

    name = "small"

    def __init__(self, look: Callable[[], str | None]) -> None:
        self._look = look

    def wait(self, limit_s: float) -> str | None:
        """Why it ended."""
        return self._look()


class Forwarding:
    """What the actor tells of the end; a broken one fails."""

    def __init__(self, *, broken: bool = False) -> None:
        self.told: list[str] = []
        self._broken = broken

    def refuse(self, why: str) -> bool:
        """Note it."""
        if self._broken:
            raise RuntimeError("Event loop is closed")
        self.told.append(why)
        return False


def actor_of() -> EngineReplica:
    """An actor that Serve does not own: nobody awaits its end."""
    from torpor.platforms.ray.replica import EngineReplica

    class Unowned(EngineReplica):
        def __del__(self) -> None:  # type: ignore[override]
            """Nothing."""

    return Unowned("small.py")


def _fails() -> str | None:
    raise OSError(9, "Bad file descriptor")


@needs_ray
@pytest.mark.parametrize(
    ("look", "broken", "told"),
    [(lambda: "it ended", False, ["it ended"]), (lambda: "it ended", True, []), (_fails, False, [])],
    ids=["told", "telling fails", "looking fails"],
)
def test_the_actor_ends_with_its_engine_whatever_fails(
    monkeypatch: pytest.MonkeyPatch, look: Callable[[], str | None], broken: bool, told: list[str]
) -> None:
    """Serve's health check asks the actor alone: one that stayed without an engine would answer 502 for ever."""
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    actor, forwarding = actor_of(), Forwarding(broken=broken)
    try:
        actor._end_with_engine(Engine(look), forwarding)  # type: ignore[arg-type]
    except (OSError, RuntimeError):
        assert broken or look is _fails
    assert (ended, forwarding.told) == ([1], told)


@needs_ray
def test_an_actor_that_is_stopped_does_not_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve ends it, after its last requests."""
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    actor, forwarding = actor_of(), Forwarding()

    def stopping() -> None:
        actor._stop()

    actor._end_with_engine(Engine(stopping), forwarding)  # type: ignore[arg-type]
    assert (ended, forwarding.told) == ([], [])


@needs_ray
def test_an_actor_without_an_engine_tries_again_until_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests meanwhile get the reason of the latest failure; the actor stays."""
    from torpor.platforms.ray import replica

    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(replica, "_AGAIN_S", (0.01, 0.01))
    actor, served = actor_of(), Forwarding()
    told: list[bytes] = []
    failures = [TorporError("first"), TorporError("second")]

    def started() -> Forwarding:
        said = actor._application.now
        told.append(said._answer.body if isinstance(said, replica._Broken) else b"")
        if failures:
            raise failures.pop(0)
        return served

    monkeypatch.setattr(actor, "_started", started)
    assert not actor._serves()
    actor._try_again()
    assert actor._application.now is served  # type: ignore[comparison-overlap]
    assert ended == []
    assert [b"first" in told[1], b"second" in told[2]] == [True, True]


@needs_ray
@pytest.mark.parametrize("stopped", [False, True])
def test_an_actor_that_never_serves_ends_so_that_a_fresh_one_tries(
    monkeypatch: pytest.MonkeyPatch, stopped: bool
) -> None:
    """After half a minute; one that Serve stops meanwhile ends by Serve."""
    from torpor.platforms.ray import replica

    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(replica, "_AGAIN_S", (0.01, 0.01))
    monkeypatch.setattr(replica, "BROKEN_FOR_S", 0.1)
    actor = actor_of()

    def started() -> None:
        if stopped:
            actor._stop()
        raise TorporError("broken")

    monkeypatch.setattr(actor, "_started", started)
    actor._try_again()
    assert ended == ([] if stopped else [1])
