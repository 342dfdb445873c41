"""The page about `torpor new`: the output that it shows is real, and its instructions work."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests import ROOT
from tests.cli.test_new import MADE
from torpor.scaffold import names_of, project_files, write_project

if TYPE_CHECKING:
    from pathlib import Path

PAGE = (ROOT / "docs" / "new.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The page's fenced blocks in a language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def shown(command: str) -> str:
    """The output that the page shows below a command."""
    after = PAGE.partition(f"    $ {command}\n")[2]
    return "\n".join(line[4:] for line in re.split(r"\n(?!    )|\n    \$", after)[0].splitlines())


def changed(text: str, difference: str) -> str:
    """Apply the page's diff to a text. Every removed block must occur exactly once."""
    for old, new in re.findall(r"((?:^-.*\n)+)((?:^\+.*\n)+)", difference, re.MULTILINE):
        before, after = (re.sub(r"^[-+]", "", lines, flags=re.MULTILINE) for lines in (old, new))
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    return text


def test_the_page_shows_the_output_of_the_command() -> None:
    """Every character is equal."""
    assert f"{shown('torpor new prompt-file')}\n" == MADE


@pytest.mark.slow
def test_the_plugin_of_the_page_passes_its_tests(tmp_path: Path) -> None:
    """The project, changed as the page says, passes tests, lint, types, plan and a start; the number of prompts is right."""
    files = project_files(names_of("prompt-file"), engine=False)
    (files["src/torpor_prompt_file/plugin.py"],) = blocks("python")
    for part in re.split(r"^--- ", blocks("diff")[0], flags=re.MULTILINE)[1:]:
        path, _, difference = part.partition("\n")
        files[path] = changed(files[path], difference)
    files["prompts.txt"] = "Why is the sky blue?\nName the months.\n"
    write_project(tmp_path / "project", files.items())

    def run(*words: str) -> str:
        source = os.pathsep.join([str(tmp_path / "project" / "src"), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            [sys.executable, "-m", *words],
            cwd=tmp_path / "project",
            env={**os.environ, "PYTHONPATH": source},
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    counted = re.findall(r"\d+ passed", shown("pytest -q"))
    assert re.findall(r"\d+ passed", run("pytest", "-q", "-p", "no:cacheprovider")) == counted
    assert run("ruff", "check", "--no-cache") == "All checks passed!\n"
    run("ruff", "format", "--check", "--no-cache")
    assert run("mypy", "--strict", "--cache-dir", os.devnull).startswith("Success")
    plan = run("torpor.cli", "plan", "app.py")
    for part in shown("torpor plan app.py").split("...\n")[1:]:
        assert part.rstrip() in plan
