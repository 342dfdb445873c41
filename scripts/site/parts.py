"""The parts of the code: which modules each one holds, who may import whom, and a drawing of them.

    python -m scripts.site.parts     writes docs/parts.svg

`LAYERS` is the one table of parts. `tests/test_layers.py` holds the imports of the code against it. The drawing shows the
same table, and on it the path of a start, which is read from docs/architecture.md. So neither can drift from the code.
"""

from __future__ import annotations

import html
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["APART", "DIAGRAM", "LAYERS", "PARTS", "Layer", "Part", "Phase", "Step", "part_of", "path", "svg"]

ROOT = Path(__file__).parents[2]
DIAGRAM = ROOT / "docs" / "parts.svg"
PAGE = ROOT / "docs" / "architecture.md"


@dataclass(frozen=True)
class Part:
    """A part of the code.

    Attributes:
        name: as people say it.
        holds: what it holds, in a few words.
        modules: dotted names of its modules and packages. A package includes every module below it that no other part names.
        in_engine: whether it runs in the engine's own process, where only the standard library is at hand.
    """

    name: str
    holds: str
    modules: tuple[str, ...]
    in_engine: bool = False


@dataclass(frozen=True)
class Layer:
    """A row of parts.

    Attributes:
        name: what its parts have in common.
        parts: they import from lower layers, and from parts to their left.
    """

    name: str
    parts: tuple[Part, ...]


def _package(name: str, holds: str, *, in_engine: bool = False) -> Part:
    """A part that is one package of core."""
    return Part(name, holds, (f"torpor.{name.replace('/', '.')}",), in_engine)


LAYERS = (
    Layer(
        "basics",
        (
            Part(
                "errors",
                "every error of Torpor",
                ("torpor.errors", "torpor._lazy", "torpor._override", "torpor._version", "torpor.platforms"),
            ),
            _package("values", "what people set, checked"),
            _package("network", "clients, proxies, limits"),
            _package("tasks", "what can be served: questions, answers, comparison"),
            _package("telemetry", "events, stages, metrics"),
        ),
    ),
    Layer(
        "the engine",
        (
            _package("engine_patches", "make an engine fit for a snapshot", in_engine=True),
            _package("guard", "lets requests in, or not", in_engine=True),
            _package("launcher", "starts the engine behind the guard", in_engine=True),
            _package("engine", "process tree, log, its end"),
        ),
    ),
    Layer(
        "framework",
        (
            Part(
                "framework",
                "Deployment, the six hooks, Recipe, Lifecycle, the app file, the client",
                (
                    "torpor",
                    "torpor.adapter_checks",
                    "torpor.app_file",
                    "torpor.app_modules",
                    "torpor.client",
                    "torpor.deployment",
                    "torpor.discovery",
                    "torpor.hook_methods",
                    "torpor.hookspecs",
                    "torpor.lifecycle",
                    "torpor.listener",
                    "torpor.plugin_checks",
                    "torpor.plugin_order",
                    "torpor.plugin_settings",
                    "torpor.recipe",
                ),
            ),
        ),
    ),
    Layer(
        "one start",
        (
            _package("engine_plugins", "ChatServer, flags, warm-up"),
            _package("build_steps", "downloads and compilation before a start"),
            _package("runtime", "stages, readiness, canary, guard client"),
        ),
    ),
    Layer(
        "snapshots/*",
        (
            _package("snapshots/store", "folder and manifest"),
            _package("snapshots/sandbox", "namespaces of one replica"),
            _package("snapshots/criu", "dump and restore of processes"),
            _package("snapshots/before_capture", "what no snapshot can hold"),
            _package("snapshots/gpu", "GPU memory to the host and back"),
            _package("snapshots/criu_install", "CRIU without root"),
        ),
    ),
    Layer(
        "snapshots",
        (
            _package("snapshots", "capture, restore, fit: does a snapshot fit here and now?"),
            _package("snapshots/remote", "push to a store, pull from it"),
        ),
    ),
    Layer("serving", (_package("serving", "several models at one address: routing by model, queues, leases"),)),
    Layer(
        "platforms",
        (
            _package("platforms/local", "this machine: replicas, gateway, backends"),
            _package("platforms/modal", "Modal: image, server, log"),
            _package("platforms/ray", "Ray Serve: options, manifest, replicas"),
        ),
    ),
    Layer(
        "tools",
        (
            _package("testing", "contract kit, stand-in engine"),
            _package("doctor", "finds what blocks a start"),
            _package("plan", "what an app will do"),
            _package("report", "starts as an HTML page"),
            _package("scaffold", "torpor new"),
        ),
    ),
    Layer("command line", (_package("cli", "one module for each command"),)),
)
"""Every part of core, lowest layer first."""

PARTS = tuple(part for layer in LAYERS for part in layer.parts)
"""Every part of core, lowest first: a part imports only parts that stand before it."""

APART = (
    {"platforms/local", "platforms/modal"},
    {"platforms/modal", "platforms/ray"},
    {"doctor", "testing"},
    {"engine_plugins", "build_steps"},
)
"""Parts that never import each other, in neither direction."""

_PLUGINS = Part(
    "plugins/", "SGLang, vLLM, DeepGEMM, fast loaders, Hugging Face cache: they import core, never each other", ()
)


def part_of(module: str) -> Part | None:
    """The part that holds a module of core, given its dotted name.

    The longest matching name in the table decides: the module or a package above it. `torpor` matches only itself, so a
    new module at the top belongs to no part until the table names it.
    """
    found = [(len(name), part) for part in PARTS for name in part.modules if _holds(name, module)]
    return max(found, key=lambda one: one[0])[1] if found else None


def _holds(name: str, module: str) -> bool:
    return module == name or (name != "torpor" and module.startswith(f"{name}."))


# The path of a start


@dataclass(frozen=True)
class Step:
    """A step of the path.

    Attributes:
        number: counted through all phases.
        label: what happens, in a few words.
        part: name of the part where it happens.
    """

    number: int
    label: str
    part: str


@dataclass(frozen=True)
class Phase:
    """Consecutive steps under one heading."""

    name: str
    steps: tuple[Step, ...]


_HEADING = re.compile(r"^### (.+)$", re.MULTILINE)
_STEP = re.compile(r"^(\d+)\. \*\*(.+?)\.?\*\*(.*?)(?=^\d+\. |\Z)", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"`(core|plugins)/([\w/]+)\.py:[\w.]+`")


def path() -> tuple[Phase, ...]:
    """The path of a start as the page tells it: under each heading the numbered steps, each with the part it names first.

    Raises:
        ValueError: a step names no function, or one that is in no part.
    """
    section = PAGE.read_text(encoding="utf-8").partition("## The path of one start")[2].partition("\n## ")[0]
    pieces = _HEADING.split(section)
    return tuple(
        Phase(name, tuple(_step(*found) for found in _STEP.findall(text)))
        for name, text in zip(pieces[1::2], pieces[2::2], strict=True)
        if _STEP.search(text)
    )


def _step(number: str, label: str, text: str) -> Step:
    file = _FILE.search(text)
    if file is None:
        raise ValueError(f"Step {number} of {PAGE.name} names no function.")
    part = _PLUGINS if file[1] == "plugins" else part_of(file[2].replace("/", "."))
    if part is None:
        raise ValueError(f"Step {number} of {PAGE.name} names {file[0]}, which is in no part.")
    return Step(int(number), label, part.name)


# The drawing

_WIDTH = 1180
_LEFT = 126  # where the boxes begin; the names of the layers stand before them
_GAP = 10
_ROW = 62
_STEP_LINE = 24
_PHASES = ("cold", "capture", "restore")
"""Colour of each phase, by the class of the style sheet."""

_NOTE = (
    "A part imports only parts below it or to its left. Dashed and coloured: runs inside the engine's own process, on the "
    "standard library alone."
)
_STYLE = """
.parts{--ink:#1f2328;--soft:#59636e;--line:#c3ccd5;--box:#f6f8fa;--inside:#fff5e6;--edge:#d4a72c;--page:#fff;--cold:#0969da}
.parts{--capture:#8250df;--restore:#1a7f37;font:13px system-ui,-apple-system,"Segoe UI",sans-serif}
@media(prefers-color-scheme:dark){.parts{--ink:#e6edf3;--soft:#9aa5b1;--line:#3d444d;--box:#1c2128;--inside:#2b2413}
.parts{--edge:#9e7b1f;--page:#0d1117;--cold:#58a6ff;--capture:#bc8cff;--restore:#3fb950}}
[data-md-color-scheme=default] .parts{--ink:#1f2328;--soft:#59636e;--line:#c3ccd5;--box:#f6f8fa;--inside:#fff5e6;--page:#fff}
[data-md-color-scheme=default] .parts{--edge:#d4a72c;--cold:#0969da;--capture:#8250df;--restore:#1a7f37}
[data-md-color-scheme=slate] .parts{--ink:#e6edf3;--soft:#9aa5b1;--line:#4a5160;--box:#2a2d3a;--inside:#36301f;--page:#1e2129}
[data-md-color-scheme=slate] .parts{--edge:#9e7b1f;--cold:#58a6ff;--capture:#bc8cff;--restore:#3fb950}
.parts rect{fill:var(--box);stroke:var(--line)}
.parts rect.inside{fill:var(--inside);stroke:var(--edge);stroke-dasharray:4 3}
.parts rect.outside{fill:none;stroke-dasharray:4 3}
.parts text{fill:var(--ink)}
.parts .name{font-weight:600;font-size:14px}
.parts .holds,.parts .note{fill:var(--soft);font-size:12px}
.parts .layer{fill:var(--soft);text-anchor:end}
.parts .phase{font-weight:600;font-size:15px}
.parts .where{fill:var(--soft)}
.parts .badge{font-size:11px;font-weight:700;fill:var(--page);text-anchor:middle}
.parts .cold{fill:var(--cold)}
.parts .capture{fill:var(--capture)}
.parts .restore{fill:var(--restore)}
""".strip()


def svg() -> str:
    """The drawing as one SVG element, light and dark, without an empty line (Markdown ends a block there)."""
    phases = path()
    rows = [("", (_PLUGINS,)), *((layer.name, layer.parts) for layer in reversed(LAYERS))]
    below = 16 + len(rows) * (_ROW + _GAP) + 22
    height = below + 34 + max(len(phase.steps) for phase in phases) * _STEP_LINE + 8
    lines = [
        f'<svg class="parts" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img">',
        f"<title>{html.escape(_told(phases))}</title>",
        f"<style>{_STYLE}</style>",
        *(line for number, row in enumerate(rows) for line in _row(*row, 16 + number * (_ROW + _GAP), phases)),
        f'<text class="note" x="{_LEFT}" y="{below - 12}">{_NOTE}</text>',
        *(line for number, phase in enumerate(phases) for line in _column(number, phase, below + 22)),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _told(phases: Sequence[Phase]) -> str:
    """The drawing in words, for readers who cannot see it."""
    parts = "; ".join(f"{layer.name}: {', '.join(part.name for part in layer.parts)}" for layer in reversed(LAYERS))
    steps = "; ".join(f"{step.number} {step.label} ({step.part})" for phase in phases for step in phase.steps)
    return f"The parts of the code, highest layer first. {parts}. The path of a start: {steps}."


def _row(layer: str, parts: Sequence[Part], y: int, phases: Sequence[Phase]) -> Iterator[str]:
    """The name of a layer, and its boxes over the whole width."""
    yield f'<text class="layer" x="{_LEFT - 14}" y="{y + _ROW // 2 + 5}">{layer}</text>'
    width = (_WIDTH - _LEFT - 12 - _GAP * (len(parts) - 1)) // len(parts)
    for place, part in enumerate(parts):
        yield from _box(part, _LEFT + place * (width + _GAP), y, width, phases)


def _box(part: Part, x: int, y: int, width: int, phases: Sequence[Phase]) -> Iterator[str]:
    look = ' class="inside"' if part.in_engine else "" if part.modules else ' class="outside"'
    yield f'<rect{look} x="{x}" y="{y}" width="{width}" height="{_ROW}" rx="8"/>'
    yield f'<text class="name" x="{x + 12}" y="{y + 23}">{_short(part.name)}</text>'
    for number, line in enumerate(textwrap.wrap(part.holds, (width - 20) // 6)):
        yield f'<text class="holds" x="{x + 12}" y="{y + 41 + 15 * number}">{html.escape(line)}</text>'
    badges = [
        (step, _PHASES[place]) for place, phase in enumerate(phases) for step in phase.steps if step.part == part.name
    ]
    for number, (step, colour) in enumerate(reversed(badges)):
        yield from _badge(step.number, colour, x + width - 16 - 22 * number, y)


def _short(name: str) -> str:
    """A part's name where the drawing has little room."""
    return name.removeprefix("snapshots/")


def _badge(number: int, colour: str, x: int, y: int) -> Iterator[str]:
    """A step's number in a circle."""
    yield f'<circle class="{colour}" cx="{x}" cy="{y}" r="10"/>'
    yield f'<text class="badge" x="{x}" y="{y + 4}">{number}</text>'


def _column(place: int, phase: Phase, y: int) -> Iterator[str]:
    """A phase: its heading, and a line for each step."""
    width = (_WIDTH - 12) // len(_PHASES)
    x = 12 + place * width
    yield f'<text class="phase {_PHASES[place]}" x="{x}" y="{y}">{html.escape(phase.name)}</text>'
    for number, step in enumerate(phase.steps):
        line = y + 26 + number * _STEP_LINE
        yield from _badge(step.number, _PHASES[place], x + 10, line)
        yield (
            f'<text x="{x + 28}" y="{line + 5}">{html.escape(step.label)} '
            f'<tspan class="where">{_short(step.part)}</tspan></text>'
        )


if __name__ == "__main__":
    DIAGRAM.write_text(svg(), encoding="utf-8")
