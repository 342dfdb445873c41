"""The page of recorded starts: one HTML file that needs nothing else, no script and no network.

Every number is a `data` element: its `value` is the number as it stands in the JSON, `data-of` where it stands there.
"""

from __future__ import annotations

import html
import time
from typing import TYPE_CHECKING

from torpor._version import __version__
from torpor.report.figures import bytes_text, figure, seconds_text
from torpor.report.measured import CLOCKS, Bench
from torpor.report.starts import MILESTONES, P95_FROM
from torpor.report.style import GROUPS, STYLE, group_of
from torpor.values.plain_text import plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torpor.report.measured import Floor
    from torpor.report.reading import Recorded
    from torpor.report.starts import Start

__all__ = ["page"]

_CLOCK_NAMES = {"port_s": "port open", "ready_s": "ready", "first_token_s": "first token"}
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_SMALLEST_SCALE_S = 1e-6


def page(recordings: Sequence[Bench | Recorded]) -> str:
    """The page of one recording or several, as HTML."""
    sections = "\n".join(
        _bench_section(one) if isinstance(one, Bench) else _recorded_section(one) for one in recordings
    )
    title = " · ".join(one.deployment if isinstance(one, Bench) else one.name for one in recordings)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>{_escape(title)} - starts</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{sections}\n"
        f"<footer>Torpor {__version__}. Lengths of bars are times; each number's exact value is in the page's source.</footer>\n"
        "</main>\n</body>\n</html>\n"
    )


def _escape(text: str) -> str:
    """A text of a file as the page may hold it: no markup, no control character, nothing that UTF-8 cannot hold."""
    return html.escape(plain(text))


def _bench_section(bench: Bench) -> str:
    what = "restored start" if bench.backend == "criu" else "wake"
    order = f"{len(bench.starts) // 2} of each kind, in the order in which they ran."
    made = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(bench.at))
    machine = bench.machine
    who = f"{_escape(bench.engine)} serving {_escape(bench.model)}, backend {_escape(bench.backend)}"
    where = (
        f"{_escape(machine.architecture)}, kernel {_escape(machine.kernel)}, "
        f"{figure(machine.cpus, str(machine.cpus), 'machine.cpus')} CPUs, "
        f"load {figure(machine.load, f'{machine.load:.2f}', 'machine.load')} before"
    )
    return "\n".join(
        (
            '<section class="file">',
            f"<h1>{_escape(bench.deployment)}: cold start against {what}</h1>",
            f'<p class="soft">{who} · {made}<br>{where} · Torpor {_escape(bench.torpor)}</p>',
            _tiles(bench, what),
            f"<h2>All starts on one scale</h2>\n<p>{order}</p>",
            _lanes(bench.starts),
            "<h2>Stage by stage</h2>\n<p>Each start on a scale of its own.</p>",
            f'<div class="pairs">{"".join(_cards(bench.starts))}</div>',
            "<h2>Medians and spread</h2>",
            _table(bench, what),
            _floor(bench.floor) if bench.floor else "",
            "<h2>Clocks</h2>",
            _facts((name, _escape(text)) for name, text in CLOCKS.items()),
            "</section>",
        )
    )


def _recorded_section(recorded: Recorded) -> str:
    return "\n".join(
        (
            '<section class="file">',
            f"<h1>{_escape(recorded.name)}</h1>",
            '<p class="soft">Stage records. Zero of each start is the beginning of its first stage.</p>',
            "<h2>All starts on one scale</h2>",
            _lanes(recorded.starts),
            "<h2>Stage by stage</h2>\n<p>Each start on a scale of its own.</p>",
            f'<div class="pairs">{"".join(_cards(recorded.starts))}</div>',
            "</section>",
        )
    )


def _tiles(bench: Bench, what: str) -> str:
    spread = bench.spread
    rows = []
    for boot, name in (("cold", "cold start"), (bench.kind, what)):
        median = spread[boot]["first_token_s"].median
        shown = figure(median, seconds_text(median), f"spread.{boot}.first_token_s.median")
        rows.append(f"<div><dt>{name} to first token, median</dt><dd>{shown}</dd></div>")
    ratio = figure(bench.ratio, f"{bench.ratio:.1f} times", "ratio")
    rows.append(f"<div><dt>ratio of the two medians</dt><dd>{ratio}</dd></div>")
    return f'<dl class="tiles">{"".join(rows)}</dl>'


def _lanes(starts: Sequence[Start]) -> str:
    """Every start as one bar, all on one scale."""
    scale_s = max([_SMALLEST_SCALE_S, *(start.drawn_s for start in starts)])
    rows = "".join(
        f'<li class="{start.boot}"><span>{_name(start)}</span><span class="track">{_bars(start, scale_s)}</span>'
        f"{_total(number, start)}</li>"
        for number, start in enumerate(starts)
    )
    return f'<figure class="card"><ol class="rows lanes">{rows}{_axis(scale_s)}</ol>{_legend(starts)}</figure>'


def _bars(start: Start, scale_s: float) -> str:
    return "".join(
        f'<i class="g-{group_of(span.stage)}" style="{_place(span.start_s, span.seconds, scale_s)}" '
        f'title="{_escape(span.stage)} {seconds_text(span.seconds)}"></i>'
        for span in start.spans
    )


def _cards(starts: Sequence[Start]) -> Iterator[str]:
    """The waterfall of each start."""
    for number, start in enumerate(starts):
        scale_s = max(_SMALLEST_SCALE_S, start.drawn_s)
        rows = "".join(_span_row(start, number, index, scale_s) for index in range(len(start.spans)))
        marks = "".join(_mark_row(start, number, clock, scale_s) for clock in MILESTONES)
        yield (
            f'<article class="card"><header><h3>{_name(start)}</h3>{_total(number, start)}</header>'
            f'<ol class="rows">{rows}</ol><ol class="rows marks">{marks}{_axis(scale_s)}</ol></article>'
        )


def _span_row(start: Start, number: int, index: int, scale_s: float) -> str:
    span = start.spans[index]
    failed = ' class="failed"' if span.error else ""
    took = figure(span.seconds, seconds_text(span.seconds), f"starts.{number}.spans.{index}.seconds")
    row = (
        f'<li{failed}><span>{_escape(span.stage.replace("_", " "))}</span><span class="track">'
        f'<i class="g-{group_of(span.stage)}" style="{_place(span.start_s, span.seconds, scale_s)}"></i></span>{took}</li>'
    )
    return row + (f'</ol><p class="error">failed: {_escape(span.error)}</p><ol class="rows">' if span.error else "")


def _mark_row(start: Start, number: int, clock: str, scale_s: float) -> str:
    if (seconds := getattr(start, clock)) is None:
        return ""
    shown = figure(seconds, seconds_text(seconds), f"starts.{number}.{clock}")
    place = f"left:{_percent(seconds, scale_s)}"
    return f'<li class="mark"><span>{_CLOCK_NAMES[clock]}</span><span class="track"><i style="{place}"></i></span>{shown}</li>'


def _axis(scale_s: float) -> str:
    return (
        '<li class="axis" aria-hidden="true"><span></span><span class="ends"><span>0</span>'
        f"<span>{seconds_text(scale_s)}</span></span><span></span></li>"
    )


def _legend(starts: Sequence[Start]) -> str:
    seen = {group_of(span.stage) for start in starts for span in start.spans}
    items = "".join(
        f'<li><i class="g-{group}"></i>{words}</li>' for group, (words, _) in GROUPS.items() if group in seen
    )
    return f'<ul class="legend">{items}</ul>'


def _table(bench: Bench, what: str) -> str:
    rows = []
    for boot, clocks in bench.spread.items():
        for clock, spread in clocks.items():
            cells = "".join(
                "<td>-</td>"
                if value is None
                else f"<td>{figure(value, seconds_text(value), f'spread.{boot}.{clock}.{name}')}</td>"
                for name, value in vars(spread).items()
            )
            who = "cold" if boot == "cold" else what
            rows.append(f'<tr><th scope="row">{who}, {_CLOCK_NAMES[clock]}</th>{cells}</tr>')
    heads = "".join(f'<th scope="col">{name}</th>' for name in ("until", "median", "min", "p95", "max"))
    note = (
        "" if len(bench.starts) >= 2 * P95_FROM else f'<p class="soft">p95: from {P95_FROM} starts of each kind on.</p>'
    )
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>{note}"


def _floor(floor: Floor) -> str:
    def sized(name: str, note: str = "") -> str:
        value = getattr(floor, name)
        return figure(value, bytes_text(value), f"floor.{name}") + note

    def timed(name: str, note: str) -> str:
        value = getattr(floor, name)
        return figure(value, f"{value:.4f} s", f"floor.{name}") + note

    bandwidth = floor.bandwidth_bytes_per_s
    rows = [
        ("images of the snapshot", sized("image_bytes")),
        ("mapped by a copy, not moved", sized("mapped_bytes")),
        ("side files", sized("side_file_bytes")),
        ("copied into a copy", sized("copied_bytes", ", the rest of both")),
        (
            "bandwidth",
            figure(bandwidth, f"{bytes_text(bandwidth)}/s", "floor.bandwidth_bytes_per_s")
            + ": the fastest at which one thread read the image files out of the page cache, right after the starts",
        ),
        ("floor of a restore", timed("copied_s", " to move what is copied")),
        ("floor without mapping", timed("all_s", " if all were copied")),
    ]
    return f"<h2>Bytes moved, and the floor they imply</h2>{_facts(rows)}"


def _facts(rows: Iterable[tuple[str, str]]) -> str:
    return f'<dl class="facts">{"".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in rows)}</dl>'


def _name(start: Start) -> str:
    return f"{start.boot} {start.number}"


def _total(number: int, start: Start) -> str:
    """The start's figure; without a first token it is a sum of what the file holds, and stands nowhere in it."""
    if start.first_token_s is None:
        return f'<span class="unit">{seconds_text(start.total_s)}</span>'
    return figure(start.first_token_s, seconds_text(start.first_token_s), f"starts.{number}.first_token_s")


def _place(start_s: float, seconds: float, scale_s: float) -> str:
    # A stage of microseconds is a line of 2 pixels (`min-width`); at the very end it must not stick out.
    return f"left:min({_percent(start_s, scale_s)},100% - 2px);width:{_percent(seconds, scale_s)}"


def _percent(seconds: float, scale_s: float) -> str:
    return f"{100 * seconds / scale_s:.3f}%"
