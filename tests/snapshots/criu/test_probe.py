"""`torpor.snapshots.criu.probe`: the real trial, its remembered success, and the reasons when snapshots do not work."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.snapshots.conftest import MODES
from torpor.snapshots.criu import probe
from torpor.snapshots.criu.probe import Reason, available, usable_mode
from torpor.snapshots.criu.program import PREFIX_VARIABLE
from torpor.snapshots.sandbox.pid1 import StepError

if TYPE_CHECKING:
    from torpor.snapshots.criu.program import Criu
    from torpor.snapshots.store.manifest import Mode

ASK = """
import json, os, sys
from pathlib import Path
from torpor.snapshots import criu
from torpor.snapshots.criu.probe import available
if "hidden" in sys.argv:
    os.environ.update(PATH="/nowhere", TORPOR_CRIU_PREFIX="/nowhere")
    criu._SYSTEM_FOLDERS = ()
reasons = available(sys.argv[1], cache=Path(sys.argv[2]))
print(json.dumps([[reason.code, reason.seen, reason.cure, reason.tried] for reason in reasons]))
"""
FILTER = Path(__file__).with_name("filter_program.py")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can take things away from a process")


def prefix_of(criu: Criu) -> Path:
    """The prefix of the CRIU under test; any folder for a system's CRIU."""
    return criu.program.parents[3]


def ask_behind(setup: str, criu: Criu, cache: Path, mode: Mode, *more: str) -> list[Reason]:
    """Probe in a process that a shell command prepares (`"$@"` is the probe); `hidden`: without any CRIU."""
    argv = ["sh", "-c", setup, "sh", sys.executable, "-c", ASK, mode, str(cache), *more]
    env = {**os.environ, PREFIX_VARIABLE: str(prefix_of(criu))}
    result = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr
    return [
        Reason(code=code, seen=seen, cure=cure, tried=tried) for code, seen, cure, tried in json.loads(result.stdout)
    ]


@pytest.mark.criu
@pytest.mark.alone
def test_a_real_dump_and_restore_decides_and_a_success_is_remembered(mode: Mode, criu: Criu, tmp_path: Path) -> None:
    """Less than 1.5 s, then less than 5 ms; no other file stays."""
    started = time.perf_counter()
    assert available(mode, cache=tmp_path / "cache", prefix=prefix_of(criu)) == ()
    assert time.perf_counter() - started < 1.5
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        assert available(mode, cache=tmp_path / "cache", prefix=prefix_of(criu)) == ()
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.005
    names = {file.name.partition("-")[0] for file in (tmp_path / "cache").iterdir()}
    assert names <= {"works", "kernel"}


@pytest.mark.criu
@pytest.mark.ordinary_user
def test_rootless_is_preferred_to_root(criu: Criu, tmp_path: Path) -> None:
    """For every user: the least privilege that works."""
    assert usable_mode(cache=tmp_path, prefix=prefix_of(criu)) == (MODES[0], ())


def test_without_criu_the_setup_is_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named once, though it prevents both modes; a failure is not remembered."""
    monkeypatch.delenv(PREFIX_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("torpor.snapshots.criu.program._SYSTEM_FOLDERS", ())
    mode, reasons = usable_mode(cache=tmp_path / "cache", prefix=tmp_path / "none")
    assert mode is None
    (reason,) = reasons
    assert reason.code == "criu_missing"
    assert "torpor snapshot setup" in str(reason)
    assert not (tmp_path / "cache").exists()


def test_gvisor_is_reported_before_anything_has_to_be_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its /proc/version (runsc 20240729). CRIU cannot work there, so the reason does not ask for it."""
    version = tmp_path / "version"
    version.write_text("Linux version 4.4.0 #1 SMP Sun Jan 10 15:06:54 PST 2016\n")
    monkeypatch.setattr(probe, "_VERSION_FILE", version)
    monkeypatch.setenv(PREFIX_VARIABLE, str(tmp_path / "none"))
    mode, (reason,) = usable_mode(cache=tmp_path / "cache")
    assert (mode, reason.code, reason.tried) == (None, "gvisor", False)
    assert "standby" in str(reason)


def test_an_old_criu_is_named_with_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """3.17 and 4.1 pass their own check and then fail."""
    program = tmp_path / "old" / "bin" / "criu"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\necho 'Version: 4.1.1'\n")
    program.chmod(0o755)
    monkeypatch.setenv(PREFIX_VARIABLE, str(tmp_path / "old"))
    monkeypatch.setattr("torpor.snapshots.criu.program._SYSTEM_FOLDERS", ())
    monkeypatch.setenv("PATH", "/bin")
    (reason,) = available("rootless", cache=tmp_path / "cache")
    assert "4.1.1" in reason.seen


@as_root
@pytest.mark.criu
def test_a_kernel_without_user_namespaces_is_named_with_its_setting(criu: Criu, tmp_path: Path) -> None:
    """Here the real setting, in a new user namespace."""
    setup = (
        'exec unshare --user --map-root-user sh -c \'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"\' sh "$@"'
    )
    (reason,) = ask_behind(setup, criu, tmp_path, "rootless")
    assert reason.code == "user_namespaces"
    assert "sysctl -w user.max_user_namespaces" in reason.cure
    assert reason.tried
    assert not list(tmp_path.glob("works-*"))


@as_root
@pytest.mark.criu
def test_other_reasons_are_reported_with_a_missing_criu(criu: Criu, tmp_path: Path) -> None:
    """Otherwise somebody would install CRIU and only then learn that the kernel refuses."""
    setup = (
        'exec unshare --user --map-root-user sh -c \'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"\' sh "$@"'
    )
    reasons = ask_behind(setup, criu, tmp_path, "rootless", "hidden")
    assert [reason.code for reason in reasons] == ["criu_missing", "user_namespaces"]


@pytest.mark.criu
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the filter is written for x86-64")
def test_a_containers_seccomp_filter_is_named(mode: Mode, criu: Criu, tmp_path: Path) -> None:
    """A real filter that refuses what Docker's default refuses; Docker's option against it is untried."""
    (reason,) = ask_behind(f'exec {sys.executable} {FILTER} "$@"', criu, tmp_path, mode)
    assert reason.code == "seccomp"
    assert "seccomp=unconfined" in reason.cure
    assert str(reason).endswith("(untried)")


CONTAINER = (
    "chown,dac_override,fowner,fsetid,kill,setgid,setuid,setpcap,net_bind_service,net_raw,sys_chroot,mknod,audit_write"
)
"""Docker's default capabilities, but for setfcap, in setpriv's words."""


def with_capabilities(names: str) -> str:
    """A shell command that keeps only these capabilities."""
    kept = ",".join(f"+{name}" for name in names.split(",") if name)
    return f'exec setpriv --bounding-set -all{"," if kept else ""}{kept} --inh-caps -all "$@"'


@as_root
@pytest.mark.criu
@pytest.mark.parametrize("kept", ["", CONTAINER])
def test_a_root_without_capabilities_is_told_which_it_needs(criu: Criu, tmp_path: Path, kept: str) -> None:
    """As in a container. The advice is right: with these four on top of a container's own it works."""
    (reason,) = ask_behind(with_capabilities(kept), criu, tmp_path, "root")
    assert reason.code == "not_root"
    assert "SYS_ADMIN, SYS_PTRACE, NET_ADMIN and SYS_TIME" in reason.cure
    told = f"{CONTAINER},sys_admin,sys_ptrace,net_admin,sys_time"
    assert ask_behind(with_capabilities(told), criu, tmp_path, "root") == []


@as_root
@pytest.mark.criu
def test_a_root_that_cannot_map_itself_gets_the_reason(criu: Criu, tmp_path: Path) -> None:
    """Since Linux 5.12 user 0 needs CAP_SETFCAP to map itself into a user namespace; ordinary users need nothing."""
    (reason,) = ask_behind(with_capabilities(""), criu, tmp_path, "rootless")
    assert reason.code == "user_namespaces"
    assert "SETFCAP" in reason.cure
    assert reason.tried
    assert ask_behind(with_capabilities("setfcap"), criu, tmp_path, "rootless") == []


@as_root
@pytest.mark.criu
def test_the_root_of_a_user_namespace_fails_in_the_restore_and_its_log_is_kept(criu: Criu, tmp_path: Path) -> None:
    """`criu check` and even the dump succeed there."""
    (reason,) = ask_behind('exec unshare --user --map-root-user "$@"', criu, tmp_path, "root")
    assert reason.code == "not_root"
    assert "Operation not permitted" in reason.seen
    assert str(tmp_path / "trial-root.log") in reason.seen
    assert "Error" in (tmp_path / "trial-root.log").read_text()


@as_root
@pytest.mark.criu
def test_a_masked_proc_is_named(criu: Criu, tmp_path: Path) -> None:
    """As container managers mask it: a user namespace may then mount no new /proc."""
    mask = "mount --bind /dev/null /proc/timer_list || mount --bind /dev/null /proc/cpuinfo"
    inner = f'{mask}; exec unshare --user --map-root-user "$@"'
    (reason,) = ask_behind(
        f"exec unshare --mount --pid --fork --mount-proc sh -c '{inner}' sh \"$@\"", criu, tmp_path, "rootless"
    )
    assert reason.code == "proc_masked"
    assert not reason.tried


@pytest.mark.skipif(os.geteuid() == 0, reason="we are root")
@pytest.mark.criu
@pytest.mark.ordinary_user
def test_an_ordinary_user_is_not_root(criu: Criu, tmp_path: Path) -> None:
    """The cure names the other mode."""
    (reason,) = available("root", cache=tmp_path, prefix=prefix_of(criu))
    assert (reason.code, reason.cure) == ("not_root", "use rootless, or run as root")


@pytest.mark.parametrize(
    ("refused", "settings", "filtered", "expected"),
    [
        (
            StepError("mount proc on /proc", 13),
            {"kernel/apparmor_restrict_unprivileged_userns": "1"},
            False,
            "apparmor",
        ),
        (
            StepError("write /proc/self/uid_map", 1),
            {"kernel/apparmor_restrict_unprivileged_userns": "1"},
            False,
            "apparmor",
        ),
        (StepError("make a user namespace", 1), {}, True, "seccomp"),
        (StepError("make a user namespace", 28), {"user/max_user_namespaces": "0"}, False, "user_namespaces"),
        (StepError("make a user namespace", 1), {"kernel/unprivileged_userns_clone": "0"}, False, "user_namespaces"),
        (StepError("mount proc on /proc", 1), {}, False, "proc_masked"),
        (StepError("mount tmpfs on /dev/shm", 12), {}, False, None),
    ],
)
def test_reasons_are_found_from_what_the_kernel_shows(
    monkeypatch: pytest.MonkeyPatch,
    refused: StepError,
    settings: dict[str, str],
    filtered: bool,
    expected: str | None,
) -> None:
    """AppArmor and Docker refuse as documented; their cures are marked untried."""
    monkeypatch.setattr(probe, "_setting", settings.get)
    monkeypatch.setattr(probe, "_under_seccomp", lambda: filtered)
    found = [entry for entry in probe._hindrances(refused, "rootless") if entry[1]]
    assert [entry[0] for entry in found][:1] == ([expected] if expected else [])
    assert all(tried == (code == "user_namespaces") for code, _, _, tried in found)
