"""The pages of the site as Markdown: generated parts filled in, pages for files outside of docs/, corrected links.

Pages of docs/ read well where they lie, too: links in them go to files of the repository. Here such a link becomes one to
the page that is made of the file, e.g. `../SECURITY.md` one to `security.md`.
"""

from __future__ import annotations

import functools
import posixpath
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from scripts.site import (
    api,
    commands,
    engines,
    environment,
    exit_codes,
    faults,
    guard_states,
    hook_reference,
    modules,
    moved,
    parts,
    pictures,
    records,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ADOPTED", "CONFIG", "DOCS", "PARTS", "configured", "made_files", "other_files", "page_of", "written"]

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
CONFIG = ROOT / "zensical.toml"

_FIGURES = (ROOT / "benchmarks", ROOT / "benchmarks" / "gpu")


def _figures(folder: Path) -> list[Path]:
    """The measured figures of a folder, and their drawings."""
    return sorted(file for file in folder.iterdir() if file.suffix in (".json", ".svg"))


ADOPTED = {
    "security.md": "SECURITY.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "gpu-figures.md": "benchmarks/gpu/NOTES.md",
    **{file.name: file.relative_to(ROOT).as_posix() for folder in _FIGURES for file in _figures(folder)},
}
"""Files of the site that come from outside of docs/."""

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
    "api_index": api.name_index,
    "variables": functools.partial(environment.variable_table, by_hand=True),
    "own_variables": functools.partial(environment.variable_table, by_hand=False),
    "foreign_variables": environment.foreign_table,
    "metrics": records.metric_table,
    "textfile_metrics": records.textfile_table,
    "records": records.record_table,
    "stages": records.stage_table,
}
"""What `<!-- generated: NAME -->` stands for."""

_PART = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)
_DRAWINGS: dict[str, Callable[[], str]] = {
    "guard-states": guard_states.svg,
    "parts": parts.svg,
    "restore": pictures.restore_svg,
    "fleet": pictures.fleet_svg,
}
_DRAWING = re.compile(rf"^!\[[^\]]*\]\(({'|'.join(_DRAWINGS)})\.svg\)$", re.MULTILINE)
_LINK = re.compile(r"(?<=\]\()(?!https?:|#)([^)\s#]+)((?:#[^)\s]*)?)(?=\))")


def configured() -> dict[str, Any]:
    """The settings of the site: the table `project` of zensical.toml."""
    return cast("dict[str, Any]", tomllib.loads(CONFIG.read_text(encoding="utf-8"))["project"])


def written() -> dict[str, str]:
    """Every page by its file name, complete, in the order of the names."""
    sources = {file.name: file for file in DOCS.glob("*.md")}
    sources |= {target: ROOT / source for target, source in ADOPTED.items() if target.endswith(".md")}
    return {name: _complete(name, sources[name].read_text(encoding="utf-8")) for name in sorted(sources)}


def other_files() -> dict[str, Path]:
    """Every other file of the site by its name: pictures, data, the style sheet, scripts."""
    found = {file.name: file for file in DOCS.iterdir() if file.is_file() and file.suffix != ".md"}
    return found | {target: ROOT / source for target, source in ADOPTED.items() if not target.endswith(".md")}


def made_files() -> dict[str, str]:
    """Files of the site that are made from code or data, by their place: the script for moved sections, an example of a report."""
    return {moved.SCRIPT: moved.script(), "example/report.html": pictures.report_page()}


def page_of(target: str, folder: str) -> str:
    """The site's file for a link's target.

    Args:
        target: path in a link.
        folder: folder of the repository in which the file with that link lies; empty for the root.
    """
    path = posixpath.normpath(posixpath.join(folder, target))
    made_of = {source: page for page, source in ADOPTED.items()}
    return made_of.get(path, path.removeprefix("docs/"))


def _complete(name: str, markdown: str) -> str:
    """A page with its generated parts and drawings, and with links to pages of the site."""
    folder = posixpath.dirname(ADOPTED.get(name, f"docs/{name}"))
    markdown = _LINK.sub(lambda link: page_of(link[1], folder) + link[2], markdown)
    markdown = _DRAWING.sub(lambda image: f'<div class="drawing">\n{_DRAWINGS[image[1]]()}</div>', markdown)
    return _PART.sub(lambda part: PARTS[part[1]](), markdown)
