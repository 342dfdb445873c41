"""`Draft`: what guesses ahead of a model, and what is refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from torpor import ConfigurationError, Deployment, Draft, EnginePlugin, Lifecycle, Model
from torpor.plan.collect import plan_of
from torpor.snapshots.before_capture.lasting_folders import kept_folders
from torpor.snapshots.before_capture.outside_files import model_files
from torpor.snapshots.facts import deployment_facts
from torpor.testing import StandIn
from torpor_hf_cache import HFCache
from torpor_sglang import SGLang
from torpor_vllm import VLLM

if TYPE_CHECKING:
    from pathlib import Path

    from torpor import Plugin, Task

COMMIT = "0" * 40
HUB = Draft(repo_id="a/draft", revision=COMMIT, tokens=3)


def deployed(
    draft: Draft | None, engine: EnginePlugin, *plugins: Plugin, task: Task = "chat", gpu: str | None = "H100"
) -> Deployment:
    model = Model(repo_id="a/b", revision=COMMIT, draft=draft)
    return Deployment(name="d", model=model, gpu=gpu, task=task, plugins=(*plugins, engine))


def argv_of(deployment: Deployment) -> tuple[str, ...]:
    return deployment.engine.engine_argv(deployment, Lifecycle(deployment).recipe())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "dreams"}, r"Draft\.method is 'dreams'; there are 'model', 'eagle', 'eagle3', 'ngram'"),
        ({}, r"Draft: give either repo_id .* or path"),
        ({"path": "/m", "tokens": 0}, r"Draft\.tokens is 0; a draft guesses 1 to 64"),
        ({"repo_id": "a/b"}, r"Draft\.revision is None; it has to be a commit of a/b"),
        ({"method": "ngram", "path": "/m"}, r"Draft\.path is '/m', and the method 'ngram' has no weights"),
        ({"path": 3}, r"Draft\.path is 3"),
    ],
)
def test_a_wrong_draft_is_refused_when_it_is_made(fields: dict[str, object], message: str) -> None:
    """With what is allowed."""
    with pytest.raises(ConfigurationError, match=message):
        Draft(**fields)  # type: ignore[arg-type] # that is the test


def test_something_else_in_place_of_a_draft_is_refused() -> None:
    """With its type."""
    with pytest.raises(ConfigurationError, match=r"Model\.draft is 'a/b'.* Draft"):
        Model(path="/m", draft="a/b")  # type: ignore[arg-type] # that is the test


def test_a_draft_that_the_engine_or_the_task_cannot_use_is_refused_when_the_deployment_is_made() -> None:
    """SGLang has none on a CPU; vectors have no tokens to guess."""
    cpu = SGLang(version="0.5.23", device="cpu")
    with pytest.raises(ConfigurationError, match=r"method 'model'\. sglang 0\.5\.23 with .* has none\. Leave"):
        deployed(HUB, cpu, gpu=None)
    with pytest.raises(ConfigurationError, match="the task 'embed' generates none"):
        deployed(HUB, StandIn(), task="embed")


def test_a_draft_on_the_hub_is_fetched_and_checked_like_the_weights() -> None:
    """One step and one check for each; `allow_patterns` are the model's."""
    recipe = Lifecycle(deployed(HUB, StandIn(), HFCache(allow_patterns=("*.safetensors",)))).recipe()
    assert [step.name for step in recipe.steps] == ["fetch weights", "fetch draft"]
    assert [check.name for check in recipe.preflight] == ["weights", "draft"]
    of_model, of_draft = (step.argv for step in recipe.steps)
    assert of_draft[:3] == ("fetch", "a/draft", COMMIT)
    assert ("--allow=*.safetensors" in of_model, "--allow=*.safetensors" in of_draft) == (True, False)


@pytest.mark.parametrize(
    ("draft", "config"),
    [
        (HUB, {"method": "draft_model", "model": "a/draft", "revision": COMMIT, "num_speculative_tokens": 3}),
        (Draft(method="eagle3", path="/e"), {"method": "eagle3", "model": "/e", "num_speculative_tokens": 4}),
        (Draft(method="ngram", tokens=2), {"method": "ngram", "num_speculative_tokens": 2}),
    ],
)
def test_vllm_takes_a_draft_as_json_and_keeps_its_weights_at_level_2(draft: Draft, config: dict[str, object]) -> None:
    """`reload_weights` reads the target's alone. The compiled graphs are those with a draft, too."""
    argv = argv_of(deployed(draft, VLLM(sleep_level=2)))
    assert json.loads(argv[argv.index("--speculative-config") + 1]) == config
    assert argv[-2:] == ("--sleep-preserve-parameter-names", "draft.*")
    compiled = VLLM().kernel_compile_argv(deployed(draft, VLLM()))
    assert compiled is not None
    assert "--speculative-config" in compiled


@pytest.mark.parametrize(
    ("draft", "words"),
    [
        (
            HUB,
            "--speculative-algorithm STANDALONE --speculative-draft-model-path a/draft "  # noqa: ISC004 - one command line
            f"--speculative-draft-model-revision {COMMIT} --speculative-num-steps 3 --speculative-eagle-topk 1 "
            "--speculative-num-draft-tokens 4",
        ),
        (
            Draft(method="eagle", path="/e", tokens=2),
            "--speculative-algorithm EAGLE --speculative-draft-model-path /e "  # noqa: ISC004 - one command line
            "--speculative-num-steps 2 --speculative-eagle-topk 1 --speculative-num-draft-tokens 3",
        ),
        (Draft(method="ngram", tokens=5), "--speculative-algorithm NGRAM --speculative-num-draft-tokens 6"),
    ],
)
def test_sglang_takes_a_draft_as_a_chain_of_guesses(draft: Draft, words: str) -> None:
    """Steps, one guess at each place, and the token that the model checks last."""
    assert " ".join(argv_of(deployed(draft, SGLang()))).endswith(words)


def test_a_draft_beside_flags_for_one_is_an_error_before_the_start() -> None:
    """In `extra_args`, for `plan` and `doctor`; whoever gives the flags, before the launch."""
    made = deployed(HUB, VLLM(extra_args=("--speculative-config", "{}")))
    findings = [one for one in made.engine.check(made) if one.what == "draft"]
    assert [one.level for one in findings] == ["error"]
    assert "VLLM.extra_args has --speculative-config, and Model.draft is set as well" in findings[0].seen
    with pytest.raises(ConfigurationError, match=r"extra_args has --speculative-config"):
        argv_of(made)


def test_a_draft_without_metrics_is_told_because_its_loss_would_not_be_seen() -> None:
    """VLLM's canary takes the acceptance from them; SGLang's from its answer."""
    for engine, told in ((VLLM(metrics=False), ["warning"]), (SGLang(metrics=False), []), (VLLM(), [])):
        made = deployed(HUB, engine)
        assert [one.level for one in made.engine.check(made) if one.what == "draft"] == told


def test_a_drafts_files_are_part_of_a_snapshots_fingerprint(tmp_path: Path) -> None:
    """Beside the model's: with others the snapshot does not fit. Its folder has to last as well."""
    folders = {name: tmp_path / name for name in ("model", "draft")}
    for folder in folders.values():
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"weights")
    model = Model(path=str(folders["model"]), draft=Draft(path=str(folders["draft"])))
    made = Deployment(name="d", model=model, plugins=(StandIn(),))
    recipe = Lifecycle(made).recipe()
    assert list(model_files(made, recipe)) == [folder / "model.safetensors" for folder in folders.values()]
    assert folders["draft"] in kept_folders(made, recipe)
    without = Deployment(name="d", model=Model(path=str(folders["model"])), plugins=(StandIn(),))
    facts = [deployment_facts(one, recipe).argv for one in (made, without)]
    assert "--draft-tokens" in facts[0]
    assert facts[0] != facts[1]


def test_the_plan_has_the_draft_and_a_reason_for_each_of_its_flags() -> None:
    """In its JSON, too."""
    for engine in (VLLM(sleep_level=2), SGLang()):
        plan = plan_of(Lifecycle(deployed(HUB, engine)))
        assert plan.as_json()["model"]["draft"]["repo_id"] == "a/draft"  # type: ignore[index] # a mapping
        flags = {name: flag.reason for name, flag in plan.engine.flags.items() if name.startswith("--spec")}
        assert flags
        assert all("draft" in reason.lower() or "guess" in reason or "commit" in reason for reason in flags.values())
