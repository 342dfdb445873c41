"""Where released memory is kept: the two variables with which the plugin tells the engine's process.

This is apart from `torpor_sglang.kept_memory`, which only the engine's process imports; a restore imports the plugin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["FOLDER_VARIABLE", "PLACES_VARIABLE", "Place", "places_text"]

Place = Literal["file", "memory"]

PLACES_VARIABLE = "TORPOR_KEEP"
"""Where each tag is kept, e.g. `weights=file,cuda_graph=memory`; without it only SGLang's own backup is used."""

FOLDER_VARIABLE = "TORPOR_KEEP_FOLDER"
"""The folder for the files."""


def places_text(places: Mapping[str, Place]) -> str:
    """The variable's value: where each tag is kept."""
    return ",".join(f"{tag}={place}" for tag, place in places.items())
