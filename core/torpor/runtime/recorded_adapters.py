"""What a canary recorded of a model's adapters: under `adapters`, for each name the same fields as of the model itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from torpor.values.field_types import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torpor.deployment import Deployment

__all__ = ["ADAPTERS", "adapters_problem", "adapters_summary", "recorded_names"]

ADAPTERS = "adapters"
_MOST = 1000


def recorded_names(recorded: Mapping[str, object], deployment: Deployment) -> dict[str, Mapping[str, object]]:
    """What was recorded of each served name, the model's own first."""
    own = {name: value for name, value in recorded.items() if name != ADAPTERS}
    return {deployment.model.served_name: own, **_of_adapters(recorded)}


def adapters_problem(recorded: Mapping[str, object], problem: Callable[[Mapping[str, object]], str]) -> str:
    """What is wrong with the adapters of a record that was read from a file; empty if nothing.

    Args:
        recorded: of the model and its adapters.
        problem: finds what is wrong with the fields of one name.
    """
    adapters = recorded.get(ADAPTERS, {})
    if not isinstance(adapters, dict) or len(adapters) > _MOST:
        return f"{ADAPTERS} is {shown(adapters)}, not an object of answers"
    for name, one in adapters.items():
        found = problem(one) if isinstance(one, dict) else f"is {shown(one)}, not an object"
        if found:
            return f"{ADAPTERS}.{shown(name)}: {found}"
    return ""


def adapters_summary(recorded: Mapping[str, object]) -> str:
    """The adapters that were asked as well, for the end of a line."""
    names = list(_of_adapters(recorded))
    return f"; adapters: {', '.join(names)}" if names else ""


def _of_adapters(recorded: Mapping[str, object]) -> dict[str, Mapping[str, object]]:
    return cast("dict[str, Mapping[str, object]]", recorded.get(ADAPTERS, {}))
