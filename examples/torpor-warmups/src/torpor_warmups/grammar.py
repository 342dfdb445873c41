"""`GrammarWarmup`: compiles the grammars of your JSON schemas before the snapshot."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torpor import ConfigurationError, Plugin, check_types, hookimpl, override, shown

if TYPE_CHECKING:
    import httpx
    from torpor import Deployment, Engine

__all__ = ["GrammarWarmup"]


@dataclass(frozen=True, kw_only=True)
class GrammarWarmup(Plugin):
    """Sends one request for each JSON schema.

    An engine compiles a schema's grammar, and the kernels that mask tokens, when it first meets them: seconds that no user has to
    wait for. The compiled grammars are in the engine's memory, and so in the snapshot.

    Attributes:
        schemas: JSON schemas, as texts.
        max_tokens: of each answer.
    """

    plugin_name: ClassVar[str] = "grammar_warmup"
    runs_after: ClassVar[tuple[str, ...]] = ("adapter_prompts",)

    schemas: tuple[str, ...]
    max_tokens: int = 8

    def __post_init__(self) -> None:
        check_types(self)
        if not self.schemas or self.max_tokens < 1:
            raise ConfigurationError(
                f"GrammarWarmup: schemas is {shown(self.schemas)} (one or more), max_tokens {self.max_tokens} (1 or more)."
            )
        for schema in self.schemas:
            _object(schema)

    @hookimpl
    @override
    def warmup(self, deployment: Deployment, engine: Engine, client: httpx.Client) -> None:
        for number, schema in enumerate(self.schemas):
            body = {
                "model": deployment.model.served_name,
                "messages": [{"role": "user", "content": "Answer in JSON."}],
                "max_tokens": self.max_tokens,
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": f"schema_{number}", "schema": _object(schema)},
                },
            }
            client.post("/v1/chat/completions", json=body).raise_for_status()


def _object(schema: str) -> dict[str, object]:
    """A schema as an object.

    Raises:
        ConfigurationError: it is no JSON object.
    """
    try:
        value: object = json.loads(schema)
    except ValueError as error:
        raise ConfigurationError(f"GrammarWarmup.schemas holds {shown(schema)}, which is no JSON: {error}.") from error
    if not isinstance(value, dict):
        raise ConfigurationError(f"GrammarWarmup.schemas holds {shown(schema)}; a JSON schema is an object.")
    return value
