"""The tiny app with vLLM instead of SGLang; `scripts/setup-local --engine vllm` installs the engine."""

from dataclasses import replace

from tests import ROOT
from torpor.app_file import load_app
from torpor_vllm import VLLM

sglang = load_app(str(ROOT / "apps" / "tiny_cpu.py")).deployment
model, _ = sglang.plugins

deployment = replace(
    sglang,
    name="tiny-vllm",
    plugins=(
        model,
        VLLM(
            version="0.32.0",
            python=str(ROOT / ".engines" / "vllm-0.32.0" / "bin" / "python"),
            device="cpu",
            eager=True,
            kv_cache_bytes=64 * 1024 * 1024,
            max_model_len=2048,
        ),
    ),
)
