"""Writes a folder completely or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from typing import TYPE_CHECKING

from torpor.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["write_project"]

_STAGE = ".torpor-new-"


def write_project(folder: Path, files: Iterable[tuple[str, str]]) -> None:
    """Write files into a new or empty folder; remove them after an error or an interrupt.

    The files are written into a temporary folder (`.torpor-new-...`) and renamed at the end. A killed process leaves only that
    folder; a new folder never holds a partial project.

    Args:
        folder: the project's folder; missing parents are made.
        files: pairs of path below the folder and text.

    Raises:
        ConfigurationError: the folder is not empty or cannot be written.
    """
    folder = folder.absolute()
    try:
        _check_free(folder)
        with contextlib.ExitStack() as undo:
            _write(folder, files, undo)
            undo.pop_all()
    except OSError as error:
        raise ConfigurationError(
            f"The project cannot be written to {folder}: {error.strerror} ({error.filename2 or error.filename}). Nothing was left "
            "there. Free some space or get write permission, or choose another folder with --into."
        ) from error


def _check_free(folder: Path, *, but: Path | None = None) -> None:
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise ConfigurationError(f"{folder} exists and is not a folder; choose another one with --into.")
    if found := sorted(entry.name for entry in folder.iterdir() if entry != but):
        raise ConfigurationError(
            f"{folder} is not empty ({', '.join(found[:3])}{', ...' if found[3:] else ''}), and its files are not overwritten: "
            "choose another name, or a new or empty folder for the project with --into."
        )


def _write(folder: Path, files: Iterable[tuple[str, str]], undo: contextlib.ExitStack) -> None:
    there = folder.is_dir()  # keep an existing folder: it may be a mount or a shell's working directory
    place = folder if there else folder.parent
    for missing in reversed([parent for parent in (place, *place.parents) if not parent.exists()]):
        undo.callback(_remove_empty, missing)
        missing.mkdir()
    stage = place / f"{_STAGE}{secrets.token_hex(4)}"
    undo.callback(shutil.rmtree, stage, ignore_errors=True)
    stage.mkdir()
    for path, text in files:
        file = stage / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    if not there:
        stage.rename(folder)
        return
    _check_free(folder, but=stage)
    for entry in sorted(stage.iterdir()):
        undo.callback(_remove, folder / entry.name)
        entry.rename(folder / entry.name)
    stage.rmdir()


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # it does not exist, or holds the project
        folder.rmdir()


def _remove(entry: Path) -> None:
    if entry.is_dir():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        entry.unlink(missing_ok=True)
