"""Rules about planning: `prepare_image` and `compile_kernels` return values and do nothing."""

from __future__ import annotations

import os
import pickle
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from torpor.build_steps.command import script_file
from torpor.errors import TorporError
from torpor.recipe import BuildPlan, BuildStep, ImagePatch, Preflight, split_flags
from torpor.testing.failing import broken, told
from torpor.testing.inspection import PLANNING_HOOKS, plan, plan_all, strings_in
from torpor.testing.witness import refusing_effects, scrambled_environment, without_modules
from torpor.values.secret_shapes import looks_secret, secret_value

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torpor.deployment import Deployment

__all__ = ["PlanRules"]

_SHORTEST_SECRET = 8
_ABSENT = ("modal", "sglang", "torch", "vllm")
_VALUES = {"prepare_image": ImagePatch, "compile_kernels": BuildPlan}


class PlanRules:
    """Rules about plans: they are values, equal everywhere."""

    def test_planning_gives_the_same_twice(self, plugin: object, deployment: Deployment) -> None:
        """Equal deployments give equal plans."""
        for hook in PLANNING_HOOKS:
            first, second = plan(plugin, hook, deployment), plan(plugin, hook, deployment)
            if first != second:
                broken(
                    f"{type(plugin).__name__}.{hook} returned {first!r}, then {second!r} for the same deployment.",
                    rule=f"{hook} is repeatable: it runs on the laptop and again in the container, and both have to agree.",
                    cure="compute it from the deployment and the options alone: no clock, no random number, no counter.",
                )

    def test_planning_touches_nothing(self, plugin: object, deployment: Deployment) -> None:
        """Planning uses no network, changes no file and starts no process."""
        for hook in PLANNING_HOOKS:
            failure: Exception | None = None
            with refusing_effects() as seen:
                try:
                    plan(plugin, hook, deployment)
                except Exception as error:
                    failure = error
            if failure is not None or seen:
                broken(
                    f"{type(plugin).__name__}.{hook} {told(seen, failure)}.",
                    rule=f"{hook} returns values and does nothing: no network, no written file, no process.",
                    cure="return what is to be done as a BuildStep or Preflight of compile_kernels; core runs it.",
                )

    def test_planning_ignores_the_environment(self, plugin: object, deployment: Deployment) -> None:
        """Plans depend on neither environment variables nor the working folder."""
        for hook in PLANNING_HOOKS:
            here = plan(plugin, hook, deployment)
            there: object = None
            failure: Exception | None = None
            folder = Path.cwd()
            with tempfile.TemporaryDirectory() as elsewhere, scrambled_environment() as reads:
                os.chdir(elsewhere)
                try:
                    there = plan(plugin, hook, deployment)
                except Exception as error:
                    failure = error
                finally:
                    os.chdir(folder)
            if failure is not None or here != there:
                what = f"raised {type(failure).__name__}: {failure}" if failure else "returned another value"
                read = f"it read {', '.join(sorted(reads))}" if reads else "it depends on the working folder"
                broken(
                    f"{type(plugin).__name__}.{hook} {what} under other environment variables in another folder; {read}.",
                    rule=f"{hook} does not depend on where it runs: the laptop's environment is not the container's.",
                    cure="make it an option of the plugin, or put the variable into ImagePatch.env for the engine to read.",
                )

    def test_planning_needs_no_engine(self, plugin: object, deployment: Deployment) -> None:
        """Planning works without the engine and without the platform's client."""
        for hook in PLANNING_HOOKS:
            failure: ImportError | None = None
            with without_modules(*_ABSENT):
                try:
                    plan(plugin, hook, deployment)
                except ImportError as error:
                    failure = error
            if failure is not None:
                broken(
                    f"{type(plugin).__name__}.{hook} imports what is not there: {failure}.",
                    rule=f"{hook} works without {', '.join(_ABSENT)}: a laptop has no engine, a container not every client.",
                    cure="state versions and paths as options; import the engine in launch or warmup, or in the step's own script.",
                )

    def test_planning_keeps_no_state(self, plugin: object, deployment: Deployment) -> None:
        """Planning does not change the plugin."""
        before = dict(vars(plugin)) if hasattr(plugin, "__dict__") else {}
        plan_all(plugin, deployment)
        after = dict(vars(plugin)) if hasattr(plugin, "__dict__") else {}
        changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        if changed:
            broken(
                f"Planning changed {', '.join(changed)} of {type(plugin).__name__}.",
                rule="a plugin holds options, never run-time state: it does not cross a snapshot, only the engine does.",
                cure="compute the value where it is used; no functools.cached_property, no object.__setattr__ after __post_init__.",
            )

    def test_plans_are_torpors_values(self, plugin: object, deployment: Deployment) -> None:
        """`prepare_image` returns an ImagePatch, `compile_kernels` a BuildPlan, or None."""
        for hook, value in plan_all(plugin, deployment).items():
            wanted = _VALUES[hook]
            if value is not None and not isinstance(value, wanted):
                broken(
                    f"{type(plugin).__name__}.{hook} returned {type(value).__name__}: {value!r}.",
                    rule=f"{hook} returns a torpor.{wanted.__name__} or None; core merges these and every platform renders them.",
                    cure=f"return {wanted.__name__}(...) with names and strings, no platform's objects.",
                )

    def test_plans_survive_pickling(self, plugin: object, deployment: Deployment) -> None:
        """Plans hold plain values only."""
        for hook, value in plan_all(plugin, deployment).items():
            try:
                copy: object = pickle.loads(pickle.dumps(value))  # noqa: S301 - our own bytes
            except Exception as error:
                copy = error
            if copy != value:
                broken(
                    f"What {type(plugin).__name__}.{hook} returned does not survive pickling: {copy!r}.",
                    rule="plans hold strings, numbers and tuples, so that they can be printed, compared and sent.",
                    cure="put names in place of objects, functions and open files.",
                )

    def test_plans_hold_no_secret(self, plugin: object, deployment: Deployment) -> None:
        """A secret is named in a plan, never written out."""
        known = {
            value: name for name, value in os.environ.items() if looks_secret(name) and len(value) >= _SHORTEST_SECRET
        }
        for hook, value in plan_all(plugin, deployment).items():
            for where, text in strings_in(value):
                variable = re.search(r"\['(\w+)'\]$", where)
                named = bool(text and variable and "env[" in where and looks_secret(variable.group(1)))
                leaked = next((name for secret, name in known.items() if secret in text), None)
                if named or leaked or secret_value(text):
                    whose = f" (it is the value of {leaked})" if leaked else ""
                    broken(
                        f"{type(plugin).__name__}.{hook} writes a secret out at {where}{whose}.",
                        rule="plans never hold a secret's value: they are printed, cached in images and kept in snapshots.",
                        cure="drop it and name the platform's secret: BuildStep(secrets=('my-secret',)).",
                    )

    def test_engine_args_begin_with_a_flag(self, plugin: object, deployment: Deployment) -> None:
        """Arguments for the engine are flags, so that core knows which plugin set which."""
        patch = plan(plugin, "prepare_image", deployment)
        if not isinstance(patch, ImagePatch):
            return
        try:
            split_flags(patch.engine_args)
        except TorporError as error:
            broken(
                f"{type(plugin).__name__}.prepare_image gives {error}",
                rule="engine_args begin with a `--flag`; core groups them by flag to find two plugins that want one.",
                cure='write ("--flag", "value", ...), without positional arguments and short options.',
            )

    def test_volumes_are_mounted_at_absolute_paths(self, plugin: object, deployment: Deployment) -> None:
        """A volume has an absolute path in the container, and a name."""
        for where, path, name in _mounts(plan_all(plugin, deployment)):
            if not path.startswith("/") or path.endswith("/") or ".." in path.split("/") or not name:
                broken(
                    f"{type(plugin).__name__} mounts the volume {name!r} at {path!r} ({where}).",
                    rule="volumes map an absolute path, without a final '/' and without '..', to a volume's name.",
                    cure='write {"/vol/my-cache": "my-cache"}; the path comes first.',
                )

    def test_scripts_are_modules_on_this_machine(self, plugin: object, deployment: Deployment) -> None:
        """A step's script is a module whose file can be copied into the image."""
        value = plan(plugin, "compile_kernels", deployment)
        if not isinstance(value, BuildPlan):
            return
        entries: tuple[BuildStep | Preflight, ...] = (*value.steps, *value.preflight)
        for entry in entries:
            if entry.script is None:
                continue
            try:
                script_file(entry.script)
            except TorporError as error:
                broken(
                    f"{type(plugin).__name__}'s step {entry.name!r}: {error}",
                    rule="`script` is the dotted name of an installed module; its file is copied into the image.",
                    cure="name the module as you would import it, and ship it in the plugin's package.",
                )


def _mounts(plans: dict[str, object]) -> Iterable[tuple[str, str, str]]:
    patch, value = plans["prepare_image"], plans["compile_kernels"]
    if isinstance(patch, ImagePatch):
        yield from (("ImagePatch.volumes", path, name) for path, name in patch.volumes.items())
    if isinstance(value, BuildPlan):
        for step in value.steps:
            yield from ((f"volumes of the step {step.name!r}", path, name) for path, name in step.volumes.items())
