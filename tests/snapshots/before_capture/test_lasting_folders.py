"""Folders that do not last, and disks that cannot hold a snapshot, are found before the minutes of a cold start."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typing_extensions import override

from tests import ROOT
from tests.command_line import torpor
from torpor import ConfigurationError, Deployment, ImagePatch, Lifecycle, Model, Plugin, SnapshotError, hookimpl
from torpor.build_steps.relocation import relocate
from torpor.platforms.local.snapshots import check_before_start
from torpor.snapshots.before_capture.external_resources import OpenFiles, check_open_files
from torpor.snapshots.before_capture.lasting_folders import (
    check_lasting,
    exempted_folders,
    kept_folders,
    place_findings,
    temporary_folder_of,
)
from torpor.snapshots.store.manifest import MANIFEST
from torpor.snapshots.store.paths import cache_root
from torpor.snapshots.targets import check_writable
from torpor.testing import StandIn

if TYPE_CHECKING:
    from torpor.recipe import Recipe
    from torpor.values.findings import Finding

LASTS = "/srv/no-such-place"
"""Nothing is there, and it lies in no temporary folder."""


@dataclass(frozen=True, kw_only=True)
class Caches(Plugin):
    """An engine's kernel caches on the image's own disk."""

    plugin_name = "caches"
    env: tuple[tuple[str, str], ...] = field(default=(("KERNELS", "/opt/torpor/kernels"),))

    @hookimpl
    @override
    def prepare_image(self, deployment: Deployment) -> ImagePatch:
        return ImagePatch(env=dict(self.env))


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache root that lasts, and no temporary folder unless a test names one."""
    monkeypatch.setenv("TORPOR_CACHE", f"{LASTS}/cache")
    for name in ("TMPDIR", "TEMP", "TMP", "XDG_RUNTIME_DIR", "TORPOR_LASTING_FOLDERS", "PYTHONPATH", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)


def deployment(*plugins: Plugin, model: str = f"{LASTS}/model") -> Deployment:
    return Deployment(name="d", model=Model(path=model, served_name="m"), plugins=(*plugins, StandIn()))


def here(made: Deployment) -> Recipe:
    return relocate(Lifecycle(made).recipe(), cache_root(), made.name)


def findings(made: Deployment) -> tuple[Finding, ...]:
    """Findings, without those about this checkout and its interpreter."""
    mine = (str(ROOT), sys.prefix, sys.base_prefix)
    return tuple(one for one in place_findings(made, here(made)) if not any(f" {own}" in one.seen for own in mine))


@pytest.mark.parametrize(
    ("path", "folder"),
    [
        ("/tmp/x/y", "/tmp"),
        ("/var/tmp/x", "/var/tmp"),
        ("/run/user/1000/x", "/run"),
        ("/dev/shm/x", "/dev/shm"),
        ("/tmpfs/x", None),
        ("/srv/tmp/x", None),
        ("/", None),
    ],
)
def test_temporary_is_what_the_system_empties(path: str, folder: str | None) -> None:
    """By whole parts of the path."""
    assert temporary_folder_of(Path(path)) == (Path(folder) if folder else None)


@pytest.mark.parametrize("variable", ["TMPDIR", "TEMP", "TMP", "XDG_RUNTIME_DIR"])
def test_temporary_is_what_a_variable_names(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """The user's own temporary folder, wherever it is."""
    monkeypatch.setenv(variable, f"{LASTS}/scratch")
    assert temporary_folder_of(Path(f"{LASTS}/scratch/x")) == Path(f"{LASTS}/scratch")
    assert temporary_folder_of(Path(f"{LASTS}/other")) is None


def test_a_link_to_a_temporary_folder_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel names files by their real paths."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "emptied"))
    (tmp_path / "emptied").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "emptied")
    assert temporary_folder_of(tmp_path / "link" / "x") is not None


@pytest.mark.parametrize("folder", ["/tmp/torpor", "/var/tmp/torpor", "/run/torpor", "/dev/shm/torpor"])
@pytest.mark.fault("the cache root lies in a temporary folder", area="capture", outcome="refused")
def test_a_cache_root_that_does_not_last_is_refused_before_the_start(
    monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    """If the engine has files in it. The message names variable, folder and reason."""
    monkeypatch.setenv("TORPOR_CACHE", folder)
    made = deployment(Caches())
    parent = Path(folder).parent
    with pytest.raises(
        SnapshotError, match=rf"(?s)nothing was started.*TORPOR_CACHE \(KERNELS .*\) is {folder}, in {parent}, which "
    ):
        check_lasting(made, here(made))


def test_a_cache_root_where_the_engine_has_no_files_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its snapshots vanish with the folder, but a capture works."""
    monkeypatch.setenv("TORPOR_CACHE", "/tmp/torpor")
    (found,) = findings(deployment())
    assert (found.level, found.what) == ("warning", "folders")
    assert found.seen.startswith("TORPOR_CACHE is /tmp/torpor, in /tmp, which a reboot or a timer empties")
    check_lasting(deployment(), here(deployment()))


@pytest.mark.parametrize(
    ("value", "refused"),
    [
        ("/tmp/kernels", True),
        ("dir=/var/tmp/kernels", True),
        (f"{LASTS}/a:/tmp/b", True),
        (f"{LASTS}/kernels", False),
        ("http://tmp/x", False),
        ("some/tmp/x", False),
    ],
)
def test_a_path_in_the_engines_environment_counts(value: str, *, refused: bool) -> None:
    """Alone, behind `=`, or in a list."""
    made = deployment(Caches(env=(("KERNELS", value),)))
    assert [one.level for one in findings(made)] == ["error"] * refused


def test_an_exempted_folder_is_neither_refused_nor_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the start and at the capture. /dev/shm cannot be exempted."""
    monkeypatch.setenv("TORPOR_CACHE", "/tmp/torpor")
    monkeypatch.setenv("TORPOR_LASTING_FOLDERS", f"{LASTS}:/tmp/torpor")
    assert findings(deployment(Caches())) == ()
    assert Path("/tmp/torpor") in kept_folders(deployment(), here(deployment()))
    monkeypatch.setenv("TORPOR_CACHE", "/dev/shm/torpor")
    monkeypatch.setenv("TORPOR_LASTING_FOLDERS", "/dev/shm")
    assert "error" in {one.level for one in findings(deployment(Caches()))}


def test_a_relative_exemption_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command would find another folder."""
    monkeypatch.setenv("TORPOR_LASTING_FOLDERS", "/srv:mine")
    with pytest.raises(ConfigurationError, match=r"TORPOR_LASTING_FOLDERS holds 'mine'; allowed are absolute"):
        exempted_folders()


@pytest.mark.parametrize(("variable", "what"), [("PYTHONPATH", "an entry of PYTHONPATH"), ("", "Model.path")])
def test_what_the_user_put_in_a_temporary_folder_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, variable: str, what: str
) -> None:
    """A model or an environment: a capture works, but a reboot may delete them. In /dev/shm the engine does not find them."""
    for folder, level in (("/tmp/mine", "warning"), ("/dev/shm/mine", "error")):
        if variable:
            monkeypatch.setenv(variable, folder)
        (found,) = findings(deployment(model=f"{LASTS}/model" if variable else folder))
        assert (found.level, found.seen.startswith(f"{what} is {folder}, in ")) == (level, True)


def test_an_engines_program_in_a_temporary_folder_is_refused() -> None:
    """Each of its processes maps it."""

    @dataclass(frozen=True, kw_only=True)
    class Compiled(StandIn):
        @override
        def engine_argv(self, deployment: Deployment, recipe: Recipe) -> tuple[str, ...]:
            return ("/tmp/build/engine", "--port", "1")

    made = Deployment(name="d", model=Model(path=f"{LASTS}/m", served_name="m"), plugins=(Compiled(),))
    with pytest.raises(SnapshotError, match=r"the engine's program is /tmp/build/engine, in /tmp"):
        check_lasting(made, here(made))


def test_a_capture_names_the_temporary_folder_and_the_exemption() -> None:
    """For files that the deployment does not name."""
    with pytest.raises(SnapshotError, match=r"(?s)  - /tmp/x/lock\n.*TORPOR_LASTING_FOLDERS"):
        check_open_files(OpenFiles(lasting={}, vanishing=("/tmp/x/lock",), io_uring=False))


def test_a_capture_says_where_a_path_leads_when_its_name_does_not(tmp_path: Path) -> None:
    """A link to a temporary folder. For a deleted file the path is enough."""
    (tmp_path / "link").symlink_to("/var/tmp")
    lost, gone = str(tmp_path / "link" / "lock"), "/tmp/x/lock (deleted)"
    with pytest.raises(SnapshotError) as refused:
        check_open_files(OpenFiles(lasting={}, vanishing=(lost, gone), io_uring=False))
    assert f"  - {gone}\n" in str(refused.value)
    assert f"  - {lost}" in str(refused.value)


@pytest.mark.fault("the cache root given to LocalServer lies in a temporary folder", area="capture", outcome="refused")
def test_a_cache_root_given_in_the_program_counts_instead_of_the_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is refused though the variable's folder lasts, and accepted though that one does not."""
    made, given, lasts = deployment(Caches()), Path("/tmp/given"), Path(LASTS) / "given"
    with pytest.raises(SnapshotError, match=r"\(root\) \(KERNELS .*\) is /tmp/given, in /tmp, which .*give a folder"):
        check_lasting(made, relocate(Lifecycle(made).recipe(), given, made.name), given)
    monkeypatch.setenv("TORPOR_CACHE", "/tmp/torpor")
    check_lasting(made, relocate(Lifecycle(made).recipe(), lasts, made.name), lasts)


# --- the target -------------------------------------------------------------------------------------------------------


@pytest.mark.fault("the path of a snapshot is longer than Linux takes", area="capture", outcome="refused")
def test_a_path_that_is_too_long_as_a_whole_is_refused_before_the_start(tmp_path: Path) -> None:
    """Though each name in it is short. The message shortens it."""
    with pytest.raises(SnapshotError, match=r"the path /.*\.\.\. has \d+ bytes, and 3584 are allowed") as refused:
        check_before_start(Lifecycle(deployment()), tmp_path / "/".join("x" * 3000))
    assert len(str(refused.value)) < 300


def test_a_trial_leaves_nothing_behind(tmp_path: Path) -> None:
    """Beside the target, whose parents need not exist."""
    check_writable(tmp_path / "a" / "b" / "kept")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault("the snapshot's disk is full", area="capture", outcome="refused")
def test_too_little_room_is_found_before_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Less than any snapshot needs."""
    real = os.statvfs(tmp_path)
    facts = os.statvfs_result([real.f_bsize, real.f_frsize, real.f_blocks, 100, 100, *list(real)[5:10]])
    monkeypatch.setattr(os, "statvfs", lambda _: facts)
    with pytest.raises(SnapshotError, match=r"has 0\.00 GB free; a snapshot takes 0\.07 GB \(at least\)"):
        check_writable(tmp_path / "kept")


@pytest.mark.fault("the snapshot's disk is mounted read-only", area="capture", outcome="refused")
def test_a_read_only_disk_is_found_before_the_start(tmp_path: Path) -> None:
    """On a mount of its own, if this user may mount."""
    disk = tmp_path / "disk"
    disk.mkdir()
    code = (
        "from pathlib import Path; from torpor.snapshots.targets import check_target\n"
        "from torpor.snapshots.targets import check_writable\n"
        f'folder = Path("{disk}/kept")\ncheck_target(folder); check_writable(folder)'
    )
    mount = f"mount -t tmpfs -o ro none {disk} || exit 77; exec {sys.executable} -c '{code}'"
    ran = subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, text=True, check=False)
    if ran.returncode == 77 or "unshare:" in ran.stderr:
        pytest.skip(f"this user cannot make a mount: {ran.stderr.strip()[-200:]}")
    assert f"{disk}/kept cannot be made: you may not write to {disk}" in ran.stderr


@pytest.mark.fault("the snapshot's disk keeps no owner and mode (FAT)", area="capture", outcome="refused")
def test_a_disk_that_keeps_no_owner_is_found_before_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a disk gives all files to one user, so others could read the snapshot."""
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(SnapshotError, match=r"does not keep the owner and mode of a folder .*ext4"):
        check_writable(tmp_path / "kept")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", ["{file}/kept", "{file}/a/kept"])
def test_a_target_below_a_file_is_found_before_the_start(tmp_path: Path, folder: str) -> None:
    """There no folder can be made."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(SnapshotError, match=r"cannot be made: .*file is not a folder"):
        check_before_start(Lifecycle(deployment()), Path(folder.format(file=tmp_path / "file")))


@pytest.mark.slow
def test_a_command_that_would_capture_starts_nothing(tmp_path: Path) -> None:
    """It ends with the reason before the engine starts, and even before CRIU is looked for."""
    app = tmp_path / "app.py"
    app.write_text(
        "from tests.snapshots.before_capture.test_lasting_folders import Caches\nfrom torpor import Deployment, Model\n"
        "from torpor.testing import StandIn\ndeployment = Deployment(name='d', model=Model(path='/', served_name='m'),"
        " plugins=(Caches(), StandIn()))\n"
    )
    env = {**os.environ, "TORPOR_CACHE": str(Path("/tmp") / f"lasting-{os.getpid()}"), "TORPOR_LASTING_FOLDERS": ""}
    try:
        for words in (
            ("snapshot", "create", str(app), str(tmp_path / "kept")),
            ("up", str(app), "--snapshot", str(tmp_path / "kept")),
            ("up", str(app), "--backend", "criu"),
        ):
            ran = torpor(*words, env=env)
            assert ran.returncode != 0
            assert "which a reboot or a timer empties" in " ".join(ran.stderr.split()), ran.stderr
            assert "ready" not in ran.stderr
    finally:
        shutil.rmtree(env["TORPOR_CACHE"], ignore_errors=True)
    assert not (tmp_path / "kept" / MANIFEST).exists()
