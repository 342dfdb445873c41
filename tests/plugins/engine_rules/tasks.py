"""Tasks on a real engine with tiny models: cold, slept, woken and restored, compared with the bare engine.

The bare engine is the same version with the same flags, without the guard and without the patch that checks requests.
"""

from __future__ import annotations

import json
import pickle
import re
from contextlib import contextmanager
from itertools import groupby
from typing import TYPE_CHECKING, ClassVar

import httpx
import pytest

from tests.plugins.local_engines import make_tiny_model
from tests.side_by_side import built_once
from tests.snapshots.conftest import MODES, refuse
from torpor import Deployment, Model
from torpor.engine.start import start_engine
from torpor.lifecycle import Lifecycle
from torpor.platforms.local.criu_backend import CriuBackend
from torpor.platforms.local.snapshots import create_snapshot, restore_snapshot
from torpor.runtime.boot import Boot
from torpor.runtime.readiness import wait_ready
from torpor.tasks.answers import read_answer
from torpor.tasks.comparison import difference
from torpor.testing.ports import unused_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from tests.plugins.local_engines import LocalEngine, RealEngine
    from torpor import Task
    from torpor.engine_plugins.chat_server import ChatServer

__all__ = ["RealTaskRules"]

START_S = 300.0
NOISE = 2**-7
"""The least tolerance of scores: one step of bfloat16."""
TEXTS = ["the quick brown fox", "hello world, hello", "a server sleeps in a snapshot"]
CLASSES = {"rerank": 1, "score": 1, "classify": 3}
"""Classes of each task's model; the others are language models."""
VOLATILE = re.compile(rb'"(id|created)": ?("[^"]*"|\d+)')
"""What differs between two equal answers of one engine: their name, and the second in which they were made."""
STREAMED = re.compile(rb'"text": ?"((?:[^"\\]|\\.)*)"')
"""A streamed piece of text. An engine sends one or several tokens in a piece, as they come."""


class RealTaskRules:
    """Each task serves what the bare engine answers.

    Attributes:
        local: the engine.
        tokenize: a path of its tokenizer.
    """

    local: ClassVar[LocalEngine]
    tokenize: ClassVar[str] = "/tokenize"

    def plugin(self, engine: RealEngine, **options: bool) -> ChatServer:
        """The engine's plugin for this machine's CPU."""
        raise NotImplementedError

    def bodies(self, task: Task) -> list[tuple[str, dict[str, object]]]:
        """Requests to a task's routes."""
        ranked: dict[str, object] = {"query": "hello world", "documents": TEXTS}
        path = self.plugin(self.local.find(self.local.version)).task_route(task).path
        return [(path, ranked if task == "rerank" else {"input": TEXTS})]

    def deployed(self, factory: pytest.TempPathFactory, task: Task, **options: bool) -> Deployment:
        """A deployment of the task's tiny model."""
        engine, classes = self.local.find(self.local.version), CLASSES.get(task, 0)
        name = f"{self.local.name}-tiny-{classes}-classes"
        folder = built_once(factory, name, lambda made: make_tiny_model(engine, made, classes))
        return Deployment(
            name=f"tiny-{task}",
            model=Model(path=str(folder), served_name="tiny"),
            plugins=(self.plugin(engine, **options),),
            task=task,
            port=unused_port(),
            startup_timeout_s=START_S,
        )

    @pytest.mark.timeout(600)
    @pytest.mark.parametrize("task", ["rerank", "classify"])
    def test_a_task_answers_like_the_bare_engine_and_alike_after_a_sleep(
        self, task: Task, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """Order, scores and labels; the routes of other tasks are closed."""
        deployment = self.deployed(tmp_path_factory, task)
        bodies = self.bodies(task)
        with bare(deployment) as client:
            wanted = [read_answer(task, json.loads(whole(client, path, body))) for path, body in bodies]
        boot = Boot(deployment)
        try:
            boot.cold_start()
            boot.serve()
            with public(deployment.port) as client:
                self.assert_answers(client, task, wanted)
                assert client.post("/v1/chat/completions", json={}).status_code == 404
                boot.sleep(for_snapshot=False)
                assert client.post(bodies[0][0], json={}).status_code == 503
                boot.wake()
                self.assert_answers(client, task, wanted)
                many = {name: value * 1000 for name, value in bodies[0][1].items() if isinstance(value, list)}
                refused = client.post(bodies[0][0], json={"model": "tiny", **bodies[0][1], **many})
                assert (refused.status_code, "may hold 2048 texts" in refused.text) == (400, True), refused.text
        finally:
            boot.stop()

    def assert_answers(self, client: httpx.Client, task: Task, wanted: list[Mapping[str, object]]) -> None:
        """Check answers against the bare engine's; batches of another size differ in the last bits of bfloat16."""
        for (path, body), one in zip(self.bodies(task), wanted, strict=True):
            apart = difference(one, read_answer(task, json.loads(whole(client, path, body))))
            assert apart.size <= NOISE, apart.where

    @pytest.mark.criu
    @pytest.mark.timeout(600)
    def test_an_embedding_model_is_captured_restored_and_answers_like_the_bare_engine(
        self, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """The recorded vectors come back within the tolerance, and so does the public answer."""
        if reasons := CriuBackend(mode=MODES[0]).available():
            refuse("; ".join(reasons))
        deployment = self.deployed(tmp_path_factory, "embed")
        ((path, body),) = self.bodies("embed")
        with bare(deployment) as client:
            wanted = whole(client, path, body)
        manifest = create_snapshot(app_of(deployment, tmp_path), tmp_path / "kept", mode=MODES[0])
        assert (manifest.canary.kind, manifest.deployment.task) == ("embed", "embed")
        replicas = restore_snapshot(tmp_path / "kept", replicas=1, port=unused_port())
        try:
            with public(replicas.port) as client:
                answer = whole(client, path, body)
        finally:
            replicas.stop()
        vectors = read_answer("embed", json.loads(answer))["vectors"]
        assert difference(read_answer("embed", json.loads(wanted)), {"vectors": vectors}).size <= NOISE
        assert len(vectors) == len(TEXTS)  # type: ignore[arg-type] # a list

    @pytest.mark.timeout(600)
    def test_opened_routes_answer_like_the_bare_engine_whole_and_streamed(
        self, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """Completions, messages and the tokenizer answer byte for byte; checks of requests hold for them, too."""
        deployment = self.deployed(
            tmp_path_factory, "chat", open_completions=True, open_messages=True, open_tokenize=True
        )
        greedy = {"max_tokens": 8, "temperature": 0}
        said = [{"role": "user", "content": TEXTS[0]}]
        bodies: list[tuple[str, dict[str, object]]] = [
            ("/v1/completions", {"prompt": TEXTS[0], **greedy}),
            ("/v1/completions", {"prompt": TEXTS[0], "stream": True, **greedy}),
            ("/v1/messages", {"messages": said, **greedy}),
            ("/v1/messages", {"messages": said, "stream": True, **greedy}),
            ("/v1/messages/count_tokens", {"messages": said}),
            (self.tokenize, {"prompt": TEXTS[0]}),
        ]
        with bare(deployment) as client:
            wanted = [raw(client, path, body) for path, body in bodies]
        boot = Boot(deployment)
        try:
            boot.cold_start()
            boot.serve()
            with public(deployment.port) as client:
                for (path, body), one in zip(bodies, wanted, strict=True):
                    answer = raw(client, path, body)
                    assert answer == one, f"{path} {body}: {answer!r}, not {one!r}"
                files = [{"type": "image", "source": {"type": "url", "url": "file:///etc/passwd"}}]
                refusals: tuple[tuple[str, dict[str, object]], ...] = (
                    ("/v1/messages", {"messages": [{"role": "user", "content": files}], **greedy}),
                    (self.tokenize, {"prompt": "x" * (1 << 20) + "x"}),
                )
                for path, body in refusals:
                    refused = client.post(path, json={"model": "tiny", **body})
                    assert refused.status_code == 400, refused.text
                assert client.post("/v1/responses", json={"model": "tiny", "input": "a"}).status_code == 404
        finally:
            boot.stop()


def app_of(deployment: Deployment, folder: Path) -> Path:
    """Write an app file with the deployment."""
    app = folder / "app.py"
    app.write_text(f"import pickle\n\ndeployment = pickle.loads({pickle.dumps(deployment)!r})\n")
    return app


@contextmanager
def bare(deployment: Deployment) -> Iterator[httpx.Client]:
    """Run the engine without the guard and without the check of requests, and yield a client."""
    recipe = Lifecycle(deployment).recipe()
    env = {**recipe.env, "TORPOR_UNGUARDED": "1", "TORPOR_PATCHES": "-public-requests"}
    engine = start_engine(deployment.engine.engine_argv(deployment, recipe), env=env)
    try:
        with public(deployment.port) as client:
            wait_ready(engine, client, port=deployment.port, ready_path="/v1/models", timeout_s=START_S)
            yield client
    except AssertionError as error:
        error.add_note("\n".join(engine.log_tail()))
        raise
    finally:
        engine.terminate(20.0)


def public(port: int) -> httpx.Client:
    """Return a client without a key."""
    return httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60.0, trust_env=False)


def whole(client: httpx.Client, path: str, body: dict[str, object]) -> bytes:
    """Return the bytes of an answer."""
    answer = client.post(path, json={"model": "tiny", **body})
    assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text}"
    return answer.content


def raw(client: httpx.Client, path: str, body: dict[str, object]) -> list[bytes]:
    """Return the bytes of an answer without what differs between any two; of a stream its text, and each event once in a row."""
    answer = VOLATILE.sub(b"", whole(client, path, body))
    if not body.get("stream"):
        return [answer]
    text = b"".join(STREAMED.findall(answer))
    return [text, *(event for event, _ in groupby(STREAMED.sub(b'"text":""', answer).split(b"\n\n")))]
