"""What a sleep of vLLM drops, and who restores it, by the plugin's options: the only place that says so."""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING

from torpor.engine_plugins import SleepPart, speculative_words

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torpor import Deployment
    from torpor_vllm.plugin import VLLM

__all__ = ["DRAFT_NAMES", "PRESERVE", "kept_names", "sleep_parts"]

# 0.32.0 and 0.33.0 v1/worker/gpu_worker.py: a sleep of level 2 drops the draft model's weights, and `reload_weights` reads the
# target's alone. The names of its parameters begin with `draft.`; without a draft model that pattern is ignored.
PRESERVE, DRAFT_NAMES = "--sleep-preserve-parameter-names", "draft.*"
_PINNED = "vLLM restores it from pinned memory of its workers"
_SAVED = "vLLM restores it from host memory"
_LEVEL_2 = 2


def sleep_parts(engine: VLLM, deployment: Deployment, *, ranks: int) -> Iterator[SleepPart]:
    """Every kind of memory that the engine has in this deployment.

    Model, draft and adapters are loaded in one pool, `weights` (0.32.0 v1/worker/gpu_worker.py:589, gpu_model_runner.py:5067).

    Args:
        engine: with its options.
        deployment: what it serves.
        ranks: workers that share the model.
    """
    if engine.device == "cpu":
        for what in ("weights", "KV cache"):
            yield SleepPart(what=what, option="device='cpu'", dropped=False)
        return
    level, second = f"sleep_level={engine.sleep_level}", engine.sleep_level == _LEVEL_2
    checks = ("checksum", "canary") if deployment.canary_mismatch == "fail" else ()
    yield SleepPart(
        what="weights",
        option=level,
        dropped=True,
        restored_by="vLLM reads the model's files again" if second else _PINNED,
        checked_by=checks,
    )
    yield SleepPart(what="KV cache", option=level, dropped=True, needed=False)
    if _has_draft(engine, deployment):
        yield _draft(engine, checks)
    if deployment.model.adapters:
        yield SleepPart(
            what="adapters", option=level, dropped=True, restored_by="" if second else _PINNED, checked_by=checks
        )
    if not engine.eager:
        yield _graphs(offloaded=engine.offload_graphs)
    if ranks > 1:
        yield SleepPart(
            what="NCCL communicators",
            option=f"{ranks} ranks",
            dropped=True,
            restored_by="Torpor has NCCL resume them",
            checked_by=("canary",),
        )


def _draft(engine: VLLM, checks: tuple[str, ...]) -> SleepPart:
    level, second = f"sleep_level={engine.sleep_level}", engine.sleep_level == _LEVEL_2
    names = kept_names(engine.extra_args) or (DRAFT_NAMES,)
    kept = any(fnmatch.fnmatchcase(DRAFT_NAMES, name) for name in names)
    return SleepPart(
        what="draft weights",
        option=f"{level}, {PRESERVE} {' '.join(names)}" if second else level,
        dropped=True,
        restored_by=(_SAVED if kept else "") if second else _PINNED,
        checked_by=(*checks, "acceptance") if checks else (),
    )


def _graphs(*, offloaded: bool) -> SleepPart:
    return SleepPart(
        what="CUDA graphs",
        option=f"offload_graphs={offloaded}",
        dropped=offloaded,
        restored_by="vLLM restores them from host memory" if offloaded else "",
        checked_by=("canary",) if offloaded else (),
    )


def kept_names(words: Sequence[str]) -> tuple[str, ...]:
    """The patterns of parameters that a sleep of level 2 keeps, among words of a command line; empty if none names any."""
    for place, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag == PRESERVE:
            further = words[place + 1 :]
            end = next((at for at, one in enumerate(further) if one.startswith("--")), len(further))
            return (value,) if equals else tuple(further[:end])
    return ()


def _has_draft(engine: VLLM, deployment: Deployment) -> bool:
    """Whether there are draft weights, whoever asked for them; flags may ask for a method without any."""
    draft = deployment.model.draft
    return bool(draft.source) if draft is not None else bool(speculative_words(engine.extra_args))
