"""A snapshot fits only while its model and its engine's code are unchanged."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

import pytest

from tests.snapshots.small_snapshot import small_snapshot
from torpor import Deployment, Lifecycle, Model, Recipe, SnapshotError
from torpor.app_file import load_app
from torpor.platforms.local.snapshots import check_before_start
from torpor.snapshots.before_capture import outside_files as outside
from torpor.snapshots.before_capture.outside_files import code_of, model_files, noted, plugin_files
from torpor.snapshots.fit import changed_files
from torpor.snapshots.store.outside import Noted, difference, outside_files
from torpor.testing import StandIn

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, kw_only=True)
class Scripted(StandIn):
    """An engine that is a script with its own environment."""

    plugin_name: ClassVar[str] = "scripted"
    script: str = ""

    @property
    def engine_python(self) -> str:
        return str(Path(self.script).parents[1] / "venv" / "bin" / "python")

    def engine_argv(self, deployment: Deployment, recipe: Recipe) -> tuple[str, ...]:
        return (self.engine_python, self.script)


@dataclass(frozen=True, kw_only=True)
class World:
    """A model, an engine and a snapshot of it."""

    root: Path
    folder: Path

    def misfits(self, *, full: bool = False) -> str:
        """What no longer fits."""
        return "\n".join(changed_files(self.folder, full=full))


def _recipe(deployment: Deployment) -> Recipe:
    return Lifecycle(deployment).recipe()


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Files of an engine and a model, noted in a snapshot."""
    site = tmp_path / "venv" / "lib" / "python3.12" / "site-packages"
    for name, content in {
        "model/model.safetensors": "weights",
        "model/config.json": "{}",
        "engine/serve.py": "print(1)",
        "engine/beside.py": "x = 1",
        "engine/package/__init__.py": "",
        "engine/package/deep/code.py": "y = 1",
        str(site.relative_to(tmp_path) / "scripted/__init__.py"): "z = 1",
        str(site.relative_to(tmp_path) / "torch-2.9.dist-info/RECORD"): "torch/__init__.py,sha256=a,1",
        "open/library.so": "code",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    engine = Scripted(script=str(tmp_path / "engine" / "serve.py"))
    model = Model(path=str(tmp_path / "model"), served_name="m")
    deployment = Deployment(name="d", model=model, plugins=(engine,))
    recipe = _recipe(deployment)
    folders, files = code_of(deployment, recipe)
    library = tmp_path / "open" / "library.so"
    facts = library.stat()
    listed = noted(
        {str(library): (facts.st_size, facts.st_mtime_ns)}, [*files, *model_files(deployment, recipe)], folders
    )
    return World(root=tmp_path, folder=small_snapshot(tmp_path / "kept", outside=listed))


def rewrite(path: Path) -> None:
    """Write other content of the same size."""
    path.write_text(path.read_text()[::-1].swapcase() if len(path.read_text()) > 2 else "[]")


REPLACED = [
    "model/model.safetensors",
    "model/config.json",
    "engine/serve.py",
    "engine/beside.py",
    "engine/package/deep/code.py",
    "venv/lib/python3.12/site-packages/scripted/__init__.py",
    "venv/lib/python3.12/site-packages/torch-2.9.dist-info/RECORD",
    "open/library.so",
]


@pytest.mark.fault(
    "the model or the engine's code is replaced after a capture", area="a snapshot's identity", outcome="refused"
)
@pytest.mark.parametrize("name", REPLACED)
def test_a_replaced_file_does_not_fit(world: World, name: str) -> None:
    """Even with the same size: the model behind a path, scripts, packages, an open library."""
    assert world.misfits() == world.misfits(full=True) == ""
    rewrite(world.root / name)
    assert str((world.root / name).parent).removesuffix("/deep") in world.misfits()


@pytest.mark.fault("weights change and keep size and time", area="a snapshot's identity", outcome="refused")
@pytest.mark.parametrize("name", REPLACED)
def test_a_file_replaced_with_its_old_time_is_found_by_a_full_verification(world: World, name: str) -> None:
    """A quick one compares only sizes and times."""
    path = world.root / name
    facts = path.stat()
    rewrite(path)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert world.misfits() == ""
    assert str(path.parent).removesuffix("/deep") in world.misfits(full=True)


@pytest.mark.fault("files were installed again with other times", area="a snapshot's identity", outcome="held")
@pytest.mark.parametrize("name", REPLACED)
def test_content_counts_where_only_times_differ(world: World, name: str) -> None:
    """On another machine, or after the same files were installed again."""
    os.utime(world.root / name, (1, 1))
    assert world.misfits() == world.misfits(full=True) == ""


CHANGES: dict[str, Callable[[Path], object]] = {
    "a module more": lambda root: (root / "engine/package/more.py").write_text(""),
    "a module less": lambda root: (root / "engine/package/deep/code.py").unlink(),
    "a package less": lambda root: shutil.rmtree(root / "engine/package"),
    "a weight less": lambda root: (root / "model/model.safetensors").unlink(),
    "a list of files less": lambda root: shutil.rmtree(root / "venv/lib/python3.12/site-packages/torch-2.9.dist-info"),
}


@pytest.mark.fault(
    "a file of the engine's code or of the model is gone", area="a snapshot's identity", outcome="refused"
)
@pytest.mark.parametrize("change", CHANGES)
def test_a_missing_or_new_file_does_not_fit(world: World, change: str) -> None:
    """Whatever its time is."""
    CHANGES[change](world.root)
    assert world.misfits()


def test_byte_code_does_not_count(world: World) -> None:
    """The first import writes it."""
    cache = world.root / "engine" / "package" / "__pycache__"
    cache.mkdir()
    (cache / "code.cpython-312.pyc").write_bytes(b"x")
    assert world.misfits(full=True) == ""


def test_a_large_file_is_read_in_pieces(tmp_path: Path) -> None:
    """The pieces are spread over the file, with its first and last bytes."""
    file = tmp_path / "large"
    with file.open("wb") as stream:
        stream.truncate(40 << 20)
    facts = file.stat()
    entry = cast("list[object]", noted({str(file): (facts.st_size, facts.st_mtime_ns)}, [], [])[str(file)])
    large = Noted(str(file), facts.st_size, 1, str(entry[2]), opened=True)
    assert difference(large, full=False) == ""
    for at in (0, (40 << 20) - 1):
        with file.open("r+b") as stream:
            stream.seek(at)
            stream.write(b"x")
        assert "has changed since" in difference(large, full=False)
        with file.open("r+b") as stream:
            stream.seek(at)
            stream.write(b"\0")


def test_folders_are_not_listed_as_files(world: World) -> None:
    """`outside_files` gives only files."""
    files = outside_files(world.folder)
    assert str(world.root / "model" / "model.safetensors") in files
    assert all(Path(name).is_file() for name in files)


def test_notes_in_a_models_folder_do_not_count(tmp_path: Path) -> None:
    """A log, a README or a licence may change; weights, configurations and code may not."""
    model = tmp_path / "model"
    model.mkdir()
    for name in ("README.md", "LICENSE", "server.log", "x.lock"):
        (model / name).write_text("notes")
    for name in ("config.json", "model.safetensors", "code.py", "tokenizer.model", "consolidated.00.pth"):
        (model / name).write_text("model")
    (model / "weights").write_bytes(bytes(2 << 20))
    deployment = Deployment(name="d", model=Model(path=str(model)), plugins=(StandIn(),))
    found = {file.name for file in model_files(deployment, Lifecycle(deployment).recipe())}
    assert found == {"config.json", "model.safetensors", "code.py", "tokenizer.model", "consolidated.00.pth", "weights"}


@pytest.mark.parametrize("name", ["weights", "README.md", "model.tmp"])
def test_a_model_that_is_one_file_counts_whatever_its_name(tmp_path: Path, name: str) -> None:
    """Suffixes matter only in a folder."""
    (tmp_path / name).write_text("weights")
    deployment = Deployment(name="d", model=Model(path=str(tmp_path / name), served_name="m"), plugins=(StandIn(),))
    assert list(model_files(deployment, _recipe(deployment))) == [tmp_path / name]


def test_a_relative_model_path_gives_absolute_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A restore may run in another working directory than the capture."""
    (tmp_path / "model.safetensors").write_text("weights")
    monkeypatch.chdir(tmp_path)
    deployment = of_folder(".")
    assert list(model_files(deployment, _recipe(deployment))) == [tmp_path / "model.safetensors"]


def of_folder(folder: Path | str) -> Deployment:
    """A deployment whose model is that folder."""
    return Deployment(name="d", model=Model(path=str(folder), served_name="m"), plugins=(StandIn(),))


@pytest.mark.fault("a model's folder holds pipes, sockets and devices", area="a snapshot's identity", outcome="held")
def test_only_regular_files_are_part_of_a_model(tmp_path: Path) -> None:
    """Reading others might never end. Links to them, and circular links, do not count either."""
    os.mkfifo(tmp_path / "pipe.bin")
    (tmp_path / "random.bin").symlink_to("/dev/urandom")
    (tmp_path / "circle.bin").symlink_to("circle.bin")
    (tmp_path / "up").symlink_to(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(tmp_path / "door.bin"))
        found = list(model_files(of_folder(tmp_path), _recipe(of_folder(tmp_path))))
    assert found == [tmp_path / "config.json"]


@pytest.mark.fault("the model's path is a folder of anything", area="a snapshot's identity", outcome="refused")
def test_a_folder_with_more_than_a_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By number of files, time and bytes. The error names folder and field, and no file is read before."""
    for number in range(6):
        (tmp_path / f"{number}.bin").write_bytes(bytes(100))
    deployment = of_folder(tmp_path)
    recipe = _recipe(deployment)
    with monkeypatch.context() as small:
        small.setattr(outside, "_MOST_MODEL_ENTRIES", 5)
        with pytest.raises(SnapshotError, match=rf"{tmp_path} holds more than 5 files and folders.*Model\.path"):
            list(model_files(deployment, recipe))
        with pytest.raises(SnapshotError, match="holds more than 5 files and folders"):
            check_before_start(Lifecycle(deployment), tmp_path / "kept")
    with monkeypatch.context() as small:
        small.setattr(outside, "_MODEL_TIMEOUT_S", -1.0)
        with pytest.raises(SnapshotError, match=rf"{tmp_path} could not be listed within -1 s.*Model\.path"):
            list(model_files(deployment, recipe))
    with monkeypatch.context() as small:
        small.setattr(outside, "_MOST_BYTES", 599)
        with pytest.raises(SnapshotError, match=r"The 6 files .* too many .*Model\.path"):
            noted({}, model_files(deployment, recipe), [])
    assert len(noted({}, model_files(deployment, recipe), [])) == 6


@pytest.mark.slow
@pytest.mark.fault("the model's path is the whole machine", area="a snapshot's identity", outcome="refused")
def test_the_root_folder_is_refused_as_a_model() -> None:
    """Model(path="/") by mistake: an error within seconds, and no file of the kernel's file systems is read."""
    began, seen = time.monotonic(), list[str]()
    with contextlib.suppress(SnapshotError):
        seen.extend(str(file) for file in model_files(of_folder("/"), _recipe(of_folder("/"))))
    assert time.monotonic() - began < 65
    assert [name for name in seen if name.startswith(("/proc/", "/sys/", "/dev/"))] == []


@pytest.mark.fault(
    "a plugin in a file beside the app is replaced after a capture", area="a snapshot's identity", outcome="refused"
)
def test_a_plugin_that_is_one_file_is_noted(tmp_path: Path) -> None:
    """As `from my_engine import MyEngine` in an app file imports it."""
    neighbour = tmp_path / "one_file_engine.py"
    neighbour.write_text("from torpor.testing import StandIn\n\n\nclass Mine(StandIn):\n    pass\n")
    app = tmp_path / "one_file_app.py"
    app.write_text(
        "from one_file_engine import Mine\nfrom torpor import Deployment, Model\n\n"
        "deployment = Deployment(name='d', model=Model(path='/m', served_name='m'), plugins=(Mine(),))\n"
    )
    assert list(plugin_files(load_app(str(app)).deployment)) == [neighbour]
