"""What a launcher changes in its engine: named patches, each with its reason and the versions that it was tested with.

A patch changes the running process only, never the engine's files. `TORPOR_PATCHES=-name,-other` switches patches off; the
launcher logs at every start which patches are on. The guard is no patch: it needs the boot document, and a variable of its
own switches it off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torpor.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["PATCHES_VARIABLE", "Patch", "PatchReport", "apply_patches"]

PATCHES_VARIABLE = "TORPOR_PATCHES"
"""Switches patches of the engine off: `-NAME,-OTHER`. The engine's log lists them at its start."""


@dataclass(frozen=True, kw_only=True)
class Patch:
    """One change to the engine's process.

    Args:
        name: its name in logs and in `TORPOR_PATCHES`.
        reason: why the engine needs it, in one sentence.
        versions: the engine's versions that it was tested with.
        applies: tells whether this process needs it.
        apply: makes the change; called at most once in a process.
    """

    name: str
    reason: str
    versions: tuple[str, ...]
    applies: Callable[[], bool]
    apply: Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class PatchReport:
    """Which patches are on in a process, which it does not need, and which were switched off."""

    on: tuple[Patch, ...]
    not_needed: tuple[Patch, ...]
    off: tuple[Patch, ...]

    def describe(self, version: str) -> str:
        """List the patches that are on, not needed and off, in one line; mark those not tested with the version."""
        on = [patch.name if version in patch.versions else f"{patch.name} (not tested with it)" for patch in self.on]
        groups = (
            ("patches", on),
            ("not needed", [patch.name for patch in self.not_needed]),
            ("switched off", [patch.name for patch in self.off]),
        )
        return "; ".join(f"{label}: {', '.join(names) or 'none'}" for label, names in groups)


def apply_patches(environ: Mapping[str, str], patches: Sequence[Patch]) -> PatchReport:
    """Apply every patch that this process needs and that is not switched off.

    Args:
        environ: the environment that may hold `TORPOR_PATCHES`.
        patches: all patches, in the order of their application.

    Raises:
        ConfigurationError: `TORPOR_PATCHES` names a patch that does not exist.
    """
    off = _switched_off(environ.get(PATCHES_VARIABLE, ""), tuple(patch.name for patch in patches))
    chosen = [patch for patch in patches if patch.name not in off]
    on = tuple(patch for patch in chosen if patch.applies())
    for patch in on:
        patch.apply()
    return PatchReport(
        on=on,
        not_needed=tuple(patch for patch in chosen if patch not in on),
        off=tuple(patch for patch in patches if patch.name in off),
    )


def _switched_off(value: str, names: Sequence[str]) -> frozenset[str]:
    words = [word.strip() for word in value.split(",") if word.strip()]
    for word in words:
        if word == "-guard":
            raise ConfigurationError(
                f"{PATCHES_VARIABLE}={value}: the guard is not switched off here. For debugging, start the launcher "
                "without a boot document and with TORPOR_UNGUARDED=1."
            )
        if not word.startswith("-") or word[1:] not in names:
            raise ConfigurationError(
                f"{PATCHES_VARIABLE}={value}: {word!r} is not '-' and the name of a patch; patches are {', '.join(names)}."
            )
    return frozenset(word[1:] for word in words)
