"""The identity call: the guard proves its identity, and the proof is of no use to others."""

from __future__ import annotations

import pytest

from tests.guard.engine import KEY, OTHER_KEY, REPLICA_ID, RULES, TinyEngine, guarded
from tests.guard.exchange import Exchange, Pairs, ask, control, in_loop, to_asleep, to_serving, to_waking
from torpor.guard import Guard
from torpor.guard.identity import proof, proof_key
from torpor.guard.keys import LifecycleKey
from torpor.guard.protocol import IDENTITY

NONCE = bytes(range(32))
CLIENT, SERVER = ("127.0.0.1", 40000), ("127.0.0.1", 8000)


def query(nonce: bytes | str = NONCE) -> str:
    """The query of an identity call."""
    return f"nonce={nonce if isinstance(nonce, str) else nonce.hex()}"


async def identify(
    guard: Guard,
    *,
    text: str = query(),
    client: object = CLIENT,
    server: object = SERVER,
    method: str = "GET",
    key: str | None = None,
    headers: Pairs = (),
) -> Exchange:
    """One identity call over a connection with these ends."""
    scope = {"query_string": text.encode(), "client": client, "server": server}
    return await ask(guard, IDENTITY, method=method, key=key, headers=headers, scope=scope)


def wanted(key: str = KEY, client: tuple[str, int] = CLIENT) -> str:
    """What core expects."""
    return proof(proof_key(key.encode()), NONCE, client=client, server=SERVER)


@in_loop
async def test_the_guard_proves_itself_in_every_state() -> None:
    """Core asks before its first call and before every later one; no state and no request in flight changes by it."""
    for move in (None, to_serving, to_asleep, to_waking):
        engine, guard = guarded()
        if move:
            await move(guard)
        before = guard.state, guard.in_flight, len(engine.calls)
        answer = await identify(guard)
        assert (answer.status, answer.json) == (200, {"proof": wanted()})
        assert (guard.state, guard.in_flight, len(engine.calls)) == before


@in_loop
async def test_a_wake_replaces_what_the_guard_proves_with() -> None:
    """The old proof key is in every replica of the snapshot."""
    _, guard = guarded()
    await to_asleep(guard)
    assert (await control(guard, "wake", {"key": LifecycleKey(OTHER_KEY).digests})).status == 200
    assert (await identify(guard)).json == {"proof": wanted(OTHER_KEY)}
    assert (await control(guard, "state", key=OTHER_KEY)).status == 200
    assert (await control(guard, "state", key=KEY)).status == 403


@pytest.mark.fault("a proof is relayed over another connection", area="lifecycle key", outcome="refused")
@in_loop
async def test_a_proof_holds_for_one_connection_only() -> None:
    """A relay between core and the engine has a connection of its own, and cannot make core take its proof."""
    _, guard = guarded()
    for client in (("127.0.0.1", 40001), ("127.0.0.2", 40000), ("::1", 40000)):
        assert (await identify(guard, client=client)).json != {"proof": wanted()}
    assert (await identify(guard, server=("127.0.0.2", 8000))).json != {"proof": wanted()}
    mapped = await identify(guard, client=["::ffff:127.0.0.1", 40000], server=["::ffff:127.0.0.1", 8000])
    assert mapped.json == {"proof": wanted()}, "a server on IPv6 sees the same connection"


@pytest.mark.fault(
    "a client claims another address by X-Forwarded-For to get a proof for it", area="lifecycle key", outcome="refused"
)
@pytest.mark.parametrize("name", ["x-forwarded-for", "forwarded"])
@in_loop
async def test_a_request_with_a_forwarded_client_address_gets_no_proof(name: str) -> None:
    """Servers trust such headers from loopback (uvicorn: `--proxy-headers`, on by default)."""
    _, guard = guarded()
    answer = await identify(guard, headers=((name, "127.0.0.1:40000"),))
    assert (answer.status, answer.code) == (501, "unknown_connection")


@in_loop
async def test_a_server_that_does_not_tell_the_connection_proves_nothing() -> None:
    """ASGI leaves both ends optional."""
    _, guard = guarded()
    assert (await identify(guard, client=None)).status == 501
    assert (await identify(guard, server=None)).status == 501


@pytest.mark.fault("a nonce is missing, short, long, doubled or none", area="lifecycle key", outcome="refused")
@pytest.mark.parametrize(
    "text",
    [
        *("", "nonce=", query("ab"), query("0" * 63), query("0" * 65), query("A" * 64), query("g" * 64)),
        *(f"{query()}&a=b", f"{query()}&{query()}", f"x=1&{query()}", f"{query()}\n", query("%30" * 64)),
        *("nonce=" + "0" * 100_000, "\u0660"),
    ],
)
@in_loop
async def test_a_nonce_is_exactly_32_bytes(text: str) -> None:
    """Any other nonce is refused before anything is computed."""
    _, guard = guarded()
    answer = await identify(guard, text=text)
    assert (answer.status, answer.code) == (400, "bad_nonce")


@in_loop
async def test_an_identity_call_is_a_get_and_shows_nothing_else() -> None:
    """No replica id, no state; a wrong key is 403 as everywhere, and the right one changes nothing."""
    _, guard = guarded()
    assert (await identify(guard, method="POST")).status == 405
    assert (await identify(guard, key=OTHER_KEY)).status == 403
    answer = await identify(guard, key=KEY)
    assert (answer.status, list(answer.json)) == (200, ["proof"])
    assert REPLICA_ID not in str(answer.headers)


@pytest.mark.fault("somebody reads what the guard keeps of the lifecycle key", area="lifecycle key", outcome="held")
@in_loop
async def test_the_guards_digests_open_no_path() -> None:
    """The key's digest and the proof key, in any writing, are wrong keys."""
    engine, guard = guarded()
    kept = LifecycleKey(KEY).digests
    for value in kept.values():
        for given in (value, value.upper(), f"{kept}".replace(" ", "")):
            assert (await control(guard, "serve", key=given)).status == 403
    assert engine.calls == []


@pytest.mark.parametrize(
    "key",
    [
        *({}, {"sha256": "0" * 64}, {"proof": "0" * 64}, {"sha256": "0" * 64, "proof": "0" * 63}, ["0" * 64], 5),
        *({"sha256": "0" * 64, "proof": None}, {"sha256": "0" * 64, "proof": "0" * 64, "more": ""}),
    ],
)
@in_loop
async def test_invalid_digests_do_not_replace_the_key(key: object) -> None:
    """A wake with a damaged key is refused whole."""
    _, guard = guarded()
    await to_asleep(guard)
    assert (await control(guard, "wake", {"key": key})).status == 400
    assert guard.state == "asleep"
    assert (await control(guard, "wake", {"key": LifecycleKey(KEY).digests})).status == 400, "the old key's digests"


@in_loop
async def test_a_guard_takes_a_key_or_its_digests() -> None:
    """Engines hand over what `read_boot` gave them."""
    for key in (KEY, LifecycleKey(KEY), LifecycleKey(LifecycleKey(KEY).digests)):
        guard = Guard(TinyEngine(), RULES, key=key, replica_id=REPLICA_ID)
        assert (await identify(guard)).json == {"proof": wanted()}
        assert (await control(guard, "state")).status == 200
