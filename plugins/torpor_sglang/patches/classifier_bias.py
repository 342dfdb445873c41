"""Starts the bias of a Qwen classifier's last layer at zero, as models without one need it.

`Qwen2ForSequenceClassification` and `Qwen3ForSequenceClassification` make that layer with a bias. The models of transformers have
none, so their files hold none, and the bias stays what the layer was made with: random numbers, others at every start. A model
that has a bias loads it over the zeros. Reported as github.com/sgl-project/sglang/issues/38768.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from torpor.launcher import Patch, after_import

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    import torch

__all__ = ["PATCH", "start_at_zero"]

_MODULES = ("sglang.srt.models.qwen2_classification", "sglang.srt.models.qwen3_classification")


class _Classifier(Protocol):
    """The part of SGLang's classifiers that this patch changes."""

    score: torch.nn.Linear


def start_at_zero(module: ModuleType) -> None:
    """Let the classifiers of a module begin with a bias of zero.

    Args:
        module: one of SGLang's models; `EntryClass` lists its classes.
    """
    for kind in module.EntryClass:
        kind.__init__ = _with_zero_bias(kind.__init__)


def _with_zero_bias(init: Callable[..., None]) -> Callable[..., None]:
    def __init__(self: _Classifier, *args: object, **options: object) -> None:  # noqa: N807 - it takes that one's place
        init(self, *args, **options)
        if self.score.bias is not None:  # a version without the fault has none
            self.score.bias.detach().zero_()

    return __init__


def _apply() -> None:
    for module in _MODULES:
        after_import(module, start_at_zero)


PATCH = Patch(
    name="classifier-bias",
    reason=(
        "SGLang adds a bias to the scores of Qwen2 and Qwen3 classifiers and rerankers, which their files do not have: random "
        "numbers, so that two starts of one model score differently"
    ),
    versions=("0.5.6.post2", "0.5.16", "0.5.18", "0.5.23"),
    applies=lambda: True,
    apply=_apply,
)
