"""What the files of a new plugin say for each task: what is asked, what the options are called, when a warning is due."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torpor.errors import ConfigurationError
from torpor.tasks.routes import TASKS

if TYPE_CHECKING:
    from torpor.tasks.routes import Task

__all__ = ["known_task", "task_values"]


class _Asked(NamedTuple):
    """What a plugin asks.

    Attributes:
        one: what its option holds one of.
        many: the option.
        kind: type of one.
        first: the default, as source text.
        given: the arguments of `question` for one.
    """

    one: str
    many: str
    kind: str
    first: str
    given: str


_DOCUMENTS = 'texts=["A lake is water.", "Paris is a city."]'
_ASKED: dict[Task, _Asked] = {
    "generate": _Asked("prompt", "prompts", "str", '"Once upon a time"', "texts=[prompt], max_tokens=self.max_tokens"),
    "embed": _Asked("text", "texts", "str", '"A river."', "texts=[text]"),
    "rerank": _Asked("query", "queries", "str", '"Still water."', f"query=query, {_DOCUMENTS}"),
    "score": _Asked("query", "queries", "str", '"Still water."', f"query=query, {_DOCUMENTS}"),
    "classify": _Asked("text", "texts", "str", '"A river."', "texts=[text]"),
    "transcribe": _Asked("length", "lengths", "float", "1.0", "sound=generated_sound(length)"),
}
_CHAT = _Asked("prompt", "prompts", "str", '"Hello."', "")

_CHAT_BODY = """\
        body = {
            "model": deployment.model.served_name,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": self.max_tokens,
        }
        client.post("/v1/chat/completions", json=body).raise_for_status()
"""

_CHAT_CHECK = """\
        if "/v1/chat/completions" not in deployment.public_paths:
            yield Finding(
                level="warning",
                what="chats",
                seen=f"the engine {deployment.engine.plugin_name!r} does not list /v1/chat/completions, which this plugin calls",
                cure=f"remove {type(self).__name__}() from Deployment.plugins, or use an engine that serves chats",
            )
"""


def known_task(name: str) -> Task:
    """The task of that name.

    Raises:
        ConfigurationError: there is none.
    """
    for task in TASKS:
        if task == name:
            return task
    raise ConfigurationError(f"--task is {name!r}; allowed: {', '.join(TASKS)}.")


def task_values(task: Task) -> dict[str, str]:
    """The values of the templates' placeholders that depend on the task.

    Args:
        task: what the app serves and the plugin asks.
    """
    asked = _CHAT if task == "chat" else _ASKED[task]
    tokens = task in ("chat", "generate")
    return {
        "one": asked.one,
        "many": asked.many,
        "item": asked.kind,
        "first": asked.first,
        "number": "max_tokens" if tokens else "times",
        "usual": "16" if tokens else "1",
        "number_is": "most tokens of an answer" if tokens else f"how often each {asked.one} is sent",
        "what_they_are": "lengths of sounds in seconds" if task == "transcribe" else asked.many,
        "imports": "" if task == "chat" else _imports(task),
        "ask": _CHAT_BODY if task == "chat" else _body(task, asked, repeated=not tokens),
        "check": _CHAT_CHECK if task == "chat" else _check(task),
        "task_line": "" if task == "chat" else f'    task="{task}",\n',
        "task_word": "" if task == "chat" else f'task="{task}", ',
        "contract_names": "" if task == "chat" else "Deployment, Model, Plugin, ",
        "stand_in_import": "" if task == "chat" else ", StandIn",
        "contract_deployment": "" if task == "chat" else _CONTRACT_DEPLOYMENT.replace("TASK", task),
    }


_CONTRACT_DEPLOYMENT = """
    @override
    @pytest.fixture
    def deployment(self, plugin: Plugin) -> Deployment:
        model = Model(path="/models/none", served_name="stand-in")
        return Deployment(name="contract", task="TASK", model=model, plugins=(plugin, StandIn()))
"""


def _imports(task: Task) -> str:
    sound = "from torpor.tasks.sound import generated_sound\n" if task == "transcribe" else ""
    return f"from torpor.tasks.questions import question\n{sound}"


def _body(task: Task, asked: _Asked, *, repeated: bool) -> str:
    lines = [
        f'model, route = deployment.model.served_name, deployment.engine.task_route("{task}")',
        f'asked = question("{task}", route, model=model, {asked.given})',
    ]
    send = [
        'answer = client.post(asked.path, content=asked.content, headers={"content-type": asked.content_type})',
        "answer.raise_for_status()",
    ]
    lines += ["for _ in range(self.times):", *(f"    {line}" for line in send)] if repeated else send
    return "".join(f"        {line}\n" for line in lines)


def _check(task: Task) -> str:
    return f"""\
        if deployment.task != "{task}":
            yield Finding(
                level="warning",
                what="task",
                seen=f"the deployment serves the task {{deployment.task!r}}, and this plugin asks for '{task}'",
                cure=f"write task='{task}' in the deployment, or remove {{type(self).__name__}}() from its plugins",
            )
"""
