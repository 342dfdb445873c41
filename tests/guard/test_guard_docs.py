"""The guard's page: its example runs, and its table is what the guard does."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import pytest

from tests import ROOT
from tests.guard.engine import KEY, REPLICA_ID, RULES, guarded
from tests.guard.exchange import ask, control, in_loop, to_asleep, to_serving, to_waking
from torpor.guard import BOOT_FD_VARIABLE, Guard, GuardRules, State, boot_document_json

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE = (ROOT / "docs" / "guard.md").read_text(encoding="utf-8")
GUIDE = (ROOT / "docs" / "engine-plugin.md").read_text(encoding="utf-8")
HEALTH = ("/health", "/ready")


def table_rows() -> list[list[str]]:
    """The cells of the table of states, first its head."""
    lines = PAGE[PAGE.index("| | starting |") :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if not line.startswith("|---")]


def test_the_table_has_exactly_the_states() -> None:
    """A state that is added is there (the drawing of the machine is tested in tests/docs/test_generated.py)."""
    assert table_rows()[0][1:] == [state.value for state in State]


@pytest.mark.parametrize("column", range(1, 6))
@in_loop
async def test_the_table_says_what_the_guard_does(column: int) -> None:
    """Every cell that begins with a status, or with `pass`."""
    state = table_rows()[0][column]
    paths = {
        "`/health`, `/ready`": (HEALTH, None),
        "open paths": (RULES.open, None),
        "public paths": (RULES.public[:2], None),
        "open, public and keyed paths with the key": ((*RULES.open, *RULES.public[:2], *RULES.keyed), KEY),
        "sleep steps with the key": (RULES.sleep, KEY),
        "wake steps with the key": (RULES.wake, KEY),
        "anything else": (("/secret", "/"), KEY),
    }
    for row in table_rows()[1:]:
        cell = row[column]
        if "after" in cell or "the next one" in cell:
            continue  # said in a sentence; tested in test_guard_states.py
        for path in paths[row[0]][0]:
            _, guard = guarded()
            await bring_to(guard, state)
            method = "GET" if path in HEALTH else "POST"
            status = (await ask(guard, path, method=method, key=paths[row[0]][1])).status
            assert status == (200 if cell.startswith("pass") else int(cell)), (row[0], path, state)


async def bring_to(guard: Guard, state: str) -> None:
    """Bring a new guard to a state, with no step of it done."""
    match state:
        case "serving":
            await to_serving(guard)
        case "draining":
            assert (await control(guard, "drain")).status == 200
        case "asleep":
            await to_asleep(guard)
        case "waking":
            await to_waking(guard)


@in_loop
async def test_the_example_runs() -> None:
    """As it stands on the page, with a boot document in the pipe."""
    names: dict[str, object] = {}
    (block,) = (
        text for text in re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL) if "def guarded_application" in text
    )
    exec(block, names)
    rules, make = names["rules"], names["guarded_application"]
    assert isinstance(rules, GuardRules)
    assert callable(make)
    with pytest.raises(SystemExit, match="no boot document"):
        make()
    guard = booted(make, rules)
    assert (await ask(guard, "/v1/models")).status == 503
    assert (await control(guard, "drain")).status == 200
    for step, then in (("/sleep", "asleep"), (None, "wake"), ("/wake_up", "serve")):
        if step is not None:
            assert (await ask(guard, step, method="POST", key=KEY)).status == 200
        assert (await control(guard, then)).status == 200
    assert (await ask(guard, "/v1/models")).status == 200


def booted(make: Callable[[], object], rules: GuardRules) -> Guard:
    """Call a launcher's function with a boot document waiting for it."""
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "w") as pipe:
        pipe.write(boot_document_json(key=KEY, replica_id=REPLICA_ID, rules=rules))
    os.environ[BOOT_FD_VARIABLE] = str(read_end)
    guard = make()
    assert isinstance(guard, Guard)
    return guard
