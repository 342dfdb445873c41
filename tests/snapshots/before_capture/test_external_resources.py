"""Checks before a capture: connections and open files."""

from __future__ import annotations

import socket
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.snapshots.conftest import wait_for
from torpor import SnapshotError
from torpor.snapshots.before_capture.external_resources import check_connections, open_files, parse_connections

if TYPE_CHECKING:
    from torpor.snapshots.sandbox.sandbox import Sandbox

HEADER = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
REST = " 00000000:00000000 00:00000000 00000000     0        0 1 1 0 20 4 30 10 -1\n"


def run(sandbox: Sandbox, program: str) -> None:
    """Run a Python program as the tree, until it says that it is ready."""
    code = f"import time\n{program}\nprint('there', flush=True)\ntime.sleep(60)"
    sandbox.spawn([sys.executable, "-c", code], env={"PATH": "/usr/bin:/bin"})
    assert wait_for(lambda: "there" in sandbox.log_tail()), sandbox.log_tail()


def test_connections_are_read_from_the_kernels_tables() -> None:
    """IPv4, IPv6 and IPv4 in IPv6. Listeners and finished connections do not count (proc_net_tcp(5))."""
    ipv4 = HEADER + "   0: 0100007F:1F40 0100007F:C001 01" + REST + "   1: 0100007F:1F40 00000000:0000 0A" + REST
    ipv4 += "   2: 0200000A:C002 08080808:01BB 01" + REST + "   3: 0100007F:1F40 0100007F:C003 06" + REST
    ipv6 = HEADER + f"   0: {'0' * 24}01000000:1F40 {'0' * 24}01000000:C004 01" + REST
    ipv6 += f"   1: 0000000000000000FFFF00000100007F:1F40 0000000000000000FFFF00000100007F:C005 01{REST}"
    found = parse_connections([ipv4, ipv6])
    assert [(one.local, one.remote, one.leads_out) for one in found] == [
        ("127.0.0.1:8000", "127.0.0.1:49153", False),
        ("10.0.0.2:49154", "8.8.8.8:443", True),
        ("[::1]:8000", "[::1]:49156", False),
        ("127.0.0.1:8000", "127.0.0.1:49157", False),
    ]
    assert found[0].local_port == 8000


def test_an_engine_cannot_open_a_connection_to_the_outside(sandbox: Sandbox) -> None:
    """Its network has only the loopback device, so no connection can lead outside."""
    program = """
import socket
try:
    socket.create_connection(("192.0.2.1", 80), 1.0)
except OSError as error:
    print(error.strerror, flush=True)
"""
    run(sandbox, program)
    assert "Network is unreachable" in sandbox.log_tail()
    assert check_connections(sandbox, 8000) == ()


@pytest.mark.slow
def test_a_client_is_named_and_inner_connections_are_told(sandbox: Sandbox) -> None:
    """A connection to the engine's port is refused. Connections within the tree are returned."""
    program = """
import socket
inner = socket.create_server(("127.0.0.1", 7001)); one = socket.create_connection(("127.0.0.1", 7001)); other = inner.accept()
outer = socket.create_server(("127.0.0.1", 8000))
"""
    run(sandbox, program)
    assert {one.local_port for one in check_connections(sandbox, 8000)} >= {7001}
    with sandbox.connect(8000, timeout_s=30.0), pytest.raises(SnapshotError, match="a client is connected from"):
        check_connections(sandbox, 8000)
    sandbox.kill()


def test_files_that_may_vanish_are_listed_and_others_are_noted(sandbox: Sandbox) -> None:
    """Deleted files and files in /tmp are listed, libraries noted by size and time, private folders ignored."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        kept, lost, gone = (Path(folder) / name for name in ("kept", "lost", "gone"))
        for path in (kept, lost, gone):
            path.write_text("x")
        program = f"""
import os, tempfile
files = [open({str(kept)!r}), open({str(lost)!r}), open({str(gone)!r}), tempfile.TemporaryFile()]
os.unlink({str(gone)!r})
"""
        run(sandbox, program)
        found = open_files(sandbox, [kept])
        assert found.vanishing == (f"{gone} (deleted)", str(lost))
        assert found.lasting[str(kept)] == (1, kept.stat().st_mtime_ns)
        assert any("libc" in name for name in found.lasting)
        assert not found.io_uring


def test_connections_outside_of_the_sandbox_do_not_count(sandbox: Sandbox) -> None:
    """The tables are read in the sandbox's own network."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        run(sandbox, "")
        assert check_connections(sandbox, server.getsockname()[1]) == ()
