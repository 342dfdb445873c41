#!/usr/bin/env python3
"""Make a page's relative links absolute, because the package index shows the README without the files beside it.

scripts/absolute_links.py README.md https://github.com/OWNER/NAME v0.2.0      changes the file
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

__all__ = ["absolute"]

_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#|mailto:)([^)\s]+)\)")
_USAGE = 2


def absolute(text: str, repository: str, tag: str) -> str:
    """The page with links to the repository's files at a tag.

    Args:
        text: Markdown.
        repository: its URL, without a slash at the end.
        tag: a tag, branch or commit.
    """

    def link(found: re.Match[str]) -> str:
        kind = "raw" if found[1] else "blob"  # a picture has to be the file itself
        return f"{found[1]}[{found[2]}]({repository}/{kind}/{tag}/{found[3]})"

    return _LINK.sub(link, text)


def main(words: list[str]) -> int:
    """Change the file that the command line names; the exit code."""
    if len(words) != 3:  # noqa: PLR2004 - the three of the usage line
        print(__doc__, file=sys.stderr)
        return _USAGE
    file, repository, tag = words
    page = Path(file)
    page.write_text(absolute(page.read_text(encoding="utf-8"), repository.rstrip("/"), tag), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
