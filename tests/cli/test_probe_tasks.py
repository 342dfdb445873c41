"""`torpor probe --task`: asks a server of another task than chat, here the stand-in."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from torpor import ConfigurationError, Deployment, EngineRequestError, Model
from torpor.cli.bench import run_bench
from torpor.cli.compare import run_compare
from torpor.cli.probe import Probe, run_probe
from torpor.cli.up import run_up
from torpor.client import ask
from torpor.runtime.boot import Boot
from torpor.testing import StandIn
from torpor.testing.ports import unused_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def ranking_server() -> Iterator[str]:
    """The URL of a stand-in that ranks."""
    model = Model(path="/m", served_name="m")
    boot = Boot(Deployment(name="ranks", model=model, plugins=(StandIn(),), port=unused_port(), task="rerank"))
    try:
        boot.cold_start()
        boot.serve()
        yield f"http://127.0.0.1:{boot.deployment.port}"
    finally:
        boot.stop()


def probe(url: str, **options: object) -> None:
    """Run the command's work with these options."""
    as_json = bool(options.pop("as_json", False))
    given: dict[str, object] = {"task": "rerank", "prompt": "water", "timeout_s": 20.0, **options}
    run_probe(url, Probe(**given), as_json=as_json)  # type: ignore[arg-type] # options by name


def test_the_answer_is_printed_for_people_and_for_programs(
    ranking_server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Documents are listed from the best on. The model is the one that the server lists."""
    probe(ranking_server, documents=("a lake", "a car", "a sea"))
    shown = capsys.readouterr()
    ranked = [line.partition(":")[0] for line in shown.out.splitlines()]
    assert sorted(ranked) == ["document 0", "document 1", "document 2"]
    assert shown.err.splitlines()[-1].startswith("m: the answer after ")
    probe(ranking_server, documents=("a lake", "a car", "a sea"), as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert [f"document {at}" for at in told["answer"]["order"]] == ranked
    assert told["model"] == "m"


def test_a_server_of_another_task_is_told(ranking_server: str) -> None:
    """The guard has no such route."""
    with pytest.raises(EngineRequestError, match=r"POST http://.*/v1/embeddings was answered with 404"):
        probe(ranking_server, task="embed")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"task": "draw"}, "--task is 'draw'; allowed: chat, generate"),
        ({"task": "chat", "documents": ("a",)}, "--document goes with the tasks rerank and score"),
        ({"task": "embed", "documents": ("a",)}, "--document goes with the tasks rerank and score; --task is 'embed'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], says: str) -> None:
    """Before anything is asked."""
    with pytest.raises(ConfigurationError, match=says):
        probe("http://127.0.0.1:9", **options)


def test_a_sound_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    """Missing, and empty."""
    with pytest.raises(ConfigurationError, match=r"gone\.wav cannot be read: No such file"):
        probe("http://127.0.0.1:9", task="transcribe", sound=tmp_path / "gone.wav")
    (tmp_path / "empty.wav").touch()
    with pytest.raises(ConfigurationError, match=r"empty\.wav is empty"):
        probe("http://127.0.0.1:9", task="transcribe", sound=tmp_path / "empty.wav")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "shown"),
    [
        ("generate", r"\S+"),
        ("embed", r"\d+ numbers: .*"),
        ("rerank", r"document \d: .*\ndocument \d: .*"),
        ("score", r"text 0: .*\ntext 1: .*"),
        ("classify", r"\w+: \[.*"),
        ("transcribe", r"\S+"),
    ],
)
def test_up_asks_a_deployment_of_any_task(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], task: str, shown: str
) -> None:
    """The answer is on standard output; the JSON has it beside the stages."""
    app = tmp_path / "app.py"
    app.write_text(
        "from torpor import Deployment, Model\nfrom torpor.testing import StandIn\n"
        f"deployment = Deployment(name='asked', model=Model(path='/m'), plugins=(StandIn(),), task={task!r}, "
        f"port={unused_port()})\n"
    )
    run_up(str(app), backend="none", snapshot=None, question="still water", as_json=False)
    assert re.search(shown, capsys.readouterr().out)
    run_up(str(app), backend="none", snapshot=None, question="still water", as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["answer"]["answer"]
    assert [stage["stage"] for stage in told["stages"]][-1] == "serve"


@pytest.mark.parametrize(
    ("run", "what"),
    [
        (lambda app: run_bench(app, starts=1, backend="standby", json_file="", html_file=""), "torpor bench"),
        (lambda app: run_compare(app, restores=1, as_json=False), "torpor snapshot compare"),
    ],
    ids=["bench", "compare"],
)
def test_a_command_that_asks_chats_refuses_another_task(tmp_path: Path, run: Callable[[str], None], what: str) -> None:
    """Before anything starts; the error says what does ask it."""
    app = tmp_path / "app.py"
    app.write_text(
        "from torpor import Deployment, Model\nfrom torpor.testing import StandIn\n"
        "deployment = Deployment(name='ranks', model=Model(path='/m'), plugins=(StandIn(),), task='rerank', "
        f"port={unused_port()})\n"
    )
    with pytest.raises(
        ConfigurationError, match=f"{what} asks a chat, and ranks serves the task 'rerank'.*torpor up APP --ask TEXT"
    ):
        run(str(app))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"task": "chat", "texts": ["a"]}, "`chat` is for chats"),
        ({"task": "embed"}, "needs texts"),
        ({"task": "embed", "texts": "a"}, "texts is one text"),
        ({"task": "generate", "texts": ["a", "b"]}, "takes one prompt, not 2"),
        ({"task": "rerank", "texts": ["a"]}, "needs a query"),
        ({"task": "transcribe"}, "needs a sound"),
    ],
)
def test_the_client_refuses_a_question_without_its_parts(options: dict[str, object], says: str) -> None:
    """Before anything is asked."""
    with pytest.raises(ConfigurationError, match=says):
        ask("http://127.0.0.1:9", **options)  # type: ignore[arg-type] # wrong ones
