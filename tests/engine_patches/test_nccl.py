"""Ranks let go of each other's GPU memory: real processes with an NCCL in which the ranks meet, and which fails on request."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import ROOT
from tests.plugins.torpor_sglang.conftest import LOCAL
from torpor.engine_patches.nccl_library import NcclLibrary, loaded_nccl
from torpor.errors import GpuSnapshotError

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler for NCCL's double")

TWO = [["3", [0, 1], "torch"], ["b-one", [0, 1], "tp:0"], ["a-one", [0, 1], "pynccl"]]
"""A torch group, a PyNccl object that the engine names, and one that only the garbage collector finds."""

Ranks = list[dict[str, Any]]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("nccl") / "libnccl.so.2"
    source = Path(__file__).with_name("fake_nccl.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", built, source], check=True, timeout=60)
    return built


@pytest.fixture
def ranks(tmp_path: Path, library: Path) -> Callable[..., Ranks]:
    """Return a function that runs all ranks and returns what each of them said."""

    def start(size: int = 2, env: dict[str, str] | None = None, python: str = sys.executable, **asked: Any) -> Ranks:
        given = {
            "size": size,
            "folder": str(tmp_path),
            "library": str(library),
            "arrival_s": 8.0,
            "call_s": 8.0,
        } | asked
        started = [
            subprocess.Popen(
                [python, "-m", "tests.engine_patches.nccl_rank", json.dumps(given | {"rank": rank})],
                cwd=ROOT,
                env={**os.environ, "FAKE_NCCL_FOLDER": str(tmp_path), **(env or {})},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(size)
        ]
        said = []
        try:
            for process in started:
                out, errors = process.communicate(timeout=40)
                assert process.returncode == 0, errors
                said.append(json.loads(out))
        finally:
            for process in started:
                process.kill()
                process.wait(30)
        return said

    return start


def calls(folder: Path, rank: int) -> list[str]:
    log = folder / f"log-{rank}"
    return log.read_text().splitlines() if log.exists() else []


def test_all_ranks_suspend_and_resume_everything_in_one_order(ranks: Callable[..., Ranks], tmp_path: Path) -> None:
    """Also communicators of some of the ranks, and those that an engine has frozen; twice in a row.

    The ranks find them in different orders. Each communicator waits for all of its ranks, so another order would hang.
    """
    groups = [
        *([name, [0, 1, 2, 3], kind] for name, _, kind in TWO),
        ["left", [0, 1], "torch"],
        ["right", [2, 3], "torch"],
    ]
    said = ranks(4, communicators=groups, times=2, frozen=True)
    assert [one["error"] for one in said] == [""] * 4
    for rank, pair in enumerate(("left", "left", "right", "right")):
        found = [line.split()[1] for line in calls(tmp_path, rank)]
        once = found[: len(found) // 4]
        assert sorted(once) == sorted(["3", "a-one", "b-one", pair])
        assert found == once * 4
        assert [line.split()[0] for line in calls(tmp_path, rank)] == [
            *["ncclCommSuspend"] * 4,
            *["ncclCommResume"] * 4,
        ] * 2
    shared = [
        [name for name in (line.split()[1] for line in calls(tmp_path, rank)) if name in "3a-oneb-one"]
        for rank in range(4)
    ]
    assert shared == [shared[0]] * 4
    assert "rank 2 (GPU 2): 4 NCCL communicators suspended" in said[2]["told"][0]
    assert "pynccl tp:0 " in said[2]["told"][0]
    assert "1920 MiB freed, 16 MiB stay" in said[2]["told"][0]


@pytest.mark.parametrize(
    ("asked", "env", "reason"),
    [
        ({}, {"FAKE_NCCL_VERSION": "22809"}, "NCCL 2.28.9 is too old for a snapshot of several GPUs"),
        ({"without_cumem": ["b-one"]}, {"NCCL_CUMEM_ENABLE": "0"}, "NCCL_CUMEM_ENABLE has to be 1"),
        ({"lacks": [[1, "3"]]}, {}, "rank 0 has the communicator torch group 3, and rank 1, a member of it, has none"),
        ({"custom_all_reduce": [0, 7]}, {}, "rank 1 (GPU 1): custom all-reduce, buffers shared by CUDA IPC handles"),
        ({"refusals": [[1, "enable_mscclpp is True"]]}, {}, "rank 1 (GPU 1): enable_mscclpp is True"),
        ({"absent": [1], "arrival_s": 0.5}, {}, "rank 1 gave no answer in time"),
    ],
    ids=["version", "cumem", "lacks", "custom-all-reduce", "refusal", "absent"],
)
@pytest.mark.fault(
    "one of several GPUs cannot let go of the memory of the others", area="several GPUs", outcome="refused"
)
def test_a_reason_on_one_rank_stops_all_before_anything_is_suspended(
    ranks: Callable[..., Ranks], tmp_path: Path, asked: dict[str, Any], env: dict[str, str], reason: str
) -> None:
    """Every rank raises the same error; none is left waiting in NCCL."""
    said = ranks(communicators=TWO, env=env, **asked)
    present = [one for rank, one in enumerate(said) if rank not in asked.get("absent", [])]
    assert [reason in one["error"] for one in present] == [True] * len(present), present
    assert {one["error"] for one in present} == {present[0]["error"]}
    assert all(one["seconds"] < 60 for one in present)
    assert [calls(tmp_path, rank) for rank in range(2)] == [[], []]


@pytest.mark.parametrize(
    ("fault", "reason", "resumed"),
    [
        ("1:ncclCommSuspend:2:fail", "rank 1 (GPU 1): {second}: ncclCommSuspend gave 1 (unhandled cuda error)", 1),
        ("1:ncclCommSuspend:2:hang", "rank 1 (GPU 1): {second}: not done after 1 s", 1),
        ("0:ncclCommSuspend:1:forget", "rank 0 (GPU 0): {first}: NCCL reports success, and yet it is still active", 0),
        ("1:ncclCommResume:1:fail", "cannot be resumed: rank 0 (GPU 0): {first}: not done after", 0),
        ("0:ncclCommResume:2:hang", "cannot be resumed: rank 0 (GPU 0): {second}: not done after", 1),
        (
            "1:ncclCommResume:3:forget",
            "rank 1 (GPU 1): {third}: NCCL reports success, and yet it is still suspended",
            3,
        ),
    ],
    ids=["suspend-fails", "suspend-hangs", "suspend-forgets", "resume-fails", "resume-hangs", "resume-forgets"],
)
@pytest.mark.fault(
    "a rank fails, hangs or forgets in NCCL at a sleep or a wake", area="several GPUs", outcome="refused"
)
def test_a_rank_that_fails_hangs_or_forgets_is_named_on_all_ranks(
    ranks: Callable[..., Ranks], tmp_path: Path, fault: str, reason: str, resumed: int
) -> None:
    """The deadline holds although NCCL never returns, and what was suspended on both ranks is resumed on both."""
    said = ranks(communicators=TWO, env={"FAKE_NCCL_FAULT": fault}, call_s=1.0)
    names = dict(zip(("first", "second", "third"), order(TWO), strict=True))
    assert [reason.format(**names) in one["error"] for one in said] == [True, True], said
    assert said[0]["error"] == said[1]["error"]
    assert all(one["seconds"] < 60 for one in said)
    if fault.split(":")[1] == "ncclCommSuspend":
        done = [[line for line in calls(tmp_path, rank) if "Resume" in line] for rank in range(2)]
        assert [len(lines) for lines in done] == [resumed, resumed]


def order(groups: list[list[Any]]) -> list[str]:
    """The names in the order of suspending."""
    import hashlib

    def name(one: list[Any]) -> str:
        digest = hashlib.sha256(one[0].encode().ljust(8)).hexdigest()[:8]
        return {"torch": f"torch group {one[0]}", "pynccl": f"pynccl {digest}"}.get(one[2], f"pynccl {one[2]} {digest}")

    return sorted(name(one) for one in groups)


@pytest.mark.slow
@pytest.mark.sglang
def test_the_real_torch_finds_groups_and_ranks(ranks: Callable[..., Ranks], tmp_path: Path, free_port: int) -> None:
    """Its own store, its own list of groups (gloo ones among them), and its own members of a group.

    After one sleep and wake a rank ends: the deadline of the next sleep holds.
    """
    python = str(LOCAL.find(LOCAL.version).python)
    paths = {"PYTHONPATH": os.pathsep.join(map(str, (ROOT / "core", ROOT)))}
    said = ranks(communicators=TWO, python=python, port=free_port, env=paths, leaves=[1], arrival_s=3.0)
    assert "rank 1 gave no answer in time" in said[0]["error"]
    assert said[1]["error"] == ""
    assert calls(tmp_path, 0) == calls(tmp_path, 1)
    assert len(calls(tmp_path, 0)) == 6
    assert "rank 1 (GPU 1): 3 NCCL communicators suspended" in said[1]["told"][0]


def test_one_process_alone_suspends_nothing(ranks: Callable[..., Ranks], tmp_path: Path) -> None:
    """It does not even look."""
    (said,) = ranks(1, communicators=[["3", [0], "torch"]])
    assert (said["error"], said["told"], calls(tmp_path, 0)) == ("", [], [])


def test_the_loaded_library_is_found_where_it_is_mapped(library: Path, tmp_path: Path) -> None:
    """One that is on the disk only is not loaded, and a replaced file is named."""
    maps = tmp_path / "maps"
    line = "7f00-7f01 r-xp 00000000 08:01 1 {}\n"
    maps.write_text(line.format("/usr/lib/libc.so.6") + line.format(library) * 3)
    found = loaded_nccl(maps)
    assert isinstance(found, NcclLibrary)
    assert found.version() == (2, 30, 7)
    assert found.can_suspend()
    maps.write_text(line.format(f"{library} (deleted)"))
    with pytest.raises(GpuSnapshotError, match=r"libnccl\.so\.2 \(deleted\): NCCL's file was replaced"):
        loaded_nccl(maps)
    maps.write_text(line.format("/usr/lib/libc.so.6"))
    with pytest.raises(GpuSnapshotError, match="0 files of NCCL are loaded"):
        loaded_nccl(maps)
    assert not NcclLibrary(found._library.__class__(None)).can_suspend()
