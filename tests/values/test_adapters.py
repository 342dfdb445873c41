"""`Model.adapters`: names and sources are checked when the value is made; the value is immutable."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest

from torpor import Adapter, ConfigurationError, Deployment, Model
from torpor.testing import StandIn

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SQL, LAW = Adapter(path="/adapters/sql"), Adapter(repo_id="owner/law", revision=COMMIT)


def test_a_model_with_adapters_is_a_value() -> None:
    """It can be hashed, compared, pickled and copied, and it does not change with the mapping that it was made of."""
    given = {"sql": SQL, "law": LAW}
    model = Model(path="/m", adapters=given)
    same = Model(path="/m", adapters={"sql": SQL, "law": LAW})
    given["more"] = SQL
    turned = Model(path="/m", adapters={"law": LAW, "sql": SQL})
    assert (model, hash(model)) == (same, hash(same)) == (turned, hash(turned))
    assert model != Model(path="/m", adapters={"sql": SQL})
    assert pickle.loads(pickle.dumps(model)) == copy.deepcopy(model) == model
    assert model.served_names == ("m", "sql", "law")
    assert model.adapters["law"].source == "owner/law"
    assert Model(path="/m").served_names == ("m",)
    assert "'sql': Adapter(" in repr(model)


@pytest.mark.parametrize(
    ("adapters", "told"),
    [
        ({"m": SQL}, r"adapter 'm', which is the model's own served name.*Give the adapter another name"),
        ({"a b": SQL}, r"has the name 'a b'; a name is made of letters, digits"),
        ({"": SQL}, r"has the name ''"),
        ({"a/b": SQL}, r"has the name 'a/b'"),
        ({"a=b": SQL}, r"has the name 'a=b'"),
        ({"-a": SQL}, r"has the name '-a'"),
        ({"sql:2": SQL}, r"has the name 'sql:2'"),
        ({"ä": SQL}, r"has the name 'ä'"),
        ({"a" * 129: SQL}, r"128 at most"),
        ({1: SQL}, r"has the name 1"),
        ({"sql": "/adapters/sql"}, r"Model\.adapters\['sql'\] is '/adapters/sql', a str; write Adapter\(path="),
        ({"sql": SQL, "again": SQL}, r"'sql' and 'again' are both '/adapters/sql'"),
        ([SQL], r"it has to be a mapping of names to adapters"),
        ({f"a{number}": Adapter(path=f"/{number}") for number in range(501)}, r"holds 501 adapters; 500 at most"),
    ],
)
def test_a_bad_mapping_is_refused(adapters: object, told: str) -> None:
    """One sentence names the adapter and what is allowed."""
    with pytest.raises(ConfigurationError, match=told):
        Model(path="/m", adapters=adapters)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "Adapter: give either repo_id"),
        ({"path": "/a", "repo_id": "o/n", "revision": COMMIT}, "Adapter: give either repo_id"),
        ({"repo_id": "o/n"}, r"Adapter\.revision is None; it has to be a commit of o/n"),
        ({"repo_id": "o/n", "revision": "main"}, r"Adapter\.revision is 'main'"),
        ({"repo_id": "n", "revision": COMMIT}, r"Adapter\.repo_id is 'n'; it has to be 'owner/name'"),
        ({"path": " "}, r"Adapter\.path is ' '; give a folder with an adapter in it"),
        ({"path": "-a"}, r"Adapter\.path is '-a'.*Write '\./-a'"),
        ({"path": "/a\nb"}, r"Adapter\.path is .* one line"),
        ({"path": "/\ud800"}, r"Adapter\.path is .* which no folder can be called"),
        ({"path": "/" + "a" * 256}, r"Adapter\.path is .* each name in it of 255\. Give a shorter one"),
        ({"path": "/a" * 2048}, r"Adapter\.path is .* paths of 4095 bytes"),
        ({"path": "/a", "revision": COMMIT}, r"Adapter\.revision goes with repo_id"),
        ({"path": "/a", "base": ""}, r"Adapter\.base is ''"),
        ({"path": Path("/a")}, r"Write str\(\.\.\.\)"),
    ],
)
def test_a_bad_source_is_refused(fields: dict[str, object], told: str) -> None:
    """By the rules of a model's source, with the adapter's own name."""
    with pytest.raises(ConfigurationError, match=told):
        Adapter(**fields)  # type: ignore[arg-type]


def test_a_path_of_any_bytes_passes() -> None:
    """Linux takes all but NUL; Python writes those that are no UTF-8 as lone surrogates."""
    for path in ("/models/\udcff", "/" + "a" * 255, "/" + "é" * 127):
        assert Adapter(path=path).source == path


def test_an_engine_without_adapters_is_refused() -> None:
    """When the deployment is made."""

    class Plain(StandIn):
        plugin_name = "plain"
        serves_adapters = False

    with pytest.raises(ConfigurationError, match=r"Model\.adapters names sql, and the engine plain loads no adapters"):
        Deployment(name="d", model=Model(path="/m", adapters={"sql": SQL}), plugins=(Plain(),))


def test_files_are_found_in_the_folder_or_in_the_hubs_cache() -> None:
    """An adapter on the hub has no folder where nothing keeps the hub's files."""
    assert SQL.folder({}) == Path("/adapters/sql")
    assert LAW.folder({}) is None
    assert LAW.folder({"HF_HUB_CACHE": "/vol/c/hub"}) == Path(f"/vol/c/hub/models--owner--law/snapshots/{COMMIT}")
