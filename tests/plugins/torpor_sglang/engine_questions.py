"""Answers questions about one real SGLang: a JSON line in, a JSON line out.

An engine's Python runs it as a module, with the version in question on its path. SGLang's code is unchanged, except by the
launcher's own patches.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import contextlib
import inspect
import os
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from tests.plugins.answering import answer_questions, keep_answers_apart, own_headers, parse, paths

PUBLIC_REQUESTS = (
    "ChatCompletionRequest",
    "ClassifyRequest",
    "CompletionRequest",
    "DetokenizeRequest",
    "EmbeddingRequest",
    "ResponsesRequest",
    "ScoringRequest",
    "TokenizeRequest",
    "TranscriptionRequest",
    "V1RerankReqInput",
)


def parser() -> argparse.ArgumentParser:
    """Return SGLang's own argument parser."""
    from sglang.srt.server_args import ServerArgs

    made = argparse.ArgumentParser()
    ServerArgs.add_cli_args(made)
    return made


def ask_version(_: dict[str, Any]) -> object:
    """Return the version that is imported."""
    import sglang

    return {"distribution": metadata.version("sglang"), "file": sglang.__file__}


def ask_options(_: dict[str, Any]) -> object:
    """Return every option's spellings."""
    return [list(action.option_strings) for action in parser()._actions]


def ask_parse(question: dict[str, Any]) -> object:
    """Parse a command line."""
    return parse(parser(), question["argv"])


def ask_checked(question: dict[str, Any]) -> object:
    """Let the launcher check a command line after SGLang has parsed it."""
    from sglang.srt.server_args import prepare_server_args

    from torpor import ConfigurationError
    from torpor_sglang.reserved import RESERVED

    try:
        RESERVED.check_parsed_args(metadata.version("sglang"), prepare_server_args(question["argv"]))
    except ConfigurationError as error:
        return {"refused": str(error)}
    return {}


def ask_routes(_: dict[str, Any]) -> object:
    """Return the paths of the real application, including those of its routers."""
    from sglang.srt.entrypoints import http_server

    return sorted(set(paths(http_server.app.routes)))


def ask_fields(_: dict[str, Any]) -> object:
    """Return the request fields of the public routes."""
    from sglang.srt.entrypoints.openai import protocol

    kinds = [getattr(protocol, name) for name in PUBLIC_REQUESTS if hasattr(protocol, name)]
    with contextlib.suppress(ModuleNotFoundError):  # 0.5.6.post2 has no such dialect
        from sglang.srt.entrypoints.anthropic import protocol as anthropic

        kinds += [anthropic.AnthropicMessagesRequest, anthropic.AnthropicCountTokensRequest]
    return sorted({name for kind in kinds for name in kind.model_fields})


def ask_headers(_: dict[str, Any]) -> object:
    """Return the headers that SGLang's HTTP server reads by name."""
    from sglang.srt import entrypoints

    return own_headers(Path(entrypoints.__path__[0]))


def ask_variables(_: dict[str, Any]) -> object:
    """Return the environment variables in SGLang's table, which is a module in 0.5.6.post2, too."""
    from sglang.srt.environ import envs

    return sorted(name for name in dir(envs) if name.isupper())


def ask_guarded(question: dict[str, Any]) -> object:
    """Wrap the real application in the guard, add layers like SGLang's launch, then send requests."""
    from sglang.srt.entrypoints import http_server

    from torpor.guard import BootDocument, GuardRules
    from torpor.launcher.guarded_app import install_guard

    listed = {name: tuple(found) for name, found in question["rules"].items()}
    rules = GuardRules(public=listed["public"], keyed=listed["keyed"], sleep=listed["sleep"], wake=listed["wake"])
    install_guard(http_server.app, BootDocument(key=question["key"], replica_id="0123456789abcdef", rules=rules))
    http_server.app.add_middleware(KeyLayer)
    return [asyncio.run(answer(http_server.app, *request)) for request in question["requests"]]


def ask_page(question: dict[str, Any]) -> object:
    """Send a request from a page of another origin; return the status and the origin that may read the answer."""
    from sglang.srt.entrypoints import http_server

    return asyncio.run(answer_with_origin(http_server.app, question["path"], "", question["origin"]))


def ask_stream_ends(question: dict[str, Any]) -> object:
    """Run the task behind a stream for a finished request, an unfinished one and one of several answers: waits and aborts."""
    from types import SimpleNamespace

    from sglang.srt.managers import tokenizer_manager

    manager: Any = object.__new__(tokenizer_manager.TokenizerManager)
    manager.rid_to_state = dict.fromkeys(question["running"])
    seen: dict[str, list[object]] = {"waited": [], "aborted": []}
    manager.abort_request = seen["aborted"].append

    async def wait(seconds: float) -> None:
        seen["waited"].append(seconds)

    request = SimpleNamespace(rid=question["rid"], is_single=True, parallel_sample_num=question["answers"])
    real, asyncio.sleep = asyncio.sleep, wait  # type: ignore[assignment]
    try:
        asyncio.run(manager.create_abort_task(request)())
    finally:
        asyncio.sleep = real
    return seen


def ask_biases(question: dict[str, Any]) -> object:
    """Make a real classifier without a body, load its last layer from files with or without a bias; return the bias."""
    from importlib import import_module
    from types import ModuleType, SimpleNamespace

    import torch

    for name in ("activation", "layernorm"):  # 0.5.6.post2 imports them without its CPU kernels, for layers of the body
        absent = ModuleType(f"vllm.model_executor.layers.{name}")
        vars(absent).update(dict.fromkeys(("GeluAndMul", "SiluAndMul", "GemmaRMSNorm", "RMSNorm")))
        sys.modules.setdefault(absent.__name__, absent)
    module = import_module(f"sglang.srt.models.{question['module']}")
    (kind,) = module.EntryClass
    real = {name: vars(module)[name] for name in vars(module) if name.endswith("Model")}
    vars(module).update(dict.fromkeys(real, lambda *_, **__: torch.nn.Identity()))
    try:
        config = SimpleNamespace(hidden_size=4, num_labels=3, eos_token_id=0, id2label=None, label2id=None)
        made = kind(config)
    finally:
        vars(module).update(real)
    files = [("score.weight", torch.ones(3, 4))]
    files += [("score.bias", torch.tensor(question["bias"]))] if "bias" in question else []
    params = dict(made.named_parameters())
    for name, loaded in files:
        params[name].data.copy_(loaded)
    return made.score.bias.tolist()


def ask_adapter_names(question: dict[str, Any]) -> object:
    """Return the adapter that the real handler finds for each name, with the launcher's patch; of an unknown one the answer."""
    from types import SimpleNamespace

    from sglang.srt.entrypoints.openai import protocol, serving_base

    from torpor_sglang.patches.public_requests import check_requests

    own = {"__init__": lambda _: None}
    kind: Any = type("Patched", (serving_base.OpenAIServingBase,), own)
    os.environ["TORPOR_SERVED_NAMES"] = question["served"]
    try:
        check_requests(SimpleNamespace(OpenAIServingBase=kind))  # type: ignore[arg-type] # of a module it takes the class
    finally:
        del os.environ["TORPOR_SERVED_NAMES"]
    kind.__abstractmethods__ = frozenset()
    handler: Any = kind()
    handler.tokenizer_manager = SimpleNamespace(served_model_name="m")
    request = protocol.ChatCompletionRequest(model="nope", messages=[{"role": "user", "content": "hello"}])
    refused = asyncio.run(handler.handle_request(request, SimpleNamespace(headers={})))
    return {
        "found": [handler._resolve_lora_path(name, None) for name in question["names"]],
        "refused": [refused.status_code, refused.body.decode()],
    }


RESUME = "resume_memory_occupation"


def resuming_class() -> Any:
    """Import the class that the patch changed, which has the scheduler's handler of a resume."""
    from importlib import import_module

    for name in ("scheduler_components.weight_updater", "scheduler_update_weights_mixin"):
        with contextlib.suppress(ModuleNotFoundError):
            module = import_module(f"sglang.srt.managers.{name}")
            kinds = [kind for kind in vars(module).values() if isinstance(kind, type)]
            (changed,) = (kind for kind in kinds if hasattr(vars(kind).get(RESUME), "__wrapped__"))
            return changed
    raise LookupError("this SGLang has neither module")


def ask_reseed(_: dict[str, Any]) -> object:
    """Return the class that the patch changed, and the handlers in the source of the real scheduler's dispatcher."""
    from sglang.srt import managers

    tree = ast.parse(Path(managers.__path__[0], "scheduler.py").read_text())
    handlers = [
        ast.unparse(node.elts[1])
        for node in ast.walk(tree)
        if isinstance(node, ast.Tuple) and [*map(ast.unparse, node.elts[:1])] == ["ResumeMemoryOccupationReqInput"]
    ]
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    changed = resuming_class().__name__
    return {"changed": changed, "handlers": handlers, "scheduler_uses_it": changed in used}


def ask_draws(question: dict[str, Any]) -> object:
    """Resume the KV cache with the real handler from one random state and draw, first without the patch, then with it."""
    resume = getattr(resuming_class(), RESUME)
    return {
        "unpatched": [draw_after(inspect.unwrap(resume)) for _ in range(question["replicas"])],
        "patched": [draw_after(resume) for _ in range(question["replicas"])],
    }


def draw_after(resume: Any) -> dict[str, float]:
    """Set one random state, resume, and draw once from each generator that a sampler may use."""
    import random

    import numpy as np
    import torch
    from sglang.srt.utils.common import set_random_seed

    set_random_seed(42)
    resume_kv_cache(resume, group=None)
    return {"torch": torch.rand(1).item(), "numpy": float(np.random.rand()), "random": random.random()}


def resume_kv_cache(resume: Any, group: Any) -> None:
    """Call a resume handler like the scheduler of a rank, with released memory."""
    from sglang.srt.managers.io_struct import ResumeMemoryOccupationReqInput
    from sglang.srt.utils.torch_memory_saver_adapter import TorchMemorySaverAdapter

    kind = resuming_class()
    subject: Any = object.__new__(type("Subject", (kind,), {}))  # its __init__ needs a GPU, which this call does not
    subject.offload_tags = {"kv_cache"}
    subject.memory_saver_adapter = TorchMemorySaverAdapter.create(enable=False)
    subject.scheduler, subject.tp_cpu_group = None, group
    resume(subject, ResumeMemoryOccupationReqInput(tags=["kv_cache"]))
    assert subject.offload_tags == set()


def ask_settings(question: dict[str, Any]) -> object:
    """Parse a command line and return the settings as they are read back; those that this version lacks are left out."""
    words = parser().parse_args(["--model-path", "/model", *question["words"]])
    return {name: getattr(words, name) for name in question["names"] if hasattr(words, name)}


def ask_sleep_of_ranks(_: dict[str, Any]) -> object:
    """Release and resume with the real handlers, the patch on, and note the order of what happens."""
    from sglang.srt.distributed import parallel_state
    from sglang.srt.managers.io_struct import ReleaseMemoryOccupationReqInput, ResumeMemoryOccupationReqInput

    from torpor_sglang.patches import nccl_communicators
    from torpor_sglang.patches.handlers import RELEASE

    calls: list[str] = []
    ranks = type("Ranks", (), {name: noting(calls, name) for name in ("check", "suspend", "resume")})
    vars(nccl_communicators)["NcclCommunicators"] = lambda **_: ranks()
    kind = resuming_class()
    nccl_communicators.PATCH.apply()
    saver = type("Saver", (), {name: noting(calls, name) for name in ("pause", "resume")})
    subject: Any = object.__new__(type("Subject", (kind,), {}))
    subject.offload_tags, subject.memory_saver_adapter, subject.scheduler = set(), saver(), None
    subject.is_fully_idle, subject.flush_cache, subject.tp_cpu_group = (lambda *_, **__: True), (lambda: None), None
    tags = ["kv_cache"]
    subject.release_memory_occupation(ReleaseMemoryOccupationReqInput(tags=tags))
    subject.resume_memory_occupation(ResumeMemoryOccupationReqInput(tags=tags))
    group = type("Group", (), {"unique_name": "tp:0", "pynccl_comm": object()})()
    parallel_state._register_group(group)
    return {
        "calls": calls,
        "named": list(nccl_communicators.named_communicators()),
        "handlers": [name for name in (RELEASE, RESUME) if hasattr(vars(kind)[name], "__wrapped__")],
    }


def noting(calls: list[str], name: str) -> Any:
    """Return a method that notes its name and its argument."""
    return lambda _, *words: calls.append(" ".join([name, *words]))


def ask_seeds_of_ranks(question: dict[str, Any]) -> object:
    """Seed again in several processes of one group, like tensor-parallel ranks; return the seed of each."""
    with tempfile.TemporaryDirectory() as folder:
        argv = [
            sys.executable,
            "-m",
            "tests.plugins.torpor_sglang.engine_questions",
            "--rank",
            f"{folder}/meet",
            str(question["ranks"]),
        ]
        ranks = [
            subprocess.Popen([*argv, str(rank)], stdout=subprocess.PIPE, text=True) for rank in range(question["ranks"])
        ]
        return [int(rank.communicate(timeout=120)[0].split()[-1]) for rank in ranks]


def be_rank(meeting_place: str, ranks: int, rank: int) -> None:
    """Join the group, resume like its ranks, and print the new seed of this rank."""
    import torch

    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting_place}", world_size=ranks, rank=rank)
    resume_kv_cache(getattr(resuming_class(), RESUME), torch.distributed.group.WORLD)
    print(torch.initial_seed(), flush=True)
    torch.distributed.destroy_process_group()


class KeyLayer:
    """A layer like SGLang's key check: it answers 401 before any route."""

    def __init__(self, app: object) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer 401."""
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 401, "headers": []})
            await send({"type": "http.response.body", "body": b""})


async def answer(app: Any, path: str, key: str) -> int:
    """Send one GET to an ASGI application; return the status."""
    status, _ = await answer_with_origin(app, path, key, "")
    return status


async def answer_with_origin(app: Any, path: str, key: str, origin: str) -> tuple[int, str]:
    """Send one GET to an ASGI application; return the status and the origin that may read the answer."""
    named = {b"torpor-key": key.encode(), b"origin": origin.encode()}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"localhost"), *(pair for pair in named.items() if pair[1])],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8000),
    }
    seen: list[tuple[int, str]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            allowed = dict(message["headers"]).get(b"access-control-allow-origin", b"")
            seen.append((message["status"], allowed.decode()))

    await app(scope, receive, send)
    return seen[0]


def main() -> None:
    """Answer until the input ends, or run as one of a question's ranks."""
    answers = keep_answers_apart()
    from torpor_sglang.patches import apply_all

    os.environ["SGLANG_USE_CPU_ENGINE"] = "1"
    apply_all(os.environ)
    if sys.argv[1:2] == ["--rank"]:
        os.dup2(answers.fileno(), 1)
        be_rank(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
        return
    answer_questions(globals(), answers)


if __name__ == "__main__":
    main()
