"""`torpor.serving.model_in_json` and `model_in_form`: the name is found as Python's own parser finds it, and no later."""

from __future__ import annotations

import json
from email.message import EmailMessage

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torpor.serving.model_in_form import FormModel, boundary_of
from torpor.serving.model_in_json import BadModelError, JsonModel

NAMES = st.text(max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12) | st.just("model"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | st.just("model"), inner, max_size=3),
    max_leaves=8,
)
PAIRS = st.lists(st.tuples(NAMES | st.just("model"), VALUES), max_size=6)
CUTS = st.lists(st.integers(0, 2000), max_size=8)


def scan(body: bytes, cuts: list[int], prefix: bytes = b"HEAD") -> tuple[str | None, int]:
    """The name that the scanner finds, and how many bytes of the body it had then."""
    scanner = JsonModel(len(prefix))
    for place in (*sorted({cut % (len(body) + 1) for cut in cuts}), len(body)):
        scanner.feed(bytearray(prefix + body[:place]), ended=place == len(body))
        if scanner.done:
            return scanner.model, place
    raise AssertionError("the scanner was never done")


def written(pairs: list[tuple[str, object]], *, ascii_only: bool, spaces: str) -> bytes:
    """An object with these pairs, in this order, repeated keys included."""
    members = [
        f"{json.dumps(key, ensure_ascii=ascii_only)}{spaces}:{spaces}{json.dumps(value, ensure_ascii=ascii_only)}"
        for key, value in pairs
    ]
    return f"{{{spaces}{(spaces + ',' + spaces).join(members)}{spaces}}}".encode("utf-8", "surrogatepass")


@settings(max_examples=60)
@given(PAIRS, CUTS, st.booleans(), st.sampled_from(["", " ", "\r\n\t "]))
def test_the_first_model_of_the_object_is_found(
    pairs: list[tuple[str, object]], cuts: list[int], ascii_only: bool, spaces: str
) -> None:
    """Not one inside of a value, and not a value `model`. A model that is no string is refused."""
    body = written(pairs, ascii_only=ascii_only, spaces=spaces)
    told: list[tuple[str, object]] = json.loads(body, object_pairs_hook=list)
    wanted = next((value for key, value in told if key == "model"), None)
    if any(key == "model" for key, _ in told) and not isinstance(wanted, str):
        with pytest.raises(BadModelError):
            scan(body, cuts)
    else:
        assert scan(body, cuts)[0] == wanted


@given(st.text(min_size=1, max_size=20), CUTS)
def test_escaped_keys_and_names_are_read(name: str, cuts: list[int]) -> None:
    """A key with an escaped letter is the key, too."""
    escaped = "".join(f"\\u{ord(letter):04x}" if ord(letter) < 0x10000 else letter for letter in name)
    body = f'{{"x": "\\"model\\": 1", "\\u006dodel": "{escaped}"}}'.encode("utf-8", "surrogatepass")
    assert scan(body, cuts)[0] == json.loads(body)["model"]


@pytest.mark.parametrize(
    ("body", "model"),
    [
        (b'\xef\xbb\xbf{"model": "a"}', "a"),
        (b'  {"model":"a","model":"b"}', "a"),
        (b'[{"model": "a"}]', None),
        (b'"model"', None),
        (b"", None),
        (b"{}", None),
        (b"nonsense", None),
        (b'{"messages": [{"model": "x"}]', None),
        (b'{"a": {"model": "x"}, "b": [], "model": "y"}', "y"),
        ('{"model": "llama-ü"}'.encode(), "llama-ü"),
        (b'{"a": "\\\\", "model": "y"}', "y"),
    ],
)
def test_bodies_at_the_edge(body: bytes, model: str | None) -> None:
    """Whole, and byte by byte."""
    assert scan(body, [])[0] == model
    assert scan(body, list(range(len(body))))[0] == model


@pytest.mark.parametrize(
    "body",
    [b'{"model": 5}', b'{"model": null}', b'{"model": ["a"]}', b'{"model": "' + b"x" * 2000, b'{"model": "\xff"}'],
)
def test_a_model_that_is_no_name_is_refused(body: bytes) -> None:
    """As soon as that is known, also if its end never comes."""
    for cuts in ([], list(range(len(body)))):
        with pytest.raises(BadModelError):
            scan(body, cuts)


def test_no_more_of_a_body_is_read_than_needed() -> None:
    """Behind the model nothing is looked at: neither its bytes nor its end."""
    body = b'{"model": "a", "image": "' + b"A" * 100_000
    assert scan(body, list(range(0, 200, 5))) == ("a", 15)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 7))
def test_a_large_picture_before_the_model_is_read_once(step: int) -> None:
    """The time grows with the body, not with its square: 8 MB in 128 pieces of base64, with escapes at any place."""
    picture = b"data:image\\/png;base64," + (b"QUJD" * 4096 + b"\\n" * step) * 16
    body = b'{"messages": [{"content": "' + picture + b'"}], "model": "a"}'
    assert scan(body, [len(body) * part // 128 for part in range(128)])[0] == "a"


def form(boundary: str, *parts: tuple[str, str | None, bytes]) -> bytes:
    """A form of parts: name, file name, content."""
    body = b""
    for name, file, content in parts:
        more = f'; filename="{file}"' if file is not None else ""
        body += (
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + content + b"\r\n"
        )
    return body + f"--{boundary}--\r\n".encode()


def scan_form(boundary: bytes, body: bytes, cuts: list[int]) -> str | None:
    """The name that the scanner finds in a form."""
    scanner = FormModel(boundary, 4)
    for place in (*sorted({cut % (len(body) + 1) for cut in cuts}), len(body)):
        scanner.feed(bytearray(b"HEAD" + body[:place]), ended=place == len(body))
        if scanner.done:
            break
    return scanner.model


@given(
    st.binary(max_size=60), st.text(min_size=1, max_size=20).filter(lambda name: "\r" not in name), CUTS, st.booleans()
)
def test_the_field_of_a_form_is_found(content: bytes, name: str, cuts: list[int], file_first: bool) -> None:
    """Before or behind a file, which may contain anything but the boundary, in any pieces."""
    parts = [("file", "a.wav", content + b"\r\n--other"), ("model", None, name.encode("utf-8", "replace"))]
    body = form("Xy7", *(parts if file_first else reversed(parts)), ("model", None, b"second"))
    assert scan_form(b"Xy7", body, cuts) == name.encode("utf-8", "replace").decode()


def test_forms_at_the_edge() -> None:
    """A file named `model` is no field; an empty name is a name; a form may lack it."""
    assert scan_form(b"b", form("b", ("model", "m.bin", b"x")), []) is None
    assert scan_form(b"b", form("b", ("model", None, b"")), []) == ""
    assert scan_form(b"b", form("b", ("prompt", None, b"x")), []) is None
    assert scan_form(b"b", b"x" * 20_000, []) is None
    assert scan_form(b"b", b"--b\r\ncontent-disposition: form-data; name=model\r\nX: y\r\n\r\na\r\n--b--", []) == "a"
    with pytest.raises(BadModelError):
        scan_form(b"b", form("b", ("model", None, b"x" * 2000)), [])


@pytest.mark.parametrize("boundary", ["simple", "----WebKitFormBoundary7MA4YWxkTrZu0gW", "with space", "a'()+_,-./:=?"])
def test_the_boundary_is_read_as_by_the_standard_library(boundary: str) -> None:
    """Quoted or not."""
    message = EmailMessage()
    message["Content-Type"] = f'multipart/form-data; charset=utf-8; boundary="{boundary}"'
    assert boundary_of(str(message["Content-Type"]).encode()) == boundary.encode()
    assert boundary_of(b"multipart/form-data; boundary=simple") == b"simple"
    assert boundary_of(b"application/json") is None
