"""A sleep that frees nothing on the GPU is refused."""

from __future__ import annotations

import pytest

from torpor import Deployment, Model
from torpor.lifecycle import Lifecycle
from torpor_sglang import SGLang
from torpor_sglang.patches.freed_memory import FreedMemory


def released(before: int, after: int) -> list[str]:
    """One release with the free bytes before and after it; what was told."""
    told: list[str] = []
    free = iter((before, after))
    memory = FreedMemory(free=lambda: next(free), rank=lambda: "rank 0 (GPU 0)", tell=told.append)
    memory.note()
    memory.compare()
    return told


def test_what_a_sleep_freed_is_told() -> None:
    """In the engine's log, for each rank."""
    assert released(1_000_000_000, 61_500_000_000) == ["rank 0 (GPU 0): the sleep freed 60.50 GB"]


@pytest.mark.parametrize("after", [5_000, 4_000])
def test_a_sleep_that_frees_nothing_is_an_error(after: int) -> None:
    """It names the rank and both sizes."""
    with pytest.raises(RuntimeError, match=rf"rank 0 .* freed nothing on the GPU \(5000 bytes .* {after} are now\)"):
        released(5_000, after)


@pytest.mark.parametrize(
    ("options", "measured"), [({}, True), ({"memory_saver": False}, False), ({"device": "cpu"}, False)]
)
def test_the_plugin_says_where_a_sleep_has_to_free_memory(options: dict[str, object], measured: bool) -> None:
    """On a GPU with the memory saver; on a CPU there is nothing to free."""
    plugin = SGLang(**options)  # type: ignore[arg-type] # options of several types
    made = Deployment(
        name="d", model=Model(path="/m"), gpu=None if options.get("device") else "H100!", plugins=(plugin,)
    )
    assert ("TORPOR_SLEEP_FREES" in Lifecycle(made).recipe().env) is measured
