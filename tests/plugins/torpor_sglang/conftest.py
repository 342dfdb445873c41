"""The real SGLang of every supported version, as far as it is set up on this machine."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import pytest

from torpor_sglang import SGLang
from torpor_sglang.versions import SUPPORTED_VERSIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ROOT = Path(__file__).parents[3]
ENGINES = ROOT / ".engines"
LOCAL_VERSION = "0.5.23"
QUESTIONS = Path(__file__).parent / "engine_questions.py"
REQUIRE_VARIABLE = "TORPOR_REQUIRE_SGLANG"


@dataclass(frozen=True, kw_only=True)
class RealEngine:
    """One version of SGLang on this machine.

    Args:
        version: its version.
        python: the interpreter that has its dependencies.
        env: the environment with that version first on its path.
    """

    version: str
    python: Path
    env: dict[str, str] = field(repr=False)


class Questions:
    """A process that imports one SGLang and answers questions about it."""

    def __init__(self, engine: RealEngine, log: Path) -> None:
        self.version = engine.version
        self._log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [engine.python, QUESTIONS],
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
        with suppress(BrokenPipeError):  # an earlier question was its end
            print(json.dumps({"ask": what, **question}), file=stdin, flush=True)
            line = stdout.readline()
        if not line:
            pytest.fail(f"SGLang {self.version} did not answer {what!r}:\n{self._log.read_text()[-3000:]}")
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


def find_engine(version: str) -> RealEngine:
    """Return a real SGLang, or skip the test (or fail it, where SGLang is required) with what to do."""
    python = ENGINES / f"sglang-{LOCAL_VERSION}" / "bin" / "python"
    folder = ENGINES / "sglang-parsers" / version
    if not python.exists():
        _missing(python, "scripts/setup-local")
    if version != LOCAL_VERSION and not folder.is_dir():
        _missing(folder, "scripts/setup-local --parsers")
    path = "" if version == LOCAL_VERSION else str(folder)
    return RealEngine(version=version, python=python, env={"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": ""})


def _missing(path: Path, cure: str) -> None:
    message = f"{path.relative_to(ROOT)} is missing; run {cure}"
    if os.environ.get(REQUIRE_VARIABLE) == "1":
        pytest.fail(f"{message} ({REQUIRE_VARIABLE}=1)")
    pytest.skip(message)


def cpu_plugin(engine: RealEngine, *, warmup_prompt_words: tuple[int, ...]) -> SGLang:
    """The plugin for a real SGLang and the tiny model, on this machine's CPU."""
    return SGLang(
        version=engine.version,
        python=str(engine.python),
        device="cpu",
        mem_fraction_static=0.1,
        max_total_tokens=4096,
        sleep_on_idle=True,
        warmup_prompt_words=warmup_prompt_words,
    )


@pytest.fixture(scope="session")
def real_engine() -> Callable[[str], RealEngine]:
    """Find a version's real SGLang."""
    return find_engine


@pytest.fixture(scope="session")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Questions]]:
    """Ask a version's real SGLang; one process per version answers all tests."""
    running: dict[str, Questions] = {}

    def start(version: str) -> Questions:
        if version not in running:
            log = tmp_path_factory.mktemp("questions") / f"{version}.log"
            running[version] = Questions(find_engine(version), log)
        return running[version]

    yield start
    for questions in running.values():
        questions.close()


@pytest.fixture(params=SUPPORTED_VERSIONS)
def questions(request: pytest.FixtureRequest, asked: Callable[[str], Questions]) -> Questions:
    """Ask each supported version's real SGLang in turn."""
    return asked(request.param)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the tiny random Qwen3."""
    engine = find_engine(LOCAL_VERSION)
    folder = tmp_path_factory.mktemp("models") / "tiny-qwen3"
    script = ROOT / "scripts" / "make_tiny_model.py"
    made = subprocess.run([engine.python, script, folder], capture_output=True, text=True, timeout=200, check=False)
    assert made.returncode == 0, made.stderr
    return folder
