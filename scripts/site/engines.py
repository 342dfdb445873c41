"""Tables about plugins, read from the plugins that this distribution installs.

Every plugin is found by its entry point in the group `torpor`. An engine plugin (one that launches) is in the table of
capabilities with what its class declares. It has a table of flags if its package has a module `flags` with `FLAGS`, records as
in `torpor_sglang.flags`. A file of results says what was tested with which engine.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from dataclasses import MISSING, dataclass, fields, is_dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol, TypeGuard, cast, get_type_hints

from scripts.site.docstrings import parse, prose

from torpor.discovery import GROUP, installed_plugins
from torpor.hookspecs import HOOK_NAMES, EnginePlugin, Plugin

__all__ = [
    "RESULTS",
    "Installed",
    "capability_table",
    "declared_capabilities",
    "engine_plugins",
    "flag_tables",
    "flags_of",
    "option_tables",
    "plugins",
]

DISTRIBUTION = "torpor"
RESULTS = Path(__file__).parents[2] / "docs" / "engine-results.json"
"""Results of engine tests, `{"ROW": {"ENGINE": "TEXT"}}`: one table row each. The tests write it."""


class FlagRecord(Protocol):
    """The fields that every record in `FLAGS` has."""

    flag: str
    option: str
    instead: str
    reason: str
    source: str


@dataclass(frozen=True)
class Installed:
    """A plugin of this distribution.

    Attributes:
        name: entry name.
        package: the package that holds it.
        cls: its class.
    """

    name: str
    package: str
    cls: type[Plugin]


def plugins() -> tuple[Installed, ...]:
    """Every plugin of this distribution, in the order of their names.

    Raises:
        RuntimeError: one of them could not be loaded; the site would be silent about it.
    """
    if failed := [found for found in installed_plugins() if found.status.startswith("failed")]:
        told = "; ".join(f"{found.name}: {found.status}" for found in failed)
        raise RuntimeError(f"The site cannot be made, for it would miss plugins that do not load: {told}.")
    entries = [entry for entry in entry_points(group=GROUP) if entry.dist and entry.dist.name == DISTRIBUTION]
    unique = {entry.name: entry for entry in entries}  # an editable install may be found twice
    return tuple(
        Installed(name, unique[name].module.partition(".")[0], cast("type[Plugin]", unique[name].load()))
        for name in sorted(unique)
    )


def engine_plugins() -> tuple[Installed, ...]:
    """The plugins that launch an engine."""
    launching = {found.name for found in installed_plugins() if found.launches}
    return tuple(plugin for plugin in plugins() if plugin.name in launching)


def declared_capabilities() -> dict[str, str]:
    """What an engine plugin declares, each with its meaning: the class variables in the docstring of `EnginePlugin`."""
    told = parse(EnginePlugin).entries("Attributes")
    return {name: told[name] for name in get_type_hints(EnginePlugin) if name in told}


def capability_table(results: Path = RESULTS) -> str:
    """A table of engines by capability: declared ones, hooks, options for the sleep, then test results."""
    engines = engine_plugins()
    rows = [
        [f"`{name}`<br>{_cell(meaning)}", *(_value(getattr(engine.cls, name)) for engine in engines)]
        for name, meaning in declared_capabilities().items()
    ]
    rows.append(["hooks", *(_value(_hooks(engine.cls)) for engine in engines)])
    rows.append(["plugin", *(f"`{engine.package}.{engine.cls.__name__}`" for engine in engines)])
    for row, by_engine in _results(results).items():
        rows.append([_cell(row), *(_cell(by_engine.get(engine.name, "not tested")) for engine in engines)])
    return _table(["", *(engine.name for engine in engines)], rows)


def flag_tables() -> str:
    """A section for each engine plugin that has a table of flags."""
    sections = []
    for engine in engine_plugins():
        if records := flags_of(engine.package):
            rows = [
                [
                    _spelling(record),
                    f"{_cell(record.reason)}<br><small>{_cell(record.source)}</small>",
                    _cell(record.instead),
                ]
                for record in records
            ]
            table = _table(["flag", "why it is set, and where the engine defines it", "to change it"], rows)
            sections.append(f"### Flags of {engine.name}\n\n{table}")
        else:
            sections.append(f"### Flags of {engine.name}\n\nIts plugin keeps no table of flags.")
    return "\n\n".join(sections)


def flags_of(package: str) -> tuple[FlagRecord, ...]:
    """The records of a package's `flags.FLAGS`; none if it has no such module.

    Raises:
        TypeError: a record lacks what the table shows.
    """
    if importlib.util.find_spec(f"{package}.flags") is None:
        return ()
    records: tuple[object, ...] = tuple(importlib.import_module(f"{package}.flags").FLAGS)
    for record in records:
        if not _is_flag(record):
            wanted = ", ".join(FlagRecord.__annotations__)
            raise TypeError(f"{package}.flags.FLAGS holds {record!r}; a record needs the strings {wanted}.")
    return cast("tuple[FlagRecord, ...]", records)


def option_tables() -> str:
    """A section for each plugin: its fields, their defaults and what they mean."""
    return "\n\n".join(_options(plugin) for plugin in plugins())


def _options(plugin: Installed) -> str:
    cls, told = plugin.cls, parse(plugin.cls)
    if not is_dataclass(cls):
        raise TypeError(f"{cls.__name__} is no dataclass, so its options are not known.")
    meanings: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):  # an engine plugin tells of its own options, a base of those that all have
        meanings |= parse(base).entries("Attributes") | parse(base).entries("Args")
    rows: list[list[str]] = []
    for field in fields(cls):
        if field.name not in meanings:
            raise ValueError(f"{cls.__name__}.{field.name} is not in the docstring of its class, nor of a base.")
        default = "(required)" if field.default is MISSING else f"`{field.default!r}`"
        rows.append([f"`{field.name}`", _cell(default), _cell(meanings[field.name])])
    head = f"### {cls.__name__}\n\n`from {plugin.package} import {cls.__name__}`, entry point `{plugin.name}`."
    table = _table(["option", "default", "what it is"], rows) if rows else "It has no options."
    return f"{head} {told.summary} {prose(told.text)}".rstrip() + f"\n\n{table}"


def _is_flag(record: object) -> TypeGuard[FlagRecord]:
    return all(isinstance(getattr(record, name, None), str) for name in FlagRecord.__annotations__)


def _spelling(record: FlagRecord) -> str:
    """The flag, the value if it is always the same, and its names in other versions."""
    fixed = str(getattr(record, "fixed", ""))
    lines = [f"`{record.flag}{' ' + fixed if fixed else ''}`"]
    renamed: tuple[tuple[str, str], ...] = getattr(record, "renamed", ())
    needless: tuple[str, ...] = getattr(record, "needless", ())
    lines += [f"`{name}` in {version}" for version, name in renamed]
    lines += [f"none in {version}" for version in needless]
    return "<br>".join(lines)


def _hooks(cls: type[Plugin]) -> tuple[str, ...]:
    return tuple(name for name in HOOK_NAMES if getattr(cls, name) is not getattr(Plugin, name))


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return "<br>".join(f"`{item}`" for item in value) or "none"
    return f"`{value}`"


def _results(file: Path) -> dict[str, dict[str, str]]:
    """Rows of test results by their subject; empty if the file does not exist."""
    if not file.exists():
        return {}
    return cast("dict[str, dict[str, str]]", json.loads(file.read_text(encoding="utf-8")))


def _cell(text: str) -> str:
    return prose(text).replace("|", "\\|")


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
