"""Plans that `torpor plan --json` printed, and their comparison with the plan of an app."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, cast

from torpor.errors import ConfigurationError
from torpor.values.changes import changes
from torpor.values.given_files import is_shallow, read_given

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torpor.values.changes import Change

__all__ = ["plan_changes", "saved_plan"]


def saved_plan(name: str) -> dict[str, object]:
    """The plan in a file, as JSON has it.

    Raises:
        ConfigurationError: the file cannot be read, or holds no plan.
    """
    try:
        plan = json.loads(read_given(Path(name), ""))
    except (ConfigurationError, ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"{name} cannot be read as a plan: {str(error).rstrip('. ')}. `torpor plan APP --json` prints one."
        ) from error
    if not isinstance(plan, dict) or not is_shallow(plan) or not _holds_plan(plan):
        raise ConfigurationError(f"{name} holds no plan; `torpor plan APP --json` prints one.")
    return cast("dict[str, object]", plan)


def plan_changes(before: Mapping[str, object], after: Mapping[str, object]) -> tuple[Change, ...]:
    """What differs between two plans as JSON has them, without what follows from the rest."""
    return changes(_compared(before), _compared(after))


def _holds_plan(values: dict[str, object]) -> bool:
    parts = {"deployment": str, "engine": dict, "image": dict}
    return all(isinstance(values.get(part), kind) for part, kind in parts.items())


def _compared(plan: Mapping[str, object]) -> dict[str, object]:
    """Without the command line, which `engine.flags` shows, the limits of a start and the sleep, which follow from the rest."""
    values: dict[str, dict[str, object]] = json.loads(json.dumps(plan))
    values["engine"].pop("command", None)
    values.pop("start_limits_s", None)
    values.pop("sleep", None)
    values.pop("sleep_parts", None)
    return dict(values)
