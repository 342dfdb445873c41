"""App files of a server that runs for long: which of them, and of the modules beside them, have changed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from torpor.app_file import load_app
from torpor.app_modules import folder_of

if TYPE_CHECKING:
    from torpor.app_file import App

__all__ = ["AppFiles", "file_stamp"]

Stamps: TypeAlias = "dict[Path, tuple[int, int, int]]"


class AppFiles:
    """Imports app files, each again only once it or a module beside it has changed. So an untouched deployment stays the same."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Stamps, App]] = {}

    def load(self, file: str) -> App:
        """The app in a file.

        Raises:
            ConfigurationError: it cannot be imported.
        """
        known, folder = self._known.get(file), folder_of(Path(file))
        if known is not None and _as_stamped(known[0]):
            return known[1]
        if known is not None and not _as_stamped({one: known[0][one] for one in known[0] if one != Path(file)}):
            folder.forget()
        stamp = file_stamp(Path(file))  # of what is read: an edit meanwhile is seen next time
        app = load_app(file)
        self._known[file] = {Path(file): stamp, **{one: file_stamp(one) for one in folder.files()}}, app
        return app

    def files(self) -> list[Path]:
        """Every file that was read, each once."""
        return sorted({one for stamps, _ in self._known.values() for one in stamps})


def _as_stamped(stamps: Stamps) -> bool:
    """Whether no file has changed since."""
    return all(file_stamp(file) == stamp for file, stamp in stamps.items())


def file_stamp(file: Path) -> tuple[int, int, int]:
    """What changes when the file changes: inode, size, time of change; zeros if there is none."""
    try:
        found = file.stat()
    except OSError:
        return 0, 0, 0
    return found.st_ino, found.st_size, found.st_mtime_ns
