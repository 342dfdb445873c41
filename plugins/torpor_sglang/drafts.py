"""`Model.draft` as SGLang's flags, and which methods it has where."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torpor import DRAFT_METHODS

if TYPE_CHECKING:
    from torpor import Draft, DraftMethod

__all__ = ["DRAFT_REASONS", "draft_methods_beside_adapters", "draft_words", "methods_of"]

# 0.5.6.post2 server_args.py:3018 (choices), 0.5.16 and 0.5.18 server_args.py, 0.5.23 arg_groups/fields/spec.py
_ALGORITHMS: dict[DraftMethod, str] = {"model": "STANDALONE", "eagle": "EAGLE", "eagle3": "EAGLE3", "ngram": "NGRAM"}
_ALGORITHM, _PATH, _REVISION = (
    "--speculative-algorithm",
    "--speculative-draft-model-path",
    "--speculative-draft-model-revision",
)
_STEPS, _WIDTH, _TOKENS = "--speculative-num-steps", "--speculative-eagle-topk", "--speculative-num-draft-tokens"

DRAFT_REASONS = {
    _ALGORITHM: "Model.draft guesses tokens ahead, which the model checks all at once",
    _PATH: "the weights of Model.draft",
    _REVISION: "pins them to one commit; without it the engine would ask the hub for the newest one",
    _STEPS: "Model.draft.tokens: guesses for each step of the model",
    _WIDTH: "one guess at each place: a chain, as vLLM has it, and no tree",
    _TOKENS: "the guesses and the token that the model checks last; SGLang wants them to fit the steps",
}
"""The reason for each flag, for `torpor plan`."""


def methods_of(device: str) -> tuple[DraftMethod, ...]:
    """The methods on a device; every supported version has all four on a GPU.

    Args:
        device: `cuda` or `cpu`. On a CPU there is none: 0.5.23 started with NGRAM and with STANDALONE ends at kernels of
            sgl_kernel that have no build there (`reconstruct_indices_from_tree_mask`, `copy_all_layer_kv_cache_cpu`).
    """
    return DRAFT_METHODS if device == "cuda" else ()


def draft_methods_beside_adapters(version: str) -> tuple[DraftMethod, ...]:
    """The methods that a version takes where the model has adapters.

    Sources: `check_lora_server_args` in server_args.py of 0.5.6.post2 (line 4256), 0.5.16 and 0.5.18; `lora_hook.py:240` of 0.5.23.

    Args:
        version: SGLang's.
    """
    return ("ngram", "eagle", "eagle3") if version == "0.5.23" else ("ngram",)


def draft_words(draft: Draft | None) -> tuple[str, ...]:
    """The flags of a draft; none without one."""
    if draft is None:
        return ()
    words = [_ALGORITHM, _ALGORITHMS[draft.method]]
    if draft.method == "ngram":
        return (*words, _TOKENS, str(draft.tokens + 1))
    words += [_PATH, draft.source, *([_REVISION, draft.revision] if draft.revision else [])]
    return (*words, _STEPS, str(draft.tokens), _WIDTH, "1", _TOKENS, str(draft.tokens + 1))
