"""Recorded starts: what was measured, read back from a file, and drawn as waterfalls on one page.

starts       a start with its spans and clocks; medians and spread; stage records as starts
measured     what `torpor bench` measured, as JSON and back
reading      reads a file of either kind
page         the page; only this module imports Jinja2
figures      numbers as text
groups       groups of stages: their colours and words
"""

from __future__ import annotations

from torpor.report.measured import Bench, Floor, Machine
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
    "read_report",
    "starts_of",
]
