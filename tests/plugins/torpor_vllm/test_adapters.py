"""Adapters with vLLM: its flags, for all options."""

from __future__ import annotations

import json
from typing import Any

import pytest

from torpor import Adapter, ConfigurationError, Deployment, Lifecycle, Model
from torpor_hf_cache import HFCache
from torpor_vllm import VLLM

COMMIT = "0" * 40
ADAPTERS = {
    "sql": Adapter(path="/adapters/sql"),
    "law": Adapter(repo_id="org/law", revision=COMMIT),
    "tax": Adapter(path="/adapters/a=b, c"),
}


def deployed(adapters: dict[str, Adapter] | None = None, **options: Any) -> Deployment:
    """A deployment with three adapters, one of them on the hub."""
    model = Model(path="/m", served_name="m", adapters=ADAPTERS if adapters is None else adapters)
    return Deployment(name="d", model=model, plugins=(HFCache(), VLLM(**options)), gpu="H100!")


def argv_of(deployment: Deployment) -> tuple[str, ...]:
    """The engine's command line."""
    return deployment.engine.engine_argv(deployment, Lifecycle(deployment).recipe())


def flags_of(**options: Any) -> dict[str, str]:
    """Each flag's first value."""
    words = argv_of(deployed(**options))
    return {word: following for word, following in zip(words, (*words[1:], ""), strict=True) if word.startswith("--")}


def test_the_adapters_become_flags() -> None:
    """Each as JSON, because vLLM splits NAME=PATH at every `=`; a commit of the hub is a folder of its cache."""
    words = argv_of(deployed())
    given = words[words.index("--lora-modules") + 1 :]
    assert [(one["name"], one["path"], one["base_model_name"]) for one in map(json.loads, given)] == [
        ("sql", "/adapters/sql", "m"),
        ("law", f"/vol/huggingface-cache/hub/models--org--law/snapshots/{COMMIT}", "m"),
        ("tax", "/adapters/a=b, c", "m"),
    ]
    assert "--enable-lora" in words
    assert not [word for word in argv_of(deployed({})) if "lora" in word]


def test_all_adapters_stay_in_memory() -> None:
    """In one batch, or in host memory: otherwise vLLM reads a file again at a request."""
    flags = flags_of()
    assert (flags["--max-loras"], flags["--max-lora-rank"], "--max-cpu-loras" in flags) == ("3", "16", False)
    fewer = flags_of(adapters_per_batch=2, max_adapter_rank=64)
    assert (fewer["--max-loras"], fewer["--max-lora-rank"], fewer["--max-cpu-loras"]) == ("2", "64", "3")
    assert flags_of(adapters_per_batch=8)["--max-loras"] == "3"


def test_compiled_graphs_depend_on_the_buffers_and_not_on_the_files() -> None:
    """The throw-away start of the image's build makes the buffers, and loads no adapter."""
    made = deployed()
    words = made.engine.kernel_compile_argv(made)
    assert words is not None
    assert "--enable-lora" in words
    assert "--lora-modules" not in words


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"max_adapter_rank": 24}, "VLLM.max_adapter_rank is 24; vLLM has buffers of the ranks 1, 8, 16, 32"),
        ({"max_adapter_rank": 0}, "VLLM.max_adapter_rank is 0; the lowest allowed value is 1"),
        ({"adapters_per_batch": 0}, "VLLM.adapters_per_batch is 0"),
        ({"extra_args": ("--enable-lora",)}, "Engine argument '--enable-lora' is refused: .* Use Model.adapters"),
    ],
)
def test_a_wrong_option_is_refused(options: dict[str, Any], told: str) -> None:
    """With what is allowed."""
    with pytest.raises(ConfigurationError, match=told):
        VLLM(**options)
