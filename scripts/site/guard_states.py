"""The guard's state diagram, drawn from a walk over the real state machine.

    python -m scripts.site.guard_states     writes docs/guard-states.svg

The walk starts from a new machine again and again. It makes every call that the machine accepts, and notes each change of state.
If the machine accepts nothing any more, core ends the engine. Only the places of the boxes and of some labels are written here. A
state without a place is an error, so a new state cannot be left out.
"""

from __future__ import annotations

import asyncio
import html
import math
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torpor.guard import GuardRules, State
from torpor.guard.states import StateMachine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["DIAGRAM", "Transition", "svg", "transitions"]

DIAGRAM = Path(__file__).parents[2] / "docs" / "guard-states.svg"
END = "end"

_RULES = GuardRules(public=("/chat",), sleep=("/sleep",), wake=("/wake_up",))
_STEPS = ("a sleep step", "a wake step")


@dataclass(frozen=True, order=True)
class Transition:
    """One arrow of the diagram.

    Attributes:
        source: state before.
        target: state after, or `end` where nothing is accepted any more.
        label: what does it, and when it is accepted.
    """

    source: str
    target: str
    label: str


def _step(machine: StateMachine, path: str, *, succeeds: bool) -> bool:
    begun = machine.begin_step(path)
    if begun:
        machine.end_step(succeeded=succeeds)
    return begun


def _end_drain(machine: StateMachine, *, drained: bool) -> bool:
    machine.end_drain(drained=drained)
    return True


_CALLS: dict[str, Callable[[StateMachine], bool]] = {
    "serve": StateMachine.serve,
    "drain": lambda machine: machine.begin_drain() is not None,
    "nothing is in flight": lambda machine: _end_drain(machine, drained=True),
    "deadline, or caller gone": lambda machine: _end_drain(machine, drained=False),
    "a sleep step": lambda machine: _step(machine, "/sleep", succeeds=True),
    "a sleep step fails": lambda machine: _step(machine, "/sleep", succeeds=False),
    "asleep": StateMachine.asleep,
    "wake": StateMachine.wake,
    "a wake step": lambda machine: _step(machine, "/wake_up", succeeds=True),
    "a wake step fails": lambda machine: _step(machine, "/wake_up", succeeds=False),
}
_WAIT_ENDS = (
    "nothing is in flight",
    "deadline, or caller gone",
)  # the control route calls one of them after each drain


def transitions() -> list[Transition]:
    """Every change of state that the machine makes, found by walking it."""
    return asyncio.run(_walk())


async def _walk() -> list[Transition]:
    found: dict[tuple[str, str, str], set[bool]] = {}
    waiting, seen = deque[tuple[str, ...]]([()]), set[object]()
    while waiting:
        calls = waiting.popleft()
        accepted = [call for call in _candidates(calls) if _after((*calls, call)) is not None]
        state = _after(calls)
        key = (state, _came_from(calls), tuple(accepted))
        if key in seen or state is None:
            continue
        seen.add(key)
        if not accepted:
            found.setdefault((state, END, calls[-1]), set()).add(False)
        for call in accepted:
            target = _after((*calls, call))
            if target is not None and target != state:
                found.setdefault((state, target, call), set()).add(calls[-1:] != () and calls[-1] in _STEPS)
            waiting.append((*calls, call))
    return sorted(Transition(source, target, _label(found, source, target, call)) for source, target, call in found)


def _candidates(calls: tuple[str, ...]) -> tuple[str, ...]:
    """After a drain only its end can follow; otherwise the walk tries every other call."""
    return _WAIT_ENDS if calls[-1:] == ("drain",) else tuple(call for call in _CALLS if call not in _WAIT_ENDS)


def _came_from(calls: tuple[str, ...]) -> str | None:
    """The state to which a failed drain returns."""
    return _after(calls[:-1]) if calls[-1:] == ("drain",) else None


def _after(calls: tuple[str, ...]) -> str | None:
    """The state of a new machine after these calls; None if it refuses the last one."""
    machine = StateMachine(_RULES)
    accepted = [_CALLS[call](machine) for call in calls]
    return machine.state.value if all(accepted) else None


def _label(found: dict[tuple[str, str, str], set[bool]], source: str, target: str, call: str) -> str:
    """The call, and whether the machine accepts it only before or only after the steps of its state."""
    has_steps = any(origin == source and how in {f"{step} fails" for step in _STEPS} for origin, _, how in found)
    if not has_steps or call in _WAIT_ENDS or target == END:
        return call
    return f"{call}, after every step" if found[(source, target, call)] == {True} else f"{call}, before any step"


# Drawing

_WIDTH, _HEIGHT, _BOX = 980, 400, (124, 44)
_PLACES = {
    "starting": (90, 80),
    "serving": (430, 80),
    "draining": (430, 280),
    "asleep": (850, 280),
    "waking": (850, 80),
}
_ENDS = {"draining": (430, 376), "waking": (850, 14)}
_LABEL_PLACES = {
    ("starting", "serving"): (260, 70, "middle"),
    ("starting", "draining"): (222, 214, "end"),
    ("draining", "starting"): (222, 138, "start"),
    ("serving", "draining"): (406, 186, "end"),
    ("draining", "serving"): (456, 178, "start"),
    ("draining", "asleep"): (640, 270, "middle"),
    ("asleep", "waking"): (862, 186, "start"),
    ("waking", "serving"): (640, 70, "middle"),
    ("draining", END): (446, 344, "start"),
    ("waking", END): (836, 40, "end"),
}
_STYLE = """
.guard-states{--ink:#24292f;--line:#57606a;--box:#eef2f7;font:14px system-ui,sans-serif}
@media(prefers-color-scheme:dark){.guard-states{--ink:#e6edf3;--line:#9aa5b1;--box:#22272e}}
[data-md-color-scheme] .guard-states{--ink:var(--md-default-fg-color);--box:var(--md-code-bg-color)}
[data-md-color-scheme] .guard-states{--line:var(--md-default-fg-color--light)}
.guard-states rect{fill:var(--box);stroke:var(--line)}
.guard-states path{fill:none;stroke:var(--line);stroke-width:1.5}
.guard-states marker path{fill:var(--line);stroke:none}
.guard-states circle{fill:var(--line)}
.guard-states text{fill:var(--ink)}
.guard-states .name{font-weight:600;text-anchor:middle}
""".strip()
_HEAD = (
    '<marker id="guard-head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
    '<path d="M0 0L10 5L0 10z"/></marker>'
)


def svg() -> str:
    """The diagram as one SVG element, light and dark, without an empty line (Markdown ends a block there)."""
    found = transitions()
    pairs: dict[tuple[str, str], list[str]] = {}
    for one in found:
        pairs.setdefault((one.source, one.target), []).append(one.label)
    told = "; ".join(f"{one.source} to {one.target}: {one.label}" for one in found)
    lines = [
        f'<svg class="guard-states" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">',
        f"<title>States of the guard. {html.escape(told)}</title>",
        f"<style>{_STYLE}</style>",
        f"<defs>{_HEAD}</defs>",
        *(line for pair, labels in pairs.items() for line in _arrow(pair, labels, both=pair[::-1] in pairs)),
        *(line for state in State for line in _box(state.value)),
        f'<text x="{_PLACES["asleep"][0]}" y="326" text-anchor="middle">the snapshot is taken here</text>',
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _place(state: str) -> tuple[int, int]:
    if state not in _PLACES:
        raise KeyError(f"The guard has a state {state!r} without a place in the diagram; give it one in _PLACES.")
    return _PLACES[state]


def _box(state: str) -> Iterator[str]:
    (x, y), (width, height) = _place(state), _BOX
    yield f'<rect x="{x - width // 2}" y="{y - height // 2}" width="{width}" height="{height}" rx="8"/>'
    yield f'<text class="name" x="{x}" y="{y + 5}">{state}</text>'


def _arrow(pair: tuple[str, str], labels: list[str], *, both: bool) -> Iterator[str]:
    """A straight arrow between the borders of two boxes, beside its opposite if there is one, and its labels."""
    source, target = pair
    begin, end = _place(source), _ENDS[source] if target == END else _place(target)
    away = 12 if both else 0
    length = ((end[0] - begin[0]) ** 2 + (end[1] - begin[1]) ** 2) ** 0.5
    aside = (away * (begin[1] - end[1]) / length, away * (end[0] - begin[0]) / length)
    first = _border(begin, end, aside)
    last = end if target == END else _border(end, begin, aside)
    yield f'<path d="M{first[0]:.0f} {first[1]:.0f}L{last[0]:.0f} {last[1]:.0f}" marker-end="url(#guard-head)"/>'
    if target == END:
        yield f'<circle cx="{end[0]}" cy="{end[1]}" r="5"/>'
    middle = (round((begin[0] + end[0]) / 2), round((begin[1] + end[1]) / 2), "middle")
    x, y, anchor = _LABEL_PLACES.get(pair, middle)
    for number, label in enumerate(labels):
        yield f'<text x="{x}" y="{y + 18 * number}" text-anchor="{anchor}">{html.escape(label)}</text>'


def _border(inside: tuple[int, int], toward: tuple[int, int], aside: tuple[float, float]) -> tuple[float, float]:
    """Where a line from the middle of a box, moved aside, leaves the box."""
    x, y = inside[0] + aside[0], inside[1] + aside[1]
    dx, dy = toward[0] - inside[0], toward[1] - inside[1]
    across = (_BOX[0] / 2 - math.copysign(aside[0], aside[0] * dx)) / abs(dx) if dx else math.inf
    down = (_BOX[1] / 2 - math.copysign(aside[1], aside[1] * dy)) / abs(dy) if dy else math.inf
    share = min(across, down)
    return x + dx * share, y + dy * share


if __name__ == "__main__":
    DIAGRAM.write_text(svg(), encoding="utf-8")
