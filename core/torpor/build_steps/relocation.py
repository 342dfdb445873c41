"""Move a recipe's container paths to folders of this machine.

Plugins name paths as they are in a container: mount points of volumes, and the image's own disk. On this machine a volume is
the folder `volumes/<volume name>` under the cache root, shared between deployments as on Modal. The image's own disk is
`images/<deployment>`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from torpor.recipe import IMAGE_ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torpor.recipe import BuildStep, ImagePatch, Recipe

__all__ = ["relocate"]


def relocate(recipe: Recipe, root: Path, name: str) -> Recipe:
    """Replace the container's paths of a recipe by folders under `root`.

    A path is replaced where it begins a value or follows `=`, `:` or `,`, and where it ends the value or is followed by `/`,
    `:` or `,`. So a longer path that merely contains it stays as it is.

    Args:
        recipe: with the container's paths.
        root: the cache root.
        name: the deployment's.
    """
    moved = _Moved(_folders(recipe, root, name))
    return replace(
        recipe,
        image=moved.image(recipe),
        steps=tuple(map(moved.step, recipe.steps)),
        preflight=tuple(replace(check, argv=moved.texts(check.argv)) for check in recipe.preflight),
    )


def _folders(recipe: Recipe, root: Path, name: str) -> dict[str, str]:
    """The folder for each path of the container."""
    mounts = {**recipe.volumes}
    for step in recipe.steps:
        mounts.update(step.volumes)
    folders = {path: str(root / "volumes" / volume) for path, volume in mounts.items()}
    return {**folders, IMAGE_ROOT: str(root / "images" / name)}


class _Moved:
    """Values of a recipe with every container path replaced.

    Args:
        folders: the new folder by container path.
    """

    def __init__(self, folders: Mapping[str, str]) -> None:
        self._folders = folders
        longest_first = map(re.escape, sorted(folders, key=len, reverse=True))
        self._path = re.compile(rf"(^|(?<=[=:,]))({'|'.join(longest_first)})(?=$|[/:,])")

    def text(self, text: str) -> str:
        return self._path.sub(lambda match: self._folders[match.group(2)], text)

    def texts(self, texts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(self.text, texts))

    def env(self, env: Mapping[str, str]) -> dict[str, str]:
        return {variable: self.text(value) for variable, value in env.items()}

    def volumes(self, volumes: Mapping[str, str]) -> dict[str, str]:
        return {self.text(path): volume for path, volume in volumes.items()}

    def step(self, step: BuildStep) -> BuildStep:
        cache = step.cache and replace(
            step.cache, volume_dir=self.text(step.cache.volume_dir), image_dir=self.text(step.cache.image_dir)
        )
        return replace(
            step,
            argv=self.texts(step.argv),
            env=self.env(step.env),
            volumes=self.volumes(step.volumes),
            outputs=self.texts(step.outputs),
            cache=cache,
        )

    def image(self, recipe: Recipe) -> ImagePatch:
        return replace(
            recipe.image,
            env=self.env(recipe.env),
            volumes=self.volumes(recipe.volumes),
            engine_args=self.texts(recipe.engine_args),
        )
