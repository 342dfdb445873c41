"""The modules beside an app file: each folder has its own, so two apps in different folders can each have a `common.py`.

Python keeps one module of each name in `sys.modules`. A folder's modules are there while the folder is active; when another one
becomes active, they are put aside. An import statement in any of a folder's modules makes the folder active first, also one in a
function that runs much later. `importlib.import_module` in such a function does not.
"""

from __future__ import annotations

import builtins
import contextlib
import sys
import threading
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import module_from_spec
from pathlib import Path
from typing import TYPE_CHECKING

from torpor._override import override

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import CodeType, ModuleType

__all__ = ["AppFolder", "folder_of"]

WAIT_S = 60.0
"""Seconds that an import waits for imports in another folder; they can take that long, but not for ever."""

_changed = threading.Condition()
_folders: dict[str, AppFolder] = {}
_active: AppFolder | None = None
_users = 0  # threads that import in the active folder


class _Held(threading.local):
    """The folder in which this thread imports."""

    folder: AppFolder | None = None


_held = _Held()


def folder_of(file: Path) -> AppFolder:
    """The folder of an app file; the same value each time."""
    path = str(file.parent.absolute())
    with _changed:
        return _folders.setdefault(path, AppFolder(path))


class AppFolder:
    """The modules that apps in one folder import from beside them.

    Args:
        path: of the folder, absolute.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._names: set[str] = set()  # of modules at the top level
        self._apps: set[str] = set()
        self._aside: dict[str, ModuleType] = {}
        self._shadowed: dict[str, ModuleType] = {}  # libraries with the name of an app file
        self.builtins = {**vars(builtins), "__import__": self._import}

    def import_file(self, file: Path) -> ModuleType:
        """Import an app file, whether or not it was imported before. The modules that it imports are imported once.

        Raises:
            BaseException: what the file raises.
        """
        name = file.stem
        loader = _AppLoader(self, name, str(file.absolute()))
        spec = ModuleSpec(name, loader, origin=loader.path)
        spec.has_location = True
        module = module_from_spec(spec)
        with self._in_use():
            if name in sys.modules and name not in self._names:
                self._shadowed[name] = sys.modules[name]
            self._names.add(name)
            self._apps.add(name)
            sys.modules[name] = module
            loader.exec_module(module)
        return module

    def files(self) -> list[Path]:
        """The source of every module that apps imported from the folder; their own files are not among them."""
        with _changed:
            here = dict(sys.modules if _active is self else self._aside)
        found = [
            getattr(here[name], "__file__", None) for name in here if self._is_mine(name) and name not in self._apps
        ]
        return sorted(Path(file) for file in found if file)

    def forget(self) -> None:
        """Import every module again when it is needed next."""
        with self._in_use():
            for name in [name for name in sys.modules if self._is_mine(name)]:
                del sys.modules[name]
            sys.modules.update(self._shadowed)
            self._shadowed.clear()
            self._names.clear()

    def find(self, name: str, path: Sequence[str] | None) -> ModuleSpec | None:
        """The module of that name, if it lies in the folder.

        Args:
            name: with the names of its packages.
            path: of its package; None at the top level.
        """
        if path is not None and not self._is_mine(name):
            return None
        spec = PathFinder.find_spec(name, [self._path] if path is None else path)
        if spec is None or (path is None and spec.loader is None and not _is_namespace(name)):
            return None
        if type(spec.loader) is SourceFileLoader:
            spec.loader = _FolderLoader(self, spec.loader.name, spec.loader.path)
        self._names.add(name.partition(".")[0])
        return spec

    def _import(
        self,
        name: str,
        globals: Mapping[str, object] | None = None,  # noqa: A002 - as `builtins.__import__` calls it
        locals: Mapping[str, object] | None = None,  # noqa: A002
        fromlist: Sequence[str] = (),
        level: int = 0,
    ) -> ModuleType:
        """What an import statement in one of the folder's modules calls."""
        with self._in_use():
            return builtins.__import__(name, globals, locals, fromlist, level)

    @contextlib.contextmanager
    def _in_use(self) -> Iterator[None]:
        """Keep the folder active. Threads that import in another folder wait, unless that import led here.

        Raises:
            ImportError: the wait was too long.
        """
        global _users  # noqa: PLW0603 - `sys.modules` is one, too
        outer = _held.folder
        with _changed:
            if outer is None:
                self._wait()
            self._activate()
            _users += 1
        _held.folder = self
        try:
            yield
        finally:
            _held.folder = outer
            with _changed:
                _users -= 1
                if outer is not None:
                    outer._activate()  # noqa: SLF001 - of this class
                _changed.notify_all()

    def _wait(self) -> None:
        """Wait until nobody imports in another folder.

        Raises:
            ImportError: somebody still does after `WAIT_S`.
        """
        if not _changed.wait_for(lambda: _active is self or not _users, WAIT_S) and _active is not None:
            raise ImportError(
                f"An import in {self._path} waited {WAIT_S:g} s for one in {_active._path}, which has not ended. "  # noqa: SLF001
                "Look at what the modules there wait for while they are imported."
            )

    def _activate(self) -> None:
        global _active  # noqa: PLW0603
        if _active is self:
            return
        if _active is not None:
            _active._put_aside()  # noqa: SLF001
        self._shadowed.update({name: sys.modules[name] for name in self._aside.keys() & sys.modules.keys()})
        sys.modules.update(self._aside)
        self._aside.clear()
        sys.path.insert(0, self._path)  # as Python does for a script
        if _Finder not in sys.meta_path:
            place = sys.meta_path.index(PathFinder) if PathFinder in sys.meta_path else len(sys.meta_path)
            sys.meta_path.insert(place, _Finder)
        _active = self

    def _put_aside(self) -> None:
        for name in [name for name in sys.modules if self._is_mine(name)]:
            self._aside[name] = sys.modules.pop(name)
        sys.modules.update(self._shadowed)
        self._shadowed.clear()
        if self._path in sys.path:
            sys.path.remove(self._path)

    def _is_mine(self, name: str) -> bool:
        return name.partition(".")[0] in self._names


class _Finder:
    """Finds modules in the active folder, before the other folders of `sys.path`."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:  # noqa: ARG004 - of `sys.meta_path`
        """See `importlib.abc.MetaPathFinder`."""
        folder = _active
        return folder.find(name, path) if folder is not None else None


class _FolderLoader(SourceFileLoader):
    """Loads a module whose import statements are its folder's."""

    def __init__(self, folder: AppFolder, name: str, path: str) -> None:
        super().__init__(name, path)
        self._folder = folder

    @override
    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__builtins__"] = self._folder.builtins
        super().exec_module(module)


class _AppLoader(_FolderLoader):
    """Compiles the app file at each import.

    Python reuses cached byte code while a file's size and modification time (in whole seconds) match. An edit within the same
    second can keep both.
    """

    @override
    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def _is_namespace(name: str) -> bool:
    """Whether nothing else has that name: a folder without `__init__.py` counts last."""
    found = PathFinder.find_spec(name)
    return found is not None and found.loader is None
