"""`HFCache`: its image, and its build step and check, run for real through core's command lines."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest
from typing_extensions import override

from tests.hub_server import COMMIT, HubServer, Repository
from tests.tiny_adapter import write_adapter
from torpor import (
    Adapter,
    BuildPlan,
    BuildStep,
    ConfigurationError,
    Deployment,
    Engine,
    EnginePlugin,
    ImagePatch,
    Lifecycle,
    Model,
    Preflight,
    PreflightError,
    Recipe,
    hookimpl,
)
from torpor.adapter_checks import check_adapters
from torpor.build_steps.command import runner_file, script_argv, script_file, step_command
from torpor.build_steps.relocation import relocate
from torpor.engine_plugins import adapter_folders
from torpor.runtime import preflight
from torpor.snapshots.before_capture.outside_files import model_files
from torpor_hf_cache import HFCache, download

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class NoEngine(EnginePlugin):
    """A deployment needs one plugin with a `launch` hook; this one starts nothing."""

    plugin_name = "no_engine"
    serves_adapters = True

    @hookimpl
    @override
    def launch(self, deployment: Deployment, recipe: Recipe) -> Engine | None:
        raise NotImplementedError


def deployment(plugin: HFCache | None = None, model: Model | None = None) -> Deployment:
    model = model or Model(repo_id="org/tiny", revision=COMMIT)
    return Deployment(name="qwen3-sglang", model=model, plugins=(NoEngine(), plugin or HFCache()))


# --- values -----------------------------------------------------------------------------------------------------------


def test_the_image_gets_the_volume_and_an_offline_hub() -> None:
    """The mount holds the cache in the hub's layout; tokens, Xet chunks and remote code stay off the volume."""
    assert HFCache().prepare_image(deployment()) == ImagePatch(
        volumes={"/vol/huggingface-cache": "huggingface-cache"},
        env={
            "HF_HUB_CACHE": "/vol/huggingface-cache/hub",
            "HF_HOME": "/opt/torpor/hf",
            "HF_XET_CACHE": "/opt/torpor/hf/xet",
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        },
    )


def test_the_download_runs_before_compilation_and_the_check_before_each_start() -> None:
    """It downloads one commit, and only this step is online. The error for an emptied volume names the command that fills it."""
    plugin = HFCache(ignore_patterns=("original/*",), timeout_s=1800)
    place = ("org/tiny", COMMIT, "--cache", "/vol/huggingface-cache/hub")
    assert plugin.compile_kernels(deployment(plugin)) == BuildPlan(
        steps=(
            BuildStep(
                name="fetch weights",
                script="torpor_hf_cache.download",
                argv=("fetch", *place, "--ignore=original/*"),
                order=10,
                timeout_s=1800,
                retries=1,
                env={"HF_HUB_OFFLINE": "0", "HF_XET_HIGH_PERFORMANCE": "1"},
                volumes={"/vol/huggingface-cache": "huggingface-cache"},
            ),
        ),
        preflight=(
            Preflight(
                name="weights",
                script="torpor_hf_cache.download",
                argv=("verify", *place),
                timeout_s=300,
                cure=(
                    "Fetch them again: `modal run apps/qwen3_sglang.py::download` (put the file that defines the deployment "
                    "'qwen3-sglang' in its place if it has another name); on this machine `torpor up apps/qwen3_sglang.py` "
                    "does it."
                ),
            ),
        ),
    )


def test_only_the_download_step_gets_the_token() -> None:
    """A snapshot would hold a token of its container. The plugin names the secret and never sees the token."""
    recipe = Lifecycle(deployment(HFCache(token_secret="huggingface-secret"))).recipe()
    [step] = recipe.steps
    assert step.secrets == ("huggingface-secret",)
    assert not [name for name in recipe.env if "TOKEN" in name]


def test_another_volume_moves_mount_and_cache_together() -> None:
    """One option changes every path."""
    plugin = HFCache(volume="weights")
    recipe = Lifecycle(deployment(plugin)).recipe()
    assert recipe.volumes == {"/vol/weights": "weights"}
    assert recipe.env["HF_HUB_CACHE"] == "/vol/weights/hub"
    assert recipe.steps[0].volumes == {"/vol/weights": "weights"}
    assert "/vol/weights/hub" in recipe.steps[0].argv
    assert "/vol/weights/hub" in recipe.preflight[0].argv


def test_a_model_in_a_local_folder_needs_nothing() -> None:
    """No volume, no download, no check."""
    recipe = Lifecycle(deployment(model=Model(path="/models/tiny"))).recipe()
    assert (recipe.volumes, recipe.env, recipe.steps, recipe.preflight) == ({}, {}, (), ())


def test_adapters_are_fetched_and_checked_like_the_weights() -> None:
    """A step and a check for each that is on the hub, also beside a model in a folder; all files of an adapter."""
    adapters = {"sql": Adapter(repo_id="org/sql", revision=COMMIT), "law": Adapter(path="/law")}
    plugin = HFCache(allow_patterns=("*.safetensors",), token_secret="hf")
    both = Model(repo_id="org/tiny", revision=COMMIT, adapters=adapters)
    recipe = Lifecycle(deployment(plugin, both)).recipe()
    assert [step.name for step in recipe.steps] == ["fetch weights", "fetch adapter sql"]
    assert [check.name for check in recipe.preflight] == ["weights", "adapter sql"]
    assert recipe.steps[1].argv[:4] == ("fetch", "org/sql", COMMIT, "--cache")
    assert "--allow=*.safetensors" in recipe.steps[0].argv
    assert not any(word.startswith("--allow") for word in recipe.steps[1].argv)
    assert recipe.steps[1].secrets == ("hf",)
    alone = Lifecycle(deployment(plugin, Model(path="/m", adapters=adapters))).recipe()
    assert [step.name for step in alone.steps] == ["fetch adapter sql"]
    assert alone.env["HF_HUB_CACHE"] == plugin.cache
    assert not list(plugin.check(deployment(plugin, Model(path="/m", adapters=adapters))))


def test_the_plugin_is_a_value() -> None:
    """Equal options make equal plugins; lists become tuples; the plugin can be hashed and pickled."""
    plugin = HFCache(allow_patterns=["*.json"])  # type: ignore[arg-type]
    assert plugin == HFCache(allow_patterns=("*.json",))
    assert hash(plugin) == hash(HFCache(allow_patterns=("*.json",)))
    assert pickle.loads(pickle.dumps(plugin)) == plugin


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"volume": "a/b"}, "HFCache.volume is 'a/b'; it has to be a volume's name, without '/'"),
        ({"allow_patterns": "*.json"}, "HFCache.allow_patterns is the string '*.json'; write a tuple: ('*.json',)."),
        ({"timeout_s": 0}, "HFCache.timeout_s is 0 seconds; it has to be above 0"),
        ({"retries": -1}, "retries is -1"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, object], message: str) -> None:
    """The message gives the field, its value and the allowed ones."""
    with pytest.raises(ConfigurationError, match=message.replace("(", r"\(").replace(")", r"\)").replace("*", r"\*")):
        HFCache(**options).compile_kernels(deployment())  # type: ignore[arg-type]


def test_importing_the_package_imports_no_torpor() -> None:
    """The package imports lazily: pluggy is not needed to find the script."""
    code = (
        "import sys, torpor_hf_cache, torpor_hf_cache.download; "
        "print([name for name in sys.modules if name.partition('.')[0] in ('torpor', 'pluggy', 'huggingface_hub')])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout == "[]\n"


# --- for real ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """The recipe of the local platform: the volume and the image's disk are folders."""
    moved = relocate(Lifecycle(deployment()).recipe(), tmp_path, "qwen3-sglang")
    for mount in moved.volumes:
        os.makedirs(mount)  # noqa: PTH103
    return moved


def build(recipe: Recipe, hub: HubServer, **changes: object) -> subprocess.CompletedProcess[str]:
    """Run the download step like core on every platform."""
    step = replace(recipe.steps[0], **changes)  # type: ignore[arg-type]
    script = str(script_file(step.script or ""))
    argv = step_command(step, python=sys.executable, runner=str(runner_file()), script=script)
    env = {**os.environ, **recipe.env, **step.env, "HF_ENDPOINT": hub.url}
    return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=120, check=False)


def check(recipe: Recipe) -> subprocess.CompletedProcess[str]:
    """Run the check like core before a launch."""
    preflight = recipe.preflight[0]
    argv = script_argv(sys.executable, preflight.script, preflight.argv)
    return subprocess.run(
        argv, env={**os.environ, **recipe.env}, capture_output=True, text=True, timeout=30, check=False
    )


@pytest.mark.slow
def test_step_and_check_work_together(recipe: Recipe, hub: HubServer, tmp_path: Path) -> None:
    """The check passes after a build, fails once the volume is emptied, and passes after the next build."""
    assert check(recipe).returncode == 66
    for _ in range(2):
        ran = build(recipe, hub)
        assert ran.returncode == 0, ran.stderr
        assert check(recipe).returncode == 0
        [volume] = recipe.volumes
        snapshot = tmp_path / "volumes" / "huggingface-cache" / "hub" / "models--org--tiny" / "snapshots" / COMMIT
        assert str(snapshot).startswith(volume)
        assert (snapshot / "config.json").is_file()
        assert not (snapshot / "original").exists()
        shutil.rmtree(f"{volume}/hub")
        failed = check(recipe)
        assert failed.returncode == 66
        assert "has no files of org/tiny" in failed.stderr


@pytest.mark.slow
def test_an_adapter_is_found_where_it_was_fetched_to(hub: HubServer, tmp_path: Path) -> None:
    """The engine gets that folder, and core reads the files there before a launch."""
    source = write_adapter(tmp_path / "source")
    hub.repositories["org/sql"] = Repository(files={file.name: file.read_bytes() for file in source.iterdir()})
    model = Model(path=str(tmp_path), adapters={"sql": Adapter(repo_id="org/sql", revision=COMMIT)})
    made = deployment(model=model)
    recipe = relocate(Lifecycle(made).recipe(), tmp_path, made.name)
    for mount in recipe.volumes:
        os.makedirs(mount)  # noqa: PTH103
    with pytest.raises(PreflightError, match=r"Model\.adapters\['sql'\]: there is no folder"):
        check_adapters(made, recipe.env)
    ran = build(recipe, hub)
    assert ran.returncode == 0, ran.stderr
    check_adapters(made, recipe.env)
    assert check(recipe).returncode == 0
    folder = adapter_folders(made, recipe.env)["sql"]
    assert sorted(os.listdir(folder)) == ["adapter_config.json", "adapter_model.safetensors"]  # noqa: PTH208 - text
    assert {f"{folder}/{name}" for name in os.listdir(folder)} <= set(map(str, model_files(made, recipe)))  # noqa: PTH208


def test_a_gated_model_fails_the_step_at_once(recipe: Recipe, hub: HubServer) -> None:
    """A retry cannot help: for the runner, exit code 77 is final."""
    hub.repositories["org/tiny"].gated = frozenset()
    ran = build(recipe, hub)
    assert ran.returncode == 77
    assert "(attempt 1 of 2)" in ran.stderr
    assert "org/tiny is gated" in ran.stderr


@pytest.mark.slow
def test_a_damaged_download_is_retried(recipe: Recipe, hub: HubServer) -> None:
    """Exit code 76 allows retries; here all of them fail."""
    hub.repositories["org/tiny"].corrupt = {"config.json": b"?" * 39}
    ran = build(recipe, hub)
    assert ran.returncode == 76
    assert "(attempt 2 of 2)" in ran.stderr
    assert check(recipe).returncode == 66


def test_core_and_script_use_the_same_variable_for_a_recheck() -> None:
    """The script runs without Torpor inside an image, so it has its own constant."""
    assert download.RECHECK_VARIABLE == preflight.RECHECK_VARIABLE
