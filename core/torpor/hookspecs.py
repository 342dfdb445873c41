"""The six hooks of a server that sleeps in a snapshot and wakes in seconds.

    build      prepare_image    what the container image holds: base, packages, env, volumes       returns values
               compile_kernels  what to compile or download once, ahead of any start               returns values
    start      launch           start the engine process; exactly one plugin does                  acts
               warmup           real requests until nothing is left to compile                     acts
               pre_snapshot     put the engine to sleep; after this nobody talks to it             acts
    -- snapshot (platform) --
    wake       post_restore     wake the engine, once per restored replica                         acts

Hooks run in the order in which the deployment lists its plugins; the engine's own `pre_snapshot` runs last and its
`post_restore` first. Around the hooks core waits for readiness, gates traffic, times every stage, records an answer
before the sleep and compares it after the wake, and ends the engine on any failure. A plugin never does these.

A plugin is a frozen, keyword-only dataclass whose fields are its options. It subclasses `Plugin`, overrides the hooks
that it needs and marks each with `@hookimpl` (and `@override`, so that a type checker sees a misspelt name).

A hook is a plain method. An `async def`, a method with a `yield`, a lambda, a partial, a static or class method would never
run or do nothing, so `Deployment` refuses such a plugin. A hook that acts returns nothing, except that `launch` returns the
engine; any other value is an error.

Before anything is built or started, core also asks every plugin `Plugin.check`. A plugin that overrides `Listener.on_event` or
`Listener.while_serving` hears what becomes of its replicas. A plugin that launches an engine derives from
`EnginePlugin`, which answers what core and other plugins ask about that engine.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, ClassVar

import pluggy

from torpor.errors import PluginError
from torpor.hook_methods import HOOK_NAMES, PROJECT
from torpor.listener.listener import Listener
from torpor.tasks.routes import ROUTES
from torpor.values.setting_names import setting_variable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import httpx

    from torpor.deployment import Deployment
    from torpor.engine.handle import Engine
    from torpor.recipe import BuildPlan, ImagePatch, Recipe
    from torpor.tasks.routes import Task, TaskRoute
    from torpor.values.canary_answers import CanaryQuestion, TokenLogprobs
    from torpor.values.drafts import DraftMethod
    from torpor.values.findings import Finding
    from torpor.values.rank_sleep import RankSleep
    from torpor.values.sleep_parts import SleepPart

__all__ = ["HOOK_NAMES", "PROJECT", "EnginePlugin", "Plugin", "hookimpl", "hookspec"]

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a method as the implementation of the hook of its name. Options: `tryfirst`, `trylast` (pluggy's)."""


class Plugin(Listener):
    """The six hooks, and what every plugin has; the class that plugins derive from.

    Attributes:
        plugin_name: the entry-point name; errors, records and `torpor plan` use it.
        compiles_for_engine: a build step of this plugin, which launches no engine, runs the engine's `kernel_compile_argv`.
        runs_before: names of plugins whose hooks run after this one's, wherever they are listed; they may be missing.
        runs_after: names of plugins whose hooks run before this one's.
        settings: names of the plugin's settings in the environment; see `setting`.
    """

    plugin_name: ClassVar[str] = ""
    compiles_for_engine: ClassVar[bool] = False
    runs_before: ClassVar[tuple[str, ...]] = ()
    runs_after: ClassVar[tuple[str, ...]] = ()
    settings: ClassVar[tuple[str, ...]] = ()

    def setting(self, name: str, default: str = "") -> str:
        """The value of a setting in the environment: `TORPOR_PLUGIN_<PLUGIN>__<NAME>`, in capitals.

        It is for what differs from machine to machine: an address, a token. Read it in a hook that acts or in a listener, never
        while a plan is made.

        Args:
            name: one of `settings`.
            default: for a variable that is not set, or empty.

        Raises:
            PluginError: the plugin does not declare it.
        """
        own = self.plugin_name or type(self).__name__.lower()  # as `torpor.deployment.plugin_name` has it
        if name not in self.settings:
            raise PluginError(
                f"Plugin {own!r} reads its setting {name!r}, but declares {', '.join(self.settings) or 'none'}: "
                "add it to the class attribute `settings`."
            )
        return os.environ.get(setting_variable(own, name), "") or default

    def check(self, deployment: Deployment) -> Iterable[Finding]:  # noqa: ARG002 - the plugin's answer uses it
        """Report what cannot work, or costs money for nothing, in the deployment as a whole.

        This is no hook and takes no `@hookimpl`. `__post_init__` already refuses what is wrong with one option alone.

        When:
            By `torpor plan`, `doctor`, `up`, `snapshot create` and `bench`, and when a Modal app file is imported.
        Where:
            Anywhere, also without the engine, a GPU, credentials or a network.

        Returns:
            Findings, as a tuple or by `yield`; `()` where nothing is wrong. An `error` refuses the deployment, a `warning` is
            shown. Core adds the plugin's name.
        Must not:
            Act, or raise. If it raises or returns anything else, the error names the plugin.

        Example:
            A plugin for engines on a GPU:

                @override
                def check(self, deployment: Deployment) -> Iterator[Finding]:
                    if deployment.gpu is None:
                        yield Finding(level="error", what="GPU", seen="Deployment.gpu is None, and my kernels need a GPU",
                                      cure="name one, e.g. gpu='H100!', or drop this plugin")
        """
        return ()

    def canary_questions(self, deployment: Deployment) -> Iterable[CanaryQuestion]:  # noqa: ARG002 - as above
        """What core asks this plugin's part of the engine before the sleep and after every wake, beside its own canary.

        This is no hook and takes no `@hookimpl`.

        When:
            Once per cold start and once per wake, with the canary. Each question is asked several times before the sleep, so
            that core learns how far equal answers lie apart, and once after a wake.
        Where:
            Where the engine runs.

        Returns:
            Questions, as a tuple or by `yield`; `()` for none. If an answer differs after a wake, the replica does not serve
            (`Deployment.canary_mismatch`), and the error names plugin and question.
        Must not:
            Keep the client; put a secret into an answer: answers stand in the snapshot's manifest.

        Example:
            A plugin that wants its side model to answer as before:

                @override
                def canary_questions(self, deployment: Deployment) -> Iterator[CanaryQuestion]:
                    def ask(client: httpx.Client) -> CanaryAnswer:
                        label = client.post("/side_model/classify", json={"text": "hello"}).raise_for_status().json()["label"]
                        return CanaryAnswer(exact=(label,))

                    yield CanaryQuestion(name="side model", ask=ask)
        """
        return ()

    @hookspec
    def prepare_image(self, deployment: Deployment) -> ImagePatch | None:
        """Say what the container image holds.

        When:
            On the laptop at deploy time, again in the container when it imports the app, and for `torpor plan`.
        Where:
            Anywhere, also without the engine, a GPU, credentials or a network.

        Returns:
            The plugin's share of the image, or None. Two plugins claiming different values for one thing is an error.
        Must not:
            Act, read the clock or the file system, or branch on where it runs: equal deployments give equal values.

        Example:
            A plugin that puts the engine's logs into JSON:

                @hookimpl
                @override
                def prepare_image(self, deployment: Deployment) -> ImagePatch:
                    return ImagePatch(pip=("python-json-logger>=3",), env={"ENGINE_LOG_FORMAT": "json"})
        """

    @hookspec
    def compile_kernels(self, deployment: Deployment) -> BuildPlan | None:
        """Say what to compile or download once, ahead of any start, and what to check before each.

        When:
            Asked when the recipe is made; the steps run while the image is built, by ascending `order`.
        Where:
            The hook anywhere; its steps inside the image, with the GPU, volumes and secrets that each names.

        Returns:
            Steps and preflight checks as data, or None.
        Must not:
            Compile or download by itself; put a secret's value anywhere (name the platform's secret instead).

        Example:
            A plugin that fetches a draft model and checks it before every launch:

                @hookimpl
                @override
                def compile_kernels(self, deployment: Deployment) -> BuildPlan:
                    fetch = BuildStep(name="draft model", order=10, timeout_s=600, argv=("fetch-draft", "/vol/draft"),
                                      volumes={"/vol/draft": "draft-model"}, outputs=("/vol/draft/config.json",))
                    check = Preflight(name="draft model", argv=("test", "-s", "/vol/draft/config.json"), timeout_s=5,
                                      cure="Deploy again: the volume draft-model was emptied.")
                    return BuildPlan(steps=(fetch,), preflight=(check,))
        """

    @hookspec(firstresult=True)
    def launch(self, deployment: Deployment, recipe: Recipe) -> Engine | None:
        """Start the engine process and return at once; exactly one plugin of a deployment does.

        When:
            Once per cold start, after the preflight checks; never after a restore.
        Where:
            In the serving container (or on the local machine), in the recipe's environment.

        Returns:
            The started engine, from `start_engine`; core waits until it is ready.
        Must not:
            Wait for readiness, talk to the engine, or keep the process anywhere else.

        Example:
            An engine that is one command:

                @hookimpl
                @override
                def launch(self, deployment: Deployment, recipe: Recipe) -> Engine:
                    argv = ("my-engine", "--model", deployment.model.source, "--port", str(deployment.port))
                    return start_engine((*argv, *recipe.engine_args), env=recipe.env)
        """

    @hookspec
    def warmup(self, deployment: Deployment, engine: Engine, client: httpx.Client) -> None:
        """Send real requests until nothing is left to compile, load or allocate lazily.

        When:
            Once per cold start, when the engine is ready, before the canary is recorded and the port is opened.
        Where:
            In the serving container. `client` is bound to the engine and carries the guard's key.

        Returns:
            Nothing. Raise to fail the start.
        Must not:
            Keep the client or a socket; leave a request running; put the engine to sleep.

        Example:
            One long prompt, so that the prefill kernels of that shape exist before the snapshot:

                @hookimpl
                @override
                def warmup(self, deployment: Deployment, engine: Engine, client: httpx.Client) -> None:
                    body = {"model": deployment.model.served_name, "max_tokens": 1,
                            "messages": [{"role": "user", "content": "word " * 4000}]}
                    client.post("/v1/chat/completions", json=body, timeout=120).raise_for_status()
        """

    @hookspec
    def pre_snapshot(self, deployment: Deployment, engine: Engine, client: httpx.Client) -> None:
        """Put the engine to sleep; after this nobody talks to it until the wake.

        When:
            Once per sleep, when no request is in flight. The engine's own implementation runs last (`trylast`).
        Where:
            In the serving container, or in the local machine's sandbox.

        Returns:
            Nothing. Raise to call the snapshot off; core then ends the engine.
        Must not:
            Leave a socket, a temporary file or a thread with a timer behind: it would wake in every replica.

        Example:
            A plugin that flushes its own side cache first:

                @hookimpl
                @override
                def pre_snapshot(self, deployment: Deployment, engine: Engine, client: httpx.Client) -> None:
                    client.post("/side_cache/flush", timeout=10).raise_for_status()
        """

    @hookspec
    def post_restore(self, deployment: Deployment, engine: Engine, client: httpx.Client) -> None:
        """Wake the engine, once per restored replica.

        When:
            Once per wake, before the canary is compared and traffic is let in. The engine's own runs first (`tryfirst`).
        Where:
            In the restored container. Clocks have jumped, old sockets are dead, `client` is new.

        Returns:
            Nothing. Raise to fail the wake; the replica then never serves.
        Must not:
            Repeat a wake call that timed out: for some engines the second one is deadly.

        Example:
            A plugin that makes what must differ between replicas new again:

                @hookimpl
                @override
                def post_restore(self, deployment: Deployment, engine: Engine, client: httpx.Client) -> None:
                    client.post("/reseed", json={"seed": int.from_bytes(os.urandom(8))}, timeout=10).raise_for_status()
        """


class EnginePlugin(Plugin):
    """A plugin that launches an engine: it answers what core and other plugins ask about that engine.

    Core asks through `Deployment.engine`, and so do plugins. `torpor.engine_plugins.ChatServer` has most of the answers for
    an engine that is an OpenAI-like HTTP server.

    Attributes:
        supports_sleep: the engine can release its memory and get it back.
        public_paths: the engine's HTTP paths that anyone may call; everything else stays behind the guard. An engine with more than
            one task answers `public_routes`.
        ready_path: an engine path that answers 200 as soon as the engine serves chat requests.
        guarded: the engine's server process runs `torpor.guard`.
        gives_logprobs: the canary can ask for log probabilities (`ask_logprobs`); otherwise it compares the text of an answer.
        serves_adapters: the engine loads the LoRA adapters of `Model.adapters` with the model, and answers to their names. A
            deployment with adapters and another engine is refused.
        nccl_versions: for an engine whose ranks talk by NCCL, pairs of the engine's version and the NCCL that its own packages
            bring (`("0.5.23", "2.30.7")`), of the wheels for CUDA 13 where there are several. Core refuses a snapshot of several
            GPUs whose NCCL cannot suspend its communicators. Empty for an engine without NCCL.
        compile_lines: regular expressions of the engine's log lines that tell that something was compiled. Core counts them, and
            the new files of `kernel_cache_env`, for the first 20 requests after each start.
    """

    supports_sleep: ClassVar[bool] = False
    public_paths: ClassVar[tuple[str, ...]] = ()
    ready_path: ClassVar[str] = "/v1/models"
    guarded: ClassVar[bool] = False
    gives_logprobs: ClassVar[bool] = False
    serves_adapters: ClassVar[bool] = False
    nccl_versions: ClassVar[tuple[tuple[str, str], ...]] = ()
    compile_lines: ClassVar[tuple[str, ...]] = ()

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What the engine's version can serve (`torpor.tasks.routes.Task`); a deployment with another task is refused."""
        return ("chat",)

    def public_routes(self, task: Task) -> tuple[str, ...]:  # noqa: ARG002 - an engine with several tasks uses it
        """The paths that anyone may call while a task is served; by default `public_paths`."""
        return self.public_paths

    @property
    def draft_methods(self) -> tuple[DraftMethod, ...]:
        """The methods of speculative decoding that the engine has as it is configured (`Model.draft`); others are refused."""
        return ()

    def task_route(self, task: Task) -> TaskRoute:
        """Where a task is asked, and what its body calls things; override it for what differs from `torpor.tasks.routes.ROUTES`."""
        return ROUTES[task]

    @property
    def engine_version(self) -> str:
        """The engine's version."""
        return ""

    @property
    def engine_python(self) -> str:
        """The interpreter that runs the engine, where the engine is a Python program."""
        return sys.executable

    @property
    def health_path(self) -> str:
        """A path behind the guard that only an engine answers which still works on requests; empty if it has none.

        It is asked with the lifecycle key while requests are in flight (`torpor.runtime.answering`).
        """
        return ""

    def log_progress(self, line: str) -> str:  # noqa: ARG002
        """The start's progress in a few words, if this line of the engine's log tells it; otherwise empty."""
        return ""

    def flag_reasons(self) -> Mapping[str, str]:
        """The reason for each flag of `engine_argv`, by the flag's name; for `torpor plan`."""
        return {}

    def engine_argv(self, deployment: Deployment, recipe: Recipe) -> tuple[str, ...]:  # noqa: ARG002
        """The engine's command line, for `torpor plan`; `launch` starts exactly this."""
        return ()

    def served_names(self, deployment: Deployment, client: httpx.Client) -> tuple[str, ...]:  # noqa: ARG002
        """Every model name that a request may give, adapters included; the canary asks each of them."""
        return deployment.model.served_names

    @property
    def most_adapter_rank(self) -> int | None:
        """The highest rank of a LoRA adapter that the engine is configured for; None for any."""
        return None

    def ask_logprobs(
        self, deployment: Deployment, client: httpx.Client, *, model: str, prompt: str, tokens: int
    ) -> TokenLogprobs:
        """Ask for the log probabilities of a prompt's tokens and of a greedy answer, in one request; for the canary.

        Args:
            deployment: what the engine serves.
            client: bound to the engine, with the lifecycle key.
            model: one of `served_names`.
            prompt: plain text, without a chat template.
            tokens: length of the answer, whatever the model would end it with.

        Raises:
            EngineRequestError: the engine gave another answer.
        """
        raise NotImplementedError

    def forget_prompts(self, client: httpx.Client) -> None:
        """Empty the engine's prefix cache: with a prompt's beginning in it other kernels run, and numbers differ a little."""

    def rank_sleep(self, deployment: Deployment) -> RankSleep | None:  # noqa: ARG002 - the engine plugin's answer uses it
        """What each of the engine's ranks frees on its GPU while it sleeps, for `torpor plan` and `doctor`; None if unknown."""
        return None

    def sleep_parts(self, deployment: Deployment) -> tuple[SleepPart, ...]:  # noqa: ARG002 - the engine plugin's answer uses it
        """What a sleep drops, and who restores it: one part for each kind of memory, with the option that decides.

        `torpor plan` shows them. Core refuses a deployment that would lose one. An engine that sleeps names at least its weights.
        """
        return ()

    def load_formats(self) -> Mapping[str, tuple[str, ...]]:
        """The engine's fast weight loaders: the engine's name of each, and the Python packages that it needs in the image."""
        return {}

    def kernel_cache_env(self, deployment: Deployment) -> dict[str, str]:  # noqa: ARG002 - the engine plugin's answer uses it
        """Variables that put every kernel cache of the engine under `IMAGE_ROOT/kernels`."""
        return {}

    def kernel_compile_argv(self, deployment: Deployment) -> tuple[str, ...] | None:  # noqa: ARG002
        """The engine's own kernel compile command with the serving flags, or None when it has none."""
        return None

    def kernel_compile_env(self, deployment: Deployment, *, fast: bool, at_load: bool) -> dict[str, str]:  # noqa: ARG002
        """Variables that switch the engine's FP8 GEMM kernels on and say how they are compiled.

        Args:
            deployment: what the engine serves.
            fast: compile only a selection of batch shapes; the engine compiles each other shape when it first meets it.
            at_load: load the kernels of every shape with the model, before any request.

        Raises:
            ConfigurationError: the engine's version cannot do that.
        """
        return {}
