"""What the plugin sets and refuses for a snapshot of several GPUs, and what the engine's process reads back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from tests import ROOT
from torpor import ConfigurationError, Deployment, Model
from torpor.engine_plugins import NCCL_SETTINGS, NCCL_SNAPSHOT_ENV
from torpor.lifecycle import Lifecycle
from torpor_sglang import SGLang
from torpor_sglang.several_gpus import (
    SETTINGS,
    SUSPEND_VARIABLE,
    WORDS,
    check_several_gpus,
    refused_word,
    seconds_for_ranks,
    wrong_settings,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.plugins.local_engines import Questions

VERSIONS = ("0.5.16", "0.5.18", "0.5.23")
RIGHT = {setting.attribute: setting.allowed[0] for setting in SETTINGS}


def two_gpus(*, gpu: str = "H100!:2", gpu_snapshot: bool | None = None, **options: Any) -> Deployment:
    given: dict[str, Any] = {"version": "0.5.23", "image": "registry/sglang:v0.5.23", "tensor_parallel": 2} | options
    return Deployment(
        name="d", model=Model(path="/model"), gpu=gpu, gpu_snapshot=gpu_snapshot, plugins=(SGLang(**given),)
    )


def argv_of(deployment: Deployment) -> tuple[str, ...]:
    return deployment.engine.engine_argv(deployment, Lifecycle(deployment).recipe())


def test_an_engine_on_several_gpus_gets_all_settings() -> None:
    """NCCL's variables, the seconds that ranks wait for each other, and the flags that switch faster all-reduces off."""
    made = two_gpus()
    env = Lifecycle(made).recipe().env
    assert {name: env.get(name) for name in NCCL_SNAPSHOT_ENV} == NCCL_SNAPSHOT_ENV
    assert 0 < seconds_for_ranks(env) < made.sleep_timeout_s
    assert [argv_of(made).count(word) for word in WORDS] == [1, 1]
    given = two_gpus(extra_args=WORDS)
    assert [argv_of(given).count(word) for word in WORDS] == [1, 1]


@pytest.mark.parametrize(
    "made",
    [
        two_gpus(gpu="H100!", tensor_parallel=1),
        two_gpus(gpu_snapshot=False),
    ],
    ids=["one-gpu", "no-gpu-snapshot"],
)
def test_other_engines_keep_their_faster_all_reduce(made: Deployment) -> None:
    """With one GPU, or without a snapshot, nothing is switched off."""
    env = Lifecycle(made).recipe().env
    assert not set(env) & {*NCCL_SNAPSHOT_ENV, SUSPEND_VARIABLE}
    assert not set(argv_of(made)) & set(WORDS)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--enable-symm-mem",), "--enable-symm-mem"),
        (("--enable-torch-symm-mem",), "--enable-torch-symm-mem"),
        (("--enable-mscclpp",), "--enable-mscclpp"),
        (("--enable-nccl-nvls",), "--enable-nccl-nvls"),
        (("--flashinfer-allreduce-fusion-backend", "trtllm"), "--flashinfer-allreduce-fusion-backend"),
        (("--flashinfer-allreduce-fusion-backend=auto",), "--flashinfer-allreduce-fusion-backend"),
        (("--mm-feature-transport", "cuda_ipc"), "--mm-feature-transport"),
        (("--moe-a2a-backend", "deepep"), "--moe-a2a-backend"),
        (("--enable-mscc",), "--enable-mscc"),
    ],
)
def test_a_flag_that_shares_memory_is_refused_by_name(words: tuple[str, ...], named: str) -> None:
    """Before the start, by plan and doctor; also by an abbreviation. Without a snapshot it is allowed."""
    made = two_gpus(extra_args=words)
    (found,) = [one for one in made.engine.check(made) if one.what == "several GPUs"]
    assert (found.level, found.seen.startswith(f"{named} is refused")) == ("error", True)
    assert found.cure == "leave it out, or set Deployment.gpu_snapshot=False"
    with pytest.raises(ConfigurationError, match=f"SGLang on several GPUs: {named} is refused .* Leave it out"):
        argv_of(made)
    allowed = two_gpus(extra_args=words, gpu_snapshot=False)
    assert [one for one in allowed.engine.check(allowed) if one.what == "several GPUs"] == []
    assert words[0] in argv_of(allowed)


@pytest.mark.parametrize(
    "words",
    [
        ("--mm-feature-transport", "cpu"),
        ("--moe-a2a-backend=none",),
        ("--pp-size", "1"),
        ("--pipeline-parallel-size=1",),
        WORDS,
        ("--enable-metrics-for-all-schedulers", "--mem-fraction-static", "0.5"),
    ],
)
def test_other_flags_are_not_refused(words: tuple[str, ...]) -> None:
    """A flag that asks for what is set anyway, and flags of other things."""
    assert refused_word(words) == ""


def test_pipelines_are_refused() -> None:
    """Torch keeps their communicators to itself."""
    assert refused_word(("--pp-size", "2")).startswith("--pp-size is refused")
    assert refused_word(("--pipeline-parallel-size=2",)).startswith("--pipeline-parallel-size is refused")


def test_the_oldest_version_is_refused_with_a_newer_one() -> None:
    """Its torch is too old, and it has not all of the flags."""
    made = two_gpus(version="0.5.6.post2")
    found = [one for one in made.engine.check(made) if one.what == "several GPUs"]
    assert ["version 0.5.6.post2 cannot be snapshotted" in one.seen for one in found] == [True]
    assert found[0].cure.startswith("use version 0.5.23")
    with pytest.raises(ConfigurationError, match=r"Use version 0\.5\.23"):
        argv_of(made)


def test_every_setting_of_nccl_has_a_reason_and_a_source() -> None:
    """Those that are seen needed are marked, and the page on GPUs lists all of them, with the flags."""
    page = (ROOT / "docs" / "gpu-snapshots.md").read_text(encoding="utf-8")
    assert [one.variable for one in NCCL_SETTINGS if f"`{one.variable}={one.value}`" not in page] == []
    assert [word for word in WORDS if f"`{word}`" not in page] == []
    assert all(len(one.reason) > 30 and one.source and one.value for one in NCCL_SETTINGS)
    assert "NCCL_CUMEM_ENABLE" in {one.variable for one in NCCL_SETTINGS if one.needed}
    assert len(NCCL_SNAPSHOT_ENV) == len(NCCL_SETTINGS)


def set_right(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**NCCL_SNAPSHOT_ENV, SUSPEND_VARIABLE: "90"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda one: one.attribute)
@pytest.mark.fault(
    "the engine resolves a setting of several GPUs otherwise than it was told", area="several GPUs", outcome="refused"
)
def test_what_the_engine_resolved_otherwise_is_named(setting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each setting by itself: at the start, and before a sleep."""
    set_right(monkeypatch)
    assert list(wrong_settings(SimpleNamespace(**RIGHT))) == []
    check_several_gpus(SimpleNamespace(**RIGHT))
    wrong = SimpleNamespace(**RIGHT | {setting.attribute: "another"})
    (said,) = wrong_settings(wrong)
    assert said == f"SGLang has {setting.attribute}='another': {setting.reason}"
    with pytest.raises(ConfigurationError, match=f"{setting.attribute}='another'.*gpu_snapshot=False"):
        check_several_gpus(wrong)


@pytest.mark.parametrize("setting", NCCL_SETTINGS, ids=lambda one: one.variable)
def test_a_variable_with_another_value_is_named(setting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that is not on several GPUs is not asked."""
    set_right(monkeypatch)
    monkeypatch.setenv(setting.variable, "7")
    with pytest.raises(ConfigurationError, match=f"{setting.variable} is '7' and has to be '{setting.value}'"):
        check_several_gpus(SimpleNamespace(**RIGHT))
    monkeypatch.delenv(setting.variable)
    with pytest.raises(ConfigurationError, match=f"{setting.variable} is not set and has to be"):
        check_several_gpus(SimpleNamespace(**RIGHT))
    monkeypatch.delenv(SUSPEND_VARIABLE)
    check_several_gpus(SimpleNamespace(**RIGHT))


@pytest.mark.sglang
@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
class TestRealSGLang:
    """The real modules of each version; the same on a GPU."""

    def test_the_settings_and_flags_are_the_engines_own(self, asked: Callable[[str], Questions], version: str) -> None:
        """Its parser knows the flags, and what it makes of them is what the launcher checks."""
        questions = asked(version)
        parsed = questions.ask("settings", words=list(WORDS), names=[setting.attribute for setting in SETTINGS])
        lacks = {"elastic_ep_backend", "mm_feature_transport"} - set(parsed)
        assert set(parsed) | lacks == set(RIGHT)
        for setting in SETTINGS:
            assert parsed.get(setting.attribute, setting.allowed[0]) in setting.allowed
        flags = {spelling for option in questions.ask("options") for spelling in option}
        assert {setting.flag for setting in SETTINGS if setting.flag and setting.attribute not in lacks} <= flags

    def test_communicators_are_suspended_after_the_release_and_resumed_before_the_resume(
        self, asked: Callable[[str], Questions], version: str
    ) -> None:
        """The real handlers of the scheduler, with the memory saver's calls noted; PyNccl is found in the real registry."""
        assert asked(version).ask("sleep_of_ranks") == {
            "calls": ["check", "pause kv_cache", "suspend", "resume", "resume kv_cache"],
            "named": ["tp:0"],
            "handlers": ["release_memory_occupation", "resume_memory_occupation"],
        }
