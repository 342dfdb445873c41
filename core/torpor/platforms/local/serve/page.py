"""The page of the control paths: one HTML file, which loads nothing but the status, with the key that a person gives it.

Jinja2 puts it together. The page itself holds nothing secret; what it shows it fetches, and writes as text, never as HTML.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from torpor._version import __version__

__all__ = ["ControlPage", "control_page"]


class ControlPage(NamedTuple):
    """The page.

    Attributes:
        html: all of it.
        policy: its Content-Security-Policy: only this script and this style run, and only this server is asked.
    """

    html: str
    policy: str


@functools.cache
def control_page() -> ControlPage:
    """The page as HTML, and what a browser may do with it."""
    loader = PackageLoader("torpor.platforms.local.serve")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    style, script = (_source(loader, environment, name) for name in ("control.css", "control.js"))
    # Both are files of this package, with nothing filled in.
    html = environment.get_template("control.html").render(
        version=__version__,
        style=Markup(style),  # noqa: S704
        script=Markup(script),  # noqa: S704
    )
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; connect-src 'self'; img-src data:; "
        "form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
    )
    return ControlPage(html, policy)


def _source(loader: PackageLoader, environment: Environment, name: str) -> str:
    return loader.get_source(environment, name)[0]


def _hash(source: str) -> str:
    """How a policy names an inline script or style (CSP level 3)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"
