"""The control page in a real browser: it asks for the key, shows the deployments, and acts by its buttons."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.platforms.local.serve.served import wait_until, write_app
from tests.report.browser import Browser, chromium
from torpor.platforms.local.criu_backend import CriuBackend

if TYPE_CHECKING:
    from pathlib import Path

    from tests.platforms.local.serve.conftest import Serve

OPEN = "document.getElementById('key').value = {}; document.querySelector('#door button').click(); true"
CELL = "document.querySelector('tr[data-name={}] .state')?.textContent ?? ''"
SAID = "document.getElementById('said').textContent"
PRESS = "[...document.querySelectorAll('tr[data-name={}] button')].find(one => one.textContent === {}).click(); true"


def becomes(browser: Browser, expression: str, value: object) -> bool:
    """Whether an expression gets this value in time."""
    return wait_until(lambda: browser.ask(expression) == value)


@pytest.mark.slow
def test_the_page_shows_and_steers(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong key shows nothing. The right one shows every deployment; its buttons wake, pin and put to sleep."""
    monkeypatch.setattr(CriuBackend, "available", lambda *_: ("there is no CRIU",))
    server = serve(write_app(tmp_path, "a"), write_app(tmp_path, "b"))
    page = f"http://127.0.0.1:{server.address[1]}/torpor/"
    with chromium(tmp_path / "profile") as browser:
        browser.show(page, width=420, scheme="dark")
        browser.ask(OPEN.format(json.dumps("wrong")))
        assert becomes(browser, SAID, "This key is not allowed.")
        browser.complaints.clear()  # the browser notes the 401
        browser.ask(OPEN.format(json.dumps(server.key)))
        assert becomes(browser, CELL.format("a"), "on disk")
        assert browser.ask("document.scrollingElement.scrollWidth <= innerWidth")
        assert browser.ask("document.getElementById('wide').scrollWidth <= innerWidth")
        browser.ask(PRESS.format("a", json.dumps("wake")))
        assert becomes(browser, CELL.format("a"), "serving")
        browser.ask(PRESS.format("a", json.dumps("pin")))
        assert becomes(browser, CELL.format("a"), "serving, pinned")
        browser.ask(PRESS.format("a", json.dumps("sleep")))
        assert becomes(browser, CELL.format("a"), "asleep, pinned")
        assert browser.ask(CELL.format("b")) == "on disk"
        assert browser.complaints == []
        assert {url for url in browser.requests if not url.startswith((page, "data:"))} == set()
