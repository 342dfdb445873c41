"""The flags, variables and calls of the plugin, for its options."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import httpx
import pytest

from torpor import ConfigurationError, Deployment, Engine, Model, start_engine
from torpor.lifecycle import Lifecycle
from torpor.recipe import IMAGE_ROOT
from torpor_sglang import SGLang

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

KEEPS = {"version": "0.5.16", "image": "registry/sglang:v0.5.16", "weights_store": "file"}


@pytest.fixture
def an_engine() -> Iterator[Engine]:
    """Any process: these tests only use its HTTP calls."""
    engine = start_engine((sys.executable, "-c", "import time; time.sleep(60)"))
    yield engine
    engine.terminate(0.0)


def deployment(**options: Any) -> Deployment:
    return Deployment(name="d", model=Model(path="/model"), gpu="H100!", plugins=(SGLang(**options),))


def env_of(**options: Any) -> dict[str, str]:
    return dict(Lifecycle(deployment(**options)).recipe().env)


def argv_of(**options: Any) -> tuple[str, ...]:
    made = deployment(**options)
    return made.engine.engine_argv(made, Lifecycle(made).recipe())


def released_by(engine: Engine, **options: Any) -> list[tuple[str, object]]:
    """The management calls of one sleep and one wake."""
    calls: list[tuple[str, object]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        calls.append((request.url.path, json.loads(request.content or b"null")))
        return httpx.Response(200)

    made = deployment(**options)
    with httpx.Client(transport=httpx.MockTransport(answer), base_url="http://engine") as client:
        Lifecycle(made).pre_snapshot(engine, client)
        Lifecycle(made).post_restore(engine, client)
    return calls


def test_sglang_makes_no_second_backup_of_kept_weights() -> None:
    """The launcher's patch reads the place of the backup from the environment, with the platform's paths."""
    assert "--enable-weights-cpu-backup" not in argv_of(**KEEPS)
    assert "--enable-memory-saver" in argv_of(**KEEPS)
    env = env_of(**KEEPS)
    assert (env["TORPOR_KEEP"], env["TORPOR_KEEP_FOLDER"]) == ("weights=file", f"{IMAGE_ROOT}/kept")
    assert "SGLANG_MEMORY_SAVER_CUDA_GRAPH" not in env


def test_by_default_sglang_keeps_the_weights_itself() -> None:
    """The environment then has none of the plugin's variables."""
    assert "--enable-weights-cpu-backup" in argv_of()
    assert not [name for name in env_of() if name.startswith("TORPOR_KEEP")]


def test_graphs_are_released_and_kept_like_the_weights(an_engine: Engine) -> None:
    """They have their own tag in the sleep and the wake, and are captured in a way that allows this."""
    options = {**KEEPS, "release_graphs": True, "prefill_graphs": False}
    env = env_of(**options)
    assert (env["SGLANG_MEMORY_SAVER_CUDA_GRAPH"], env["TORPOR_KEEP"]) == ("1", "weights=file,cuda_graph=memory")
    assert "--disable-prefill-cuda-graph" in argv_of(**options)
    tags = {"tags": ["kv_cache", "weights", "cuda_graph"]}
    assert released_by(an_engine, **options) == [
        ("/flush_cache", None),
        ("/pause_generation", {}),
        ("/release_memory_occupation", tags),
        ("/resume_memory_occupation", tags),
        ("/continue_generation", {}),
    ]


def test_the_oldest_version_captures_no_prefills_and_needs_no_flag() -> None:
    """The option has the same effect in every version."""
    assert "--disable-prefill-cuda-graph" not in argv_of(prefill_graphs=False)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weights_store": "disk"}, "weights_store is 'disk'; allowed are saver, file, memory"),
        ({**KEEPS, "memory_saver": False}, "wants weights_backup, memory_saver and the device 'cuda'"),
        ({**KEEPS, "device": "cpu"}, "wants weights_backup, memory_saver and the device 'cuda'"),
        ({"weights_store": "file"}, "wants SGLang 0.5.16 or later; 0.5.6.post2 was never tried"),
        ({**KEEPS, "release_graphs": True}, "prefill_graphs=False"),
        ({"release_graphs": True, "prefill_graphs": False}, "weights_store='file' or 'memory'"),
    ],
)
def test_options_that_exclude_each_other_are_refused(options: dict[str, Any], said: str) -> None:
    """Each message says what to set."""
    with pytest.raises(ConfigurationError, match=said):
        SGLang(**options)


def test_a_task_that_the_version_lacks_is_refused_with_those_that_it_has() -> None:
    """SGLang has the route of `transcribe` from 0.5.16 on."""
    model = Model(path="/model")
    refused = (
        r"'transcribe', which the engine sglang 0\.5\.6\.post2 does not have; it has 'chat', .*'classify'\. Choose one"
    )
    with pytest.raises(ConfigurationError, match=refused):
        Deployment(name="d", model=model, task="transcribe", plugins=(SGLang(version="0.5.6.post2"),))
    later = SGLang(version="0.5.16", device="cpu")
    assert Deployment(name="d", model=model, task="transcribe", plugins=(later,)).task == "transcribe"


def test_an_option_that_opens_what_the_version_lacks_is_refused_with_the_versions_that_have_it() -> None:
    """The options whose routes it has open them."""
    refused = r"SGLang\.open_messages is on, but version 0\.5\.6\.post2 has no /v1/messages; .* have it: 0\.5\.16, 0\.5\.18, 0"
    with pytest.raises(ConfigurationError, match=refused):
        SGLang(version="0.5.6.post2", open_messages=True)
    opened = SGLang(version="0.5.6.post2", open_completions=True, open_responses=True, open_tokenize=True)
    assert {"/v1/completions", "/v1/responses", "/tokenize"} <= set(opened.public_routes("chat"))
