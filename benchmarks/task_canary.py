"""What the canaries of `embed`, `rerank` and `classify` notice, and how much equal questions differ, on a real engine on the CPU.

    .engines/sglang-0.5.23/bin/python scripts/make_tiny_model.py MODEL
    .engines/sglang-0.5.23/bin/python benchmarks/task_canary.py sglang MODEL [--trials 4] [--json FILE]
    .engines/vllm-0.32.0/bin/python benchmarks/task_canary.py vllm MODEL [--json FILE]          # with httpx on its path

MODEL is a Qwen3; the classifiers are the same with a last layer from a fixed seed. The engine runs without the guard and answers
the canary's questions ten times. SGLang then loads the model with single damages in place (/update_weights_from_disk); vLLM has no
such route. Each difference is recorded as `torpor.tasks.comparison` gives it, so that every tolerance can be judged.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY / "core"), str(REPOSITORY / "plugins")]

import httpx  # noqa: E402 - after the path of this repository's packages
import torch  # noqa: E402
from canary_damages import Damage, Damages  # noqa: E402
from engine_start import await_start  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from torpor.runtime.task_canary import QUERY, TEXTS  # noqa: E402
from torpor.tasks.answers import read_answer  # noqa: E402
from torpor.tasks.comparison import difference  # noqa: E402
from torpor.tasks.questions import question  # noqa: E402
from torpor.tasks.routes import ROUTES, Task  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CLASSES: dict[Task, int] = {"embed": 0, "rerank": 1, "classify": 3}
TOLERANCES = (1e-4, 2**-12, 1e-3, 2**-7, 2e-2)
TIMES, START_S, PORT = 10, 600.0, 8137
FLAGS = {
    "sglang": (
        "--model-path {model} --tp-size 1 --device cpu --max-running-requests 8 --max-total-tokens 4096 --is-embedding "
        "--mem-fraction-static 0.1 --skip-server-warmup --attention-backend torch_native --disable-overlap-schedule"
    ),
    "vllm": "{model} --runner pooling --enforce-eager --max-model-len 2048 --kv-cache-memory-bytes 67108864",
}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("engine", choices=FLAGS)
    parser.add_argument("model", type=Path)
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    report: dict[str, object] = {
        "command": f"benchmarks/task_canary.py {given.engine} MODEL --trials {given.trials}",
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} CPUs, kernel {platform.release()}",
        "load": os.getloadavg(),
    }
    for task, classes in CLASSES.items():
        with tempfile.TemporaryDirectory(prefix="torpor-canary-") as name:
            model = classifier(given.model, Path(name) / "model", classes)
            with running(given.engine, model, Path(name) / "engine.log") as client:
                report[task] = Measurement(client, given.engine, task, model).run(given.trials)
        print(task, json.dumps(report[task]), flush=True)
    if given.json:
        given.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def classifier(given: Path, folder: Path, classes: int) -> Path:
    """Copy the model, for a classifier with another last layer."""
    shutil.copytree(given, folder)
    if classes:
        weights = load_file(folder / "model.safetensors")
        del weights["lm_head.weight"]
        hidden = weights["model.norm.weight"].shape[0]
        drawn = torch.randn(classes, hidden, generator=torch.Generator().manual_seed(0)) * 0.02
        save_file({**weights, "score.weight": drawn.bfloat16()}, folder / "model.safetensors", {"format": "pt"})
        config = json.loads((folder / "config.json").read_text())
        labels = {str(number): f"LABEL_{number}" for number in range(classes)}
        config |= {"architectures": ["Qwen3ForSequenceClassification"], "num_labels": classes, "id2label": labels}
        config["label2id"] = {label: int(number) for number, label in labels.items()}
        (folder / "config.json").write_text(json.dumps(config))
    return folder


class Measurement:
    """One task of one running engine.

    Args:
        client: bound to the engine.
        engine: its name.
        task: what is asked.
        model: folder of the model.
    """

    def __init__(self, client: httpx.Client, engine: str, task: Task, model: Path) -> None:
        self._client = client
        self._engine = engine
        self._task = task
        self._path = "/classify" if (engine, task) == ("vllm", "classify") else ROUTES[task].path
        self._weights: dict[str, torch.Tensor] = load_file(model / "model.safetensors")
        self._damaged = model.with_name("damaged")
        shutil.copytree(model, self._damaged)

    def run(self, trials: int) -> dict[str, object]:
        """Noise, then damages."""
        answers = [self._ask() for _ in range(TIMES)]
        apart = [difference(one, other).size for one, other in itertools.combinations(answers, 2)]
        noise = {"asked": TIMES, "different": len({json.dumps(one) for one in answers}), "largest": max(apart)}
        if self._engine != "sglang":
            return {"noise": noise}
        self._load(self._weights)
        reference, rows = self._ask(), []
        for damage in self._damages(trials):
            for _ in range(damage.trials):
                weights = {name: one.clone() for name, one in self._weights.items()}
                damage.inflict(weights)
                self._load(weights)
                rows.append({"kind": damage.kind, "difference": self._difference(reference)})
        self._load(self._weights)
        noticed = {str(limit): sum(row["difference"] > limit for row in rows) for limit in TOLERANCES}
        undamaged = self._difference(reference)
        return {"noise": noise, "undamaged": undamaged, "damages": len(rows), "noticed_at": noticed, "rows": rows}

    def _damages(self, trials: int) -> Iterator[Damage]:
        """All kinds, and two rows of a matrix that changed places."""
        chance = random.Random(5)
        matrices = [name for name, one in self._weights.items() if one.dim() == 2 and ".layers." in name]

        def swap(weights: Mapping[str, torch.Tensor]) -> None:
            matrix = weights[chance.choice(matrices)]
            one, other = chance.sample(range(matrix.shape[0]), 2)
            matrix[[one, other]] = matrix[[other, one]]

        yield Damage("2 rows swapped", trials, swap)
        used = {name: one for name, one in self._weights.items() if name != "lm_head.weight"}  # no vector needs that
        yield from Damages(used, trials).all()

    def _difference(self, reference: Mapping[str, object]) -> float:
        try:
            size = difference(reference, self._ask()).size
        except ValueError:  # not a number
            return 1e9
        return size if math.isfinite(size) else 1e9

    def _load(self, weights: Mapping[str, torch.Tensor]) -> None:
        save_file(
            {name: one.contiguous() for name, one in weights.items()},
            self._damaged / "model.safetensors",
            {"format": "pt"},
        )
        self._client.post("/update_weights_from_disk", json={"model_path": str(self._damaged)}).raise_for_status()
        self._client.post("/flush_cache").raise_for_status()

    def _ask(self) -> Mapping[str, object]:
        route = ROUTES[self._task]._replace(path=self._path)
        asked = question(self._task, route, model="tiny", texts=TEXTS, query=QUERY)
        answer = self._client.post(asked.path, content=asked.content, headers={"content-type": asked.content_type})
        if answer.is_error:
            raise ValueError(f"{answer.status_code}: {answer.text[:500]}")
        return read_answer(self._task, answer.json())


@contextmanager
def running(engine: str, model: Path, log: Path) -> Iterator[httpx.Client]:
    """Run an engine without the guard, and end it."""
    serve = (sys.executable, "-m", f"torpor_{engine}.serve", *FLAGS[engine].format(model=model).split())
    public = ("--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(PORT))
    own = {
        "TORPOR_UNGUARDED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_WAIT_POLICY": "passive",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_HOST_IP": "127.0.0.1",
        "PYTHONPATH": f"{REPOSITORY / 'core'}:{REPOSITORY / 'plugins'}",
        **({"SGLANG_USE_CPU_ENGINE": "1"} if engine == "sglang" else {}),
    }
    with log.open("w") as output:
        process = subprocess.Popen((*serve, *public), env={**os.environ, **own}, stdout=output, stderr=output)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{PORT}", timeout=120, trust_env=False) as client:
            await_start(client, process, log, START_S)
            yield client
    finally:
        process.terminate()  # the launcher ends what it started
        process.wait(60)


if __name__ == "__main__":
    main()
