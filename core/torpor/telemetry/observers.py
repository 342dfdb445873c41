"""Who in this process is told of every stage that ends, and of every listener that fails: the metrics of a serving command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torpor.telemetry.records import StageRecord

__all__ = ["Observer", "add_observer", "observers", "remove_observer"]


class Observer(Protocol):
    """Told in any thread; it must return at once and raise nothing."""

    def stage_ended(self, record: StageRecord) -> None:
        """A stage ended."""

    def listener_failed(self, deployment: str, plugin: str, what: str) -> None:
        """A listener of a deployment failed: `raised`, `hung`, `late` or `dropped`."""


_observers: tuple[Observer, ...] = ()


def observers() -> tuple[Observer, ...]:
    """Those that are told now."""
    return _observers


def add_observer(observer: Observer) -> None:
    """From now on it is told."""
    global _observers  # noqa: PLW0603 - stages of all replicas of the process end up here
    _observers = (*_observers, observer)


def remove_observer(observer: Observer) -> None:
    """From now on it is not told. Harmless to repeat."""
    global _observers  # noqa: PLW0603 - as above
    _observers = tuple(one for one in _observers if one is not observer)
