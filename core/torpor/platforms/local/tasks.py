"""Calls in threads of their own.

`concurrent.futures` would do the same, but imports `logging`: 10 ms of a restore.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Generic, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Task", "results"]

_T = TypeVar("_T")
_P = ParamSpec("_P")


class Task(Generic[_T]):
    """A call that runs in a thread of its own from now on.

    Attributes:
        value: what the call returned; None while it runs and after an error.
        error: what it raised.
    """

    def __init__(self, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> None:
        self.value: _T | None = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(lambda: call(*args, **kwargs),), daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait until the call is over."""
        self._thread.join()

    def _run(self, call: Callable[[], _T]) -> None:
        try:
            self.value = call()
        except BaseException as error:
            self.error = error


def results(tasks: Sequence[Task[_T]]) -> list[_T]:
    """Wait for all calls, then return their values, or raise the first error."""
    for task in tasks:
        task.join()
    for task in tasks:
        if task.error is not None:
            raise task.error
    return [task.value for task in tasks if task.value is not None]
