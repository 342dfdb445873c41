"""Every supported version of the real vLLM that is installed on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.plugins.local_engines import LocalEngine, make_tiny_model
from tests.side_by_side import built_once
from torpor_vllm import VLLM
from torpor_vllm.versions import SUPPORTED_VERSIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.plugins.local_engines import Questions, RealEngine

LOCAL = LocalEngine(name="vllm", title="vLLM", version="0.32.0")


def cpu_plugin(engine: RealEngine, *, warmup_prompt_words: tuple[int, ...]) -> VLLM:
    """Return the plugin for a real vLLM with the tiny model, on this machine's CPU."""
    return VLLM(
        version=engine.version,
        python=str(engine.python),
        device="cpu",
        eager=True,
        kv_cache_bytes=64 * 1024 * 1024,
        max_model_len=2048,
        warmup_prompt_words=warmup_prompt_words,
        warmup_features=(),  # what compiles for them takes half a minute of every start; one test asks for all
    )


@pytest.fixture(scope="session")
def real_engine() -> Callable[[str], RealEngine]:
    """Return a function that finds a version's real vLLM."""
    return LOCAL.find


@pytest.fixture(scope="session")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Questions]]:
    """Return a function that asks a version's real vLLM; one process per version answers all tests."""
    with LOCAL.asking(tmp_path_factory.mktemp("questions")) as ask:
        yield ask


@pytest.fixture(params=SUPPORTED_VERSIONS)
def questions(request: pytest.FixtureRequest, asked: Callable[[str], Questions]) -> Questions:
    """Ask each version's real vLLM in turn."""
    return asked(request.param)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create the tiny random Qwen3."""
    engine = LOCAL.find(LOCAL.version)
    return built_once(tmp_path_factory, "vllm-tiny-qwen3", lambda folder: make_tiny_model(engine, folder))
