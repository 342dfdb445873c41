"""`torpor new`: writes a plugin project and shows the next commands."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

from torpor.cli.interrupts import ends_on_sigterm
from torpor.cli.terminal import result
from torpor.errors import ConfigurationError
from torpor.scaffold import Names, known_task, names_of, project_files, write_project
from torpor.values.plain_text import one_line, plain

__all__ = ["run_new"]


def run_new(name: str, *, engine: bool, into: Path | None, task: str = "chat") -> None:
    """Write the project, list its files, and show the commands that install, test and use it.

    Raises:
        ConfigurationError: a name is wrong, or the folder cannot be used; nothing was written.
    """
    names, served = names_of(name), known_task(task)
    if engine and served != "chat":
        raise ConfigurationError(
            f"--task {served} is for a plugin beside an engine; the small engine of --engine serves chats. Leave one of the two "
            "out; an engine plugin names its tasks in `tasks`."
        )
    folder = into or Path(names.distribution)
    files = project_files(names, engine=engine, task=served)
    ends_on_sigterm()
    write_project(folder, files.items())
    kind = "an engine plugin" if engine else "a plugin"
    result(f"made {one_line(folder)}: {kind}, {names.class_name} of {names.module}")
    for path in files:
        result(f"  {path}")
    result("go on with")
    commands = _commands(folder, names)
    width = max(len(command) for _, command in commands)
    for what, command in commands:
        result(plain(f"  {command:<{width}}  # {what}"))


def _commands(folder: Path, names: Names) -> tuple[tuple[str, str], ...]:
    """The next commands, with programs named as this shell finds them."""
    place = str(folder) if folder.is_absolute() else f"./{folder}"
    return (
        ("install it with its tests' needs", f"{_program('pip')} install -e {shlex.quote(f'{place}[test]')}"),
        ("test it", f"{_program('pytest')} {shlex.quote(place)}"),
        (f"use {names.class_name} in an app", f"{_program('torpor')} plan {shlex.quote(f'{place}/app.py')}"),
        ("run its whole life, and ask once", f"{_program('torpor')} up {shlex.quote(f'{place}/app.py')} --ask Hello."),
    )


def _program(name: str) -> str:
    """A program of this Python's environment: its name if the shell finds the same one, else its path."""
    own = Path(sys.executable).with_name(name)
    found = shutil.which(name)
    if not own.exists() or (found and Path(found).absolute() == own.absolute()):
        return name
    return shlex.quote(str(own))
