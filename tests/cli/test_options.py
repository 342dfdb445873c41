"""The command line builds the command that it needs, and no other."""

from __future__ import annotations

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from torpor.cli.options import CommandGroup, keep_named


def made() -> typer.Typer:
    """An app with two commands, and a group of two more."""
    app, group = typer.Typer(cls=CommandGroup), typer.Typer(cls=CommandGroup)

    @app.callback()
    def options(debug: bool = False) -> None: ...

    @app.command()
    def plan_all() -> None: ...

    @app.command("up")
    def start() -> None: ...

    @group.command()
    def first() -> None: ...

    @group.command()
    def second() -> None: ...

    app.add_typer(group, name="group")
    return app


def kept(*words: str) -> set[str]:
    """The commands that a command line keeps."""
    app = made()
    keep_named(app, words)
    top = getattr(get_command(app), "commands")  # noqa: B009 - typer bundles its own click
    below = getattr(top.get("group"), "commands", {})
    return {*top, *below} - {"group"}


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (("plan-all", "x"), {"plan-all"}),
        (("--debug", "up", "group"), {"up"}),
        (("group", "second"), {"second"}),
        (("group",), {"first", "second"}),
        (("group", "--help"), {"first", "second"}),
    ],
)
def test_a_line_keeps_the_command_that_it_names(words: tuple[str, ...], names: set[str]) -> None:
    """By its name or the one of its function, in a group as well."""
    assert kept(*words) == names


@pytest.mark.parametrize("words", [(), ("--help",), ("-h", "up"), ("plan_all",), ("pu", "up"), ("--debug",)])
def test_a_line_without_a_known_name_keeps_all(words: tuple[str, ...]) -> None:
    """Help lists them, and an error suggests one."""
    assert kept(*words) == {"plan-all", "up", "first", "second"}


def test_what_is_kept_runs() -> None:
    """Alone in its group, it still needs its name."""
    app = made()
    keep_named(app, ("group", "first"))
    assert CliRunner().invoke(app, ["group", "first"]).exit_code == 0
