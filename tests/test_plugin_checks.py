"""`Plugin.check`: every command, and the import of a Modal app, calls it before anything takes time."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import pytest
from typing_extensions import override

from tests.test_lifecycle import example_of
from torpor import ConfigurationError, Deployment, Finding, Model, Plugin, plugin_checks
from torpor.engine_plugins.gpus import ParallelFlags, gpus_needed
from torpor.errors import TorporError
from torpor.platforms.local.server import LocalServer
from torpor.plugin_checks import accepted, plugin_findings, tell_warnings
from torpor.testing import StandIn
from torpor_deepgemm import DeepGEMM
from torpor_fast_load import FastLoad
from torpor_hf_cache import HFCache
from torpor_sglang import SGLang
from torpor_vllm import VLLM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

HUB = Model(repo_id="Qwen/Qwen3-8B-FP8", revision="220b46e3b2180893580a4454f21f22d3ebb187d3")


@dataclass(frozen=True, kw_only=True)
class Choosy(Plugin):
    """A plugin with given findings."""

    plugin_name: ClassVar[str] = "choosy"
    level: str = "warning"

    @override
    def check(self, deployment: Deployment) -> Iterator[Finding]:
        yield Finding(level=self.level, what="port", seen=f"port {deployment.port} is odd", cure="take another")  # type: ignore[arg-type]


def deploy(*plugins: object, **fields: object) -> Deployment:
    """A deployment of the plugins, with the stand-in if none of them launches an engine."""
    engines = () if any(isinstance(plugin, SGLang | VLLM) for plugin in plugins) else (StandIn(),)
    return Deployment(**{"name": "tiny", "model": HUB, "plugins": (*plugins, *engines), **fields})  # type: ignore[arg-type]


def newer(**options: object) -> SGLang:
    """A version whose NCCL can suspend its communicators."""
    return SGLang(version="0.5.23", image="engine/image:v1", **options)  # type: ignore[arg-type]


def errors_of(deployment: Deployment) -> list[str]:
    """The errors that the checks find, with the plugins' names."""
    return [
        f"{found.plugin}: {found.seen} -> {found.cure}"
        for found in plugin_findings(deployment)
        if found.level == "error"
    ]


def test_findings_carry_the_plugins_name() -> None:
    """In the deployment's order. Errors refuse the deployment; warnings are passed on."""
    assert plugin_findings(deploy(Choosy())) == (
        Finding(level="warning", what="port", seen="port 8000 is odd", cure="take another", plugin="choosy"),
    )
    assert [found.plugin for found in accepted(deploy(Choosy()))] == ["choosy"]
    assert accepted(deploy(Choosy(level="ok"))) == ()
    with pytest.raises(
        ConfigurationError,
        match=r"'tiny' cannot work as it is. Plugin 'choosy': port: port 8000 is odd: take another\.",
    ):
        accepted(deploy(Choosy(level="error")))


def test_the_example_of_check_can_be_copied() -> None:
    """Unchanged from the docstring."""
    found = plugin_findings(deploy(example_of("check")))
    assert [(one.level, one.plugin, one.what) for one in found] == [("error", "example", "GPU")]
    assert plugin_findings(deploy(example_of("check"), gpu="H100")) == ()


def _check(body: Callable[..., object]) -> object:
    return type("Broken", (Plugin,), {"plugin_name": "broken", "check": body})()


def _raises(self: object, deployment: Deployment) -> Iterable[Finding]:
    raise LookupError(deployment.name)


def _leaves(self: object, deployment: Deployment) -> Iterable[Finding]:
    sys.exit(0)


async def _waits(self: object, deployment: Deployment) -> Iterable[Finding]:
    return ()


def _fails_late(self: object, deployment: Deployment) -> Iterator[Finding]:
    yield Finding(level="ok", what="a", seen="b")
    raise LookupError("late")


def _never_ends(self: object, deployment: Deployment) -> Iterator[Finding]:
    while True:
        yield Finding(level="ok", what="a", seen="b")


def _no_level(self: object, deployment: Deployment) -> Iterable[Finding]:
    return (Finding(level="bad", what="a", seen="b"),)  # type: ignore[arg-type]  # the mistake


@pytest.mark.fault("a plugin's check raises, or returns what is no finding", area="plugins' checks", outcome="refused")
@pytest.mark.parametrize(
    ("body", "says"),
    [
        (_raises, "its check raised LookupError: tiny"),
        (_leaves, "its check called sys.exit(0)"),
        (_waits, "its check is an async def, which nobody awaits"),
        (_fails_late, "its check raised LookupError: late"),
        (_never_ends, "its check gave more than 1000 findings"),
        (lambda self, deployment: None, "its check returned None"),  # noqa: ARG005
        (lambda self, deployment: True, "its check returned True, a bool"),  # noqa: ARG005
        (lambda self, deployment: "no GPU", "its check returned 'no GPU', a str"),  # noqa: ARG005
        (lambda self, deployment: ["no GPU"], "its check gave 'no GPU', a str, in place of a finding"),  # noqa: ARG005
        (lambda self: (), "its check raised TypeError"),  # noqa: ARG005
        (_no_level, "Finding.level is 'bad'"),
    ],
    ids=lambda value: getattr(value, "__name__", "") or str(value)[:30],
)
def test_a_check_that_fails_is_an_error_that_names_the_plugin(body: Callable[..., object], says: str) -> None:
    """The message says what a check has to do."""
    deployment = deploy(_check(body), Choosy())
    assert [found.plugin for found in plugin_findings(deployment)] == ["broken", "choosy"]
    with pytest.raises(ConfigurationError, match="Plugin 'broken': check: ") as caught:
        accepted(deployment)
    assert says in str(caught.value)
    assert "fix the plugin's check" in str(caught.value)


@pytest.mark.fault("a plugin's check hangs", area="hooks", outcome="refused")
@pytest.mark.parametrize("stubborn", [False, True])
def test_a_check_that_hangs_is_an_error_that_names_the_plugin(monkeypatch: pytest.MonkeyPatch, stubborn: bool) -> None:
    """Even if it catches the first interruption. The other plugins are checked; signal handlers are restored."""
    monkeypatch.setattr(plugin_checks, "_DEADLINE_S", 0.1)
    monkeypatch.setattr(plugin_checks, "_AGAIN_S", 0.1)

    def hangs(self: object, deployment: Deployment) -> Iterable[Finding]:
        if stubborn:
            with contextlib.suppress(BaseException):
                time.sleep(30)
        time.sleep(30)
        return ()

    handler, began = signal.getsignal(signal.SIGALRM), time.monotonic()
    findings = plugin_findings(deploy(_check(hangs), Choosy()))
    assert [(found.plugin, found.seen) for found in findings] == [
        ("broken", "its check did not return within 0.1 s"),
        ("choosy", "port 8000 is odd"),
    ]
    assert time.monotonic() - began < 25
    assert signal.getsignal(signal.SIGALRM) is handler
    with pytest.raises(
        ConfigurationError, match=r"Plugin 'broken': check: its check did not return within 0.1 s: fix "
    ):
        accepted(deploy(_check(hangs)))


def test_a_timer_that_ran_before_a_check_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another timer with SIGALRM, such as a test runner's."""
    before = signal.setitimer(signal.ITIMER_REAL, 100)
    try:
        assert plugin_findings(deploy(Choosy()))
        assert 90 < signal.getitimer(signal.ITIMER_REAL)[0] <= 100
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before)


def test_an_unrelated_check_method_is_not_called() -> None:
    """A class that does not derive from `Plugin` may have a `check` without a deployment argument. With one, it is called."""

    class Free:
        plugin_name = "free"

        def check(self, folder: str) -> str:
            return folder

    class Asked(Free):
        plugin_name = "asked"

        def check(self, deployment: Deployment) -> tuple[Finding, ...]:  # type: ignore[override]
            return (Finding(level="warning", what="name", seen=deployment.name),)

    assert plugin_findings(deploy(Free())) == ()
    assert [found.plugin for found in plugin_findings(deploy(Asked()))] == ["asked"]


@pytest.mark.fault("an engine takes more or fewer GPUs than the deployment has", area="GPUs", outcome="refused")
@pytest.mark.parametrize(
    ("engine", "gpu", "says"),
    [
        (SGLang(tensor_parallel=2), "H100!", "SGLang takes 2 GPUs"),
        (SGLang(tensor_parallel=2), None, "SGLang takes 2 GPUs"),
        (
            VLLM(tensor_parallel=4),
            "H100:2",
            "VLLM takes 4 GPUs (tensor_parallel, and what extra_args multiply it by), and",
        ),
        (
            SGLang(),
            "H100!:2",
            "'H100!:2', 2 GPUs, and SGLang takes 1 GPU: the other one would be paid for and stay idle",
        ),
        (
            VLLM(),
            "H100:8",
            "the other 7 would be paid for and stay idle -> write gpu='H100', or set VLLM(tensor_parallel=8)",
        ),
        (SGLang(extra_args=("--pp-size", "2")), "H100", "write gpu='H100:2'"),
        (SGLang(extra_args=("--data-parallel-size=2",), tensor_parallel=2), "H100:2", "SGLang takes 4 GPUs"),
        (VLLM(extra_args=("--pipeline-parallel-size", "2"), tensor_parallel=2), "H100:2", "VLLM takes 4 GPUs"),
        (VLLM(extra_args=("--pipeline_parallel_size=2",)), "H100", "VLLM takes 2 GPUs"),
        (SGLang(device="cpu"), "H100", "SGLang.device is 'cpu': the GPU would be paid for and stay idle"),
    ],
)
def test_a_wrong_number_of_gpus_is_an_error(engine: Plugin, gpu: str | None, says: str) -> None:
    """Too many would cost money; with too few the engine would fail."""
    (told,) = errors_of(deploy(engine, gpu=gpu, gpu_snapshot=False))
    assert says in told


@pytest.mark.parametrize(
    ("engine", "gpu"),
    [
        (SGLang(), "H100!"),
        (SGLang(tensor_parallel=2), "H100!:2"),
        (SGLang(device="cpu"), None),
        (SGLang(tensor_parallel=2, extra_args=("--pp-size", "2")), "H100:4"),
        (SGLang(tensor_parallel=2, extra_args=("--dp-size", "2", "--enable-dp-attention")), "H100:2"),
        (SGLang(tensor_parallel=2, extra_args=("--ep-size", "2")), "H100:2"),
        (VLLM(tensor_parallel=2, extra_args=("--enable-expert-parallel",)), "H200:2"),
        (VLLM(extra_args=("--pipeline-parallel-size", "4")), "H200:4"),
    ],
)
def test_as_many_gpus_as_the_engine_takes_are_right(engine: Plugin, gpu: str | None) -> None:
    """Parallelism inside the model's GPUs needs no further ones."""
    assert plugin_findings(replace(deploy(engine, gpu=gpu), gpu_snapshot=False)) == ()


@pytest.mark.parametrize(
    ("engine", "gpu", "flags"),
    [
        (newer(tensor_parallel=2), "H100:2", ""),
        (newer(extra_args=("--ep-size", "2")), "H100", ""),
        (newer(tensor_parallel=2, extra_args=("--pp-size", "1")), "H100:2", ""),
        (newer(tensor_parallel=2, extra_args=("--pp-size", "2")), "H100:4", "--pp-size"),
        (newer(tensor_parallel=2, extra_args=("--dp-size=2",)), "H100:4", "--dp-size"),
        (
            newer(tensor_parallel=2, extra_args=("--dp-size", "2", "--enable-dp-attention", "--ep", "2")),
            "H100:2",
            "--dp-size, --ep-size, --enable-dp-attention",
        ),
        (newer(tensor_parallel=2, extra_args=("--moe-a2a-backend", "deepep")), "H100:2", "--moe-a2a-backend"),
        (VLLM(tensor_parallel=2, extra_args=("--enable-expert-parallel",)), "H200:2", "--enable-expert-parallel"),
        (VLLM(extra_args=("--pipeline-parallel-size", "4")), "H200:4", "--pipeline-parallel-size"),
    ],
)
def test_parallelism_that_no_snapshot_was_tried_with_is_a_warning(engine: Plugin, gpu: str, flags: str) -> None:
    """Only where several GPUs go into one snapshot, and never for tensor parallelism alone. Some of it is an error as well."""
    found = [one for one in plugin_findings(deploy(engine, gpu=gpu)) if one.level == "warning"]
    assert [(one.level, one.what) for one in found] == ([("warning", "GPUs")] if flags else [])
    for one in found:
        assert (
            f".extra_args has {flags}: snapshots of several GPUs were tried with tensor parallelism alone" in one.seen
        )
        assert "Deployment.gpu_snapshot=False" in one.cure


def test_a_gpu_engine_without_a_gpu_is_a_warning() -> None:
    """It starts on a user's own machine, but a snapshot would hold no GPU memory."""
    (found,) = plugin_findings(deploy(SGLang()))
    assert (found.level, found.plugin) == ("warning", "sglang")
    assert "Deployment.gpu is None" in found.seen


@pytest.mark.parametrize(
    ("words", "needed"),
    [
        ((), 2),
        (("--pp", "3"), 2),
        (("--pp-size", "3"), 6),
        (("--pp-size=3", "--pp-size", "1"), 2),
        (("--pp-size",), 2),
        (("--pp-size", "x"), 2),
        (("--pp-size", "0"), 2),
        (("--pp-size", "9" * 50), 2),
        (("--pipeline-par", "3"), 6),
        (("--copies", "4"), 8),
        (("--copies", "4", "--shared"), 2),
    ],
)
def test_gpus_are_counted_from_flags(words: tuple[str, ...], needed: int) -> None:
    """The last flag counts, as in argparse. The engine itself refuses an invalid number."""
    flags = ParallelFlags(stages=(("--pp-size", "--pipeline-parallel"),), data=(("--copies",),), shared=("--shared",))
    assert gpus_needed(2, words, flags) == needed


@pytest.mark.parametrize(
    ("plugins", "fields", "level", "says"),
    [
        ((DeepGEMM(), SGLang(device="cpu")), {}, "error", "deepgemm: DeepGEMM has no kernels for Deployment.gpu None"),
        ((DeepGEMM(), SGLang()), {"gpu": "RTX4090"}, "error", "DeepGEMM has no kernels for Deployment.gpu 'RTX4090'"),
        ((DeepGEMM(), SGLang()), {"gpu": "A100-80GB"}, "error", "DeepGEMM has no kernels"),
        (
            (DeepGEMM(), StandIn()),
            {"gpu": "H100"},
            "error",
            "'standin' of deployment 'tiny' has no kernel compile command",
        ),
        (
            (DeepGEMM(fast_warmup=True), SGLang()),
            {"gpu": "H100"},
            "error",
            "SGLang 0.5.6.post2 compiles every batch shape",
        ),
        ((FastLoad(), SGLang()), {"gpu": "H100"}, "error", "fast_load: FastLoad finds no loader"),
        ((FastLoad(), SGLang(device="cpu")), {}, "error", "fast_load: FastLoad finds no loader"),
        (
            (HFCache(), StandIn()),
            {"model": Model(path="/m")},
            "warning",
            "hf_cache: Model.path is '/m', so there is nothing",
        ),
    ],
)
def test_bundled_plugins_check_the_whole_deployment(
    plugins: tuple[Plugin, ...], fields: dict[str, object], level: str, says: str
) -> None:
    """They find what no single option shows."""
    deployment = deploy(**{"plugins": plugins, **fields})
    told = [f"{found.plugin}: {found.seen}" for found in plugin_findings(deployment) if found.level == level]
    assert any(says in line for line in told), told


APP = """
from dataclasses import dataclass
from torpor import Deployment, Finding, Model, Plugin
from torpor.testing import StandIn

@dataclass(frozen=True, kw_only=True)
class Choosy(Plugin):
    plugin_name = "choosy"

    def check(self, deployment):
        yield Finding(level="{level}", what="port", seen="it is odd", cure="take another")

deployment = Deployment(name="tiny", model=Model(path="/m", served_name="m"), plugins=(Choosy(), StandIn()), port={port})
"""


def torpor(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run one of Torpor's commands."""
    return subprocess.run(
        [sys.executable, "-m", "torpor.cli", *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=folder,
    )


@pytest.mark.slow
@pytest.mark.fault("a plugin's check finds an error", area="plugins' checks", outcome="refused")
def test_every_command_that_starts_or_plans_refuses_an_error(tmp_path: Path, free_port: int) -> None:
    """Before anything is built or started: plan, doctor, up, snapshot create, bench."""
    (tmp_path / "app.py").write_text(APP.format(level="error", port=free_port))
    commands = (
        ("plan", "app.py"),
        ("plan", "app.py", "--json"),
        ("up", "app.py", "--ask", "Hello."),
        ("up", "app.py", "--snapshot", str(tmp_path / "kept")),
        ("snapshot", "create", "app.py", str(tmp_path / "kept")),
        ("bench", "app.py", "--backend", "standby"),
    )
    for words in commands:
        done = torpor(*words, folder=tmp_path)
        assert done.returncode == 2, (words, done.stderr)
        assert "Plugin 'choosy': port: it is odd: take another" in " ".join(done.stderr.split()), (words, done.stderr)
        assert done.stdout == ""
    done = torpor("doctor", "app.py", "--json", folder=tmp_path)
    assert done.returncode == 2
    assert {
        "level": "error",
        "what": "port",
        "seen": "it is odd",
        "cure": "take another",
        "plugin": "choosy",
    } in json.loads(done.stdout)["findings"]


@pytest.mark.slow
def test_a_warning_is_shown_and_stops_nothing(tmp_path: Path, free_port: int) -> None:
    """A plan lists it among its warnings; other commands log it once."""
    (tmp_path / "app.py").write_text(APP.format(level="warning", port=free_port))
    plan = torpor("plan", "app.py", folder=tmp_path)
    assert (plan.returncode, "  port [choosy]: it is odd\n      -> take another\n" in plan.stdout) == (0, True)
    up = torpor("up", "app.py", "--ask", "Hello.", folder=tmp_path)
    assert up.returncode == 0, up.stderr
    assert up.stderr.count("it is odd") == 1


def test_a_local_server_refuses_a_deployment_that_cannot_work(tmp_path: Path) -> None:
    """Also when a Python program uses the platform."""
    with pytest.raises(ConfigurationError, match="Plugin 'choosy'"):
        LocalServer(deploy(Choosy(level="error")), root=tmp_path)


def test_a_warning_is_logged_once(capsys: pytest.CaptureFixture[str]) -> None:
    """A benchmark makes many servers of one deployment."""
    deployment = deploy(Choosy(), port=8123)
    for _ in range(3):
        tell_warnings(deployment)
    written = capsys.readouterr()
    assert (written.out + written.err).count("port 8123 is odd") == 1


def test_an_error_in_an_engines_gpus_is_an_error_of_the_launch_too() -> None:
    """The launch checks it again, before it starts anything."""
    from torpor import Lifecycle, Recipe
    from torpor.recipe import ImagePatch

    with pytest.raises(TorporError, match=r"takes 2 GPUs, but Deployment\.gpu is None"):
        Lifecycle(deploy(SGLang(tensor_parallel=2))).launch(Recipe(image=ImagePatch()))
