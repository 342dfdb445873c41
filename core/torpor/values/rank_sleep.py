"""`RankSleep`: what one rank of an engine frees on its GPU while it sleeps, and where its weights are meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from torpor.errors import ConfigurationError
from torpor.values.field_types import check_types, shown

__all__ = ["RankSleep", "WeightsPlace"]

WeightsPlace = Literal["snapshot", "file", "memory", "model", "gpu"]
"""Where the weights of a sleeping rank are: in its own host memory and so in every snapshot; in a file outside of the snapshot; in
pinned memory of a process that stays; nowhere but in the model's files, which the wake reads again; on the GPU."""


@dataclass(frozen=True, kw_only=True)
class RankSleep:
    """What one rank frees, for `torpor plan` and the estimate of a snapshot's size. Every rank of an engine does the same.

    Attributes:
        released: what it frees on its GPU, in a few words each.
        weights: where its weights are meanwhile.

    Raises:
        ConfigurationError: the place is unknown.
    """

    released: tuple[str, ...]
    weights: WeightsPlace

    def __post_init__(self) -> None:
        check_types(self)
        if self.weights not in get_args(WeightsPlace):
            allowed = ", ".join(map(repr, get_args(WeightsPlace)))
            raise ConfigurationError(f"RankSleep.weights is {shown(self.weights)}; allowed: {allowed}.")
