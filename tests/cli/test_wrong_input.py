"""Wrong command lines and wrong files, for every command: one sentence that says what to change, exit code 2, no traceback."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
from typer.main import get_command

from tests.command_line import torpor
from torpor import ConfigurationError
from torpor.cli.commands import app
from torpor.cli.exit_codes import EXIT_CODES

if TYPE_CHECKING:
    from pathlib import Path

WITH_APP = (
    *(("plan",), ("up",), ("serve",), ("doctor",), ("bench",), ("prewarm",)),
    *(("snapshot", "create"), ("snapshot", "compare"), ("ray", "plan"), ("ray", "manifest")),
)
"""Commands that take an app file."""


@pytest.fixture(scope="module")
def command() -> Any:
    """The command line, built once."""
    return get_command(app)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("plam", "No such command 'plam'. Did you mean 'plan'? `torpor -h` lists what is allowed."),
        ("plan", "Missing argument 'APP'. `torpor plan -h` lists what is allowed."),
        (
            "plan x.py --jsn",
            "No such option: --jsn (Possible options: --json). `torpor plan -h` lists what is allowed.",
        ),
        ("plan x.py y.py", "Got unexpected extra argument(s) (y.py). `torpor plan -h` lists what is allowed."),
        (
            "up x.py --port x",
            "Invalid value for '--port': it has to be a whole number. `torpor up -h` lists what is allowed.",
        ),
        ("probe http://x --timeout y", "Invalid value for '--timeout': it has to be a number. `torpor probe -h` lists"),
        (
            "snapshot crate",
            "No such command 'crate'. Did you mean 'create'? `torpor snapshot -h` lists what is allowed.",
        ),
        ("up x.py --ask ''", "--ask is empty; write what the server is asked, or leave --ask out."),
    ],
)
def test_a_wrong_command_line_is_one_sentence(command: Any, words: str, said: str) -> None:
    """It names the help of the command that was meant."""
    with pytest.raises(ConfigurationError) as caught:
        command.main(args=["" if word == "''" else word for word in words.split()], prog_name="torpor")
    assert str(caught.value).startswith(said)


def leaves(command: Any, before: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every command of the tree, with its groups."""
    below = getattr(command, "commands", None)
    return [before] if below is None else [leaf for name in below for leaf in leaves(below[name], (*before, name))]


def test_a_misspelt_option_is_refused_by_every_command(command: Any) -> None:
    """Before its other words are looked at."""
    found = leaves(command)
    assert {" ".join(leaf) for leaf in found} == set(EXIT_CODES)
    for leaf in found:
        with pytest.raises(ConfigurationError, match=rf"^No such option: --hosst.* `torpor {' '.join(leaf)} -h`"):
            command.main(args=[*leaf, "--hosst"], prog_name="torpor")


@pytest.mark.slow
@pytest.mark.parametrize("words", WITH_APP, ids=" ".join)
def test_a_wrong_app_file_is_one_sentence(words: tuple[str, ...], tmp_path: Path) -> None:
    """One that is not there, a folder, one without a deployment, an empty name; for each the exit code is 2."""
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "none.py").write_text("x = 1\n")
    further = ("out",) if words == ("snapshot", "create") else ()
    cases = [("gone.py", "There is no app file"), ("folder.py", "is a folder"), ("none.py", "holds no deployment")]
    for name, said in cases:
        done = torpor(*words, name, *further, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("words", [("plan",), ("up",), ("snapshot", "create")], ids=" ".join)
def test_an_app_file_that_may_not_be_read_is_one_sentence(words: tuple[str, ...], tmp_path: Path) -> None:
    """The error of the operating system is in it."""
    file = tmp_path / "app.py"
    file.write_text("x = 1\n")
    file.chmod(0)
    if os.access(file, os.R_OK):
        pytest.skip("this user may read every file")
    done = torpor(*words, "app.py", *(["out"] if len(words) > 1 else []), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Permission denied" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("words", [("wake",), ("sleep",), ("pin",)], ids=" ".join)
def test_a_command_for_a_server_that_does_not_run_says_how_to_start_one(words: tuple[str, ...], tmp_path: Path) -> None:
    """The exit code is 1: the words are right."""
    done = torpor(*words, "nobody", env={"TORPOR_CACHE": str(tmp_path)})
    assert (done.returncode, done.stdout) == (1, "")
    assert "No `torpor serve` here serves a deployment 'nobody'; none runs; start one with" in done.stderr
