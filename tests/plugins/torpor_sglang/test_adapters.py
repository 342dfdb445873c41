"""Adapters with SGLang: its flags, what it refuses, and how its real handlers find an adapter by a request's model."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from torpor import Adapter, Deployment, Draft, Lifecycle, Model
from torpor_sglang import SGLang

if TYPE_CHECKING:
    from tests.plugins.local_engines import Questions

ADAPTERS = {name: Adapter(path=f"/adapters/{name}") for name in ("sql", "law", "tax")}


def deployed(adapters: dict[str, Adapter] | None = None, *, task: Any = "chat", **options: Any) -> Deployment:
    """A deployment with three adapters."""
    model = Model(path="/m", served_name="m", adapters=ADAPTERS if adapters is None else adapters)
    gpu = None if options.get("device") == "cpu" else "H100!"
    return Deployment(name="d", model=model, plugins=(SGLang(**options),), gpu=gpu, task=task)


def argv_of(deployment: Deployment) -> tuple[str, ...]:
    """The engine's command line."""
    return deployment.engine.engine_argv(deployment, Lifecycle(deployment).recipe())


def flags_of(deployment: Deployment) -> dict[str, str]:
    """Each flag's first value."""
    words = argv_of(deployment)
    return {word: following for word, following in zip(words, (*words[1:], ""), strict=True) if word.startswith("--")}


def test_the_adapters_become_flags() -> None:
    """Each as JSON; one slot more than adapters, for requests to the model itself."""
    words = argv_of(deployed(max_adapter_rank=32))
    flags = flags_of(deployed(max_adapter_rank=32))
    assert "--enable-lora" in words
    assert (flags["--max-loras-per-batch"], flags["--max-lora-rank"]) == ("4", "32")
    given = words[words.index("--lora-paths") + 1 :]
    assert [json.loads(word) for word in given] == [
        {"lora_name": name, "lora_path": f"/adapters/{name}"} for name in ADAPTERS
    ]
    assert flags_of(deployed(adapters_per_batch=1))["--max-loras-per-batch"] == "2"
    assert not [word for word in argv_of(deployed({})) if "lora" in word]
    assert Lifecycle(deployed()).recipe().env["TORPOR_SERVED_NAMES"] == '["m", "sql", "law", "tax"]'
    assert "TORPOR_SERVED_NAMES" not in Lifecycle(deployed({})).recipe().env


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ({"device": "cpu"}, "SGLang 0.5.6.post2 serves no adapters on a CPU"),
        ({"task": "classify"}, "SGLang applies no adapters for the task 'classify'"),
        ({"task": "rerank"}, "SGLang applies no adapters for the task 'rerank'"),
    ],
)
def test_what_cannot_serve_adapters_is_refused(options: dict[str, Any], seen: str) -> None:
    """Before a start, with the reason and the cure; without adapters it passes."""
    made = deployed(**options)
    (found,) = (finding for finding in made.engine.check(made) if finding.what == "adapters")
    assert (found.level, found.seen.startswith(seen)) == ("error", True)
    assert found.cure.startswith("leave Model.adapters out")
    plain = deployed({}, **options)
    assert [finding for finding in plain.engine.check(plain) if finding.what == "adapters"] == []


def test_a_served_name_with_a_colon_is_refused() -> None:
    """SGLang would end at its start: it reads MODEL:ADAPTER there, with adapters or without. A folder's name counts as well."""
    for model in (Model(path="/m", served_name="llama3:8b"), Model(path="/models/llama3:8b")):
        made = replace(deployed({}), model=model)
        (found,) = (finding for finding in made.engine.check(made) if finding.what == "served name")
        assert (found.level, "'llama3:8b'" in found.seen) == ("error", True)
    assert [one for one in deployed().engine.check(deployed()) if one.what == "served name"] == []


@pytest.mark.parametrize(
    ("version", "draft", "fits"),
    [
        ("0.5.16", Draft(method="ngram"), True),
        ("0.5.16", Draft(method="eagle", path="/draft"), False),
        ("0.5.23", Draft(method="eagle", path="/draft"), True),
        ("0.5.23", Draft(method="model", path="/draft"), False),
    ],
)
def test_a_draft_beside_adapters_has_a_method_that_the_version_takes(version: str, draft: Draft, fits: bool) -> None:
    """SGLang would refuse the others after its start has begun."""
    made = deployed(version=version, image="registry.example/sglang:1")
    made = replace(made, model=replace(made.model, draft=draft))
    found = [finding.seen for finding in made.engine.check(made) if finding.what == "adapters"]
    assert found == (
        [] if fits else [f"SGLang {version} takes no draft of the method {draft.method!r} beside adapters"]
    )


def test_kernels_are_compiled_without_adapters() -> None:
    """SGLang refuses buffers for adapters without their files, and the image's build has none."""
    made = deployed()
    words = made.engine.kernel_compile_argv(made)
    assert words is not None
    assert not [word for word in words if "lora" in word]


@pytest.mark.sglang
@pytest.mark.slow
def test_the_real_handlers_find_an_adapter_by_its_name(questions: Questions) -> None:
    """SGLang itself would answer it by the model. A name that is not served is a 404 with those that are."""
    served = json.dumps(["m", "sql", "law"])
    answer = questions.ask("adapter_names", served=served, names=["m", "sql", "law", "m:sql"])
    assert answer["found"] == [None, "sql", "law", "sql"]
    status, body = answer["refused"]
    assert (status, json.loads(body)["message"]) == (404, "The model 'nope' does not exist; there are: m, sql, law.")
