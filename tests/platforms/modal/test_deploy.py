"""What the real, unmodified client sends to a control plane when it deploys a `SnapshotServer`."""

from __future__ import annotations

import random
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.chat_server import ChatServer, answer
from tests.modal_plane import ModalPlane

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.modal_plane import DeployedFunction, Finished

pytestmark = pytest.mark.slow  # each test runs processes of its own

PLUGIN = '''
"""A third party's plugin: a package of its own, next to the app."""
from dataclasses import dataclass
from torpor import BuildPlan, BuildStep, EnginePlugin, ImagePatch, hookimpl, start_engine
from torpor.recipe import Cache

@dataclass(frozen=True, kw_only=True)
class Toy(EnginePlugin):
    plugin_name = "toy"
    secret: str = ""

    @hookimpl
    def prepare_image(self, deployment):
        return ImagePatch(base="registry.example/toy:1", apt=("git", "numactl"), pip=("nvidia-nccl-cu13==2.30.7", "left-pad>=1"),
                          env={"QUOTED": "a b$c'd"}, volumes={"/vol/weights": "toy-weights"})

    @hookimpl
    def compile_kernels(self, deployment):
        compile_ = BuildStep(name="compile", argv=("cc", "it's; $(rm)"), order=20, timeout_s=60, gpu=True,
                             volumes={"/vol/kernels": "toy-kernels"}, outputs=("/opt/torpor/kernels",),
                             cache=Cache(volume_dir="/vol/kernels/toy", image_dir="/opt/torpor/kernels", key=("1", "--flag")))
        fetch = BuildStep(name="fetch", argv=("to", "/vol/weights"), script="toy_plugin.fetch", order=10, timeout_s=30,
                          retries=1, env={"FAST": "1"}, volumes={"/vol/weights": "toy-weights"},
                          secrets=(self.secret,) if self.secret else ())
        return BuildPlan(steps=(compile_, fetch))

    @hookimpl
    def launch(self, deployment, recipe):
        return start_engine(("toy-engine",))
'''

APP = """
import modal
from toy_plugin import Toy
from torpor import Deployment, Model, Scaling, client
from torpor.platforms.modal import (SnapshotServer, cls_options, concurrency, deployed_url, download_options,
                                    fill_volumes, web_url)

deployment = Deployment(name="toy", model=Model(path="/models/toy"), plugins=(Toy(secret=SECRET),), gpu="L4:2",
                        port=9000, scaling=Scaling(target_concurrency=2, max_concurrency=5, max_containers=3),
                        region="eu-west", startup_timeout_s=120)
app = modal.App(deployment.name)

@app.cls(**cls_options(deployment))
@modal.concurrent(**concurrency(deployment))
class Server(SnapshotServer, deployment=deployment):
    pass

@app.function(**download_options(deployment))
def download() -> None:
    fill_volumes(deployment)

@app.local_entrypoint()
def test(prompt: str = client.PROMPT, twice: bool = True, timeout: int = 600) -> None:
    with client.errors_told():
        client.ask_in_turn(web_url(Server), model="toy", prompt=prompt, twice=twice, timeout_s=timeout)

if __name__ == "__main__":
    client.main(lambda: deployed_url(deployment), model="toy")
"""


ONE_GPU = APP.replace('gpu="L4:2"', 'gpu="L4"')


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ModalPlane]:
    """An empty control plane."""
    home = tmp_path / "home"
    home.mkdir()
    with ModalPlane(home) as started:
        yield started
        assert started.store.unknown_calls == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the app file and the third-party plugin next to it."""
    return make_folder(tmp_path / "app")


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModalPlane]:
    """A control plane to which the app was deployed as it stands; its tests only read."""
    base = tmp_path_factory.mktemp("deployed")
    home = base / "home"
    home.mkdir()
    with ModalPlane(home) as started:
        deploy(started, make_folder(base / "app"))
        yield started
        assert started.store.unknown_calls == []


def make_folder(folder: Path) -> Path:
    package = folder / "toy_plugin"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(PLUGIN)
    (package / "fetch.py").write_text("print('fetching')\n")
    (package / "notes.txt").write_text("not code\n")
    for name in ("tests/test_toy.py", "tests/__init__.py", "conftest.py", ".hidden/stray.py", "inner/test_more.py"):
        (package / name).parent.mkdir(exist_ok=True)
        (package / name).write_text("")
    write_app(folder)
    return folder


def write_app(folder: Path, *, secret: str = "", source: str = APP) -> None:
    (folder / "toy_app.py").write_text(source.replace("SECRET", repr(secret)))


def deploy(plane: ModalPlane, folder: Path) -> DeployedFunction:
    finished = plane.modal("deploy", "toy_app.py", cwd=folder)
    assert finished.code == 0, finished.output
    return plane.app("toy").service("Server")


def test_a_deployment_reaches_the_platform_as_it_was_written(deployed: ModalPlane) -> None:
    """Modal's messages carry the names, numbers and flags of the class."""
    server = deployed.app("toy").service("Server")
    assert deployed.app("toy").objects == ("Server", "Server.*", "download")
    assert server.gpu == ("L4", 2)
    assert server.volumes == {"/vol/weights": "toy-weights"}
    assert server.secrets == ()
    assert (server.memory_snapshot, server.gpu_snapshot) == (True, True)
    assert server.concurrency == (2, 5)
    assert server.regions == ("eu-west",)
    assert server.definition.autoscaler_settings.max_containers == 3
    assert (server.definition.timeout_secs, server.definition.startup_timeout_secs) == (120, 3130)
    assert server.methods == ("serve",)
    (web,) = server.web_servers
    assert (web.method, web.port, web.startup_timeout_s) == ("serve", 9000, 120)
    assert (web.label, web.domains, web.proxy_auth) == ("", (), False)
    assert (server.definition.module_name, server.definition.implementation_name) == ("toy_app", "Server.*")


@pytest.mark.slow
def test_modals_own_options_reach_the_platform(plane: ModalPlane, folder: Path) -> None:
    """The real client sends the web server's options, the region, the disk, and a secret that the deployment allows."""
    options = (
        'modal=ModalOptions(requires_proxy_auth=True, label="toy-llm", custom_domains=("llm.example.com",), cloud="oci", '
        'routing_region="eu-west", nonpreemptible=True, cpu=2.5, memory_mib=4096, ephemeral_disk_mib=600000, '
        'secrets=("otel",), writable_volumes=("toy-weights",), retries=2), secrets_in_snapshot="warn",'
    )
    source = APP.replace("import Deployment,", "import Deployment, ModalOptions,").replace('region="eu-west",', options)
    write_app(
        folder,
        source=source.replace("cls(**cls_options(deployment))", 'cls(**{**cls_options(deployment), "i6pn": True})'),
    )
    plane.add_secret("otel")
    server = deploy(plane, folder)
    (web,) = server.web_servers
    assert (web.proxy_auth, web.label, web.domains) == (True, "toy-llm", ("llm.example.com",))
    assert (server.definition.cloud_provider_str, server.definition.routing_region) == ("oci", "eu-west")
    assert server.definition.scheduler_placement.nonpreemptible
    assert server.definition.i6pn_enabled  # what Torpor has no option for is added in the app file
    resources = server.definition.resources
    assert (resources.milli_cpu, resources.memory_mb, resources.ephemeral_disk_mb) == (2500, 4096, 600000)
    assert (server.secrets, server.read_only) == (("otel",), ())
    download = plane.app("toy").function("download")
    assert (download.definition.retry_policy.retries, download.secrets) == (2, ())


@pytest.mark.slow
@pytest.mark.fault("a serving container writes to the weights' volume", area="weights", outcome="refused")
def test_the_weights_are_mounted_read_only_where_they_are_served(deployed: ModalPlane) -> None:
    """Build steps and the download function mount the same volume writable."""
    server = deployed.app("toy").service("Server")
    download = deployed.app("toy").function("download")
    assert server.volumes == download.volumes == {"/vol/weights": "toy-weights"}
    assert (server.read_only, download.read_only) == (("/vol/weights",), ())
    mounts = [mount for image in deployed.store.images.values() for mount in image.volume_mounts]
    assert mounts
    assert not any(mount.read_only for mount in mounts)


@pytest.mark.slow
def test_the_image_is_built_in_the_order_that_caches_best(deployed: ModalPlane) -> None:
    """Base, packages, Torpor's requirements, environment, scripts, then steps in order. Sources are mounted, not copied."""
    layers = deployed.app("toy").service("Server").layers
    assert [layer.commands[:1] for layer in layers[1:]] == [("FROM base",)] * (len(layers) - 1)
    assert layers[0].commands == ("FROM registry.example/toy:1",)
    kinds = [layer.commands[-1].partition(" ")[0] for layer in layers[1:]]
    assert kinds == ["ENTRYPOINT", "RUN", "RUN", "RUN", "RUN", "ENV", "COPY", "COPY", "RUN", "RUN"]
    assert layers[1].commands[-1] == "ENTRYPOINT []"
    assert layers[2].runs[-1] == "apt-get install -y git numactl"
    assert "left-pad>=1" in layers[3].runs[0]
    assert "nccl" not in layers[3].runs[0]  # torch pins another one: pip would refuse both in one call
    assert "nvidia-nccl-cu13==2.30.7 --no-deps" in layers[4].runs[0]
    assert "--constraint /opt/torpor/constraints.txt" in layers[5].runs[0]
    assert layers[6].commands[-1] == """ENV QUOTED='a b$c'"'"'d'"""
    assert list(layers[7].copied) == ["/opt/torpor/buildstep.py"]
    assert layers[8].copied == {"/opt/torpor/scripts/toy_plugin.fetch.py": b"print('fetching')\n"}
    fetch, compile_ = layers[9], layers[10]
    assert fetch.runs == (
        (
            "python3 /opt/torpor/buildstep.py --name fetch --timeout 30 --retries 1 --sync /vol/weights -- "
            "python3 /opt/torpor/scripts/toy_plugin.fetch.py to /vol/weights"
        ),
    )
    assert (fetch.gpu, fetch.volumes, fetch.env) == ("", {"/vol/weights": "toy-weights"}, {"FAST": "1"})
    assert compile_.runs[0].endswith("""-- cc 'it'"'"'s; $(rm)'""")
    assert (compile_.gpu, compile_.gpu_count, compile_.env) == ("L4", 2, {})
    assert compile_.volumes == {"/vol/weights": "toy-weights", "/vol/kernels": "toy-kernels"}


def docker_value(text: str) -> str:
    """The value that a Dockerfile's ENV line gives, by the rules of its reference ("Environment replacement")."""
    value, at, quote = "", 0, ""
    while at < len(text):
        character = text[at]
        if quote == "'":
            quote, value = ("", value) if character == "'" else (quote, value + character)
        elif quote == '"':
            assert character not in "$\\`"  # these would mean something
            quote, value = ("", value) if character == '"' else (quote, value + character)
        elif character in "'\"":
            quote = character
        else:
            assert character not in "$\\ \t"
            value += character
        at += 1
    assert not quote
    return value


def test_every_value_of_a_variable_reaches_the_image_as_it_was_written(plane: ModalPlane, folder: Path) -> None:
    """Quotes, backslashes, dollars, blanks, hashes, other scripts: the client writes them, and a builder reads them back."""
    letters = "ab'\"\\$`#{}()<>|&;*?!~=%@ \tü漢"
    chosen = random.Random(7)
    values = {f"V{number}": "".join(chosen.choices(letters, k=chosen.randint(0, 12))) for number in range(300)}
    values |= {"END": "x\\", "BOTH": "'\"'", "HEREDOC": "<<EOF", "COMMENT": "# escape=`", "JSON": '{"a": ["b", "$c"]}'}
    package = folder / "toy_plugin" / "__init__.py"
    package.write_text(PLUGIN.replace("""{"QUOTED": "a b$c'd"}""", repr(values)))
    lines = [line for layer in deploy(plane, folder).layers for line in layer.commands if line.startswith("ENV ")]
    named = dict(line.removeprefix("ENV ").split("=", 1) for line in lines)
    assert {name: docker_value(text) for name, text in named.items() if name in values} == values


@pytest.mark.slow
def test_sources_are_mounted_and_nothing_else_is(deployed: ModalPlane) -> None:
    """Mounted are Torpor's and the third-party plugin's Python files and the app file; no data file, other package or test."""
    files = deployed.app("toy").service("Server").files
    assert sorted(name for name in files if "toy_plugin" in name) == [
        "/root/toy_plugin/__init__.py",
        "/root/toy_plugin/fetch.py",
    ]
    tops = {name.split("/")[2] for name in files}
    assert tops == {"toy_app.py", "toy_plugin", "torpor"}
    assert files["/root/toy_plugin/__init__.py"] == PLUGIN.encode()
    assert all(name.endswith(".py") for name in files)
    assert {
        "/root/torpor/__init__.py",
        "/root/torpor/platforms/modal/server.py",
        "/root/torpor/build_steps/command.py",
    } <= set(files)


@pytest.mark.slow
def test_the_download_function_shares_image_and_volume(deployed: ModalPlane) -> None:
    """It runs the build's step again: same image, the serving volume, no GPU, and a time limit for all attempts."""
    server = deployed.app("toy").service("Server")
    download = deployed.app("toy").function("download")
    assert download.layers == server.layers
    assert download.volumes == server.volumes
    assert download.gpu == ("", 0)
    assert download.definition.timeout_secs == 60


@pytest.mark.slow
def test_deploying_again_builds_only_the_layers_that_changed(plane: ModalPlane, folder: Path) -> None:
    """The same deployment renders the same layers. Another GPU changes the layers that use it and none below."""
    before = deploy(plane, folder).layers
    built = list(plane.store.built)
    assert deploy(plane, folder).layers == before
    assert plane.store.built == built
    write_app(folder, source=ONE_GPU)
    after = deploy(plane, folder).layers
    assert [old == new for old, new in zip(before, after, strict=True)] == [True] * 10 + [False]
    assert len(plane.store.built) == len(built) + 1


@pytest.mark.slow
def test_a_secret_is_given_to_its_step_alone_and_a_missing_one_is_named(plane: ModalPlane, folder: Path) -> None:
    """The serving class gets no secret, because the snapshot would contain it."""
    write_app(folder, secret="toy-token")
    refused = plane.modal("deploy", "toy_app.py", cwd=folder)
    assert refused.code != 0
    assert "Secret 'toy-token' not found" in refused.output
    plane.add_secret("toy-token")
    server = deploy(plane, folder)
    assert server.secrets == ()
    assert [layer.secrets for layer in server.layers if layer.secrets] == [("toy-token",)]
    assert plane.app("toy").function("download").secrets == ("toy-token",)


@pytest.mark.slow
def test_a_failed_build_step_fails_the_deployment(plane: ModalPlane, folder: Path) -> None:
    """The client publishes nothing and prints the step's output."""
    plane.fail_builds_with("--name compile")
    finished = plane.modal("deploy", "toy_app.py", cwd=folder)
    assert finished.code != 0
    assert "'--name compile' failed" in finished.output
    assert plane.store.deployed("toy") is None


@pytest.mark.slow
def test_a_missing_plugin_folder_fails_the_deployment_with_its_name(plane: ModalPlane, folder: Path) -> None:
    """The app file fails with an import error before anything is uploaded."""
    shutil.rmtree(folder / "toy_plugin")
    finished = plane.modal("deploy", "toy_app.py", cwd=folder)
    assert finished.code != 0
    assert "No module named 'toy_plugin'" in finished.output
    assert plane.store.apps == {}


@pytest.mark.slow
def test_a_class_that_would_die_in_the_container_is_not_deployed(plane: ModalPlane, folder: Path) -> None:
    """`modal deploy` prints the error of the class statement."""
    write_app(folder, source=APP.replace("    pass\n", "    def wake(self):\n        pass\n", 1))
    finished = plane.modal("deploy", "toy_app.py", cwd=folder)
    assert finished.code != 0
    assert "Server.wake overrides SnapshotServer.wake without a decorator" in finished.output


@pytest.mark.slow
def test_a_plugin_in_the_app_file_itself_needs_no_package(plane: ModalPlane, folder: Path) -> None:
    """Modal mounts the app file. A plugin may be defined in it, also for `python app.py`."""
    source = PLUGIN.replace('script="toy_plugin.fetch", ', "") + APP.replace("from toy_plugin import Toy\n", "")
    write_app(folder, source=source)
    files = deploy(plane, folder).files
    assert {name.split("/")[2] for name in files} == {"toy_app.py", "torpor"}
    with ChatServer([answer("Here.", tokens=1)]) as chat:
        plane.serve_web_at(chat.url)
        deploy(plane, folder)
        asked = plane.python("toy_app.py", "--no-twice", cwd=folder)
    assert (asked.code, "Here." in asked.output) == (0, True)


@pytest.mark.slow
def test_a_subclass_with_another_deployment_gets_its_port(plane: ModalPlane, folder: Path) -> None:
    """The parent's marker holds the parent's port, so the subclass gets a marker of its own."""
    child = "class Server(Parent, deployment=deployment):"
    source = APP.replace(
        "@app.cls",
        "from dataclasses import replace\n"
        "class Parent(SnapshotServer, deployment=replace(deployment, port=9999)):\n    pass\n\n@app.cls",
        1,
    ).replace("class Server(SnapshotServer, deployment=deployment):", child)
    assert child in source
    write_app(folder, source=source)
    assert [web.port for web in deploy(plane, folder).web_servers] == [9000]


@pytest.mark.slow
def test_an_override_with_a_decorator_replaces_the_method(plane: ModalPlane, folder: Path) -> None:
    """A decorated `serve` in the app decides the port. An additional method is published too."""
    own = (
        "    @modal.web_server(9001)\n    def serve(self):\n        super().serve()\n"
        "    @modal.method()\n    def report(self):\n        return 1\n"
    )
    write_app(folder, source=APP.replace("    pass\n", own, 1))
    server = deploy(plane, folder)
    assert server.methods == ("report", "serve")
    assert [web.port for web in server.web_servers] == [9001]


# --- asking -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_modal_run_asks_the_apps_own_url_twice(plane: ModalPlane, folder: Path) -> None:
    """It sends two system prompts to the ephemeral app, prints the answers and ends the app."""
    with ChatServer([answer("First.", tokens=2), answer("Second.", tokens=2)]) as chat:
        plane.serve_web_at(chat.url)
        finished = plane.modal("run", "toy_app.py", "--prompt", "Why so?", cwd=folder)
    assert finished.code == 0, finished.output
    assert "First." in finished.output
    assert "Second." in finished.output
    assert plane.ephemeral.service("Server").web_servers[0].url == chat.url
    assert plane.store.deployed("toy") is None
    conversations = [seen.body["messages"] for seen in chat.seen]
    assert len(conversations) == 2
    assert conversations[0] != conversations[1]
    assert all("Why so?" in str(conversation) for conversation in conversations)


@pytest.mark.slow
def test_modal_run_passes_options_to_the_entry_point(plane: ModalPlane, folder: Path) -> None:
    """`--no-twice` and `--timeout` arrive with their types. An error is one line and an exit code, without a traceback."""
    with ChatServer([answer("Once.")]) as chat:
        plane.serve_web_at(chat.url)
        finished = plane.modal("run", "toy_app.py", "--no-twice", cwd=folder)
    assert (finished.code, len(chat.seen)) == (0, 1)
    late = plane.modal("run", "toy_app.py", "--timeout", "1", cwd=folder)
    assert late.code == 1
    assert "error: No whole answer from" in late.output
    assert "Traceback" not in late.output


@pytest.mark.slow
def test_modal_run_of_the_download_gets_to_its_container(plane: ModalPlane, folder: Path) -> None:
    """This control plane runs no containers: the call fails there, or returns the value that the test gave."""
    finished = plane.modal("run", "toy_app.py::download", cwd=folder)
    assert finished.code != 0
    assert "download needs a container" in finished.output
    plane.answer_calls("download", None)
    assert plane.modal("run", "toy_app.py::download", cwd=folder).code == 0


def test_asking_a_server_that_is_not_deployed_says_so(plane: ModalPlane, folder: Path) -> None:
    """It prints one line with the next step and exits with 1."""
    write_app(folder, source=ONE_GPU)
    finished = plane.python("toy_app.py", cwd=folder)
    assert finished.code == 1
    assert finished.output.startswith("error: 'toy' is not deployed (")
    assert "modal deploy" in finished.output
    assert finished.output.count("\n") == 1


@pytest.mark.slow
def test_asking_the_deployed_server_finds_its_url(plane: ModalPlane, folder: Path) -> None:
    """`python app.py` asks the deployed class, even after a `modal run`."""
    with ChatServer([answer("Deployed.")]) as chat:
        plane.serve_web_at(chat.url)
        deploy(plane, folder)
        plane.serve_web_at("http://127.0.0.1:9")
        ran: Finished = plane.modal("run", "toy_app.py", "--timeout", "1", cwd=folder)
        asked = plane.python("toy_app.py", "--prompt", "Who?", "--no-twice", cwd=folder)
    assert ran.code == 1
    assert (asked.code, "Deployed." in asked.output) == (0, True), asked.output


def test_asking_without_credentials_is_one_line(plane: ModalPlane, folder: Path) -> None:
    """It says what is missing and which command fixes it."""
    write_app(folder, source=ONE_GPU)
    finished = plane.python("toy_app.py", cwd=folder, env={"MODAL_TOKEN_ID": "", "MODAL_TOKEN_SECRET": ""})
    assert finished.code == 2
    assert finished.output.startswith("error: Modal refuses to answer: ")
    assert "Log in with `modal setup`" in finished.output
    assert "Traceback" not in finished.output


def test_the_app_imports_without_credentials_or_a_network(plane: ModalPlane, folder: Path) -> None:
    """`torpor plan` and editors import app files too. What Modal may refuse is told once, however often the file asks."""
    env = {"MODAL_TOKEN_ID": "", "MODAL_TOKEN_SECRET": "", "MODAL_SERVER_URL": "http://127.0.0.1:9"}
    finished = plane.python("-c", "import toy_app; print(toy_app.deployment.name)", cwd=folder, env=env)
    assert finished.code == 0
    warning, last = finished.output.splitlines()
    assert "several_gpus_on_modal" in warning
    assert last == "toy"
    write_app(folder, source=ONE_GPU)
    finished = plane.python("-c", "import toy_app; print(toy_app.deployment.name)", cwd=folder, env=env)
    assert (finished.code, finished.output) == (0, "toy\n")
    assert plane.store.requests == []
