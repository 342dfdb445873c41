#!/usr/bin/env python3
"""Try a wheel as its user would: in an empty environment, in an empty folder, without the checkout.

    scripts/try_wheel.py dist/torpor-0.2.0-py3-none-any.whl

It installs the wheel with the contract kit, asks for the help, makes a plugin and an app by `torpor new`, plans the app, and runs
the plugin's own tests: the contract, and a whole lifecycle with the stand-in engine. Exit code 0: all of that works.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

__all__ = ["main"]

_STEPS = (
    ("torpor", "--version"),
    ("torpor", "--help"),
    ("torpor", "plugins"),
    ("torpor", "new", "tried-plugin"),
    ("pip", "install", "--quiet", "--disable-pip-version-check", "--editable", "./torpor-tried-plugin[test]"),
    ("torpor", "plan", "torpor-tried-plugin/app.py"),
    ("pytest", "-q", "torpor-tried-plugin"),
)
_STEP_S = 900.0
_USAGE, _FAILED = 2, 1


def main(words: list[str]) -> int:
    """Try the wheel that the command line names; the exit code."""
    if len(words) != 1 or not Path(words[0]).is_file():
        print(__doc__, file=sys.stderr)
        return _USAGE
    wheel = Path(words[0]).resolve()
    with tempfile.TemporaryDirectory(prefix="torpor-wheel-") as name:
        folder = Path(name)
        venv.create(folder / "venv", with_pip=True)
        (folder / "work").mkdir()
        install = ("pip", "install", "--quiet", "--disable-pip-version-check", f"{wheel}[testing]")
        return next((_FAILED for step in (install, *_STEPS) if not _works(folder, step)), 0)


def _works(folder: Path, step: tuple[str, ...]) -> bool:
    """Run a program of the environment; its output is shown if it fails."""
    programs = folder / "venv" / "bin"
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [programs / step[0], *step[1:]],
        cwd=folder / "work",
        env=kept | {"PATH": f"{programs}{os.pathsep}{kept['PATH']}", "TORPOR_CACHE": str(folder / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=_STEP_S,
    )
    print(f"{'ok    ' if done.returncode == 0 else 'failed'} {' '.join(step)}", flush=True)
    if done.returncode:
        print(done.stdout, flush=True)
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
