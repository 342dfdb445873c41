"""The schema of KubeRay's RayService, made as strict as a server that validates fields: an unknown field is an error."""

from __future__ import annotations

import copy
import functools
import gzip
import json
from pathlib import Path
from typing import cast

import jsonschema

FILE = Path(__file__).with_name("rayservice-v1.json.gz")
"""Source and licence stand in the file. To renew it, take the schema of `v1` from the CRD and drop the descriptions."""

Json = dict[str, object]


@functools.cache
def _validator() -> jsonschema.Draft202012Validator:
    schema = cast("Json", json.loads(gzip.decompress(FILE.read_bytes()))["schema"])
    cast("Json", schema["properties"])["metadata"] = {
        "type": "object",
        "required": ["name"],
        "properties": {"name": {"type": "string"}, "namespace": {"type": "string"}},
    }
    _make_strict(schema)
    return jsonschema.Draft202012Validator(schema)


def _make_strict(node: object) -> None:
    """As `kubectl apply --validate=strict`: no unknown field; a number where a number or text may stand."""
    if isinstance(node, list):
        for one in node:
            _make_strict(one)
    if not isinstance(node, dict):
        return
    if isinstance(node.get("properties"), dict) and not node.get("x-kubernetes-preserve-unknown-fields"):
        node.setdefault("additionalProperties", False)
    if node.get("x-kubernetes-int-or-string"):
        node.pop("type", None)
        node["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    for one in list(node.values()):
        _make_strict(one)


def refusals(manifest: Json) -> list[str]:
    """What the schema has against a manifest: the field's path and the message, a line each."""
    found = _validator().iter_errors(manifest)
    return sorted(f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in found)


def changed(manifest: Json, path: str, value: object) -> Json:
    """The manifest with another value at a dotted path; `...` removes what is there."""
    made = copy.deepcopy(manifest)
    *before, last = path.split(".")
    node: object = made
    for part in before:
        node = node[int(part)] if isinstance(node, list) else cast("Json", node)[part]
    inner = cast("Json", node)
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return made
