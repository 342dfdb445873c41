"""Every Python block in the README and in docs/ runs, is part of the file that it shows, or belongs to a project that runs."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from tests import ROOT
from tests.docs.pages import PAGES, Block, blocks

PRELUDES = {
    "README.md": (
        "import pytest\n"
        "from torpor import Deployment, Model, Scaling\n"
        "from torpor.testing import PluginContract\n"
        "from torpor_deepgemm import DeepGEMM\n"
        "from torpor_hf_cache import HFCache\n"
        "from torpor_sglang import SGLang\n"
    ),
}
"""Imports that a page's blocks leave out."""

PYTHON = [block for page in PAGES for block in blocks(page) if block.language == "python"]


def shows_a_file(block: Block) -> bool:
    """Whether the block shows a part of a file of this repository."""
    return bool(block.title) and (ROOT / block.title).exists()


def pages_with(kind: str) -> list[Path]:
    """Pages with blocks of their own: `plain` ones, or `project` files."""
    found = [block for block in PYTHON if not shows_a_file(block) and bool(block.title) is (kind == "project")]
    return sorted({block.page for block in found})


def source_of(page: Path) -> str:
    """A page's plain blocks as one module, at their line numbers on the page."""
    lines = PRELUDES.get(page.name, "").splitlines()
    for block in PYTHON:
        if block.page == page and not block.title:
            lines += [""] * (block.line - 1 - len(lines)) + block.text.splitlines()
    return "\n".join(lines) + "\n"


def test_preludes_only_import() -> None:
    """The page itself shows everything else that its code needs."""
    for text in PRELUDES.values():
        assert {type(node) for node in ast.parse(text).body} <= {ast.Import, ast.ImportFrom}
    assert set(PRELUDES) <= {page.name for page in pages_with("plain")}


@pytest.mark.parametrize("block", [block for block in PYTHON if shows_a_file(block)], ids=lambda block: block.where)
def test_a_block_that_shows_a_file_is_in_that_file(block: Block) -> None:
    """Word for word."""
    assert block.text in (ROOT / block.title).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", pages_with("plain"), ids=lambda page: page.name)
def test_the_blocks_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, in one module, in another folder. Code that changes its process gets one of its own."""
    source = source_of(page)
    if "apply_patches(" in source:
        subprocess.run([sys.executable, "-c", source], cwd=tmp_path, check=True, timeout=60)
        return
    monkeypatch.chdir(tmp_path)
    assert set(vars(run(source, page.name, monkeypatch))) > set(vars(types.ModuleType("empty")))


def test_the_deployment_of_the_readme_is_the_flagships(monkeypatch: pytest.MonkeyPatch) -> None:
    """The README omits only defaults and comments."""
    shown = run(source_of(ROOT / "README.md"), "README.md", monkeypatch)
    source = (
        (ROOT / "apps" / "qwen3_sglang.py").read_text().partition("\napp = ")[0]
    )  # the rest registers it with Modal
    assert shown.deployment == run(source, "app.py", monkeypatch).deployment


def run(source: str, name: str, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Run a module's source as a real module, because dataclasses look their module up."""
    module = types.ModuleType(f"shown_{Path(name).stem}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(source, name, "exec"), vars(module))  # the pages' own code
    return module


@pytest.mark.slow
def test_the_readmes_plugin_passes_its_contract_test(tmp_path: Path) -> None:
    """Its two blocks run as a reader would run them."""
    (tmp_path / "test_readme.py").write_text(source_of(ROOT / "README.md"))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


@pytest.mark.slow
def test_the_code_of_the_pages_passes_mypy(tmp_path: Path) -> None:
    """All typed code, in one run."""
    for page in pages_with("plain"):
        (tmp_path / f"page_{page.stem.replace('-', '_')}.py").write_text(source_of(page))
    for block in PYTHON:
        if block.title and not shows_a_file(block):
            (tmp_path / block.title).write_text(block.text)
    files = sorted(str(file) for file in tmp_path.glob("*.py"))
    assert len(files) > 3
    options = (
        "--config-file=",
        "--check-untyped-defs",
        "--ignore-missing-imports",
        f"--cache-dir={tmp_path / 'cache'}",
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, *files],
        cwd=tmp_path,
        env=os.environ | {"MYPYPATH": os.pathsep.join(str(ROOT / folder) for folder in ("core", "plugins"))},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
