"""Imports an app file and finds its deployment; if there is none, the error says why."""

from __future__ import annotations

import contextlib
import fcntl
import inspect
import os
import re
import signal
import stat
import sys
import threading
import traceback
from dataclasses import dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from torpor.app_modules import folder_of
from torpor.deployment import Deployment
from torpor.errors import ConfigurationError, TorporError
from torpor.lifecycle import Lifecycle
from torpor.plugin_checks import asked_by_the_command

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import ModuleType

__all__ = ["App", "load_app"]

_GIVE = "Give the path of a Python file, e.g. apps/tiny_cpu.py."
_SLOW_S = 10.0
_STDOUT, _STDERR, _FIRST_FREE = 1, 2, 3
_MISSING_NAME = re.compile(r"cannot import name '(\w+)' from '([\w.]+)' \((?!most likely)")
_UNKNOWN_ARGUMENT = re.compile(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'")


@dataclass(frozen=True, kw_only=True)
class App:
    """An imported app file. A command imports it once and hands this value on.

    Attributes:
        file: its path, as it was given.
        deployment: the one in it.
        lifecycle: the deployment's plugins, registered.
    """

    file: Path
    deployment: Deployment
    lifecycle: Lifecycle

    def at(self, host: str, port: int) -> App:
        """The same app with the engine's own server at another address."""
        if (host, port) == (self.deployment.host, self.deployment.port):
            return self
        deployment = replace(self.deployment, host=host, port=port)
        return replace(self, deployment=deployment, lifecycle=self.lifecycle.bound(deployment))


def load_app(path: str) -> App:
    """Import an app file and find its deployment. What the file prints goes to standard error.

    Args:
        path: the app file, e.g. `apps/tiny_cpu.py`.

    Raises:
        ConfigurationError: no such file, it does not import, or it holds no deployment or several.
        PluginError: a plugin cannot be registered.
    """
    file = Path(path)
    if (reason := _unusable(file, path)) is not None:
        raise ConfigurationError(reason)
    deployment = _deployment_in(vars(_import(file)), path)
    return App(file=file, deployment=deployment, lifecycle=Lifecycle(deployment))


def _deployment_in(values: Mapping[str, object], path: str) -> Deployment:
    found = {name: value for name, value in values.items() if isinstance(value, Deployment)}
    if isinstance(chosen := found.get("deployment"), Deployment):
        return chosen
    if len({id(value) for value in found.values()}) == 1:
        return next(iter(found.values()))
    seen = f"several deployments: {', '.join(sorted(found))}" if found else "no deployment"
    if not found and "deployment" in values:
        seen = f"no deployment: `deployment` in it is of type {type(values['deployment']).__name__}"
    raise ConfigurationError(
        f"{path} holds {seen}. Assign the one to use to a module-level name: deployment = Deployment(...)."
    )


def _unusable(file: Path, path: str) -> str | None:
    """Why a path is not an app file, and which path was probably meant; None if it can be imported."""
    try:
        kind = stat.S_IFMT(file.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return f"There is no app file {path!r}; give the path of a Python file, e.g. apps/tiny_cpu.py."
    except (OSError, ValueError) as error:  # a name that is too long, a loop of links, a folder without permission
        return f"The app file {path!r} cannot be read: {getattr(error, 'strerror', None) or error}. {_GIVE}"
    if kind == stat.S_IFDIR:
        inside = file / "app.py"
        seen = f"{path!r} is a folder" if path.strip() else "The name of the app file is empty"
        return f"{seen}. {f'Did you mean {inside}?' if inside.is_file() else _GIVE}"
    if kind != stat.S_IFREG:
        return f"{path!r} is not a regular file. {_GIVE}"
    if file.suffix != ".py":
        return f"{path!r} is not called *.py. {_GIVE}"
    return None


def _import(file: Path) -> ModuleType:
    process = os.getpid()
    try:
        with _prints_to_stderr(), _slow_import_told(file), asked_by_the_command():
            module = folder_of(file).import_file(file)
    except TorporError as error:
        error.add_note(f"in {_where(file, error)}")
        raise
    except Exception as error:
        raise ConfigurationError(f"{_where(file, error)}: {_explain(error)}") from error
    except BaseException as error:
        if _is_ctrl_c(error):
            raise
        said = f"{type(error).__name__}{f'({error})' if str(error) else ''}"
        raise ConfigurationError(
            f"{_where(file, error)}: the app file ended its own import by {said}. An app file has to import to its end: move what "
            'runs or exits below `if __name__ == "__main__":`.'
        ) from error
    finally:
        if os.getpid() != process:  # the file forked: only the parent runs this command
            os._exit(0)
    return module


@contextlib.contextmanager
def _prints_to_stderr() -> Iterator[None]:
    """Send the output of a block and its child processes to standard error: standard output is for a command's result."""
    if sys.stdout is not None:
        sys.stdout.flush()
    try:
        kept = fcntl.fcntl(_STDOUT, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE)
    except OSError:  # there is no standard output
        kept = -1
    try:
        if kept >= 0:
            with contextlib.suppress(OSError):
                os.dup2(_STDERR, _STDOUT)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        if kept >= 0:
            os.dup2(kept, _STDOUT)
            os.close(kept)


@contextlib.contextmanager
def _slow_import_told(file: Path) -> Iterator[None]:
    """Print the current line of an import that takes long: it may wait for something that never comes."""
    importing, seen_as = threading.get_ident(), file.absolute()

    def tell() -> None:
        frame, lines = sys._current_frames().get(importing), list[int]()  # noqa: SLF001 - the documented way
        while frame is not None:
            if Path(frame.f_code.co_filename) == seen_as:
                lines.append(frame.f_lineno)
            frame = frame.f_back
        where = f"{file}:{lines[0]}" if lines else str(file)
        with contextlib.suppress(OSError):
            print(f"{where}: the app file is still being imported after {_SLOW_S:g} s; Ctrl-C ends it", file=sys.stderr)

    timer = threading.Timer(_SLOW_S, tell)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _is_ctrl_c(error: BaseException) -> bool:
    """Whether a signal raised a KeyboardInterrupt: by our handler, or by Python's own, which leaves no frame."""
    if not isinstance(error, KeyboardInterrupt):
        return False
    frames = traceback.extract_tb(error.__traceback__)
    handler = getattr(signal.getsignal(signal.SIGINT), "__code__", None)
    if handler is not None:
        return any((frame.filename, frame.name) == (handler.co_filename, handler.co_name) for frame in frames)
    return not frames or "KeyboardInterrupt" not in (frames[-1].line or "")


def _where(file: Path, error: BaseException) -> str:
    """The line of the app file that raised an exception or called what did."""
    seen_as = file.absolute()  # Python loads a file by its absolute path
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == seen_as]
    if isinstance(error, SyntaxError) and Path(error.filename or "").absolute() == seen_as:
        lines = [error.lineno]
    return f"{file}:{lines[-1]}" if lines and lines[-1] else str(file)


def _explain(error: Exception) -> str:
    """An import error in plain words; for an unknown option, with the options that exist."""
    if isinstance(error, TypeError) and (unknown := _UNKNOWN_ARGUMENT.search(str(error))):
        owner, argument = unknown.groups()
        allowed = _options_of(owner, error)
        close = get_close_matches(argument, allowed, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        listed = f" It has: {', '.join(allowed)}." if allowed else ""
        return f"{owner} has no option {argument!r}.{hint}{listed}"
    if isinstance(error, ModuleNotFoundError):
        return f"the module {error.name!r} is not installed in {sys.executable}; install it, or fix the import."
    if isinstance(error, ImportError) and (missing := _MISSING_NAME.search(str(error))):
        close = get_close_matches(missing[1], dir(sys.modules.get(missing[2])), n=1)
        hint = f"Did you mean {close[0]!r}?" if close else "Fix the import."
        return f"{missing[2]} has no {missing[1]!r}. {hint}"
    # A SyntaxError's own text repeats file and line.
    return f"{type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else error}"


def _options_of(owner: str, error: Exception) -> list[str]:
    """Field names of the dataclass that refused an argument, found in the scope of the call."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    scope = {**trace.tb_frame.f_globals, **trace.tb_frame.f_locals} if trace else {}
    for value in list(scope.values()):
        if inspect.isclass(value) and value.__qualname__ == owner and is_dataclass(value):
            return [item.name for item in fields(value) if item.init]
    return []
