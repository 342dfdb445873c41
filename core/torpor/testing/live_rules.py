"""Rules about the running engine. Each reads one observed life (`torpor.testing.live`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import pytest

from torpor.errors import SnapshotError, TorporError
from torpor.platforms.local.criu_backend import CriuBackend
from torpor.testing.failing import broken
from torpor.testing.live import CHAT_ROUTE, CLOSED_ROUTES, OWN_ROUTES, live_through, restore_two
from torpor.testing.pytest_plugin import LIVE_MARKER

if TYPE_CHECKING:
    from pathlib import Path

    from torpor.deployment import Deployment
    from torpor.testing.live import Life, Sampled

__all__ = ["LiveRules"]

_AT_ONCE_S = 1.0
_NOT_FOUND, _CONFLICT, _UNAVAILABLE = 404, 409, 503
_live: pytest.MarkDecorator = getattr(pytest.mark, LIVE_MARKER)


class LiveRules:
    """Rules for an engine that starts, serves, sleeps, wakes and stops."""

    _lives: ClassVar[dict[type, Life]] = {}

    @pytest.fixture
    def live_deployment(self) -> Deployment:
        """A deployment of the plugin that can start on this machine."""
        pytest.skip(
            f"{type(self).__name__} has no fixture `live_deployment`: add one that returns a Deployment of your plugin which can "
            "start here (a free port, a small model), and the live rules run."
        )

    @pytest.fixture
    def life(self, live_deployment: Deployment, tmp_path: Path) -> Life:
        """One whole life of the engine, shared by all live rules of the class."""
        if type(self) not in self._lives:
            self._lives[type(self)] = live_through(live_deployment, tmp_path)
        return self._lives[type(self)]

    @_live
    def test_starts_and_serves(self, life: Life) -> None:
        """A cold start ends with an engine that serves."""
        if "serving" not in life.stages:
            broken(
                f"The cold start failed: {type(life.failure).__name__}: {life.failure}",
                rule="launch, readiness, warm-up and the canary succeed on the live deployment.",
                cure="do what the error says; `live_deployment` has to be one that can start here.",
            )

    @_live
    def test_launch_returns_at_once_in_an_own_session(self, life: Life) -> None:
        """Core waits, not the launch hook, and the engine's whole tree can be ended."""
        _need(life, "started")
        if life.launch_s > _AT_ONCE_S or not life.own_session:
            broken(
                f"launch took {life.launch_s:.2f} s; the engine {'leads a' if life.own_session else 'has no'} session of its own.",
                rule=f"launch returns within {_AT_ONCE_S:g} s and gives an engine that leads a session of its own.",
                cure="return start_engine(...) right away; core polls the ready path and ends the session.",
            )

    @_live
    def test_public_paths_are_open_while_serving(self, life: Life, live_deployment: Deployment) -> None:
        """Public paths are open, and /health reports that the engine serves."""
        _need(life, "serving")
        paths = (*live_deployment.public_paths, *(OWN_ROUTES if live_deployment.engine.guarded else ()))
        answers = {path: _statuses_of(life.serving, path) for path in paths}
        absent = {0, _NOT_FOUND, _UNAVAILABLE}
        wrong = {path: statuses for path, statuses in answers.items() if set(statuses) <= absent}
        if wrong:
            broken(
                f"While serving, GET and POST without a key give {wrong!r}.",
                rule="public paths are there while the engine serves, and so are the guard's /health and /ready.",
                cure="list in public_paths only what the engine has, and hand the same list to GuardRules(public=...).",
            )

    @_live
    def test_everything_else_is_closed_while_serving(self, life: Life, live_deployment: Deployment) -> None:
        """Without the key there is no management route."""
        _need(life, "serving")
        _need_guard(live_deployment)
        open_ones = {
            request: status
            for request, status in life.serving.items()
            if request.partition(" ")[2] in CLOSED_ROUTES and status != _NOT_FOUND
        }
        if open_ones:
            broken(
                f"While serving, a request without the key gets {open_ones!r} in place of 404.",
                rule="without the key, only public paths exist: one management call can end the engine.",
                cure="run the engine's server behind torpor.guard.Guard, and keep management paths out of its public rules.",
            )

    @_live
    def test_sleeps_and_wakes_twice(self, life: Life, live_deployment: Deployment) -> None:
        """Two sleeps and two wakes succeed, each with the recorded canary."""
        _need(life, "serving")
        _need_sleep(live_deployment)
        if "woke again" not in life.stages:
            broken(
                f"After {life.stages[-1]!r}: {type(life.failure).__name__}: {life.failure}",
                rule="an engine that supports sleep sleeps and wakes again and again, and gives the same greedy answer each time.",
                cure="do what the error says; put to sleep in pre_snapshot exactly what post_restore wakes, once each.",
            )

    @_live
    def test_two_wakes_answer_differently(self, life: Life, live_deployment: Deployment) -> None:
        """After each wake the engine has a new replica id, samples new text and gives its answers new ids."""
        _need_sleep(live_deployment)
        _need_chats(live_deployment)
        _need(life, "woke again")
        _differ(*life.woken, what="wakes")

    @_live
    def test_two_replicas_of_a_snapshot_answer_differently(self, live_deployment: Deployment, tmp_path: Path) -> None:
        """The same holds for two replicas of one snapshot, if this machine can take one."""
        _need_sleep(live_deployment)
        _need_chats(live_deployment)
        if reasons := CriuBackend(folder=tmp_path / "snapshot").available(live_deployment):
            pytest.skip(f"this machine cannot capture this deployment: {'; '.join(reasons)}")
        try:
            first, second = restore_two(live_deployment, tmp_path)
        except TorporError as error:
            pytest.skip(f"two replicas could not be restored: {_stage(error)}: {type(error).__name__}: {error}")
        _differ(first, second, what="replicas of one snapshot")

    @_live
    def test_nobody_reaches_a_sleeping_engine(self, life: Life, live_deployment: Deployment) -> None:
        """While the engine sleeps, the guard answers."""
        _need_sleep(live_deployment)
        _need_guard(live_deployment)
        _need(life, "started")
        _need_rules(life)
        _need(life, "asleep")
        answers = {path: _statuses_of(life.asleep, path) for path in (*live_deployment.public_paths, *OWN_ROUTES)}
        through = {path: statuses for path, statuses in answers.items() if set(statuses) != {_UNAVAILABLE}}
        if through:
            broken(
                f"While asleep, GET and POST without a key give {through!r} in place of 503.",
                rule="no request reaches an engine that sleeps: it would end the engine, or hang until the wake.",
                cure="let the guard be the outermost layer of the engine's server, and add no route beside it.",
            )

    @_live
    def test_repeated_lifecycle_calls_are_refused(self, life: Life, live_deployment: Deployment) -> None:
        """Sleep and wake happen once each, in order."""
        _need_guard(live_deployment)
        _need(life, "started")
        _need_rules(life)
        _need(life, "asleep" if live_deployment.engine.supports_sleep else "serving")
        passed = {what: status for what, status in life.repeated.items() if status != _CONFLICT}
        if passed:
            broken(
                f"With the key, calls out of order got {passed!r} in place of 409.",
                rule="the guard refuses a lifecycle call that is repeated or out of order; it never reaches the engine.",
                cure="use torpor.guard.Guard as it is, with the boot document that read_boot() gives.",
            )

    @_live
    def test_leaves_no_process(self, life: Life) -> None:
        """After the stop no process of the engine runs."""
        if life.left_over:
            broken(
                f"After the stop these processes of the engine's session still ran: {', '.join(life.left_over)}.",
                rule="terminate ends the engine's whole tree.",
                cure="return start_engine(...) from launch, and keep the engine's children in its session.",
            )


def _statuses_of(statuses: dict[str, int], path: str) -> list[int]:
    return [status for request, status in statuses.items() if request.partition(" ")[2] == path]


def _need(life: Life, stage: str) -> None:
    """Skip a rule whose stage the life did not reach, and name the rule that shows why."""
    if stage not in life.stages:
        rule = LiveRules.test_sleeps_and_wakes_twice if "serving" in life.stages else LiveRules.test_starts_and_serves
        last = f"after {life.stages[-1]!r} it ended" if life.stages else "its start failed"
        failure = life.failure
        said = f"{type(failure).__name__}: {str(failure).partition(chr(10))[0]}" if failure else "no error was raised"
        pytest.skip(f"the engine never got as far as {stage!r}: {last} ({said}). {rule.__name__} shows it.")


def _stage(error: TorporError) -> str:
    """Where a capture and two restores ended."""
    return "this machine or engine gives no snapshot" if isinstance(error, SnapshotError) else "the engine failed"


def _need_sleep(deployment: Deployment) -> None:
    if not deployment.engine.supports_sleep:
        pytest.skip("the engine plugin does not declare supports_sleep")


def _need_chats(deployment: Deployment) -> None:
    if CHAT_ROUTE not in deployment.public_paths:
        pytest.skip(f"the engine plugin does not list {CHAT_ROUTE} in public_paths, so nothing can be sampled")


def _differ(first: Sampled, second: Sampled, *, what: str) -> None:
    """Demand that the answers of two replicas have nothing in common."""
    if refused := first.refused or second.refused:
        pytest.skip(f"the engine gives no answer at temperature 1: {refused}")
    rule = f"two {what} give different ids, sample different text and have different names."
    cure = (
        "draw ids from uuid.uuid4 or the secrets module, and make every generator of the engine's own new at each wake: "
        "Guard(..., on_wake=...) or install_guard(..., on_wake=...); other processes of the engine have to be told."
    )
    ids = [name for name in (*first.ids, *second.ids) if name is not None]
    if len(set(ids)) < len(ids):
        broken(f"Of two {what} answers have the same id: {_repeated(ids)}.", rule=rule, cure=cure)
    if first.replica and first.replica == second.replica:
        broken(f"Two {what} both call themselves {first.replica}.", rule=rule, cure=cure)
    if first.texts == second.texts and len(set(first.texts)) == 1:
        pytest.skip(f"the engine does not sample: at temperature 1 it gives one answer each time, {first.texts[0]!r}")
    if first.texts == second.texts:
        broken(f"Two {what} sample the same text, {first.texts!r}.", rule=rule, cure=cure)


def _repeated(names: list[str]) -> str:
    return ", ".join(sorted({name for name in names if names.count(name) > 1}))


def _need_guard(deployment: Deployment) -> None:
    if not deployment.engine.guarded:
        pytest.skip("the engine plugin does not declare guarded: everything on its port is open to everyone")


def _need_rules(life: Life) -> None:
    if not life.guarded:
        pytest.skip("the engine was started without guard rules; test_everything_else_is_closed_while_serving shows it")
