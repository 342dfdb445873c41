"""A store on S3, as s3fs reaches it: moto's server stands in for Amazon's, with its check of credentials."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

import httpx
import pytest

from tests.snapshots.remote.remote_store import files_of, large_snapshot
from tests.snapshots.remote.test_push_pull import interrupt
from torpor import StoreError, UntrustedSnapshotError
from torpor.snapshots.remote.garbage import collect, remove
from torpor.snapshots.remote.listing import list_store
from torpor.snapshots.remote.opening import open_remote
from torpor.snapshots.remote.pull import pull
from torpor.snapshots.remote.push import push
from torpor.snapshots.remote.signature import new_signing_key
from torpor.snapshots.remote.store import Store
from torpor.snapshots.remote.values import Trust
from torpor.testing.ports import unused_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REASON = "needs moto and s3fs: pip install -r requirements/dev.txt"

pytestmark = pytest.mark.slow

BUCKET = "snapshots"
POLICY = '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}'


class S3(NamedTuple):
    """A server with one bucket, and the keys of a user who may do everything in it."""

    address: str
    key_id: str
    secret: str


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    """It checks the credentials of every request that follows. Its packages are imported here: the quick tests do without."""
    pytest.importorskip("moto", reason=REASON)
    boto3 = pytest.importorskip("boto3", reason=REASON)
    port = unused_port()
    address = f"http://127.0.0.1:{port}"
    argv = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(process, address)
        made = {
            "endpoint_url": address,
            "aws_access_key_id": "any",
            "aws_secret_access_key": "any",
            "region_name": "us-east-1",
        }
        iam = boto3.client("iam", **made)
        iam.create_user(UserName="me")
        iam.put_user_policy(UserName="me", PolicyName="all", PolicyDocument=POLICY)
        key = iam.create_access_key(UserName="me")["AccessKey"]
        boto3.client("s3", **made).create_bucket(Bucket=BUCKET)
        httpx.post(f"{address}/moto-api/reset-auth", content=b"0").raise_for_status()
        yield S3(address, key["AccessKeyId"], key["SecretAccessKey"])
    finally:
        process.kill()
        process.wait(30)


@pytest.fixture(autouse=True)
def _credentials(server: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TORPOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.address)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.secret)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    s3fs = pytest.importorskip("s3fs", reason=REASON)
    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()


def _wait(process: subprocess.Popen[bytes], address: str) -> None:
    """Wait until the server answers."""
    end = time.monotonic() + 60
    while True:
        try:
            httpx.get(f"{address}/moto-api/data.json").raise_for_status()
        except httpx.HTTPError:
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        else:
            return


@pytest.mark.fault("a push to S3 is interrupted", area="snapshot store", outcome="held")
def test_a_snapshot_goes_to_s3_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted push is not listed and goes on; what was removed is gone, and so are its chunks."""
    snapshot, store = large_snapshot(tmp_path / "one"), f"s3://{BUCKET}/deep/store"
    with monkeypatch.context() as patched:
        interrupt(patched, "write", after=2)
        with pytest.raises(StoreError, match="the link is down"):
            push(snapshot, f"{store}/one", jobs=1)
    assert (len(Store(store).chunks()), list_store(store)) == (2, [])
    public = new_signing_key(tmp_path / "key")
    assert push(snapshot, f"{store}/one", key=tmp_path / "key").sent == 1
    (entry,) = list_store(store, trust=Trust(keys=(public,)))
    assert (entry.name, entry.trusted) == ("one", True)
    with pytest.raises(UntrustedSnapshotError, match="lies on another machine"):
        open_remote(f"{store}/one")
    pull(open_remote(f"{store}/one", trust=Trust(keys=(public,))), tmp_path / "back")
    assert files_of(tmp_path / "back") == files_of(snapshot)
    assert collect(store, older_than_s=0.0)[:2] == (0, 0)
    remove(f"{store}/one")
    assert (collect(store).young, collect(store, older_than_s=0.0).chunks) == (3, 3)
    with pytest.raises(StoreError, match=r"There is no store at .*: nothing lies there"):
        list_store(store)


@pytest.mark.fault("S3 refuses the credentials", area="snapshot store", outcome="refused")
@pytest.mark.parametrize("wrong", ["key", "secret", "none"])
def test_wrong_credentials_are_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    """Nothing is tried again, and the message is about them."""
    names = {
        "key": ["AWS_ACCESS_KEY_ID"],
        "secret": ["AWS_SECRET_ACCESS_KEY"],
        "none": ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"],
    }
    for name in names[wrong]:
        monkeypatch.setenv(name, "AKIAWRONG")
        if wrong == "none":
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr("torpor.snapshots.remote.store._FIRST_PAUSE_S", 3600.0)
    store = Store(f"s3://{BUCKET}/store")
    for act in (
        lambda: list_store(f"s3://{BUCKET}/store"),
        store.check_writable,
        lambda: open_remote(f"s3://{BUCKET}/store/one"),
    ):
        with pytest.raises(StoreError, match="check the permissions, or the credentials of this machine"):
            act()
    assert not (tmp_path / "cache").exists()


def test_a_bucket_that_does_not_exist_is_named() -> None:
    """For a push, too, before it reads anything."""
    with pytest.raises(StoreError, match="There is no store at s3://nobody/x: there is no bucket nobody"):
        list_store("s3://nobody/x")
    with pytest.raises(StoreError, match="cannot be written: there is no bucket nobody"):
        Store("s3://nobody/x").check_writable()
    Store(f"s3://{BUCKET}/new/place").check_writable()
    assert list_store(f"s3://{BUCKET}") == []
