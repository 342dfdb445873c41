"""The site in a real browser: wide and narrow, light and dark. Skipped without Chromium."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.report.browser import Browser, chromium

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

DEADLINE_S = 60.0

SHOWN = (
    "index",
    "first-start",
    "gpu-box",
    "engines",
    "hooks",
    "guard",
    "snapshots",
    "bench",
    "environment",
    "metrics",
    "api",
    "api-deployment",
    "api-platforms",
    "troubleshooting",
    "compare",
    "architecture",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser with a profile of its own."""
    with chromium(tmp_path_factory.mktemp("browser") / "profile") as started:
        yield started


@pytest.mark.parametrize("name", SHOWN)
@pytest.mark.parametrize("width", [390, 1400])
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
        browser.show(site / "guard.html", width=1400)
        browser.ask(f"document.body.dataset.mdColorScheme = '{scheme}'")
        seen[scheme] = browser.ask(colour)
    assert seen["default"] != seen["slate"]


def test_the_search_works_on_a_page_that_is_opened_as_a_file(browser: Browser, site: Path) -> None:
    """It finds the page of the canary, and fetches nothing from elsewhere."""
    browser.show(site / "index.html", width=1400)
    browser.ask("document.querySelector('.md-search__button').click() ?? 0")
    wait_for(browser, "Boolean(document.activeElement.shadowRoot?.activeElement)")  # the search is a dialog of its own
    browser.type("canary")
    wait_for(
        browser,
        "[...document.activeElement.shadowRoot.querySelectorAll('a')].some(link => link.href.includes('canary.html'))",
    )
    assert browser.complaints == []
    assert [url for url in browser.requests if not url.startswith(("file:", "data:"))] == []


def wait_for(browser: Browser, expression: str) -> None:
    """Wait until an expression is true on the page."""
    deadline = time.monotonic() + DEADLINE_S
    while browser.ask(expression) is not True:
        assert time.monotonic() < deadline, (expression, browser.complaints)
        time.sleep(0.1)


def test_a_link_to_a_section_that_moved_leads_to_its_new_page(browser: Browser, site: Path) -> None:
    """On a page that is opened as a file, too."""
    browser.show(f"{(site / 'snapshots.html').as_uri()}#what-is-in-an-image", width=1400)
    wait_for(browser, "location.pathname.endsWith('/image.html') && location.hash === '#what-is-in-an-image'")
