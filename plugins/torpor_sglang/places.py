"""What happens to released memory: variables that the plugin sets for the engine's process.

This is apart from `torpor_sglang.kept_memory`, which only the engine's process imports; a restore imports the plugin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["FOLDER_VARIABLE", "FREES_VARIABLE", "PLACES_VARIABLE", "SUMS_VARIABLE", "Place", "places_text"]

Place = Literal["file", "memory"]

SUMS_VARIABLE = "TORPOR_WEIGHT_SUMS"
"""Set by the plugin if the weights have to come back from a sleep as they were, and nothing else compares them."""

FREES_VARIABLE = "TORPOR_SLEEP_FREES"
"""Set by the plugin if a sleep has to free memory of the GPU."""

PLACES_VARIABLE = "TORPOR_KEEP"
"""Set by the plugin: the place of each tag, e.g. `weights=file,cuda_graph=memory`. If unset, only SGLang's own backup is used."""

FOLDER_VARIABLE = "TORPOR_KEEP_FOLDER"
"""Set by the plugin: the folder for the files of kept weights."""


def places_text(places: Mapping[str, Place]) -> str:
    """Return the variable's value, with the place of each tag."""
    return ",".join(f"{tag}={place}" for tag, place in places.items())
