"""The README is short, its picture comes from a benchmark, and tests prove each claim about the differences from the example."""

from __future__ import annotations

import json
import re
import statistics

import pytest
from scripts.site import lifecycle

from tests import ROOT
from tests.docs.test_architecture import defined

README = ROOT / "README.md"
PAGE = ROOT / "docs" / "single-file.md"
"""The page with the table that the README links to."""
LINES = 150

SHOWN_BY = {
    "the engine's port is published as it is": (
        "guard/test_guard_access.py:test_a_path_that_does_not_match_a_public_path_exactly_is_404_without_a_key",
        "guard/test_guard_states.py:test_a_step_out_of_order_is_409_and_never_reaches_the_engine",
    ),
    "`/health` is the engine's own, asleep or not": (
        "guard/test_guard_access.py:test_health_is_the_guards_own_answer_in_every_state",
    ),
    "the kernels' Volume is mounted at a path that SGLang does not write to": (
        "plugins/torpor_deepgemm/test_plugin.py:test_the_compile_step_is_the_engines_own_command_on_the_gpu",
        "plugins/torpor_deepgemm/test_plugin.py:test_the_serving_container_does_not_mount_the_kernels_volume",
    ),
    "the compile step's exit code is ignored": (
        "plugins/torpor_deepgemm/test_plugin.py:test_a_compilation_without_a_kernel_fails_despite_exit_code_0",
        "plugins/torpor_deepgemm/test_plugin.py:test_a_compilation_that_hangs_is_ended_at_its_time_limit",
        "plugins/torpor_deepgemm/test_plugin.py:test_a_crash_is_retried_once",
    ),
    "the hub is asked at serve time": (
        "plugins/torpor_hf_cache/test_plugin.py:test_the_image_gets_the_volume_and_an_offline_hub",
        "runtime/test_boot.py:test_a_failed_check_stops_the_start_before_the_launch",
    ),
    "three short warm-up requests, 10 s each": (
        "engine_plugins/test_warmup.py:test_the_set_is_short_and_long_streamed_and_not_greedy_and_sampled_and_a_burst",
    ),
    "nothing is checked after the wake": (
        "plugins/engine_rules/faults.py:RealFaultRules.test_a_different_answer_after_a_wake_ends_the_engine",
    ),
    "a failed start leaves its processes": (
        "test_faults.py:test_a_fault_gives_its_own_error_in_time_and_leaves_no_process",
        "platforms/modal/test_server.py:test_a_failed_start_leaves_no_process",
    ),
}
"""The first cell of each row of the table, and the tests that show its second cell."""


def test_the_readme_is_short_enough_to_be_read() -> None:
    """Everything else belongs into docs/."""
    assert len(README.read_text().splitlines()) <= LINES


def test_every_difference_from_the_example_is_claimed_once_and_shown_by_a_test() -> None:
    """Each row has tests, and each entry has a row."""
    table = (
        PAGE.read_text()
        .partition("## What differs then")[2]
        .partition("| there | here | because |")[2]
        .partition("\n\n")[0]
    )
    rows = [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines()[2:]]
    assert rows == list(SHOWN_BY)


@pytest.mark.parametrize("test", sorted({test for tests in SHOWN_BY.values() for test in tests}))
def test_the_test_that_shows_a_claim_exists(test: str) -> None:
    """Under that name, and with an assertion."""
    file, _, name = test.partition(":")
    source = ROOT / "tests" / file
    assert name in defined(source)
    body = re.split(rf"def {name.rpartition('.')[2]}\(", source.read_text())[1].partition("\ndef ")[0]
    assert re.search(r"\bassert\b|pytest\.raises", body)


def test_the_example_is_named_with_its_commit_and_the_day_it_was_read() -> None:
    """A claim about another project needs a source and a date."""
    assert re.search(
        r"modal-examples/blob/[0-9a-f]{40}/\S+sglang_snapshot\.py\)[^#]* read on 20\d\d-\d\d-\d\d", PAGE.read_text()
    )


def test_the_readme_leads_to_every_goal() -> None:
    """Modal, one machine, a cluster, several GPUs, a plugin, the move from the single file."""
    links = re.findall(r"\]\(docs/([a-z_-]+)\.md", README.read_text())
    assert {"modal", "gpu-box", "cluster", "gpu-snapshots", "plugin", "new", "single-file", "first-start"} <= set(links)


def test_what_was_never_seen_is_said_near_the_top() -> None:
    """Before the first heading below the title."""
    top = README.read_text().partition("\n## ")[0]
    assert re.search(r"Status: .*Never seen: .*Modal", top, re.DOTALL)


def test_the_picture_is_up_to_date_with_its_benchmark() -> None:
    """`python -m scripts.site.lifecycle` writes it; its text names the file."""
    drawn = lifecycle.svg()
    assert lifecycle.PICTURE.read_text(encoding="utf-8") == drawn
    assert lifecycle.RESULTS.relative_to(ROOT).as_posix() in drawn
    assert "prefers-color-scheme: dark" in drawn
    seconds = statistics.median(json.loads(lifecycle.RESULTS.read_text())["rows"]["flagship"]["restored_s"])
    assert f"{seconds:.2f} s to the first token" in drawn
    assert f"takes {seconds:.2f} seconds" in README.read_text()


def test_the_parts_of_the_picture_fill_its_bars() -> None:
    """A bar ends where the other one ends, at the edge of the picture."""
    bars = re.findall(r'<rect class="[a-e]" x="([\d.]+)" y="(\d+)" width="([\d.]+)"', lifecycle.svg())
    ends = {top: max(float(x) + float(width) + 1 for x, at, width in bars if at == top) for _, top, _ in bars}
    assert ends.pop("120") < 30  # the restored start on the scale of the cold one
    assert all(end == pytest.approx(588, abs=0.2) for end in ends.values())
    assert len(ends) == 2
