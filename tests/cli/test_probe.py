"""`torpor probe`, as a command against a real server on loopback."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING

import pytest

from tests.chat_server import ChatServer, Reply, answer
from tests.command_line import torpor

if TYPE_CHECKING:
    import subprocess

pytestmark = pytest.mark.slow

UNAVAILABLE = Reply(status=503, headers={"Retry-After": "0"})
MODELS = Reply(pieces=(b'{"data": [{"id": "served"}, {"id": "other"}]}',))


def probe(*argv: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command with these environment variables besides the usual ones."""
    return torpor("probe", *argv, without=("TORPOR_",), env=variables)


def test_the_answer_alone_is_on_standard_output() -> None:
    """Waits and times are printed on standard error."""
    with ChatServer([UNAVAILABLE, answer("Blue", " light.", tokens=3, pause_s=0.05)]) as server:
        done = probe(server.url, "--model", "m", "--prompt", "Why?", "--max-tokens", "9")
    assert (done.returncode, done.stdout) == (0, "Blue light.\n")
    asking, waiting, times = done.stderr.splitlines()
    assert asking == f"asking {server.url}, for at most 600 s, 10 s while nothing listens there"
    assert waiting == "waiting: the server answers 503"
    assert re.fullmatch(
        r"m: first token after \d\.\d{3} s \(\d\.\d{3} s of it waiting for the server\), "
        r"3 tokens in \d\.\d{3} s, \d+\.\d tokens/s",
        times,
    )
    asked = server.seen[-1].body
    assert (asked["model"], asked["max_tokens"]) == ("m", 9)
    assert asked["messages"] == [{"role": "user", "content": "Why?"}]


def test_json_holds_the_answer_and_its_times() -> None:
    """Standard output is one JSON document."""
    with ChatServer([UNAVAILABLE, answer("Blue", " light.", tokens=3, pause_s=0.05)]) as server:
        done = probe(server.url, "--model", "m", "--json")
    said = json.loads(done.stdout)
    assert (done.returncode, said["text"], said["tokens"], said["model"]) == (0, "Blue light.", 3, "m")
    assert 0 < said["waited_s"] < said["ttft_s"] < said["total_s"]
    assert said["tokens_per_s"] == pytest.approx(2 / (said["total_s"] - said["ttft_s"]))


def test_without_a_model_the_first_listed_one_is_asked() -> None:
    """The command waits for the list as for the answer."""
    with ChatServer([UNAVAILABLE, MODELS, UNAVAILABLE, answer("x")]) as server:
        done = probe(server.url)
    assert (done.returncode, done.stdout) == (0, "x\n")
    assert [seen.path for seen in server.seen] == ["/v1/models"] * 2 + ["/v1/chat/completions"] * 2
    assert server.seen[-1].body["model"] == "served"


def test_the_key_is_read_from_the_named_variable() -> None:
    """It is on no command line and in no output."""
    with ChatServer([answer("x")]) as server:
        done = probe(server.url, "--model", "m", "--key-env", "MY_KEY", MY_KEY="secret-key")
        by_default = probe(server.url, "--model", "m", TORPOR_API_KEY="other-key")
    assert [seen.headers["Authorization"] for seen in server.seen] == ["Bearer secret-key", "Bearer other-key"]
    assert "-key" not in done.stdout + done.stderr + by_default.stdout + by_default.stderr


def test_no_answer_in_time_is_exit_code_1() -> None:
    """The deadline covers the wait; the message says what was seen last."""
    with ChatServer([UNAVAILABLE]) as server:
        began = time.monotonic()
        done = probe(server.url, "--model", "m", "--timeout", "3")
    assert (done.returncode, done.stdout) == (1, "")
    assert time.monotonic() - began < 30
    assert "within 3 s; last seen: the server answers 503" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("argv", [("probe",), ("probe", "--task", "embed"), ("prewarm",)], ids=" ".join)
def test_an_address_where_nothing_listens_is_told_at_once_and_given_up(argv: tuple[str, ...]) -> None:
    """After ten seconds, not after the deadline for an answer, and with what to do."""
    began = time.monotonic()
    done = torpor(*argv, "http://127.0.0.1:1", without=("TORPOR_",))
    assert (done.returncode, done.stdout) == (1, "")
    assert time.monotonic() - began < 100
    asking, waiting, error, note = done.stderr.splitlines()
    assert asking.startswith("asking http://127.0.0.1:1, for at most ")
    assert waiting == "waiting: no connection to http://127.0.0.1:1 (Connection refused)"
    assert error == (
        "torpor: ServerUnavailableError: No connection to http://127.0.0.1:1 (Connection refused), for 10 s. "
        "Start the server, or correct its address."
    )
    assert note == "  (--timeout SECONDS waits that long for a server that is about to start)"


@pytest.mark.parametrize(
    ("replies", "words"),
    [
        ([Reply(status=401, pieces=(b"no key",))], "was answered with 401 and names no model: 'no key'"),
        ([Reply(pieces=(b'{"data": []}',))], "names no model"),
        ([MODELS, Reply(status=400, pieces=(b"too long",))], "400: too long"),
        ([MODELS, answer()], "answered without any text"),
    ],
)
def test_a_refusal_is_exit_code_1_with_the_servers_words(replies: list[Reply], words: str) -> None:
    """It is not waited for: it would not get better."""
    with ChatServer(replies) as server:
        done = probe(server.url)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert words in done.stderr


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("nowhere",), "has to begin with http"),
        (("http://[::",), "The server's URL is"),
        (("http://127.0.0.1:1", "--timeout", "0"), "--timeout is 0"),
        (("http://127.0.0.1:1", "--timeout", "nan"), "--timeout is nan"),
        (("http://127.0.0.1:1", "--prompt", " "), "--prompt is empty"),
        (("http://127.0.0.1:1", "--max-tokens", "0"), "--max-tokens is 0"),
        (("http://127.0.0.1:1", "--key-env", "NO_SUCH_KEY"), "names 'NO_SUCH_KEY', which is not set"),
        (("http://127.0.0.1:1", "--key-env", "ODD"), "other characters than visible ASCII"),
    ],
)
def test_wrong_input_is_one_paragraph_and_exit_code_2(argv: tuple[str, ...], words: str) -> None:
    """No request is made."""
    done = probe(*argv, ODD="a\nb")
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
