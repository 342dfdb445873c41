"""The processes of a real engine end with its launcher, if something else ends that."""

from __future__ import annotations

import os
import signal
import time
from contextlib import contextmanager, suppress
from subprocess import DEVNULL
from typing import TYPE_CHECKING, ClassVar

import psutil
import pytest

from tests.conftest import is_running
from torpor import Deployment, Model
from torpor.engine.process import session_members
from torpor.lifecycle import Lifecycle
from torpor.testing.ports import unused_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.plugins.local_engines import LocalEngine, RealEngine
    from torpor.engine_plugins.chat_server import ChatServer

__all__ = ["RealLauncherRules"]

START_S = 240.0


class RealLauncherRules:
    """The end of a launcher ends its whole process tree.

    Attributes:
        local: the engine.
        children: number of the launcher's child processes once one of them computes.
        patches: the patches to switch off (`TORPOR_PATCHES`).
    """

    local: ClassVar[LocalEngine]
    children: ClassVar[int] = 2  # one that computes, and multiprocessing's resource tracker
    patches: ClassVar[str] = ""

    def plugin(self, engine: RealEngine) -> ChatServer:
        """The engine's plugin for this machine's CPU."""
        raise NotImplementedError

    @pytest.mark.timeout(200)
    @pytest.mark.parametrize(
        ("number", "after_s"),
        [(signal.SIGTERM, 1.5), (signal.SIGKILL, 1.5), (signal.SIGKILL, 0.0)],
        ids=["SIGTERM", "SIGKILL", "SIGKILL at once"],
    )
    def test_a_launcher_that_is_ended_during_the_start_leaves_no_process(
        self, real_engine: Callable[[str], RealEngine], tiny_model: Path, number: signal.Signals, after_s: float
    ) -> None:
        """Forked children, and spawned ones that still import, end with it by themselves."""
        # Not started by Torpor's Engine, which would itself end the rest of the session.
        with self._alone(real_engine(self.local.version), tiny_model) as launcher:
            children = wait_for_children(launcher, self.children)
            time.sleep(after_s)  # after 1.5 s most of them import the engine; at first not even the launcher does
            launcher.send_signal(number)
            _, alive = psutil.wait_procs([launcher, *children], timeout=10.0)
            assert [process for process in alive if is_running(process)] == []

    @contextmanager
    def _alone(self, engine: RealEngine, model: Path) -> Iterator[psutil.Popen]:
        port = unused_port()
        plugin = self.plugin(engine)
        deployment = Deployment(name="alone", model=Model(path=str(model)), port=port, plugins=(plugin,))
        recipe = Lifecycle(deployment).recipe()
        launcher = psutil.Popen(
            plugin.engine_argv(deployment, recipe),
            env={**os.environ, **engine.env, **recipe.env, "TORPOR_UNGUARDED": "1", "TORPOR_PATCHES": self.patches},
            stdout=DEVNULL,
            stderr=DEVNULL,
            start_new_session=True,
        )
        try:
            yield launcher
        finally:
            for process in [*session_members(launcher.pid), launcher]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            launcher.wait(30)


def wait_for_children(launcher: psutil.Popen, count: int) -> list[psutil.Process]:
    """Wait until it has that many children, and return them."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        with suppress(psutil.NoSuchProcess):
            children: list[psutil.Process] = launcher.children(recursive=True)
            if len(children) >= count:
                return children
        assert launcher.poll() is None, "the launcher ended by itself"
        time.sleep(0.05)
    pytest.fail(f"the launcher never had {count} children")
