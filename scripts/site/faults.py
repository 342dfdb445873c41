"""The table of faults and their outcomes, read from the marks of the tests.

A test that causes a fault carries a mark, `@pytest.mark.fault("WHAT", area="AREA", outcome="OUTCOME")`. The tests are read as
text, not imported, so the table needs no engine and no CRIU. Parametrised tests may carry the mark inside `pytest.param`.
"""

from __future__ import annotations

import ast
import functools
from pathlib import Path
from typing import NamedTuple

__all__ = ["OUTCOMES", "Fault", "fault_table", "read_faults"]

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"

OUTCOMES = {
    "held": "the service goes on; nothing is lost",
    "refused": "a clear error says what to change; nothing else happens",
    "restarted": "the replica ends and another one takes its place",
}
"""The outcomes of a fault, each with its meaning."""


class Fault(NamedTuple):
    """One mark.

    Attributes:
        area: what is attacked or fails; rows of one area stand together.
        what: the fault, as a clause.
        outcome: a key of `OUTCOMES`.
        test: file of the test, relative to the repository.
    """

    area: str
    what: str
    outcome: str
    test: str


@functools.cache
def read_faults(folder: Path = TESTS) -> tuple[Fault, ...]:
    """Every mark in the tests below a folder, sorted by area; a fault in several tests appears once.

    Args:
        folder: where the tests lie.

    Raises:
        ValueError: a mark is not made of three literal strings, or its outcome is unknown.
    """
    found: dict[tuple[str, str], Fault] = {}
    for file in sorted(folder.rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        if "mark.fault(" not in text:
            continue
        name = str(file.relative_to(folder.parent))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.fault":
                fault = _fault(node, name)
                found.setdefault((fault.area, fault.what), fault)
    return tuple(sorted(found.values()))


def fault_table() -> str:
    """The table as Markdown: a heading for each area, a row for each fault."""
    lines: list[str] = []
    area = ""
    for fault in read_faults():
        if fault.area != area:
            area = fault.area
            title = area[:1].upper() + area[1:]
            lines += ["", f"### {title}", "", "| what happens | outcome | shown by |", "|---|---|---|"]
        lines.append(f"| {_cell(fault.what)} | {fault.outcome} | `{fault.test}` |")
    return "\n".join(lines).strip()


def _fault(call: ast.Call, test: str) -> Fault:
    where = f"{test}:{call.lineno}"
    values = {word.arg: word.value for word in call.keywords}
    if len(call.args) != 1 or set(values) != {"area", "outcome"}:
        raise ValueError(f'{where}: write pytest.mark.fault("what happens", area="...", outcome="...")')
    texts = [
        node.value if isinstance(node, ast.Constant) else None
        for node in (call.args[0], values["area"], values["outcome"])
    ]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"{where}: the mark's three values have to be literal, non-empty strings")
    what, area, outcome = map(str, texts)
    if outcome not in OUTCOMES:
        raise ValueError(f"{where}: outcome is {outcome!r}; allowed are {', '.join(OUTCOMES)}")
    return Fault(area, what, outcome, test)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
