"""`torpor_hf_cache.download`, run as a bare file like in an image; the real huggingface_hub downloads."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.hub_server import COMMIT
from tests.plugins.torpor_hf_cache.conftest import SCRIPT, TEXTS, WEIGHTS, Client

if TYPE_CHECKING:
    from pathlib import Path

    from tests.hub_server import HubServer, Repository

pytestmark = (
    pytest.mark.slow
)  # each test starts a process with the hub's client; all together take more than half a minute

FIRST, SECOND = WEIGHTS


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- fetch ------------------------------------------------------------------------------------------------------------


def test_a_fetch_stores_every_file_in_the_hubs_layout(client: Client) -> None:
    """The engine finds the model by repository and commit, as after a download by the hub's client."""
    ran = client.fetch()
    assert ran.returncode == 0, ran.stderr
    assert contents(client.snapshot) == {**TEXTS, **WEIGHTS}
    assert "6 files, 401.0 kB, fetched and checked" in ran.stdout


def test_a_hub_on_this_machine_is_reached_without_the_proxy(client: Client) -> None:
    """The environment's proxy is for other hosts, and must not receive the token."""
    names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.settimeout(0.0)
        client.variables |= dict.fromkeys(names, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        client.variables |= {"NO_PROXY": "", "no_proxy": ""}
        ran = client.fetch()
        with pytest.raises(BlockingIOError):  # no connection
            proxy.accept()
    assert ran.returncode == 0, ran.stderr


def test_the_manifest_names_size_and_hash_of_every_file(client: Client, repository: Repository) -> None:
    """SHA-256 for LFS objects, the git hash for other files; the marker holds the manifest's hash."""
    assert client.fetch().returncode == 0
    text = (client.folder / "torpor" / f"{COMMIT}.manifest.json").read_text()
    files = json.loads(text)["files"]
    assert files[FIRST] == {"size": 200_000, "sha256": repository.sha256(FIRST), "git": repository.git_oid(FIRST)}
    assert files["config.json"] == {"size": 39, "sha256": None, "git": repository.git_oid("config.json")}
    assert set(files) == set(repository.files)
    marker = json.loads((client.folder / "torpor" / f"{COMMIT}.complete.json").read_text())
    assert marker["manifest_sha256"] == hashlib.sha256(text.encode()).hexdigest()


def test_a_complete_commit_sends_no_request(client: Client, hub: HubServer) -> None:
    """An image can be rebuilt while the hub is down."""
    assert client.fetch().returncode == 0
    hub.seen.clear()
    ran = client.fetch()
    assert (ran.returncode, hub.seen) == (0, []), ran.stderr
    assert "already complete; nothing to do" in ran.stdout


def test_the_hubs_client_finds_a_fetched_commit_offline(client: Client) -> None:
    """The container runs with HF_HUB_OFFLINE=1; 1.33 and 2.4 refuse a snapshot that lacks files of their listing."""
    assert client.fetch("--ignore=original/*").returncode == 0
    code = (
        "import sys; from huggingface_hub import snapshot_download; "
        "print(snapshot_download('org/tiny', revision=sys.argv[1], cache_dir=sys.argv[2]))"
    )
    ran = client.python(code, COMMIT, str(client.cache))
    assert ran.stdout.strip() == str(client.snapshot), ran.stderr


def test_patterns_select_files_like_the_hubs_client(client: Client) -> None:
    """A file must be allowed and not ignored; a pattern that ends with a slash means the folder."""
    assert client.fetch("--allow=*.json", "--allow=*.safetensors", "--ignore=original/").returncode == 0
    assert set(contents(client.snapshot)) == {"config.json", "tokenizer.json", *WEIGHTS}
    assert client.verify().returncode == 0


def test_wider_patterns_fetch_only_the_missing_files(client: Client, hub: HubServer) -> None:
    """Files from an earlier fetch are not downloaded again."""
    assert client.fetch("--allow=*.json").returncode == 0
    hub.seen.clear()
    assert client.fetch().returncode == 0
    assert contents(client.snapshot) == {**TEXTS, **WEIGHTS}
    assert not [path for path in hub.downloads() if path.endswith(".json")]


def test_only_the_hub_receives_the_token(client: Client, hub: HubServer, repository: Repository) -> None:
    """The model is gated and the token has access; LFS bodies come from another host."""
    repository.gated = frozenset({"hf_granted"})
    client.variables["HF_TOKEN"] = "hf_granted"
    ran = client.fetch()
    assert ran.returncode == 0, ran.stderr
    assert {seen.token for seen in hub.seen if "/resolve/" in seen.path} == {"hf_granted"}
    assert {seen.token for seen in hub.seen if seen.path.startswith("/cdn/")} == {None}
    assert "hf_granted" not in ran.stdout + ran.stderr
    assert not [
        path for path in client.cache.parent.rglob("*") if path.is_file() and b"hf_granted" in path.read_bytes()
    ]


def test_the_volume_holds_only_the_hubs_layout_and_torpors_folder(client: Client) -> None:
    """No Xet cache, token file or temporary file, which would stay on the volume or become part of the image."""
    assert client.fetch().returncode == 0
    assert {path.name for path in client.cache.iterdir()} <= {"models--org--tiny", ".locks", "CACHEDIR.TAG"}
    assert {path.name for path in client.folder.iterdir()} <= {"blobs", "snapshots", "trees", "refs", "torpor"}
    assert {path.name for path in (client.folder / "torpor").iterdir()} == {
        f"{COMMIT}.manifest.json",
        f"{COMMIT}.complete.json",
    }


# --- failures ---------------------------------------------------------------------------------------------------------


def assert_no_file_looks_complete(client: Client) -> None:
    assert client.verify().returncode in (66, 76)
    assert not list(client.folder.glob("torpor/*.complete.json"))


@pytest.mark.parametrize(
    ("token", "why"), [(None, "no token was given"), ("hf_other", "the token was not granted access")]
)
def test_the_error_for_a_gated_repository_says_how_to_get_access(
    client: Client, repository: Repository, token: str | None, why: str
) -> None:
    """Exit code 77; it names the terms first, then the token as a secret."""
    repository.gated = frozenset({"hf_granted"})
    if token:
        client.variables["HF_TOKEN"] = token
    ran = client.fetch()
    assert ran.returncode == 77
    assert f"org/tiny is gated, and {why}. Accept its terms at {client.hub.url}/org/tiny" in ran.stderr
    assert "HFCache(token_secret='huggingface-secret')" in ran.stderr
    assert_no_file_looks_complete(client)


def test_a_wrong_revision_is_named(client: Client) -> None:
    """Exit code 65."""
    ran = client.fetch(revision="0" * 40)
    assert ran.returncode == 65
    assert (
        f"org/tiny has no revision {'0' * 40}; its commits are listed at {client.hub.url}/org/tiny/commits/main"
        in ran.stderr
    )


@pytest.mark.parametrize(("token", "why"), [(None, "no token was given"), ("hf_x", "the token cannot see it")])
def test_the_error_for_a_missing_repository_says_that_it_may_be_private(
    client: Client, token: str | None, why: str
) -> None:
    """Exit code 66; the hub gives the same answer for both."""
    if token:
        client.variables["HF_TOKEN"] = token
    ran = client.fetch(repo_id="org/none")
    assert ran.returncode == 66
    assert f"There is no model org/none at {client.hub.url}, or it is private and {why}" in ran.stderr


def test_patterns_that_select_nothing_are_an_error(client: Client) -> None:
    """An empty snapshot would count as complete, but no engine can use it."""
    ran = client.fetch("--allow=*.gguf")
    assert ran.returncode == 65
    assert "has 6 files, and the patterns select none of them (allow ['*.gguf'], ignore none)" in ran.stderr


def test_content_that_differs_from_the_hubs_hash_is_refused_and_removed(client: Client, repository: Repository) -> None:
    """With the right size and wrong bytes, the hub's client accepts it. Exit code 76; the next fetch downloads it again."""
    repository.corrupt = {FIRST: b"x" * 200_000}
    ran = client.fetch()
    assert ran.returncode == 76
    assert (
        f"arrived damaged: {FIRST} has the SHA-256 {hashlib.sha256(b'x' * 200_000).hexdigest()}, the hub says"
        in ran.stderr
    )
    assert FIRST not in contents(client.snapshot)
    assert_no_file_looks_complete(client)
    repository.corrupt = {}
    assert client.fetch().returncode == 0
    assert contents(client.snapshot) == {**TEXTS, **WEIGHTS}


def test_a_small_file_that_differs_from_its_git_hash_is_refused_too(client: Client, repository: Repository) -> None:
    """The hub gives a git hash for config.json, and no SHA-256."""
    repository.corrupt = {"config.json": b"?" * 39}
    ran = client.fetch()
    assert ran.returncode == 76
    assert "config.json has the git hash" in ran.stderr


def test_a_file_shorter_than_its_listed_size_is_refused(client: Client, repository: Repository) -> None:
    """A proxy serves an old version: the headers match the short body, only the listing differs."""
    repository.shrunk = {SECOND: b"short"}
    ran = client.fetch()
    assert ran.returncode == 76
    assert f"arrived damaged: {SECOND} has 5 bytes, 200000 expected" in ran.stderr
    assert_no_file_looks_complete(client)


def test_a_body_that_ends_early_has_its_own_error(client: Client, repository: Repository) -> None:
    """The connection closes after 1,000 of 200,000 bytes, each time. Exit code 76."""
    repository.cut = {FIRST: 1000}
    ran = client.fetch()
    assert ran.returncode == 76
    assert "a file was cut short in transit" in ran.stderr
    assert_no_file_looks_complete(client)


def test_a_missing_network_has_its_own_error(client: Client) -> None:
    """Exit code 75, which the build step retries."""
    client.variables["HF_ENDPOINT"] = "http://127.0.0.1:9"
    ran = client.fetch()
    assert ran.returncode == 75
    assert "The hub at http://127.0.0.1:9 cannot be reached ([Errno 111] Connection refused)" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_an_overloaded_hub_has_its_own_error(one_client: Client, repository: Repository) -> None:
    """Exit code 75, after the hub's client has tried for 23 s."""
    repository.failures["config.json"] = 1000
    ran = one_client.fetch()
    assert ran.returncode == 75
    assert f"{one_client.hub.url} answers HTTP 503" in ran.stderr
    assert_no_file_looks_complete(one_client)


def test_a_fetch_survives_a_short_overload(one_client: Client, repository: Repository) -> None:
    """The hub's client retries."""
    repository.failures["config.json"] = 2
    ran = one_client.fetch()
    assert ran.returncode == 0, ran.stderr


def test_a_full_disk_is_named_and_leaves_no_file_that_looks_complete(client: Client) -> None:
    """A tmpfs of 300 KiB, in its own mount namespace, for a model of 400 kB. Exit code 74."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this kernel gives no user namespaces to this user, so no small file system can be mounted")
    volume = client.cache.parent
    volume.mkdir(parents=True)
    fetch, verify = (shlex.join(client.argv(action)) for action in ("fetch", "verify"))
    script = f"mount -t tmpfs -o size=300k none {volume} && {{ {fetch}; code=$?; {verify} 2>&1; exit $code; }}"
    ran = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script],
        env=client.env(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 74, ran.stderr
    assert f"There is no space left for org/tiny at {COMMIT}" in ran.stderr
    assert "the fetch never finished" in ran.stdout


def test_a_cache_that_cannot_be_written_is_named(client: Client) -> None:
    """Exit code 73; here the volume's folder is a file."""
    client.cache.parent.mkdir(parents=True)
    client.cache.write_text("")
    ran = client.fetch()
    assert ran.returncode == 73
    assert f"The cache at {client.cache} cannot be written" in ran.stderr


def test_a_killed_fetch_is_incomplete_and_can_be_resumed(client: Client, repository: Repository) -> None:
    """After SIGKILL in the middle of a body there is no marker, and the next fetch finishes the download."""
    repository.slow = {FIRST: 30.0}
    process = subprocess.Popen(
        client.argv("fetch"), env=client.env(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while f"/cdn/org/tiny/{FIRST}" not in client.hub.downloads():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    seen = client.verify()
    assert seen.returncode == 66
    assert f"does not hold all of org/tiny at {COMMIT}: the fetch never finished" in seen.stderr
    repository.slow = {}
    assert client.fetch().returncode == 0
    assert contents(client.snapshot) == {**TEXTS, **WEIGHTS}


def test_the_next_fetch_repairs_a_truncated_file_on_the_volume(client: Client, hub: HubServer) -> None:
    """The hub's client would accept the file. Only the damaged file is fetched again."""
    assert client.fetch().returncode == 0
    blob = (client.snapshot / FIRST).resolve()
    blob.write_bytes(blob.read_bytes()[:-1])
    hub.seen.clear()
    assert client.fetch().returncode == 0
    assert contents(client.snapshot) == {**TEXTS, **WEIGHTS}
    assert hub.downloads() == [f"/cdn/org/tiny/{FIRST}"]


def test_a_recheck_finds_and_repairs_damage_that_keeps_the_size(client: Client, hub: HubServer) -> None:
    """A bit flips on the disk and no time changes."""
    assert client.fetch().returncode == 0
    blob = (client.snapshot / SECOND).resolve()
    flip(blob, keep_time=True)
    assert client.fetch().returncode == 0
    assert contents(client.snapshot) != {**TEXTS, **WEIGHTS}
    hub.seen.clear()
    assert client.fetch("--recheck").returncode == 0
    assert contents(client.snapshot) == {**TEXTS, **WEIGHTS}
    assert hub.downloads() == [f"/cdn/org/tiny/{SECOND}"]


def test_a_recheck_that_cannot_repair_removes_the_completion_marker(one_client: Client, repository: Repository) -> None:
    """A commit is no longer complete once a damaged file could not be replaced."""
    assert one_client.fetch().returncode == 0
    blob = (one_client.snapshot / SECOND).resolve()
    blob.write_bytes(b"!" + blob.read_bytes()[1:])
    repository.corrupt = {SECOND: b"?" * 200_000}
    assert one_client.fetch("--recheck").returncode == 76
    assert_no_file_looks_complete(one_client)


# --- verify -----------------------------------------------------------------------------------------------------------


def test_verify_passes_a_complete_commit_without_a_request(one_client: Client, hub: HubServer) -> None:
    """It compares sizes with the manifest, without huggingface_hub, site packages or a network."""
    assert one_client.fetch().returncode == 0
    hub.seen.clear()
    argv = [sys.executable, "-I", "-S", *one_client.argv("verify")[1:]]
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == f"org/tiny at {COMMIT}: 6 files are complete.\n"
    assert hub.seen == []


def test_verify_names_an_emptied_volume(one_client: Client) -> None:
    """The image is cached but the volume was emptied: the start must neither download nor end in an engine's traceback."""
    assert one_client.fetch().returncode == 0
    shutil.rmtree(one_client.cache)
    one_client.cache.mkdir()
    ran = one_client.verify()
    assert ran.returncode == 66
    assert ran.stderr == f"{one_client.cache} has no files of org/tiny: it was never fetched, or was deleted.\n"


def test_verify_names_a_truncated_file_with_both_sizes(one_client: Client) -> None:
    """It also says how many more there are."""
    assert one_client.fetch().returncode == 0
    (one_client.snapshot / FIRST).resolve().write_bytes(b"short")
    (one_client.snapshot / "config.json").unlink()
    ran = one_client.verify()
    assert ran.returncode == 76
    assert ran.stderr == (
        f"org/tiny at {COMMIT} is damaged: config.json is missing (No such file or directory); 39 bytes expected "
        "(and 1 more).\n"
    )
    (one_client.snapshot / "config.json").write_bytes(TEXTS["config.json"])
    assert f"is damaged: {FIRST} has 5 bytes, 200000 expected.\n" in one_client.verify().stderr


@pytest.mark.parametrize("victim", ["manifest", "complete"])
@pytest.mark.parametrize("damage", ["gone", "cut short", "of another fetch"])
def test_verify_needs_a_marker_that_matches_the_manifest(one_client: Client, victim: str, damage: str) -> None:
    """Half-written records, or records of different fetches, count as missing."""
    assert one_client.fetch().returncode == 0
    path = one_client.folder / "torpor" / f"{COMMIT}.{victim}.json"
    if damage == "gone":
        path.unlink()
    elif damage == "cut short":
        path.write_text(path.read_text()[:-10])
    else:
        path.write_text(path.read_text().replace("2", "3"))
    assert one_client.verify().returncode == 66
    assert one_client.fetch().returncode == 0
    assert one_client.verify().returncode == 0


def flip(path: Path, *, keep_time: bool = False) -> None:
    """Change a byte in the middle of a file, in place."""
    facts = path.stat()
    with path.open("r+b") as stream:
        stream.seek(facts.st_size // 2)
        stream.write(b"!")
    if keep_time:
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


@pytest.mark.fault("a byte of the fetched weights changes", area="fetched weights", outcome="refused")
def test_verify_finds_damage_that_keeps_the_size(one_client: Client) -> None:
    """The marker holds each file's time of change; a file written since is hashed. The next fetch downloads it again."""
    assert one_client.fetch().returncode == 0
    flip((one_client.snapshot / FIRST).resolve())
    ran = one_client.verify()
    assert ran.returncode == 76
    assert f"is damaged: {FIRST} has the SHA-256" in ran.stderr
    assert one_client.fetch().returncode == 0
    assert one_client.verify().returncode == 0
    assert (one_client.snapshot / FIRST).read_bytes() == WEIGHTS[FIRST]


@pytest.mark.fault("a file of the fetched weights is replaced", area="fetched weights", outcome="refused")
def test_verify_finds_a_replaced_file_with_the_old_time(one_client: Client) -> None:
    """The new file has another inode."""
    assert one_client.fetch().returncode == 0
    path = (one_client.snapshot / FIRST).resolve()
    beside = path.with_name("beside")
    shutil.copy2(path, beside)
    flip(beside, keep_time=True)
    beside.replace(path)
    assert one_client.verify().returncode == 76


@pytest.mark.fault("a bit of the fetched weights changes on the disk", area="fetched weights", outcome="refused")
def test_a_recheck_finds_damage_that_changes_no_time(one_client: Client) -> None:
    """A bad disk does this. Both the flag and the variable that `torpor doctor APP --recheck` sets find it."""
    assert one_client.fetch().returncode == 0
    flip((one_client.snapshot / FIRST).resolve(), keep_time=True)
    assert one_client.verify().returncode == 0
    assert one_client.run("verify", "--recheck").returncode == 76
    one_client.variables["TORPOR_RECHECK"] = "1"
    assert one_client.verify().returncode == 76


@pytest.mark.fault("a copied volume has other times", area="fetched weights", outcome="held")
def test_a_copied_volume_is_hashed_once_and_passes(one_client: Client) -> None:
    """The marker stores the new times, so the next check is quick again."""
    assert one_client.fetch().returncode == 0
    for path in one_client.snapshot.rglob("*"):
        if path.is_file():
            os.utime(path, (1, 1))
    marker = one_client.folder / "torpor" / f"{COMMIT}.complete.json"
    before = json.loads(marker.read_text())["seen"]
    assert one_client.verify().returncode == 0
    after = json.loads(marker.read_text())["seen"]
    assert set(after) == set(before)
    assert {facts[2] for facts in after.values()} == {1_000_000_000}
    assert one_client.verify().returncode == 0


def test_verify_needs_the_manifest_of_the_same_commit(one_client: Client) -> None:
    """Each commit has its own manifest."""
    assert one_client.fetch().returncode == 0
    assert one_client.run("verify", revision="1" * 40).returncode == 66


# --- the file itself --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("revision", ["main", "220b46e", COMMIT.upper()])
def test_only_a_full_commit_id_is_a_revision(one_client: Client, revision: str) -> None:
    """A branch can move. Exit code 2."""
    ran = one_client.fetch(revision=revision)
    assert ran.returncode == 2
    assert f"the revision is {revision!r}; it has to be a commit, 40 lower-case hex digits." in ran.stderr


def test_the_file_stands_alone_on_python_310() -> None:
    """Outside functions it imports the standard library only; inside them, huggingface_hub."""
    tree = ast.parse(SCRIPT.read_text(), feature_version=(3, 10))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} - sys.stdlib_module_names == {"huggingface_hub"}
