"""Run the build steps of a recipe on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torpor.build_steps.command import run_step
from torpor.build_steps.outputs import making

if TYPE_CHECKING:
    from collections.abc import Callable

    from torpor.recipe import Recipe

__all__ = ["run_build_steps"]


def run_build_steps(recipe: Recipe, root: Path, *, on_step: Callable[[str], None] | None = None) -> None:
    """Run the build steps of a relocated recipe. A step whose outputs a completed run has made is skipped.

    Args:
        recipe: from `relocate`.
        root: the cache root.
        on_step: called with the name of each step before it runs.

    Raises:
        BuildStepError: a step failed; its output was printed before.
    """
    for volume in recipe.volumes:
        Path(volume).mkdir(parents=True, exist_ok=True)
    for step in recipe.steps:
        with making(step, root / "steps") as needed:
            if needed:
                if on_step:
                    on_step(step.name)
                for mount in step.volumes:
                    Path(mount).mkdir(parents=True, exist_ok=True)
                run_step(step, recipe)
