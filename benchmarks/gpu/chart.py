"""The benchmark's rows as one SVG: a bar for each way back, and what it is made of."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, cast
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["write_chart"]

_WIDTH, _BAR, _GAP, _LEFT = 900, 26, 18, 120
_COLOURS = ("#4e79a7", "#f28e2b", "#e15759", "#76b7b2", "#59a14f", "#edc948", "#b07aa1", "#ff9da7")
_PARTS = (
    "interpreter_and_imports",
    "verify",
    "sandbox",
    "criu",
    "cuda_s",
    "post_restore",
    "canary_check",
    "engine_first_answer",
)


def write_chart(results: dict[str, dict[str, object]], file: Path) -> None:
    """Write the chart of all rows that came back from a sleep."""
    rows = {
        name: cast("dict[str, object]", row)
        for name, row in results["rows"].items()
        if "parts_s" in cast("dict[str, object]", row)
    }
    longest = max((statistics.median(_times(row)) for row in rows.values()), default=1.0)
    scale = (_WIDTH - _LEFT - 90) / longest
    lines = []
    for number, (name, row) in enumerate(rows.items()):
        lines += _bar(name, row, 40 + number * (_BAR + _GAP), scale)
    height = 60 + len(rows) * (_BAR + _GAP) + 20
    legend = "".join(
        f'<rect x="{_LEFT + 96 * at}" y="{height - 24}" width="10" height="10" fill="{colour}"/>'
        f'<text x="{_LEFT + 14 + 96 * at}" y="{height - 15}" font-size="9">{escape(part.removesuffix("_s"))}</text>'
        for at, (part, colour) in enumerate(zip(_PARTS, _COLOURS, strict=True))
    )
    title = f"seconds to the first token, {results['machine'].get('gpu')}"
    file.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" font-family="sans-serif">'
        f'<rect width="100%" height="100%" fill="white"/><text x="10" y="22" font-size="15">{escape(title)}</text>'
        f"{''.join(lines)}{legend}</svg>\n"
    )


def _times(row: dict[str, object]) -> list[float]:
    return cast("list[float]", row.get("restored_s") or row.get("woken_s"))


def _bar(name: str, row: dict[str, object], top: int, scale: float) -> list[str]:
    parts, left = cast("dict[str, float]", row["parts_s"]), float(_LEFT)
    total = statistics.median(_times(row))
    found = [f'<text x="10" y="{top + 17}" font-size="13">{escape(name)}</text>']
    for part, colour in zip(_PARTS, _COLOURS, strict=True):
        width = parts.get(part, 0.0) * scale
        found.append(
            f'<rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="{_BAR}" fill="{colour}">'
            f"<title>{escape(part)} {parts.get(part, 0.0):.3f} s</title></rect>"
        )
        left += width
    found.append(f'<text x="{_LEFT + total * scale + 6:.1f}" y="{top + 17}" font-size="13">{total:.2f} s</text>')
    return found
