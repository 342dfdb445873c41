"""`DeepGEMM`: its image, and its compile step, run for real with a stand-in for engine and GPU."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typing_extensions import override

from torpor import (
    Cache,
    ConfigurationError,
    Deployment,
    Engine,
    EnginePlugin,
    ImagePatch,
    Lifecycle,
    Model,
    Plugin,
    Recipe,
    hookimpl,
)
from torpor.build_steps.command import runner_file, script_file, step_command
from torpor.build_steps.relocation import relocate
from torpor_deepgemm import DeepGEMM

if TYPE_CHECKING:
    from collections.abc import Iterable

COMMIT = "220b46e3b2180893580a4454f21f22d3ebb187d3"
KERNELS = "/opt/torpor/kernels"

COMPILER = """
import os, pathlib, sys, time
runs = pathlib.Path(os.environ["RUNS"])
runs.write_text(runs.read_text() + "x" if runs.exists() else "x")
mode = os.environ.get("MODE", "works")
if mode == "hangs":
    time.sleep(600)
if mode == "crashes once" and runs.read_text() == "x":
    sys.exit("CUDA error: an illegal memory access was encountered")
if mode == "is switched off":
    print("DeepGEMM Kernels compilation finished successfully."); sys.exit(0)
assert os.environ["SGLANG_ENABLE_JIT_DEEPGEMM"] == "1"
kernel = pathlib.Path(os.environ["SGLANG_DG_CACHE_DIR"]) / "cache" / "kernel.abc" / "kernel.cubin"
kernel.parent.mkdir(parents=True, exist_ok=True)
kernel.write_bytes(" ".join(sys.argv[1:]).encode())
triton = pathlib.Path(os.environ["TRITON_CACHE_DIR"]) / "k" / "helper.json"
triton.parent.mkdir(parents=True, exist_ok=True)
triton.write_text("{}")
"""


@dataclass(frozen=True, kw_only=True)
class AnEngine(EnginePlugin):
    """An engine plugin of a third party: it has only the methods that DeepGEMM calls."""

    plugin_name = "an_engine"
    version: str = "0.5.6.post2"
    command: tuple[str, ...] | None = ("python3", "-m", "sglang.compile_deep_gemm", "--tp-size", "1")
    caches: tuple[tuple[str, str], ...] = (
        ("SGLANG_DG_CACHE_DIR", f"{KERNELS}/deep_gemm"),
        ("TRITON_CACHE_DIR", f"{KERNELS}/triton"),
    )
    python: str = "python3"

    @property
    @override
    def engine_version(self) -> str:
        return self.version

    @property
    @override
    def engine_python(self) -> str:
        return self.python

    @override
    def kernel_cache_env(self, deployment: Deployment) -> dict[str, str]:
        return dict(self.caches)

    @override
    def kernel_compile_env(self, deployment: Deployment, *, fast: bool, at_load: bool) -> dict[str, str]:
        if fast and self.version == "0.5.6.post2":
            raise ConfigurationError("an_engine 0.5.6.post2 compiles every shape; leave fast_warmup out.")
        return {"SGLANG_ENABLE_JIT_DEEPGEMM": "1", "SHAPES": f"{'few' if fast else 'all'}", "AT_LOAD": f"{at_load}"}

    @override
    def kernel_compile_argv(self, deployment: Deployment) -> tuple[str, ...] | None:
        return self.command

    @hookimpl
    @override
    def launch(self, deployment: Deployment, recipe: Recipe) -> Engine | None:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Dummy(Plugin):
    """A plugin that gives the engine a flag."""

    plugin_name = "dummy"

    @hookimpl
    @override
    def prepare_image(self, deployment: Deployment) -> ImagePatch:
        return ImagePatch(engine_args=("--load-format", "dummy"))


def deployment(
    plugin: DeepGEMM | None = None,
    engine: AnEngine | None = None,
    *,
    gpu: str | None = "H100!",
    more: Iterable[Plugin] = (),
) -> Deployment:
    return Deployment(
        name="qwen3",
        model=Model(repo_id="Qwen/Qwen3-8B-FP8", revision=COMMIT),
        plugins=(engine or AnEngine(), plugin or DeepGEMM(), *more),
        gpu=gpu,
    )


# --- values -----------------------------------------------------------------------------------------------------------


def test_the_image_gets_the_switch_and_the_engines_own_cache_folders() -> None:
    """They are on the image's disk: a Volume would hide the kernels, and could change after a snapshot."""
    assert DeepGEMM().prepare_image(deployment()) == ImagePatch(
        env={
            "SGLANG_ENABLE_JIT_DEEPGEMM": "1",
            "SHAPES": "all",
            "AT_LOAD": "True",
            "SGLANG_DG_CACHE_DIR": "/opt/torpor/kernels/deep_gemm",
            "TRITON_CACHE_DIR": "/opt/torpor/kernels/triton",
        }
    )


def test_the_compile_step_is_the_engines_own_command_on_the_gpu() -> None:
    """It runs after the downloads. Only this step mounts its volume. It has a retry and must produce kernels."""
    [step] = DeepGEMM(timeout_s=1200).compile_kernels(deployment()).steps
    assert step.argv == ("--", "python3", "-m", "sglang.compile_deep_gemm", "--tp-size", "1")
    assert (step.script, step.order, step.timeout_s, step.retries) == ("torpor_deepgemm.watch", 20, 1200, 1)
    assert (step.gpu, step.secrets, step.engine_args) == (True, (), True)
    assert step.volumes == {"/vol/deepgemm-cache": "deepgemm-cache"}
    assert step.outputs == ("/opt/torpor/kernels/deep_gemm",)
    assert step.cache is not None
    assert replace(step.cache, probes=()) == Cache(
        volume_dir="/vol/deepgemm-cache",
        image_dir="/opt/torpor/kernels",
        key=(
            "engine=an_engine 0.5.6.post2",
            f"model=Qwen/Qwen3-8B-FP8 {COMMIT}",
            "gpus=1",
            "AT_LOAD=True",
            "SGLANG_ENABLE_JIT_DEEPGEMM=1",
            "SHAPES=all",
            "python3",
            "-m",
            "sglang.compile_deep_gemm",
            "--tp-size",
            "1",
        ),
    )


def test_the_serving_container_does_not_mount_the_kernels_volume() -> None:
    """A snapshot maps kernel files, and a Volume may change after the capture."""
    assert Lifecycle(deployment()).recipe().volumes == {}


def test_flags_that_other_plugins_give_the_engine_reach_the_compilation_and_its_key() -> None:
    """The compilation uses all flags with which the engine serves."""
    [step] = Lifecycle(deployment(more=(Dummy(),))).recipe().steps
    assert step.argv[-2:] == ("--load-format", "dummy")
    assert step.cache is not None
    assert step.cache.key[-2:] == ("--load-format", "dummy")


def test_the_engine_plugin_decides_how_kernels_are_compiled() -> None:
    """Its variables are in the image, because serving compiles the same shapes, and in the cache key."""
    plan = deployment(DeepGEMM(fast_warmup=True, precompile=False), AnEngine(version="0.5.16"))
    recipe = Lifecycle(plan).recipe()
    assert (recipe.env["SHAPES"], recipe.env["AT_LOAD"]) == ("few", "False")
    assert recipe.steps[0].cache is not None
    assert {"SHAPES=few", "AT_LOAD=False"} <= set(recipe.steps[0].cache.key)
    assert Lifecycle(deployment()).recipe().env["AT_LOAD"] == "True"


def test_no_token_of_the_step_has_a_line_break() -> None:
    """A build step is one shell line of a Dockerfile, and a builder might expand dollar signs."""
    [step] = Lifecycle(deployment()).recipe().steps
    line = step_command(
        step, python="python3", runner="/opt/torpor/buildstep.py", script="/opt/torpor/scripts/watch.py"
    )
    assert not [token for token in line if "\n" in token or "$" in token]


def test_the_plugin_is_a_value() -> None:
    """Equal options make equal plugins, which can be hashed and pickled."""
    assert hash(DeepGEMM()) == hash(DeepGEMM())
    assert pickle.loads(pickle.dumps(DeepGEMM(fast_warmup=True))) == DeepGEMM(fast_warmup=True)


def test_importing_the_package_imports_no_torpor() -> None:
    """The package imports lazily: pluggy is not needed to find the script."""
    code = (
        "import sys, torpor_deepgemm, torpor_deepgemm.watch; "
        "print([name for name in sys.modules if name.partition('.')[0] in ('torpor', 'pluggy')])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout == "[]\n"


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (
            lambda: deployment(engine=AnEngine(command=None)),
            "DeepGEMM has nothing to run: the engine 'an_engine' of deployment 'qwen3' has no kernel compile command",
        ),
        (
            lambda: deployment(engine=AnEngine(caches=(("TRITON_CACHE_DIR", f"{KERNELS}/triton"),))),
            "The engine 'an_engine' does not say where DeepGEMM's kernels go: its kernel_cache_env has none of SGLANG_DG",
        ),
        (
            lambda: deployment(engine=AnEngine(caches=(("SGLANG_DG_CACHE_DIR", "/root/.cache/deep_gemm"),))),
            "puts a kernel cache at SGLANG_DG_CACHE_DIR=/root/.cache/deep_gemm, outside /opt/torpor/kernels",
        ),
        (
            lambda: deployment(DeepGEMM(fast_warmup=True)),
            "an_engine 0.5.6.post2 compiles every shape; leave fast_warmup out.",
        ),
        (lambda: deployment(gpu=None), "DeepGEMM has no kernels for Deployment.gpu None: it needs a Hopper GPU"),
        (lambda: deployment(gpu="A100-80GB:2"), "DeepGEMM has no kernels for Deployment.gpu 'A100-80GB:2'"),
        (lambda: deployment(DeepGEMM(volume="a/b")), "DeepGEMM.volume is 'a/b'; it has to be a volume's name"),
        (lambda: deployment(DeepGEMM(timeout_s=-1)), "DeepGEMM.timeout_s is -1 seconds; it has to be above 0"),
    ],
)
def test_an_error_names_the_problem_and_what_to_do(plan: object, message: str) -> None:
    """It appears before a paid GPU starts."""
    assert callable(plan)
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        Lifecycle(plan()).recipe()


# --- for real ---------------------------------------------------------------------------------------------------------


@dataclass
class Machine:
    """A container: nvidia-smi in PATH, nvcc in CUDA_HOME, an engine package, and the two disks."""

    root: Path
    variables: dict[str, str] = field(default_factory=dict)

    def prepare(self) -> None:
        self.answer("bin/nvidia-smi", "NVIDIA H100 80GB HBM3")
        self.answer("cuda/bin/nvcc", "Cuda compilation tools, release 12.9, V12.9.86")
        self.package("0.3.19")

    def answer(self, program: str, text: str) -> None:
        path = self.root / program
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\necho '{text}'\n")
        path.chmod(0o755)

    def package(self, version: str) -> None:
        shutil.rmtree(self.root / "site", ignore_errors=True)
        info = self.root / "site" / f"sgl_kernel-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: sgl_kernel\nVersion: {version}\n")

    def new_container(self) -> None:
        shutil.rmtree(self.root / "images")

    def build(
        self, plugin: DeepGEMM | None = None, *flags: str, grace_s: float = 1
    ) -> subprocess.CompletedProcess[str]:
        """Run the compile step like core, with its paths moved to folders of this machine."""
        engine = AnEngine(command=(sys.executable, "-c", COMPILER, *flags), python=sys.executable)
        recipe = relocate(Lifecycle(deployment(plugin, engine)).recipe(), self.root, "qwen3")
        [step] = recipe.steps
        for mount in step.volumes:
            Path(mount).mkdir(parents=True, exist_ok=True)
        python, runner, *rest = step_command(
            step, python=sys.executable, runner=str(runner_file()), script=str(script_file(step.script or ""))
        )
        env = {**os.environ, **recipe.env, **step.env, **self.variables, "RUNS": str(self.root / "runs")}
        env |= {
            "PATH": f"{self.root}/bin:{env['PATH']}",
            "CUDA_HOME": f"{self.root}/cuda",
            "PYTHONPATH": f"{self.root}/site:{env.get('PYTHONPATH', '')}",
        }
        argv = [python, runner, f"--grace={grace_s}", *rest]
        return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=120, check=False)

    @property
    def runs(self) -> int:
        path = self.root / "runs"
        return len(path.read_text()) if path.exists() else 0

    @property
    def kernels(self) -> Path:
        return self.root / "images" / "qwen3" / "kernels"

    @property
    def kept(self) -> list[Path]:
        return sorted((self.root / "volumes" / "deepgemm-cache").iterdir())


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    made.prepare()
    return made


@pytest.mark.slow
def test_the_first_build_compiles_and_the_next_with_the_same_key_skips(machine: Machine) -> None:
    """Kernels and other JIT caches are copied back to the image's disk; the marker holds their key."""
    ran = machine.build(None, "--tp-size", "1")
    assert ran.returncode == 0, ran.stderr
    machine.new_container()
    ran = machine.build(None, "--tp-size", "1")
    assert (ran.returncode, machine.runs) == (0, 1), ran.stderr
    assert (machine.kernels / "deep_gemm" / "cache" / "kernel.abc" / "kernel.cubin").read_bytes() == b"--tp-size 1"
    assert (machine.kernels / "triton" / "k" / "helper.json").is_file()
    [entry] = machine.kept
    marker = json.loads((entry / ".torpor-complete.json").read_text())
    assert set(marker["probes"].values()) == {
        "NVIDIA H100 80GB HBM3",
        "Cuda compilation tools, release 12.9, V12.9.86",
        "sgl-kernel==0.3.19",
    }
    assert set(marker["files"]) == {"deep_gemm/cache/kernel.abc/kernel.cubin", "triton/k/helper.json"}


@pytest.mark.slow
@pytest.mark.parametrize("change", ["GPU", "nvcc", "package", "flag", "option"])
def test_another_key_compiles_again(machine: Machine, change: str) -> None:
    """The key contains the image's GPU, compiler and packages, the engine's flags and this plugin's options."""
    assert machine.build(None, "--tp-size", "1").returncode == 0
    machine.new_container()
    if change == "GPU":
        machine.answer("bin/nvidia-smi", "NVIDIA H200")
    elif change == "nvcc":
        machine.answer("cuda/bin/nvcc", "Cuda compilation tools, release 13.0, V13.0.48")
    elif change == "package":
        machine.package("0.3.20")
    ran = machine.build(
        DeepGEMM(precompile=False) if change == "option" else None, "--tp-size", "2" if change == "flag" else "1"
    )
    assert (ran.returncode, machine.runs) == (0, 2), ran.stderr
    assert len(machine.kept) == 2


@pytest.mark.slow
def test_a_compilation_without_a_kernel_fails_despite_exit_code_0(machine: Machine) -> None:
    """SGLang's command exits like this if DeepGEMM is off or not supported."""
    machine.variables["MODE"] = "is switched off"
    ran = machine.build(DeepGEMM(retries=0))
    assert ran.returncode == 120
    assert f"left nothing in {machine.kernels}/deep_gemm: it did not do its work" in ran.stderr
    assert "    | DeepGEMM Kernels compilation finished successfully." in ran.stderr
    assert machine.kept == []


@pytest.mark.slow
def test_a_crash_is_retried_once(machine: Machine) -> None:
    """One retry is the default."""
    machine.variables["MODE"] = "crashes once"
    ran = machine.build(None, "--tp-size", "1")
    assert (ran.returncode, machine.runs) == (0, 2), ran.stderr
    assert len(machine.kept) == 1


@pytest.mark.slow
def test_a_compilation_that_hangs_is_ended_at_its_time_limit(machine: Machine) -> None:
    """It is not retried, which would cost the GPU time twice."""
    machine.variables["MODE"] = "hangs"
    ran = machine.build(DeepGEMM(timeout_s=1.5))
    assert (ran.returncode, machine.runs) == (124, 1), ran.stderr
    assert machine.kept == []


def test_an_image_without_a_compiler_is_reported_before_the_compilation(machine: Machine) -> None:
    """DeepGEMM runs nvcc at its first import, even if every kernel exists."""
    (machine.root / "cuda" / "bin" / "nvcc").unlink()
    ran = machine.build()
    assert (ran.returncode, machine.runs) == (121, 0)
    assert "/cuda/bin/nvcc" in ran.stderr
