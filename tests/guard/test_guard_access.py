"""Which requests the guard lets pass: paths, keys, bearer keys, headers and limits, without a server."""

from __future__ import annotations

import hashlib
import hmac
from itertools import product
from typing import TYPE_CHECKING

import pytest

from tests.guard.engine import KEY, OTHER_KEY, REPLICA_ID, RULES, guarded
from tests.guard.exchange import Exchange, ask, control, in_loop, settle, to_asleep, to_serving, to_waking
from torpor.guard import Guard, GuardRules, State

if TYPE_CHECKING:
    from tests.guard.engine import Message, Receive, Scope, Send

CLOSED_PATHS = (
    "/",
    "/release_weights",
    "/v1/update",
    "/docs",
    "/openapi.json",
    "/v1/chat/more",
    "/_torpor",
    "/_torpor/",
)
TRICKS = (
    "//v1/chat",
    "/v1//chat",
    "/v1/chat/",
    "/v1/chat//",
    "/V1/chat",
    "/v1/chat/.",
    "/v1/./chat",
    "/x/../v1/chat",
    "/v1/chat;x=1",
    "/v1/chat%20",
    "/v1/chat\x00",
    "/v1/chat\n",
    "v1/chat",
    "",
    "*",
    "http://host/v1/chat",
    "host:443",
    "/v1/chat?x=1",
    "/v1/chat#x",
    "/v1\\chat",
    "/v1/\uff43hat",  # a letter that some folding turns into c
)


@in_loop
async def test_a_public_request_passes_while_serving_and_is_not_touched() -> None:
    """Status, headers and body of the engine's answer arrive as they are."""
    engine, guard = guarded()
    await to_serving(guard)
    answer = await ask(guard, "/v1/chat", method="POST", body=b"{}", headers=(("x-mine", "1"),))
    assert (answer.status, answer.body, answer.headers["content-type"]) == (200, b"{}", "application/json")
    assert engine.paths == ["/v1/chat"]
    assert engine.calls[0].headers == ((b"x-mine", b"1"), (b"content-length", b"2"))


@in_loop
async def test_the_engines_own_refusals_pass_too() -> None:
    """The guard passes on every answer of a public path."""
    engine, guard = guarded()
    await to_serving(guard)
    engine.statuses["/v1/models"] = 429
    assert (await ask(guard, "/v1/models")).status == 429
    assert guard.in_flight == 0


@pytest.mark.parametrize("state", ["starting", "draining", "asleep", "waking"])
@in_loop
async def test_public_requests_get_503_with_retry_after_unless_serving(state: str) -> None:
    """In the form that OpenAI clients read, and never passed on."""
    engine, guard = guarded()
    await _bring_to(guard, state)
    before = len(engine.calls)
    woken = "it answers again once it is woken: by whoever put it to sleep"
    until = woken if state == "asleep" else "try again in a moment"
    for path in (*RULES.public, *RULES.open):
        answer = await ask(guard, path, method="POST", body=b"{}")
        assert (answer.status, answer.headers["retry-after"]) == (503, "7")
        assert answer.json == {
            "error": {
                "message": f"The server is {state}; {until}.",
                "type": "server_error",
                "code": "not_serving",
            }
        }
    assert len(engine.calls) == before


async def _bring_to(guard: Guard, state: str) -> None:
    match state:
        case "serving":
            await to_serving(guard)
        case "draining":
            assert (await control(guard, "drain")).status == 200
        case "asleep":
            await to_asleep(guard)
        case "waking":
            await to_waking(guard)
    assert guard.state == state


@in_loop
async def test_a_sleeping_server_says_what_wakes_it() -> None:
    """On public paths and on /health, as core told the guard; nothing of it once it is awake."""
    _, guard = guarded()
    await to_serving(guard)
    assert (await control(guard, "drain")).status == 200
    for path in RULES.sleep:
        assert (await ask(guard, path, method="POST", key=KEY)).status == 200
    assert (await control(guard, "asleep", {"woken_by": "`kill -USR2 17` on its machine"})).status == 200
    refused = await ask(guard, RULES.public[0])
    assert (refused.status, refused.headers["retry-after"], refused.code) == (503, "7", "not_serving")
    assert (
        "The server is asleep; it answers again once it is woken: `kill -USR2 17` on its machine."
        in refused.body.decode()
    )
    assert (await ask(guard, "/health")).json == {"state": "asleep", "woken_by": "`kill -USR2 17` on its machine"}
    assert (await control(guard, "wake")).status == 200
    assert (await ask(guard, "/health")).json == {"state": "waking"}


@pytest.mark.parametrize("words", ["x" * 201, "two\nlines", "\x1b[31mred", "caf\u00e9"])
@in_loop
async def test_what_wakes_a_server_is_said_in_one_plain_line(words: str) -> None:
    """Anything else is refused, and the guard stays where it is."""
    _, guard = guarded()
    await to_serving(guard)
    assert (await control(guard, "drain")).status == 200
    answer = await control(guard, "asleep", {"woken_by": words})
    assert (answer.status, guard.state) == (400, "draining")


@pytest.mark.parametrize("path", [*CLOSED_PATHS, *TRICKS])
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "OPTIONS"])
@in_loop
async def test_a_path_that_does_not_match_a_public_path_exactly_is_404_without_a_key(path: str, method: str) -> None:
    """Paths are compared whole, without decoding, case folding or trimming."""
    engine, guard = guarded()
    await to_serving(guard)
    answer = await ask(guard, path, method=method)
    assert (answer.status, answer.code) == (404, "not_found")
    assert engine.calls == []


@pytest.mark.parametrize("path", [*RULES.keyed, *RULES.sleep, *RULES.wake, "/_torpor/state", "/_torpor/serve"])
@pytest.mark.parametrize("state", ["starting", "serving", "draining", "asleep", "waking"])
@in_loop
async def test_keyed_paths_answer_like_missing_paths_without_the_key(path: str, state: str) -> None:
    """The answer is the same as for a path that does not exist."""
    engine, guard = guarded()
    await _bring_to(guard, state)
    before = len(engine.calls)
    missing = await ask(guard, "/no/such/path", method="POST")
    answer = await ask(guard, path, method="POST")
    assert (answer.status, answer.headers, answer.body) == (404, missing.headers, missing.body)
    assert len(engine.calls) == before
    assert guard.state == state


@pytest.mark.parametrize(
    "key", ["", "k", KEY[:-1], KEY + "k", KEY.upper(), f" {KEY}", f"{KEY} ", f"{KEY},{KEY}", OTHER_KEY, "ü" * 43]
)
@in_loop
async def test_a_wrong_key_is_403_on_every_path(key: str) -> None:
    """A wrong key does not show which paths exist."""
    engine, guard = guarded()
    await to_serving(guard)
    paths = ("/v1/chat", "/metrics", "/info", "/pause", "/resume", "/_torpor/state", "/no/such/path", "//", "/health")
    answers = [await ask(guard, path, method="POST", key=key) for path in paths]
    assert {(answer.status, answer.body) for answer in answers} == {(403, answers[0].body)}
    assert answers[0].code == "forbidden"
    assert engine.calls == []


@in_loop
async def test_the_key_opens_public_and_keyed_paths_and_never_reaches_the_engine() -> None:
    """The engine never sees the key; it could log it."""
    engine, guard = guarded()
    for path in ("/v1/models", "/metrics", "/info"):
        answer = await ask(guard, path, key=KEY, headers=(("x-mine", "1"), ("authorization", "Bearer mine")))
        assert answer.status == 200
    assert [call.headers for call in engine.calls] == [((b"x-mine", b"1"),)] * 3
    assert (await ask(guard, "/no/such/path", key=KEY)).status == 404


@pytest.mark.parametrize("name", ["torpor-key", "authorization", "content-length", "transfer-encoding"])
@pytest.mark.parametrize("path", ["/v1/chat", "/info", "/health", "/_torpor/state", "/no/such/path"])
@in_loop
async def test_a_security_relevant_header_that_is_repeated_is_refused(name: str, path: str) -> None:
    """Two servers might each use another of the values."""
    engine, guard = guarded()
    await to_serving(guard)
    value = {"torpor-key": KEY, "content-length": "2"}.get(name, "x")
    answer = await ask(guard, path, method="POST", body=b"{}", headers=((name, value), (name, value)))
    assert (answer.status, answer.code) == (400, "ambiguous_headers")
    assert engine.calls == []


@in_loop
async def test_a_body_with_two_lengths_is_refused() -> None:
    """Content-Length beside Transfer-Encoding is how requests are smuggled (RFC 9112, 6.1), double headers or not."""
    engine, guard = guarded()
    await to_serving(guard)
    for more in ((), (("accept", "a"), ("accept", "b"))):
        headers = (("content-length", "2"), ("transfer-encoding", "chunked"), *more)
        assert (await ask(guard, "/v1/chat", method="POST", headers=headers)).status == 400
    assert engine.calls == []


@pytest.mark.parametrize(
    "encoding", ["gzip", "identity", "gzip, chunked", "chunked, gzip", "chunked;x", "xchunked", ""]
)
@in_loop
async def test_a_body_in_any_encoding_but_chunked_is_refused(encoding: str) -> None:
    """Parsers disagree on where such a body ends (httptools passes `gzip` on)."""
    engine, guard = guarded()
    await to_serving(guard)
    for key in (None, KEY):
        headers = (("transfer-encoding", encoding),)
        answer = await ask(guard, "/v1/chat", key=key, headers=headers, scope={"method": "POST"})
        assert answer.status == 400
    assert engine.calls == []


@in_loop
async def test_other_headers_may_come_twice() -> None:
    """For example Cookie and Accept."""
    engine, guard = guarded()
    await to_serving(guard)
    assert (await ask(guard, "/v1/models", headers=(("cookie", "a=1"), ("cookie", "b=2")))).status == 200
    assert engine.calls[0].headers == ((b"cookie", b"a=1"), (b"cookie", b"b=2"))


@pytest.mark.parametrize("path", ["/v1/models", "/info", "/pause", "/_torpor/state", "/health"])
@in_loop
async def test_a_path_that_was_sent_in_another_form_is_404(path: str) -> None:
    """The server decodes escapes. A path has to be sent byte for byte, whatever it decodes to."""
    engine, guard = guarded()
    await to_serving(guard)
    forms: tuple[bytes, ...] = (
        path.replace("/", "%2F").encode(),
        path.replace("s", "%73").encode() + b"%2e",
        b"/",
        b"",
    )
    for raw in forms:
        for key in (None, KEY):
            assert (await ask(guard, path, method="POST", key=key, scope={"raw_path": raw})).status == 404
    assert engine.calls == []


@in_loop
async def test_a_server_without_a_raw_path_works() -> None:
    """ASGI leaves it optional."""
    _, guard = guarded()
    await to_serving(guard)
    assert (await ask(guard, "/v1/models", scope={"raw_path": None})).status == 200


@pytest.mark.parametrize("path", ["/v1/models", "/info", "/pause", "/_torpor/state", "/health"])
@in_loop
async def test_under_a_root_path_everything_is_closed(path: str) -> None:
    """A framework removes the root path before it routes, so it would route another path than the guard compared."""
    engine, guard = guarded()
    for key in (None, KEY):
        assert (await ask(guard, path, method="POST", key=key, scope={"root_path": "/v1"})).status == 404
    assert engine.calls == []


@pytest.mark.parametrize("path", ["/health", "/ready"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@in_loop
async def test_health_is_the_guards_own_answer_in_every_state(path: str, method: str) -> None:
    """200 only when serving, with or without a key; the engine is never asked."""
    engine, guard = guarded()
    for state in ("starting", "serving", "draining", "asleep", "waking"):
        if state != "starting":
            engine, guard = guarded()
        await _bring_to(guard, state)
        before = len(engine.calls)
        for key in (None, KEY, OTHER_KEY):
            answer = await ask(guard, path, method=method, key=key)
            assert answer.status == (200 if state == "serving" else 503)
            assert answer.headers.get("retry-after") == (None if state == "serving" else "7")
            assert answer.json == {"state": state}
        assert len(engine.calls) == before
    assert (await ask(guard, path, method="POST")).status == 404
    assert (await ask(guard, path, method="POST", key=KEY)).status == 404


# Bearer keys ---------------------------------------------------------------------------------------------------------


def bearer_rules(*keys: str) -> GuardRules:
    """The rules with bearer keys."""
    digests = tuple(hashlib.sha256(key.encode()).hexdigest() for key in keys)
    return GuardRules(
        public=RULES.public, open=RULES.open, keyed=RULES.keyed, bearer_sha256=digests, max_in_flight=3, retry_after_s=7
    )


@pytest.mark.parametrize("given", ["Bearer one", "Bearer two", "bearer one", "BEARER  one "])
@in_loop
async def test_every_bearer_key_opens_the_public_paths_and_never_reaches_the_engine(given: str) -> None:
    """The scheme's case does not matter (RFC 9110, 11.1)."""
    engine, guard = guarded(bearer_rules("one", "two"))
    await to_serving(guard)
    assert (await ask(guard, "/v1/models", headers=(("authorization", given),))).status == 200
    assert (await ask(guard, "/v1/chat", method="POST", headers=(("authorization", given),))).status == 200
    assert engine.calls[0].headers == ()


@pytest.mark.parametrize(
    "given", [None, "", "one", "Basic one", "Bearer", "Bearer ", "Bearer three", "Bearer one two", "Bearer,one"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "OPTIONS"])
@in_loop
async def test_without_a_bearer_key_the_public_paths_are_401(given: str | None, method: str) -> None:
    """An OPTIONS that is no browser's preflight needs one as well."""
    engine, guard = guarded(bearer_rules("one", "two"))
    await to_serving(guard)
    headers = () if given is None else (("authorization", given),)
    answer = await ask(guard, "/v1/models", method=method, headers=headers)
    assert (answer.status, answer.code) == (401, "invalid_api_key")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert engine.calls == []


@in_loop
async def test_a_digest_is_no_key() -> None:
    """Somebody who reads the configuration cannot use it as a key."""
    _, guard = guarded(bearer_rules("one"))
    await to_serving(guard)
    digest = hashlib.sha256(b"one").hexdigest()
    assert (await ask(guard, "/v1/models", headers=(("authorization", f"Bearer {digest}"),))).status == 401


@in_loop
async def test_open_paths_and_the_lifecycle_need_no_bearer_key() -> None:
    """`open` is for scrapers; the lifecycle key is the stronger one. A bearer key opens nothing else."""
    engine, guard = guarded(bearer_rules("one"))
    assert (await ask(guard, "/v1/models", key=KEY)).status == 200
    await to_serving(guard)
    assert (await ask(guard, "/metrics")).status == 200
    for path in ("/info", "/_torpor/state", "/no/such/path"):
        assert (await ask(guard, path, headers=(("authorization", "Bearer one"),))).status == 404
        assert (await ask(guard, path, headers=(("authorization", f"Bearer {KEY}"),))).status == 404
    assert engine.paths == ["/v1/models", "/metrics"]


@in_loop
async def test_a_browsers_preflight_passes_without_a_bearer_key_on_public_paths_only() -> None:
    """A browser cannot send a key with it, and the answer to it runs no route of the engine's."""
    engine, guard = guarded(bearer_rules("one"))
    preflight = (("origin", "https://a.example"), ("access-control-request-method", "POST"))
    assert (await ask(guard, "/v1/chat", method="OPTIONS", headers=preflight)).status == 503
    await to_serving(guard)
    assert (await ask(guard, "/v1/chat", method="OPTIONS", headers=preflight)).status == 200
    assert (await ask(guard, "/v1/chat", method="POST", headers=preflight)).status == 401
    for path in ("/info", "/pause", "/no/such/path"):
        assert (await ask(guard, path, method="OPTIONS", headers=preflight)).status == 404
    assert [call.method for call in engine.calls] == ["OPTIONS"]


@pytest.mark.parametrize(
    "given", ["one", "two", "three", "none", "", "onetwo", "o" * 5000], ids=lambda given: given[:8] or "empty"
)
@in_loop
async def test_every_compare_of_a_key_takes_the_same_time(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Digests of one length, by the compare that does not stop at a difference, and all of them every time."""
    compared: list[tuple[int, int]] = []

    def compare_digest(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return one == other

    _, guard = guarded(bearer_rules("one", "two", "three"))
    await to_serving(guard)
    monkeypatch.setattr(hmac, "compare_digest", compare_digest)
    answer = await ask(guard, "/v1/models", headers=(("authorization", f"Bearer {given}"),))
    assert (answer.status, compared) == (200 if given in ("one", "two", "three") else 401, [(32, 32)] * 3)
    for key in (given, KEY, KEY[:-1] + "x"):
        compared.clear()
        answer = await ask(guard, "/info", key=key)
        assert (answer.status, compared) == (200 if key == KEY else 403, [(32, 32)])


# Limits --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, KEY])
@pytest.mark.parametrize("length", ["1001", "99999999999999999999", "9" * 5000, "-1", "1e3", " 5", "0x10", "", "٣"])
@in_loop
async def test_a_content_length_over_the_limit_or_none_at_all_is_413(length: str, key: str | None) -> None:
    """Nothing of such a body is read."""
    engine, guard = guarded()
    await to_serving(guard)
    answer = await ask(guard, "/v1/chat", method="POST", key=key, headers=(("content-length", length),))
    assert (answer.status, answer.code) == (413, "body_too_large")
    assert (engine.calls, guard.in_flight) == ([], 0)


@pytest.mark.parametrize("key", [None, KEY])
@in_loop
async def test_bodies_up_to_the_limit_pass_whole(key: str | None) -> None:
    """With a length and without one."""
    engine, guard = guarded()
    await to_serving(guard)
    assert (await ask(guard, "/v1/chat", method="POST", key=key, body=b"x" * 1000)).status == 200
    assert (await ask(guard, "/v1/chat", method="POST", key=key, body=(b"x" * 600, b"x" * 400))).status == 200
    assert engine.paths == ["/v1/chat"] * 2


@pytest.mark.parametrize("key", [None, KEY])
@pytest.mark.parametrize("path", ["/v1/chat", "/v1/afterwards"])
@in_loop
async def test_a_chunked_body_over_the_limit_is_413(key: str | None, path: str) -> None:
    """The engine sees a client that hung up, and the client gets an answer."""
    engine, guard = guarded()
    await to_serving(guard)
    answer = await ask(guard, path, method="POST", key=key, body=(b"x" * 600, b"x" * 401, b"x"))
    assert (answer.status, answer.code, answer.complete) == (413, "body_too_large", True)
    assert (engine.hung_up, guard.in_flight) == (1, 0)


@pytest.mark.parametrize("ending", ["answers", "raises"])
@in_loop
async def test_an_engines_answer_or_exception_to_a_body_that_is_too_large_is_dropped(
    ending: str,
) -> None:
    """Frameworks turn a client that hung up into a 400 or an exception."""

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        if ending == "raises":
            raise RuntimeError("the client has gone")
        await send({"type": "http.response.start", "status": 400, "headers": []})
        await send({"type": "http.response.body", "body": b"bad"})

    guard = Guard(app, RULES, key=KEY, replica_id=REPLICA_ID)
    await to_serving(guard)
    answer = await ask(guard, "/v1/chat", method="POST", body=(b"x" * 2000, b""))
    assert (answer.status, answer.complete, guard.in_flight) == (413, True, 0)


@in_loop
async def test_an_answer_that_began_before_the_body_was_too_large_is_kept() -> None:
    """Two answers to one request would be a broken connection."""

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while (await receive())["type"] != "http.disconnect":
            pass
        await send({"type": "http.response.body", "body": b"enough"})

    guard = Guard(app, RULES, key=KEY, replica_id=REPLICA_ID)
    await to_serving(guard)
    answer = await ask(guard, "/v1/chat", method="POST", body=(b"x" * 2000,))
    assert (answer.status, answer.body, answer.complete) == (200, b"enough", True)


@in_loop
async def test_a_body_without_any_length_is_counted_where_the_protocol_allows_one() -> None:
    """HTTP/2 has neither header."""
    _, guard = guarded()
    await to_serving(guard)
    for version in ("2", "3"):
        exchange = Exchange(guard, "/v1/chat", body=b"x" * 1001, scope={"http_version": version, "method": "POST"})
        await exchange.task
        assert exchange.status == 413


@in_loop
async def test_requests_beyond_the_limit_in_flight_get_503_with_retry_after() -> None:
    """Lifecycle calls still pass: core must be able to drain a busy engine."""
    engine, guard = guarded()
    await to_serving(guard)
    engine.gate.clear()
    running = [Exchange(guard, "/v1/chat", method="POST") for _ in range(3)]
    await settle()
    assert guard.in_flight == 3
    answer = await ask(guard, "/v1/chat", method="POST")
    assert (answer.status, answer.code, answer.headers["retry-after"]) == (503, "too_many_requests", "7")
    assert (await ask(guard, "/info", key=KEY)).status == 200
    engine.gate.set()
    await settle()
    assert [exchange.status for exchange in running] == [200, 200, 200]
    assert guard.in_flight == 0
    assert (await ask(guard, "/v1/chat", method="POST")).status == 200


# In flight -----------------------------------------------------------------------------------------------------------


@in_loop
async def test_a_stream_is_in_flight_until_its_last_chunk() -> None:
    """And is passed on chunk by chunk."""
    engine, guard = guarded()
    await to_serving(guard)
    engine.gate.clear()
    stream = Exchange(guard, "/v1/stream", method="POST")
    await settle()
    assert (stream.body, stream.complete, guard.in_flight) == (b"first ", False, 1)
    engine.gate.set()
    await settle()
    assert (stream.body, stream.complete, guard.in_flight) == (b"first last", True, 0)


@pytest.mark.parametrize("path", ["/v1/chat", "/v1/stream"])
@in_loop
async def test_a_client_that_hangs_up_is_no_longer_in_flight(path: str) -> None:
    """As soon as the engine has dropped the request."""
    engine, guard = guarded()
    await to_serving(guard)
    engine.gate.clear()
    exchange = Exchange(guard, path, method="POST")
    await settle()
    assert guard.in_flight == 1
    exchange.hang_up()
    await settle()
    assert (guard.in_flight, engine.hung_up) == (0, 1)


@pytest.mark.parametrize("path", ["/v1/crash", "/v1/late_crash"])
@pytest.mark.parametrize("key", [None, KEY])
@in_loop
async def test_the_server_reports_an_exception_of_the_engines_and_the_request_counts_as_ended(
    path: str, key: str | None
) -> None:
    """Before the answer began and within it."""
    _, guard = guarded()
    await to_serving(guard)
    exchange = Exchange(guard, path, method="POST", key=key)
    with pytest.raises(RuntimeError, match="crash"):
        await exchange.task
    assert guard.in_flight == 0


@in_loop
async def test_an_answer_ends_for_the_key_holder_only_after_the_guard_counted_it() -> None:
    """The next call may be a sleep step, for which no request may be in flight."""
    _, guard = guarded()
    exchange = Exchange(guard, "/v1/afterwards", method="POST", key=KEY)
    await settle()
    assert (exchange.status, exchange.complete, guard.in_flight) == (200, False, 1)
    await exchange.task
    assert (exchange.complete, guard.in_flight) == (True, 0)


# Other connections ---------------------------------------------------------------------------------------------------


async def open_socket(guard: Guard, path: str, *, key: str | None = None, sends: tuple[str, ...] = ()) -> list[object]:
    """A websocket that says a few things and closes; the types and texts that came back."""
    inbox: list[Message] = [{"type": "websocket.connect"}]
    for text in sends:
        inbox.append({"type": "websocket.receive", "text": text})  # noqa: PERF401 - a list of dict[str, str] is none
    inbox.append({"type": "websocket.disconnect"})
    back: list[object] = []

    async def receive() -> Message:
        return inbox.pop(0)

    async def send(message: Message) -> None:
        back.append(message.get("text") or message.get("code") or message["type"])

    headers = [] if key is None else [(b"torpor-key", key.encode())]
    scope: Scope = {"type": "websocket", "path": path, "raw_path": path.encode(), "headers": headers}
    await guard(scope, receive, send)
    return back


@in_loop
async def test_a_websocket_passes_on_public_paths_while_serving() -> None:
    """And is in flight as long as it is open."""
    engine, guard = guarded()
    assert await open_socket(guard, "/v1/chat") == [1008]
    await to_serving(guard)
    assert await open_socket(guard, "/v1/chat", sends=("hello",)) == ["websocket.accept", '"hello"']
    assert (engine.paths, guard.in_flight) == (["/v1/chat"], 0)


@pytest.mark.parametrize(
    ("path", "key"),
    [
        *product(("/info", "/pause", "/health", "/v1/realtime", "//v1/chat", "/_torpor/state"), (None, KEY, OTHER_KEY)),
        ("/v1/chat", KEY),
        ("/v1/chat", OTHER_KEY),
    ],
)
@in_loop
async def test_any_other_websocket_is_closed_before_it_is_accepted(path: str, key: str | None) -> None:
    """The lifecycle uses no websockets, so its key opens none."""
    engine, guard = guarded()
    await to_serving(guard)
    assert await open_socket(guard, path, key=key) == [1008]
    assert engine.calls == []


@in_loop
async def test_a_websocket_needs_the_bearer_key_and_room() -> None:
    """The same rules as for requests."""
    engine, guard = guarded(bearer_rules("one"))
    await to_serving(guard)
    assert await open_socket(guard, "/v1/chat") == [1008]
    assert await open_socket(guard, "/v1/chat", key=KEY) == [1008]
    engine, guard = guarded()
    await to_serving(guard)
    engine.gate.clear()
    running = [Exchange(guard, "/v1/chat", method="POST") for _ in range(3)]
    await settle()
    assert await open_socket(guard, "/v1/chat") == [1008]
    engine.gate.set()
    await settle()
    assert all(exchange.complete for exchange in running)


@in_loop
async def test_lifespan_is_the_engines_and_anything_unknown_is_refused() -> None:
    """What the guard does not know it does not pass on."""
    engine, guard = guarded()

    async def receive() -> Message:
        return {}

    async def send(message: Message) -> None:
        raise AssertionError(message)

    await guard({"type": "lifespan"}, receive, send)
    assert engine.lifespan
    with pytest.raises(ValueError, match="webtransport"):
        await guard({"type": "webtransport"}, receive, send)
    assert engine.calls == []


@in_loop
async def test_the_state_is_told_to_the_holder_of_the_key() -> None:
    """With the replica id, so that core recognises its engine."""
    engine, guard = guarded()
    await to_serving(guard)
    engine.gate.clear()
    running = Exchange(guard, "/v1/chat", method="POST")
    await settle()
    told = {"state": "serving", "in_flight": 1, "answered": 0, "replica_id": REPLICA_ID}
    assert (await control(guard, "state")).json == told
    engine.gate.set()
    await running.task
    assert guard.state is State.SERVING
    monitor = Exchange(guard, "/v1/chat", method="GET")
    await monitor.task
    assert monitor.status == 200, "a monitor's look reaches the engine"
    assert (await control(guard, "state")).json == {**told, "in_flight": 0, "answered": 1}, "and asks it nothing"
