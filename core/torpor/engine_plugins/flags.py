"""Options as an engine's command line: one record per flag, with its name in every supported version.

Flags are written in full: argparse also takes unambiguous abbreviations, and which ones are unambiguous changes between
versions. The plugins' tests try every record on the real parsers of all supported versions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torpor.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torpor.launcher.versions import EngineVersions

__all__ = ["Flag", "FlagTable", "OptionValue"]

OptionValue = str | int | float | bool | tuple[str, ...] | None
"""A value of an option, as `FlagTable` makes a command line of it."""


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One option and its flag.

    Args:
        option: the plugin's name of the option.
        instead: how a user changes it, a sentence.
        flag: the flag in all supported versions except those in `renamed`.
        reason: why the plugin sets it.
        source: where the engine defines it, per version.
        fixed: the flag's value if the option is only on or off, e.g. `dummy`.
        renamed: pairs of version and flag, for versions with another name.
        aliases: other spellings that the engine accepts, in any version.
        needless: versions without the flag, which already behave as it asks.
        shared: another plugin may give the flag if the option is unset.
    """

    option: str
    instead: str
    flag: str
    reason: str
    source: str
    fixed: str = ""
    renamed: tuple[tuple[str, str], ...] = ()
    aliases: tuple[str, ...] = ()
    needless: tuple[str, ...] = ()
    shared: bool = False

    def name(self, version: str) -> str:
        """Return the flag's name in a version."""
        return dict(self.renamed).get(version, self.flag)

    def spellings(self) -> tuple[str, ...]:
        """Return every name of the flag in any version."""
        return (self.flag, *(name for _, name in self.renamed), *self.aliases)


@dataclass(frozen=True, kw_only=True)
class FlagTable:
    """All flags that an engine's plugin sets.

    Args:
        versions: the engine's versions that the table covers.
        flags: the records, in the order of the command line.
    """

    versions: EngineVersions
    flags: tuple[Flag, ...]

    @property
    def engine(self) -> str:
        """The engine's name, for messages."""
        return self.versions.engine

    def __iter__(self) -> Iterator[Flag]:
        return iter(self.flags)

    def find(self, option: str) -> Flag:
        """Return the record of an option.

        Raises:
            ConfigurationError: there is no such option.
        """
        for flag in self.flags:
            if flag.option == option:
                return flag
        raise ConfigurationError(
            f"{self.engine} option {option!r} is unknown; known: {', '.join(flag.option for flag in self.flags)}."
        )

    def argv(self, version: str, options: Mapping[str, OptionValue]) -> tuple[str, ...]:
        """Return the engine's flags for a set of options.

        Args:
            version: the engine's version that will read them.
            options: values by option name; None and False leave the flag out, True writes it without a value, a tuple writes
                it with several.

        Returns:
            Flags and values in the order of the table, whatever the order of the options.

        Raises:
            ConfigurationError: an unsupported version, an unknown option, or two options that want one flag.
        """
        self.versions.check(version)
        for option in options:
            self.find(option)
        argv: list[str] = []
        for flag in self.flags:
            value = options.get(flag.option)
            if value is None or value is False or version in flag.needless:
                continue
            name = flag.name(version)
            if name in argv:
                raise ConfigurationError(
                    f"{self.engine} option {flag.option} wants {name}, which another option has set; give one."
                )
            argv.append(name)
            if isinstance(value, tuple):
                argv += value
            elif flag.fixed or value is not True:
                argv.append(flag.fixed or str(value))
        return tuple(argv)
