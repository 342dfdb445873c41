"""`torpor probe`: wait for a server, ask it once, print the answer and its times."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from torpor.cli.asking import PAIRS, Asked, answer_lines, ask_task
from torpor.cli.options import checked_question
from torpor.cli.terminal import result as write
from torpor.cli.terminal import say
from torpor.cli.waiting import waiting_limits
from torpor.client import chat
from torpor.errors import ConfigurationError, EngineRequestError
from torpor.tasks.routes import TASKS
from torpor.values.addresses import shown_url
from torpor.values.bounds import checked_count
from torpor.values.plain_text import plain

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torpor.cli.waiting import WaitingLimits
    from torpor.client import ChatResult, TaskResult
    from torpor.tasks.routes import Task

__all__ = ["Probe", "key_from", "run_probe"]

_TIMEOUT_S = 600.0
_MOST_SOUND_BYTES = 256 << 20

_MAX_TOKENS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a server is asked.

    Attributes:
        task: which.
        model: the served name; empty for the first that the server lists.
        prompt: the question or prompt, the text, or the query of `rerank` and `score`.
        documents: what `rerank` and `score` compare with the query; two of Torpor's own by default.
        sound: a sound file for `transcribe`; a generated one by default.
        max_tokens: longest answer of `chat` and `generate`, tokens.
        key_env: environment variable with the bearer key; empty for `TORPOR_API_KEY`, if it is set.
        timeout_s: seconds for all of it; None for 600, and for `CONNECT_S` where nothing listens.
    """

    task: str
    model: str = ""
    prompt: str = ""
    documents: Sequence[str] = ()
    sound: Path | None = None
    max_tokens: int = 256
    key_env: str = ""
    timeout_s: float | None = None


def run_probe(url: str, probe: Probe, *, as_json: bool) -> None:
    """Ask once; print the answer to standard output and everything else to standard error. A chat is streamed.

    Args:
        url: where the server answers, without a path.
        probe: what it is asked.
        as_json: print the answer and its times as JSON.

    Raises:
        ConfigurationError: an option is wrong.
        ServerUnavailableError: no answer in time.
        EngineRequestError: the server refuses, or its answer has no text or is none of that task.
    """
    checked_count("--max-tokens", probe.max_tokens, most=_MAX_TOKENS, what="tokens")
    task = _known_task(probe)
    if task != "transcribe":
        checked_question("--prompt", probe.prompt)
    limits = waiting_limits(probe.timeout_s, _TIMEOUT_S)
    if task == "chat":
        _chat(url, probe, limits, as_json=as_json)
        return
    result = _asked(url, probe, task, limits)
    if as_json:
        write(json.dumps(asdict(result), indent=2))
        return
    for line in answer_lines(result):
        write(plain(line))
    say(
        f"{result.model}: the answer after {result.total_s:.3f} s ({result.waited_s:.3f} s of it waiting for the server)"
    )


def _chat(url: str, probe: Probe, limits: WaitingLimits, *, as_json: bool) -> None:
    key = key_from(probe.key_env)
    with limits.told(url):
        result = chat(
            url,
            model=probe.model or None,
            prompt=probe.prompt,
            max_tokens=probe.max_tokens,
            timeout_s=limits.timeout_s,
            connect_s=limits.connect_s,
            api_key=key,
            on_text=None if as_json else (lambda text: write(plain(text), end="")),
            on_wait=_say_why,
        )
    if not result.text:
        raise EngineRequestError(f"{shown_url(url)} answered without any text. Allow more tokens: --max-tokens.")
    if as_json:
        write(json.dumps({**asdict(result), "tokens_per_s": _rate(result)}, indent=2))
    else:
        write()
        say(_line(result))


def _asked(url: str, probe: Probe, task: Task, limits: WaitingLimits) -> TaskResult:
    key = key_from(probe.key_env)
    asked = Asked(
        text=probe.prompt,
        documents=probe.documents,
        sound=_sound(probe.sound) if task == "transcribe" else b"",
        model=probe.model,
        max_tokens=probe.max_tokens,
    )
    with limits.told(url):
        return ask_task(url, task, asked, limits=limits, key=key, on_wait=_say_why)


def _known_task(probe: Probe) -> Task:
    """The task, if its name is right and the options go with it."""
    task = probe.task
    if task not in TASKS:
        raise ConfigurationError(f"--task is {task!r}; allowed: {', '.join(TASKS)}.")
    if probe.documents and task not in PAIRS:
        raise ConfigurationError(f"--document goes with the tasks rerank and score; --task is {task!r}.")
    if probe.sound and task != "transcribe":
        raise ConfigurationError(f"--sound goes with the task transcribe; --task is {task!r}.")
    return next(known for known in TASKS if known == task)


def _sound(file: Path | None) -> bytes:
    """The file's bytes; none without a file."""
    if file is None:
        return b""
    try:
        with file.open("rb") as stream:
            data = stream.read(_MOST_SOUND_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"--sound {file} cannot be read: {error.strerror}. Name a sound file.") from error
    if not data or len(data) > _MOST_SOUND_BYTES:
        seen = "is empty" if not data else f"has more than {_MOST_SOUND_BYTES} bytes"
        raise ConfigurationError(f"--sound {file} {seen}. Name a sound file.")
    return data


def key_from(variable: str) -> str | None:
    """The bearer key in an environment variable; None without a variable's name.

    Raises:
        ConfigurationError: the variable is not set, or its value does not fit into a header.
    """
    if not variable:
        return None
    key = os.environ.get(variable, "")
    if not key or not all("!" <= letter <= "~" for letter in key):
        seen = "is not set" if not key else "holds other characters than visible ASCII"
        raise ConfigurationError(f"--key-env names {variable!r}, which {seen}. Put the bearer key into it.")
    return key


def _rate(result: ChatResult) -> float | None:
    """Tokens per second after the first one; None for one token, or an answer in one piece."""
    seconds = result.total_s - result.ttft_s
    return (result.tokens - 1) / seconds if result.tokens > 1 and seconds > 0 else None


def _line(result: ChatResult) -> str:
    rate = _rate(result)
    speed = "" if rate is None else f", {rate:.1f} tokens/s"
    return (
        f"{result.model}: first token after {result.ttft_s:.3f} s ({result.waited_s:.3f} s of it waiting for the server), "
        f"{result.tokens} tokens in {result.total_s:.3f} s{speed}"
    )


def _say_why(reason: str) -> None:
    say(f"waiting: {reason}")
