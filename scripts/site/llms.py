"""llms.txt (llmstxt.org): the site's contents for programs; and every page as Markdown next to its HTML.

The file has a title, a summary and one list of links for each part of the navigation. A link goes to the page's Markdown,
followed by the page's first sentence, so both always agree with the pages.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from scripts.site.pages import configured

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = ["first_sentence", "nav_pages", "title_of", "write"]

NAME = "llms.txt"


def write(site: Path, pages: Mapping[str, str], nav: list[dict[str, Any]]) -> None:
    """Write the files into the site's folder.

    Args:
        site: the built site.
        pages: complete Markdown of every page by its name.
        nav: the navigation as zensical.toml has it.
    """
    for name, markdown in pages.items():
        (site / name).write_text(markdown, encoding="utf-8")
    (site / NAME).write_text(llms_txt(pages, nav), encoding="utf-8")


def llms_txt(pages: Mapping[str, str], nav: list[dict[str, Any]]) -> str:
    """The text of the file."""
    settings = configured()
    lines = [f"# {settings['site_name']}", "", f"> {settings['site_description']}", ""]
    for heading, part in nav_pages(nav):
        lines += [f"## {heading}", ""]
        lines += [f"- [{title_of(pages[page])}]({page}): {first_sentence(pages[page])}" for page in part]
        lines.append("")
    return "\n".join(lines)


def nav_pages(nav: list[dict[str, Any]]) -> Iterator[tuple[str, list[str]]]:
    """Parts of the navigation with their pages, those of its sub-parts included. A page outside of any part is one by itself."""
    for entry in nav:
        for heading, pages in entry.items():
            yield heading, list(_below(pages))


def _below(pages: object) -> Iterator[str]:
    if isinstance(pages, str):
        yield pages
    elif isinstance(pages, dict):
        for part in pages.values():
            yield from _below(part)
    elif isinstance(pages, list):
        for one in pages:
            yield from _below(one)


def title_of(markdown: str) -> str:
    """A page's first heading.

    Raises:
        ValueError: it has none.
    """
    found = re.search(r"^# (.+)$", markdown, re.MULTILINE)
    if found is None:
        raise ValueError(f"A page has no title; it begins with {markdown[:80]!r}.")
    return found[1].replace("`", "")


def first_sentence(markdown: str) -> str:
    """The first sentence of a page's first paragraph, without marks of links and emphasis.

    Raises:
        ValueError: there is no paragraph.
    """
    for block in re.split(r"\n\s*\n", markdown):
        if re.match(r"[A-Z`*\[]", block):
            text = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", " ".join(block.split())).replace("**", "").replace("`", "")
            return re.split(r"(?<=[.!?])\s", text + " ", maxsplit=1)[0]
    raise ValueError(f"A page has no paragraph; it begins with {markdown[:80]!r}.")
