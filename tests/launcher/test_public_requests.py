"""What a public request may carry: rules on the request as the engine has parsed it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from torpor import Adapter, ConfigurationError, Deployment, Model
from torpor.engine_plugins import adapter_env
from torpor.launcher.public_requests import PublicRequestRules
from torpor.testing import StandIn
from torpor_sglang import SGLang
from torpor_sglang.fields import FIELDS as SGLANG_FIELDS
from torpor_vllm import VLLM
from torpor_vllm.fields import FIELDS as VLLM_FIELDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torpor.engine_plugins.chat_server import ChatServer
    from torpor.launcher.public_requests import RequestFields

VOCABULARY = 1000
RULES = PublicRequestRules.from_environment(SGLANG_FIELDS, {})


@dataclass
class Request:
    """A request as far as the rules look at it."""

    given: dict[str, object] = field(default_factory=dict)

    @property
    def model_fields_set(self) -> set[str]:
        """The fields that were given."""
        return set(self.given)

    def __getattr__(self, name: str) -> object:
        if name in self.given:
            return self.given[name]
        raise AttributeError(name)


def told(rules: PublicRequestRules = RULES, /, **given: object) -> str:
    """What the rules say of a request; nothing where it passes."""
    return rules.refusal(Request(given), VOCABULARY) or ""


def media(url: object, kind: str = "image_url") -> list[object]:
    """Messages with one part that is no text."""
    return [{"role": "user", "content": [{"type": "text", "text": "file:///x"}, {"type": kind, kind: url}]}]


@pytest.mark.parametrize("rules", [RULES, PublicRequestRules.from_environment(VLLM_FIELDS, {})], ids=["sglang", "vllm"])
def test_ordinary_requests_pass(rules: PublicRequestRules) -> None:
    """Chats, completions, tools, several answers, tokens of the model."""
    chat = [{"role": "user", "content": "look at http://10.0.0.1/ and file:///etc/passwd"}]
    assert told(rules, messages=chat, n=4, stream=True, chat_template_kwargs={"enable_thinking": False}) == ""
    assert told(rules, prompt=[0, 999], logprobs=5, max_tokens=1) == ""
    assert told(rules, prompt=["one", "two"], n=64) == ""
    assert told(rules, messages=media({"url": "data:image/png;base64,iVBORw0KGgo="})) == ""


@pytest.mark.fault("a request brings a chat template of its own", area="request", outcome="refused")
@pytest.mark.parametrize("name", ["chat_template", "tokenize", "padding", "max_length", "tokenizer_kwargs"])
def test_a_template_of_the_callers_is_refused(name: str) -> None:
    """It is code; and so are the arguments that set the size or the form of what a template makes."""
    assert f"chat_template_kwargs.{name} is refused" in told(messages=[], chat_template_kwargs={name: "{{ 1 }}"})


@pytest.mark.fault("a request names a file or an address for its media", area="request", outcome="refused")
@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data/",
        "https://images.example.org/a.png",
        "file:///etc/passwd",
        "File:///etc/passwd",
        "/etc/passwd",
        "../../secret.png",
        "HTTP://127.0.0.1/a.png",
        "ftp://127.0.0.1/a",
        "data",
        "",
        "iVBORw0KGgo=",
    ],
)
@pytest.mark.parametrize("kind", ["image_url", "video_url", "audio_url"])
@pytest.mark.parametrize("form", [str, lambda url: {"url": url}, lambda url: {"detail": {"url": url}}])
def test_media_outside_the_request_is_refused(url: str, kind: str, form: type[str]) -> None:
    """A path that looks like base64 and base64 that looks like a path are the same to an engine, so neither passes."""
    assert "edia " in told(messages=media(form(url), kind))


@pytest.mark.parametrize(
    ("url", "passes"),
    [
        ("https://images.example.org/a.png", True),
        ("http://images.example.org:8080/a.png", True),
        ("https://IMAGES.example.org/a.png", True),
        ("https://example.org/a.png", False),
        ("https://images.example.org.evil.test/a.png", False),
        ("https://images.example.org@evil.test/a.png", False),
        ("https://evil.test\\@images.example.org/a.png", False),
        ("https://evil.test/#@images.example.org/a.png", False),
        ("https://images.example.org\t.evil.test/", False),
        ("https://[::1/", False),
        ("file://images.example.org/etc/passwd", False),
    ],
)
def test_an_allowed_host_is_that_host_for_every_parser(url: str, passes: bool) -> None:
    """An address that two parsers could read differently is refused."""
    rules = PublicRequestRules.from_environment(
        SGLANG_FIELDS, {"TORPOR_MEDIA_DOMAINS": "images.example.org, cdn.example.org"}
    )
    assert (told(rules, messages=media({"url": url})) == "") is passes


def test_a_wildcard_host_does_not_allow_files() -> None:
    """`*` allows any host, but no file."""
    rules = PublicRequestRules.from_environment(SGLANG_FIELDS, {"TORPOR_MEDIA_DOMAINS": "*"})
    assert told(rules, messages=media({"url": "http://10.0.0.1/a.png"})) == ""
    assert "opens no files" in told(rules, messages=media({"url": "file:///etc/passwd"}))


def test_parts_that_are_objects_or_come_once_are_looked_at_and_left_whole() -> None:
    """SGLang's parts are models; some of vLLM's come from an iterator that gives them once."""
    part = SimpleNamespace(model_dump=lambda: {"type": "image_url", "image_url": {"url": "/etc/passwd"}})
    assert "opens no files" in told(messages=[SimpleNamespace(content=[part])])

    def once() -> Iterator[dict[str, object]]:
        yield {"type": "text", "text": "hello"}

    message: dict[str, object] = {"role": "user", "content": once()}
    assert told(messages=[message]) == ""
    assert message["content"] == [{"type": "text", "text": "hello"}]


@pytest.mark.fault("a request names the cache entry of its media", area="request", outcome="refused")
@pytest.mark.parametrize("url", [{"url": "data:image/png;base64,iVBORw0KGgo="}, None])
def test_a_part_cannot_take_or_replace_what_another_caller_sent(url: object) -> None:
    """The engine vLLM takes a part's `uuid` for the hash of its content: with it alone a caller gets whatever was sent under it."""
    part = {"type": "image_url", "image_url": url, "uuid": "another-callers"}
    for content in ([part], iter([part]), [SimpleNamespace(model_dump=lambda: part)]):
        assert "uuid of a part is refused" in told(messages=[{"role": "user", "content": content}])
    assert told(messages=[{"role": "user", "content": [{"type": "text", "text": "x", "uuid": None}]}]) == ""


@pytest.mark.fault("a request holds a token id outside the vocabulary", area="request", outcome="refused")
@pytest.mark.parametrize("name", ["prompt", "input_ids", "stop_token_ids", "allowed_token_ids", "logprob_token_ids"])
@pytest.mark.parametrize("tokens", [[-1], [5, VOCABULARY], [[1, 2], [3, -7]], [2**70]])
def test_a_token_id_outside_the_vocabulary_is_refused(name: str, tokens: list[object]) -> None:
    """One of them ends the scheduler, and with it the replica."""
    assert f"{name} holds the token id" in told(**{name: tokens})


@pytest.mark.fault("a request asks for thousands of answers", area="request", outcome="refused")
@pytest.mark.parametrize(
    "given",
    [
        {"n": 129},
        {"n": 10**9},
        {"best_of": 500},
        {"prompt": ["x"] * 129},
        {"prompt": [[1]] * 129},
        {"prompt": ["x"] * 65, "n": 2},
    ],
)
def test_answers_are_counted_over_prompts_and_choices(given: dict[str, object]) -> None:
    """In flight at the guard it is one request, whatever it asks for."""
    assert "may ask for 128 answers" in told(**given)


@pytest.mark.fault("a request asks for the probability of every token", area="request", outcome="refused")
@pytest.mark.parametrize("given", [{"top_logprobs": 21}, {"logprobs": 10**6}, {"prompt_logprobs": -1}])
def test_logprobs_are_bounded(given: dict[str, object]) -> None:
    """More than the vocabulary ends a scheduler; all of it is an answer of gigabytes."""
    assert "may be 0 to 20" in told(**given)


@pytest.mark.fault("a request holds a number that no tensor holds", area="request", outcome="refused")
@pytest.mark.parametrize(
    "given",
    [
        {"top_k": 10**12},
        {"max_tokens": 2**31},
        {"seed": 2**63},
        {"temperature": 1e300},
        {"top_p": float("nan")},
    ],
)
def test_a_number_that_does_not_fit_a_tensor_is_refused(given: dict[str, object]) -> None:
    """`top_k` beyond 32 bits ends SGLang's scheduler."""
    assert next(iter(given)) in told(**given)
    assert told(top_k=2**31 - 1, seed=-5, temperature=1.5, stream=True) == ""


@pytest.mark.fault("a request brings a hundred thousand stop words or biases", area="request", outcome="refused")
@pytest.mark.parametrize(
    "given",
    [
        {"stop": ["a"] * 100_000},
        {"stop": "a" * 100_000},
        {"bad_words": ["a"] * 129},
        {"logit_bias": {str(token): 1.0 for token in range(1025)}},
    ],
)
def test_a_list_that_the_engine_walks_at_every_token_is_bounded(given: dict[str, object]) -> None:
    """A long list in one request would delay all requests; ordinary ones pass."""
    assert f"{next(iter(given))} may have" in told(**given)
    assert told(stop=["\n", "User:"], logit_bias={"5": -100.0}, bad_words=["x"]) == told(stop="\n") == ""


@pytest.mark.fault("a request holds a number that no tensor holds", area="request", outcome="refused")
@pytest.mark.parametrize("bias", [1e300, -1e300, float("inf"), float("nan"), 10**40])
def test_a_bias_that_does_not_fit_a_tensor_is_refused(bias: float) -> None:
    """In a tensor of 32 bits it is infinite, and no probabilities can be made of that."""
    assert "logit_bias may hold" in told(logit_bias={"1": 5.0, "5": bias})
    assert told(logit_bias={"1": -100, "5": 1000.0}) == ""


@dataclass
class Format:
    """A part of a request that is a model of pydantic's."""

    json_schema: object


def nested(levels: int) -> dict[str, object]:
    """A schema of so many levels."""
    schema: dict[str, object] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


@pytest.mark.fault("a request brings a grammar that is compiled for minutes", area="request", outcome="refused")
@pytest.mark.parametrize(
    "given",
    [
        {"response_format": Format(nested(400))},
        {"structured_outputs": Format(nested(400))},
        {"json_schema": json.dumps(nested(100))},
        {"json_schema": "{" * 100_000},
        {"json_schema": "[" * 60_000},
        {"tools": [{"function": {"parameters": nested(5000)}}]},
        {"response_format": {"enum": list(range(60_000))}},
        {"structured_outputs": Format("a" * 70_000)},
        {"regex": "a" * 70_000},
        {"ebnf": "a" * 70_000},
    ],
)
def test_a_grammar_is_bounded(given: dict[str, object]) -> None:
    """In letters, levels and parts; ordinary schemas pass."""
    assert next(iter(given)) in told(**given)
    assert told(response_format=Format(nested(20)), regex="[a-z]+", json_schema=json.dumps(nested(5))) == ""


@pytest.mark.fault("a request sets what is the server's", area="request", outcome="refused")
@pytest.mark.parametrize(
    "name", ["rid", "priority", "lora_path", "session_params", "custom_logit_processor", "stop_regex"]
)
def test_a_refused_field_is_named_with_its_reason(name: str) -> None:
    """Unset or off it does no harm; where the operator allows it, it passes; others can be refused as well."""
    assert told(**{name: "x"}).startswith(f"The field {name} is refused: ")
    assert told(**{name: None}) == told(**{name: False}) == ""
    env = {"TORPOR_ALLOWED_FIELDS": name, "TORPOR_REFUSED_FIELDS": "regex", "TORPOR_MAX_CHOICES": "2"}
    rules = PublicRequestRules.from_environment(SGLANG_FIELDS, env)
    assert told(rules, **{name: "x"}) == ""
    assert "The field regex is refused" in told(rules, regex="a+")
    assert "may ask for 2 answers" in told(rules, n=3)


@pytest.mark.fault("a header says what a refused field says", area="request", outcome="refused")
@pytest.mark.parametrize("fields", [SGLANG_FIELDS, VLLM_FIELDS], ids=["sglang", "vllm"])
def test_a_header_with_the_effect_of_a_refused_field_is_refused(fields: RequestFields) -> None:
    """Ranks, priorities and ids; a proxy's own headers pass."""
    rules = PublicRequestRules.from_environment(fields, {})
    request = Request({})
    assert rules.refusal(request, VOCABULARY, {"x-request-id": "a", "x-forwarded-for": "b"}) is None
    for why, names in fields.refused_headers:
        for name in names:
            assert rules.refusal(request, VOCABULARY, {name: "1"}) == f"The header {name} is refused: {why}."
            allowing = PublicRequestRules.from_environment(fields, {"TORPOR_ALLOWED_FIELDS": name})
            assert allowing.refusal(request, VOCABULARY, {name: "1"}) is None


def test_a_name_that_is_not_served_is_told_with_those_that_are() -> None:
    """Only where a model has adapters; a request without a name is the model's."""
    env = adapter_env(
        Deployment(
            name="d",
            model=Model(path="/m", served_name='a "quoted" name', adapters={"sql": Adapter(path="/sql")}),
            plugins=(StandIn(),),
        )
    )
    rules = PublicRequestRules.from_environment(SGLANG_FIELDS, env)
    assert rules.adapters == ("sql",)
    for served in ('a "quoted" name', "sql", "", None):
        assert rules.unknown_name(Request({"model": served})) is None
    assert rules.unknown_name(Request({})) is None
    said = "The model 'law' does not exist; there are: a \"quoted\" name, sql."
    assert rules.unknown_name(Request({"model": "law"})) == said
    assert len(rules.unknown_name(Request({"model": "x" * 10_000})) or "") < 400
    many = PublicRequestRules(refused={}, refused_headers={}, served_names=tuple(map(str, range(80))))
    assert (many.unknown_name(Request({"model": "law"})) or "").endswith(", 49 and 30 more.")
    assert RULES.unknown_name(Request({"model": "law"})) is None


@pytest.mark.parametrize("engine", [SGLang(device="cpu"), VLLM(device="cpu")], ids=["sglang", "vllm"])
def test_the_options_reach_the_launcher_and_the_defaults_need_no_variable(engine: ChatServer) -> None:
    """The launcher's rules are those of the plugin's options."""
    kind = type(engine)
    assert engine.request_env() == {}
    given = kind(
        device="cpu",
        media_domains=("a.example",),
        max_choices=3,
        allowed_fields=("priority",),
        refused_fields=("seed",),
    )
    rules = PublicRequestRules.from_environment(engine.request_fields, given.request_env())
    assert (rules.media_domains, rules.max_choices) == (("a.example",), 3)
    assert "priority" not in rules.refused
    assert "seed" in rules.refused


@pytest.mark.parametrize("kind", [SGLang, VLLM])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"media_domains": ("https://a.example",)}, "media_domains holds 'https://a.example', which is no host"),
        ({"media_domains": ("A.example",)}, "which is no host"),
        ({"media_domains": ("a.example:80",)}, "which is no host"),
        ({"media_domains": ("*.example",)}, "which is no host"),
        ({"media_domains": ("",)}, "which is no host"),
        ({"media_domains": ("*", "a.example")}, "give either"),
        ({"max_choices": 0}, "the lowest allowed value is 1"),
        ({"allowed_fields": ("no_such",)}, "allowed_fields holds 'no_such', which is no field"),
        ({"refused_fields": ("no_such",)}, "refused_fields holds 'no_such', which is no field"),
    ],
)
def test_an_unknown_host_or_field_in_an_option_is_an_error(
    kind: type[ChatServer], options: dict[str, tuple[str, ...]], said: str
) -> None:
    """A misspelt host would allow nothing, and a misspelt field would refuse nothing."""
    with pytest.raises(ConfigurationError) as error:
        kind(device="cpu", **options)  # type: ignore[arg-type] # by name
    assert said in str(error.value)


BOTH = pytest.mark.parametrize(
    "rules", [RULES, PublicRequestRules.from_environment(VLLM_FIELDS, {})], ids=["sglang", "vllm"]
)


@BOTH
def test_ordinary_requests_of_other_tasks_pass(rules: PublicRequestRules) -> None:
    """Vectors, rankings, labels, a response, a message of Anthropic's dialect."""
    assert told(rules, input=["a", "b"], dimensions=64, encoding_format="base64") == ""
    assert told(rules, input=[[1, 2], [3]]) == ""
    assert told(rules, query="a", documents=["b", "c"], top_n=1) == ""
    said = [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "http://10.0.0.1/"}]}]
    assert told(rules, input=said, instructions="be brief", max_output_tokens=8, store=True) == ""
    blocks = [{"type": "text", "text": "hi"}]
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
    assert (
        told(rules, system=blocks, messages=[{"role": "user", "content": [*blocks, picture]}], stop_sequences=["x"])
        == ""
    )


@BOTH
@pytest.mark.fault(
    "a request of another task than chat contains operator-only fields", area="request", outcome="refused"
)
def test_dangerous_requests_of_other_tasks_are_refused(rules: PublicRequestRules) -> None:
    """Token ids, numbers of texts, media in every place that can hold it, and what would be kept."""
    assert "input holds the token id" in told(rules, input=[[1, VOCABULARY]])
    assert "tokens holds the token id -1" in told(rules, tokens=[-1])
    assert "input may hold 2048 texts, not 2049" in told(rules, input=["a"] * 2049)
    assert "documents may hold 2048 texts" in told(rules, query="a", documents=["a"] * 2049)
    assert "opens no files" in told(rules, input=[{"text": "a", "image": "/etc/passwd"}])
    part = {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}
    assert "opens no files" in told(rules, query="a", documents=[{"content": [part]}])
    assert "opens no files" in told(rules, messages=[[{"role": "user", "content": [part]}]])
    picture = {"type": "input_image", "image_url": "http://169.254.169.254/a.png"}
    for item in ({"role": "user", "content": [picture]}, {"type": "function_call_output", "output": [picture]}):
        assert "Media is not fetched from 169.254.169.254" in told(rules, input=[item])
    source = {"type": "image", "source": {"type": "url", "url": "http://169.254.169.254/a.png"}}
    result = {"type": "tool_result", "content": [source]}
    for block in (source, result):
        assert "Media is not fetched from" in told(rules, messages=[{"role": "user", "content": [block]}])
    assert "background is refused" in told(rules, input="a", background=True)
    assert "previous_response_id is refused" in told(rules, input="a", previous_response_id="resp_1")
    deep: object = "x"
    for _ in range(100):
        deep = {"properties": deep}
    assert "text may have 64 levels" in told(rules, input="a", text={"format": {"schema": deep}})


def test_the_option_sets_the_number_of_texts() -> None:
    """By its variable."""
    few = PublicRequestRules.from_environment(VLLM_FIELDS, {"TORPOR_MAX_INPUTS": "2"})
    assert "may hold 2 texts, not 3" in told(few, input=["a", "b", "c"])
    assert told(few, input=["a", "b"]) == told(few, input=[1, 2, 3]) == ""


def test_the_tokenizer_takes_a_bounded_text() -> None:
    """It works on the server's event loop, letters and ids alike."""
    most = 1 << 20
    assert RULES.tokenizing_refusal(Request({"prompt": "x" * most})) is None
    assert RULES.tokenizing_refusal(Request({"tokens": [1] * most})) is None
    for given in ({"prompt": "x" * (most + 1)}, {"prompt": ["x" * most, "x"]}, {"tokens": [1] * (most + 1)}):
        assert "letters or token ids" in (RULES.tokenizing_refusal(Request(dict(given))) or "")
