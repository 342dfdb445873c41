"""Functions that mkdocs calls while it builds the site (see `hooks:` in mkdocs.yml).

Pages of docs/ read well where they lie, too: links in them go to files of the repository. Here such a link becomes one to
the page that is made of the file, e.g. `../SECURITY.md` one to `security.md`.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File
from scripts.site import commands, engines, exit_codes, faults, guard_states, hook_reference, llms, modules, parts

if TYPE_CHECKING:
    from collections.abc import Callable

    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

__all__ = ["ADOPTED", "PARTS", "on_env", "on_files", "on_page_markdown", "on_post_build"]

ROOT = Path(__file__).parents[2]

_FIGURES = ROOT / "benchmarks" / "gpu"

ADOPTED = {
    "security.md": "SECURITY.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "gpu-figures.md": "benchmarks/gpu/NOTES.md",
    **{file.name: f"benchmarks/gpu/{file.name}" for kind in ("svg", "json") for file in _FIGURES.glob(f"*.{kind}")},
}
"""Pages of the site that come from files outside of docs/."""

PARTS: dict[str, Callable[[], str]] = {
    "hook_timeline": hook_reference.hook_timeline,
    "hook_reference": hook_reference.hook_reference,
    "check_reference": hook_reference.check_reference,
    "engine_reference": hook_reference.engine_reference,
    "event_reference": hook_reference.event_reference,
    "listener_reference": hook_reference.listener_reference,
    "capabilities": engines.capability_table,
    "flags": engines.flag_tables,
    "options": engines.option_tables,
    "commands": commands.command_reference,
    "exit_codes": exit_codes.exit_code_table,
    "errors": exit_codes.error_table,
    "faults": faults.fault_table,
    "module_map": modules.module_map,
}
"""What `<!-- generated: NAME -->` stands for."""

_PART = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)
_DRAWINGS = {"guard-states": guard_states.svg, "parts": parts.svg}
_DRAWING = re.compile(rf"^!\[[^\]]*\]\(({'|'.join(_DRAWINGS)})\.svg\)$", re.MULTILINE)
_LINK = re.compile(r"(?<=\]\()(?!https?:|#)([^)\s#]+)((?:#[^)\s]*)?)(?=\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that come from files outside docs/."""
    for target, source in ADOPTED.items():
        files.append(File.generated(config, target, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 - mkdocs calls by name
    """Fill in generated parts, and correct links to files of the repository."""
    source = page.file.src_uri
    folder = posixpath.dirname(ADOPTED.get(source, f"docs/{source}"))
    markdown = _LINK.sub(lambda link: page_of(link[1], folder) + link[2], markdown)
    markdown = _DRAWING.sub(lambda image: f'<div class="drawing">\n{_DRAWINGS[image[1]]()}</div>', markdown)
    return _PART.sub(lambda part: PARTS[part[1]](), markdown)


def page_of(target: str, folder: str) -> str:
    """The site's file for a link's target.

    Args:
        target: path in a link.
        folder: folder of the repository in which the file with that link lies; empty for the root.
    """
    path = posixpath.normpath(posixpath.join(folder, target))
    made_of = {source: page for page, source in ADOPTED.items()}
    return made_of.get(path, path.removeprefix("docs/"))


def on_env(env: object, config: MkDocsConfig, files: Files) -> None:  # noqa: ARG001 - mkdocs calls by name
    """Keep each page's final Markdown for `on_post_build`."""
    llms.remember(files)


def on_post_build(config: MkDocsConfig) -> None:
    """Write llms.txt, and every page as Markdown next to its HTML."""
    llms.write(config)
