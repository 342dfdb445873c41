"""Pictures of measured starts, drawn from the JSON of benchmarks: the timeline of a restore, a restored fleet, a report.

    python -m scripts.site.pictures     writes docs/restore.svg and docs/fleet.svg

They follow the light and the dark scheme of the page, and can be read in a window of 390 pixels.
"""

from __future__ import annotations

import html
import json
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torpor.report.groups import GROUPS, group_of
from torpor.report.page import page
from torpor.report.reading import read_report

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["BENCH", "FLEET", "FLEET_PICTURE", "RESTORE_PICTURE", "fleet_svg", "report_page", "restore_svg"]

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "benchmarks" / "bench-tiny-2026-12-01.json"
"""Written by `torpor bench apps/tiny_cpu.py --json`."""
FLEET = ROOT / "benchmarks" / "fleet-tiny-2026-12-01.json"
"""Written by `python -m benchmarks.fleet --json`."""
RESTORE_PICTURE = ROOT / "docs" / "restore.svg"
FLEET_PICTURE = ROOT / "docs" / "fleet.svg"

_WIDTH, _LEFT, _RIGHT, _ROW, _BAR = 480, 116, 86, 26, 16
_LIGHT = {
    "process": "#6e7781",
    "load": "#bc4c00",
    "warm": "#9a6700",
    "sleep": "#57606a",
    "snapshot": "#0969da",
    "wake": "#1a7f37",
    "answer": "#8250df",
}
_DARK = {
    "process": "#8b949e",
    "load": "#f0883e",
    "warm": "#d29922",
    "sleep": "#8b949e",
    "snapshot": "#58a6ff",
    "wake": "#3fb950",
    "answer": "#bc8cff",
}


class _Span(NamedTuple):
    """A stage on the clock of its picture, seconds."""

    stage: str
    start_s: float
    seconds: float


def restore_svg(file: Path = BENCH) -> str:
    """One restored start, the one with the median time: a row for each stage, at its place on one clock."""
    told = _read(file)
    starts = sorted(
        (one for one in told["starts"] if one["boot"] == "restored"), key=lambda one: float(one["first_token_s"])
    )
    chosen = starts[(len(starts) - 1) // 2]
    cold_s = statistics.median(one["first_token_s"] for one in told["starts"] if one["boot"] == "cold")
    whole_s = float(chosen["first_token_s"])
    spans = [_Span(one["stage"], one["start_s"], one["seconds"]) for one in chosen["spans"]]
    scale = _scale(max(whole_s, *(span.start_s + span.seconds for span in spans)))
    title = f"A restored start: {whole_s:.2f} s to the first token. A cold one took {cold_s:.1f} s."
    rows = [
        *_text(12, 20, title, "title"),
        *(line for number, span in enumerate(spans) for line in _stage_row(number, span, scale)),
        *_axis(44 + len(spans) * _ROW, scale),
        *_text(12, 44 + len(spans) * _ROW + 40, f"{told['engine']}, a tiny model, on {_machine(told)}", "soft"),
    ]
    described = "; ".join(f"{span.stage} from {span.start_s:.3f} s, {span.seconds:.3f} s" for span in spans)
    return _svg(44 + len(spans) * _ROW + 52, f"{title} {described}.", rows)


def fleet_svg(file: Path = FLEET) -> str:
    """All replicas of one snapshot, restored at once: a row for each, its stages on one clock, and the memory that it owns."""
    told = _read(file)
    replicas, began = told["replicas"], float(told["began_at"])
    scale = _scale(float(told["served_s"]))
    own_mb = statistics.median(one["own_bytes"] for one in replicas) / 1e6
    title = f"{len(replicas)} replicas of one snapshot serve after {told['served_s']:.2f} s."
    rows = [*_text(12, 20, title, "title"), *_text(_WIDTH - 12, 40, "own memory", "soft end")]
    for number, one in enumerate(replicas):
        y = 48 + number * _ROW
        rows += _text(_LEFT - 8, y + 13, f"replica {number + 1}", "soft end")
        for stage in one["stages"]:
            span = _Span(stage["stage"], stage["ended_at"] - began - stage["seconds"], stage["seconds"])
            rows += _bar(span, y, scale)
        rows += _text(_WIDTH - 12, y + 13, f"{one['own_bytes'] / 1e6:.0f} MB", "end")
    below = 48 + len(replicas) * _ROW
    rows += _axis(below, scale)
    rows += _legend(below + 40, {group_of(stage["stage"]) for one in replicas for stage in one["stages"]})
    note = f"Snapshot {told['snapshot_bytes'] / 1e6:.0f} MB; each replica owns {own_mb:.0f} MB, and maps the rest."
    rows += _text(12, below + 66, note, "soft")
    rows += _text(12, below + 84, f"{told['engine']}, a tiny model, on {told['machine']}", "soft")
    return _svg(below + 96, f"{title} {note}", rows)


def report_page(file: Path = BENCH) -> str:
    """The page that `torpor report` makes of the same file."""
    return page([read_report(file)])


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def _machine(told: Any) -> str:
    machine = told["machine"]
    return f"{machine['architecture']}, {machine['cpus']} CPUs, kernel {machine['kernel']}"


def _scale(longest_s: float) -> float:
    """Pixels for a second."""
    return (_WIDTH - _LEFT - _RIGHT) / longest_s


def _stage_row(number: int, span: _Span, scale: float) -> Iterator[str]:
    y = 36 + number * _ROW
    yield from _text(_LEFT - 8, y + 13, span.stage, "soft end")
    yield from _bar(span, y, scale)
    yield from _text(_WIDTH - 12, y + 13, f"{span.seconds:.3f} s", "end")


def _bar(span: _Span, y: int, scale: float) -> Iterator[str]:
    x, width = _LEFT + max(0.0, span.start_s) * scale, max(1.0, span.seconds * scale)
    yield (
        f'<rect class="{group_of(span.stage)}" x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_BAR}" rx="2">'
        f"<title>{span.stage} {span.seconds:.3f} s</title></rect>"
    )


def _axis(y: int, scale: float) -> Iterator[str]:
    """A line with a mark for each step of a round number of seconds."""
    whole = (_WIDTH - _LEFT - _RIGHT) / scale
    step = next(one for one in (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60) if whole / one <= 6)  # noqa: PLR2004 - marks
    yield f'<path class="line" d="M{_LEFT} {y}H{_WIDTH - _RIGHT}"/>'
    for number in range(int(whole / step) + 1):
        x = _LEFT + number * step * scale
        yield f'<path class="line" d="M{x:.1f} {y}v5"/>'
        yield from _text(x, y + 19, f"{number * step:g} s", "soft middle")


def _legend(y: int, groups: set[str]) -> Iterator[str]:
    x = 12.0
    for name, (words, _) in GROUPS.items():
        if name in groups:
            yield f'<rect class="{name}" x="{x:.0f}" y="{y - 11}" width="12" height="12" rx="2"/>'
            yield from _text(x + 18, y, words, "soft")
            x += 34 + 7 * len(words)


def _text(x: float, y: float, text: str, kind: str = "") -> Iterator[str]:
    look = f' class="{kind}"' if kind else ""
    yield f'<text{look} x="{x:.0f}" y="{y:.0f}">{html.escape(text)}</text>'


def _svg(height: int, told: str, lines: Iterable[str]) -> str:
    """One SVG element without an empty line (Markdown ends a block there)."""
    return "\n".join(
        (
            f'<svg class="starts" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img">',
            f"<title>{html.escape(told)}</title>",
            f"<style>{_style()}</style>",
            *lines,
            "</svg>\n",
        )
    )


def _style() -> str:
    light = "--ink:#24292f;--soft:#59636e;" + ";".join(f"--{name}:{colour}" for name, colour in _LIGHT.items())
    dark = "--ink:#e6edf3;--soft:#9aa5b1;" + ";".join(f"--{name}:{colour}" for name, colour in _DARK.items())
    return "\n".join(
        (
            f'.starts{{{light};font:13px system-ui,-apple-system,"Segoe UI",sans-serif}}',
            f"@media(prefers-color-scheme:dark){{.starts{{{dark}}}}}",
            f"[data-md-color-scheme=default] .starts{{{light}}}",
            f"[data-md-color-scheme=slate] .starts{{{dark}}}",
            ".starts text{fill:var(--ink)}.starts .soft{fill:var(--soft)}.starts .title{font-weight:600}",
            ".starts .end{text-anchor:end}.starts .middle{text-anchor:middle}.starts .line{stroke:var(--soft);fill:none}",
            *(f".starts rect.{name}{{fill:var(--{name})}}" for name in _LIGHT),
        )
    )


if __name__ == "__main__":
    RESTORE_PICTURE.write_text(restore_svg(), encoding="utf-8")
    FLEET_PICTURE.write_text(fleet_svg(), encoding="utf-8")
