"""Build steps and preflight checks as command lines: the same on every platform, only the paths differ."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from torpor.engine.child_process import ends_with_this_process
from torpor.errors import BuildStepError, ConfigurationError
from torpor.network.proxies import past_proxies

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torpor.recipe import BuildStep, Recipe

__all__ = ["run_step", "runner_file", "script_argv", "script_file", "step_command"]


_STANDARD_ERROR = 2
_GENTLE_S = 3.0
"""Seconds that a step gets to end by itself once the framework has ended."""
_RUNNER_SPARE_S = 300.0
_KILLED_S = 5.0
_RUNNER_ENDS_S = 30.0
"""Seconds for a runner after SIGTERM: ten for the step to clean up, ten to kill it, the rest for a busy machine."""


def script_file(module: str) -> Path:
    """The file of a self-contained module. The module is not imported.

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
    return script_file("torpor.build_steps.runner")


def step_command(step: BuildStep, *, python: str, runner: str, script: str | None) -> tuple[str, ...]:
    """The whole command line of a build step: the runner with its options, `--`, and the step's own command.

    Args:
        step: what to run.
        python: interpreter for the runner and the script.
        runner: path of `torpor/build_steps/runner.py` where the step runs.
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


def _longest_s(step: BuildStep) -> float:
    """Seconds in which the runner ends a step by itself: all attempts, an equal wait for another builder, and two copies."""
    return 2 * step.timeout_s * (step.retries + 2) + _RUNNER_SPARE_S


def run_step(step: BuildStep, recipe: Recipe) -> None:
    """Run a build step on this machine with this interpreter.

    Its output goes to standard error, because standard output is for the result of a command. The runner enforces the step's
    deadline and ends everything that the step started. Runner and step end with this process, and when the wait for them is
    interrupted (Ctrl-C).

    Args:
        step: what to run.
        recipe: its environment variables; those of the step override them.

    Raises:
        BuildStepError: it failed.
        ConfigurationError: its script was not found.
    """
    script = str(script_file(step.script)) if step.script else None
    argv = step_command(step, python=sys.executable, runner=str(runner_file()), script=script)
    with ends_with_this_process(_GENTLE_S) as lifeline:
        env = {**os.environ, **recipe.env, **step.env, **lifeline.mark}
        env |= past_proxies(env)
        process = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=_STANDARD_ERROR)
        lifeline.tell(process.pid)
        code = _wait_for_runner(process, step, argv)
        if code != 0:
            raise BuildStepError(
                f"Build step {step.name!r} failed with exit code {code}; its output stands above. "
                f"The command was: {shlex.join(argv)}"
            )


def _wait_for_runner(process: subprocess.Popen[bytes], step: BuildStep, argv: Sequence[str]) -> int:
    """The runner's exit code.

    Raises:
        BuildStepError: the runner missed its own deadlines, and was killed.
    """
    longest_s = _longest_s(step)
    try:
        return process.wait(longest_s)
    except subprocess.TimeoutExpired:
        process.kill()  # its own deadlines did not hold: a file system that hangs, a runner that was stopped
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_KILLED_S)
        raise BuildStepError(
            f"Build step {step.name!r} did not end, and neither did its runner, in {longest_s:g} s, several times what it "
            f"may take; it was ended. Look at the disks that it uses. The command was: {shlex.join(argv)}"
        ) from None
    except BaseException:
        process.terminate()  # the runner ends the step's own processes before it goes
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_RUNNER_ENDS_S)
        raise
