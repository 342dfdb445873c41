"""`torpor new`, as a user meets it: what it says, its exit codes, and that it costs the other commands nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_line import torpor
from torpor.scaffold import names_of, project_files

MADE = """\
made torpor-prompt-file: a plugin, PromptFile of torpor_prompt_file
  .github/workflows/test.yml
  .gitignore
  LICENSE
  README.md
  app.py
  pyproject.toml
  src/torpor_prompt_file/__init__.py
  src/torpor_prompt_file/plugin.py
  src/torpor_prompt_file/py.typed
  tests/test_contract.py
  tests/test_plugin.py
go on with
  pip install -e './torpor-prompt-file[test]'         # install it with its tests' needs
  pytest ./torpor-prompt-file                         # test it
  torpor plan ./torpor-prompt-file/app.py             # use PromptFile in an app
  torpor up ./torpor-prompt-file/app.py --ask Hello.  # run its whole life, and ask once
"""


def files_of(folder: Path) -> dict[str, str]:
    """Every file under a folder, with its text."""
    return {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*") if file.is_file()}


def test_it_lists_the_files_and_the_next_commands(tmp_path: Path) -> None:
    """A program is shown by its name if the shell finds the same one."""
    path = str(Path(sys.executable).parent)
    done = torpor("new", "prompt-file", cwd=tmp_path, env={"PATH": path})
    assert (done.returncode, done.stdout, done.stderr) == (0, MADE, "")
    assert files_of(tmp_path / "torpor-prompt-file") == project_files(names_of("prompt-file"), engine=False)


@pytest.mark.slow
def test_programs_that_the_shell_does_not_find_are_named_by_their_paths(tmp_path: Path) -> None:
    """A folder with a space is quoted."""
    folder, programs = tmp_path / "my engine", Path(sys.executable).parent
    done = torpor("new", "LlamaCpp", "--engine", "--into", str(folder), env={"PATH": "/usr/bin:/bin"})
    assert done.stdout.splitlines()[0] == f"made {folder}: an engine plugin, LlamaCpp of torpor_llamacpp"
    assert [line.partition("  #")[0].strip() for line in done.stdout.splitlines()[-4:]] == [
        f"{programs}/pip install -e '{folder}[test]'",
        f"{programs}/pytest '{folder}'",
        f"{programs}/torpor plan '{folder}/app.py'",
        f"{programs}/torpor up '{folder}/app.py' --ask Hello.",
    ]
    assert files_of(folder) == project_files(names_of("LlamaCpp"), engine=True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("2fast",), "torpor: ConfigurationError: '2fast' cannot be a plugin's name"),
        (("a", "--into", "."), "is not empty (mine), and its files are not overwritten"),
        pytest.param(("a", "--task", "draw"), "--task is 'draw'; allowed: chat, generate", marks=pytest.mark.slow),
        pytest.param(
            ("a", "--engine", "--task", "embed"), "the small engine of --engine serves chats", marks=pytest.mark.slow
        ),
        pytest.param(("a", "--into", "mine/a"), "cannot be written to", marks=pytest.mark.slow),
        pytest.param((), "Missing argument 'NAME'", marks=pytest.mark.slow),
    ],
)
def test_wrong_input_is_exit_code_2_and_one_paragraph(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    """And nothing is written."""
    (tmp_path / "mine").touch()
    done = torpor("new", *words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine"]


@pytest.mark.slow
def test_its_help_has_examples() -> None:
    """With the files of each."""
    shown = torpor("new", "--help").stdout
    assert "torpor new prompt-file            torpor-prompt-file/, module torpor_prompt_file, class PromptFile" in shown
    assert "torpor new LlamaCpp --engine      torpor-llamacpp/, module torpor_llamacpp, class LlamaCpp" in shown
    assert "torpor new my-texts --task embed  torpor-my-texts/, with an app that serves embeddings" in shown


def test_other_commands_do_not_import_it() -> None:
    """The option parser imports none of it."""
    code = "import sys, torpor.cli.commands; print(sorted(name for name in sys.modules if 'scaffold' in name))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
