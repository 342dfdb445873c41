"""The picture of the README: a cold start, its snapshot and a restored start, drawn to scale from a benchmark's JSON.

    python -m scripts.site.lifecycle        writes docs/lifecycle.svg

Light and dark follow the reader's browser.
"""

from __future__ import annotations

import html
import json
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["PICTURE", "RESULTS", "svg"]

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "gpu" / "h200-2026-12-01b.json"
PICTURE = ROOT / "docs" / "lifecycle.svg"

_ROW = "flagship"
_WIDTH, _HEIGHT, _LEFT, _BAR = 600, 276, 12, 34
_ROOM = _WIDTH - 2 * _LEFT
_LETTER = 6.9  # width of a letter at 12 pixels, about

_STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #1f2328 }
  .small { font-size: 11px; fill: #59636e }
  .title { font-weight: 600 }
  .inside { fill: #ffffff }
  .line { stroke: #8c959f; stroke-dasharray: 3 3; fill: none }
  .a { fill: #5b6b7f } .b { fill: #8a5a2b } .c { fill: #4b5fb5 } .d { fill: #2f7d4f } .e { fill: #7a4a8c }
  .paper { fill: #ffffff }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .small { fill: #9198a1 } .inside { fill: #ffffff }
    .line { stroke: #656c76 }
    .a { fill: #66788f } .b { fill: #9a6a35 } .c { fill: #6073d1 } .d { fill: #3a8f5d } .e { fill: #925bb0 }
    .paper { fill: #0d1117 }
  }
"""


class _Part(NamedTuple):
    """A piece of a bar.

    Attributes:
        name: what the reader sees.
        seconds: its length.
        colour: class of the style.
    """

    name: str
    seconds: float
    colour: str


def svg(results: Path = RESULTS) -> str:
    """The picture.

    Args:
        results: JSON of `benchmarks.gpu.bench` with the row `flagship`.
    """
    told = json.loads(results.read_text(encoding="utf-8"))
    row = told["rows"][_ROW]
    restored_s = statistics.median(row["restored_s"])
    cold, back = _cold(row["stages_s"]), _restored(row["parts_each"])
    whole = sum(part.seconds for part in cold)
    short = restored_s / whole * _ROOM
    lines = [
        _text(_LEFT, 24, f"Cold start and snapshot, once: {whole:.0f} s", "title"),
        *_bar(cold, 34, _ROOM / whole),
        _text(
            _LEFT,
            110,
            f"Restored start, each replica: {restored_s:.2f} s to the first token (same scale)",
            "title",
        ),
        f'<rect class="d" x="{_LEFT}" y="120" width="{short:.1f}" height="{_BAR}"/>',
        f'<path class="line" d="M{_LEFT} 156 V186 M{_LEFT + short:.1f} 156 L{_LEFT + _ROOM} 186"/>',
        *_bar(back, 188, _ROOM / sum(part.seconds for part in back)),
        *(_text(_LEFT, 246 + 16 * at, line, "small") for at, line in enumerate(_said(told["machine"], row, results))),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="A cold start takes {whole:.0f} seconds, a restored one {restored_s:.2f}"><style>{_STYLE}</style>'
        f'<rect class="paper" width="{_WIDTH}" height="{_HEIGHT}"/>\n' + "\n".join(lines) + "\n</svg>\n"
    )


def _cold(stages: Mapping[str, float]) -> list[_Part]:
    capture = sum(seconds for name, seconds in stages.items() if name.startswith("capture_"))
    return [
        _Part("launch, until ready", stages["launch"] + stages["ready"], "a"),
        _Part("warm-up", stages["warmup"], "b"),
        _Part("sleep, snapshot", stages["canary"] + stages["drain"] + stages["pre_snapshot"] + capture, "c"),
    ]


def _restored(each: Sequence[Mapping[str, float]]) -> list[_Part]:
    def median(*names: str) -> float:
        return statistics.median(sum(one[name] for name in names) for one in each)

    return [
        _Part("checks", median("interpreter_and_imports", "verify", "sandbox"), "a"),
        _Part("CRIU", median("criu_s"), "b"),
        _Part("GPU memory", median("cuda_s"), "c"),
        _Part("wake", median("post_restore"), "d"),
        _Part("canary", median("canary_check", "serve", "engine_first_answer"), "e"),
    ]


def _bar(parts: Sequence[_Part], top: float, scale: float) -> list[str]:
    """The pieces of a bar, each with its name and seconds; where they do not fit in, they stand below it."""
    lines, left = [], float(_LEFT)
    for part in parts:
        width = part.seconds * scale
        figure = f"{part.seconds:.0f} s" if part.seconds >= 10 else f"{part.seconds:.2f} s"  # noqa: PLR2004 - digits that say something
        lines.append(
            f'<rect class="{part.colour}" x="{left:.1f}" y="{top}" width="{max(width - 1, 1):.1f}" height="{_BAR}"/>'
        )
        label = f"{part.name} {figure}"
        if len(label) * _LETTER < width:
            lines.append(_text(left + 6, top + 21, label, "inside"))
        else:
            lines += _narrow(left, top, width, part.name, figure)
        left += width
    return lines


def _narrow(left: float, top: float, width: float, name: str, figure: str) -> list[str]:
    if left + len(name) * _LETTER > _WIDTH - _LEFT:  # the last piece: its text ends where the bar ends
        return [_text(left + width, top + _BAR + 14, f"{name} {figure}", "small", anchor="end")]
    return [_text(left + 3, top + 14, name, "inside"), _text(left + 3, top + 28, figure, "inside")]


def _text(x: float, y: float, words: str, kind: str, *, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y}" text-anchor="{anchor}">{html.escape(words)}</text>'


def _said(machine: Mapping[str, object], row: Mapping[str, object], results: Path) -> tuple[str, str]:
    runs = len(cast("list[float]", row["restored_s"]))
    return (
        f"SGLang, flags of apps/qwen3_sglang.py, one {machine['gpu']}, not Modal; medians of {runs} restores",
        f"from {results.relative_to(ROOT).as_posix()}",
    )


if __name__ == "__main__":
    PICTURE.write_text(svg(), encoding="utf-8")
