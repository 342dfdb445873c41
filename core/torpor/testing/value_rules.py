"""Rules about the plugin as a value: its class, its options, its name, its module."""

from __future__ import annotations

import dataclasses
import os
import pickle
import re
import sys
from importlib.metadata import entry_points

from torpor.deployment import plugin_name
from torpor.engine.child_process import run_child
from torpor.testing.failing import broken

__all__ = ["ValueRules"]

_ENTRY_NAME = re.compile(r"[a-z][a-z0-9_]*")
_HEAVY = ("modal", "sglang", "torch", "transformers", "vllm")
_IMPORT_TIMEOUT_S = 60.0


class ValueRules:
    """Rules about the plugin as a value."""

    def test_is_a_frozen_dataclass(self, plugin: object) -> None:
        """A plugin is a frozen dataclass."""
        kind = type(plugin)
        own = "__dataclass_fields__" in vars(kind)
        if not own or not _frozen(kind):
            broken(
                f"{kind.__name__} is {'a dataclass that can be changed' if own else 'no dataclass'}.",
                rule="a plugin is a frozen dataclass, because the same value is read on the laptop and in the container.",
                cure=f"decorate class {kind.__name__} itself with @dataclass(frozen=True, kw_only=True).",
            )

    def test_options_are_keyword_only(self, plugin: object) -> None:
        """Options are keyword-only."""
        loose = [option.name for option in _fields(plugin) if option.init and not option.kw_only]
        if loose:
            broken(
                f"{type(plugin).__name__} takes {', '.join(loose)} by position.",
                rule="options are keyword-only, so that app files stay readable and a new option breaks none.",
                cure="decorate the class with @dataclass(frozen=True, kw_only=True).",
            )

    def test_is_hashable(self, plugin: object) -> None:
        """Options are hashable values: tuples, not lists or dicts."""
        try:
            hash(plugin)
        except TypeError as error:
            loose = [option.name for option in _fields(plugin) if not _hashable(getattr(plugin, option.name))]
            broken(
                f"{type(plugin).__name__} cannot be hashed ({error}){': look at ' + ', '.join(loose) if loose else ''}.",
                rule="a plugin is hashable, because pluggy keeps plugins in sets and frozen values may not change inside.",
                cure="use tuples in place of lists, sets and dicts, and leave __eq__ and __hash__ to the dataclass.",
            )

    def test_equal_options_make_equal_plugins(self, plugin: object) -> None:
        """Two plugins with equal options are equal."""
        if not dataclasses.is_dataclass(plugin) or isinstance(plugin, type):
            return  # test_is_a_frozen_dataclass says so
        twin = dataclasses.replace(plugin)
        if twin != plugin:
            broken(
                f"{type(plugin).__name__} built again from its own options is not equal to itself: {twin!r} != {plugin!r}.",
                rule="equal options make equal plugins: a container builds its own copy from the same app file.",
                cure="leave __eq__ to the dataclass, and make no option's value depend on anything but what was given.",
            )

    def test_survives_pickling(self, plugin: object) -> None:
        """A plugin comes out of a pickle as it went in."""
        rule = "a plugin can be pickled and comes back equal: platforms send values between processes."
        try:
            copy: object = pickle.loads(pickle.dumps(plugin))  # noqa: S301 - our own bytes
        except Exception as error:
            broken(
                f"{type(plugin).__name__} cannot be pickled ({type(error).__name__}: {error}).",
                rule=rule,
                cure="define the class at the top level of a module, and keep locks, clients and functions out of the options.",
            )
        if copy != plugin:
            broken(
                f"{type(plugin).__name__} comes back from a pickle as {copy!r}, which is not equal to {plugin!r}.",
                rule=rule,
                cure="use options that compare by value.",
            )

    def test_has_a_name(self, plugin: object) -> None:
        """A plugin has a `plugin_name`, which errors, records and plans use."""
        name = getattr(plugin, "plugin_name", "")
        if not isinstance(name, str) or not _ENTRY_NAME.fullmatch(name):
            broken(
                f"{type(plugin).__name__}.plugin_name is {name!r}.",
                rule="plugin_name is set on the class: lower-case letters, digits and underscores, a letter first.",
                cure='write `plugin_name: ClassVar[str] = "my_plugin"`, with the name of the entry point.',
            )

    def test_has_the_name_of_its_entry_point(self, plugin: object) -> None:
        """An installed plugin's name is that of its entry point in the group `torpor`."""
        names = _entry_names(type(plugin))
        if names and plugin_name(plugin) not in names:
            broken(
                f"{type(plugin).__name__}.plugin_name is {plugin_name(plugin)!r}, its entry point is {', '.join(names)!r}.",
                rule="plugin_name is the entry point's name: containers have no entry points, users still need one name.",
                cure="make the key under [project.entry-points.torpor] and plugin_name the same, and install again.",
            )

    def test_module_imports_nothing_heavy(self, plugin: object) -> None:
        """A plugin's module loads without the engine's and the platform's libraries."""
        module = type(plugin).__module__
        code = f"import sys, {module}; print(*[name for name in {_HEAVY!r} if name in sys.modules])"
        loaded = run_child(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            timeout_s=_IMPORT_TIMEOUT_S,
        )
        output, errors = (stream.decode(errors="replace").strip() for stream in (loaded.stdout, loaded.stderr))
        rule = "a plugin's module imports in a bare interpreter and brings in no engine and no platform."
        if loaded.returncode != 0:
            last = errors.rpartition("\n")[2]
            broken(
                f"`import {module}` fails in a fresh interpreter: {last}.",
                rule=rule,
                cure="keep the class in an importable module, and import what only the container has inside launch or warmup.",
            )
        if output:
            broken(
                f"`import {module}` also imports {', '.join(output.split())}.",
                rule=rule,
                cure="move that import under `if TYPE_CHECKING:` or into the hook that acts (launch, warmup, ...).",
            )


def _fields(plugin: object) -> tuple[dataclasses.Field[object], ...]:
    return dataclasses.fields(plugin) if dataclasses.is_dataclass(plugin) else ()


def _frozen(kind: type) -> bool:
    return bool(getattr(getattr(kind, "__dataclass_params__", None), "frozen", False))


def _hashable(value: object) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _entry_names(kind: type) -> list[str]:
    """Names of the installed entry points for this class."""
    package = kind.__module__.partition(".")[0]
    ours = [entry for entry in entry_points(group="torpor") if entry.module.partition(".")[0] == package]
    return [entry.name for entry in ours if entry.load() is kind]
