"""Options as an engine's command line: one record per flag, with its name in every supported version.

Flags are written out in full: argparse takes an unambiguous beginning too, and which ones are unambiguous changes from
version to version. Every record is tried on the real parsers of all supported versions by the plugins' tests.
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


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One option and the flag that carries it.

    Args:
        option: the option's name on our side.
        instead: what a user writes to change it, a sentence.
        flag: the flag in all supported versions but those of `renamed`.
        reason: why we set it.
        source: where the engine defines it, per version.
        fixed: the flag's value where the option is only on or off, e.g. `dummy`.
        renamed: version and flag where it has another name.
        aliases: other spellings that the engine takes for it, in any version.
        needless: versions that do without being told what the flag asks for, and have no such flag.
        shared: another plugin may give the flag where the option is unset.
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
        """Return every name that it has in any version."""
        return (self.flag, *(name for _, name in self.renamed), *self.aliases)


@dataclass(frozen=True, kw_only=True)
class FlagTable:
    """All flags that an engine's plugin sets.

    Args:
        versions: the engine's versions, for which the table holds.
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
