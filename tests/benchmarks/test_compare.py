"""`python -m benchmarks.compare` says what moved between two results of one benchmark."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from benchmarks import compare

if TYPE_CHECKING:
    from pathlib import Path

STEADY = [1.00, 1.01, 0.99, 1.00, 1.02]


def written(folder: Path, name: str, **fields: object) -> Path:
    """A result on disk."""
    file = folder / name
    file.write_text(json.dumps({"machine": {"cpu": "one", "cpus": 2}, **fields}))
    return file


def test_figures_are_what_has_a_unit() -> None:
    """Runs of a list share a path, named entries keep their names, and what is no measurement is left out."""
    found = compare.figures(
        {
            "ready_s": [1.0, 2.0],
            "parts_s": {"criu": 0.2},
            "figures": [{"name": "requests/s", "kind": "bare", "ratio": 0.98, "runs": 7}],
            "starts": {"none": [{"first_token_s": 3.0}, {"first_token_s": 4.0}]},
            "took_s": 9.0,
            "load": [1.0, 2.0],
            "met": True,
            "text": "x",
        }
    )
    assert {name: one.samples for name, one in found.items()} == {
        "ready_s": [1.0, 2.0],
        "parts_s/criu": [0.2],
        "figures/requests/s/bare/ratio": [0.98],
        "starts/none/first_token_s": [3.0, 4.0],
    }
    assert found["figures/requests/s/bare/ratio"].higher
    assert not found["ready_s"].higher


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ({"ready_s": STEADY}, {"ready_s": STEADY}, 0),
        ({"ready_s": STEADY}, {"ready_s": [one * 1.04 for one in STEADY]}, 0),  # within the tolerance
        ({"ready_s": STEADY}, {"ready_s": [one * 1.2 for one in STEADY]}, 1),
        ({"ready_s": STEADY}, {"ready_s": [one * 0.8 for one in STEADY]}, 0),  # faster
        ({"ready_s": [0.5, 1.0, 1.5, 0.7, 1.3]}, {"ready_s": [0.6, 1.2, 1.8, 0.8, 1.5]}, 0),  # within the noise
        ({"ratio": 0.98}, {"ratio": 0.60}, 1),  # less of a ratio is worse
        ({"ratio": 0.60}, {"ratio": 0.98}, 0),
        ({"ready_s": 1.0}, {"ready_s": 1.2}, 0),  # of one run, no spread is known
        ({"ready_s": 1.0}, {"ready_s": 1.4}, 1),
        ({"serve_s": 0.001}, {"serve_s": 0.002}, 0),  # nobody notices a millisecond
        ({"grown_mib": 0}, {"grown_mib": 64}, 1),
        ({"tokens_per_s": [300.0, 301.0, 299.0]}, {"tokens_per_s": [270.0, 271.0, 269.0]}, 1),
    ],
)
def test_the_exit_code_says_whether_something_got_worse(
    tmp_path: Path, old: dict[str, object], new: dict[str, object], code: int
) -> None:
    """By more than the tolerance and more than the noise of the runs."""
    files = [str(written(tmp_path, "new.json", kind="k", **new)), str(written(tmp_path, "old.json", kind="k", **old))]
    assert compare.main(files) == code


def test_the_newest_result_of_the_same_kind_is_the_one_to_compare_with(tmp_path: Path) -> None:
    """By the date in its name, then by the letter behind it."""
    written(tmp_path, "serve-2026-11-30.json")
    older = written(tmp_path, "serve-2026-12-01.json")
    newest = written(tmp_path, "serve-2026-12-01b.json")
    written(tmp_path, "serve-sglang-2026-12-02.json")
    written(tmp_path, "other-2026-12-03.json", kind="serve-other")
    new = written(tmp_path, "serve.json")
    assert compare.kind_of(new, {}) == "serve"
    assert compare.latest("serve", [tmp_path], but=new) == newest
    assert compare.latest("serve", [tmp_path], but=newest) == older
    assert compare.latest("unknown", [tmp_path], but=new) is None


def test_what_moved_and_what_differs_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the medians, the change and the noise."""
    old = written(tmp_path, "old.json", kind="k", ready_s=STEADY, same_s=1.0, versions={"torch": "2.11"})
    new = written(tmp_path, "new.json", kind="k", ready_s=[2.0, 2.0, 2.0], same_s=1.0, versions={"torch": "2.13"})
    assert compare.main([str(new), str(old)]) == 1
    said = capsys.readouterr().out
    assert "differs: versions torch: 2.11 -> 2.13" in said
    assert "WORSE  ready_s" in said
    assert "+100.0%" in said
    assert "1 of 2 figures did not move" in said


def test_on_another_machine_only_ratios_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Seconds of another machine are no regression."""
    old = written(tmp_path, "old.json", kind="k", ready_s=STEADY, ratio=0.98)
    new = written(tmp_path, "new.json", kind="k", ready_s=[3.0] * 5, ratio=0.97, machine={"cpu": "another", "cpus": 2})
    assert compare.main([str(new), str(old)]) == 0
    assert "another machine: only ratios count" in capsys.readouterr().out
    worse = written(tmp_path, "worse.json", kind="k", ratio=0.5, machine={"cpu": "another", "cpus": 2})
    assert compare.main([str(worse), str(old)]) == 1


@pytest.mark.parametrize(
    ("new", "old", "said"),
    [
        ("nowhere.json", "old.json", "cannot be read as JSON"),
        ("list.json", "old.json", "holds no JSON object"),
        ("other.json", "old.json", "is of the kind 'other'"),
        ("empty.json", "old.json", "have no figure in common"),
        ("lone.json", None, "There is no older result of the kind 'lone'"),
    ],
)
def test_files_that_cannot_be_compared_give_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], new: str, old: str | None, said: str
) -> None:
    """And the exit code 2."""
    written(tmp_path, "old.json", kind="k", ready_s=1.0)
    written(tmp_path, "other.json", ready_s=1.0)
    written(tmp_path, "empty.json", kind="k")
    written(tmp_path, "lone.json", kind="lone", ready_s=1.0)
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(SystemExit) as ended:
        compare.main([str(tmp_path / name) for name in (new, old) if name is not None])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_every_committed_result_can_be_compared_with_itself() -> None:
    """None of its figures moved. Those of the tasks' canaries are distances, without a unit."""
    results = [file for folder in (compare.HERE, compare.HERE / "gpu") for file in folder.glob("*-20*.json")]
    assert results
    for file in results:
        result = json.loads(file.read_text())
        found = compare.changes(result, result)
        assert found or file.name.startswith("task-canary"), f"{file.name} has no figure with a unit"
        assert not any(one.moved for one in found)
