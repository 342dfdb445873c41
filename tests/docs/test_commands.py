"""Every command in the README and in docs/ exists with its options. Those that can run here do, and print what the page shows."""

from __future__ import annotations

import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer._click.exceptions import UsageError
from typer.main import get_command

from tests import ROOT
from tests.docs.pages import PAGES, Command, blocks, command_lines, commands, matches
from torpor.cli.commands import app

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

REAL_ENGINE = "takes the real SGLang, set up by `make engine`; run by hand for the page, and by `make run`"
TWO_REPLICAS = (
    "asks replicas that were being restored; tests/platforms/local/test_replicas.py and "
    "tests/platforms/modal/test_prewarm.py do that"
)
NOT_RUN = {
    "make run": REAL_ENGINE,
    "torpor doctor apps/tiny_cpu.py": REAL_ENGINE,
    "torpor snapshot create apps/tiny_cpu.py ~/tiny": REAL_ENGINE,
    "torpor snapshot create apps/tiny_cpu.py /srv/tiny": REAL_ENGINE,
    "torpor snapshot inspect ~/tiny": REAL_ENGINE,
    "torpor snapshot restore ~/tiny --replicas 3 --port 18000": REAL_ENGINE,
    "torpor snapshot rm ~/tiny": REAL_ENGINE,
    "torpor bench standin.py --starts 5 --json bench.json --html bench.html": "ten starts and CRIU; tests/cli/test_bench.py",
    "torpor prewarm http://127.0.0.1:18473 --requests 2": TWO_REPLICAS,
    "torpor prewarm http://127.0.0.1:18473 --attempts 2 --pause 0 --requests 4": TWO_REPLICAS,
    "torpor probe http://127.0.0.1:18473 > answer.txt": "asks a server that is starting; tests/cli/test_probe.py does that",
}
"""Commands with output that no test runs from the page, each with the reason."""
OWN_TESTS = {"new.md": ROOT / "tests" / "scaffold" / "test_new_docs.py"}
"""Pages that have a test of their own, from top to bottom."""
NEEDS_SERVER = re.compile(r"^curl ")

SHOWN = [command for page in PAGES for command in commands(page)]
ELSEWHERE = [one for one in SHOWN if one.block.page.name in OWN_TESTS]
RUN = [one for one in SHOWN if one not in ELSEWHERE and one.words not in NOT_RUN and not NEEDS_SERVER.match(one.words)]


def other_app(folder: Path, port: int) -> None:
    """The app that docs/observe.md compares with: two GPUs and a short time-out."""
    text = (ROOT / "apps" / "qwen3_sglang.py").read_text()
    text = text.replace('gpu="H100!"', 'gpu="H100:2"').replace(
        "startup_timeout_s=10 * MINUTES_S", "startup_timeout_s=100"
    )
    (folder / "other.py").write_text(text)


def on_a_free_port(folder: Path, port: int) -> None:
    """The app of docs/plugin.md, on a free port."""
    app_file = folder / "app.py"
    text = app_file.read_text()
    assert text.count('name="long-prompts",') == 1
    app_file.write_text(text.replace('name="long-prompts",', f'name="long-prompts", port={port},'))


PREPARED: dict[str, Callable[[Path, int], None]] = {"observe.md": other_app, "plugin.md": on_a_free_port}
"""Files that a page only describes, and a free port for a page's app."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with `apps/`, as in a checkout."""
    (tmp_path / "apps").symlink_to(ROOT / "apps")
    return tmp_path


def run(command: Command, folder: Path, port: int) -> str:
    """Run a command as a reader of the page would, beside the page's own files, and return what it printed."""
    for block in blocks(command.block.page):
        if block.title and not (ROOT / block.title).exists():
            (folder / block.title).write_text(block.text)
    if prepare := PREPARED.get(command.block.page.name):
        prepare(folder, port)
    words = shlex.split(command.words)
    here = Path(sys.executable).parent
    program = {"python": sys.executable, "torpor": str(here / "torpor")}[words[0]]
    done = subprocess.run(
        [program, *words[1:]],
        cwd=folder,
        env=os.environ
        | {"COLUMNS": "120", "TORPOR_CACHE": str(folder / "cache"), "PYTEST_ADDOPTS": "-p no:cacheprovider"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    return done.stdout


@pytest.mark.parametrize("command", RUN, ids=lambda command: f"{command.block.page.stem}: {command.words}")
@pytest.mark.slow
def test_a_command_prints_what_its_page_shows(command: Command, folder: Path, free_port: int) -> None:
    """`...` stands for what the page omits."""
    seen = run(command, folder, free_port)
    assert matches(command.output, seen), f"{command.block.where}: {command.words}\n{seen}"


def test_each_command_that_is_not_run_has_a_reason() -> None:
    """The list contains only commands that a page shows."""
    assert set(NOT_RUN) - {command.words for command in SHOWN} == set()
    assert len(RUN) >= 5
    for page, test in OWN_TESTS.items():
        assert page in test.read_text()


@functools.cache
def command_line() -> Any:
    """Torpor's commands, as typer builds them."""
    return get_command(app)


def known_options(command: Any) -> set[str]:
    """The options of one of Torpor's commands (typer bundles its own click)."""
    return {"--help", *(option for parameter in command.params for option in parameter.opts)}


def parsed(command: Any, words: Sequence[str]) -> bool:
    """A line has as many arguments as its command takes, and each option its value."""
    if not words or "--help" in words or "--debug" in words or hasattr(command, "commands"):
        return True
    try:
        command.make_context(command.name, [word for word in words if word != "..."])
    except UsageError:
        return False
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_on_a_page_exists(page: Path) -> None:
    """It is a command with these options, a target of `make`, or `modal run` with an existing app file."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for block, line in command_lines(page):
        words = shlex.split(re.split(r" [|>] ", line)[0])
        if words[0] == "make":
            assert {word for word in words[1:] if "=" not in word} <= targets, f"{block.where}: {line}"
        elif words[0] == "torpor":
            command = command_line()
            rest = words[1:]
            while rest and rest[0] in getattr(command, "commands", {}):
                command = command.commands[rest.pop(0)]
            assert not hasattr(command, "commands") or rest[:1] in ([], ["--help"], ["--debug"]), (
                f"{block.where}: {line}"
            )
            options = {word.partition("=")[0] for word in rest if word.startswith("--")}
            assert options <= known_options(command), f"{block.where}: {line}"
            assert parsed(command, rest), f"{block.where}: {line}: {parsed.__doc__}"
        for word in words:
            if word.startswith("apps/"):
                assert (ROOT / word.partition("::")[0]).exists(), f"{block.where}: {line}"


def test_torpor_is_on_the_path_of_these_tests() -> None:
    """The tests run the command by its name."""
    assert shutil.which("torpor", path=str(Path(sys.executable).parent))
