"""`torpor.platforms.ray.deployed`: when Serve is asked, and what counts meanwhile."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from torpor.platforms.ray import deployed
from torpor.platforms.ray.deployed import Deployed

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest


class Serve:
    """Says what the test sets, and counts the questions."""

    def __init__(self) -> None:
        self.says: dict[str, str] | Exception = {"torpor-a": "RUNNING", "torpor-b": "RUNNING", "other": "RUNNING"}
        self.asked = 0

    def __call__(self) -> dict[str, str]:
        self.asked += 1
        if isinstance(self.says, Exception):
            raise self.says
        return self.says


def seen(one: Deployed) -> str:
    """The letters that are deployed."""
    return "".join(name for name in "abc" if one.has(name))


def test_every_deployment_counts_until_serve_has_answered() -> None:
    """Then those that it names, without those that it deletes; a question that fails changes nothing."""

    async def run(serve: Serve) -> list[str]:
        one = Deployed(serve)
        found = [seen(one)]
        for says in (serve.says, {"torpor-a": "RUNNING", "torpor-b": "DELETING"}, ConnectionError("away")):
            serve.says = says
            one._at = float("-inf")
            await one.look()
            found.append(seen(one))
        return found

    assert asyncio.run(run(Serve())) == ["abc", "ab", "a", "a"]


def test_serve_is_asked_once_for_many_and_not_again_at_once() -> None:
    """A hundred requests share one question, whose answer counts for a second."""

    async def run(serve: Serve) -> None:
        one = Deployed(serve)
        await asyncio.gather(*(one.look() for _ in range(100)))
        await one.look()
        one.look_again()
        assert one._looking is None

    serve = Serve()
    asyncio.run(run(serve))
    assert serve.asked == 1


def test_a_serve_that_does_not_answer_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The question goes on; the last answer counts."""
    monkeypatch.setattr(deployed, "_ANSWER_S", 0.05)

    async def run() -> str:
        answers = asyncio.Event()
        one = Deployed(hangs)
        monkeypatch.setattr(asyncio, "to_thread", lambda _: answers.wait())
        await one.look()
        found = seen(one)
        answers.set()
        return found

    hangs: Callable[[], dict[str, str]] = dict
    assert asyncio.run(run()) == "abc"
