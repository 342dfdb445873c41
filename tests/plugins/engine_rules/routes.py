"""Rules about access to an engine's routes, checked with the real applications and the real guard."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import pytest

from tests.guard.engine import KEY, REPLICA_ID, Message, Receive, Scope, Send
from tests.guard.exchange import Exchange, ask, control, in_loop, settle, to_serving
from torpor import ConfigurationError, Deployment, Lifecycle, Model, Scaling
from torpor.engine.start import engines_started_by
from torpor.guard import Guard, GuardRules
from torpor.tasks.routes import TASKS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from tests.plugins.local_engines import Questions
    from torpor import Task
    from torpor.engine_plugins.chat_server import ChatServer

__all__ = ["RealRouteRules", "RouteRules"]

OF_TOMORROW = (
    "/update_weights_from_the_future",
    "/v2/chat/completions",
    "/v1/chat/completions/{chat_id}",
    "/release_memory_occupation/all",
    "/resume_memory_occupation_v2",
    "/sleep/3",
)
METHODS = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE")


def listed(engine: type[ChatServer]) -> tuple[str, ...]:
    """Return every path in the plugin's lists, with the steps of every kind of sleep."""
    lists = engine.routes
    inference = dict.fromkeys(
        path for paths in (*lists.TASKS.values(), *lists.OPENED.values()) for path in paths
    )  # `open_completions` opens the route of a task
    return (*lists.PUBLIC, *inference, *lists.KEYED, *steps(engine), *lists.ANSWERED, *closed(engine))


def steps(engine: type[ChatServer]) -> tuple[str, ...]:
    """Return the paths of a sleep and a wake, each once."""
    plugin = engine()
    return tuple(dict.fromkeys((*plugin.sleep_steps(), *plugin.wake_steps())))


def closed(engine: type[ChatServer]) -> tuple[str, ...]:
    """Return the paths that are never open."""
    return tuple(path for _, paths in engine.routes.CLOSED for path in paths)


class RealRouteRules:
    """The lists match the route tables of the real applications of all supported versions.

    Attributes:
        engine: the plugin.
        question: arguments of the question about the route table.
        late: paths that are added at the start of the server, or for tasks that a chat model does not have.
        probe: the path that shows whether the engine is idle.
    """

    engine: ClassVar[type[ChatServer]]
    question: ClassVar[Mapping[str, object]] = {}
    late: ClassVar[frozenset[str]] = frozenset()
    probe: ClassVar[str]

    def test_every_route_of_the_real_application_is_listed(self, questions: Questions) -> None:
        """A route in no list is closed anyway; this test shows that it is new and has to be classified."""
        assert sorted(set(questions.ask("routes", **self.question)) - set(listed(self.engine))) == []

    def test_every_listed_route_exists(self, asked: Callable[[str], Questions]) -> None:
        """Some supported version has it, so it is not misspelt."""
        versions = self.engine.supported_versions
        real = {path for version in versions for path in asked(version).ask("routes", **self.question)}
        own = {"/ready"}  # the guard's route; the engine may have it, too
        assert sorted(set(listed(self.engine)) - real - self.late - own) == []

    def test_every_version_has_the_routes_for_serving_sleep_and_wake(self, questions: Questions) -> None:
        """Public paths, the sleep and wake sequences and the idle probe exist in each version."""
        needed = {*self.engine.routes.PUBLIC, *steps(self.engine), self.probe}
        assert needed <= set(questions.ask("routes", **self.question))

    def test_a_version_lacks_exactly_what_the_list_says(self, questions: Questions) -> None:
        """So an option or a task that it does not have is refused, and no other."""
        lists = self.engine.routes
        listed_paths = {path for paths in (*lists.TASKS.values(), *lists.OPENED.values()) for path in paths}
        missing = listed_paths - set(questions.ask("routes", **self.question))
        assert sorted(missing) == sorted(lists.LACKING.get(questions.version, ()))


def newest(engine: type[ChatServer], option: str = "") -> ChatServer:
    """Return the plugin of the newest version on a CPU, which needs no image, with an option that opens routes."""
    plugin = engine(version=engine.supported_versions[-1], device="cpu")
    return replace(plugin, **{option: True}) if option else plugin  # type: ignore[arg-type] # a flag


class NotStartedError(Exception):
    """Ends `launch` once the rules are known, without an engine."""


def rules_of(plugin: ChatServer, *, max_concurrency: int = 100) -> GuardRules:
    """Return the rules that the plugin gives to the engine's launcher."""
    found: list[GuardRules | None] = []

    def starter(argv: Sequence[str], *, env: Mapping[str, str], cwd: Path | None, guard: GuardRules | None) -> object:
        found.append(guard)
        raise NotStartedError

    scaling = Scaling(target_concurrency=1, max_concurrency=max_concurrency)
    deployment = Deployment(name="x", model=Model(path="/m"), plugins=(plugin,), scaling=scaling)
    with engines_started_by(starter), suppress(NotStartedError):  # type: ignore[arg-type] # it gives no engine
        plugin.launch(deployment, Lifecycle(deployment).recipe())
    (rules,) = found
    assert rules is not None
    return rules


class Anything:
    """An application that answers on every path; requests with a body wait for the gate."""

    def __init__(self) -> None:
        self.reached: list[tuple[str, str]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 200."""
        self.reached.append((str(scope["method"]), str(scope["path"])))
        message: Message = {"more_body": True}
        while message.get("more_body"):
            message = await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})


def guarded(plugin: ChatServer, *, max_concurrency: int = 100) -> tuple[Anything, Guard]:
    """Return that application behind the plugin's rules."""
    app = Anything()
    return app, Guard(app, rules_of(plugin, max_concurrency=max_concurrency), key=KEY, replica_id=REPLICA_ID)


class RouteRules:
    """The plugin's rules for every route of its engine, in past and future versions, too."""

    engine: ClassVar[type[ChatServer]]

    def test_no_path_is_in_two_lists(self) -> None:
        """A path has one access class."""
        assert [path for path, count in Counter(listed(self.engine)).items() if count > 1] == []

    def test_no_management_route_is_public(self) -> None:
        """Only the paths of the OpenAI API that clients of a chat model need are open."""
        assert self.engine().public_routes("chat") == ("/v1/chat/completions", "/v1/models")

    @pytest.mark.parametrize("task", TASKS)
    def test_each_task_opens_its_own_routes_alone(self, task: Task) -> None:
        """The list of models is open for every task; the newest version has every task."""
        plugin = newest(self.engine)
        assert plugin.tasks == TASKS
        assert plugin.public_routes(task) == (*self.engine.routes.TASKS[task], "/v1/models")
        assert plugin.task_route(task).path == self.engine.routes.TASKS[task][0]
        deployment = Deployment(name="x", model=Model(path="/m"), plugins=(plugin,), task=task)
        assert plugin.guard_rules(deployment).public == deployment.public_paths == plugin.public_routes(task)

    @pytest.mark.parametrize("option", ["open_completions", "open_responses", "open_messages", "open_tokenize"])
    def test_an_option_opens_its_routes_for_the_tasks_that_go_with_it(self, option: str) -> None:
        """It opens nothing for another task; the check of the deployment says so."""
        plugin = newest(self.engine, option)
        opened = self.engine.routes.OPENED[option]
        assert set(opened) < set(plugin.public_routes("chat"))
        deployment = Deployment(name="x", model=Model(path="/m"), plugins=(plugin,), task="embed")
        seen = [finding.seen for finding in plugin.check(deployment) if finding.what == "open routes"]
        if option == "open_tokenize":
            assert set(opened) < set(plugin.public_routes("embed"))
            assert seen == []
        else:
            assert not set(opened) & set(plugin.public_routes("embed"))
            assert seen == [
                f"{self.engine.__name__}.{option} opens {opened[0]}, which does not go with the task 'embed'"
            ]

    @pytest.mark.parametrize("path", OF_TOMORROW)
    @in_loop
    async def test_a_route_that_only_a_new_version_has_is_closed(self, path: str) -> None:
        """A route in no list is closed for every method, with and without the key."""
        assert path not in listed(self.engine)
        app, guard = guarded(self.engine())
        await to_serving(guard)
        for method in METHODS:
            for key in (None, KEY):
                assert (await ask(guard, path, method=method, key=key)).status == 404
        assert app.reached == []

    @pytest.mark.parametrize("opened", [False, True], ids=["default", "opened"])
    @in_loop
    async def test_no_option_opens_a_closed_route(self, opened: bool) -> None:
        """This holds in all supported versions. Only the lifecycle may call the steps, in their order."""
        app, guard = guarded(self.engine(open_metrics=opened, open_docs=opened))
        await to_serving(guard)
        for path in closed(self.engine):
            for method in METHODS:
                assert (await ask(guard, path, method=method)).status == 404
                assert (await ask(guard, path, method=method, key=KEY)).status == 404
        for path in steps(self.engine):
            assert (await ask(guard, path, method="POST")).status == 404
            assert (await ask(guard, path, method="POST", key=KEY)).status == 409
        assert app.reached == []

    @in_loop
    async def test_public_routes_are_open_and_keyed_routes_need_the_key(self) -> None:
        """All other routes are closed."""
        app, guard = guarded(self.engine())
        await to_serving(guard)
        public = self.engine().public_routes("chat")
        for path in public:
            assert (await ask(guard, path, method="POST")).status == 200
        for path in self.engine.routes.KEYED:
            assert (await ask(guard, path)).status == 404
            assert (await ask(guard, path, key=KEY)).status == 200
        assert [path for _, path in app.reached] == [*public, *self.engine.routes.KEYED]

    @pytest.mark.parametrize(
        ("options", "opened"),
        [
            ({}, ()),
            ({"open_metrics": True}, ("/metrics",)),
            ({"open_metrics": True, "metrics": False}, ()),
            ({"open_docs": True}, ("/docs", "/openapi.json")),
            ({"open_docs": True, "open_metrics": True}, ("/docs", "/metrics", "/openapi.json")),
        ],
    )
    @in_loop
    async def test_metrics_and_docs_have_their_own_options(
        self, options: dict[str, bool], opened: tuple[str, ...]
    ) -> None:
        """The option opens them to everybody, even with bearer keys. Routes that show the engine's arguments stay closed."""
        plugin = self.engine(api_key_sha256=("0" * 64,), **options)  # type: ignore[arg-type] # flags
        _, guard = guarded(plugin)
        assert {(await ask(guard, path)).status for path in opened} <= {503}
        await to_serving(guard)
        answered = [path for path in self.engine.routes.KEYED if (await ask(guard, path)).status == 200]
        assert tuple(answered) == opened
        assert (await ask(guard, "/server_info")).status == 404
        assert (await ask(guard, "/v1/models")).status == 401

    @in_loop
    async def test_the_limits_come_from_the_options_and_the_deployment(self) -> None:
        """The plugin's option limits the size of a body, the deployment's concurrency the requests in flight."""
        _, guard = guarded(self.engine(max_body_bytes=10), max_concurrency=2)
        await to_serving(guard)
        path = self.engine.routes.PUBLIC[0]
        assert (await ask(guard, path, method="POST", body=b"x" * 10)).status == 200
        assert (await ask(guard, path, method="POST", body=b"x" * 11)).status == 413
        assert (await ask(guard, path, method="POST", body=(b"x" * 6, b"x" * 6))).status == 413
        running = [Exchange(guard, path, method="POST", body=(b"x",), ends=False) for _ in range(2)]
        await settle()
        busy = await ask(guard, path, method="POST")
        assert (busy.status, busy.code, busy.headers["retry-after"]) == (503, "too_many_requests", "2")
        assert (await control(guard, "state")).json["in_flight"] == 2
        for exchange in running:
            exchange.feed(b"", more=False)
            await exchange.task
            assert exchange.status == 200

    @in_loop
    async def test_each_step_of_a_sleep_and_a_wake_passes_once_and_in_order(self) -> None:
        """The engine never receives a repeated call."""
        plugin = self.engine()
        app, guard = guarded(plugin)
        await to_serving(guard)
        assert (await control(guard, "drain", {"deadline_s": 1})).status == 200
        await self._walk(guard, plugin.sleep_steps())
        assert (await control(guard, "asleep")).status == 200
        assert (await control(guard, "wake")).status == 200
        await self._walk(guard, plugin.wake_steps())
        assert (await control(guard, "serve")).status == 200
        assert [path for _, path in app.reached] == [*plugin.sleep_steps(), *plugin.wake_steps()]

    async def _walk(self, guard: Guard, path_by_path: tuple[str, ...]) -> None:
        for at, path in enumerate(path_by_path):
            for other in set(path_by_path) - {path}:
                assert (await ask(guard, other, method="POST", key=KEY)).status == 409
            assert (await ask(guard, path, method="POST", key=KEY)).status == 200
            if path not in path_by_path[at + 1 : at + 2]:
                assert (await ask(guard, path, method="POST", key=KEY)).status == 409

    def test_a_body_limit_of_zero_is_refused(self) -> None:
        """The error comes before the launch."""
        with pytest.raises(ConfigurationError, match="max_body_bytes is 0; the lowest allowed value is 1"):
            self.engine(max_body_bytes=0)
