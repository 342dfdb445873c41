"""Recorded starts as one page: what was measured, read back from a file, drawn as waterfalls.

starts       values: a span of a start, a start with its clocks, medians and spread; stage records as starts
measured     what `torpor bench` measured, as JSON and back
reading      a file of either kind
page         the page: HTML and CSS alone, nothing from outside, no script
figures      numbers as text, with their exact value beside it
style        the page's style sheet
"""

from __future__ import annotations

from torpor.report.measured import Bench, Floor, Machine
from torpor.report.page import page
from torpor.report.reading import Recorded, read_report
from torpor.report.starts import Span, Spread, Start, starts_of

__all__ = [
    "Bench",
    "Floor",
    "Machine",
    "Recorded",
    "Span",
    "Spread",
    "Start",
    "page",
    "read_report",
    "starts_of",
]
