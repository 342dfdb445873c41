"""Flags that extra engine arguments may not use: the plugin's own, and those that would bypass the guard.

They are checked twice. `check_extra_args` checks the command line before the start. The launcher checks the arguments as the
engine has parsed them, whatever their source, and the environment.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torpor.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from torpor.engine_plugins.flags import FlagTable

__all__ = ["Reservations", "Reserved"]

_OFF = ("", "0", "false", "False", "off", "-1")


@dataclass(frozen=True, kw_only=True)
class Reserved:
    """Flags that are refused for one reason.

    Args:
        flags: every spelling of each flag, in full.
        why: what the flags would do.
        instead: what to use instead.
        harmless: allowed values of the parsed arguments, by attribute; any other value stops the launcher.
    """

    flags: tuple[str, ...]
    why: str
    instead: str
    harmless: tuple[tuple[str, tuple[object, ...]], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Reservations:
    """Flags and variables that only the plugin may set.

    Args:
        table: the plugin's own flags.
        reserved: flags that would bypass the guard or break the lifecycle.
        environment: variables that would do the same, each with its effect.
    """

    table: FlagTable
    reserved: tuple[Reserved, ...]
    environment: tuple[tuple[str, str], ...] = ()

    def flags(self) -> tuple[str, ...]:
        """Return every flag that an extra argument may not use, in full."""
        return tuple(sorted(dict(self._refusals())))

    def check_extra_args(self, version: str, argv: Sequence[str], *, free: Collection[str] = ()) -> None:
        """Refuse extra engine arguments that the plugin sets itself or that would bypass the guard.

        Every spelling that argparse accepts is caught: `--flag value`, `--flag=value`, and an abbreviation such as `--tok`, which
        is refused if it could mean a reserved flag.

        Args:
            version: the engine's version that will read them.
            argv: flags and values as written.
            free: the plugin's own flags that may still be given.

        Raises:
            ConfigurationError: names the argument, the reason and what to use instead.
        """
        engine, refused = self.table.engine, dict(self._refusals())
        if argv and not argv[0].startswith("-"):
            raise ConfigurationError(
                f"Engine argument {argv[0]!r} stands before any flag, and the engine {engine} {version} is given nothing but flags "
                "and their values; write --name first."
            )
        for argument in argv:
            if argument == "--" or re.match(r"-[A-Za-z]", argument):
                raise ConfigurationError(
                    f"Engine argument {argument!r} is no flag of {engine} {version}; write flags as --name."
                )
            name = _plain(argument)
            if not argument.startswith("--") or name in free:
                continue
            if name in refused:
                raise ConfigurationError(f"Engine argument {argument!r} is refused: {refused[name]}")
            if meant := [flag for flag in refused if flag.startswith(name)]:
                raise ConfigurationError(
                    f"Engine argument {argument!r} is refused: {engine} {version} may take it as an abbreviation of "
                    f"{' or '.join(meant)}, which is not for extra arguments. Write the flag that you mean in full."
                )

    def check_parsed_args(self, version: str, parsed: object) -> None:
        """Refuse parsed arguments that would bypass the guard.

        Args:
            version: the engine's version that parsed them.
            parsed: the engine's object of arguments; an attribute that a version lacks is harmless.

        Raises:
            ConfigurationError: names the argument, its value and the reason.
        """
        for entry in self.reserved:
            for attribute, harmless in entry.harmless:
                value = getattr(parsed, attribute, harmless[0])
                if value not in harmless:
                    raise ConfigurationError(
                        f"{self.table.engine} {version} would start with {attribute}={value!r}: {entry.why}. {entry.instead}"
                    )

    def check_environment(self, environ: Mapping[str, str]) -> None:
        """Refuse environment variables that would bypass the guard.

        Raises:
            ConfigurationError: names the variable and the reason.
        """
        for name, why in self.environment:
            if environ.get(name, "") not in _OFF:
                raise ConfigurationError(
                    f"The environment variable {name}={environ[name]} is refused: it {why}. Unset it."
                )

    def _refusals(self) -> Iterator[tuple[str, str]]:
        """Pairs of a reserved flag and the end of the message that refuses it."""
        for flag in self.table:
            for name in flag.spellings():
                yield name, f"the plugin sets it ({flag.reason}). {flag.instead}"
        for entry in self.reserved:
            for name in entry.flags:
                yield name, f"{entry.why}. {entry.instead}"


def _plain(argument: str) -> str:
    """The flag in an argument: vLLM's parser reads `_` as `-`, and `--flag.key value` as part of a JSON value."""
    return argument.partition("=")[0].partition(".")[0].replace("_", "-")
