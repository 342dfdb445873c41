"""What a sleep drops and who restores it: declared by the plugin's options, shown by the plan, refused where something is lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from typing_extensions import override

from tests.plan.test_sleep import IMAGE, Lines, sglang
from torpor import ConfigurationError, Deployment, Draft, Model
from torpor.engine_plugins import SleepPart
from torpor.lifecycle import Lifecycle
from torpor.plan.collect import plan_of
from torpor.plan.text import write_plan
from torpor.plugin_checks import accepted
from torpor.testing import StandIn
from torpor_sglang import SGLang
from torpor_vllm import VLLM

if TYPE_CHECKING:
    from torpor import EnginePlugin

DRAFT = Draft(repo_id="a/draft", revision="0" * 40)
PINNED_SGLANG = "SGLang restores it from pinned memory of its process"
PINNED_VLLM = "vLLM restores it from pinned memory of its workers"


def deployed(engine: EnginePlugin, draft: Draft | None = None, gpu: str | None = "H100") -> Deployment:
    model = Model(repo_id="a/b", revision="0" * 40, draft=draft)
    return Deployment(name="d", model=model, gpu=gpu, plugins=(engine,))


def restored(engine: EnginePlugin, draft: Draft | None = None, gpu: str | None = "H100") -> dict[str, str]:
    """Who restores what a sleep drops; `empty` for what starts empty."""
    parts = engine.sleep_parts(deployed(engine, draft, gpu))
    return {part.what: part.restored_by or ("LOST" if part.needed else "empty") for part in parts if part.dropped}


@pytest.mark.parametrize(
    ("engine", "draft", "expected"),
    [
        (sglang(), None, {"KV cache": "empty", "weights": PINNED_SGLANG}),
        (sglang(), DRAFT, {"KV cache": "empty", "weights": PINNED_SGLANG, "draft weights": PINNED_SGLANG}),
        (sglang(), Draft(method="ngram"), {"KV cache": "empty", "weights": PINNED_SGLANG}),
        (sglang(sleep_tags=("kv_cache",)), DRAFT, {"KV cache": "empty"}),
        (sglang(memory_saver=False), DRAFT, {}),
        (
            sglang(weights_store="file"),
            None,
            {"KV cache": "empty", "weights": "Torpor restores it from a file outside of the snapshot"},
        ),
        (sglang(weights_backup=False, dummy_weights=True), None, {"KV cache": "empty", "weights": "empty"}),
        (VLLM(), DRAFT, {"weights": PINNED_VLLM, "KV cache": "empty", "draft weights": PINNED_VLLM}),
        (
            VLLM(sleep_level=2),
            DRAFT,
            {
                "weights": "vLLM reads the model's files again",
                "KV cache": "empty",
                "draft weights": "vLLM restores it from host memory",
            },
        ),
        (
            VLLM(
                sleep_level=2, extra_args=("--speculative-config", "{}", "--sleep-preserve-parameter-names", "lm_head*")
            ),
            None,
            {"weights": "vLLM reads the model's files again", "KV cache": "empty", "draft weights": "LOST"},
        ),
        (
            VLLM(offload_graphs=True),
            None,
            {"weights": PINNED_VLLM, "KV cache": "empty", "CUDA graphs": "vLLM restores them from host memory"},
        ),
    ],
)
def test_each_option_says_who_restores_what_it_drops(
    engine: EnginePlugin, draft: Draft | None, expected: dict[str, str]
) -> None:
    """By the plugin's own table."""
    assert restored(engine, draft) == expected


@pytest.mark.parametrize("engine", [SGLang(version="0.5.23", device="cpu"), VLLM(device="cpu")])
def test_on_a_cpu_nothing_is_dropped(engine: EnginePlugin) -> None:
    """The calls are answered, and the memory stays."""
    parts = engine.sleep_parts(deployed(engine, gpu=None))
    assert [(part.what, part.dropped, part.option) for part in parts if part.what == "weights"] == [
        ("weights", False, "device='cpu'")
    ]


def test_without_a_demanding_canary_nothing_checks_the_weights() -> None:
    """The table says so: `canary_mismatch="warn"` serves whatever came back."""
    engine = sglang()
    for mismatch, checks in (("fail", ("checksum", "canary")), ("warn", ())):
        made = Deployment(
            name="d",
            model=Model(path="/m"),
            gpu="H100",
            plugins=(engine,),
            canary_mismatch=mismatch,  # type: ignore[arg-type] # one of two
        )
        (weights,) = (part for part in engine.sleep_parts(made) if part.what == "weights")
        assert weights.checked_by == checks


def test_core_refuses_a_deployment_that_a_sleep_would_rob() -> None:
    """A user's own pattern that leaves the draft out, and any plugin that drops something for good."""
    words = ("--speculative-config", "{}", "--sleep-preserve-parameter-names=lm_head*")
    for engine in (VLLM(sleep_level=2, extra_args=words), Robbing()):
        with pytest.raises(
            ConfigurationError, match=r"a sleep drops the (draft weights|weights) .*nothing restores them"
        ):
            accepted(deployed(engine, gpu="H100" if isinstance(engine, VLLM) else None))


@dataclass(frozen=True, kw_only=True)
class Robbing(StandIn):
    """An engine whose sleep drops the weights for good."""

    plugin_name = "robbing"

    @override
    def sleep_parts(self, deployment: Deployment) -> tuple[SleepPart, ...]:
        return (SleepPart(what="weights", option="level=2", dropped=True),)


def test_the_plan_shows_each_part() -> None:
    """In its text, one line each, and in its JSON."""
    plan = plan_of(Lifecycle(deployed(VLLM(image=IMAGE, sleep_level=2), DRAFT)))
    parts = plan.as_json()["sleep_parts"]
    assert isinstance(parts, list)
    assert [part["what"] for part in parts] == ["weights", "KV cache", "draft weights", "CUDA graphs"]
    told: list[str] = []

    class Page(Lines):
        @override
        def field(self, before: str, text: str, style: str = "") -> None:
            told.extend([text.strip()] if before.strip() == "sleep" else [])

    write_plan(plan, Page())
    assert told == [
        "weights: dropped, vLLM reads the model's files again (sleep_level=2); checked by checksum, canary",
        "KV cache: dropped, starts empty (sleep_level=2)",
        "draft weights: dropped, vLLM restores it from host memory (sleep_level=2, "  # noqa: ISC004 - one line
        "--sleep-preserve-parameter-names draft.*); checked by checksum, canary, acceptance",
        "CUDA graphs: kept (offload_graphs=False)",
    ]


def test_a_part_without_a_name_or_an_option_is_refused() -> None:
    """A line of the table says what and by which option."""
    for what, option in (("", "a=1"), ("weights", " ")):
        with pytest.raises(ConfigurationError, match="name what a sleep drops"):
            SleepPart(what=what, option=option, dropped=True)
