"""`benchmarks/gpu`: the rows' code runs on a stand-in, so that the first machine with several GPUs gives figures at once."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from typing import TYPE_CHECKING, cast

import pytest
from benchmarks.gpu import bench as gpu_bench
from benchmarks.gpu import common, mixed
from benchmarks.gpu.rows import GROUPS, ROWS

from tests import ROOT
from torpor import Deployment
from torpor.plugin_checks import plugin_findings
from torpor.snapshots.criu.program import PREFIX_VARIABLE
from torpor.testing.ports import unused_port

if TYPE_CHECKING:
    from pathlib import Path

SMI = """#!/bin/sh
for number in $(seq {count}); do
    case "$1" in
    --query-gpu=name) echo "NVIDIA H200" ;;
    --query-gpu=driver_version) echo "580.159.04" ;;
    --query-gpu=memory.total) echo "143771" ;;
    --query-gpu=memory.used) echo "$((number * 10))" ;;
    *) echo "unknown $1"; exit 6 ;;
    esac
done
"""


def bench(folder: Path, gpus: int, *words: str) -> tuple[dict[str, dict[str, object]], str]:
    """Run rows on a machine whose nvidia-smi lists so many GPUs; the rows' figures, and what was printed."""
    for name in ("bin", "model"):
        (folder / name).mkdir()
    smi = folder / "bin" / "nvidia-smi"
    smi.write_text(SMI.format(count=gpus))
    smi.chmod(0o755)
    results = folder / "gpu.json"
    argv = [sys.executable, "-m", "benchmarks.gpu.bench", "--results", str(results), "--stand-in"]
    env = {
        **os.environ,
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "TORPOR_CACHE": str(folder / "cache"),
        PREFIX_VARIABLE: os.environ[PREFIX_VARIABLE],
        "PYTHONPATH": str(ROOT),
    }
    places = ("--snapshots", str(folder / "snapshots"), "--port", str(unused_port()), "--model", str(folder / "model"))
    done = subprocess.run(
        [*argv, *places, *words], env=env, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(results.read_text())["rows"], done.stdout


@pytest.mark.parametrize("name", ROWS)
def test_every_row_has_an_app_that_can_be_deployed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its options are the plugin's, and it takes as many GPUs as it names."""
    row = ROWS[name]
    varied = {
        "gpu": "H200",
        "engine": row.engine,
        "ranks": row.ranks,
        "options": row.options,
        "gpu_snapshot": False if row.own else None,
    }
    monkeypatch.setenv("TORPOR_GPU_BENCH", json.dumps(varied))
    found = runpy.run_path(str(ROOT / "benchmarks" / "gpu" / "app.py"))["deployment"]
    assert isinstance(found, Deployment)
    assert [one for one in plugin_findings(found) if one.level == "error"] == []
    assert (found.gpu_count, found.gpu_snapshot) == (row.ranks, not row.own)
    assert row.gpus >= row.ranks
    assert not row.of or (ROWS[row.of].ranks, ROWS[row.of].shape) == (row.ranks, row.shape)


def test_groups_name_rows() -> None:
    """Each once, a snapshot's row before the rows that restore it."""
    for names in GROUPS.values():
        assert len(set(names)) == len(names)
        for at, name in enumerate(names):
            assert not ROWS[name].of or ROWS[name].of in names[:at]


@pytest.mark.slow
def test_a_row_that_needs_more_gpus_is_skipped_with_a_sentence(tmp_path: Path) -> None:
    """It is measured later, when the machine has them."""
    rows, printed = bench(tmp_path, 1, "--rows", "tp2-all")
    assert {row["skipped"] for row in rows.values()} == {"it needs 2 GPUs, and this machine has 1"}
    assert "tp2: it needs 2 GPUs, and this machine has 1" in printed


@pytest.mark.slow
@pytest.mark.criu
def test_the_rows_for_several_gpus_give_their_figures(tmp_path: Path) -> None:
    """Cold, capture, restores, restores in a row, sleeps and wakes, and replicas at once, with the stand-in."""
    named = ("tp2-cold", "tp2", "tp2-many", "tp2-standby", "spread")
    words = ("--rows", ",".join(named), "--restores", "1", "--many", "2", "--cycles", "2")
    rows, printed = bench(tmp_path, 2, *words)
    assert {name: row["error"] for name, row in rows.items() if "error" in row} == {}
    assert tuple(rows) == named
    shared, repeated, standby, spread = rows["tp2"], rows["tp2-many"], rows["tp2-standby"], rows["spread"]
    assert len(cast("list[float]", shared["restored_s"])) == 1
    assert len(cast("list[float]", repeated["restored_s"])) == len(cast("list[float]", standby["woken_s"])) == 2
    assert shared["same_text"] is repeated["same_text"] is standby["same_text"] is True
    assert repeated["grown_mib"] == repeated["left_mib"] == standby["grown_mib"] == [0, 0]
    assert spread["replicas"] == 2
    at_once = cast("list[dict[str, object]]", spread["at_once"])
    assert [len(cast("list[float]", one["serving_s"])) for one in at_once] == [2]
    for one in at_once:
        assert all(0 < seconds < 60 for seconds in cast("list[float]", one["serving_s"]))
        assert len(cast("list[str]", one["texts"])) == 1
    assert cast("dict[str, float]", shared["parts_s"])["criu"] > 0
    assert "tp2: restored, one stream decodes" in printed
    assert (tmp_path / "gpu.svg").read_text().startswith("<svg")


@pytest.mark.slow
@pytest.mark.criu
def test_the_row_with_two_models_at_one_address_gives_its_figures(tmp_path: Path) -> None:
    """Both are captured; then host memory has room for one, and each request restores its model."""
    rows, printed = bench(tmp_path, 1, "--rows", "switch", "--restores", "2")
    row = rows["switch"]
    assert "error" not in row, row["error"]
    restored = cast("list[dict[str, object]]", row["restored"])
    assert [one["start"] for one in restored] == ["restored"] * 4
    assert [one["model"] for one in restored] == ["switch-a", "switch-b"] * 2
    assert all(0 < cast("float", one["first_token_s"]) < 60 for one in restored)
    assert "switch, restored" in printed


@pytest.mark.slow
@pytest.mark.criu
def test_the_rows_for_four_gpus_give_their_figures(tmp_path: Path) -> None:
    """Captured and restored, and two replicas of two ranks each, with the stand-in. It has no GPU for `tp4-swapped`."""
    (tmp_path / "large").mkdir()
    named = ("tp4", "tp2-pairs", "tp4-32b")
    words = ("--rows", ",".join(named), "--restores", "1", "--model-32b", str(tmp_path / "large"))
    rows, printed = bench(tmp_path, 4, *words)
    assert {name: row["error"] for name, row in rows.items() if "error" in row} == {}
    assert [rows[name]["same_text"] for name in ("tp4", "tp4-32b")] == [True] * 2
    assert rows["tp2-pairs"]["replicas"] == 2
    assert "tp4-32b: cold start" in printed


@pytest.mark.slow
def test_a_row_whose_model_was_not_made_is_skipped_with_the_command_that_makes_it(tmp_path: Path) -> None:
    """The rows of the larger model have a folder of their own."""
    rows, _ = bench(tmp_path, 4, "--rows", "tp4-32b", "--model-32b", str(tmp_path / "none"))
    folder = tmp_path / "none"
    assert rows["tp4-32b"]["skipped"] == (
        f"there is no model in {folder}; make it with: python3 -m benchmarks.gpu.make_model {folder} --shape 32b"
    )


@pytest.mark.slow
@pytest.mark.criu
def test_the_row_with_mixed_requests_gives_its_figures(tmp_path: Path) -> None:
    """All requests are answered, and the stand-in compiles nothing for them."""
    rows, printed = bench(tmp_path, 1, "--rows", "mixed-fast", "--restores", "1")
    row = rows["mixed-fast"]
    assert "error" not in row, row["error"]
    assert row["requests_failed"] == {}
    assert row["requests_asked"] == row["requests_finished"] == len(cast("list[float]", row["request_s"])) == 200
    assert row["compiled_by_requests"] == 0
    assert row["env"] == {"SGLANG_JIT_DEEPGEMM_FAST_WARMUP": "1"}
    assert "compiled_by_requests 0" in printed


def test_mixed_requests_have_many_shapes() -> None:
    """The same in every run, 200 together, from one word to more than a thousand."""
    waves = mixed.shapes()
    assert waves == mixed.shapes()
    words = [one for wave in waves for one, _ in wave]
    assert len(words) == mixed.REQUESTS
    assert min(words) < 10
    assert max(words) > 1000
    assert len(set(words)) > 100


def test_compiled_files_are_counted_by_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those below the deployment's folder of kernels; nothing where there is none."""
    monkeypatch.setenv("TORPOR_CACHE", str(tmp_path))
    assert mixed.compiled_files("one") == {}
    deep = tmp_path / "images" / "one" / "kernels" / "deep_gemm" / "cache" / "kernel.1"
    deep.mkdir(parents=True)
    (deep / "kernel.cubin").touch()
    (tmp_path / "images" / "one" / "kernels" / "triton").mkdir()
    assert mixed.compiled_files("one") == {"deep_gemm": 1, "triton": 0}


def test_chosen_gpus_go_to_every_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """One engine takes the first of them, as many as its ranks; without `--gpus` nothing is said."""
    found = {}
    for gpus, ranks in (([], 2), (["2", "3"], 1), (["2", "3"], 2)):
        monkeypatch.setenv("TORPOR_GPU_BENCH", json.dumps({"gpus": gpus, "ranks": ranks}))
        found[len(gpus), ranks] = (common.all_gpus(), common.gpu_words(common.own_gpus()))
    assert found == {
        (0, 2): ((), ()),
        (2, 1): (("2", "3"), ("--gpus", "2")),
        (2, 2): (("2", "3"), ("--gpus", "2,3")),
    }


def test_rows_that_need_more_than_the_chosen_gpus_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the row whose server chooses itself."""
    monkeypatch.setattr(gpu_bench, "gpu_query", lambda _: ["NVIDIA H200"] * 8)
    said = {name: gpu_bench.skipped(name, ("2", "3")) for name in ("flagship", "tp2", "tp4", "switch")}
    assert [name for name, why in said.items() if not why] == ["flagship", "tp2"]
    assert said["tp4"] == {"skipped": "it needs 4 GPUs, and --gpus names 2"}
    assert gpu_bench.skipped("tp4") == {}
