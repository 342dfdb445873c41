"""The tiny Qwen3 on the real SGLang's CPU path: the whole lifecycle on any Linux machine.

torpor up apps/tiny_cpu.py
"""

from dataclasses import dataclass
from pathlib import Path

from torpor import BuildPlan, BuildStep, Deployment, Model, Plugin, Scaling, hookimpl
from torpor.platforms.local import cache_root
from torpor_sglang import SGLang

REPOSITORY = Path(__file__).resolve().parent.parent
ENGINE_PYTHON = REPOSITORY / ".engines" / "sglang-0.5.23" / "bin" / "python"
MODEL = cache_root() / "models" / "tiny-qwen3"


@dataclass(frozen=True, kw_only=True)
class TinyModel(Plugin):
    """Makes the model on the spot: a real Qwen3 with random weights and a toy tokenizer."""

    plugin_name = "tiny_model"

    @hookimpl
    def compile_kernels(self, deployment: Deployment) -> BuildPlan:  # noqa: ARG002 - one model for all
        """Make it once."""
        script = REPOSITORY / "scripts" / "make_tiny_model.py"
        step = BuildStep(
            name="make the tiny model",
            argv=(str(ENGINE_PYTHON), str(script), str(MODEL)),
            order=10,
            timeout_s=300,
            outputs=(str(MODEL / "model.safetensors"), str(MODEL / "tokenizer.json")),
        )
        return BuildPlan(steps=(step,))


deployment = Deployment(
    name="tiny-cpu",
    model=Model(path=str(MODEL), served_name="tiny-qwen3"),
    plugins=(
        TinyModel(),
        SGLang(
            version="0.5.23",
            python=str(ENGINE_PYTHON),
            device="cpu",
            mem_fraction_static=0.1,
            max_total_tokens=4096,
            sleep_on_idle=True,
            warmup_features=(),  # for a demonstration: a penalty alone compiles for half a minute on two cores
        ),
    ),
    scaling=Scaling(target_concurrency=4, max_concurrency=8),
    startup_timeout_s=300,
)
