"""Every supported version of the real SGLang that is installed on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.plugins.local_engines import LocalEngine, make_tiny_model
from tests.side_by_side import built_once
from torpor_sglang import SGLang
from torpor_sglang.versions import SUPPORTED_VERSIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.plugins.local_engines import Questions, RealEngine

LOCAL = LocalEngine(name="sglang", title="SGLang", version="0.5.23")


def cpu_plugin(engine: RealEngine, *, warmup_prompt_words: tuple[int, ...]) -> SGLang:
    """Return the plugin for a real SGLang with the tiny model, on this machine's CPU."""
    return SGLang(
        version=engine.version,
        python=str(engine.python),
        device="cpu",
        mem_fraction_static=0.1,
        max_total_tokens=4096,
        sleep_on_idle=True,
        warmup_prompt_words=warmup_prompt_words,
        warmup_features=(),  # what compiles for them takes half a minute of every start; one test asks for all
    )


@pytest.fixture(scope="session")
def real_engine() -> Callable[[str], RealEngine]:
    """Return a function that finds a version's real SGLang."""
    return LOCAL.find


@pytest.fixture(scope="session")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Questions]]:
    """Return a function that asks a version's real SGLang; one process per version answers all tests."""
    with LOCAL.asking(tmp_path_factory.mktemp("questions")) as ask:
        yield ask


@pytest.fixture(params=SUPPORTED_VERSIONS)
def questions(request: pytest.FixtureRequest, asked: Callable[[str], Questions]) -> Questions:
    """Ask each supported version's real SGLang in turn."""
    return asked(request.param)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create the tiny random Qwen3."""
    engine = LOCAL.find(LOCAL.version)
    return built_once(tmp_path_factory, "sglang-tiny-qwen3", lambda folder: make_tiny_model(engine, folder))
