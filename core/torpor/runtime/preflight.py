"""Plugins' checks before a start."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from torpor.build_steps.command import script_argv
from torpor.engine.child_process import run_child
from torpor.errors import PreflightError

if TYPE_CHECKING:
    from torpor.recipe import Preflight, Recipe

__all__ = ["RECHECK_VARIABLE", "run_preflight"]

RECHECK_VARIABLE = "TORPOR_RECHECK"
"""With the value 1 a check reads everything again, instead of trusting sizes and times (`torpor doctor --recheck`)."""

_OUTPUT_BYTES = 16 << 10  # of a check's output in the error: its end says most


def run_preflight(check: Preflight, recipe: Recipe) -> None:
    """Run a plugin's check before a start.

    Raises:
        PreflightError: it failed, took too long or cannot be run; the message ends with the plugin's cure.
    """
    argv = script_argv(sys.executable, check.script, check.argv)
    try:
        result = run_child(argv, env={**os.environ, **recipe.env}, timeout_s=check.timeout_s)
    except subprocess.TimeoutExpired:
        raise PreflightError(
            f"Preflight check {check.name!r} took longer than {check.timeout_s:g} s. {check.cure}"
        ) from None
    except OSError as error:
        raise PreflightError(
            f"Preflight check {check.name!r}: {argv[0]!r} cannot be run: {error.strerror}. {check.cure}"
        ) from error
    if result.returncode != 0:
        words = (result.stderr or result.stdout)[-_OUTPUT_BYTES:]
        said = words.decode(errors="replace").strip() or f"exit code {result.returncode}, no output."
        raise PreflightError(f"Preflight check {check.name!r} failed: {said} {check.cure}")
