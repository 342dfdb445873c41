"""Compiled files keep their names when several processes publish them at once."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.plugins.local_engines import LocalEngine
from torpor.engine_patches.published_files import published_files

ELF = b"\x7fELF"
FIRST, SECOND = ELF + b"first", ELF + b"other"


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch) -> None:
    """The patch in this process, for one test."""
    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, getattr(os, name))
    published_files(()).apply()


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.usefixtures("patched")
@pytest.mark.parametrize("move", ["rename", "replace"])
def test_an_equal_program_keeps_the_first_file(tmp_path: Path, move: str) -> None:
    """The second file is gone, as after a rename; the name still belongs to the file that others have loaded."""
    first, second = write(tmp_path / "kernel.so", FIRST), write(tmp_path / "new.so", FIRST)
    inode = first.stat().st_ino
    getattr(os, move)(second, first)
    assert (first.stat().st_ino, list(tmp_path.iterdir())) == (inode, [first])


@pytest.mark.usefixtures("patched")
def test_another_program_gets_the_name_and_the_old_one_goes_on_beside_it(tmp_path: Path) -> None:
    """A cache that replaces a broken file works as before; a process that has loaded the old one still finds it."""
    first, second = write(tmp_path / "kernel.so", FIRST), write(tmp_path / "new.so", SECOND)
    with first.open("rb") as loaded:
        Path(second).replace(first)
        assert first.read_bytes() == SECOND
        name = Path(f"/proc/self/fd/{loaded.fileno()}").readlink()
    assert (name.parent, name.suffix, name.read_bytes()) == (tmp_path, ".replaced", FIRST)
    assert not second.exists()


@pytest.mark.usefixtures("patched")
def test_a_free_name_and_other_files_are_renamed_as_ever(tmp_path: Path) -> None:
    """Only a program over a program is special: text, folders, links and errors are as without the patch."""
    program = write(tmp_path / "a.so", FIRST)
    os.rename(program, tmp_path / "b.so")  # noqa: PTH104 - the patched function
    assert (tmp_path / "b.so").read_bytes() == FIRST
    os.rename(os.fsencode(tmp_path / "b.so"), os.fsencode(tmp_path / "c.so"))  # noqa: PTH104
    old, new = write(tmp_path / "old.json", b"{}"), write(tmp_path / "new.json", b"[]")
    inode = new.stat().st_ino
    os.replace(new, old)  # noqa: PTH105
    assert (old.read_bytes(), old.stat().st_ino) == (b"[]", inode)
    os.replace(tmp_path / "c.so", old)  # noqa: PTH105 - a program over a text
    assert old.read_bytes() == FIRST
    (tmp_path / "folder").mkdir()
    (tmp_path / "full").mkdir()
    write(tmp_path / "full" / "x", b"")
    with pytest.raises(OSError, match="not empty"):
        os.replace(tmp_path / "folder", tmp_path / "full")  # noqa: PTH105
    with pytest.raises(FileNotFoundError):
        os.rename(tmp_path / "none", old)  # noqa: PTH104
    os.link(old, tmp_path / "same")
    os.rename(old, tmp_path / "same")  # noqa: PTH104 - two names of one file: the kernel does nothing
    assert old.exists()


RACE = """
import ctypes, os, sys, time
from pathlib import Path
from torpor.launcher import apply_patches, published_files

folder, start, patches = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
apply_patches({"TORPOR_PATCHES": patches}, (published_files(()),))
content = Path(sys.argv[4]).read_bytes()
time.sleep(max(0.0, start - time.time()))
loaded = []
for number in range(40):
    new, name = folder / f"{os.getpid()}.{number}", folder / f"kernel{number}.so"
    new.write_bytes(content)
    os.replace(new, name)
    loaded.append(ctypes.CDLL(str(name)))
print("loaded", flush=True)
sys.stdin.read()
print(sum("kernel" in line and "(deleted)" in line for line in open("/proc/self/maps")))
"""
"""Publishes and loads forty files; its output's last line is how many mappings of them are deleted."""


def deleted_mappings(folder: Path, code: str, *arguments: str, python: str = sys.executable) -> list[int]:
    """Run a program in two processes at once, and count what each has mapped of deleted files when both are done."""
    paths = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path.endswith(("core", "plugins")))}
    racers = [
        subprocess.Popen(
            [python, "-c", code, str(folder), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **paths},
        )
        for _ in range(2)
    ]
    try:
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == "loaded\n"
        return [int(racer.communicate(timeout=60)[0]) for racer in racers]
    finally:
        for racer in racers:
            racer.kill()
            racer.wait(30)


@pytest.mark.fault("two ranks publish the same compiled files at once", area="kernel caches", outcome="held")
def test_two_processes_that_publish_the_same_files_keep_both_loaded(tmp_path: Path) -> None:
    """Without the patch one process maps deleted files, which no capture can hold."""
    library = importlib.util.find_spec("_posixshmem")  # any small shared library of this Python
    assert library is not None
    start = str(time.time() + 0.5)
    for patches, deleted in (("", False), ("-published-files", True)):
        folder = tmp_path / f"cache{patches}"
        folder.mkdir()
        assert (sum(deleted_mappings(folder, RACE, start, patches, str(library.origin))) > 0) is deleted


TRITON = r"""
import os, sys, time
from pathlib import Path
from torpor.launcher import apply_patches, published_files

apply_patches({"TORPOR_PATCHES": sys.argv[2]}, (published_files(()),))
os.environ["TRITON_CACHE_DIR"] = sys.argv[1]
from triton.runtime import build

source = "#include <Python.h>\nstatic struct PyModuleDef m = {PyModuleDef_HEAD_INIT, \"NAME\"};"
source += "PyMODINIT_FUNC PyInit_NAME(void) { return PyModule_Create(&m); }"
ready = Path(sys.argv[1]) / f"{os.getpid()}.ready"
ready.touch()
while len(list(ready.parent.glob("*.ready"))) < 2:
    time.sleep(0.005)
for number in range(3):
    name = f"kernel{number}"
    build.compile_module_from_src(source.replace("NAME", name), name, include_dirs=[])
print("loaded", flush=True)
sys.stdin.read()
print(sum("kernel" in line and "(deleted)" in line for line in open("/proc/self/maps")))
"""
"""Compiles and loads three modules as Triton does its launchers."""


@pytest.mark.slow
@pytest.mark.sglang
@pytest.mark.fault("two ranks compile the same Triton launcher on a cold cache", area="kernel caches", outcome="held")
def test_two_ranks_compile_the_same_triton_launcher_at_once(tmp_path: Path) -> None:
    """The real Triton with its real cache: both compile, both load, and no mapping is deleted."""
    python = LocalEngine(name="sglang", title="SGLang", version="0.5.23").find("0.5.23").python
    assert deleted_mappings(tmp_path, TRITON, "", python=str(python)) == [0, 0]
    assert len(list(tmp_path.glob("*/kernel*.so"))) == 3
    assert not list(tmp_path.glob("*/*.replaced"))
