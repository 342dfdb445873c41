"""The real SGLang ends with Torpor's process, but not with the thread that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.conftest import living_members, wait_until_gone

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.plugins.local_engines import RealEngine

FRAMEWORK = textwrap.dedent("""
    import sys, threading, time
    from torpor import Deployment, Model
    from torpor.runtime.boot import Boot
    from torpor_sglang import SGLang

    python, model, port = sys.argv[1:]
    engine = SGLang(version="0.5.23", python=python, device="cpu", mem_fraction_static=0.1, max_total_tokens=4096,
                    sleep_on_idle=True, warmup_prompt_words=(8,))
    boot = Boot(Deployment(name="x", model=Model(path=model, served_name="tiny-qwen3"), plugins=(engine,),
                           port=int(port), startup_timeout_s=240))

    def start():
        boot.cold_start()
        boot.serve()

    thread = threading.Thread(target=start)
    thread.start()
    while boot.engine is None and thread.is_alive():
        time.sleep(0.01)
    print("leader", boot.running_engine.pid, flush=True)
    thread.join()
    print("serving", flush=True)
    time.sleep(300)
""")


@pytest.mark.sglang
@pytest.mark.slow
@pytest.mark.parametrize("when", ["while it imports", "while it serves"])
def test_sigkill_of_the_framework_ends_the_real_engine(
    real_engine: Callable[[str], RealEngine], tiny_model: Path, free_port: int, when: str
) -> None:
    """The thread that started the engine has ended long before, without effect."""
    python = str(real_engine("0.5.23").python)
    with subprocess.Popen(
        [sys.executable, "-c", FRAMEWORK, python, str(tiny_model), str(free_port)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    ) as process:
        assert process.stdout is not None
        leader = int(next(line for line in process.stdout if line.startswith("leader ")).split()[1])
        try:
            if when == "while it serves":
                assert "serving\n" in process.stdout
                time.sleep(1)
                url = f"http://127.0.0.1:{free_port}/v1/models"
                assert httpx.get(url, trust_env=False, timeout=30).status_code == 200
                assert len(living_members(leader)) > 1
            else:
                time.sleep(2)
            process.kill()
            assert wait_until_gone(leader, 10) == []
        finally:
            process.kill()
            for pid in living_members(leader):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
