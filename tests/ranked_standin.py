"""Deployments of the real engine plugins whose engine is the stand-in, with several ranks."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torpor import Deployment, Model
from torpor_sglang import SGLang
from torpor_vllm import VLLM

if TYPE_CHECKING:
    from torpor.hookspecs import EnginePlugin
    from torpor.testing.standin.ranks import RankFault

__all__ = ["RankedSGLang", "RankedVLLM", "ranked_deployment"]


@dataclass(frozen=True, kw_only=True)
class RankedSGLang(SGLang):
    """The SGLang plugin, in front of the stand-in."""

    launcher: ClassVar[str] = "torpor.testing.standin"


@dataclass(frozen=True, kw_only=True)
class RankedVLLM(VLLM):
    """The vLLM plugin, in front of the stand-in."""

    launcher: ClassVar[str] = "torpor.testing.standin"


def ranked_deployment(
    dialect: str,
    *,
    port: int,
    folder: str = "/m",
    ranks: int = 2,
    fault: RankFault | None = None,
    fault_rank: int = 1,
    deadline_s: float = 0.5,
) -> Deployment:
    """One engine on several ranks of a CPU.

    Args:
        dialect: `sglang` or `vllm`.
        port: its port.
        folder: the model's folder, which nothing reads.
        ranks: number of ranks.
        fault: what one of them does wrong.
        fault_rank: which one.
        deadline_s: seconds that rank 0 waits for another one.
    """
    words = ["--dialect", dialect, "--fault-rank", str(fault_rank), "--rank-deadline-s", str(deadline_s)]
    words += ["--rank-fault", str(fault)] if fault else []
    kind: type[RankedSGLang | RankedVLLM] = RankedVLLM if dialect == "vllm" else RankedSGLang
    engine: EnginePlugin = kind(
        version=kind.supported_versions[-1],
        python=sys.executable,
        device="cpu",
        tensor_parallel=ranks,
        warmup_prompt_words=(4,),
        warmup_burst=0,
        extra_args=tuple(words),
    )
    return Deployment(
        name="ranks",
        model=Model(path=folder, served_name="standin"),
        plugins=(engine,),
        port=port,
        startup_timeout_s=30,
        stop_timeout_s=2.0,
    )
