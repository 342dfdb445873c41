"""Who falls, so that another deployment finds room: the least recently used first, and no more of them than needed.

A replica with a request in flight never falls. One that is busy can be asked to yield: it gets no more requests, and falls when
the last one is over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from torpor.serving.sizes import Room, Size, Taken

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torpor.serving.states import Replica

__all__ = ["Fall", "Need", "falls_for"]


class Need(NamedTuple):
    """The memory that a deployment needs for its next replica.

    Attributes:
        size: of the whole replica; for one that sleeps what it takes in addition.
        cards: the GPUs that it is bound to; None for any.
    """

    size: Size
    cards: tuple[int, ...] | None = None

    def cards_in(self, room: Room) -> tuple[int, ...] | None:
        """The GPUs on which it fits; None if it does not."""
        if self.cards is None:
            return room.place(self.size)
        return self.cards if room.holds(Taken.of(self.size, self.cards)) else None


class Fall(NamedTuple):
    """One replica and the state that it falls to."""

    replica: Replica
    to: Literal["asleep", "on disk"]


def falls_for(
    need: Need, room: Room, candidates: Iterable[Replica], asleep: Callable[[Replica], Taken | None]
) -> list[Fall] | None:
    """The falls that make room, as few as possible; empty if there is room. None if all together do not suffice.

    Args:
        need: what has to fit.
        room: free memory, with what is being freed already; it is changed meanwhile and left as it was.
        candidates: replicas that may fall, the best first.
        asleep: what a serving replica takes once it sleeps; None if it cannot sleep, or must not.
    """
    done: list[tuple[Fall, Taken, Taken]] = []
    try:
        for fall, before, after in _steps(list(candidates), need, room, asleep):
            if need.cards_in(room) is not None:
                break
            room.free(before)
            room.take(after)
            done.append((fall, before, after))
        if need.cards_in(room) is None:
            return None
        return _needed(need, room, done)
    finally:
        for _, before, after in done:
            room.take(before)
            room.free(after)


def _steps(
    candidates: Sequence[Replica], need: Need, room: Room, asleep: Callable[[Replica], Taken | None]
) -> Iterable[tuple[Fall, Taken, Taken]]:
    """Every fall in order. For GPU memory sleeping suffices, and waking is cheap; so that comes first."""
    slept: dict[int, Taken] = {}
    for replica in candidates if need.size.gpus else ():
        after = asleep(replica) if replica.state == "serving" else None
        if after is not None and room.has_host(after.host - replica.taken.host):
            slept[replica.number] = after
            yield Fall(replica, "asleep"), replica.taken, after
    for replica in candidates:
        yield Fall(replica, "on disk"), slept.get(replica.number, replica.taken), Taken()


def _needed(need: Need, room: Room, done: list[tuple[Fall, Taken, Taken]]) -> list[Fall]:
    """Drop each fall without which there is room as well, first those that cost most (to disk), last chosen first."""
    last_first = done[::-1]
    for step in sorted(last_first, key=lambda one: one[0].to != "on disk"):
        _, before, after = step
        if step not in done or _is_superseded(step, done):
            continue
        room.take(before)
        room.free(after)
        if need.cards_in(room) is None:
            room.free(before)
            room.take(after)
        else:
            done.remove(step)
    return [step[0] for step in done if not _is_superseded(step, done)]


def _is_superseded(step: tuple[Fall, Taken, Taken], done: list[tuple[Fall, Taken, Taken]]) -> bool:
    """Whether the same replica falls further."""
    fall = step[0]
    return fall.to == "asleep" and any(one[0].replica is fall.replica and one[0].to == "on disk" for one in done)
