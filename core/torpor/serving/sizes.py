"""How much memory a replica takes, how much there is, and on which GPUs a replica finds room. Pure values, bytes throughout."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Budget", "Room", "Size", "Taken"]


class Size(NamedTuple):
    """The memory of one replica in one state.

    Attributes:
        host: bytes of host memory.
        gpus: bytes on each of its GPUs, in its own order.
    """

    host: int = 0
    gpus: tuple[int, ...] = ()


class Budget(NamedTuple):
    """The memory that all replicas together may take.

    Attributes:
        host: bytes of host memory; None sets no limit.
        gpus: bytes on each GPU of this machine, in the driver's order.
    """

    host: int | None = None
    gpus: tuple[int, ...] = ()


class Taken(NamedTuple):
    """The memory that one replica is given.

    Attributes:
        host: bytes of host memory.
        gpus: bytes by the number of the GPU.
    """

    host: int = 0
    gpus: Mapping[int, int] = {}

    @classmethod
    def of(cls, size: Size, cards: Iterable[int]) -> Taken:
        """A size on these GPUs."""
        return cls(size.host, dict(zip(cards, size.gpus, strict=True)))


class Room:
    """Free memory. It may fall below zero, when a replica turns out to be larger than what it was given.

    Args:
        budget: all there is.
        taken: what is given to replicas already.
    """

    def __init__(self, budget: Budget, taken: Iterable[Taken] = ()) -> None:
        self.host = budget.host
        self.gpus = list(budget.gpus)
        for one in taken:
            self.take(one)

    def take(self, taken: Taken) -> None:
        """Give memory to a replica."""
        self._change(taken, -1)

    def free(self, taken: Taken) -> None:
        """A replica gives memory back."""
        self._change(taken, +1)

    def _change(self, taken: Taken, sign: int) -> None:
        if self.host is not None:
            self.host += sign * taken.host
        for card, size in taken.gpus.items():
            if card < len(self.gpus):
                self.gpus[card] += sign * size

    def has_host(self, size: int) -> bool:
        """Whether so many bytes of host memory are free."""
        return self.host is None or size <= self.host

    def holds(self, taken: Taken) -> bool:
        """Whether there is room for exactly this."""
        return self.has_host(taken.host) and all(
            size <= (self.gpus[card] if card < len(self.gpus) else 0) for card, size in taken.gpus.items()
        )

    def place(self, size: Size) -> tuple[int, ...] | None:
        """GPUs on which a replica of this size fits, each another one; None if it does not fit.

        The largest part goes to the GPU with most free memory, and so on: if any way fits, this one does.
        """
        if not self.has_host(size.host) or len(size.gpus) > len(self.gpus):
            return None
        by_room = sorted(range(len(self.gpus)), key=lambda card: -self.gpus[card])
        by_size = sorted(range(len(size.gpus)), key=lambda part: -size.gpus[part])
        chosen = [0] * len(size.gpus)
        for part, card in zip(by_size, by_room, strict=False):
            if size.gpus[part] > self.gpus[card]:
                return None
            chosen[part] = card
        return tuple(chosen)
