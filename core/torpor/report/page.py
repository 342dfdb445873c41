"""The page of recorded starts: one HTML file without scripts, which loads nothing from a network.

Jinja2 renders `templates/page.html` and escapes every text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from torpor._version import __version__
from torpor.report.figures import bytes_text, date_text, seconds_text
from torpor.report.groups import GROUPS, group_of, legend
from torpor.report.measured import CLOCKS, Bench
from torpor.report.starts import P95_FROM
from torpor.values.plain_text import plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torpor.report.reading import Recorded
    from torpor.report.starts import Start

__all__ = ["page"]

_CLOCK_NAMES = {"port_s": "port open", "ready_s": "ready", "first_token_s": "first token"}
_SMALLEST_SCALE_S = 1e-6


def page(recordings: Sequence[Bench | Recorded]) -> str:
    """The page of one recording or several, as HTML."""
    title = " · ".join(one.deployment if isinstance(one, Bench) else one.name for one in recordings)
    return (
        _environment()
        .get_template("page.html")
        .render(
            recordings=recordings,
            title=title,
            version=__version__,
            clocks=CLOCKS,
            clock_names=_CLOCK_NAMES,
            groups=GROUPS,
            p95_from=P95_FROM,
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("torpor.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["bench"] = lambda one: isinstance(one, Bench)
    environment.filters |= {
        "bytes": bytes_text,
        "date": date_text,
        "exact": repr,
        "group": group_of,
        "legend": legend,
        "scale": _scale_s,
        "seconds": seconds_text,
    }
    return environment


def _shown(value: object) -> object:
    """A value as the page may show it: without control characters, and without letters that UTF-8 cannot encode."""
    return value if isinstance(value, Markup) else plain(str(value))


def _scale_s(starts: Sequence[Start]) -> float:
    """The length of these starts' track in seconds."""
    return max([_SMALLEST_SCALE_S, *(start.drawn_s for start in starts)])
