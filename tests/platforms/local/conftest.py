"""The fixtures of sandboxes and CRIU, which replicas need as snapshots do."""

from __future__ import annotations

from tests.snapshots.conftest import criu, driver, make_sandbox, mode, nvidia_libraries, sandbox, scratch, small_disk

__all__ = ["criu", "driver", "make_sandbox", "mode", "nvidia_libraries", "sandbox", "scratch", "small_disk"]
