"""What a sleep of SGLang drops, and who restores it, by the plugin's options: the only place that says so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torpor.engine_plugins import SleepPart, speculative_words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torpor import Deployment
    from torpor_sglang.plugin import SGLang

__all__ = ["sleep_parts"]

_RESTORED = {
    "saver": "SGLang restores it from pinned memory of its process",
    "file": "Torpor restores it from a file outside of the snapshot",
    "memory": "Torpor restores it from memory that is pinned once",
}


def sleep_parts(engine: SGLang, deployment: Deployment) -> Iterator[SleepPart]:
    """Every kind of memory that the engine has in this deployment.

    The weights of a draft are in the same allocations as the model's: both loads run in the saver's region `weights`
    (0.5.6.post2 model_runner.py:793, 0.5.23 load_model_utils.py:307). Adapters and CUDA graphs lie outside of it.
    """
    if (nothing := _frees_nothing(engine)) is not None:
        for what in ("KV cache", "weights"):
            yield SleepPart(what=what, option=nothing, dropped=False)
    else:
        yield from _of_saver(engine, deployment)
    if engine.tensor_parallel > 1 and engine.device != "cpu":
        yield SleepPart(
            what="NCCL communicators",
            option=f"tensor_parallel={engine.tensor_parallel}",
            dropped=True,
            restored_by="Torpor has NCCL resume them",
            checked_by=("canary",),
        )


def _of_saver(engine: SGLang, deployment: Deployment) -> Iterator[SleepPart]:
    """What the memory saver releases."""
    tags = f"sleep_tags={engine.sleep_tags!r}"
    yield SleepPart(what="KV cache", option=tags, dropped="kv_cache" in engine.sleep_tags, needed=False)
    drops, keeps = "weights" in engine.sleep_tags, engine.weights_backup
    # Several lines of one store: random weights alone may come back as others.
    store = f"weights_store={engine.weights_store!r}" if keeps else "weights_backup=False, dummy_weights=True"
    names = ["weights", *(["draft weights"] if _has_draft(engine, deployment) else [])]
    for what in names:
        checks = ("checksum", "canary", *(["acceptance"] if what != "weights" else []))
        yield SleepPart(
            what=what,
            option=store if drops else tags,
            dropped=drops,
            restored_by=_RESTORED[engine.weights_store] if keeps else "",
            needed=keeps or not engine.dummy_weights,
            checked_by=checks if deployment.canary_mismatch == "fail" else (),
        )
    if deployment.model.adapters:
        yield SleepPart(what="adapters", option="Model.adapters", dropped=False)
    graphs = engine.release_graphs
    yield SleepPart(
        what="CUDA graphs",
        option=f"release_graphs={graphs}",
        dropped=graphs,
        restored_by=_RESTORED["memory"] if graphs else "",
        checked_by=("canary",) if graphs else (),
    )


def _frees_nothing(engine: SGLang) -> str | None:
    """The option with which a sleep frees nothing; None if it frees something."""
    if engine.device == "cpu":
        return "device='cpu'"
    return None if engine.memory_saver else "memory_saver=False"


def _has_draft(engine: SGLang, deployment: Deployment) -> bool:
    """Whether there are draft weights, whoever asked for them; flags may ask for a method without any."""
    draft = deployment.model.draft
    return bool(draft.source) if draft is not None else bool(speculative_words(engine.extra_args))
