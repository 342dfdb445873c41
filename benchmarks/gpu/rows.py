"""The rows of the GPU benchmark: one configuration each, and what is done with it."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["GROUPS", "ROWS", "Row"]

_PLAIN: dict[str, object] = {"prefill_graphs": False}
_OUTSIDE: dict[str, object] = {**_PLAIN, "weights_store": "file"}
_PROFILE: dict[str, object] = {**_OUTSIDE, "cuda_graph_max_batch": 32}
_PINNED: dict[str, object] = {**_PLAIN, "weights_store": "memory", "release_graphs": True}
_HALF_A_GPU: dict[str, object] = {**_OUTSIDE, "cuda_graph_max_batch": 8, "mem_fraction_static": 0.4}
# What the options of the DeepGEMM plugin set; the plugin itself would compile in a build step, ahead of the start.
_FAST = {"SGLANG_JIT_DEEPGEMM_FAST_WARMUP": "1"}
_LAZY = {"SGLANG_JIT_DEEPGEMM_PRECOMPILE": "0"}
_KERNELS = ("deep_gemm", "triton", "tvm-ffi")


@dataclass(frozen=True)
class Row:
    """One configuration and what is done with it.

    Attributes:
        kind: what is done: `criu`, `standby`, `cold`, `huge-pages`, `mixed`, `switch`, or a function of `benchmarks.gpu.several`.
        options: of the engine's plugin, over those of `app.py`.
        without: folders of compiled kernels that are put aside.
        env: further environment variables.
        engine: `sglang` or `vllm`.
        ranks: GPUs that share the model.
        gpus: GPUs that the machine needs.
        own: no snapshot is wanted, so the engine chooses its all-reduce itself.
        of: the row whose snapshot is restored; by default the row makes its own.
        shape: of the model, one of `benchmarks.gpu.make_model.SHAPES`.
    """

    kind: str
    options: dict[str, object] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    engine: str = "sglang"
    ranks: int = 1
    gpus: int = 1
    own: bool = False
    of: str = ""
    shape: str = "8b"


def _ranks(count: int) -> dict[str, Row]:
    """The rows of a model that so many GPUs share."""
    name = f"tp{count}"
    return {
        f"{name}-own": Row("cold-decoded", _OUTSIDE, own=True, ranks=count, gpus=count),
        f"{name}-cold": Row("cold-decoded", _OUTSIDE, ranks=count, gpus=count),
        name: Row("shared", _OUTSIDE, ranks=count, gpus=count),
        f"{name}-many": Row("many", _OUTSIDE, of=name, ranks=count, gpus=count),
        f"{name}-standby": Row("standby-many", _PINNED, ranks=count, gpus=count),
    }


ROWS = {
    "flagship": Row("criu", _OUTSIDE),
    "profile": Row("criu", _PROFILE),
    "standby": Row("standby", _PINNED),
    "saver": Row("criu", _PLAIN),
    "kv-only": Row("standby", {**_PLAIN, "sleep_tags": ["kv_cache"]}),
    "loaded": Row("criu", {**_OUTSIDE, "dummy_weights": False}),
    "cold": Row("cold", _PROFILE),
    **{f"cold-{name}": Row("cold", _PROFILE, without=(name,)) for name in _KERNELS},
    "cold-all": Row("cold", _PROFILE, without=_KERNELS),
    "cold-fast": Row("cold", _PROFILE, env=_FAST),
    "cold-lazy": Row("cold", _PROFILE, env=_LAZY),
    "cold-deep_gemm-fast": Row("cold", _PROFILE, without=("deep_gemm",), env=_FAST),
    "cold-deep_gemm-lazy": Row("cold", _PROFILE, without=("deep_gemm",), env=_LAZY),
    "mixed-full": Row("mixed", _OUTSIDE),
    "mixed-fast": Row("mixed", _OUTSIDE, env=_FAST),
    "huge-pages": Row("huge-pages", _PROFILE),
    "vllm-1": Row("criu", {"sleep_level": 1}, engine="vllm"),
    "vllm-2": Row("criu", {"sleep_level": 2}, engine="vllm"),
    "vllm-tp2": Row("shared", {"sleep_level": 2}, engine="vllm", ranks=2, gpus=2),
    **_ranks(2),
    "spread": Row("spread", _HALF_A_GPU),
    "switch": Row("switch", _PROFILE),
    **_ranks(4),
    "tp4-swapped": Row("swapped", _OUTSIDE, ranks=4, gpus=4, of="tp4"),
    "tp2-pairs": Row("spread", _HALF_A_GPU, ranks=2, gpus=4),
    "tp4-32b-cold": Row("cold-decoded", _OUTSIDE, ranks=4, gpus=4, shape="32b"),
    "tp4-32b": Row("shared", _OUTSIDE, ranks=4, gpus=4, shape="32b"),
}

_FOUR = (*_ranks(4), "tp4-swapped", "tp2-pairs", "tp4-32b-cold", "tp4-32b")
GROUPS = {
    "fast-warmup": ("mixed-full", "mixed-fast"),
    "vllm": ("vllm-2", "vllm-1"),
    "tp2-all": tuple(_ranks(2)),
    "tp4-all": _FOUR,
    "several": (*_ranks(2), "spread", *_FOUR),
}
"""Names that stand for several rows."""
