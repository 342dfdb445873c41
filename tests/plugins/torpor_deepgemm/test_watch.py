"""`torpor_deepgemm.watch` ends a compile command whose server died before its time limit."""

from __future__ import annotations

import ast
import subprocess
import sys
import time

import pytest

from tests import ROOT

SCRIPT = ROOT / "plugins" / "torpor_deepgemm" / "watch.py"

COMPILE = """
import multiprocessing, subprocess, sys, time, warnings
warnings.simplefilter("ignore")

def server(mode):
    if mode == "crashes":
        time.sleep(0.5); print("CUDA out of memory", flush=True); sys.exit(1)
    time.sleep(600)

mode = sys.argv[1]
if mode == "fails":
    sys.exit(7)
if mode == "tracked":
    from multiprocessing import resource_tracker
    resource_tracker.ensure_running()
    mode = "crashes"
process = multiprocessing.get_context("fork").Process(target=server, args=(mode,))
process.start()
if mode == "works":
    helper = subprocess.Popen(["true"])
    time.sleep(3)
    process.kill(); process.join()
    print("compiled"); sys.exit(0)
time.sleep(600)
"""
"""Like SGLang's compile_deep_gemm: forks a server, waits for something else and never checks the child."""


def watch(mode: str, patience_s: float = 1.0) -> tuple[subprocess.CompletedProcess[str], float]:
    began = time.monotonic()
    argv = [sys.executable, str(SCRIPT), f"--patience={patience_s}", "--", sys.executable, "-c", COMPILE, mode]
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    return ran, time.monotonic() - began


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["crashes", "tracked"])
def test_a_command_whose_server_died_is_ended(mode: str) -> None:
    """Exit code 1, which the build step retries. Python's resource tracker does not count as the server."""
    ran, seconds = watch(mode)
    assert ran.returncode == 1
    assert "CUDA out of memory" in ran.stdout
    assert (
        "started has died (see its last lines above), but the command still waits for it. Ending the command."
        in ran.stderr
    )
    assert seconds < 20


@pytest.mark.slow
def test_a_command_that_works_is_left_alone() -> None:
    """A zombie helper, older than the patience, does not matter while the server runs."""
    ran, _ = watch("works")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "compiled\n", "")


def test_the_commands_own_exit_code_is_passed_on() -> None:
    """It is 127 for a missing program."""
    assert watch("fails")[0].returncode == 7
    argv = [sys.executable, str(SCRIPT), "--", "no-such-program-here"]
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert ran.returncode == 127
    assert "The image has no program 'no-such-program-here'." in ran.stderr


def test_the_file_stands_alone_on_python_310() -> None:
    """It runs in the engine's image, where Torpor is not installed."""
    tree = ast.parse(SCRIPT.read_text(), feature_version=(3, 10))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names
