"""llms.txt (llmstxt.org): the site's contents for programs; and every page as Markdown next to its HTML.

The file has a title, a summary and one list of links for each part of the navigation. A link goes to the page's Markdown,
followed by the page's first sentence, so both always agree with the pages.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

__all__ = ["first_sentence", "nav_pages", "remember", "title_of", "write"]

NAME = "llms.txt"

_markdown: dict[str, str] = {}
"""Markdown of every page of this build, by its source path: at the end of a build mkdocs passes only its settings."""


def remember(files: Files) -> None:
    """Keep the Markdown of all pages."""
    _markdown.clear()
    for file in files.documentation_pages():
        if file.page is not None and file.page.markdown is not None:
            _markdown[file.src_uri] = file.page.markdown


def write(config: MkDocsConfig) -> None:
    """Write the files into the site's folder."""
    site = Path(config.site_dir)
    for source, markdown in _markdown.items():
        (site / source).write_text(markdown, encoding="utf-8")
    (site / NAME).write_text(llms_txt(config), encoding="utf-8")


def llms_txt(config: MkDocsConfig) -> str:
    """The text of the file."""
    lines = [f"# {config.site_name}", "", f"> {config.site_description}", ""]
    for heading, pages in nav_pages(cast("list[object]", config.nav)):
        lines += [f"## {heading}", ""]
        lines += [f"- [{title_of(_markdown[page])}]({page}): {first_sentence(_markdown[page])}" for page in pages]
        lines.append("")
    return "\n".join(lines)


def nav_pages(nav: list[object]) -> Iterator[tuple[str, list[str]]]:
    """Parts of the navigation with their pages. A page outside of any part is a part by itself."""
    for entry in nav:
        for heading, pages in cast("dict[str, list[str] | str]", entry).items():
            yield heading, [pages] if isinstance(pages, str) else pages


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
