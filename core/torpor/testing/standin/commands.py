"""What the stand-in's server and its schedulers say to each other: one JSON line each."""

from __future__ import annotations

from typing import TypedDict

__all__ = ["Answer", "Command"]


class Command(TypedDict, total=False):
    """A command from the server: one JSON line. `op` is `generate` or specific to the dialect."""

    op: str
    prompt: str
    tokens: int
    greedy: bool
    adapter: str
    running: int
    tags: list[str]
    level: int
    method: str
    args: list[str]


class Answer(TypedDict, total=False):
    """The answer: one JSON line."""

    words: list[str]
    asleep: bool
    results: list[object]
    error: str
    weights: str
    held: list[str]
