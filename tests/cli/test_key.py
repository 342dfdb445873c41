"""`torpor key new`: what it prints is a key that the guard takes, and it leaves nothing behind."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

from torpor.guard import GuardRules
from torpor.guard.keys import BearerKeys
from torpor_sglang import SGLang

if TYPE_CHECKING:
    from pathlib import Path


def new_key(home: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the command with an empty folder as its home and its working folder."""
    return subprocess.run(
        [sys.executable, "-m", "torpor.cli", "key", "new", *options],
        cwd=home,
        env={**os.environ, "HOME": str(home), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


def test_a_new_key_matches_its_digest_and_is_stored_nowhere(tmp_path: Path) -> None:
    """It has 43 characters that fit into a header. Two runs print two keys, only on standard output."""
    first, second = (json.loads(new_key(tmp_path, "--json").stdout) for _ in range(2))
    assert first["key"] != second["key"]
    for made in (first, second):
        assert re.fullmatch(r"[A-Za-z0-9_-]{43,}", made["key"])
        assert made["sha256"] == hashlib.sha256(made["key"].encode()).hexdigest()
    digests = SGLang(api_key_sha256=(first["sha256"],)).api_key_sha256
    keys = BearerKeys(GuardRules(public=("/v1/models",), bearer_sha256=digests).bearer_sha256)
    fit = {
        name: keys.fit({}, {b"authorization": f"Bearer {made['key']}".encode()})
        for name, made in (("first", first), ("second", second))
    }
    assert fit == {"first": True, "second": False}
    assert list(tmp_path.iterdir()) == []


def test_the_text_output_labels_key_and_digest(tmp_path: Path) -> None:
    """The two lines of standard output are the key and its digest; the hint on standard error holds no key."""
    shown = new_key(tmp_path)
    (key_label, key), (digest_label, digest) = (line.split() for line in shown.stdout.splitlines())
    assert (key_label, digest_label) == ("key", "sha256")
    assert digest == hashlib.sha256(key.encode()).hexdigest()
    assert f'api_key_sha256=("{digest}",)' in shown.stderr
    assert key not in shown.stderr
