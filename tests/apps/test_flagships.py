"""The flagship app of each engine: what the real Modal client sends, and the import in a container."""

from __future__ import annotations

import ast
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import ROOT
from tests.apps.container_packages import link_container_packages
from tests.chat_server import ChatServer, answer
from tests.modal_plane import ModalPlane
from tests.modal_plane.plane import run
from tests.shown import ROWS
from torpor.platforms.modal.container_image import PYTHON_LINK

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.modal_plane import DeployedFunction

REPOSITORY = ROOT
MODEL, REVISION = "Qwen/Qwen3-8B-FP8", "220b46e3b2180893580a4454f21f22d3ebb187d3"
WEIGHTS = {"/vol/huggingface-cache": "huggingface-cache"}


@dataclass(frozen=True, kw_only=True)
class Flagship:
    """One app file, and the values that depend on its engine.

    Attributes:
        file: path in the repository.
        package: the package of the engine's plugin.
        version: the engine's version.
        base: the base image.
        env: the engine's variables in the image.
        compiles: the words of its compile command.
    """

    file: str
    package: str
    version: str
    base: str
    env: tuple[str, ...]
    compiles: tuple[str, ...]

    @property
    def module(self) -> str:
        """The module name of the file."""
        return Path(self.file).stem

    @property
    def name(self) -> str:
        """The name of the deployed app."""
        return self.module.replace("_", "-")


FLAGSHIPS = (
    Flagship(
        file="apps/qwen3_sglang.py",
        package="torpor_sglang",
        version="0.5.6.post2",
        base="lmsysorg/sglang:v0.5.6.post2-cu129-amd64-runtime",
        env=("SGLANG_DG_CACHE_DIR=/opt/torpor/kernels/deep_gemm", "SGLANG_ENABLE_JIT_DEEPGEMM=1"),
        compiles=("sglang.compile_deep_gemm", "--tp-size"),
    ),
    Flagship(
        file="apps/qwen3_vllm.py",
        package="torpor_vllm",
        version="0.33.0",
        base="vllm/vllm-openai:v0.33.0",
        env=(
            "DG_JIT_CACHE_DIR=/opt/torpor/kernels/deep_gemm",
            "VLLM_CACHE_ROOT=/opt/torpor/kernels/vllm",
            "VLLM_USE_DEEP_GEMM=1",
            "VLLM_SERVER_DEV_MODE=1",
        ),
        compiles=("--enable-sleep-mode", "--max-cudagraph-capture-size"),
    ),
)


SHOWN = [
    pytest.param(
        flagship,
        id=flagship.module,
        marks=pytest.mark.shows(ROWS[6], engine=flagship.module.removeprefix("qwen3_"), version=flagship.version),
    )
    for flagship in FLAGSHIPS
]


@pytest.fixture(scope="module", params=SHOWN)
def flagship(request: pytest.FixtureRequest) -> Flagship:
    """Each flagship in turn."""
    found: Flagship = request.param
    return found


@pytest.fixture(scope="module")
def plane(flagship: Flagship, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModalPlane]:
    """A control plane with the flagship, deployed by the command in its docstring."""
    with ModalPlane(tmp_path_factory.mktemp("home")) as started:
        finished = started.modal("deploy", flagship.file, cwd=REPOSITORY)
        assert finished.code == 0, finished.output
        yield started
        assert started.store.unknown_calls == []


@pytest.fixture
def server(flagship: Flagship, plane: ModalPlane) -> DeployedFunction:
    """The deployed class."""
    return plane.app(flagship.name).service("Server")


def test_the_app_has_at_most_60_lines_of_code(flagship: Flagship) -> None:
    """An app file holds values only; logic belongs in the framework and its plugins."""
    body = (REPOSITORY / flagship.file).read_text().split('"""', 2)[2]
    code = [line for line in body.splitlines() if line.strip() and not line.strip().startswith("#")]
    assert len(code) <= 60


def test_the_two_flagships_differ_only_in_the_engine() -> None:
    """Only the plugin, its import and the deployment's name differ, apart from comments and docstring."""
    sglang, vllm = (
        [line for line in (REPOSITORY / flagship.file).read_text().split('"""', 2)[2].splitlines() if "# " not in line]
        for flagship in FLAGSHIPS
    )
    assert len(sglang) == len(vllm)
    differing = [(one.strip(), other.strip()) for one, other in zip(sglang, vllm, strict=True) if one != other]
    assert differing == [
        ("from torpor_sglang import SGLang", "from torpor_vllm import VLLM"),
        ('name="qwen3-sglang",', 'name="qwen3-vllm",'),
        ('DeepGEMM(volume="deepgemm-cache"),', 'DeepGEMM(volume="deepgemm-cache", fast_warmup=True),'),
        (
            'SGLang(version="0.5.6.post2", cuda_graph_max_batch=1000, metrics=True),',
            'VLLM(version="0.33.0", cuda_graph_max_batch=1000, metrics=True),',
        ),
    ]


@pytest.mark.slow
def test_the_class_has_the_flagships_values(flagship: Flagship, plane: ModalPlane, server: DeployedFunction) -> None:
    """GPU, volume, snapshot flags, concurrency, port and timeouts arrive at the platform."""
    assert plane.app(flagship.name).objects == ("Server", "Server.*", "download")
    assert server.gpu == ("H100!", 1)
    assert server.volumes == WEIGHTS
    assert server.secrets == ()
    assert (server.memory_snapshot, server.gpu_snapshot) == (True, True)
    assert server.concurrency == (10, 1000)
    assert (server.definition.timeout_secs, server.definition.startup_timeout_secs) == (600, 4690)
    assert [(web.port, web.startup_timeout_s) for web in server.web_servers] == [(8000, 600)]
    assert set(plane.store.volumes) == {"huggingface-cache", "deepgemm-cache"}


@pytest.mark.slow
def test_the_image_is_the_engines_own_with_an_empty_entrypoint(flagship: Flagship, server: DeployedFunction) -> None:
    """The engine's entrypoint would start its own server; the version of the hub's client is not pinned."""
    layers = server.layers
    link = (
        (f"RUN {PYTHON_LINK}",) if flagship.package == "torpor_vllm" else ()
    )  # its image has no `python`, only `python3`
    assert layers[0].commands == (f"FROM {flagship.base}", *link)
    assert layers[1].commands == ("FROM base", "ENTRYPOINT []")
    assert not any("huggingface-hub" in run or "huggingface_hub" in run for layer in layers for run in layer.runs)


@pytest.mark.slow
def test_the_environment_is_in_the_image_before_the_steps(flagship: Flagship, server: DeployedFunction) -> None:
    """Kernel caches are on the image's disk and the hub cache on the volume; the hub is offline at serve time."""
    commands = [command for layer in server.layers for command in layer.commands]
    env = [command.removeprefix("ENV ") for command in commands if command.startswith("ENV ")]
    assert set(flagship.env) <= set(env)
    assert "HF_HUB_CACHE=/vol/huggingface-cache/hub" in env
    assert "HF_HUB_OFFLINE=1" in env
    assert "TORCHINDUCTOR_COMPILE_THREADS=1" in env
    first_step = next(at for at, command in enumerate(commands) if "buildstep.py --name" in command)
    assert all(at < first_step for at, command in enumerate(commands) if command.startswith("ENV "))


@pytest.mark.slow
def test_weights_are_fetched_before_kernels_are_compiled(flagship: Flagship, server: DeployedFunction) -> None:
    """The order of the plugins does not matter. Each step gets only what it needs."""
    steps = [layer for layer in server.layers if any("buildstep.py --name" in run for run in layer.runs)]
    fetch, compile_ = steps
    fetched = shlex.split(fetch.runs[0])
    assert fetched[:4] == ["python3", "/opt/torpor/buildstep.py", "--name", "fetch weights"]
    assert fetched[fetched.index("--sync") : fetched.index("--")] == ["--sync", "/vol/huggingface-cache"]
    assert {MODEL, REVISION, "/vol/huggingface-cache/hub"} <= set(fetched)
    assert (fetch.gpu, fetch.volumes, fetch.secrets) == ("", WEIGHTS, ())
    assert fetch.env["HF_HUB_OFFLINE"] == "0"
    compiled = shlex.split(compile_.runs[0])
    assert compiled[:4] == ["python3", "/opt/torpor/buildstep.py", "--name", "compile DeepGEMM kernels"]
    assert {*flagship.compiles, MODEL} <= set(compiled)
    assert (compile_.gpu, compile_.gpu_count) == ("H100!", 1)
    assert compile_.volumes == {**WEIGHTS, "/vol/deepgemm-cache": "deepgemm-cache"}


@pytest.mark.slow
def test_build_steps_run_files_of_an_earlier_layer(server: DeployedFunction) -> None:
    """Sources are mounted when a container starts, so a build step can only use files that an earlier layer copied."""
    there: dict[str, bytes] = {}
    for layer in server.layers:
        for line in layer.runs:
            used = [token for token in shlex.split(line) if token.startswith("/opt/torpor/") and token.endswith(".py")]
            assert set(used) <= set(there), line
        there |= layer.copied
    assert set(there) == {
        "/opt/torpor/buildstep.py",
        "/opt/torpor/scripts/torpor_hf_cache.download.py",
        "/opt/torpor/scripts/torpor_deepgemm.watch.py",
    }
    for name, content in there.items():
        compile(content, name, "exec")


@pytest.mark.slow
def test_sources_of_torpor_and_the_three_plugins_are_mounted(flagship: Flagship, server: DeployedFunction) -> None:
    """They include the launcher, the guard and the scripts of the preflight checks; all are Python files."""
    files = server.files
    packages = {"torpor", flagship.package, "torpor_deepgemm", "torpor_hf_cache"}
    assert {name.split("/")[2] for name in files} == {f"{flagship.module}.py", *packages}
    assert all(name.endswith(".py") for name in files)
    for name in ("torpor/build_steps/runner.py", f"{flagship.package}/serve.py", "torpor_hf_cache/download.py"):
        assert f"/root/{name}" in files
    assert any(name.startswith("/root/torpor/guard") for name in files)


@pytest.mark.slow
def test_exactly_the_modules_that_the_container_imports_are_mounted(
    flagship: Flagship, server: DeployedFunction
) -> None:
    """Commands, reports, scaffolds, tests and local snapshots are not mounted; every import of a mounted file is.

    If a new module is for the local platform only, add it to the list in `torpor.platforms.modal.sources`.
    """
    modules = {
        name.removeprefix("/root/").removesuffix(".py").removesuffix("/__init__").replace("/", "."): content
        for name, content in server.files.items()
    }
    parts = {".".join(module.split(".")[:2]) for module in modules}
    assert not parts & {
        f"torpor.{part}" for part in ("cli", "report", "scaffold", "serving", "snapshots", "testing", "doctor")
    }
    assert {"torpor.platforms.modal", "torpor.launcher.start", "torpor.guard.asgi", f"{flagship.package}.serve"} <= set(
        modules
    )
    missing = {
        (module, wanted)
        for module, content in modules.items()
        for wanted in imported_modules(content.decode())
        if wanted.startswith(("torpor.", "torpor_")) and wanted not in modules
    }
    assert missing == set()
    assert sum(map(len, server.files.values())) < 1_200_000


def imported_modules(source: str) -> set[str]:
    """Modules that a source imports at any level, except imports for type checkers."""
    tree = ast.parse(source)
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    nodes = [node for node in ast.walk(tree) if node not in typing_only]
    found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return found | {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}


@pytest.mark.slow
def test_the_download_function_fills_the_serving_volume(
    flagship: Flagship, plane: ModalPlane, server: DeployedFunction
) -> None:
    """It refills an emptied Volume, with the same image and volume and without a GPU."""
    download = plane.app(flagship.name).function("download")
    assert download.layers == server.layers
    assert (download.volumes, download.gpu) == (WEIGHTS, ("", 0))
    assert download.definition.timeout_secs >= 3600


@pytest.mark.slow
def test_deploying_again_builds_nothing(flagship: Flagship, plane: ModalPlane, server: DeployedFunction) -> None:
    """The plugins' values are reproducible: no layer depends on a clock, the order of a set, or a path of this machine."""
    before, built = server.layers, list(plane.store.built)
    finished = plane.modal("deploy", str(REPOSITORY / flagship.file), cwd=plane.home)
    assert finished.code == 0, finished.output
    assert plane.app(flagship.name).service("Server").layers == before
    assert plane.store.built == built
    assert not any(str(REPOSITORY) in command for layer in before for command in layer.commands)


LOOK = """
import importlib, json, sys
name, *sys.path[:0] = sys.argv[1:]
module = importlib.import_module(name)
print(json.dumps({
    "deployment": repr(module.deployment),
    "server": type(getattr(module, "Server")).__qualname__,
    "module": module.Server._get_user_cls().__module__,
    "modules": sorted({name.partition(".")[0] for name in sys.modules}),
}))
"""


@pytest.mark.slow
def test_a_clean_interpreter_imports_the_app_from_the_mounted_files(
    flagship: Flagship, server: DeployedFunction, tmp_path: Path
) -> None:
    """It has only what the container has, without package metadata and engine, and gets the same values."""
    server.write_files(tmp_path)
    packages = tmp_path / "packages"
    packages.mkdir()
    link_container_packages(packages)
    empty = tmp_path / "empty"
    empty.mkdir()
    seen = run(
        [sys.executable, "-I", "-S", "-c", LOOK, flagship.module, str(tmp_path / "root"), str(packages)],
        cwd=empty,
        env={"MODAL_IS_REMOTE": "1", "HOME": str(empty), "MODAL_CONFIG_PATH": str(empty / "none.toml")},
        timeout_s=60,
    )
    assert seen.code == 0, seen.output
    there = json.loads(seen.output)
    here = run(
        [sys.executable, "-c", LOOK, flagship.module, str(REPOSITORY / "apps")],
        cwd=empty,
        env=ModalPlane.clean_environment() | {"HOME": str(empty)},
        timeout_s=60,
    )
    assert here.code == 0, here.output
    assert there["deployment"] == json.loads(here.output)["deployment"]
    assert (there["server"], there["module"]) == ("Cls", flagship.module)
    assert not {"sglang", "vllm", "torch", "huggingface_hub", "typer", "pytest"} & set(there["modules"])


@pytest.mark.slow
def test_modal_run_sends_chats_to_the_running_server(flagship: Flagship, plane: ModalPlane) -> None:
    """It streams two chats with different system prompts and the served name; `--no-twice` and `--prompt` work."""
    with ChatServer([answer("Blue ", "light.", tokens=2), answer("The sea.", tokens=1)]) as chat:
        plane.serve_web_at(chat.url)
        twice = plane.modal("run", flagship.file, "--prompt", "Why blue?", cwd=REPOSITORY)
        once = plane.modal("run", flagship.file, "--no-twice", cwd=REPOSITORY)
    assert (twice.code, once.code) == (0, 0), twice.output + once.output
    assert "Blue light." in twice.output
    assert "The sea." in twice.output
    assert "time to first token" in twice.output
    assert len(chat.seen) == 3
    assert {seen.body["model"] for seen in chat.seen} == {MODEL}
    assert all(seen.body["stream"] is True for seen in chat.seen)
    first, second = (json.dumps(seen.body["messages"]) for seen in chat.seen[:2])
    assert first != second
    assert "Why blue?" in first


@pytest.mark.slow
def test_modal_run_of_the_download_reaches_the_container(flagship: Flagship, plane: ModalPlane) -> None:
    """The error about an emptied Volume names this command, `modal run APP::download`."""
    finished = plane.modal("run", f"{flagship.file}::download", cwd=REPOSITORY)
    assert finished.code != 0
    assert "download needs a container" in finished.output


@pytest.mark.slow
def test_python_sends_chats_to_the_deployed_server(flagship: Flagship, plane: ModalPlane) -> None:
    """`python APP` finds the class of the deployed app."""
    with ChatServer([answer("Deployed.")]) as chat:
        plane.serve_web_at(chat.url)
        assert plane.modal("deploy", flagship.file, cwd=REPOSITORY).code == 0
        asked = plane.python(flagship.file, "--no-twice", cwd=REPOSITORY)
    assert (asked.code, "Deployed." in asked.output) == (0, True), asked.output


@pytest.mark.slow
def test_python_reports_an_app_that_is_not_deployed(flagship: Flagship, tmp_path: Path) -> None:
    """The control plane has no such app."""
    with ModalPlane(tmp_path) as empty:
        asked = empty.python(flagship.file, cwd=REPOSITORY)
    assert asked.code == 1
    assert asked.output.startswith(f"error: '{flagship.name}' is not deployed")
