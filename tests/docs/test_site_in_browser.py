"""The site in a real browser: wide and narrow, light and dark. Skipped without Chromium."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.report.browser import Browser, chromium

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

SHOWN = ("index", "first-start", "engines", "hooks", "guard", "troubleshooting", "compare", "architecture")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser with a profile of its own."""
    with chromium(tmp_path_factory.mktemp("browser") / "profile") as started:
        yield started


@pytest.mark.parametrize("name", SHOWN)
@pytest.mark.parametrize("width", [400, 1300])
@pytest.mark.parametrize("scheme", ["default", "slate"])
def test_a_page_fits_its_window_and_fetches_nothing(
    browser: Browser, site: Path, name: str, width: int, scheme: str
) -> None:
    """No sideways scrolling, no error in the console, no request except for the site's own files."""
    browser.show(site / f"{name}.html", width=width)
    browser.ask(f"document.body.dataset.mdColorScheme = '{scheme}'")  # as the page's switch does
    assert browser.ask("document.documentElement.scrollWidth <= window.innerWidth") is True
    assert browser.complaints == []
    assert [url for url in browser.requests if not url.startswith(("file:", "data:"))] == []


def test_the_drawing_can_be_read_in_the_dark_scheme(browser: Browser, site: Path) -> None:
    """Its text has the page's colour."""
    colour = "getComputedStyle(document.querySelector('.guard-states .name')).fill"
    seen = {}
    for scheme in ("default", "slate"):
        browser.show(site / "guard.html", width=1300)
        browser.ask(f"document.body.dataset.mdColorScheme = '{scheme}'")
        seen[scheme] = browser.ask(colour)
    assert seen["default"] != seen["slate"]
