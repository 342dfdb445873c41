"""Compares a checksum of all weights before a release with one after the resume, on every rank, a draft model's too.

SGLang has a route for checksums (/weights_checker; 0.5.16 and later): it unpacks quantised weights for it, and the same route
replaces weights. This patch reads the memory as it is, and needs no further call. Where Torpor keeps the weights outside of the
process (`kept_memory`), they are compared there already.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, cast

from torpor.launcher import Patch, rank_name, tensor_sums, together
from torpor_sglang.patches.handlers import RELEASE, RESUME, around_handler
from torpor_sglang.places import SUMS_VARIABLE
from torpor_sglang.several_gpus import seconds_for_ranks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

__all__ = ["PATCH", "WeightSums", "models_of"]

_RUNNERS = ("model_runner", "draft_model_runner", "draft_runner", "_draft_worker", "target_worker")
"""What leads from a worker to its model runner: 0.5.6.post2 (`draft_worker.model_runner`), 0.5.16 (`_get_draft_model_runner`)."""


class WeightSums:
    """The checksum of the weights before a release, and the comparison after the resume.

    Args:
        together: runs what each rank does, and fails on all of them if it fails on one; gets that and what it is.
        rank: returns this rank and its GPU, or an empty text.
        tell: gets one line for each sum.
    """

    def __init__(
        self,
        *,
        together: Callable[[Callable[[], None], str], None] = lambda act, _: act(),
        rank: Callable[[], str] = str,
        tell: Callable[[str], None] = print,
    ) -> None:
        self._together = together
        self._rank = rank
        self._tell = tell
        self._before: dict[str, str] = {}

    def note(self, handler: object) -> None:
        """Sum the weights; call it before their memory is released."""
        self._before = self._sums(handler)

    def compare(self, handler: object) -> None:
        """Sum them again; call it after their memory is back.

        Raises:
            RuntimeError: a model has another checksum; the engine must not serve.
        """
        self._together(lambda: self._compare(handler), "the weights did not come back")

    def _compare(self, handler: object) -> None:
        now = self._sums(handler)
        wrong = [name for name, total in self._before.items() if now.get(name) != total]
        if wrong:
            where = self._rank() or "this engine"
            raise RuntimeError(
                f"{where}: the weights of {', '.join(wrong)} came back different from what they were before the sleep. The engine "
                "must not serve; take a new snapshot, and check weights_backup."
            )

    def _sums(self, handler: object) -> dict[str, str]:
        started = time.perf_counter()
        sums = {
            name: tensor_sums((*model.named_parameters(), *model.named_buffers())) for name, model in models_of(handler)
        }
        told = ", ".join(f"{name} {total}" for name, total in sums.items())
        self._tell(f"weights: checksum of {told}, {time.perf_counter() - started:.3f} s")
        return sums


def models_of(handler: object) -> Iterator[tuple[str, torch.nn.Module]]:
    """The models of SGLang's object that releases and resumes memory: the served one, and a draft model's."""
    seen: set[int] = set()
    for name, worker in (("the model", "tp_worker"), ("the draft model", "draft_worker")):
        for model in _models(getattr(handler, worker, None), seen, depth=3):
            yield name if name == "the model" else f"{name} {len(seen) - 1}", model


def _models(worker: object, seen: set[int], *, depth: int) -> Iterator[torch.nn.Module]:
    model = getattr(worker, "model", None)
    if callable(getattr(model, "named_parameters", None)):
        if id(model) not in seen:
            seen.add(id(model))
            yield cast("torch.nn.Module", model)
        return
    listed = getattr(worker, "weight_update_runners", None)  # 0.5.23: every runner, of several draft steps too
    parts = (
        [runner for _, runner in listed()] if callable(listed) else [getattr(worker, name, None) for name in _RUNNERS]
    )
    for part in parts:
        if part is not None and depth:
            yield from _models(part, seen, depth=depth - 1)


def _tell(line: str) -> None:
    print(f"torpor_sglang: {line}", file=sys.stderr, flush=True)


def _apply() -> None:
    sums = WeightSums(
        together=lambda act, what: together(act, what=what, timeout_s=seconds_for_ranks(os.environ)),
        rank=rank_name,
        tell=_tell,
    )
    around_handler(RELEASE, before=sums.note)
    around_handler(RESUME, after=sums.compare)


PATCH = Patch(
    name="weight-sums",
    reason="weights that came back with a small damage answer like the right ones to most questions, and SGLang compares nothing",
    versions=("0.5.23",),
    applies=lambda: SUMS_VARIABLE in os.environ,
    apply=_apply,
)
