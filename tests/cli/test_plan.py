"""`torpor plan`: reasons of flags, warnings, and what differs between two apps, as a user sees them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import ROOT
from tests.command_line import torpor

if TYPE_CHECKING:
    import subprocess

pytestmark = pytest.mark.slow

FLAGSHIP, TINY = str(ROOT / "apps" / "qwen3_sglang.py"), str(ROOT / "apps" / "tiny_cpu.py")


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """The command."""
    return torpor("plan", *words)


def test_every_flag_has_a_value_and_a_reason() -> None:
    """The same flags as on the command line, in its order."""
    plan = json.loads(run(FLAGSHIP, "--json").stdout)
    command, flags = plan["engine"]["command"], plan["engine"]["flags"]
    assert list(flags) == [word for word in command if word.startswith("--")]
    assert all(flag["reason"] and "gives no reason" not in flag["reason"] for flag in flags.values())
    assert flags["--cuda-graph-max-bs"]["value"] == "1000"
    shown = run(FLAGSHIP).stdout
    assert "  --enable-memory-saver\n      without it a release answers 200 but frees no memory\n" in shown
    assert plan["warnings"] == []
    assert "\nwarnings\n" not in shown


def test_flags_without_a_reason_and_repeated_flags_are_shown(tmp_path: Path) -> None:
    """A plugin without reasons is named; the app's own flags are marked; every value of a flag is shown."""
    app = tmp_path / "app.py"
    flags = 'extra_args=("--log-level", "info", "--log-level=debug"), metrics=True)'
    app.write_text(Path(FLAGSHIP).read_text().replace("metrics=True)", flags))
    given = json.loads(run(str(app), "--json").stdout)["engine"]["flags"]["--log-level"]
    assert given == {"value": "info debug", "reason": "given in SGLang.extra_args"}
    app.write_text(
        "from torpor import Deployment, Model\nfrom torpor.testing import StandIn\n"
        "class Mute(StandIn):\n    def flag_reasons(self): return {}\n"
        "deployment = Deployment(name='d', model=Model(path='/', served_name='m'), plugins=(Mute(),))\n"
    )
    flags_of_mute = json.loads(run(str(app), "--json").stdout)["engine"]["flags"]
    assert {flag["reason"] for flag in flags_of_mute.values()} == {"plugin standin gives no reason"}


def test_every_flag_of_the_stand_in_has_its_reason(tmp_path: Path) -> None:
    """New users see its plan first."""
    app = tmp_path / "app.py"
    app.write_text(
        "from torpor import Deployment, Model\nfrom torpor.testing import Fault, StandIn\n"
        "engine = StandIn(fault=Fault.SLOW_START, journal='/j', extra_args=('--quiet=1',))\n"
        "deployment = Deployment(name='d', model=Model(path='/', served_name='m'), plugins=(engine,))\n"
    )
    flags = json.loads(run(str(app), "--json").stdout)["engine"]["flags"]
    assert {"--fault", "--fault-s", "--journal", "--quiet"} <= set(flags)
    assert [name for name, flag in flags.items() if "gives no reason" in flag["reason"]] == []


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("project", "'project' is a folder. Did you mean project/app.py?"),
        ("empty", "'empty' is a folder. Give the path of a Python file, e.g. apps/tiny_cpu.py."),
        ("notes.txt", "'notes.txt' is not called *.py. Give the path of a Python file, e.g. apps/tiny_cpu.py."),
        ("pipe.py", "'pipe.py' is not a regular file. Give the path of a Python file, e.g. apps/tiny_cpu.py."),
        ("ap.py", "There is no app file 'ap.py'; give the path of a Python file, e.g. apps/tiny_cpu.py."),
        (
            "a" * 300,
            f"The app file {'a' * 300!r} cannot be read: File name too long. "  # noqa: ISC004
            "Give the path of a Python file, e.g. apps/tiny_cpu.py.",
        ),
    ],
)
def test_a_path_that_is_not_an_app_file_is_refused_with_what_was_found(tmp_path: Path, path: str, said: str) -> None:
    """A folder names the app in it."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "app.py").touch()
    (tmp_path / "notes.txt").touch()
    os.mkfifo(tmp_path / "pipe.py")
    done = torpor("plan", path, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"torpor: ConfigurationError: {said}\n"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("from torpor.testing import StandInn", "torpor.testing has no 'StandInn'. Did you mean 'StandIn'?"),
        ("from torpor.testing import Qwerty", "torpor.testing has no 'Qwerty'. Fix the import."),
        ("x = (", "SyntaxError: '(' was never closed"),
        ("import torpor_sglangg", f"the module 'torpor_sglangg' is not installed in {sys.executable}; install it, "),
    ],
)
def test_an_error_in_an_app_file_is_reported_with_its_line(tmp_path: Path, line: str, said: str) -> None:
    """It suggests what was probably meant."""
    (tmp_path / "app.py").write_text(f"{line}\n")
    done = torpor("plan", "app.py", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"torpor: ConfigurationError: app.py:1: {said}")


def test_warnings_stand_at_the_end(tmp_path: Path) -> None:
    """With what to do."""
    app = tmp_path / "app.py"
    app.write_text(Path(FLAGSHIP).read_text().replace("startup_timeout_s=10 * MINUTES_S", "startup_timeout_s=30"))
    shown = run(str(app)).stdout
    assert "\nwarnings\n  start-up: Deployment.startup_timeout_s is 30 s" in shown
    assert shown.splitlines()[-1].startswith("      -> set it to ")
    assert [one["what"] for one in json.loads(run(str(app), "--json").stdout)["warnings"]] == ["start-up"]


def test_a_diff_shows_what_would_change(tmp_path: Path) -> None:
    """Against another app file, and against a plan that was saved."""
    saved = tmp_path / "before.json"
    saved.write_text(run(FLAGSHIP, "--json").stdout)
    assert run(FLAGSHIP, "--diff", str(saved)).stdout == "the plans are the same\n"
    other = tmp_path / "app.py"
    other.write_text(Path(FLAGSHIP).read_text().replace("cuda_graph_max_batch=1000", "cuda_graph_max_batch=32"))
    for one in (str(other), FLAGSHIP):
        shown = run(FLAGSHIP, "--diff", one)
        assert (shown.returncode, shown.stderr) == (0, "")
    shown = run(str(saved.with_name("app.py")), "--diff", str(saved))
    assert "engine.flags.--cuda-graph-max-bs.value\n  - 32\n  + 1000\n" in shown.stdout
    told = json.loads(run(FLAGSHIP, "--diff", str(other), "--json").stdout)
    assert {
        "path": "engine.flags.--cuda-graph-max-bs.value",
        "kind": "changed",
        "before": "1000",
        "after": "32",
    } in told


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("gone.json", None, "cannot be read as a plan"),
        ("list.json", "[]", "holds no plan"),
        ("x.json", "{", "as a plan"),
    ],
)
def test_a_file_without_a_plan_is_refused(tmp_path: Path, name: str, content: str | None, said: str) -> None:
    """One paragraph and exit code 2."""
    if content is not None:
        (tmp_path / name).write_text(content)
    shown = run(TINY, "--diff", str(tmp_path / name))
    assert (shown.returncode, shown.stdout) == (2, "")
    assert said in shown.stderr
    assert "Traceback" not in shown.stderr


@pytest.mark.parametrize("gpu", ["RTX4090", "any", "V100", "A10:8"])
def test_a_plan_of_an_app_for_modal_names_a_gpu_that_modal_lacks(tmp_path: Path, gpu: str) -> None:
    """The values are enough to know it. An app without modal.App gets no warning."""
    app = tmp_path / "app.py"
    lines = (
        "from torpor import Deployment, Model\nfrom torpor.testing import StandIn\n"
        f"deployment = Deployment(name='d', model=Model(path='/', served_name='m'), gpu={gpu!r}, gpu_snapshot=False, "
        "plugins=(StandIn(),))\n"
    )
    app.write_text(lines)
    assert [one["what"] for one in json.loads(run(str(app), "--json").stdout)["warnings"]] == []
    app.write_text(f"import modal\n{lines}app = modal.App('d')\n")
    (warning,) = json.loads(run(str(app), "--json").stdout)["warnings"]
    assert (warning["level"], warning["what"]) == ("error", "Modal")
    assert repr(gpu) in warning["seen"]
    assert "Modal" in run(str(app)).stdout
