"""Finding the deployment in an app file, and saying clearly why there is none."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
import traceback
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from torpor.deployment import Deployment
from torpor.errors import ConfigurationError, TorporError

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["load_deployment"]

_MISSING_NAME = re.compile(r"cannot import name '(\w+)' from '([\w.]+)' \((?!most likely)")
_UNKNOWN_ARGUMENT = re.compile(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'")


def load_deployment(path: str) -> Deployment:
    """Import an app file and return its deployment.

    Args:
        path: the app file, e.g. `apps/tiny_cpu.py`.

    Raises:
        ConfigurationError: no such file, it does not import, or it holds no deployment or several.
    """
    file = Path(path)
    if not file.is_file() or file.suffix != ".py":
        raise ConfigurationError(_no_app_file(file, path))
    found = {name: value for name, value in vars(_import(file)).items() if isinstance(value, Deployment)}
    if isinstance(chosen := found.get("deployment"), Deployment):
        return chosen
    if len({id(value) for value in found.values()}) == 1:
        return next(iter(found.values()))
    raise ConfigurationError(
        f"{path} holds {'several deployments: ' + ', '.join(sorted(found)) if found else 'no deployment'}. "
        "Assign the one to use to a module-level name: deployment = Deployment(...)."
    )


def _no_app_file(file: Path, path: str) -> str:
    """What is there in its place, and which path was probably meant."""
    if file.is_dir():
        inside = file / "app.py"
        cure = (
            f"Did you mean {inside}?" if inside.is_file() else "Give the path of a Python file, e.g. apps/tiny_cpu.py."
        )
        return f"There is no app file {path!r}: that is a folder. {cure}"
    if file.exists():
        return f"There is no app file {path!r}: it is there, but it is not called *.py. Give the path of a Python file."
    return f"There is no app file {path!r}; give the path of a Python file, e.g. apps/tiny_cpu.py."


def _import(file: Path) -> ModuleType:
    # Python itself puts a script's folder first, and so does `modal run`: apps may have neighbours.
    sys.path.insert(0, str(file.parent.absolute()))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise ConfigurationError(f"{file} cannot be imported as a Python module.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    try:
        spec.loader.exec_module(module)
    except TorporError as error:
        error.add_note(f"in {_where(file, error)}")
        raise
    except Exception as error:
        raise ConfigurationError(f"{_where(file, error)}: {_explain(error)}") from error
    return module


def _where(file: Path, error: BaseException) -> str:
    """The line of the app file that an exception passed through."""
    seen_as = file.absolute()  # Python loads a file by its whole path, whatever path it was given
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == seen_as]
    if isinstance(error, SyntaxError) and Path(error.filename or "").absolute() == seen_as:
        lines = [error.lineno]
    return f"{file}:{lines[-1]}" if lines else str(file)


def _explain(error: Exception) -> str:
    """An import error in a user's words; an unknown option lists what there is."""
    if isinstance(error, TypeError) and (unknown := _UNKNOWN_ARGUMENT.search(str(error))):
        owner, argument = unknown.groups()
        allowed = _options_of(owner, error)
        close = get_close_matches(argument, allowed, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        listed = f" It has: {', '.join(allowed)}." if allowed else ""
        return f"{owner} has no option {argument!r}.{hint}{listed}"
    if isinstance(error, ModuleNotFoundError):
        return f"the module {error.name!r} is not installed in {sys.executable}; install it, or mend the import."
    if isinstance(error, ImportError) and (missing := _MISSING_NAME.search(str(error))):
        close = get_close_matches(missing[1], dir(sys.modules.get(missing[2])), n=1)
        hint = f"Did you mean {close[0]!r}?" if close else "Mend the import."
        return f"{missing[2]} has no {missing[1]!r}. {hint}"
    return f"{type(error).__name__}: {error}"


def _options_of(owner: str, error: Exception) -> list[str]:
    """Field names of the dataclass that refused an argument, found where the call stands."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    scope = {**trace.tb_frame.f_globals, **trace.tb_frame.f_locals} if trace else {}
    for value in list(scope.values()):
        if inspect.isclass(value) and value.__qualname__ == owner and is_dataclass(value):
            return [item.name for item in fields(value) if item.init]
    return []
