"""The order of a deployment's plugins: as listed, but for what plugins say of each other by name."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

from torpor.errors import ConfigurationError
from torpor.values.field_types import shown

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ordered"]

_Plugin = TypeVar("_Plugin")


def ordered(plugins: Sequence[tuple[str, _Plugin]]) -> tuple[_Plugin, ...]:
    """The plugins in the order in which their hooks run.

    Each plugin runs before those of its `runs_before`, and after those of its `runs_after`. Of plugins that may come next, the one
    that is listed first does. A name that no plugin of the deployment has is no error: the other plugin is optional.

    Args:
        plugins: pairs of a name and a plugin, as listed.

    Raises:
        ConfigurationError: plugins want to run before each other; the message names them, and who says what.
    """
    before = _wishes(plugins)
    left = [name for name, _ in plugins]
    order: list[str] = []
    while left:
        ready = next((name for name in left if not any((other, name) in before for other in left)), None)
        if ready is None:
            raise ConfigurationError(
                f"Deployment.plugins has a circle: {_circle(left, before)}. Drop one of these plugins, or one of the wishes."
            )
        order.append(ready)
        left.remove(ready)
    by_name = dict(plugins)
    return tuple(by_name[name] for name in order)


def _wishes(plugins: Sequence[tuple[str, object]]) -> dict[tuple[str, str], str]:
    """Who has to run before whom, by pairs of names, and who says so."""
    names = {name for name, _ in plugins}
    before: dict[tuple[str, str], str] = {}
    for name, plugin in plugins:
        for attribute in ("runs_before", "runs_after"):
            for other in _named(name, plugin, attribute):
                if other in names:
                    pair = (name, other) if attribute == "runs_before" else (other, name)
                    before.setdefault(pair, f"{name}.{attribute}")
    return before


def _named(name: str, plugin: object, attribute: str) -> tuple[str, ...]:
    given: object = getattr(plugin, attribute, ())
    if not isinstance(given, tuple) or not all(isinstance(one, str) for one in given):
        raise ConfigurationError(
            f"Plugin {name!r}: {attribute} is {shown(given)}; it has to be a tuple of plugins' names, e.g. ('hf_cache',)."
        )
    if name in given:
        raise ConfigurationError(f"Plugin {name!r}: {attribute} names the plugin itself.")
    return given


def _circle(left: Sequence[str], before: dict[tuple[str, str], str]) -> str:
    """One circle among plugins each of which has another one before it, in words."""
    path = [left[0]]
    while path[-1] not in path[:-1]:
        path.append(next(first for first, then in before if then == path[-1] and first in left))
    circle = path[path.index(path[-1]) :][::-1]
    steps = pairwise(circle)
    return ", ".join(f"{first!r} before {then!r} ({before[first, then]})" for first, then in steps)
