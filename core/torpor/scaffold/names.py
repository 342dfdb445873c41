"""Derives the names of the project, the module, the entry point and the class from a plugin's name."""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass
from importlib.metadata import entry_points

from torpor.discovery import GROUP
from torpor.errors import ConfigurationError

__all__ = ["Names", "names_of"]

_ALLOWED = re.compile(r"[A-Za-z]([A-Za-z0-9._-]*[A-Za-z0-9])?")  # PEP 508; a class name cannot begin with a digit
_SEPARATORS = re.compile(r"[-_.]+")  # PEP 503
_PREFIX = "torpor-"
_LONGEST = 40
_STAND_IN = "standin"
_TAKEN = frozenset(
    (
        *(
            "APP",
            "BuildPlan",
            "ClassVar",
            "ConfigurationError",
            "Deployment",
            "Engine",
            "EngineContract",
            "EnginePlugin",
            "Finding",
            "GuardRules",
        ),
        *("ImagePatch", "Iterator", "Mapping", "Model", "Path", "Plugin", "PluginContract", "Preflight"),
        *("LifecycleEvent", "QUESTION", "Recipe", "Serving", "SleepPart", "StandIn", "StartFailed"),
    )
)
"""Names that the code of the templates uses."""
_COLLECTED = "Test"  # pytest collects classes that begin with this


@dataclass(frozen=True, kw_only=True)
class Names:
    """One plugin's names.

    Attributes:
        distribution: the project's name in a package index: `torpor-prompt-file`.
        module: the module to import: `torpor_prompt_file`.
        entry: the entry point's name and the plugin's `plugin_name`: `prompt_file`.
        class_name: the plugin's class: `PromptFile`.
    """

    distribution: str
    module: str
    entry: str
    class_name: str


def names_of(name: str) -> Names:
    """Derive the names from a user's input: `prompt-file`, `prompt_file`, `PromptFile` or `torpor-prompt-file`.

    Only the class keeps capitals: `LlamaCpp` gives the class `LlamaCpp` in the module `torpor_llamacpp`.

    Args:
        name: letters, digits, and `-`, `_`, `.` between them; a leading `torpor-` is dropped.

    Raises:
        ConfigurationError: the name is invalid, or is already taken.
    """
    parts = [part for part in _SEPARATORS.split(name) if part]
    if len(parts) > 1 and parts[0].lower() == "torpor":
        parts = parts[1:]
    if not _ALLOWED.fullmatch(name) or not parts[0][0].isalpha() or len("-".join(parts)) > _LONGEST:
        raise ConfigurationError(
            f"{name!r} cannot be a plugin's name: it has 1 to {_LONGEST} letters and digits, a letter first, and '-', '_' or '.' "
            "between them, as in prompt-file (the project is then torpor-prompt-file, the class PromptFile)."
        )
    entry = "_".join(parts).lower()
    names = Names(
        distribution=_PREFIX + "-".join(parts).lower(),
        module=f"torpor_{entry}",
        entry=entry,
        class_name="".join(part[0].upper() + part[1:] for part in parts),
    )
    _check_free(name, names)
    return names


def _check_free(name: str, names: Names) -> None:
    if names.entry in {_STAND_IN, *_bundled()}:
        raise ConfigurationError(
            f"{name!r} cannot be the new name: Torpor already has a plugin {names.entry!r}. Choose another name."
        )
    if names.class_name in _TAKEN or keyword.iskeyword(names.class_name) or names.class_name.startswith(_COLLECTED):
        whose = (
            "pytest would collect" if names.class_name.startswith(_COLLECTED) else "Python or the project's code uses"
        )
        raise ConfigurationError(
            f"{name!r} would make a class {names.class_name}, a name that {whose}. "
            f"Choose another one, e.g. my-{names.distribution.removeprefix(_PREFIX)}."
        )


def _bundled() -> set[str]:
    """Names of the bundled plugins, from the entry points of Torpor's distribution."""
    return {entry.name for entry in entry_points(group=GROUP) if entry.dist and entry.dist.name == "torpor"}
