"""Every field of every value, and every option of every bundled plugin: a wrong type is refused by the field's name."""

from __future__ import annotations

import math
from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

from torpor import (
    BuildPlan,
    BuildStep,
    Cache,
    ConfigurationError,
    Deployment,
    Finding,
    ImagePatch,
    ModalOptions,
    Model,
    Preflight,
    Scaling,
)
from torpor.guard import GuardRules
from torpor.testing import StandIn
from torpor.values.field_types import check_types, shown
from torpor_deepgemm import DeepGEMM
from torpor_fast_load import FastLoad
from torpor_hf_cache import HFCache
from torpor_sglang import SGLang
from torpor_vllm import VLLM

if TYPE_CHECKING:
    from collections.abc import Mapping

HUGE = 10**5000
"""Python refuses to write out an int of so many digits."""

GOOD: dict[type, Mapping[str, object]] = {
    Model: {"path": "/models/tiny"},
    Scaling: {},
    Deployment: {"name": "tiny", "model": Model(path="/models/tiny"), "plugins": (StandIn(),)},
    ImagePatch: {},
    Cache: {"volume_dir": "/vol/k", "image_dir": "/opt/k", "key": ("v1",)},
    BuildStep: {"name": "fetch", "argv": ("true",), "order": 1, "timeout_s": 5},
    Preflight: {"name": "weights", "argv": ("true",), "timeout_s": 5, "cure": "Fetch them."},
    BuildPlan: {},
    Finding: {"level": "warning", "what": "GPU", "seen": "none"},
    GuardRules: {"public": ("/v1/models",)},
    ModalOptions: {},
    StandIn: {},
    SGLang: {},
    VLLM: {},
    DeepGEMM: {},
    HFCache: {},
    FastLoad: {},
}
"""Every class of values that users write, with what makes a good one."""

NUMBERS: tuple[object, ...] = ("8", True, math.nan, math.inf, -math.inf, HUGE, -HUGE, 1e300, [1], {}, object())
WRONG: dict[str, tuple[object, ...]] = {
    "int": (*NUMBERS, 1.5),
    "float": NUMBERS,
    "bool": (0, 1, "yes", "False", [], object()),
    "str": (1, True, b"text", ["text"], Path("/x"), {}, object()),
    "tuple[str, ...]": ("text", 1, {"a"}, {"a": "b"}, (1,), ("a", None), [b"a"], object()),
    "tuple[int, ...]": ("8", 8, ("8",), (True,), (1.5,), (HUGE,), [None], object()),
    "tuple[tuple[str, ...], ...]": ("text", ("text",), ((1,),), object()),
    "Mapping[str, str]": ("A=1", [("A", "1")], {"A": 1}, {1: "A"}, {"A": None}, object()),
}
"""By annotation, what a field of it may not hold."""


def wrong_values(field: Field[object]) -> tuple[object, ...]:
    """Values of a wrong type for a field. For a type that is no plain one, anything of another type."""
    kind = str(field.type)
    optional = kind.endswith(" | None")
    found = WRONG.get(kind.removesuffix(" | None"), (object(), 1.5, b"text"))
    return found if optional or field.default is None else (*found, None)


CASES = [(kind, field.name) for kind in GOOD for field in fields(kind) if field.init]


@pytest.mark.fault(
    "a field of the deployment or an option of a plugin has the wrong type", area="values", outcome="refused"
)
@pytest.mark.parametrize(("kind", "name"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_a_value_of_a_wrong_type_is_refused_by_the_fields_name(kind: type, name: str) -> None:
    """One paragraph names class and field; never a TypeError, an AttributeError or an OverflowError."""
    field = next(field for field in fields(kind) if field.name == name)
    for wrong in wrong_values(field):
        with pytest.raises(ConfigurationError) as caught:
            kind(**{**GOOD[kind], name: wrong})
        told = str(caught.value)
        assert f"{kind.__name__}.{name}" in told or told.startswith((f"{kind.__name__} ", f"{kind.__name__}: "))
        assert name in told
        assert "\n" not in told
        assert len(told) < 900
        assert caught.value.exit_code == 2


@pytest.mark.parametrize("kind", GOOD, ids=lambda kind: kind.__name__)
def test_values_of_the_right_type_pass(kind: type) -> None:
    """Otherwise the test above would prove nothing."""
    made = kind(**GOOD[kind])
    given = {field.name: getattr(made, field.name) for field in fields(kind) if field.init}
    assert kind(**given) == made


@pytest.mark.parametrize(
    ("kind", "name", "values"),
    [
        (ImagePatch, "pip", ["a==1", "b==2"]),
        (BuildStep, "argv", ["true", "x"]),
        (BuildStep, "outputs", ["/opt/x"]),
        (BuildPlan, "steps", [BuildStep(name="x", argv=("true",), order=1, timeout_s=1)]),
        (GuardRules, "keyed", ["/metrics"]),
        (SGLang, "extra_args", ["--schedule-policy", "lpm"]),
        (SGLang, "warmup_prompt_words", [8, 16]),
        (VLLM, "media_domains", ["images.example.org"]),
        (HFCache, "ignore_patterns", ["*.onnx"]),
        (FastLoad, "prefer", ["fastsafetensors"]),
        (Deployment, "plugins", [StandIn()]),
    ],
)
def test_a_list_is_accepted_for_a_tuple(kind: type, name: str, values: list[object]) -> None:
    """It becomes a tuple, so the value stays hashable and nobody can change it."""
    made = kind(**{**GOOD[kind], name: values})
    assert getattr(made, name) == tuple(values)
    assert made == kind(**{**GOOD[kind], name: tuple(values)})


@pytest.mark.parametrize(
    ("kind", "values", "says"),
    [
        (Deployment, {"port": "8000"}, "Deployment.port is '8000', a str; it has to be a whole number."),
        (Deployment, {"port": True}, "Deployment.port is True, a bool; it has to be a whole number."),
        (
            Deployment,
            {"startup_timeout_s": math.inf},
            "Deployment.startup_timeout_s is inf seconds; it has to be a finite",
        ),
        (Deployment, {"startup_timeout_s": 1e12}, "above 0, and at most 2592000 (30 days)"),
        (Deployment, {"plugins": StandIn()}, "a StandIn; it has to be a tuple."),
        (Model, {"path": Path("/m")}, "a PosixPath; it has to be text or None. Write str(...) around it."),
        (Model, {"path": " "}, "Model.path is ' '; give a folder"),
        (
            Scaling,
            {"max_concurrency": 10**9},
            "max_concurrency is 1000000000 requests; the highest allowed value is 1000000",
        ),
        (SGLang, {"warmup_prompt_words": (0,)}, "SGLang.warmup_prompt_words is (0,); a prompt has 1 to 1000000 words."),
        (SGLang, {"extra_args": "--x 1"}, "SGLang.extra_args is the string '--x 1'; write a tuple: ('--x 1',)."),
        (SGLang, {"python": "-c"}, "text of one line that does not begin with '-'"),
        (SGLang, {"image": ""}, "SGLang.image is ''; it has to be text of one line"),
        (SGLang, {"max_total_tokens": 0}, "SGLang.max_total_tokens is 0; the lowest allowed value is 1"),
        (VLLM, {"compile_timeout_s": 0}, "VLLM.compile_timeout_s is 0 seconds; it has to be above 0"),
        (VLLM, {"sleep_level": True}, "VLLM.sleep_level is True, a bool; it has to be one of 1, 2."),
        (DeepGEMM, {"retries": -1}, "DeepGEMM.retries is -1; allowed are 0 to 1000 further attempts."),
        (DeepGEMM, {"volume": "a b"}, "DeepGEMM.volume is 'a b'; it has to be a volume's name"),
        (HFCache, {"token_secret": ""}, "HFCache.token_secret has to be the name of a secret"),
        (ImagePatch, {"env": {"A": 1}}, "ImagePatch.env: 'A' holds an int; it has to be a mapping of text to text"),
        (ImagePatch, {"pip": ("a", 1)}, "ImagePatch.pip holds 1, an int; it has to be text."),
        (BuildStep, {"retries": 10**9}, "retries is 1000000000; allowed are 0 to 1000 further attempts"),
        (Preflight, {"timeout_s": 0}, "Preflight 'weights': timeout_s is 0 seconds; it has to be above 0"),
        (Preflight, {"argv": ()}, "Preflight 'weights' has neither argv nor script"),
        (Finding, {"level": "fatal"}, "Finding.level is 'fatal'; allowed: 'ok', 'warning', 'error'."),
        (GuardRules, {"max_in_flight": 0}, "GuardRules.max_in_flight has to be a whole number from 1 on, at most"),
    ],
)
def test_the_message_says_what_is_there_and_what_is_allowed(kind: type, values: dict[str, object], says: str) -> None:
    """Word for word."""
    with pytest.raises(ConfigurationError) as caught:
        kind(**{**GOOD[kind], **values})
    assert says in str(caught.value)


@pytest.mark.fault("a key stands where its SHA-256 belongs", area="values", outcome="refused")
@pytest.mark.parametrize("engine", [SGLang, VLLM])
@pytest.mark.parametrize(
    "keys",
    [
        ("sk-verysecret",),
        "sk-verysecret",
        ("0" * 64, "sk-verysecret"),
        ("A" * 64,),
        ("0" * 63,),
        (b"sk-verysecret",),
        ("",),
    ],
    ids=lambda keys: type(keys).__name__ + str(len(keys)),
)
def test_a_key_in_place_of_its_digest_is_refused_and_never_shown(engine: type, keys: object) -> None:
    """When the value is made. The message names the command that makes both."""
    with pytest.raises(ConfigurationError, match=rf"{engine.__name__}\.api_key_sha256 .*`torpor key new`") as caught:
        engine(api_key_sha256=keys)
    assert "verysecret" not in str(caught.value)
    with pytest.raises(ConfigurationError, match=r"GuardRules\.bearer_sha256") as caught:
        GuardRules(public=("/v1/models",), bearer_sha256=keys)  # type: ignore[arg-type]  # the mistake
    assert "verysecret" not in str(caught.value)


@pytest.mark.fault("a token stands where the name of a secret belongs", area="values", outcome="refused")
def test_a_token_in_place_of_a_secrets_name_is_not_shown() -> None:
    """Nor in any other option."""
    token = "hf_" + "a" * 34
    for make in (
        lambda: HFCache(token_secret=token),
        lambda: HFCache(volume=token + "/"),
        lambda: SGLang(version=token),
    ):
        with pytest.raises(ConfigurationError) as caught:
            make()
        assert token not in str(caught.value)


def test_a_value_that_cannot_be_shown_is_described() -> None:
    """A foreign __repr__ may raise; a text may be long, or hold line breaks and control characters."""

    class Odd:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    assert shown(Odd()) == "an Odd that cannot be shown"
    assert shown(HUGE) == "an int that cannot be shown"
    assert shown("x" * 5000) == "'" + "x" * 99 + "..."
    assert shown("a\nb\x1b[31m") == r"'a\nb\x1b[31m'"
    assert shown(type("N", (), {"__repr__": lambda _: "a\nb\x9b"})()) == r"a\nb\x9b"


@dataclass(frozen=True, kw_only=True)
class Options:
    """A value of a third party."""

    count: int = 1
    share: float | None = None
    mode: Literal["a", "b"] = "a"
    words: tuple[int, ...] = ()
    other: Unknown = None  # type: ignore[name-defined]  # noqa: F821 - a name that only type checkers know
    anything: object = None

    def __post_init__(self) -> None:
        check_types(self)


def test_a_third_partys_plugin_can_check_its_options() -> None:
    """One call in `__post_init__`. Annotations of other kinds are not checked."""
    assert Options(words=[1, 2], other=object(), anything=1j).words == (1, 2)  # type: ignore[arg-type]
    for wrong in ({"count": 1.0}, {"share": "1"}, {"mode": 1}, {"words": ("a",)}):
        with pytest.raises(ConfigurationError, match=rf"Options\.{next(iter(wrong))} (is|holds) "):
            Options(**wrong)
