"""`torpor.client`: one streamed answer from a server that may still have to wake up."""

from __future__ import annotations

import contextlib
import email.utils
import itertools
import json
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.chat_server import ChatServer, Reply, answer, events
from torpor import ConfigurationError, EngineRequestError, ServerUnavailableError
from torpor.client import ask_in_turn, chat, main
from torpor.network import not_there
from torpor.network.chat_stream import ChatStream
from torpor.testing.ports import unused_port
from torpor.values.client_keys import API_KEY_VARIABLE

UNAVAILABLE = Reply(status=503)


def test_the_answer_is_streamed_and_measured() -> None:
    """Text arrives as the server sends it. The result holds the text, the server's token count and two times."""
    heard: list[str] = []
    with ChatServer([answer("The ", "sky ", "is.", tokens=7, pause_s=0.05)]) as server:
        result = chat(server.url, model="m", prompt="Why?", on_text=heard.append)
    assert heard == ["The ", "sky ", "is."]
    assert result.text == "The sky is."
    assert result.tokens == 7
    assert 0.1 <= result.ttft_s < result.total_s < 30


def test_the_request_names_the_model_and_asks_for_a_stream_with_usage() -> None:
    """The served name is sent unchanged, the system prompt first, `max_tokens` only if it was given."""
    with ChatServer([answer("x")]) as server:
        chat(f"{server.url}/", model="Qwen/Qwen3-8B-FP8", prompt="Why?", system="Be brief.", max_tokens=5)
        chat(server.url, model="m", prompt="Why?")
    first, second = server.seen
    assert (first.method, first.path) == ("POST", "/v1/chat/completions")
    assert first.body == {
        "model": "Qwen/Qwen3-8B-FP8",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 5,
    }
    assert "max_tokens" not in second.body
    assert second.body["messages"] == [{"role": "user", "content": "Why?"}]


def test_reasoning_is_part_of_the_text() -> None:
    """A server with a reasoning parser sends thoughts in a field of their own. They count for the first token too."""
    chunks = ({"choices": [{"delta": {"reasoning_content": "Hm. "}}]}, {"choices": [{"delta": {"content": "Yes."}}]})
    with ChatServer([Reply(pieces=events(*chunks))]) as server:
        result = chat(server.url, model="m", prompt="Why?")
    assert (result.text, result.tokens) == ("Hm. Yes.", 2)


def test_an_event_may_be_cut_anywhere() -> None:
    """TCP has no lines: sent byte by byte, the answer is the same, even inside a letter of two bytes."""
    whole = b"".join(answer("Grün", " ist ", "grün.").pieces)
    with ChatServer([Reply(pieces=tuple(whole[at : at + 1] for at in range(len(whole))))]) as server:
        assert chat(server.url, model="m", prompt="Why?").text == "Grün ist grün."


@pytest.mark.slow
def test_it_waits_as_long_as_retry_after_says() -> None:
    """The guard answers 503 with Retry-After while it wakes, in seconds or as a date. The reason is reported once."""
    told: list[str] = []
    soon = email.utils.format_datetime(email.utils.localtime())
    replies = [Reply(status=503, headers={"Retry-After": "1"}), Reply(status=503, headers={"Retry-After": soon})]
    with ChatServer([*replies, answer("x")]) as server:
        chat(server.url, model="m", prompt="Why?", on_wait=told.append)
    first, second, third = (seen.at for seen in server.seen)
    assert 1.0 <= second - first < 1.5
    assert third - second < 1.0
    assert told == ["the server answers 503"]


@pytest.mark.slow
def test_without_retry_after_it_backs_off() -> None:
    """Pauses grow, so a waking replica does not get requests without a break."""
    with ChatServer([UNAVAILABLE, UNAVAILABLE, UNAVAILABLE, answer("x")]) as server:
        result = chat(server.url, model="m", prompt="Why?")
    at = [seen.at for seen in server.seen]
    pauses = [after - before for before, after in itertools.pairwise(at)]
    assert pauses == sorted(pauses)
    assert pauses[0] >= 0.25
    assert result.ttft_s >= sum(pauses)


def test_it_waits_for_a_server_that_does_not_listen_yet() -> None:
    """Before a server listens, its port refuses connections."""
    port = unused_port()
    late: list[ChatServer] = []
    timer = threading.Timer(0.6, lambda: late.append(ChatServer([answer("up")], port=port).__enter__()))
    timer.start()
    try:
        assert chat(f"http://127.0.0.1:{port}", model="m", prompt="Why?", timeout_s=10).text == "up"
    finally:
        timer.join()
        for started in late:
            started.__exit__()


@pytest.mark.parametrize(
    ("url", "seen"),
    [("http://127.0.0.1:1", "Connection refused"), ("http://no-such-name.invalid", "known|resolution|resolve")],
)
def test_an_address_where_nothing_listens_is_given_up_before_the_deadline(url: str, seen: str) -> None:
    """The reason is told once, and the error repeats it."""
    told: list[str] = []
    with pytest.raises(
        ServerUnavailableError, match=rf"No connection to {url} \(.*({seen}).*\), for 0.1 s\. Start the server"
    ):
        chat(url, model="m", prompt="Why?", connect_s=0.1, on_wait=told.append)
    assert len(told) == 1


def test_a_server_that_was_there_and_restarts_is_waited_for() -> None:
    """Only an address where nothing ever listened in that time is given up."""
    with ChatServer([UNAVAILABLE, answer("up")]) as server:
        assert chat(server.url, model="m", prompt="Why?", connect_s=0.01, timeout_s=30).text == "up"


def test_a_303_is_followed_with_get_until_the_answer_is_there() -> None:
    """Modal answers 303 to a request that takes longer than 150 s. GET fetches the result."""
    again = Reply(status=303, headers={"Location": "/v1/chat/completions?__modal_function_call_id=fc-1"})
    with ChatServer([again, again, answer("late")]) as server:
        assert chat(server.url, model="m", prompt="Why?", api_key="k").text == "late"
    assert [seen.method for seen in server.seen] == ["POST", "GET", "GET"]
    assert server.seen[1].path.endswith("fc-1")
    assert [seen.headers.get("Authorization") for seen in server.seen] == ["Bearer k"] * 3


def test_a_307_keeps_method_and_body() -> None:
    """Unlike 303, which demands GET."""
    with ChatServer([Reply(status=307, headers={"Location": "/elsewhere"}), answer("x")]) as server:
        chat(server.url, model="m", prompt="Why?")
    assert [(seen.method, seen.body.get("model")) for seen in server.seen] == [("POST", "m"), ("POST", "m")]


def test_the_key_is_not_sent_to_another_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A redirect may lead anywhere. The bearer key is only for the server that it was given for."""
    monkeypatch.setenv(API_KEY_VARIABLE, "secret")
    with ChatServer([answer("x")]) as other:
        away = Reply(status=303, headers={"Location": f"{other.url}/result"})
        with ChatServer([away]) as server:
            chat(server.url, model="m", prompt="Why?")
    assert server.seen[0].headers["Authorization"] == "Bearer secret"
    assert "Authorization" not in other.seen[0].headers


def test_a_redirect_in_a_circle_ends() -> None:
    """After twenty redirects, as in browsers, the client raises an error."""
    with (
        ChatServer([Reply(status=303, headers={"Location": "/"})]) as server,
        pytest.raises(ServerUnavailableError, match="redirected 20 times"),
    ):
        chat(server.url, model="m", prompt="Why?")
    assert len(server.seen) == 20


@pytest.mark.slow
@pytest.mark.alone
def test_the_deadline_covers_the_waiting() -> None:
    """The client gives up in time. The error says what was last seen."""
    with ChatServer([UNAVAILABLE]) as server:
        began = time.monotonic()
        with pytest.raises(ServerUnavailableError, match=r"within 0\.7 s; last seen: the server answers 503"):
            chat(server.url, model="m", prompt="Why?", timeout_s=0.7)
    assert 0.6 < time.monotonic() - began < 1.5


@pytest.mark.alone
def test_the_deadline_covers_a_stream_that_stalls() -> None:
    """The deadline covers the whole answer, even if bytes arrive slowly or stop."""
    with ChatServer([answer(*["word "] * 50, pause_s=0.1)]) as server:
        began = time.monotonic()
        with pytest.raises(ServerUnavailableError, match=r"stopped after \d pieces of text"):
            chat(server.url, model="m", prompt="Why?", timeout_s=0.7)
    assert time.monotonic() - began < 1.5


def test_an_answer_that_breaks_off_is_an_error_and_not_asked_for_again() -> None:
    """The user has seen half an answer. A second answer appended to it would be wrong without a warning."""
    broken = Reply(pieces=events({"choices": [{"delta": {"content": "Half"}}]}, done=False), breaks=True)
    with (
        ChatServer([broken, answer("whole")]) as server,
        pytest.raises(ServerUnavailableError, match="broke off after 1 pieces of text"),
    ):
        chat(server.url, model="m", prompt="Why?")
    assert len(server.seen) == 1


def test_a_connection_that_breaks_before_any_text_is_tried_again() -> None:
    """A replica that ended between two requests costs one retry."""
    with ChatServer([Reply(pieces=(b": ping\n\n",), breaks=True), answer("whole")]) as server:
        assert chat(server.url, model="m", prompt="Why?").text == "whole"


def test_an_answer_without_its_final_event_is_incomplete() -> None:
    """Only `[DONE]` distinguishes the end from a broken stream."""
    cut = Reply(pieces=events({"choices": [{"delta": {"content": "Half"}}]}, done=False))
    with ChatServer([cut]) as server, pytest.raises(ServerUnavailableError, match="without its final event"):
        chat(server.url, model="m", prompt="Why?")


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply(status=404, pieces=(b"modal-http: app for invoked web endpoint is stopped",)), "404: modal-http: app"),
        (Reply(status=400, pieces=(b'{"message": "no model m"}',)), "400: .*no model m"),
        (Reply(status=401), "401: no text"),
        (Reply(pieces=events({"error": {"message": "out of memory"}})), "error: .*out of memory"),
        (Reply(pieces=(b"data: <html>\n\n",)), "no chat chunk .*<html>"),
        (Reply(pieces=events({"choices": None})), "no chat chunk"),
        (Reply(pieces=events(5)), "no chat chunk"),
    ],
)
def test_a_refusal_ends_at_once_with_the_servers_words(reply: Reply, words: str) -> None:
    """Waiting would not help."""
    with ChatServer([reply]) as server, pytest.raises(EngineRequestError, match=words):
        chat(server.url, model="m", prompt="Why?", timeout_s=20)
    assert len(server.seen) == 1


@pytest.mark.parametrize("url", ["", "workspace--app.modal.run", "ftp://x"])
def test_a_url_without_http_is_an_error(url: str) -> None:
    """A class without a web server has an empty URL."""
    with pytest.raises(ConfigurationError, match="has to begin with http"):
        chat(url, model="m", prompt="Why?")


def _objects(inner: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    names = st.sampled_from(["choices", "delta", "content", "usage", "completion_tokens", "error", "index"])
    return st.dictionaries(names, inner)


@given(st.text() | st.recursive(st.none() | st.floats() | st.text(), lambda inner: st.lists(inner) | _objects(inner)))
def test_every_line_of_a_stream_gives_text_or_torpors_error(content: object) -> None:
    """For an invalid line the error quotes it; the user never sees a KeyError."""
    line = content if isinstance(content, str) else f"data: {json.dumps(content)}"
    with contextlib.suppress(EngineRequestError):
        assert isinstance(ChatStream("http://x").take(line), str)


@given(st.text() | st.sampled_from(["Fri, 31 Dec 9999 23:59:59 -2359", "Mon, 01 Jan 0001 00:00:00", "²", "1e9"]))
def test_an_invalid_retry_after_header_is_ignored(value: str) -> None:
    """As if the header were missing."""
    pause_s = not_there._retry_after(value)
    assert pause_s is None or pause_s >= 0


def test_asking_twice_uses_two_system_prompts_and_prints_both_answers(capsys: pytest.CaptureFixture[str]) -> None:
    """The second prompt shows that the answer follows the request and comes from no cache."""
    with ChatServer([answer("One.", tokens=3), answer("Two.", tokens=4)]) as server:
        results = ask_in_turn(server.url, model="m", prompt="Why?")
        ask_in_turn(server.url, model="m", prompt="Why?", twice=False)
    printed = capsys.readouterr().out
    assert [result.text for result in results] == ["One.", "Two."]
    assert "One." in printed
    assert "4 tokens in" in printed
    assert printed.count("time to first token") == 3
    systems = [json.dumps(seen.body["messages"]) for seen in server.seen]
    assert len(server.seen) == 3
    assert systems[0] != systems[1]
    assert systems[0] == systems[2]


def test_the_script_prints_one_line_for_an_error_and_exits_with_its_code(capsys: pytest.CaptureFixture[str]) -> None:
    """No traceback for an error that the user can fix."""
    with pytest.raises(SystemExit) as left:
        main(lambda: "nowhere", model="m", argv=["--prompt", "Why?"])
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith("error: The server's URL is 'nowhere'")
