"""Projects of third parties: with Torpor from its wheel, in a fresh environment, checked by their own tests."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests import ROOT
from torpor import __version__

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

EXAMPLE = ROOT / "examples" / "torpor-llamacpp"
TEMPLATES = ROOT / "core" / "torpor" / "scaffold" / "templates"


@dataclass(frozen=True, kw_only=True)
class Environment:
    """A virtual environment and a working folder."""

    programs: Path
    folder: Path

    def run(self, program: str, *words: str | Path, within: str = ".", timeout_s: float = 300.0) -> str:
        """Run a program of the environment and return its output. If it fails, the test shows that output."""
        not_theirs = ("PYTHONPATH", "VIRTUAL_ENV", "PYTEST_ADDOPTS")
        env = {name: value for name, value in os.environ.items() if name not in not_theirs}
        done = subprocess.run(
            [self.programs / program, *words],
            cwd=self.folder / within,
            env={
                **env,
                "PATH": f"{self.programs}{os.pathsep}{env['PATH']}",
                "MYPY_CACHE_DIR": str(self.folder / "mypy"),
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )
        assert done.returncode == 0, f"{program} {words}\n{done.stdout[-5000:]}\n{done.stderr[-5000:]}"
        return done.stdout

    def install(self, *what: str | Path) -> None:
        """Install with pip, from the package index that pip uses on this machine."""
        self.run("python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *what, timeout_s=900)


def environment(folder: Path) -> Environment:
    """A new environment in its own folder."""
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True, timeout=120)
    (folder / "work").mkdir()
    return Environment(programs=folder / "venv" / "bin", folder=folder / "work")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Torpor's wheel, built as a release builds it: from its source distribution, so both must contain the templates."""
    builder = environment(tmp_path_factory.mktemp("build"))
    builder.install("build>=1.6", "twine>=7.0")
    builder.run("python", "-m", "build", "--outdir", builder.folder, ROOT, timeout_s=600)
    built = sorted(builder.folder.glob("torpor-*"))
    assert [file.suffix for file in built] == [".whl", ".gz"]
    assert builder.run("twine", "check", "--strict", *built).count("PASSED") == len(built)
    return built[0]


def test_the_wheel_works_in_an_empty_environment(wheel: Path) -> None:
    """`scripts/try_wheel.py`, which a release runs: help, a new plugin, its app's plan, its own tests; no checkout."""
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "try_wheel.py", wheel],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
        timeout=1100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["ok"] * 8
    assert wheel.name == f"torpor-{__version__}-py3-none-any.whl"


def test_the_version_of_the_distribution_is_that_of_the_code(fresh: Environment) -> None:
    """Both come from one file."""
    code = "import importlib.metadata, torpor; print(torpor.__version__, importlib.metadata.version('torpor'))"
    assert fresh.run("python", "-c", code).split() == [__version__, __version__]


def test_the_wheel_holds_every_template(wheel: Path) -> None:
    """Every byte is equal, and the wheel has no other files beside the modules."""
    here = {f"torpor/scaffold/templates/{file.relative_to(TEMPLATES)}": file for file in TEMPLATES.rglob("*.template")}
    with zipfile.ZipFile(wheel) as packed:
        there = {name for name in packed.namelist() if name.startswith("torpor/scaffold/templates/")}
        assert there == set(here)
        assert all(packed.read(name) == file.read_bytes() for name, file in here.items())


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Environment:
    """An environment with the wheel and what its kit needs; each project is installed into it beside the ones before."""
    made = environment(tmp_path_factory.mktemp("fresh"))
    made.install(f"{wheel}[testing]")
    return made


def test_the_example_is_installed_and_keeps_the_contract(fresh: Environment) -> None:
    """The entry point is found, and the plugin passes every rule, live ones too."""
    fresh.install(f"{EXAMPLE}[test]")
    listed = json.loads(fresh.run("torpor", "plugins", "--json"))
    mine = next(entry for entry in listed if entry["name"] == "llamacpp")
    assert (mine["status"], mine["launches"]) == ("loaded", True)
    assert re.search(r"\n=+ \d+ passed in ", fresh.run("pytest", "-p", "no:cacheprovider", EXAMPLE))


@pytest.mark.parametrize(("name", "engine"), [("prompt-file", False), ("ToyEngine", True)], ids=["plugin", "engine"])
def test_a_new_project_can_be_installed_tested_and_planned(
    tmp_path: Path, fresh: Environment, free_port: int, name: str, engine: bool
) -> None:
    """The commands are those of `torpor new` and of the project's CI file; the app answers, too."""
    here = fresh
    said = here.run("torpor", "new", name, *(["--engine"] if engine else []))
    project = re.findall(r"^made (\S+):", said)[0]
    commands = re.findall(r"^  (\S+) (.*?) +#", said, re.MULTILINE)
    assert [program for program, _ in commands] == ["pip", "pytest", "torpor", "torpor"]
    here.install("--editable", f"./{project}[test,lint]")

    assert re.search(r"\n=+ \d+ passed in ", here.run("pytest", "-p", "no:cacheprovider", within=project))
    assert here.run("ruff", "check", within=project) == "All checks passed!\n"
    here.run("ruff", "format", "--check", within=project)
    assert here.run("mypy", "--strict", within=project).startswith("Success: no issues found in")

    entry, kind = ("toyengine", "ToyEngine") if engine else ("prompt_file", "PromptFile")
    listed = {one["name"]: one for one in json.loads(here.run("torpor", "plugins", "--json"))}
    assert (listed[entry]["status"], listed[entry]["launches"]) == ("loaded", engine)
    assert listed[entry]["target"] == f"torpor_{entry}:{kind}"

    plan = json.loads(here.run("torpor", "plan", f"{project}/app.py", "--json"))
    assert plan["engine"]["plugin"] == (entry if engine else "standin")
    assert {hook: entry in called for hook, called in plan["hooks"].items()} == {
        **dict.fromkeys(("prepare_image", "compile_kernels", "warmup", "pre_snapshot", "post_restore"), True),
        "launch": engine,
    }
    assert plan["warnings"] == []

    app = here.folder / project / "app.py"
    app.write_text(app.read_text().replace("port=8000", f"port={free_port}"))
    records = ("--records", tmp_path / "records.jsonl")
    answer = json.loads(here.run("torpor", "up", app, "--ask", "Torpor", "--json", *records))["answer"]
    assert (answer["tokens"], len(answer["text"].split())) == (64, 64)

    here.run("python", "-m", "pip", "wheel", "--quiet", "--no-deps", f"./{project}")
    built = f"torpor_{entry}-0.1.0"
    with zipfile.ZipFile(here.folder / f"{built}-py3-none-any.whl") as packed:
        assert {f"torpor_{entry}/py.typed", f"{built}.dist-info/licenses/LICENSE"} <= set(packed.namelist())
