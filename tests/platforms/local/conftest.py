"""The fixtures of sandboxes and CRIU, which tests of replicas need too."""

from __future__ import annotations

from tests.snapshots.conftest import criu, driver, make_sandbox, mode, nvidia_libraries, sandbox, scratch, small_disk

__all__ = ["criu", "driver", "make_sandbox", "mode", "nvidia_libraries", "sandbox", "scratch", "small_disk"]
