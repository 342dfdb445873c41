"""The files, metadata and hooks of a new project; the llama.cpp example follows the same templates."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING

import pytest

from tests import ROOT
from torpor.hookspecs import HOOK_NAMES
from torpor.scaffold import names_of, project_files, write_project
from torpor.tasks.routes import TASKS

if TYPE_CHECKING:
    from pathlib import Path

    from torpor.tasks.routes import Task

EXAMPLE = ROOT / "examples" / "torpor-llamacpp"
KINDS = pytest.mark.parametrize("engine", [False, True], ids=["plugin", "engine"])

SHARED = {
    *(".github/workflows/test.yml", ".gitignore", "LICENSE", "README.md", "app.py", "pyproject.toml"),
    *("src/torpor_zyx/__init__.py", "src/torpor_zyx/plugin.py", "src/torpor_zyx/py.typed"),
    *("tests/test_contract.py", "tests/test_plugin.py"),
}
ENGINES = {"src/torpor_zyx/model.py", "src/torpor_zyx/serve.py"}


def project(*, engine: bool, name: str = "zyx") -> dict[str, str]:
    """The files."""
    return project_files(names_of(name), engine=engine)


def methods(source: str, name: str) -> list[str]:
    """A class's methods, in their order."""
    classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == name]
    return [node.name for node in classes[0].body if isinstance(node, ast.FunctionDef)]


def test_a_project_is_these_files() -> None:
    """An engine's project also has a server and a model."""
    assert set(project(engine=False)) == SHARED
    assert set(project(engine=True)) == SHARED | ENGINES


@KINDS
def test_every_placeholder_is_filled_in(engine: bool) -> None:
    """The only dollar signs are GitHub's, and the files name no other plugin."""
    for path, text in project(engine=engine).items():
        assert re.findall(r"\$(?!\{\{ matrix\.python \}\})", text) == [], path
        assert "MODULE" not in path
        assert text == "" or text.endswith("\n"), path
        assert (
            "Zyx" in text
            or "zyx" in text
            or path
            in {".github/workflows/test.yml", ".gitignore", "LICENSE"}
            | {f"src/torpor_zyx/{name}" for name in ("py.typed",)}
        ), path


@KINDS
def test_the_metadata_are_complete(engine: bool) -> None:
    """The lower bounds are Torpor's own."""
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text())
    made = tomllib.loads(project(engine=engine)["pyproject.toml"])
    optional = ours["project"]["optional-dependencies"]["testing"]
    known = {re.split("[>=]", need)[0]: need for need in (*ours["project"]["dependencies"], *optional)}
    version = re.findall(r'"(\d+\.\d+)\.', (ROOT / "core" / "torpor" / "_version.py").read_text())[0]
    assert made["build-system"] == ours["build-system"]
    assert made["project"] == {
        "name": "torpor-zyx",
        "version": "0.1.0",
        "description": f"{'An engine' if engine else 'A plugin'} for Torpor",
        "readme": "README.md",
        "license": "Apache-2.0",
        "license-files": ["LICENSE"],
        "requires-python": ours["project"]["requires-python"],
        "dependencies": [f"torpor>={version}", *([known["uvicorn"]] if engine else [])],
        "optional-dependencies": {
            "test": ["torpor[testing]", *([known["httpx"]] if engine else [])],
            "lint": ["mypy>=1.18", "ruff>=0.14"],
        },
        "entry-points": {"torpor": {"zyx": "torpor_zyx:Zyx"}},
    }


def test_the_licence_is_torpors() -> None:
    """The whole text of Apache 2.0."""
    assert project(engine=False)["LICENSE"] == (ROOT / "LICENSE").read_text()


@KINDS
def test_the_hooks_stand_in_the_order_in_which_they_run_and_say_when(engine: bool) -> None:
    """An engine has all six, another plugin all but `launch`. Each says when it runs, what it returns and what to put there."""
    source = project(engine=engine)["src/torpor_zyx/plugin.py"]
    hooks = [name for name in methods(source, "Zyx") if name in HOOK_NAMES]
    assert hooks == [name for name in HOOK_NAMES if engine or name != "launch"]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name in HOOK_NAMES:
            said = " ".join((ast.get_docstring(node) or "").split())
            assert [word for word in ("Runs ", "Returns ", "Put here ") if word not in said] == [], node.name
            marks = [ast.unparse(mark).partition("(")[0] for mark in node.decorator_list]
            assert marks == ["hookimpl", "override"]
    head = (ast.get_docstring(ast.parse(source)) or "").split()
    assert [word for word in head if word in HOOK_NAMES] == list(HOOK_NAMES)


@KINDS
def test_the_ci_file_runs_the_commands_of_the_readme(engine: bool) -> None:
    """All commands but the one that serves."""
    made = project(engine=engine)
    told = re.findall(r"^    (\S.*?) +# ", made["README.md"], re.MULTILINE)
    ran = re.findall(r"- run: (.*)", made[".github/workflows/test.yml"])
    assert [line.removeprefix("python -m ").replace("--editable", "-e") for line in ran] == [
        "pip install -e '.[test,lint]'",
        *("ruff check", "ruff format --check", "mypy", "pytest", "torpor plan app.py"),
    ]
    assert {command for line in told for command in line.split(" && ")} - set(ran) == {
        "pip install -e '.[test,lint]'",
        f'torpor up app.py --ask "{"Torpor" if engine else "Hello."}"',
    }


@KINDS
@pytest.mark.parametrize("name", ["a", "zz-" * 13 + "z", "Z" * 40], ids=["short", "many parts", "long"])
def test_a_new_project_passes_ruff_with_any_name(tmp_path: Path, engine: bool, name: str) -> None:
    """Ruff uses its default rules and the project's line length."""
    write_project(tmp_path / "made", project(engine=engine, name=name).items())
    for words in (("check",), ("format", "--check", "--diff")):
        ruff = [sys.executable, "-m", "ruff", *words, "--no-cache"]
        done = subprocess.run(ruff, cwd=tmp_path / "made", capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_llama_cpp_example_follows_the_templates() -> None:
    """The server is identical; the plugin has the same methods; the metadata have the same keys."""
    made = project(engine=True, name="LlamaCpp")
    package = EXAMPLE / "src" / "torpor_llamacpp"
    code = {path for path in made if path.startswith("src/")}
    assert {f"src/torpor_llamacpp/{file.name}" for file in package.iterdir() if file.is_file()} == code
    for same in ("serve.py", "py.typed"):
        assert (package / same).read_text() == made[f"src/torpor_llamacpp/{same}"]
    for file, name in (("plugin.py", "LlamaCpp"), ("model.py", "Model")):
        theirs = methods((package / file).read_text(), name)
        ours = methods(made[f"src/torpor_llamacpp/{file}"], name)
        assert [method for method in theirs if not method.startswith("_") or method == "__post_init__"] == [
            method for method in ours if not method.startswith("_") or method == "__post_init__"
        ]
    example, project_made = (
        tomllib.loads(text) for text in ((EXAMPLE / "pyproject.toml").read_text(), made["pyproject.toml"])
    )
    assert example["build-system"] == project_made["build-system"]
    assert example["project"]["entry-points"] == project_made["project"]["entry-points"]
    assert example["project"].keys() == project_made["project"].keys() - {"license-files"}
    for tool in ("hatch", "pytest"):
        assert example["tool"][tool] == project_made["tool"][tool]


@pytest.mark.slow
@pytest.mark.parametrize("task", [task for task in TASKS if task != "chat"])
def test_a_project_for_another_task_passes_its_own_tests(tmp_path: Path, task: Task) -> None:
    """Its app serves that task, and the plugin asks it in a whole lifecycle: contract, formatting and types hold, too."""
    write_project(tmp_path / "zyx", project_files(names_of("zyx"), engine=False, task=task).items())

    def run(*words: str) -> str:
        paths = os.pathsep.join(["src", str(ROOT / "core"), str(ROOT / "plugins")])
        done = subprocess.run(
            [sys.executable, "-m", *words],
            cwd=tmp_path / "zyx",
            env=os.environ | {"PYTHONPATH": paths, "MYPYPATH": "src"},
            capture_output=True,
            text=True,
            check=False,
            timeout=280,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert re.search(r"\d+ passed", run("pytest", "-q", "-p", "no:cacheprovider"))
    run("ruff", "format", "--check")
    assert f"serves    {task}: " in run("torpor.cli", "plan", "app.py")


def test_chats_are_the_usual_task_of_a_project() -> None:
    """The task changes only what has to do with it."""
    chats, texts = (project_files(names_of("zyx"), engine=False, task=task) for task in ("chat", "embed"))
    assert chats == project(engine=False)
    changed = {path for path, text in chats.items() if texts[path] != text}
    plugin = "src/torpor_zyx/plugin.py"
    assert changed == {"README.md", "app.py", plugin, "tests/test_contract.py", "tests/test_plugin.py"}
    assert 'task_route("embed")' in texts[plugin]
    assert "chat" not in texts[plugin]
