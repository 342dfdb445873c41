"""The rules and the boot document: invalid ones are refused before anything is served."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import torpor.guard
from tests.guard.engine import KEY, REPLICA_ID, RULES
from torpor.guard import BOOT_FD_VARIABLE, BootDocument, Guard, GuardRules, boot_document_json, read_boot

if TYPE_CHECKING:
    from tests.guard.engine import Receive, Scope, Send

RULES_JSON: dict[str, object] = json.loads(boot_document_json(key=KEY, replica_id=REPLICA_ID, rules=RULES))["rules"]
DOCUMENT: dict[str, object] = {"key": KEY, "replica_id": REPLICA_ID, "rules": RULES_JSON}


def pipe_with(data: bytes, monkeypatch: pytest.MonkeyPatch) -> int:
    """A pipe that holds this, announced in the environment; its read end."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    with os.fdopen(write_end, "wb", buffering=0) as pipe:
        assert pipe.write(data) == len(data)
    monkeypatch.setenv(BOOT_FD_VARIABLE, str(read_end))
    return read_end


def test_the_document_goes_through_the_pipe_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Key, replica id and every rule arrive as they were written; the pipe is closed and its number forgotten."""
    rules = GuardRules(
        public=("/v1/chat", "/v1/models"), bearer_sha256=(hashlib.sha256(b"x").hexdigest(),), max_body_bytes=5
    )
    read_end = pipe_with(boot_document_json(key=KEY, replica_id=REPLICA_ID, rules=rules).encode(), monkeypatch)
    assert read_boot() == BootDocument(key=KEY, replica_id=REPLICA_ID, rules=rules)
    assert BOOT_FD_VARIABLE not in os.environ
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(read_end)


def test_without_the_variable_there_is_no_document(monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher decides what that means."""
    monkeypatch.delenv(BOOT_FD_VARIABLE, raising=False)
    assert read_boot() is None


def test_the_key_is_in_no_repr() -> None:
    """A document in a log does not show the key."""
    assert KEY not in repr(BootDocument(key=KEY, replica_id=REPLICA_ID, rules=RULES))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 60_000, "not JSON"),
        (json.dumps(DOCUMENT).encode()[:-2], "not JSON"),
        (b"[1]", "has to hold key, replica_id, rules"),
        (json.dumps({"key": KEY}).encode(), "has to hold key, replica_id, rules"),
        (json.dumps({**DOCUMENT, "more": 1}).encode(), "and nothing else"),
        (json.dumps({**DOCUMENT, "key": 5}).encode(), "key has to be a string"),
        (json.dumps({**DOCUMENT, "key": "short"}).encode(), "at least 16"),
        (json.dumps({**DOCUMENT, "key": KEY + "\n"}).encode(), "visible ASCII"),
        (json.dumps({**DOCUMENT, "replica_id": None}).encode(), "replica_id"),
        (json.dumps({**DOCUMENT, "rules": []}).encode(), "not this version's"),
        (json.dumps({**DOCUMENT, "rules": {**RULES_JSON, "deny": []}}).encode(), "deny.*of one release"),
        (json.dumps({**DOCUMENT, "rules": {"public": []}}).encode(), "bearer_sha256.*of one release"),
        (json.dumps({**DOCUMENT, "rules": {**RULES_JSON, "public": "/v1"}}).encode(), "public.*tuple"),
        (json.dumps({**DOCUMENT, "rules": {**RULES_JSON, "max_in_flight": "9"}}).encode(), "max_in_flight"),
    ],
)
def test_a_damaged_document_is_an_error_that_repeats_nothing_of_the_key(
    data: bytes, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing or unknown rule counts as damage: ignoring it might open a path."""
    pipe_with(data, monkeypatch)
    with pytest.raises(ValueError, match=message) as caught:
        read_boot()
    assert KEY not in str(caught.value)
    assert caught.value.__cause__ is None
    assert BOOT_FD_VARIABLE not in os.environ


def test_a_document_that_does_not_fit_a_pipe_is_refused_by_the_writer() -> None:
    """Core writes before the launcher reads: a longer document would block core for ever."""
    rules = GuardRules(public=tuple(f"/v1/{number:020}" for number in range(3000)))
    with pytest.raises(ValueError, match="more than the 65536 of a pipe"):
        boot_document_json(key=KEY, replica_id=REPLICA_ID, rules=rules)


def test_the_reader_stops_at_64_kib(monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer input is not read to its end."""
    read_end, write_end = os.pipe()
    monkeypatch.setenv(BOOT_FD_VARIABLE, str(read_end))
    flood = "import os\ntry:\n  while os.write(1, b' ' * 65536): pass\nexcept BrokenPipeError: pass"
    writer = subprocess.Popen([sys.executable, "-c", flood], stdout=write_end)
    os.close(write_end)
    try:
        with pytest.raises(ValueError, match="larger than 65536 bytes"):
            read_boot()
        assert writer.wait(30) == 0, "the pipe was closed, which ends the writer"
    finally:
        writer.kill()
        writer.wait()


@pytest.mark.parametrize("number", ["", "x", "-1", "3.5", "99999", "9" * 40, "\u0663"])
def test_a_number_that_is_no_descriptor_is_a_clear_error(number: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable names a pipe, or the launcher says so."""
    monkeypatch.setenv(BOOT_FD_VARIABLE, number)
    with pytest.raises(ValueError, match=BOOT_FD_VARIABLE):
        read_boot()


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"public": ("v1/chat",)}, "begin with '/'"),
        ({"public": ("",)}, "begin with '/'"),
        ({"public": ("/v1/ch%61t",)}, "plain ASCII"),
        ({"public": ("/v1?x=1",)}, "plain ASCII"),
        ({"public": ("/v1/chät",)}, "plain ASCII"),
        ({"public": ("/v1/a b",)}, "plain ASCII"),
        ({"public": ("/health",)}, "the guard's own"),
        ({"public": (), "keyed": ("/_torpor/state",)}, "the guard's own"),
        ({"public": ("/release",), "sleep": ("/release",)}, "cannot be reached in another way"),
        ({"public": (), "keyed": ("/resume",), "wake": ("/resume",)}, "cannot be reached in another way"),
        ({"public": (), "bearer_sha256": ("secret",)}, "64 lower-case hex digits"),
        ({"public": (), "bearer_sha256": ("A" * 64,)}, "64 lower-case hex digits"),
        ({"public": "/v1"}, "tuple of strings"),
        ({"public": (1,)}, "tuple of strings"),
        ({"public": (), "max_body_bytes": 0}, "max_body_bytes"),
        ({"public": (), "max_in_flight": True}, "max_in_flight"),
        ({"public": (), "retry_after_s": 1.5}, "retry_after_s"),
    ],
)
def test_invalid_rules_are_refused(rules: dict[str, object], message: str) -> None:
    """They are an error at the launch; otherwise a path would be open, or unreachable."""
    with pytest.raises(ValueError, match=message):
        GuardRules(**rules)  # type: ignore[arg-type]


def test_the_guard_itself_refuses_a_short_key() -> None:
    """Also without a boot document."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError

    with pytest.raises(ValueError, match="at least 16"):
        Guard(app, RULES, key="short", replica_id=REPLICA_ID)


def test_importing_the_guard_needs_the_standard_library_only() -> None:
    """It runs in the engine's environment: a clean interpreter without any installed package is enough."""
    core = str(Path(torpor.guard.__file__).parents[2])
    code = (
        f"import sys; sys.path.insert(0, {core!r}); import torpor.guard; "
        f"print(sorted({{name.partition('.')[0] for name in sys.modules}} - set(sys.stdlib_module_names) - {{'__main__'}}))"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['torpor']"
