"""Unusable app files, and app files that do more than define a deployment: an error names file and line."""

from __future__ import annotations

import builtins
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from torpor import app_file as apps
from torpor import app_modules
from torpor.app_file import load_app
from torpor.app_modules import folder_of
from torpor.errors import ConfigurationError

GOOD = (
    "from torpor import Deployment, Model\nfrom torpor.testing import StandIn\n"
    "deployment = Deployment(name='d', model=Model(path='/', served_name='m'), plugins=(StandIn(),))\n"
)
STRANGE: dict[str, tuple[bytes, str]] = {
    "exits with 0": (b"import sys\n\nsys.exit(0)\n", "{file}:3: the app file ended its own import by SystemExit(0)."),
    "exits with a text": (
        b"raise SystemExit('no GPU')\n",
        "{file}:1: the app file ended its own import by SystemExit(no GPU).",
    ),
    "interrupts itself": (
        b"\nraise KeyboardInterrupt\n",
        "{file}:2: the app file ended its own import by KeyboardInterrupt.",
    ),
    "raises a BaseException": (
        b"class X(BaseException): ...\ndef f(): raise X('boo')\nf()\n",
        "{file}:2: the app file ended its own import by X(boo).",
    ),
    "a syntax error": (b"a = 1\nx = (\n", "{file}:2: SyntaxError: '(' was never closed"),
    "binary": (b"\x7fELF\x00\x01\xff", "{file}: SyntaxError: source code string cannot contain null bytes"),
    "not UTF-8": (b"x = '\xe9'\n", "{file}:1: SyntaxError: (unicode error) 'utf-8' codec can't decode byte"),
    "empty": (b"", "{file} holds no deployment. Assign the one"),
    "a wrong deployment": (b"deployment = {}\n", "{file} holds no deployment: `deployment` in it is of type dict. "),
    "imports what is missing": (
        b"import nowhere_at_all\n",
        "{file}:1: the module 'nowhere_at_all' is not installed in ",
    ),
    "endless recursion": (b"def f(): f()\nf()\n", "{file}:1: RecursionError: "),
    "too many brackets": (b"(" * 10_000, "{file}:1: SyntaxError: too many nested parentheses"),
}


@pytest.fixture(autouse=True)
def _own_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the imported modules and the folders that were added to the path."""
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.mark.fault("an app file is none, or ends its own import", area="app file", outcome="refused")
@pytest.mark.parametrize("kind", list(STRANGE))
def test_a_strange_app_file_is_an_error_that_names_file_and_line(tmp_path: Path, kind: str) -> None:
    """Whatever the file raises. If it exits, the command neither ends nor succeeds."""
    content, said = STRANGE[kind]
    file = tmp_path / "strange_app.py"
    file.write_bytes(content)
    with pytest.raises(ConfigurationError) as refused:
        load_app(str(file))
    assert str(refused.value).startswith(said.format(file=file))
    assert "\n" not in str(refused.value)


@pytest.mark.fault("an app file is edited and run again within a second", area="app file", outcome="held")
def test_an_app_file_is_read_anew_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when size and whole seconds of its time stay the same; and no byte code is left beside it."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    app = tmp_path / "app.py"
    for name in ("d", "e"):
        app.write_text(GOOD.replace("name='d'", f"name='{name}'"))
        os.utime(app, (1_700_000_000, 1_700_000_000))
        assert load_app(str(app)).deployment.name == name
    assert not (tmp_path / "__pycache__").exists()


@pytest.mark.fault("an app file prints while it is imported", area="app file", outcome="held")
def test_what_an_app_file_prints_goes_to_standard_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """From Python, the system or a child process. Afterwards standard output works as before."""
    file = tmp_path / "loud_app.py"
    noise = "import os, subprocess\nprint('by Python')\nos.write(1, b'by the system')\nsubprocess.run(['echo', 'by a child'])\n"
    file.write_text(noise + GOOD)
    assert load_app(str(file)).deployment.name == "d"
    print("result")
    shown = capfd.readouterr()
    assert shown.out == "result\n"
    assert all(text in shown.err for text in ("by Python", "by the system", "by a child"))


@pytest.mark.slow
@pytest.mark.fault("an app file forks while it is imported", area="app file", outcome="held")
def test_a_command_runs_once_even_if_its_app_forks(tmp_path: Path) -> None:
    """It prints one complete plan."""
    file = tmp_path / "forking_app.py"
    file.write_text(f"import os\nos.fork()\n{GOOD}")
    argv = [sys.executable, "-m", "torpor.cli", "plan", str(file), "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout)["deployment"] == "d"


@pytest.mark.fault("an app file's import does not end", area="app file", outcome="held")
def test_a_slow_import_is_reported_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The user sees what it waits for; the import continues."""
    monkeypatch.setattr(apps, "_SLOW_S", 0.05)
    file = tmp_path / "slow_app.py"
    file.write_text(f"import time\n\ntime.sleep(0.3)\n{GOOD}")
    began = time.monotonic()
    assert load_app(str(file)).deployment.name == "d"
    assert time.monotonic() - began >= 0.3
    said = capfd.readouterr().err
    assert said == f"{file}:3: the app file is still being imported after 0.05 s; Ctrl-C ends it\n"


def test_an_unreadable_path_is_reported_with_its_reason(tmp_path: Path) -> None:
    """A loop of links, an impossible file name, a path below a file, a pipe."""
    (tmp_path / "loop.py").symlink_to("loop.py")
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe.py")
    for name, said in {
        "loop.py": "cannot be read: Too many levels of symbolic links.",
        "a" * 300 + ".py": "cannot be read: File name too long.",
        "x\0y.py": "cannot be read: embedded null byte.",
        "file/app.py": "There is no app file ",
        "pipe.py": "is not a regular file.",
    }.items():
        with pytest.raises(ConfigurationError) as refused:
            load_app(f"{tmp_path}/{name}")
        assert said in str(refused.value)


APP_BESIDE = (
    "from torpor import Deployment, Model\nfrom torpor.testing import StandIn\nfrom common import NAME\n"
    "def late():\n    from lazy import NAME\n    return NAME\n"
    "deployment = Deployment(name=NAME, model=Model(path='/', served_name='m'), plugins=(StandIn(),))\n"
)


def write_beside(folder: Path, app: str, name: str) -> str:
    """An app file and the modules that it imports, in a folder of their own."""
    folder.mkdir(exist_ok=True)
    (folder / "common.py").write_text(f"NAME = {name!r}\nfrom inner.part import PART\n")
    (folder / "lazy.py").write_text("from common import NAME\n")
    (folder / "inner").mkdir(exist_ok=True)
    (folder / "inner" / "part.py").write_text(f"PART = {name!r}\n")
    file = folder / app
    file.write_text(APP_BESIDE)
    return str(file)


@pytest.mark.parametrize("second", ["app.py", "other.py"])
def test_each_folder_has_its_own_modules(tmp_path: Path, second: str) -> None:
    """Two apps import a `common.py` beside them: each gets its own, at once and in a function that runs later."""
    first = load_app(write_beside(tmp_path / "a", "app.py", "one"))
    other = load_app(write_beside(tmp_path / "b", second, "two"))
    again = load_app(str(first.file))
    assert [app.deployment.name for app in (first, other, again)] == ["one", "two", "one"]
    assert vars(sys.modules["inner.part"])["PART"] == "one"
    calls = [vars(folder_of(app.file).import_file(app.file))["late"] for app in (first, other)]
    assert [call() for call in (*calls, *calls)] == ["one", "two", "one", "two"]


def test_threads_that_import_in_two_folders_do_not_mix(tmp_path: Path) -> None:
    """100 late imports in each of two folders at the same time: each thread gets its folder's."""
    files = [write_beside(tmp_path / name, "app.py", name) for name in ("a", "b")]
    calls = [vars(folder_of(load_app(file).file).import_file(Path(file)))["late"] for file in files]
    for file in files:
        folder_of(Path(file)).forget()

    def often(number: int) -> set[object]:
        return {calls[number]() for _ in range(100)}

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(often, [0, 1, 0, 1]))
    assert found == [{"a"}, {"b"}, {"a"}, {"b"}]


def test_an_import_that_never_ends_is_named_by_one_in_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread holds the modules of its folder; others wait for a while only."""
    monkeypatch.setattr(app_modules, "WAIT_S", 0.05)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    began, ends = threading.Event(), threading.Event()
    monkeypatch.setattr(builtins, "torpor_test_events", (began, ends), raising=False)
    hanging, other = tmp_path / "one" / "app.py", tmp_path / "two" / "app.py"
    hanging.write_text("began, ends = torpor_test_events\nbegan.set()\nends.wait(30)\n")
    other.write_text("")
    thread = threading.Thread(target=folder_of(hanging).import_file, args=(hanging,))
    thread.start()
    try:
        assert began.wait(30)
        with pytest.raises(ImportError, match=f"waited 0.05 s for one in {hanging.parent}, which has not ended"):
            folder_of(other).import_file(other)
    finally:
        ends.set()
        thread.join()
    folder_of(other).import_file(other)


def test_an_app_file_with_the_name_of_a_library_does_not_replace_it_for_others(tmp_path: Path) -> None:
    """While another folder is active the library is there again."""
    import colorsys as library

    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "colorsys.py").write_text(GOOD)
    load_app(str(tmp_path / "a" / "colorsys.py"))
    assert sys.modules["colorsys"] is not library
    load_app(write_beside(tmp_path / "b", "app.py", "two"))
    assert sys.modules["colorsys"] is library


def test_an_app_that_imports_another_app_in_another_folder_goes_on_in_its_own(tmp_path: Path) -> None:
    """One thread leads from folder to folder and back."""
    other = write_beside(tmp_path / "b", "app.py", "two")
    file = write_beside(tmp_path / "a", "first.py", "one")
    text = (
        f"from torpor.app_file import load_app\nother = load_app({other!r})\nimport lazy\nassert lazy.NAME == 'one'\n"
    )
    Path(file).write_text(text + APP_BESIDE)
    assert load_app(file).deployment.name == "one"
