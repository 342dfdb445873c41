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
    cold = _cold_bars(results, 40 + len(rows) * (_BAR + _GAP) + 30)
    height = 60 + len(rows) * (_BAR + _GAP) + 20 + len(cold) * (_BAR + _GAP)
    legend = "".join(
        f'<rect x="{_LEFT + 96 * at}" y="{height - 24}" width="10" height="10" fill="{colour}"/>'
        f'<text x="{_LEFT + 14 + 96 * at}" y="{height - 15}" font-size="9">{escape(part.removesuffix("_s"))}</text>'
        for at, (part, colour) in enumerate(zip(_PARTS, _COLOURS, strict=True))
    )
    title = f"seconds to the first token, {results['machine'].get('gpu')}"
    file.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" font-family="sans-serif">'
        f'<rect width="100%" height="100%" fill="white"/><text x="10" y="22" font-size="15">{escape(title)}</text>'
        f"{''.join(lines)}{''.join(cold)}{legend}</svg>\n"
    )


def _cold_bars(results: dict[str, dict[str, object]], top: int) -> list[str]:
    """A line of text and a bar for each cold start, on a scale of their own: ready, and what the warm-up took after that."""
    rows = {
        name: cast("dict[str, float]", row)
        for name, row in results["rows"].items()
        if "first_token_s" in cast("dict[str, object]", row)
    }
    if not rows:
        return []
    scale = (_WIDTH - _LEFT - 150) / max(row["first_token_s"] for row in rows.values())
    found = [f'<text x="10" y="{top + 10}" font-size="15">seconds of cold starts: ready, and the first token</text>']
    for number, (name, row) in enumerate(rows.items()):
        at, ready, token = top + 20 + number * (_BAR + _GAP), row["cold_ready_s"] * scale, row["first_token_s"] * scale
        found.append(
            f'<text x="10" y="{at + 17}" font-size="11">{escape(name)}</text>'
            f'<rect x="{_LEFT + 30}" y="{at}" width="{ready:.1f}" height="{_BAR}" fill="{_COLOURS[0]}"/>'
            f'<rect x="{_LEFT + 30 + ready:.1f}" y="{at}" width="{token - ready:.1f}" height="{_BAR}" fill="{_COLOURS[1]}"/>'
            f'<text x="{_LEFT + 36 + token:.1f}" y="{at + 17}" font-size="13">'
            f"{row['cold_ready_s']:.1f}, {row['first_token_s']:.1f} s</text>"
        )
    return found


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
