"""A folder with only the packages that a Modal container has when it imports the app."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import modal

from torpor.platforms.modal.container_image import CONTAINER_REQUIREMENTS

__all__ = ["link_container_packages"]

_BUILDER_VERSION = "2025.06"


def link_container_packages(folder: Path) -> None:
    """Link the installed files of Modal's own container requirements, and of Torpor's, into `folder`.

    Modal's wheel lists its requirements per image builder version; they include the client and `synchronicity`. Torpor's are
    the packages that the image build installs, with their dependencies. The folder has no package metadata, because the
    container must not need it.
    """
    listed = (Path(str(modal.__file__)).parent / "builder" / f"{_BUILDER_VERSION}.txt").read_text()
    names = {_name(line) for line in listed.splitlines() if line.strip()} - {"async-timeout"}
    names |= {"modal", "synchronicity"}
    for requirement in CONTAINER_REQUIREMENTS:
        names |= _with_needs(_name(requirement))
    for name in names:
        _link(name, folder)


def _name(requirement: str) -> str:
    return re.split(r"[\s<>=!~;\[]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def _with_needs(name: str) -> set[str]:
    needs = {name}
    for requirement in importlib.metadata.requires(name) or []:
        if "extra ==" not in requirement and not re.search(r"python_version\s*<", requirement):
            needs |= _with_needs(_name(requirement))
    return needs


def _link(name: str, folder: Path) -> None:
    distribution = importlib.metadata.distribution(name)
    tops = {file.parts[0] for file in distribution.files or [] if file.parts[0] not in ("..", "__pycache__")}
    for top in tops:
        if not top.endswith(".dist-info") and not (folder / top).exists():
            (folder / top).symlink_to(Path(str(distribution.locate_file(top))))
