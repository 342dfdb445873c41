"""A short fuzz of the gateway with raw bytes; `python -m tests.fuzz_gateway` is the long one."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.fuzz_gateway import Got, H11Engine, fuzz, send, wrong_answers
from tests.platforms.local.serve.conftest import cache
from tests.raw_streams import ALIAS, POISON, Seen, read_by_h11, stream, without_alias
from tests.serving.scripted import Leases
from torpor.serving.gateway import HttpGateway

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["cache"]

GOOD = b'POST /v1/embeddings HTTP/1.1\r\nHost: f\r\nContent-Length: 13\r\n\r\n{"model":"a"}'
HALF = b"POST / HTTP/1.1\r\nHost: f\r\nX-Torpor-Model: a\r\nContent-Length: 9\r\n\r\nhal"
STREAMS = st.integers(0, 2**32).map(lambda seed: stream(random.Random(seed)))
EXAMPLES = 60


@pytest.fixture(scope="module")
def engine() -> Iterator[H11Engine]:
    """An engine that reads with h11."""
    with H11Engine() as engine:
        yield engine


@pytest.fixture(scope="module")
def port(engine: H11Engine) -> Iterator[int]:
    """The port of a gateway of two models, both at the engine, and an alias."""
    with HttpGateway(Leases(ways={"a": engine, "b": engine}, aliases={ALIAS: "a"})) as gateway:
        yield gateway.port


ALLOWED: set[Seen] = set()
"""What h11 has read in all streams so far: a request may arrive after its stream's end."""


@settings(max_examples=EXAMPLES, deadline=None)
@given(data=STREAMS, pieces=st.integers(0, 2**32))
@example(data=GOOD + HALF, pieces=0)
@example(data=GOOD.replace(b"13\r\n\r\n", b"13\r\nTransfer-Encoding: chunked\r\n\r\n") + POISON, pieces=0)
@example(
    data=b"PUT / HTTP/1.1\r\nHost: f\r\nTransfer-Encoding: chunked\r\n\r\n1 ;x\r\na\r\n0\r\n\r\n" + POISON, pieces=0
)
def test_only_what_everybody_reads_alike_reaches_an_engine(
    engine: H11Engine, port: int, data: bytes, pieces: int
) -> None:
    """Every request that the engine reads is one that h11 reads there. Each whole one is answered once; then comes the end."""
    requests, whole = read_by_h11(data)
    ALLOWED.update(requests, map(without_alias, requests))
    got = asyncio.run(send(port, data, random.Random(pieces), answers=len(requests) if whole else 0))
    assert wrong_answers(got, requests, whole=whole) == ""
    assert set(engine.seen) <= ALLOWED
    assert engine.refused == []


def test_the_judge_finds_what_is_wrong() -> None:
    """An open connection, an answer too many, one too few, a 500, and bytes that are no answer."""
    ok = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    closes = b"HTTP/1.1 400 X\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    (one,), whole = read_by_h11(GOOD)
    assert whole
    assert read_by_h11(GOOD + HALF) == ([one], False)
    for answer, requests, said in (
        (ok, [one], ""),
        (ok + closes, [one, one, one], ""),
        (ok, [one, one], "1 answers to 2"),
        (ok * 3, [one], "3 answers to 1"),
        (b"HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n", [one], "an answer is 500"),
        (ok + b"k", [one], "no answer begins at b'k'"),
    ):
        assert wrong_answers(Got(answer, closed=True), requests, whole=True).startswith(said)
        assert said or not wrong_answers(Got(answer, closed=True), requests, whole=True)
    assert "stayed open" in wrong_answers(Got(ok, closed=False), [one], whole=True)


@pytest.mark.slow
@pytest.mark.fault("raw bytes that are no HTTP, or could be read in two ways", area="serve", outcome="refused")
@pytest.mark.usefixtures("cache")
def test_a_thousand_raw_streams_at_both_gateways(tmp_path: Path) -> None:
    """In front of engines that read with h11, and `torpor serve` in front of stand-ins: see `tests.fuzz_gateway`."""
    result = fuzz(tmp_path, streams=1000, seed=5)
    assert result.broken == []
    assert result.reached > 100
