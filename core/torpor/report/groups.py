"""Groups of stages: a page draws all stages of a group in one colour, and names the group in its legend."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torpor.telemetry.stages import FETCH_STAGES, RESTORE_STAGES, Stage

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torpor.report.starts import Start

__all__ = ["GROUPS", "group_of", "legend"]

GROUPS: dict[str, tuple[str, tuple[Stage, ...]]] = {
    "process": ("process, checks", (Stage.PROCESS, Stage.PREFLIGHT, Stage.VERIFY, Stage.IMPORTS)),
    "load": ("engine start", (Stage.LAUNCH, Stage.READY)),
    "warm": ("warm-up, canary", (Stage.WARMUP, Stage.CANARY, Stage.CANARY_CHECK)),
    "sleep": ("falling asleep", (Stage.DRAIN, Stage.PRE_SNAPSHOT)),
    "snapshot": ("snapshot", (*FETCH_STAGES, *RESTORE_STAGES)),
    "wake": ("wake, opening", (Stage.POST_RESTORE, Stage.SERVE)),
    "answer": ("first answer", (Stage.FIRST_ANSWER,)),
}
"""Words for the legend and the stages, by the name of the colour in `templates/page.css`."""


def group_of(stage: str) -> str:
    """The group of a stage; that of `process` for an unknown one."""
    return next((group for group, (_, stages) in GROUPS.items() if stage in stages), "process")


def legend(starts: Sequence[Start]) -> Iterator[tuple[str, str]]:
    """Name and words of each group that the starts have a stage of."""
    seen = {group_of(span.stage) for start in starts for span in start.spans}
    yield from ((group, words) for group, (words, _) in GROUPS.items() if group in seen)
