"""serve.toml is checked as a whole when it is read: each wrong value is refused by its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from torpor import ConfigurationError
from torpor.platforms.local.criu_backend import CriuBackend
from torpor.platforms.local.serve.app_files import AppFiles
from torpor.platforms.local.serve.budget import check_pinned
from torpor.platforms.local.serve.configuration import Configuration, read_configuration
from torpor.platforms.local.serve.planned import plan_of
from torpor.platforms.local.serve.sizes_text import bytes_of
from torpor.serving.sizes import Budget, Size
from torpor.serving.terms import Terms

DIGEST = "0" * 64

APP = """
from torpor import Deployment, Model, Scaling
from torpor.testing import StandIn

deployment = Deployment(
    name={name!r},
    model=Model(path={folder!r}, served_name={model!r}),
    plugins=(StandIn(),),
    scaling=Scaling(target_concurrency=3, max_concurrency=5, scaledown_window_s=7),
)
"""


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORPOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(CriuBackend, "available", lambda *_: ())


def app(folder: Path, name: str, *, model: str = "") -> str:
    file = folder / f"{name}.py"
    file.write_text(APP.format(name=name, folder=str(folder), model=model or f"model-{name}"))
    return str(file)


def configured(folder: Path, text: str) -> Configuration:
    file = folder / "serve.toml"
    file.write_text(text)
    return read_configuration(file)


def test_adapters_are_names_like_the_models(tmp_path: Path) -> None:
    """Requests find the deployment by each; no other deployment may have an adapter's name. An alias means the model."""
    folder = str(tmp_path)
    file = tmp_path / "a.py"
    adapters = "adapters={'sql': Adapter(path='/sql'), 'law': Adapter(path='/law')}"
    text = APP.format(name="a", folder=folder, model="model-a").replace(
        "from torpor import ", "from torpor import Adapter, "
    )
    file.write_text(text.replace("served_name='model-a'", f"served_name='model-a', {adapters}"))
    assert adapters in file.read_text()
    plan = plan_of([str(file)], configured(tmp_path, ""))
    assert [model.name for model in plan.deployments[0].models] == ["model-a", "sql", "law"]
    plan = plan_of([str(file)], configured(tmp_path, "[deployment.a]\naliases = ['gpt-4', 'sql', 'gpt-4']\n"))
    names = [(model.name, model.alias_of) for model in plan.deployments[0].models]
    assert names == [("model-a", ""), ("sql", ""), ("law", ""), ("gpt-4", "model-a")]
    with pytest.raises(ConfigurationError, match=r"'a' and 'b' both serve a model 'law'"):
        plan_of([str(file), app(tmp_path, "b", model="law")], configured(tmp_path, ""))


def test_every_value_is_read(tmp_path: Path) -> None:
    """Those of the file go before those of the app."""
    app(tmp_path, "a")
    app(tmp_path, "b")
    configuration = configured(
        tmp_path,
        f"""
        apps = ["*.py"]
        [server]
        host = "0.0.0.0"
        port = 9000
        key_sha256 = ["{DIGEST}"]
        [budget]
        memory = "8 GB"
        [deployment.a]
        aliases = ["gpt-4", "fast"]
        pinned = true
        idle_s = 1.5
        keep = "asleep"
        snapshot = "kept/a"
        capture = "never"
        capture_after_s = 2
        queue = 4
        deadline_s = 9
        min_containers = 1
        max_containers = 3
        buffer_containers = 1
        target_concurrency = 2
        max_concurrency = 4
        memory = "512 MiB"
        """,
    )
    assert (configuration.server.host, configuration.server.port) == ("0.0.0.0", 9000)
    assert configuration.server.key_sha256 == (DIGEST,)
    plan = plan_of([], configuration)
    assert plan.budget == Budget(8 * 10**9, ())
    first, second = plan.deployments
    assert first.terms == Terms(
        name="a",
        idle_s=1.5,
        keep="asleep",
        pinned=True,
        capture="never",
        capture_after_s=2.0,
        queue=4,
        deadline_s=9.0,
        target=2,
        most_requests=4,
        least=1,
        most=3,
        buffer=1,
        size=Size(512 << 20, ()),
    )
    assert [model.name for model in first.models] == ["model-a", "gpt-4", "fast"]
    assert first.snapshot == tmp_path / "kept" / "a"
    assert second.terms == Terms(name="b", idle_s=7.0, target=3, most_requests=5)
    assert second.snapshot == tmp_path / "cache" / "snapshots" / "b"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("budgte = 1", "unknown key 'budgte'; did you mean 'budget'?"),
        ("[budget]\nmemory = 8", 'memory is 8; it has to be a size with its unit, e.g. "8 GB"'),
        ("[budget]\nmemory = '0 GB'", "memory is '0 GB'; it has to be a size"),
        ("[budget]\ngpu_memory = ['8 GB']", "gpu_memory lists 1 sizes, and this machine has 0 GPUs"),
        ("[server]\nport = 0", "port is 0; it has to be a whole number from 1 to 65535"),
        ("[server]\nport = true", "port is True; it has to be a whole number"),
        ("[server]\nhost = 'no such host!'", "host is 'no such host!'"),
        ("[server]\nkey_sha256 = ['secret']", "holds a text of 6 characters; it has to be a SHA-256"),
        ("[deployment]\na = 1", "[deployment.a] is 1, an int; it has to be a table"),
        ("[deployment.a]\nidle = 3", "[deployment.a] has the unknown key 'idle'; did you mean 'idle_s'?"),
        ("[deployment.a]\nidle_s = 0", "idle_s is 0 seconds; it has to be above 0"),
        ("[deployment.a]\nidle_s = nan", "idle_s is nan seconds"),
        ("[deployment.a]\nkeep = 'warm'", "keep is 'warm'; allowed: 'on disk', 'asleep'."),
        ("[deployment.a]\npinned = 1", "pinned is 1; it has to be true or false"),
        ("[deployment.a]\nqueue = 0", "queue is 0; it has to be a whole number from 1"),
        ("[deployment.a]\naliases = 'x'", "aliases is 'x'; it has to be a list of texts"),
        ("[deployment.a]\naliases = ['']", "aliases is ''; it has to be text"),
        ("[deployment.a]\nmin_containers = 2\nmax_containers = 1", "min_containers is 2, above max_containers (1)"),
        ("[deployment.a]\nmax_concurrency = 2", "target_concurrency is 3, above max_concurrency (2)"),
        ("[deployment.a]\ngpu_memory = '8 GB'", "has `gpu_memory`, and Deployment.gpu is None"),
        ("[deployment.x]", "has a table [deployment.x], and no app file defines that deployment. There are: a, b."),
        ("[deployment.a]\naliases = ['model-b']", "'a' and 'b' both serve a model 'model-b'"),
        ("apps = ['none*.py']", "apps has 'none*.py', and no file has that name"),
        (
            "[budget]\nmemory = '1 GB'\n[deployment.a]\nmemory = '2 GB'",
            "'a' takes 2.00 GB of host memory; that does not fit",
        ),
        ("a = [", "is no TOML"),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(tmp_path: Path, text: str, said: str) -> None:
    """The message says what is there and what is allowed."""
    files = [app(tmp_path, "a"), app(tmp_path, "b")]
    with pytest.raises(ConfigurationError) as error:
        plan_of(files, configured(tmp_path, text))
    assert said in str(error.value)


def test_a_secret_in_the_wrong_place_is_not_repeated(tmp_path: Path) -> None:
    """Somebody wrote the key where its digest belongs."""
    with pytest.raises(ConfigurationError) as error:
        configured(tmp_path, '[server]\nkey_sha256 = ["hunter2-hunter2"]')
    assert "hunter2" not in str(error.value)


def test_app_files_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    """No file, a deployment twice, no such file."""
    with pytest.raises(ConfigurationError, match="nothing to serve"):
        plan_of([], Configuration())
    first = app(tmp_path, "a")
    second = tmp_path / "again.py"
    second.write_text(Path(first).read_text())
    with pytest.raises(ConfigurationError, match="both define a deployment 'a'"):
        plan_of([first, str(second)], Configuration())
    assert len(plan_of([first, first], Configuration()).deployments) == 1
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_configuration(tmp_path / "none.toml")


def test_what_cannot_fit_beside_what_is_pinned_is_refused() -> None:
    """Two pinned models of 40 GB on one GPU of 70 GB, or one beside a pinned one."""
    size = Size(0, (40,))
    terms = Terms(name="a", gpu_count=1)
    pinned = Terms(name="b", gpu_count=1, pinned=True)
    with pytest.raises(ConfigurationError, match=r"'a' takes .* does not fit beside what is pinned"):
        check_pinned(Budget(None, (70,)), [(terms, size), (pinned, size)])
    with pytest.raises(ConfigurationError, match="beside the other pinned ones"):
        check_pinned(Budget(None, (70,)), [(pinned, size), (pinned, size)])
    check_pinned(Budget(None, (70, 70)), [(pinned, size), (pinned, size)])
    check_pinned(Budget(None, (80,)), [(terms, size), (pinned, size)])
    with pytest.raises(ConfigurationError, match="needs 1 GPUs, and the budget has 0"):
        check_pinned(Budget(None, ()), [(terms, None)])


def beside(folder: Path, name: str) -> str:
    """An app in a folder of its own, whose name stands in a module beside it."""
    folder.mkdir(exist_ok=True)
    (folder / "shared_name.py").write_text(f"NAME = {name!r}\n")
    file = folder / "app.py"
    text = APP.format(name="n", folder=str(folder), model=f"model-{name}").replace("name='n'", "name=NAME")
    file.write_text(f"from shared_name import NAME\n{text}")
    return str(file)


def test_two_folders_have_modules_of_the_same_name(tmp_path: Path) -> None:
    """Each app gets its own; a change of one of them changes its app, and the other one stays."""
    files = [beside(tmp_path / "a", "one"), beside(tmp_path / "b", "two")]
    apps = AppFiles()
    before = plan_of(files, Configuration(), apps)
    assert [one.name for one in before.deployments] == ["one", "two"]
    assert apps.files() == sorted(
        tmp_path / place for place in ("a/app.py", "a/shared_name.py", "b/app.py", "b/shared_name.py")
    )
    (tmp_path / "a" / "shared_name.py").write_text("NAME = 'changed'\n")
    after = plan_of(files, Configuration(), apps)
    assert [one.name for one in after.deployments] == ["changed", "two"]
    assert after.deployments[1].app is before.deployments[1].app


def test_an_app_file_is_imported_again_only_once_it_has_changed(tmp_path: Path) -> None:
    """So a reload leaves the replicas of an untouched deployment alone."""
    first, second = app(tmp_path, "a"), app(tmp_path, "b")
    apps = AppFiles()
    before = plan_of([first, second], Configuration(), apps)
    app(tmp_path, "b", model="other-name")
    after = plan_of([first, second], Configuration(), apps)
    assert after.deployments[0].app is before.deployments[0].app
    assert after.deployments[0].same_engine(before.deployments[0])
    assert not after.deployments[1].same_engine(before.deployments[1])


@pytest.mark.parametrize(
    ("text", "size"), [("8 GB", 8 * 10**9), ("1.5TB", 1_500_000_000_000), ("512 MiB", 512 << 20), (" 2 gib ", 2 << 30)]
)
def test_sizes_have_units(text: str, size: int) -> None:
    """Decimal and binary ones, in any case."""
    assert bytes_of("memory", text) == size
