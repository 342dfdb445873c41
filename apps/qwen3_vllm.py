"""Qwen3-8B-FP8 on one H100 with vLLM and DeepGEMM: starts from a memory snapshot, GPU memory included.

modal deploy apps/qwen3_vllm.py               # build, download, compile; the first start takes the snapshot
modal run apps/qwen3_vllm.py [--prompt TEXT]  # an app of its own for one test, without a snapshot
python apps/qwen3_vllm.py [--prompt TEXT]     # ask the deployed server
modal run apps/qwen3_vllm.py::download        # fill the volume again, if it was emptied
"""

import modal

from torpor import Deployment, Model, Scaling, client
from torpor.platforms.modal import (
    SnapshotServer,
    cls_options,
    concurrency,
    deployed_url,
    download_options,
    fill_volumes,
    web_url,
)
from torpor_deepgemm import DeepGEMM
from torpor_hf_cache import HFCache
from torpor_vllm import VLLM

MINUTES_S = 60

deployment = Deployment(
    name="qwen3-vllm",
    model=Model(repo_id="Qwen/Qwen3-8B-FP8", revision="220b46e3b2180893580a4454f21f22d3ebb187d3"),
    gpu="H100!",
    port=8000,
    scaling=Scaling(target_concurrency=10, max_concurrency=1000),
    startup_timeout_s=10 * MINUTES_S,
    plugins=(
        HFCache(volume="huggingface-cache"),
        DeepGEMM(volume="deepgemm-cache", fast_warmup=True),
        VLLM(version="0.33.0", cuda_graph_max_batch=1000, metrics=True),
    ),
)

app = modal.App(deployment.name)


@app.cls(**cls_options(deployment))
@modal.concurrent(**concurrency(deployment))
class Server(SnapshotServer, deployment=deployment):
    """Cold start, sleep, snapshot, wake: all of it is the framework's."""


@app.function(**download_options(deployment))
def download() -> None:
    """Fill the volume with the weights again."""
    fill_volumes(deployment)


@app.local_entrypoint()
def test(prompt: str = client.PROMPT, twice: bool = True, timeout: int = 600) -> None:  # noqa: PT028 - an entry point
    """Ask the server of this run, with two different system prompts; `timeout` in seconds, for each answer."""
    with client.errors_told():
        model = deployment.model.served_name
        client.ask_in_turn(web_url(Server), model=model, prompt=prompt, twice=twice, timeout_s=timeout)


if __name__ == "__main__":
    client.main(lambda: deployed_url(deployment), model=deployment.model.served_name)
