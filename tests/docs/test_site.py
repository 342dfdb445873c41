"""The built site: it builds without a warning, fetches nothing, links every page, and lists everything in llms.txt."""

from __future__ import annotations

import functools
import re
from dataclasses import fields, is_dataclass
from html.parser import HTMLParser
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import pytest
from scripts.site import commands, engines, llms, modules, moved
from scripts.site.docstrings import parse, prose
from scripts.site.pages import configured

from tests import ROOT
from tests.docs.pages import DOCS
from torpor.hookspecs import HOOK_NAMES, Plugin

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

FETCHED = {("script", "src"), ("link", "href"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("video", "src")}


class Elements(HTMLParser):
    """What a page fetches, its links, its anchors and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An element begins."""
        for name, value in attrs:
            if (tag, name) in FETCHED and value:
                self.fetched.append(value)
            if (tag, name) == ("a", "href") and value:
                self.links.append(value)
            if name == "id" and value:
                self.anchors.add(value)

    def handle_data(self, data: str) -> None:
        """Text between elements."""
        self.text += data


@functools.cache
def pages(site: Path) -> dict[str, Elements]:
    """Every page by its file name, except the page for missing pages, whose links need a site at the root of a host."""
    return {
        file.name: Elements(file.read_text(encoding="utf-8")) for file in site.glob("*.html") if file.name != "404.html"
    }


def navigation() -> list[str]:
    """The pages of zensical.toml, in order."""
    return [page for _, part in llms.nav_pages(configured()["nav"]) for page in part]


def flat(text: str) -> str:
    """Text on one line, without code marks, with quotes as a page shows them."""
    return prose(text.replace("`", ""))


def test_no_page_fetches_anything_from_elsewhere(site: Path) -> None:
    """No element and no style sheet loads a font, script, picture or style sheet."""
    for name, page in pages(site).items():
        assert [link for link in page.fetched if urlsplit(link).scheme or link.startswith("//")] == [], name
    for sheet in site.rglob("*.css"):
        found = re.findall(r"(?:url\(|@import )\s*[\"']?((?:https?:)?//[^\"')]+)", sheet.read_text(encoding="utf-8"))
        assert found == [], sheet


def test_every_link_of_the_site_has_a_target(site: Path) -> None:
    """The page and the anchor exist."""
    known = pages(site)
    for name, page in known.items():
        for link in page.links:
            split = urlsplit(link)
            if split.scheme or split.netloc:
                assert split.scheme == "https", f"{name}: {link}"
                continue
            target = unquote(split.path) or name
            assert (site / target).exists(), f"{name}: {link}"
            if split.fragment and target in known:
                assert unquote(split.fragment) in known[target].anchors | {"__top"}, f"{name}: {link}"


def test_every_page_is_in_the_navigation(site: Path) -> None:
    """Each once."""
    assert sorted(navigation()) == sorted(
        file.with_suffix(".md").name for file in site.glob("*.html") if file.stem != "404"
    )


def test_llms_txt_lists_the_navigation(site: Path) -> None:
    """In the form of llmstxt.org: title, summary, lists of links, each to a page's Markdown, with its title."""
    lines = (site / "llms.txt").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# Torpor"
    assert re.fullmatch(r"> \S.*", lines[2])
    links = [re.fullmatch(r"- \[(.+)\]\((\S+)\): (\S.*[.!?])", line) for line in lines if line.startswith("- ")]
    assert [link[2] for link in links if link] == navigation()
    for link in links:
        assert link
        assert (site / link[2]).read_text(encoding="utf-8").replace("`", "").startswith(f"# {link[1]}\n")


def test_the_markdown_of_a_page_is_complete(site: Path) -> None:
    """It contains the generated parts and no marks for them."""
    for page in navigation():
        assert "<!-- generated" not in (site / page).read_text(encoding="utf-8"), page
    assert "## prepare_image" in (site / "hooks.md").read_text(encoding="utf-8")


def test_the_page_of_hooks_has_every_word_of_their_docstrings(site: Path) -> None:
    """Summary, each section, and the example to paste."""
    text = " ".join(pages(site)["hooks.html"].text.split())
    for name in HOOK_NAMES:
        told = parse(getattr(Plugin, name))
        assert flat(told.summary) in text.replace("\u2019", "'"), name
        assert {"When", "Where", "Returns", "Must not", "Example"} == set(told.sections)
        for heading, body in told.sections.items():
            assert flat(body) in text, f"{name}: {heading}"


def test_the_page_of_engines_has_every_engine_flag_and_reason(site: Path) -> None:
    """It also has what each engine plugin declares."""
    text = " ".join(pages(site)["engines.html"].text.split())
    found = engines.engine_plugins()
    assert "sglang" in [engine.name for engine in found]
    for name, meaning in engines.declared_capabilities().items():
        assert name in text
        assert flat(meaning) in text
    for engine in found:
        assert f"Flags of {engine.name}" in text
        for record in engines.flags_of(engine.package):
            for said in (record.flag, record.reason, record.source, record.instead):
                assert flat(said) in text, f"{engine.name}: {said}"


def test_the_page_of_plugins_has_every_option(site: Path) -> None:
    """With its default."""
    text = " ".join(pages(site)["plugins.html"].text.split())
    for plugin in engines.plugins():
        assert f"from {plugin.package} import {plugin.cls.__name__}" in text
        assert is_dataclass(plugin.cls)
        for field in fields(plugin.cls):
            assert re.search(rf"\b{field.name} {re.escape(repr(field.default))}", text), f"{plugin.name}.{field.name}"


def test_the_page_of_commands_has_every_command(site: Path) -> None:
    """With the text of its `--help`."""
    text = pages(site)["commands.html"].text
    assert len(commands.command_names()) > 10
    for words in commands.command_names():
        assert commands.help_of(words) in text, words


def test_the_map_has_every_module(site: Path) -> None:
    """Of core and plugins."""
    text = pages(site)["architecture.html"].text
    for folder in modules.packages():
        assert f"{folder.relative_to(ROOT)}/" in text
        for file in folder.glob("*.py"):
            assert file.name in text


def test_security_is_described_in_one_place(site: Path) -> None:
    """The page is made from SECURITY.md."""
    assert not (DOCS / "security.md").exists()
    text = " ".join(pages(site)["security.html"].text.split())
    for line in (ROOT / "SECURITY.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            assert line.removeprefix("## ") in text


def test_the_drawing_of_the_guard_is_in_its_pages(site: Path) -> None:
    """It is an element of the page, so it follows the light and the dark scheme."""
    for name in ("guard.html", "design.html"):
        assert '<svg class="guard-states"' in (site / name).read_text(encoding="utf-8")


ADDRESSES = tuple((ROOT / "tests" / "docs" / "addresses-0.1.txt").read_text(encoding="utf-8").split())
"""Every page of the first site, and every heading on it. A line goes only if the changelog says so."""


def test_every_address_of_the_first_site_leads_somewhere(site: Path) -> None:
    """To the same heading, or to the one that took its place. Headings of pages that are records of a day may go."""
    known = pages(site)
    lost = []
    for address in ADDRESSES:
        target = moved.MOVED.get(address, address)
        page, _, anchor = target.partition("#")
        if page not in known or (anchor and anchor not in known[page].anchors):
            lost.append(address)
    assert lost == []


def test_a_moved_section_is_not_on_its_old_page_any_more(site: Path) -> None:
    """Every page has the script that follows links to the old place."""
    known = pages(site)
    for address in moved.MOVED:
        page, _, anchor = address.partition("#")
        assert page in known
        assert anchor not in known[page].anchors, address
    assert all(any(link.endswith("/moved.js") for link in page.fetched) for page in known.values())


def test_the_site_has_an_example_of_a_report(site: Path) -> None:
    """As `torpor report` makes it. The page of the bench shows it."""
    assert "example/report.html" in " ".join(pages(site)["bench.html"].fetched)
    assert "Content-Security-Policy" in (site / "example" / "report.html").read_text(encoding="utf-8")


def test_the_pictures_of_starts_are_in_their_pages(site: Path) -> None:
    """They are elements of the page, so they follow the light and the dark scheme."""
    for name in ("first-start.html", "snapshots.html"):
        assert '<svg class="starts"' in (site / name).read_text(encoding="utf-8")
