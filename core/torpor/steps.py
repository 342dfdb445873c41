"""Build steps and preflight checks as command lines: the same on every platform, only the paths differ."""

from __future__ import annotations

import importlib.util
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from torpor.errors import ConfigurationError

if TYPE_CHECKING:
    from torpor.recipe import BuildStep

__all__ = ["runner_file", "script_argv", "script_file", "step_command"]


def script_file(module: str) -> Path:
    """The file of a self-contained module, found without importing the module itself.

    Args:
        module: dotted name, e.g. `torpor_hf_cache.download`.

    Raises:
        ConfigurationError: there is no such module on this machine.
    """
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None:
        raise ConfigurationError(
            f"The script module {module!r} was not found on this machine: install the package that holds it ({sys.executable})."
        )
    return Path(spec.origin)


def script_argv(python: str, module: str | None, argv: tuple[str, ...]) -> tuple[str, ...]:
    """The command line of a step or check: `argv` itself, or the script's file run by `python` with `argv`."""
    return argv if module is None else (python, str(script_file(module)), *argv)


def runner_file() -> Path:
    """The file of the build-step runner: standard library only, so that it runs in an image that holds nothing yet."""
    return script_file("torpor.buildstep")


def step_command(step: BuildStep, *, python: str, runner: str, script: str | None) -> tuple[str, ...]:
    """The whole command line of a build step: the runner with its options, `--`, and the step's own command.

    Args:
        step: what to run.
        python: interpreter for the runner and the script.
        runner: path of `torpor/buildstep.py` where the step runs.
        script: path of the step's script file where the step runs; None for a step without one.
    """
    argv = [python, runner, "--name", step.name, "--timeout", f"{step.timeout_s:g}", "--retries", str(step.retries)]
    for output in step.outputs:
        argv += ["--output", output]
    if step.cache:
        argv += ["--cache-volume", step.cache.volume_dir, "--cache-image", step.cache.image_dir]
        argv += [f"--key={part}" for part in step.cache.key]
        argv += [f"--probe={shlex.join(probe)}" for probe in step.cache.probes]
    for mount in step.volumes:
        argv += ["--sync", mount]
    command = step.argv if script is None else (python, script, *step.argv)
    return (*argv, "--", *command)
