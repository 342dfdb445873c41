"""The tools that generate parts of the site, also for invented plugins, results and docstrings."""

from __future__ import annotations

import json
import sys
import types
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from scripts.site import engines, guard_states, hook_reference, llms, pages, parts, pictures
from scripts.site.docstrings import parse

from tests import ROOT
from torpor.guard import State
from torpor.hookspecs import EnginePlugin

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Record:
    """A flag of an invented engine."""

    option: str = "depth"
    flag: str = "--depth"
    reason: str = "deep | deeper"
    source: str = "args.py:1"
    instead: str = "Use Deep(depth=...)."


def test_the_drawing_of_the_guard_is_up_to_date() -> None:
    """`python -m scripts.site.guard_states` writes it."""
    assert guard_states.DIAGRAM.read_text(encoding="utf-8") == guard_states.svg()


def test_the_walk_finds_every_state_and_the_known_transitions() -> None:
    """Every state is entered and left. Only a failed step leads to the end."""
    found = guard_states.transitions()
    assert {one.source for one in found} == {state.value for state in State}
    assert {one.target for one in found} == {state.value for state in State} | {guard_states.END}
    assert {one.label for one in found if one.target == guard_states.END} == {"a sleep step fails", "a wake step fails"}
    ways = {(one.source, one.target): one.label for one in found}
    assert ways["draining", "asleep"] == "asleep, after every step"
    assert ways["waking", "serving"] == "serve, after every step"
    assert ways["asleep", "waking"] == "wake"
    assert {one.label for one in found if (one.source, one.target) == ("draining", "serving")} == {
        "deadline, or caller gone",
        "serve, before any step",
    }


def test_a_state_without_a_place_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The drawing fails."""
    monkeypatch.delitem(guard_states._PLACES, "waking")
    with pytest.raises(KeyError, match="state 'waking' without a place"):
        guard_states.svg()


def test_every_question_to_an_engine_is_in_the_table() -> None:
    """Attributes and methods of `EnginePlugin`, each with its meaning."""
    table = hook_reference.engine_reference()
    asked = [name for name in vars(EnginePlugin) if not name.startswith("_")]
    assert "ready_path" in asked
    assert [name for name in asked if f"| `{name}` | " not in table and f"| `{name}(" not in table] == []
    assert "| `kernel_compile_env(deployment, fast, at_load)` | Variables that switch" in table


def test_the_drawing_of_the_parts_is_up_to_date() -> None:
    """`python -m scripts.site.parts` writes it."""
    assert parts.DIAGRAM.read_text(encoding="utf-8") == parts.svg()


def test_the_pictures_of_starts_are_up_to_date() -> None:
    """`python -m scripts.site.pictures` writes them from the JSON of benchmarks."""
    assert pictures.RESTORE_PICTURE.read_text(encoding="utf-8") == pictures.restore_svg()
    assert pictures.FLEET_PICTURE.read_text(encoding="utf-8") == pictures.fleet_svg()


def test_the_timeline_has_every_stage_of_the_median_start() -> None:
    """At its place: the first begins at zero, the last ends with the first token, and the seconds are the file's."""
    told = json.loads(pictures.BENCH.read_text(encoding="utf-8"))
    restored = sorted(
        (one for one in told["starts"] if one["boot"] == "restored"), key=lambda one: one["first_token_s"]
    )
    chosen = restored[(len(restored) - 1) // 2]
    drawn = pictures.restore_svg()
    assert f"A restored start: {chosen['first_token_s']:.2f} s to the first token." in drawn
    for span in chosen["spans"]:
        assert f">{span['stage']}</text>" in drawn
        assert f"<title>{span['stage']} {span['seconds']:.3f} s</title>" in drawn


def test_the_fleet_has_every_replica() -> None:
    """With the memory that it owns. No bar is longer than the time until all serve."""
    told = json.loads(pictures.FLEET.read_text(encoding="utf-8"))
    drawn = pictures.fleet_svg()
    assert len(told["replicas"]) == 8
    for number, one in enumerate(told["replicas"], start=1):
        assert f">replica {number}</text>" in drawn
        assert f">{one['own_bytes'] / 1e6:.0f} MB</text>" in drawn
        assert max(stage["ended_at"] for stage in one["stages"]) - told["began_at"] <= told["served_s"] + 0.01


def test_the_path_of_a_start_has_three_phases() -> None:
    """Each step has the number that the page shows, and lies in a part that the drawing shows."""
    phases = parts.path()
    assert [phase.name for phase in phases] == ["Cold start", "Capture", "Restore"]
    steps = [step for phase in phases for step in phase.steps]
    assert [step.number for step in steps] == list(range(1, len(steps) + 1))
    assert {step.part for step in steps} <= {part.name for part in parts.PARTS}


@pytest.mark.parametrize(
    ("text", "missing"),
    [("1. **Go.** Nowhere.\n", "names no function"), ("1. **Go.** `core/torpor/new.py:go` goes.\n", "is in no part")],
)
def test_a_step_without_a_part_cannot_be_drawn(
    text: str, missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the step."""
    page = tmp_path / "page.md"
    page.write_text(f"## The path of one start\n\n### Cold start\n\n{text}")
    monkeypatch.setattr(parts, "PAGE", page)
    with pytest.raises(ValueError, match=rf"Step 1 of page\.md .*{missing}"):
        parts.path()


def test_results_of_tests_become_rows(tmp_path: Path) -> None:
    """An engine that the file does not name counts as not tested."""
    file = tmp_path / "results.json"
    before = engines.capability_table(tmp_path / "none.json")
    file.write_text(json.dumps({"snapshot, CRIU": {"sglang": "0.5.23 on a CPU"}, "dry run": {"other": "x"}}))
    added = engines.capability_table(file).removeprefix(before).splitlines()[1:]
    names = [engine.name for engine in engines.engine_plugins()]
    tested = ["0.5.23 on a CPU" if name == "sglang" else "not tested" for name in names]
    assert added[0] == f"| snapshot, CRIU | {' | '.join(tested)} |"
    assert added[1] == f"| dry run | {' | '.join(['not tested'] * len(names))} |"


def test_an_engine_with_a_module_of_flags_gets_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its name is. For an engine without one the page says so. The error of an incomplete record names it."""
    module = types.ModuleType("torpor_deep.flags")
    package = types.ModuleType("torpor_deep")
    package.__path__ = []
    module.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "torpor_deep", package)
    monkeypatch.setitem(sys.modules, "torpor_deep.flags", module)
    known = engines.engine_plugins()
    deep = engines.Installed("deep", "torpor_deep", known[0].cls)
    bare = engines.Installed("bare", "torpor_deepgemm", known[0].cls)
    monkeypatch.setattr(engines, "engine_plugins", lambda: (deep, bare))
    module.FLAGS = (Record(),)  # type: ignore[attr-defined]
    shown = engines.flag_tables()
    assert "| `--depth` | deep \\| deeper<br><small>args.py:1</small> | Use Deep(depth=...). |" in shown
    assert "### Flags of bare\n\nIts plugin keeps no table of flags." in shown
    module.FLAGS = ("--depth",)  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match=r"torpor_deep\.flags\.FLAGS holds '--depth'"):
        engines.flag_tables()


def test_docstrings_are_parsed() -> None:
    """Summary, text, sections, and entries of several lines."""

    class Told:
        """Does this.

        And that,
        twice.

        Attributes:
            one: a thing that
                goes on.
            two: another.

        Must not:
            Stop.
        """

    told = parse(Told)
    assert (told.summary, told.text) == ("Does this.", "And that,\ntwice.")
    assert told.entries("Attributes") == {"one": "a thing that goes on.", "two": "another."}
    assert told.sections["Must not"] == "Stop."
    assert told.entries("Args") == {}
    with pytest.raises(ValueError, match="no docstring"):
        parse(type("Silent", (), {}))


@pytest.mark.parametrize(
    ("target", "folder", "page"),
    [
        ("../SECURITY.md", "docs", "security.md"),
        ("docs/guard.md", "", "guard.md"),
        ("guard.md", "docs", "guard.md"),
        ("../benchmarks/gpu/NOTES.md", "docs", "gpu-figures.md"),
        ("h100-2026-11-25.json", "benchmarks/gpu", "h100-2026-11-25.json"),
        ("../benchmarks/bench-tiny-2026-12-01.json", "docs", "bench-tiny-2026-12-01.json"),
    ],
)
def test_links_to_files_of_the_repository_lead_to_their_pages(target: str, folder: str, page: str) -> None:
    """From a page in any folder."""
    assert pages.page_of(target, folder) == page


def test_files_that_become_pages_exist() -> None:
    """No page has two sources."""
    figures = [*(ROOT / "benchmarks").glob("*.json"), *(ROOT / "benchmarks" / "gpu").glob("*.json")]
    assert len({file.name for file in figures}) == len(figures)
    for page, source in pages.ADOPTED.items():
        assert (ROOT / source).is_file()
        assert not (ROOT / "docs" / page).exists()


def test_a_first_sentence_is_plain_text() -> None:
    """Without links, emphasis and code marks. Headings, tables and lists are skipped."""
    markdown = "# Title `x`\n\n- a list\n\nSee **this** and [that](x.md), or `it`. More.\n"
    assert llms.first_sentence(markdown) == "See this and that, or it."
    assert llms.title_of(markdown) == "Title x"
    with pytest.raises(ValueError, match="no paragraph"):
        llms.first_sentence("# Title\n\n- a\n")
    with pytest.raises(ValueError, match="no title"):
        llms.title_of("Text")


def test_signatures_are_those_of_the_source() -> None:
    """With their types."""
    assert hook_reference.signature("launch") == (
        "def launch(self, deployment: Deployment, recipe: Recipe) -> Engine | None"
    )
