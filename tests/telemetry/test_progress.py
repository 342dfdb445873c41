"""`torpor.telemetry.progress`: each change is reported once, to every listener, until the work ends."""

from __future__ import annotations

import threading
import time

import pytest

from torpor.telemetry import progress
from torpor_sglang import SGLang


def test_without_a_listener_nothing_is_read() -> None:
    """Neither a log nor a value."""
    looked: list[int] = []
    assert not progress.is_heard()
    progress.tell("one of two")
    with progress.followed_value(lambda: looked.append(1) or "x"):  # type: ignore[func-returns-value]
        pass
    assert looked == []


def test_a_listener_gets_everything_in_order() -> None:
    """From any thread, until it stops listening."""
    heard: list[str] = []
    with progress.listening(heard.append):
        progress.tell("one")
        thread = threading.Thread(target=progress.tell, args=("two",))
        thread.start()
        thread.join()
    progress.tell("three")
    assert heard == ["one", "two"]


def test_a_log_is_followed_to_its_last_line() -> None:
    """Only new lines that mean something are reported, the latest of each look. Lines just before the end are included."""
    lines: list[str] = ["step 1"]
    heard: list[str] = []
    first = threading.Event()

    def listener(text: str) -> None:
        heard.append(text)
        first.set()

    with (
        progress.listening(listener),
        progress.followed_lines(
            lambda: tuple(lines), lambda line: line.replace("step", "at") if "step" in line else ""
        ),
    ):
        assert first.wait(30.0)
        lines += ["noise", "step 2", "step 3", "noise"]
    assert heard[0] == "at 1"
    assert heard[-1] == "at 3"
    assert "noise" not in " ".join(heard)


def test_a_value_is_reported_when_it_changes() -> None:
    """Not at every look."""
    heard: list[str] = []
    with progress.listening(heard.append), progress.followed_value(lambda: "same"):
        time.sleep(1.0)
    assert heard == ["same"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("[2026-11-25 23:02:12] Load weight begin. avail mem=22.10 GB", "loading weights"),
        (
            "Multi-thread loading shards: 100% Completed | 1/1 [00:00<00:00, 738.04it/s]",
            "loading weights, 1 of 1 files",
        ),
        (
            "Loading safetensors checkpoint shards:  50% Completed | 1/2 [00:01<00:01,  1.2s/it]",
            "loading weights, 1 of 2 files",
        ),
        ("[2026-11-25 23:02:12] Load weight end. elapsed=0.02 s, type=Qwen3ForCausalLM", "weights are loaded"),
        ("[2026-11-25] Capture target decode CUDA graph begin. backend=full", "capturing CUDA graphs"),
        ("[2025-12-01] Capture cuda graph begin. This can take up to several minutes.", "capturing CUDA graphs"),
        (
            "Capturing batches (bs=984 avail_mem=12.39 GB):  12%|#2        | 6/52 [00:05<00:40,  1.1it/s]",
            "capturing CUDA graphs, 6 of 52",
        ),
        ("Entering DeepGEMM JIT Pre-Compile session. It may take a long time", "compiling DeepGEMM kernels"),
        ("[2026] KV Cache is allocated. dtype: torch.bfloat16, #tokens: 4096", "the KV cache is allocated"),
        ("INFO:     Uvicorn running on http://0.0.0.0:8000 (Press CTRL+C to quit)", ""),
        ("", ""),
    ],
)
def test_sglangs_lines_are_understood(line: str, words: str) -> None:
    """As 0.5.6.post2, 0.5.16 and 0.5.23 print them."""
    assert SGLang().log_progress(line) == words
