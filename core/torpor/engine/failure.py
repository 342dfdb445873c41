"""What was started ends when the work on it fails."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["stops_on_failure"]


@contextlib.contextmanager
def stops_on_failure(*stops: Callable[[], object], unless: type[BaseException] | None = None) -> Iterator[None]:
    """Call `stops`, in their order, when the block raises. Ctrl-C counts, too.

    Args:
        stops: end what was started.
        unless: an error after which it runs on, e.g. `DrainTimeoutError`: the engine then serves on.
    """
    try:
        yield
    except BaseException as error:
        if unless is None or not isinstance(error, unless):
            for stop in stops:
                stop()
        raise
