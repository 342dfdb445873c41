"""`torpor doctor`: what it checks, what it reports, and its exit code."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.command_line import torpor
from tests.snapshots.nvidia import FakeDriver, build
from tests.snapshots.small_snapshot import small_snapshot
from torpor import Adapter, Deployment, Model, Plugin
from torpor.doctor import capture_size
from torpor.doctor import machine as doctor
from torpor.lifecycle import Lifecycle
from torpor.snapshots.criu.program import PREFIX_VARIABLE
from torpor.snapshots.store.paths import LIBRARIES_VARIABLE
from torpor.testing import StandIn
from torpor.testing.broken_rules import contract_findings
from torpor_sglang import SGLang

if TYPE_CHECKING:
    from pathlib import Path

    from torpor.values.findings import Finding


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without CRIU, driver and programs, with a cache root of its own."""
    for name in ("cache", "bin", "libraries"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("TORPOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv(LIBRARIES_VARIABLE, str(tmp_path / "libraries"))
    monkeypatch.delenv(PREFIX_VARIABLE, raising=False)
    monkeypatch.setattr("torpor.snapshots.criu.program._SYSTEM_FOLDERS", ())
    return tmp_path


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built once, while PATH still has a compiler."""
    return build(tmp_path_factory.mktemp("nvidia"))


@pytest.fixture
def with_gpu(libraries: Path, bare: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    """A machine with a GPU, without CRIU."""
    return FakeDriver.install(libraries, bare / "machine", monkeypatch)


def deployment(gpu: str | None, model: str = "/no/such/model") -> Deployment:
    return Deployment(name="d", model=Model(path=model, served_name="m"), gpu=gpu, plugins=(StandIn(),))


def by_what(findings: tuple[Finding, ...]) -> dict[str, Finding]:
    return {finding.what: finding for finding in findings}


def test_missing_criu_is_an_error_with_an_app_and_a_warning_without_one(bare: Path) -> None:
    """The cure is `torpor snapshot setup`."""
    for asked, level in ((Lifecycle(deployment(None)), "error"), (None, "warning")):
        found = by_what(doctor.diagnose(asked))
        assert found["CRIU"].level == level
        assert "torpor snapshot setup" in found["CRIU"].cure


def test_an_adapter_whose_folder_is_not_here_is_an_error(bare: Path, tmp_path: Path) -> None:
    """The engine starts on this machine, so its preflight check would refuse it. A damaged folder is told with the app."""
    (tmp_path / "damaged").mkdir()
    adapters = {name: Adapter(path=str(tmp_path / name)) for name in ("gone", "damaged")}
    model = Model(path="/no/such/model", served_name="m", adapters=adapters)
    lifecycle = Lifecycle(Deployment(name="d", model=model, plugins=(StandIn(),)))
    found = [finding for finding in doctor.diagnose(lifecycle) if finding.what == "adapters"]
    assert [(one.level, "adapters['gone']: there is no folder" in one.seen) for one in found] == [("error", True)]


def test_without_a_gpu_it_says_that_gpu_snapshots_do_not_apply(bare: Path) -> None:
    """None in the deployment, or none on the machine if no app is named."""
    assert by_what(doctor.diagnose(Lifecycle(deployment(None))))["GPU"].seen == (
        "GPU snapshots do not apply: deployment 'd' uses none"
    )
    assert by_what(doctor.diagnose())["GPU"].seen == "GPU snapshots do not apply: this machine has none"


def test_a_deployment_with_a_gpu_on_a_machine_without_is_an_error(bare: Path) -> None:
    """No driver, and not the GPU that is named."""
    found = by_what(doctor.diagnose(Lifecycle(deployment("H200"))))
    assert found["GPU driver"].level == found["GPU"].level == "error"
    assert "no NVIDIA driver answers" in found["GPU driver"].seen
    assert "needs 1 x H200" in found["GPU"].seen


def test_an_old_driver_is_reported_with_the_needed_version(
    with_gpu: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """570 is the oldest that works."""
    monkeypatch.setenv("TORPOR_FAKE_DRIVER", "535.10")
    finding = by_what(doctor.diagnose(Lifecycle(deployment("H200"))))["GPU driver"]
    assert (finding.level, finding.seen) == ("error", "the NVIDIA driver is 535.10")
    assert "570" in finding.cure


def test_bytes_are_an_estimate_until_an_engine_runs(
    with_gpu: FakeDriver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The estimate uses the model's files; a shortage by an estimate is a warning."""
    (tmp_path / "model").mkdir()
    with (tmp_path / "model" / "m.safetensors").open("wb") as file:
        file.truncate(5_000_000_000)
    found = by_what(doctor.diagnose(Lifecycle(deployment("H200", str(tmp_path / "model")))))
    assert f"5.0 GB of weights in {tmp_path / 'model'}" in found["host memory"].seen
    assert "an estimate, as no engine runs" in found["room"].seen
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type(usage)(usage.total, usage.total - 1000, 1000))
    monkeypatch.setattr(capture_size, "available_bytes", lambda: 1000)
    found = by_what(doctor.diagnose(Lifecycle(deployment("H200", str(tmp_path / "model")))))
    assert found["room"].level == found["host memory"].level == "warning"
    assert found["room"].cure
    assert found["host memory"].cure


def test_an_estimate_counts_every_rank_and_leaves_out_kept_weights(with_gpu: FakeDriver, tmp_path: Path) -> None:
    """Two ranks take twice as much; weights in a file of their own are not written."""
    (tmp_path / "model").mkdir()
    with (tmp_path / "model" / "m.safetensors").open("wb") as file:
        file.truncate(5_000_000_000)
    seen = []
    for count, store in ((1, "saver"), (2, "saver"), (2, "file")):
        engine = SGLang(version="0.5.23", image="i", tensor_parallel=count, weights_store=store)  # type: ignore[arg-type]
        model = Model(path=str(tmp_path / "model"), served_name="m")
        asked = Deployment(name="d", model=model, gpu=f"H200:{count}", plugins=(engine,))
        seen.append(by_what(doctor.diagnose(Lifecycle(asked)))["room"].seen)
    wanted = [
        round((weights + count * (3.3e9 + (4022 << 20))) * 1.1 / 1e9, 1)
        for weights, count in ((5e9, 1), (5e9, 2), (0, 2))
    ]
    assert [f"{size} GB wanted" in text for size, text in zip(wanted, seen, strict=True)] == [True] * 3
    assert "6.6 GB for the processes of 2 ranks and 8.4 GB from 2 GPUs" in seen[1]
    assert "which stay outside of the snapshot" in seen[2]


HUB = Model(repo_id="owner/large", revision="0" * 40)


def of_the_hub() -> Deployment:
    return Deployment(name="d", model=HUB, gpu="H200", plugins=(StandIn(),))


def test_bytes_are_unknown_without_weights_engine_and_snapshot(
    with_gpu: FakeDriver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No other model's figure is used and no network is asked. Without an app there is no verdict."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    for asked in (of_the_hub(), deployment("H200")):
        found = by_what(doctor.diagnose(Lifecycle(asked)))
        assert found["host memory"].level == "warning"
        assert (
            f"what a snapshot of 'd' takes is unknown: the weights of {asked.model.source} are not"
            in found["host memory"].seen
        )
        assert "room" not in found
    monkeypatch.setattr(capture_size, "_running", lambda _: None)
    assert "torpor doctor APP shows what an app takes" in capture_size._unknown(None).seen


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"])
def test_weights_in_the_hubs_cache_count(
    with_gpu: FakeDriver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str
) -> None:
    """In each folder that the hub's client may use; during a download, the index says how many bytes there will be."""
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path / "h"))
    below = {"HF_HUB_CACHE": "", "HF_HOME": "hub", "XDG_CACHE_HOME": "huggingface/hub"}[variable]
    folder = tmp_path / "h" / below / "models--owner--large" / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    with (folder / "model-1.safetensors").open("wb") as file:
        file.truncate(7_000_000_000)
    (folder / "gone.safetensors").symlink_to("nowhere")
    assert f"7.0 GB of weights in {folder}" in by_what(doctor.diagnose(Lifecycle(of_the_hub())))["host memory"].seen
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 21_000_000_000}}))
    assert "21.0 GB of weights" in by_what(doctor.diagnose(Lifecycle(of_the_hub())))["host memory"].seen
    (folder / "model.safetensors.index.json").write_text("[1]")
    assert "7.0 GB of weights" in by_what(doctor.diagnose(Lifecycle(of_the_hub())))["host memory"].seen


def test_bytes_are_those_of_the_last_snapshot(with_gpu: FakeDriver, bare: Path) -> None:
    """They are measured, of this deployment."""
    folder = small_snapshot(bare / "cache" / "snapshots" / "d")
    assert (
        f"as much as the snapshot in {folder} took"
        in by_what(doctor.diagnose(Lifecycle(of_the_hub())))["host memory"].seen
    )


def test_a_target_that_cannot_be_written_is_an_error(bare: Path) -> None:
    """The default target, under the cache root."""
    (bare / "cache" / "snapshots").write_text("a file")
    found = by_what(doctor.diagnose(Lifecycle(deployment(None))))["target"]
    assert (found.level, "is not a folder" in found.seen) == ("error", True)
    assert "TORPOR_CACHE" in found.cure


def test_bytes_are_those_of_the_running_engine(with_gpu: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that Torpor started and that the driver lists; a shortage for it is an error."""
    env = {**os.environ, "TORPOR_REPLICA_ID": "0123456789abcdef"}
    with subprocess.Popen([sys.executable, "-c", "print('up', flush=True); input()"], env=env, stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as engine:  # fmt: skip
        assert engine.stdout is not None
        engine.stdout.readline()
        monkeypatch.setenv("TORPOR_FAKE_HOLDERS", f"{engine.pid}={4 * 10**9},17=999999999999")
        monkeypatch.setattr(capture_size, "available_bytes", lambda: 10**9)
        memory = by_what(doctor.diagnose(Lifecycle(deployment("H200"))))["host memory"]
        engine.kill()
    assert memory.level == "error"
    assert f"holds 4.0 GB on GPUs (pid {engine.pid})" in memory.seen
    assert "1.0 GB available, 4.4 GB wanted" in memory.seen


@pytest.mark.slow
def test_plugins_are_checked_against_the_contract() -> None:
    """Each broken rule is an error, with what was seen, the rule and what to do; kept rules are one line."""

    class Bare(Plugin):  # no dataclass, and no hook
        plugin_name = "bare"

    made = Deployment(name="d", model=Model(path="/", served_name="m"), plugins=(Bare(), StandIn()))
    found = list(contract_findings(made))
    assert {(finding.level, finding.what) for finding in found} == {("error", "contract")}
    hooks = next(finding for finding in found if "Bare implements no hook" in finding.seen)
    assert hooks.seen.startswith("plugin bare: ")
    assert " Rule: a plugin implements at least one of " in hooks.seen
    assert hooks.cure.startswith("override the hook that you need")
    (kept,) = contract_findings(deployment(None))
    assert (kept.level, kept.seen) == ("ok", "every rule is kept by standin")


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return torpor("doctor", *words)


@pytest.mark.slow
def test_the_exit_code_is_that_of_the_worst_finding(bare: Path, tmp_path: Path) -> None:
    """2 with an app that cannot be captured here, 1 without an app; as a table and as JSON."""
    app = tmp_path / "app.py"
    app.write_text(
        "from torpor import Deployment, Model\nfrom torpor.testing import StandIn\n"
        "deployment = Deployment(name='d', model=Model(path='/', served_name='m'), gpu='H200', plugins=(StandIn(),))\n"
    )
    shown = run(str(app))
    assert (shown.returncode, shown.stderr) == (2, "")
    assert "error    GPU driver   no NVIDIA driver answers" in shown.stdout
    assert "-> install driver 570 or newer" in shown.stdout
    told = run(str(app), "--json")
    content = json.loads(told.stdout)
    assert told.returncode == content["exit_code"] == 2
    assert {finding["level"] for finding in content["findings"]} >= {"error"}
    assert run("--json").returncode == 1


@pytest.mark.criu
def test_a_machine_that_lacks_nothing_has_only_ok_findings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """This machine, without a GPU: a real small dump and restore."""
    from tests.snapshots.conftest import refuse
    from torpor.platforms.local.criu_backend import CriuBackend

    if reasons := CriuBackend().available():
        refuse("; ".join(reasons))
    findings = doctor.diagnose(Lifecycle(deployment(None)))
    assert {finding.level for finding in findings} == {"ok"}
    assert any("a small dump and restore works here" in finding.seen for finding in findings)
    assert run().returncode in (0, 1)  # 1 where this machine has a GPU that lacks something


CHECKED_APP = """
import sys
from torpor import BuildPlan, Deployment, Model, Plugin, Preflight, hookimpl
from torpor.testing import StandIn

class Fetched(Plugin):
    plugin_name = "fetched"

    @hookimpl
    def compile_kernels(self, deployment):
        look = "import os,sys; sys.exit('byte 7 differs' if os.environ.get('TORPOR_RECHECK') == '1' and {damaged} else 0)"
        check = Preflight(name="weights", argv=(sys.executable, "-c", look), timeout_s=60, cure="Fetch them again.")
        return BuildPlan(preflight=(check,))

deployment = Deployment(name="d", model=Model(path="/m", served_name="m"), plugins=(Fetched(), StandIn()))
"""


@pytest.mark.slow
@pytest.mark.fault("a bit of the fetched weights changes on the disk", area="fetched weights", outcome="refused")
def test_a_recheck_reads_every_downloaded_file(bare: Path) -> None:
    """Damage that changes neither time nor size is an error of the check, with its cure; a plain doctor does not find it."""
    app = bare / "app.py"
    for damaged in (True, False):
        app.write_text(CHECKED_APP.replace("{damaged}", str(damaged)))
        plain, told = (json.loads(run(str(app), "--json", *words).stdout) for words in ((), ("--recheck",)))
        assert [finding for finding in plain["findings"] if finding["what"] == "weights"] == []
        (found,) = [finding for finding in told["findings"] if finding["what"] == "weights"]
        if damaged:
            assert (found["level"], found["cure"], told["exit_code"]) == ("error", "Fetch them again.", 2)
            assert "byte 7 differs" in found["seen"]
        else:
            assert (found["level"], found["seen"]) == ("ok", "all files were read and match")
    without = run("--recheck")
    assert (without.returncode, "torpor doctor APP --recheck" in without.stderr) == (2, True)


MODAL_APP = """
import modal
from torpor import Deployment, ImagePatch, Model, Plugin, hookimpl
from torpor.testing import StandIn

class Base(Plugin):
    plugin_name = "base"

    @hookimpl
    def prepare_image(self, deployment):
        return ImagePatch(base="registry.example/engine:1")

deployment = Deployment(name="d", model=Model(path="/m", served_name="m"), gpu="H200", plugins=(Base(), StandIn()))
app = modal.App("d")
"""


@pytest.mark.slow
def test_an_app_is_checked_for_the_platform_it_is_meant_for(bare: Path, tmp_path: Path) -> None:
    """For Modal if it has a modal.App and this machine lacks its GPU; --for overrides it; the output says which."""
    app = tmp_path / "app.py"
    app.write_text(MODAL_APP)
    for words, platform, machine in (
        ((), "modal", False),
        (("--for", "modal"), "modal", False),
        (("--for", "here"), "here", True),
    ):
        told = json.loads(run(str(app), "--json", *words).stdout)
        by = {finding["what"]: finding for finding in told["findings"]}
        assert told["for"] == platform
        assert ("GPU driver" in by, "CRIU" in by, "Modal" in by) == (machine, machine, not machine)
    app.write_text(MODAL_APP.replace('gpu="H200", ', ""))
    told = json.loads(run(str(app), "--json").stdout)
    assert told["for"] == "here"
    assert told["findings"][0]["seen"].startswith(
        "checked for this machine (this machine has what the app needs (no GPU))"
    )


@pytest.mark.slow
def test_an_app_that_modal_cannot_render_ends_with_2(bare: Path, tmp_path: Path) -> None:
    """It has no base image; no account is needed to find that. An unknown platform ends with 2, too."""
    app = tmp_path / "app.py"
    app.write_text(MODAL_APP.replace("(Base(), StandIn())", "(StandIn(),)"))
    told = run(str(app), "--for", "modal")
    assert (told.returncode, told.stderr) == (2, "")
    assert "error    Modal" in told.stdout
    assert "has no base image" in " ".join(told.stdout.split())
    for words, message in (
        ((str(app), "--for", "elsewhere"), "allowed are modal and here"),
        (("--for", "here"), "name the app"),
    ):
        wrong = run(*words)
        assert (wrong.returncode, message in " ".join(wrong.stderr.split())) == (2, True)
