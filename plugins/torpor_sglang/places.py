"""Which memory is kept where while it is released, as the plugin says it to the engine's process: two variables.

Apart from `torpor_sglang.kept_memory`, which the engine's process alone imports: a restore imports the plugin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["FOLDER_VARIABLE", "PLACES_VARIABLE", "Place", "places_text"]

Place = Literal["file", "memory"]

PLACES_VARIABLE = "TORPOR_KEEP"
"""What is kept where, e.g. `weights=file,cuda_graph=memory`; without it SGLang's own backup is all there is."""

FOLDER_VARIABLE = "TORPOR_KEEP_FOLDER"
"""Where the files go."""


def places_text(places: Mapping[str, Place]) -> str:
    """What is kept where, as the variable has it."""
    return ",".join(f"{tag}={place}" for tag, place in places.items())
