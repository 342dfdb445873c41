"""The engines that `scripts/setup-local` installed, and a process per version that answers questions about it."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, cast

import pytest

from tests import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

ENGINES = ROOT / ".engines"


@dataclass(frozen=True, kw_only=True)
class RealEngine:
    """One version of an engine on this machine.

    Args:
        version: its version.
        python: the interpreter with its dependencies.
        env: the environment with that version first on its path.
    """

    version: str
    python: Path
    env: dict[str, str] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class LocalEngine:
    """An engine that `scripts/setup-local` knows.

    Args:
        name: its name in that script and in `torpor_<name>`.
        title: its name in messages.
        version: the version that can run here; other versions have only argument parsers and routers.
        folder: the folder with the installed engines.
    """

    name: str
    title: str
    version: str
    folder: Path = ENGINES

    def find(self, version: str) -> RealEngine:
        """Return a version. If it is missing, skip the test, or fail it if the engine is required; the message says what to do."""
        python = self.folder / f"{self.name}-{self.version}" / "bin" / "python"
        parsers = self.folder / f"{self.name}-parsers" / version
        if not python.exists():
            self._missing(python, f"scripts/setup-local --engine {self.name}")
        if version != self.version and not parsers.is_dir():
            self._missing(parsers, f"scripts/setup-local --engine {self.name} --parsers")
        path = "" if version == self.version else str(parsers)
        return RealEngine(version=version, python=python, env={"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": ""})

    def _missing(self, path: Path, cure: str) -> None:
        message = f"{path.relative_to(self.folder.parent)} is missing; run {cure}"
        variable = f"TORPOR_REQUIRE_{self.name.upper()}"
        if os.environ.get(variable) == "1":
            pytest.fail(f"{message} ({variable}=1)")
        pytest.skip(message)

    @contextmanager
    def asking(self, logs: Path) -> Iterator[Callable[[str], Questions]]:
        """Yield a function that returns the question process of a version, one per version. They end with this block."""
        running: dict[str, Questions] = {}

        def start(version: str) -> Questions:
            if version not in running:
                running[version] = Questions(self, self.find(version), logs / f"{version}.log")
            return running[version]

        try:
            yield start
        finally:
            for questions in running.values():
                questions.close()


class Questions:
    """A process that imports one version of an engine and answers questions about it."""

    def __init__(self, local: LocalEngine, engine: RealEngine, log: Path) -> None:
        self.version = engine.version
        self._title = local.title
        self._log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [engine.python, "-m", f"tests.plugins.torpor_{local.name}.engine_questions"],
                cwd=ROOT,
                env={**os.environ, **engine.env},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def ask(self, what: str, **question: object) -> Any:
        """Ask one question and return its answer."""
        stdin, stdout = cast("IO[str]", self._process.stdin), cast("IO[str]", self._process.stdout)
        line = ""
        with suppress(BrokenPipeError):  # it ended at an earlier question
            print(json.dumps({"ask": what, **question}), file=stdin, flush=True)
            line = stdout.readline()
        if not line:
            pytest.fail(f"{self._title} {self.version} did not answer {what!r}:\n{self._log.read_text()[-3000:]}")
        return json.loads(line)

    def parse(self, argv: Sequence[str]) -> dict[str, dict[str, str] | str]:
        """Let the real parser read a command line."""
        return cast("dict[str, dict[str, str] | str]", self.ask("parse", argv=list(argv)))

    def close(self) -> None:
        """End the process."""
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(BrokenPipeError):
                cast("IO[str]", stream).close()
        self._process.terminate()
        self._process.wait(20)


def make_tiny_model(engine: RealEngine, folder: Path, classes: int = 0) -> None:
    """Create the tiny random Qwen3 with the engine's libraries: a language model, or a classifier of so many classes."""
    script = ROOT / "scripts" / "make_tiny_model.py"
    made = subprocess.run(
        [engine.python, script, folder, str(classes)], capture_output=True, text=True, timeout=200, check=False
    )
    assert made.returncode == 0, made.stderr
