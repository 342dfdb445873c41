"""Ports for tests that run side by side."""

from __future__ import annotations

import subprocess
import sys

import pytest

from torpor.testing.ports import WORKER_VARIABLE, unused_port


def test_a_process_does_not_get_a_port_again() -> None:
    """Whoever got one may not listen on it yet. Random draws from 875 ports collide after about 35 calls."""
    program = "from torpor.testing.ports import unused_port; print(*(unused_port() for _ in range(700)))"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    ports = ran.stdout.split()
    assert len(set(ports)) == len(ports) == 700


@pytest.mark.parametrize(("variable", "value"), [(WORKER_VARIABLE, "9"), ("PYTEST_XDIST_WORKER", "gw15")])
def test_sessions_side_by_side_have_ports_of_their_own(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    """Also a session that pytest-xdist knows nothing of."""
    program = "from torpor.testing.ports import unused_port; print(*(unused_port() for _ in range(30)))"
    mine = {unused_port() % 16 for _ in range(30)}
    monkeypatch.setenv(variable, value)
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    others = {int(port) % 16 for port in ran.stdout.split()}
    assert len(mine) == len(others) == 1
    assert mine != others
