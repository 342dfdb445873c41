"""`torpor serve` with deployments of several tasks: each request finds its model by its body, in JSON and in a form."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.platforms.local.serve.served import write_app
from torpor import EngineRequestError
from torpor.client import ask
from torpor.platforms.local.criu_backend import CriuBackend
from torpor.tasks.sound import generated_sound

if TYPE_CHECKING:
    from tests.platforms.local.serve.conftest import Serve
    from torpor import Task

TASKS: tuple[Task, ...] = ("embed", "rerank", "transcribe")


def write_task_app(folder: Path, task: Task) -> str:
    """An app file with a stand-in of a task; its model is `model-TASK`."""
    file = Path(write_app(folder, task))
    file.write_text(file.read_text().replace("    plugins=(", f"    task={task!r},\n    plugins=("))
    return str(file)


@pytest.mark.slow
def test_requests_of_several_tasks_find_their_model(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each starts its own deployment. A model is not asked for another task than its own."""
    monkeypatch.setattr(CriuBackend, "available", lambda *_: ("there is no CRIU",))
    server = serve(*(write_task_app(tmp_path, task) for task in TASKS))
    url = f"http://127.0.0.1:{server.address[1]}"
    sound = generated_sound(0.2)
    vectors = ask(url, task="embed", texts=["a", "b"], model="model-embed", timeout_s=60.0).answer["vectors"]
    assert isinstance(vectors, list)
    assert len(vectors) == 2
    ranked = ask(url, task="rerank", query="a", texts=["b", "c"], model="model-rerank", timeout_s=60.0).answer
    assert sorted(ranked["order"]) == [0, 1]  # type: ignore[call-overload] # a list
    heard = ask(url, task="transcribe", sound=sound, model="model-transcribe", timeout_s=60.0).answer
    assert heard["text"]
    with pytest.raises(EngineRequestError, match=r"answered with 404"):
        ask(url, task="embed", texts=["a"], model="model-rerank", timeout_s=60.0)
