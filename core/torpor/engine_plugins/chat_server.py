"""`ChatServer`: the common part of plugins for engines that are OpenAI-like HTTP servers behind the guard."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from torpor._override import override
from torpor.engine.start import start_engine
from torpor.engine_plugins import later
from torpor.engine_plugins.adapters import ADAPTER_OPTIONS, adapter_folders
from torpor.engine_plugins.drafts import check_draft_words, draft_findings
from torpor.engine_plugins.features import FEATURES, MEDIA, Feature, Medium
from torpor.engine_plugins.gpus import ParallelFlags, gpu_findings, gpus_needed, untried_findings
from torpor.engine_plugins.kernel_caches import COMPILE_LINES
from torpor.engine_plugins.logprobs import ask_completion, listed_names
from torpor.errors import ConfigurationError, ConflictError, EngineRequestError
from torpor.guard import GuardRules
from torpor.hookspecs import EnginePlugin, hookimpl
from torpor.launcher.public_requests import (
    ALLOWED_FIELDS_VARIABLE,
    ANY_DOMAIN,
    MAX_CHOICES,
    MAX_CHOICES_VARIABLE,
    MAX_INPUTS,
    MAX_INPUTS_VARIABLE,
    MEDIA_DOMAINS_VARIABLE,
    REFUSED_FIELDS_VARIABLE,
)
from torpor.recipe import split_flags
from torpor.tasks.routes import ROUTES
from torpor.values.checks import check_seconds
from torpor.values.field_types import article, check_types, shown
from torpor.values.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    import httpx

    from torpor.deployment import Deployment
    from torpor.engine.handle import Engine
    from torpor.engine_plugins.reserved import Reservations
    from torpor.launcher.public_requests import RequestFields
    from torpor.recipe import Recipe
    from torpor.tasks.routes import Task, TaskRoute
    from torpor.values.canary_answers import CanaryQuestion, TokenLogprobs

__all__ = ["SNAPSHOT_ENV", "ChatServer", "Routes", "call", "call_object"]

SNAPSHOT_ENV = {
    # No pool of Inductor workers may be alive in a snapshot; SGLang does not set this, vLLM does.
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
    # Otherwise each start compiles torch's headers again, 155 MB in the temporary folder, whatever its kernel cache holds.
    # They would be in the snapshot, and every replica would unpack them (torch 2.13, _inductor/codecache.py: `_HEADER_DIR`).
    "TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS": "0",
    "TOKENIZERS_PARALLELISM": "false",
    # A stale NCCL graph registration hangs after a release (torch_memory_saver#88) or pins memory (vLLM config/vllm.py).
    "NCCL_GRAPH_REGISTER": "0",
}
"""What every engine that is built on torch needs for a snapshot."""

COMPLETIONS = "/v1/completions"
"""What the canary asks for log probabilities, if the engine has no better route: open to the lifecycle where it is closed."""

_OK = 200
_MOST = 2**31 - 1
_MOST_WORDS, _MOST_BURST, _MOST_GPUS, _MOST_BYTES = 1_000_000, 10_000, 1024, 2**50
_SHA256_HEX_DIGITS = 64
_GENERATING: tuple[Task, ...] = ("chat", "generate")
_FOR_ALL = "open_tokenize"
"""The option that opens its routes for every task."""


class Routes(Protocol):
    """A module with lists of an engine's routes by who may call them."""

    @property
    def PUBLIC(self) -> tuple[str, ...]:  # noqa: N802 - a constant of the module
        """Open to everybody while the engine serves, whatever the task is."""

    @property
    def TASKS(self) -> Mapping[Task, tuple[str, ...]]:  # noqa: N802
        """The further routes that are open for each task; the first one is asked by warm-up and canary."""

    @property
    def OPENED(self) -> Mapping[str, tuple[str, ...]]:  # noqa: N802
        """The routes that an option of the plugin opens, by the option's name."""

    @property
    def LACKING(self) -> Mapping[str, tuple[str, ...]]:  # noqa: N802
        """The routes of TASKS and OPENED that a version does not have, by the version."""

    @property
    def KEYED(self) -> tuple[str, ...]:  # noqa: N802
        """Open with the lifecycle key while the engine is awake."""

    @property
    def DOCS(self) -> tuple[str, ...]:  # noqa: N802
        """The routes of KEYED that describe the API."""

    @property
    def ANSWERED(self) -> tuple[str, ...]:  # noqa: N802
        """Answered by the guard in the engine's place."""

    @property
    def CLOSED(self) -> tuple[tuple[str, tuple[str, ...]], ...]:  # noqa: N802
        """Closed to everybody; pairs of a reason and its paths."""


@dataclass(frozen=True, kw_only=True)
class ChatServer(EnginePlugin):
    """The base class of engine plugins. A subclass adds its engine's flags, routes and calls.

    Attributes:
        version: the engine's version.
        image: registry reference of an image with that version.
        python: interpreter in which the engine is installed.
        device: `cuda` or `cpu`.
        tensor_parallel: GPUs that share the model. With what `extra_args` say of pipelines and of data parallelism they are as
            many as the deployment's GPUs: neither more nor fewer. On a CPU: processes that share it.
        attention_backend: the backend's name in the engine; None leaves the choice to the engine.
        load_format: the engine's name of the way to read weights; None leaves the choice to the engine or another plugin.
        dummy_weights: random weights instead of the model's, for trials.
        metrics: serve Prometheus metrics on /metrics (with the lifecycle key).
        open_metrics: serve them to everybody.
        open_docs: serve the API's description, /docs and /openapi.json, to everybody; otherwise it needs the lifecycle key.
        open_completions: also serve /v1/completions; only for the task `chat` (for `generate` it is always open).
        open_responses: also serve OpenAI's Responses API, which keeps nothing between requests; for `chat` and `generate`.
        open_messages: also serve Anthropic's Messages API; for `chat` and `generate`.
        open_tokenize: also serve the engine's tokenizer, /tokenize and /detokenize; for every task.
        max_body_bytes: largest request body, bytes. How many requests may be in flight is `Scaling.max_concurrency`.
        media_domains: hosts from which media in a public request may be fetched; `*` allows every host and every redirect.
            Media in a data: URL always passes; files are never opened.
        max_choices: answers that one public request may ask for: `n` times its prompts.
        max_inputs: texts that one public request of `embed`, `rerank`, `score` or `classify` may hold.
        allowed_fields: fields and headers that the plugin refuses by default (its `fields.py`) and that you allow.
        refused_fields: further request fields to refuse, e.g. `regex`.
        max_adapter_rank: highest rank among the adapters of `Model.adapters`; the engine's buffers have this size.
        adapters_per_batch: adapters that requests in one batch may ask for; the others wait in host memory meanwhile. None for
            all of them.
        api_key_sha256: SHA-256 of bearer keys, 64 lower-case hex digits each; with any, the public paths ask for one.
            `torpor key new` makes a key and its digest.
        warmup_prompt_words: prompt lengths of the warm-up, words.
        warmup_burst: requests sent at once at the end of the warm-up.
        warmup_features: what the warm-up asks for beside plain text, because an engine compiles for it when it first meets it:
            all of `FEATURES` (JSON schemas, tools, log probabilities, penalties, ...). Leave out what no client asks for.
        media: what the model takes beside text in a chat, `image` and `audio`: it is warmed up, and the canary asks about it. None
            reads that from the model's config.json, where that is on the machine that serves (`Model.path`, or HF_HUB_CACHE).
        warmup_request_timeout_s: seconds without a byte for one warm-up request, which may compile kernels.
        extra_args: further engine flags, passed through.
    """

    guarded: ClassVar[bool] = True
    compile_lines: ClassVar[tuple[str, ...]] = COMPILE_LINES
    ready_path: ClassVar[str] = "/v1/models"
    adapter_tasks: ClassVar[tuple[Task, ...]] = ()
    """The tasks for which the engine applies adapters."""
    supported_versions: ClassVar[tuple[str, ...]] = ()
    default_images: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Pairs of version and image, for versions that need no `image`."""
    launcher: ClassVar[str] = ""
    """Module that the engine's interpreter runs, with the engine's flags."""
    routes: ClassVar[Routes]
    reserved: ClassVar[Reservations]
    request_fields: ClassVar[RequestFields]
    parallel_flags: ClassVar[ParallelFlags] = ParallelFlags()
    """Flags among `extra_args` that say how many GPUs the engine takes."""
    progress_lines: ClassVar[tuple[tuple[str, str], ...]] = ()
    """How far a start is, by lines of the engine's log: a regular expression, and words with its groups as {0}, {1}, ..."""

    version: str = ""
    image: str | None = None
    python: str = "python3"
    device: str = "cuda"
    tensor_parallel: int = 1
    attention_backend: str | None = None
    load_format: str | None = None
    dummy_weights: bool = False
    metrics: bool = True
    open_metrics: bool = False
    open_docs: bool = False
    open_completions: bool = False
    open_responses: bool = False
    open_messages: bool = False
    open_tokenize: bool = False
    max_body_bytes: int = 32 * 1024 * 1024
    media_domains: tuple[str, ...] = ()
    max_choices: int = MAX_CHOICES
    max_inputs: int = MAX_INPUTS
    allowed_fields: tuple[str, ...] = ()
    refused_fields: tuple[str, ...] = ()
    max_adapter_rank: int = 16
    adapters_per_batch: int | None = None
    api_key_sha256: tuple[str, ...] = ()
    warmup_prompt_words: tuple[int, ...] = (8, 600)
    warmup_burst: int = 4
    warmup_features: tuple[Feature, ...] = FEATURES
    media: tuple[Medium, ...] | None = None
    warmup_request_timeout_s: float = 500.0
    extra_args: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        name = type(self).__name__
        self._check_keys()
        check_types(self)
        if self.version not in self.supported_versions:
            raise ConfigurationError(
                f"{name}.version is {shown(self.version)}; supported are {', '.join(self.supported_versions)}."
            )
        if self.device not in ("cuda", "cpu"):
            raise ConfigurationError(f"{name}.device is {shown(self.device)}; allowed are 'cuda' and 'cpu'.")
        for option in ("image", "python", "attention_backend", "load_format"):
            self.one_word(option)
        if self.device == "cuda" and self.image is None and self.version not in dict(self.default_images):
            example = dict(self.default_images).get(self.supported_versions[0], "registry/image:tag").partition(":")[0]
            raise ConfigurationError(
                f"{name}.image is required for version {self.version}: give the registry reference of an image that holds it, "
                f"e.g. image='{example}:v{self.version}-...' with the tag from the engine's releases."
            )
        self.at_least("tensor_parallel", 1, _MOST_GPUS)
        self.at_least("warmup_burst", 0, _MOST_BURST)
        self.at_least("max_body_bytes", 1, _MOST_BYTES)
        self.at_least("max_choices", 1)
        self.at_least("max_inputs", 1)
        self.at_least("max_adapter_rank", 1)
        self.at_least("adapters_per_batch", 1)
        self._check_opened()
        self._check_request_options()
        if not self.warmup_prompt_words:
            raise ConfigurationError(f"{name}.warmup_prompt_words is empty; give at least one prompt length in words.")
        if not all(1 <= words <= _MOST_WORDS for words in self.warmup_prompt_words):
            raise ConfigurationError(
                f"{name}.warmup_prompt_words is {shown(self.warmup_prompt_words)}; a prompt has 1 to {_MOST_WORDS} words."
            )
        self._check_features()
        self.seconds("warmup_request_timeout_s")
        self.reserved.check_extra_args(self.version, self.extra_args)

    def _check_features(self) -> None:
        """Refuse a feature or a medium that the warm-up does not know."""
        known: dict[str, tuple[str, ...]] = {"warmup_features": FEATURES, "media": MEDIA}
        for option, allowed in known.items():
            for given in getattr(self, option) or ():
                if given not in allowed:
                    raise ConfigurationError(
                        f"{type(self).__name__}.{option} holds {shown(given)}; there are {', '.join(allowed)}."
                    )

    def _check_keys(self) -> None:
        """Refuse what is no digest, without showing it: it may be a key."""
        keys: object = self.api_key_sha256
        seen = ""
        if not isinstance(keys, tuple | list):
            seen = f"it is {article(keys)}, and has to be a tuple of them"
        else:
            for number, digest in enumerate(keys, start=1):
                if not isinstance(digest, str):
                    seen = seen or f"item {number} is {article(digest)}"
                elif len(digest) != _SHA256_HEX_DIGITS:
                    seen = seen or f"item {number} has {len(digest)} characters"
                elif set(digest) - set("0123456789abcdef"):
                    seen = seen or f"item {number} has characters that are none of them"
        if seen:
            raise ConfigurationError(
                f"{type(self).__name__}.api_key_sha256 holds SHA-256 digests of keys, {_SHA256_HEX_DIGITS} lower-case hex digits "
                f"each, and never a key itself; {seen}. `torpor key new` makes a key and its digest."
            )

    def _check_opened(self) -> None:
        """Refuse an option that opens what the version does not have."""
        lacking = self.routes.LACKING.get(self.version, ())
        for option, paths in self.routes.OPENED.items():
            if getattr(self, option) and set(paths) <= set(lacking):
                having = [
                    version
                    for version in self.supported_versions
                    if not set(paths) <= set(self.routes.LACKING.get(version, ()))
                ]
                raise ConfigurationError(
                    f"{type(self).__name__}.{option} is on, but version {self.version} has no {paths[0]}; versions that have it: "
                    f"{', '.join(having) or 'none'}. Leave it out, or choose one of them."
                )

    def _check_request_options(self) -> None:
        """Refuse invalid hosts, and fields that the engine's requests do not have."""
        name = type(self).__name__
        for host in self.media_domains:
            if host != ANY_DOMAIN and (host != host.strip().lower() or set(host) & set("/:@,*") or not host):
                raise ConfigurationError(
                    f"{name}.media_domains holds {host!r}, which is no host: write it in lower case, without scheme, port or "
                    "path, e.g. 'images.example.org'; '*' alone allows every host."
                )
        if ANY_DOMAIN in self.media_domains and len(self.media_domains) > 1:
            raise ConfigurationError(f"{name}.media_domains holds '*' beside hosts; give either.")
        fields = self.request_fields
        known = {*fields.all(), *(name for _, names in fields.refused_headers for name in names)}
        for option in ("allowed_fields", "refused_fields"):
            for field in getattr(self, option):
                if field not in known:
                    raise ConfigurationError(
                        f"{name}.{option} holds {field!r}, which is no field of a request to {self.reserved.table.engine}; "
                        f"known are {', '.join(sorted(known))}."
                    )

    def request_env(self) -> dict[str, str]:
        """Variables for the launcher's patch `public-requests`; none for default options."""
        given = {
            MEDIA_DOMAINS_VARIABLE: ",".join(self.media_domains),
            MAX_CHOICES_VARIABLE: "" if self.max_choices == MAX_CHOICES else str(self.max_choices),
            MAX_INPUTS_VARIABLE: "" if self.max_inputs == MAX_INPUTS else str(self.max_inputs),
            ALLOWED_FIELDS_VARIABLE: ",".join(self.allowed_fields),
            REFUSED_FIELDS_VARIABLE: ",".join(self.refused_fields),
        }
        return {variable: value for variable, value in given.items() if value}

    def at_least(self, option: str, lowest: int, highest: int = _MOST) -> None:
        """Refuse a number outside the limits; None is allowed.

        Raises:
            ConfigurationError: names option, value and limit.
        """
        value, name = getattr(self, option), type(self).__name__
        if value is not None and value < lowest:
            raise ConfigurationError(f"{name}.{option} is {value}; the lowest allowed value is {lowest}.")
        if value is not None and value > highest:
            raise ConfigurationError(f"{name}.{option} is {value}; the highest allowed value is {highest}.")

    def between_0_and_1(self, option: str) -> None:
        """Refuse a share that is not between 0 and 1; None is allowed.

        Raises:
            ConfigurationError: names option and value.
        """
        value = getattr(self, option)
        if value is not None and not 0 < value < 1:
            raise ConfigurationError(f"{type(self).__name__}.{option} is {value}; it has to be between 0 and 1.")

    def seconds(self, option: str) -> None:
        """Refuse a time that is not above 0, or longer than 30 days.

        Raises:
            ConfigurationError: names option and value.
        """
        check_seconds(f"{type(self).__name__}.{option}", getattr(self, option))

    def one_word(self, option: str) -> None:
        """Refuse a text that is empty or more than one line; None is allowed.

        Raises:
            ConfigurationError: names option and value.
        """
        value = getattr(self, option)
        if value is not None and (not value.strip() or not value.isprintable() or value.startswith("-")):
            raise ConfigurationError(
                f"{type(self).__name__}.{option} is {shown(value)}; it has to be text of one line that does not begin with '-'."
            )

    @property
    @override
    def tasks(self) -> tuple[Task, ...]:
        lacking = self.routes.LACKING.get(self.version, ())
        return tuple(task for task, paths in self.routes.TASKS.items() if paths[0] not in lacking)

    @override
    def public_routes(self, task: Task) -> tuple[str, ...]:
        lacking = self.routes.LACKING.get(self.version, ())
        opened = [path for option in self._opened(task) for path in self.routes.OPENED[option]]
        paths = dict.fromkeys((*self.routes.TASKS[task], *self.routes.PUBLIC, *opened))
        return tuple(path for path in paths if path not in lacking)

    @override
    def task_route(self, task: Task) -> TaskRoute:
        return ROUTES[task]._replace(path=self.routes.TASKS[task][0])

    def _opened(self, task: Task) -> tuple[str, ...]:
        """The options that open further routes, if they go with the task."""
        return tuple(
            option
            for option in self.routes.OPENED
            if getattr(self, option) and (task in _GENERATING or option == _FOR_ALL)
        )

    @property
    @override
    def most_adapter_rank(self) -> int | None:
        return self.max_adapter_rank

    def adapter_word(self, deployment: Deployment, name: str, folder: str) -> str:
        """An adapter as the engine's flag takes it.

        Args:
            deployment: whose adapter.
            name: that clients send.
            folder: with its files.
        """
        raise NotImplementedError

    def adapter_refusal(self, deployment: Deployment) -> tuple[str, str] | None:
        """Why version, device or options cannot serve adapters, and the cure; None if they can."""
        if deployment.task in self.adapter_tasks:
            return None
        return (
            f"{type(self).__name__} applies no adapters for the task {deployment.task!r}",
            f"leave Model.adapters out, or serve one of the tasks {', '.join(map(repr, self.adapter_tasks))}",
        )

    def adapters_at_once(self, deployment: Deployment) -> int:
        """How many adapters requests in one batch may ask for; 0 without adapters."""
        given = len(deployment.model.adapters)
        return min(given, self.adapters_per_batch or given)

    @property
    @override
    def engine_version(self) -> str:
        return self.version

    @property
    @override
    def engine_python(self) -> str:
        return self.python

    @override
    def log_progress(self, line: str) -> str:
        for pattern, words in self.progress_lines:
            if match := re.search(pattern, line):
                return words.format(*match.groups())
        return ""

    @property
    def base_image(self) -> str | None:
        """The base image; None on a CPU without `image`, where the engine is installed on the machine."""
        if self.device == "cpu":
            return self.image
        return self.image or dict(self.default_images)[self.version]

    def engine_flags(self, deployment: Deployment, *, serving: bool) -> tuple[str, ...]:
        """The plugin's own flags. With `serving` off, only those that compiled kernels depend on."""
        raise NotImplementedError

    @property
    def sees_acceptance(self) -> bool:
        """Whether the canary can see how many guesses of a draft are right."""
        return True

    @override
    def engine_argv(self, deployment: Deployment, recipe: Recipe) -> tuple[str, ...]:
        table, folders = self.reserved.table, adapter_folders(deployment, recipe.env)
        options = {flag.option for flag in table if getattr(self, flag.option, None)} - set(ADAPTER_OPTIONS)
        given_by = {*options, *(ADAPTER_OPTIONS if folders else ())}
        taken = {flag.name(self.version) for flag in table if flag.option in given_by}  # two options may give one flag
        free = {flag.name(self.version) for flag in table if flag.shared} - taken
        self._check_asked_args(recipe, free)
        for given, giver in ((self.extra_args, f"{type(self).__name__}.extra_args"), (recipe.engine_args, "A plugin")):
            check_draft_words(deployment, given, giver=giver)
        words = tuple(self.adapter_word(deployment, name, folder) for name, folder in folders.items())
        flags = (
            *self.engine_flags(deployment, serving=True),
            *table.argv(self.version, {"adapters": words} if words else {}),
        )
        return (self.python, "-m", self.launcher, *flags, *self.extra_args, *recipe.engine_args)

    def _check_asked_args(self, recipe: Recipe, free: Collection[str]) -> None:
        """Refuse flags that other plugins ask for and that this one sets, or `extra_args` has with another value."""
        own = dict(split_flags(self.extra_args))
        for flag, values in split_flags(recipe.engine_args):
            asks = f"Plugin {recipe.origins.get(f'flag:{flag}', 'unknown')!r} asks for the engine's flag {flag}"
            try:
                self.reserved.check_extra_args(self.version, (flag, *values), free=free)
            except ConfigurationError as error:
                raise ConfigurationError(f"{asks}. {error}") from error
            if flag in own and own[flag] != values:
                raise ConflictError(
                    f"{asks} with {' '.join(values) or 'no value'}, and {type(self).__name__}.extra_args has it with "
                    f"{' '.join(own[flag]) or 'no value'}. Drop one of the two."
                )

    @override
    def flag_reasons(self) -> dict[str, str]:
        given = {word.partition("=")[0]: f"given in {type(self).__name__}.extra_args" for word in self.extra_args}
        other = "load_format" if self.dummy_weights else "dummy_weights"  # one flag carries both
        return given | {flag.name(self.version): flag.reason for flag in self.reserved.table if flag.option != other}

    @override
    def check(self, deployment: Deployment) -> Iterable[Finding]:
        name, flags = type(self).__name__, self.parallel_flags
        needed = gpus_needed(self.tensor_parallel, self.extra_args, flags)
        yield from gpu_findings(name, deployment, device=self.device, needed=needed)
        idle = [option for option in self.routes.OPENED if getattr(self, option)]
        for option in set(idle) - set(self._opened(deployment.task)):
            yield Finding(
                level="error",
                what="open routes",
                seen=f"{name}.{option} opens {self.routes.OPENED[option][0]}, which does not go with the task {deployment.task!r}",
                cure=f"leave {option} out, or serve one of the tasks {', '.join(map(repr, _GENERATING))}",
            )
        if deployment.model.adapters and (refusal := self.adapter_refusal(deployment)):
            yield Finding(level="error", what="adapters", seen=refusal[0], cure=refusal[1])
        if self.media and deployment.task != "chat":
            yield Finding(
                level="error",
                what="media",
                seen=f"{name}.media is {self.media!r}, and the task {deployment.task!r} takes no pictures and sounds of chats",
                cure="leave media out",
            )
        yield from draft_findings(
            deployment, self.extra_args, giver=f"{name}.extra_args", compares=self.sees_acceptance
        )
        if self.device == "cuda":
            yield from untried_findings(name, deployment, self.extra_args, flags)

    @hookimpl
    @override
    def launch(self, deployment: Deployment, recipe: Recipe) -> Engine:
        needed = gpus_needed(self.tensor_parallel, self.extra_args, self.parallel_flags)
        if self.device == "cuda" and needed > max(1, deployment.gpu_count):
            raise ConfigurationError(
                f"{type(self).__name__}.tensor_parallel is {self.tensor_parallel}, and the engine takes {needed} GPUs, but "
                f"Deployment.gpu is {deployment.gpu!r}: ask for as many GPUs."
            )
        argv = self.engine_argv(deployment, recipe)
        return start_engine(argv, env=recipe.env, guard=self.guard_rules(deployment))

    @hookimpl
    @override
    def warmup(self, deployment: Deployment, engine: Engine, client: httpx.Client) -> None:
        later.warm_up_deployment(
            client,
            deployment,
            prompt_words=self.warmup_prompt_words,
            burst=min(self.warmup_burst, deployment.scaling.max_concurrency),
            timeout_s=self.warmup_request_timeout_s,
            features=self.warmup_features,
            regex=self.regex_fields(),
            media=self.media,
        )
        self.forget_prompts(client)

    @override
    def canary_questions(self, deployment: Deployment) -> Iterable[CanaryQuestion]:
        if deployment.task != "chat" or self.media == ():
            return ()
        return later.media_questions(deployment, self.media)

    def regex_fields(self) -> Mapping[str, object]:
        """The fields of a request whose answer has to be three to eight small letters; empty if the engine has no such field."""
        return {}

    @override
    def served_names(self, deployment: Deployment, client: httpx.Client) -> tuple[str, ...]:
        if not self.gives_logprobs:
            return deployment.model.served_names
        return listed_names(client.get("/v1/models"), deployment.model.served_names)

    @override
    def ask_logprobs(
        self, deployment: Deployment, client: httpx.Client, *, model: str, prompt: str, tokens: int
    ) -> TokenLogprobs:
        return ask_completion(client, model=model, prompt=prompt, tokens=tokens, engine=type(self).__name__)

    @override
    def forget_prompts(self, client: httpx.Client) -> None:
        """Empty the prefix cache: at the end of the warm-up, and before each question of the canary.

        After a wake the canary runs with an empty prefix cache. With prefixes of the warm-up in the cache other kernels run, and
        near-ties between two tokens resolve differently (seen on an H100 with random weights).
        """
        raise NotImplementedError

    def sleep_steps(self) -> tuple[str, ...]:
        """The paths that put the engine to sleep, in order; for the guard."""
        raise NotImplementedError

    def wake_steps(self) -> tuple[str, ...]:
        """The paths that wake it, in order."""
        raise NotImplementedError

    def guard_rules(self, deployment: Deployment) -> GuardRules:
        """The guard's rules: who may call what while the engine serves, sleeps and wakes."""
        metrics = ("/metrics",) if self.metrics and self.open_metrics else ()
        return GuardRules(
            public=deployment.public_paths,
            open=(*metrics, *(self.routes.DOCS if self.open_docs else ())),
            keyed=(*self.routes.KEYED, *((COMPLETIONS,) if self.gives_logprobs else ())),
            sleep=self.sleep_steps(),
            wake=self.wake_steps(),
            bearer_sha256=self.api_key_sha256,
            max_body_bytes=self.max_body_bytes,
            max_in_flight=deployment.scaling.max_concurrency,
        )


def call(client: httpx.Client, path: str, body: object = None, *, engine: str) -> httpx.Response:
    """Send a management call (POST) and demand 200.

    Args:
        client: bound to the engine, with the lifecycle key.
        path: the path, with its query.
        body: JSON; None sends no body.
        engine: the engine's name, for the message.

    Raises:
        EngineRequestError: the engine gave any other answer.
    """
    response = client.post(path) if body is None else client.post(path, json=body)
    if response.status_code != _OK:
        told = "" if body is None else f" {body}"
        raise EngineRequestError(
            f"{engine} answered POST {path}{told} with {response.status_code}: {response.text[:500]!r}."
        )
    return response


def call_object(client: httpx.Client, path: str, *, engine: str) -> dict[str, object]:
    """Send a management call (POST) and demand 200 with a JSON object; arguments as for `call`.

    Raises:
        EngineRequestError: the engine gave any other answer.
    """
    response = call(client, path, engine=engine)
    try:
        answer: object = response.json()
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise EngineRequestError(f"{engine} answered POST {path} with no JSON object: {response.text[:500]!r}.")
    return answer
