"""A command pays for the modules that it needs, and for no search for garbage among them."""

from __future__ import annotations

import subprocess
import sys

RUN = """
import gc, sys
from torpor.cli import main

sys.argv = ["torpor", "probe", "ftp://127.0.0.1"]
try:
    main()
except SystemExit as end:
    print(end.code, "httpx" in sys.modules, "click" in sys.modules, gc.isenabled())
"""


def test_a_command_imports_httpx_without_its_command_line_and_then_collects_garbage() -> None:
    """The command of httpx itself imports click, rich and pygments. The collector begins when the imports are done."""
    done = subprocess.run([sys.executable, "-c", RUN], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "2 True False True\n", done.stderr
