"""Builds the site.

    python -m scripts.site.build                    into site/
    python -m scripts.site.build --to FOLDER        into another folder, which is replaced
    python -m scripts.site.build --serve [PORT]     and serves it on this machine until Ctrl-C

The complete pages go into a temporary folder, where Zensical makes HTML of them. Nothing is fetched. Anything wrong is an error:
what Zensical warns of, a page outside the navigation, a picture that is not there.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.site import api, llms
from scripts.site.pages import CONFIG, ROOT, configured, made_files, other_files, written

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["SiteError", "build", "problems"]

DEADLINE_S = 300.0
_IMAGE = re.compile(r"!\[[^\]]*\]\((?!https?:)([^)\s]+)\)|<img[^>]* src=\"(?!https?:)([^\"]+)\"")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class SiteError(Exception):
    """The site cannot be built. The message says what is wrong."""


def build(target: Path) -> None:
    """Build the site into a folder; what was in it before is gone.

    Raises:
        SiteError: something is wrong with a page, or Zensical is not installed.
    """
    if target.is_dir() and any(target.iterdir()) and not (target / llms.NAME).is_file():
        raise SiteError(
            f"{target} holds files, but no site. Name an empty or new folder, because what is in it is deleted."
        )
    pages, others, nav = written(), other_files(), configured()["nav"]
    if found := problems(pages, others, [page for _, part in llms.nav_pages(nav) for page in part]):
        raise SiteError("\n".join(found))
    with tempfile.TemporaryDirectory(prefix="torpor-site-") as name:
        folder = Path(name)
        _put(folder, pages, others)
        _run_zensical(folder)
        llms.write(folder / "site", api.expanded(pages), nav)
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(folder / "site", target)


def problems(pages: Mapping[str, str], others: Iterable[str], nav: Sequence[str]) -> list[str]:
    """What Zensical would not notice.

    Args:
        pages: Markdown of every page by its name.
        others: names of the other files.
        nav: the pages of the navigation.
    """
    known = {*pages, *others}
    return [
        *(f"The navigation in {CONFIG.name} names {page}, which is no page." for page in nav if page not in pages),
        *(f"{page} is not in the navigation. Add it to {CONFIG.name}." for page in pages if page not in nav),
        *(f"The navigation names {page} twice." for page in sorted({one for one in nav if nav.count(one) > 1})),
        *(
            f"{page} shows {file}, which is no file of the site."
            for page, text in pages.items()
            for file in (one[1] or one[2] for one in _IMAGE.finditer(text))
            if file not in known
        ),
    ]


def _put(folder: Path, pages: Mapping[str, str], others: Mapping[str, Path]) -> None:
    """Everything that Zensical reads."""
    (folder / "docs").mkdir()
    for page, text in pages.items():
        (folder / "docs" / page).write_text(text, encoding="utf-8")
    for file, path in others.items():
        shutil.copyfile(path, folder / "docs" / file)
    for place, text in made_files().items():
        (folder / "docs" / place).parent.mkdir(exist_ok=True)
        (folder / "docs" / place).write_text(text, encoding="utf-8")
    shutil.copyfile(CONFIG, folder / CONFIG.name)
    for source in ("core", "plugins"):  # mkdocstrings reads docstrings there
        (folder / source).symlink_to(ROOT / source)


def _run_zensical(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    told = _COLOUR.sub("", done.stdout + done.stderr)
    if done.returncode or "No issues found" not in told:
        raise SiteError(told.partition("Traceback (most recent call last)")[0].strip())


def _serve(folder: Path, port: int) -> None:
    """Serve the folder on this machine until Ctrl-C.

    Raises:
        SiteError: the port is taken.
    """
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        raise SiteError(
            f"Cannot bind port {port} on 127.0.0.1: {error.strerror}. Name another one: --serve PORT"
        ) from None
    with server:
        print(f"http://127.0.0.1:{server.server_port}/ - Ctrl-C ends it", flush=True)
        server.serve_forever()


def main(argv: Sequence[str] | None = None) -> int:
    """Build, and serve if asked to. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m scripts.site.build", description="Build the site.")
    parser.add_argument("--to", type=Path, default=ROOT / "site", metavar="FOLDER", help="folder that is replaced")
    parser.add_argument("--serve", type=int, nargs="?", const=8001, metavar="PORT", help="serve it until Ctrl-C")
    asked = parser.parse_args(argv)
    try:
        build(asked.to)
        if asked.serve is not None:
            _serve(asked.to, asked.serve)
    except SiteError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
