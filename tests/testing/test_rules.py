"""Every rule of the kit catches the plugin that breaks it, and says what to do."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING
from unittest import mock

import httpcore  # noqa: F401  # httpx imports it on first use; each inner session would then get a different module
import pytest

from torpor.snapshots.store.paths import CACHE_VARIABLE, cache_root
from torpor.testing import EngineContract, PluginContract

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest_plugins = "pytester"

ONLY_THE_KIT = ("-p", "no:cacheprovider", "-p", "torpor.testing.pytest_plugin")
"""Options of the inner sessions: other installed plugins would cost seconds."""


@pytest.fixture(autouse=True)
def _own_environment() -> Iterator[None]:
    """Inner sessions load no other plugins; the test undoes their changes of the environment."""
    with mock.patch.dict(os.environ, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1"):
        yield


CACHE = cache_root()

HEADER = """
import os, random, socket, subprocess, tempfile, time
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar
from torpor import BuildPlan, BuildStep, Deployment, EnginePlugin, ImagePatch, Model, Plugin, Preflight, hookimpl, start_engine
from torpor.testing import Fault, StandIn, StandInVLLM

value = dataclass(frozen=True, kw_only=True)
"""

TESTS = """
import pytest
from broken import Broken
from torpor.testing import {contract}

class TestBroken({contract}):
    @pytest.fixture
    def plugin(self):
        return {instance}
"""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A plugin that breaks one rule.

    Attributes:
        rule: the rule's test.
        plugin: source of the class `Broken`.
        says: texts that the failure's message must contain: the observation, and what to do.
        instance: expression with which the fixture creates the plugin.
        extra: more source of the test class.
        module: name of an empty module in place of a heavy library.
    """

    rule: str
    plugin: str
    says: tuple[str, ...]
    instance: str = "Broken()"
    extra: str = ""
    module: str = ""


PLUGIN_CASES = {
    "not frozen": Case(
        rule="test_is_a_frozen_dataclass",
        plugin="@dataclass(kw_only=True)\nclass Broken(Plugin):\n    a: int = 1",
        says=("Broken is a dataclass that can be changed", "decorate class Broken itself with @dataclass(frozen=True"),
    ),
    "no dataclass": Case(
        rule="test_is_a_frozen_dataclass",
        plugin="class Broken(Plugin):\n    pass",
        says=("Broken is no dataclass", "decorate class Broken itself"),
    ),
    "positional option": Case(
        rule="test_options_are_keyword_only",
        plugin="@dataclass(frozen=True)\nclass Broken(Plugin):\n    folder: str = ''",
        says=("takes folder by position", "@dataclass(frozen=True, kw_only=True)"),
    ),
    "list option": Case(
        rule="test_is_hashable",
        plugin="@value\nclass Broken(Plugin):\n    words: list = field(default_factory=list)",
        says=("cannot be hashed", "look at words", "use tuples"),
    ),
    "own equality": Case(
        rule="test_equal_options_make_equal_plugins",
        plugin="@dataclass(frozen=True, kw_only=True, eq=False)\nclass Broken(Plugin):\n    a: int = 1",
        says=("built again from its own options is not equal", "leave __eq__ to the dataclass"),
    ),
    "local class": Case(
        rule="test_survives_pickling",
        plugin="def make():\n    @value\n    class Local(Plugin):\n        pass\n    return Local\nBroken = make()",
        says=("Local cannot be pickled", "top level of a module"),
    ),
    "pickle loses an option": Case(
        rule="test_survives_pickling",
        plugin="@value\nclass Broken(Plugin):\n    a: int = 1\n    def __reduce__(self):\n        return Broken, ()",
        instance="Broken(a=2)",
        says=("comes back from a pickle as Broken(a=1)", "compare by value"),
    ),
    "no name": Case(
        rule="test_has_a_name",
        plugin="@value\nclass Broken(Plugin):\n    pass",
        says=("Broken.plugin_name is ''", "with the name of the entry point"),
    ),
    "name with a dash": Case(
        rule="test_has_a_name",
        plugin="@value\nclass Broken(Plugin):\n    plugin_name = 'my-plugin'",
        says=("plugin_name is 'my-plugin'", "lower-case letters, digits and underscores"),
    ),
    "heavy module": Case(
        rule="test_module_imports_nothing_heavy",
        plugin="import vllm\n@value\nclass Broken(Plugin):\n    pass",
        module="vllm",
        says=("`import broken` also imports vllm", "into the hook that acts"),
    ),
    "module that needs the engine": Case(
        rule="test_module_imports_nothing_heavy",
        plugin="import sys\nif 'pytest' not in sys.modules:\n    import no_such_engine\n@value\nclass Broken(Plugin):\n    pass",
        says=(
            "fails in a fresh interpreter: ModuleNotFoundError: No module named 'no_such_engine'",
            "inside launch or warmup",
        ),
    ),
    "hook without marker": Case(
        rule="test_marks_every_hook",
        plugin="@value\nclass Broken(Plugin):\n    def warmup(self, deployment, engine, client):\n        pass",
        says=("has warmup without @hookimpl", "put @hookimpl (torpor.hookimpl) above"),
    ),
    "no hook": Case(
        rule="test_marks_every_hook",
        plugin="@value\nclass Broken:\n    plugin_name = 'broken'",
        says=("Broken implements no hook and hears nothing", "override the hook that you need"),
    ),
    "coroutine listener": Case(
        rule="test_listener_methods_are_plain_methods",
        plugin="@value\nclass Broken(Plugin):\n    plugin_name = 'broken'\n    async def on_event(self, event):\n        pass",
        says=("Broken.on_event is an async def", "plain methods without @hookimpl"),
    ),
    "listener that knows one event": Case(
        rule="test_hears_every_event",
        plugin="@value\nclass Broken(Plugin):\n    plugin_name = 'broken'\n    def on_event(self, event):\n        event.record",
        says=("Broken.on_event raises AttributeError", "at StartFailed of a cold start", "ignore the others"),
    ),
    "listener that hangs": Case(
        rule="test_hears_every_event",
        plugin=(
            "@value\nclass Broken(Plugin):\n    plugin_name = 'broken'\n    listener_deadline_s = 0.1\n"
            "    def on_event(self, event):\n        time.sleep(5)"
        ),
        says=("did not return within 0.1 s at StageEnded", "hand slow work to while_serving"),
    ),
    "background that outlives its replica": Case(
        rule="test_ends_with_the_replica",
        plugin=(
            "@value\nclass Broken(Plugin):\n    plugin_name = 'broken'\n    listener_deadline_s = 0.1\n"
            "    def while_serving(self, serving, ending):\n        time.sleep(5)"
        ),
        says=("Broken.while_serving did not return within 0.1 s", "ending.wait(seconds)"),
    ),
    "unknown hook": Case(
        rule="test_marks_nothing_but_hooks",
        plugin="@value\nclass Broken(Plugin):\n    @hookimpl\n    def after_sleep(self, deployment):\n        pass",
        says=("Broken.after_sleep is no hook.", "drop @hookimpl"),
    ),
    "misspelt hook": Case(
        rule="test_marks_nothing_but_hooks",
        plugin="@value\nclass Broken(Plugin):\n    def warm_up(self, deployment):\n        pass",
        says=("Broken.warm_up is no hook; warmup is", "rename it to warmup"),
    ),
    "unknown argument": Case(
        rule="test_hooks_take_the_specifications_arguments",
        plugin="@value\nclass Broken(Plugin):\n    @hookimpl\n    def prepare_image(self, deployment, engine):\n        pass",
        says=("the parameter engine: the specification has none of that name", "make the rest an option"),
    ),
    "argument with a default": Case(
        rule="test_hooks_take_the_specifications_arguments",
        plugin="@value\nclass Broken(Plugin):\n    @hookimpl\n    def prepare_image(self, deployment=None):\n        pass",
        says=("the parameter deployment=None: it has a default", "(deployment)"),
    ),
    "keyword-only argument": Case(
        rule="test_hooks_take_the_specifications_arguments",
        plugin="@value\nclass Broken(Plugin):\n    @hookimpl\n    def warmup(self, *, client):\n        pass",
        says=("the parameter client: it is keyword-only", "(deployment, engine, client)"),
    ),
    "arguments in bulk": Case(
        rule="test_hooks_take_the_specifications_arguments",
        plugin="@value\nclass Broken(Plugin):\n    @hookimpl\n    def warmup(self, **arguments):\n        pass",
        says=("the parameter **arguments: pluggy passes nothing to it",),
    ),
    "property that acts": Case(
        rule="test_attributes_have_no_effects",
        plugin="@value\nclass Broken(Plugin):\n    @property\n    def cache(self):\n        return tempfile.mkdtemp()",
        says=("Reading Broken.cache acts (file: os.mkdir", "make cache a method"),
    ),
    "property that raises": Case(
        rule="test_attributes_have_no_effects",
        plugin="@value\nclass Broken(Plugin):\n    @property\n    def gpu(self):\n        raise RuntimeError('no GPU here')",
        says=("Reading Broken.gpu raises RuntimeError: no GPU here", "compute it from the options alone"),
    ),
    "hook wrapper": Case(
        rule="test_hooks_are_plain_methods",
        plugin="@value\nclass Broken(Plugin):\n    @hookimpl(wrapper=True)\n    def warmup(self, client):\n        return (yield)",
        says=("Broken.warmup is a hook wrapper", "Drop the wrapper option"),
    ),
    "async hook": Case(
        rule="test_hooks_are_plain_methods",
        plugin="@value\nclass Broken(Plugin):\n    @hookimpl\n    async def warmup(self, client):\n        client.get('/')",
        says=("Broken.warmup is an async def: nobody awaits it", "asyncio.run(...)"),
    ),
    "hook that yields": Case(
        rule="test_hooks_are_plain_methods",
        plugin="@value\nclass Broken(Plugin):\n    @hookimpl\n    def post_restore(self, client):\n        yield client.get('/')",
        says=("Broken.post_restore holds a yield", "Drop the yield"),
    ),
    "static hook": Case(
        rule="test_hooks_are_plain_methods",
        plugin="@value\nclass Broken(Plugin):\n    @staticmethod\n    @hookimpl\n    def warmup(client):\n        client.get('/')",
        says=("Broken.warmup is a staticmethod", "Write it as a plain method"),
    ),
    "acting hook with a value": Case(
        rule="test_hooks_that_act_return_nothing",
        plugin="@value\nclass Broken(Plugin):\n    @hookimpl\n    def warmup(self, client):\n        return client.get('/')",
        says=("Broken.warmup has `return client.get('/')`", "drop the return"),
    ),
    "acting hook that says it has a value": Case(
        rule="test_hooks_that_act_return_nothing",
        plugin="@value\nclass Broken(Plugin):\n    @hookimpl\n    def pre_snapshot(self, client) -> bool:\n        client.get('/')",
        says=("Broken.pre_snapshot says that it returns bool", "annotate the hook with -> None"),
    ),
    "check that raises": Case(
        rule="test_check_gives_findings",
        plugin="@value\nclass Broken(Plugin):\n    def check(self, deployment):\n        raise KeyError(deployment.gpu)",
        says=("Broken.check raised KeyError: None", "return a tuple of findings or yield them"),
    ),
    "check that returns nothing": Case(
        rule="test_check_gives_findings",
        plugin="@value\nclass Broken(Plugin):\n    def check(self, deployment):\n        pass",
        says=("Broken.check returned None", "() for none"),
    ),
    "async check": Case(
        rule="test_check_gives_findings",
        plugin="@value\nclass Broken(Plugin):\n    async def check(self, deployment):\n        return ()",
        says=("Broken.check is an async def, which nobody awaits",),
    ),
    "check that acts": Case(
        rule="test_check_touches_nothing",
        plugin="""@value
class Broken(Plugin):
    def check(self, deployment):
        subprocess.run(["nvidia-smi"])
        return ()""",
        says=("Broken.check acts (process: subprocess.Popen", "make it a Preflight"),
    ),
    "plan that core refuses": Case(
        rule="test_registers",
        plugin="""@value
class Broken(Plugin):
    plugin_name = 'broken'
    @hookimpl
    def prepare_image(self):
        return {"pip": ["x"]}""",
        says=("Core refuses Broken", "prepare_image returned dict", "merge with the other plugins'"),
    ),
    "deployment without the plugin": Case(
        rule="test_registers",
        plugin="@value\nclass Broken(Plugin):\n    plugin_name = 'broken'",
        extra="""
    @pytest.fixture
    def deployment(self):
        from torpor import Deployment, Model
        from torpor.testing import StandIn
        return Deployment(name="other", model=Model(path="/models/x"), plugins=(StandIn(),))
""",
        says=("The fixture `deployment` holds standin, but not Broken()", "take `plugin` as an argument"),
    ),
    "random plan": Case(
        rule="test_planning_gives_the_same_twice",
        plugin="""@value
class Broken(Plugin):
    @hookimpl
    def prepare_image(self, deployment):
        return ImagePatch(env={"BUILD": str(time.time_ns())})""",
        says=("Broken.prepare_image returned ImagePatch(", "no clock, no random number, no counter"),
    ),
    "plan that asks the network": Case(
        rule="test_planning_touches_nothing",
        plugin="""@value
class Broken(Plugin):
    @hookimpl
    def compile_kernels(self, deployment):
        try:
            socket.create_connection(("203.0.113.1", 443), timeout=1)
        except OSError:
            return None""",
        says=("Broken.compile_kernels acts (network: socket.", "203.0.113.1", "as a BuildStep or Preflight"),
    ),
    "plan that writes": Case(
        rule="test_planning_touches_nothing",
        plugin="""@value
class Broken(Plugin):
    @hookimpl
    def prepare_image(self, deployment):
        open("patch.json", "w").close()""",
        says=("Broken.prepare_image acts (file: open 'patch.json' for writing)", "no written file"),
    ),
    "plan that runs a program": Case(
        rule="test_planning_touches_nothing",
        plugin="""@value
class Broken(Plugin):
    @hookimpl
    def prepare_image(self, deployment):
        subprocess.run(["nvidia-smi"])""",
        says=("Broken.prepare_image acts (process: subprocess.Popen", "no process"),
    ),
    "plan by environment": Case(
        rule="test_planning_ignores_the_environment",
        plugin="""@value
class Broken(Plugin):
    @hookimpl
    def prepare_image(self, deployment):
        return ImagePatch(env={"CACHE": os.environ.get("MY_CACHE", "/vol/cache")})""",
        says=(
            "returned another value under other environment variables",
            "it read MY_CACHE",
            "make it an option of the plugin",
        ),
    ),
    "plan by folder": Case(
        rule="test_planning_ignores_the_environment",
        plugin="""@value
class Broken(Plugin):
    @hookimpl
    def prepare_image(self, deployment):
        return ImagePatch(env={"HERE": os.getcwd()})""",
        says=("returned another value", "it depends on the working folder"),
    ),
    "plan that fails elsewhere": Case(
        rule="test_planning_ignores_the_environment",
        plugin="""@value
class Broken(Plugin):
    @hookimpl
    def prepare_image(self, deployment):
        return ImagePatch(env={"N": str(int(os.environ.get("MY_NUMBER", "1")))})""",
        says=("raised ValueError", "it read MY_NUMBER"),
    ),
    "plan that imports the engine": Case(
        rule="test_planning_needs_no_engine",
        plugin="""@value
class Broken(Plugin):
    @hookimpl
    def prepare_image(self, deployment):
        import modal
        return ImagePatch(env={"MODAL": modal.__version__})""",
        says=("Broken.prepare_image imports what is not there", "modal", "state versions and paths as options"),
    ),
    "plan with state": Case(
        rule="test_planning_keeps_no_state",
        plugin="""@value
class Broken(Plugin):
    @cached_property
    def flags(self):
        return ("--a",)
    @hookimpl
    def prepare_image(self, deployment):
        return ImagePatch(engine_args=self.flags)""",
        says=("Planning changed flags of Broken", "no functools.cached_property"),
    ),
    "foreign value": Case(
        rule="test_plans_are_torpors_values",
        plugin="""@value
class Broken(Plugin):
    @hookimpl
    def prepare_image(self, deployment):
        return {"pip": ["x"]}""",
        says=("prepare_image returned dict", "return ImagePatch(...)"),
    ),
    "class of its own in a plan": Case(
        rule="test_plans_survive_pickling",
        plugin="""@value
class Broken(Plugin):
    @hookimpl
    def prepare_image(self, deployment):
        class Odd(str):
            pass
        return ImagePatch(env={"A": Odd("1")})""",
        says=("prepare_image returned does not survive pickling", "put names in place of objects"),
    ),
    "secret by name": Case(
        rule="test_plans_hold_no_secret",
        plugin="""@value
class Broken(Plugin):
    @hookimpl
    def prepare_image(self, deployment):
        return ImagePatch(env={"MY_API_KEY": "hunter2"})""",
        says=("writes a secret out at env['MY_API_KEY']", "BuildStep(secrets=('my-secret',))"),
    ),
    "secret by look": Case(
        rule="test_plans_hold_no_secret",
        plugin="""@value
class Broken(Plugin):
    @hookimpl
    def compile_kernels(self, deployment):
        argv = ("fetch", "--auth", "hf_" + "a" * 30)
        return BuildPlan(steps=(BuildStep(name="fetch", argv=argv, order=10, timeout_s=1),))""",
        says=("Broken.compile_kernels writes a secret out at steps[0].argv[2]",),
    ),
    "secret of the environment": Case(
        rule="test_plans_hold_no_secret",
        plugin="""os.environ["TORPOR_TEST_TOKEN"] = "swordfish-swordfish"
@value
class Broken(Plugin):
    @hookimpl
    def prepare_image(self, deployment):
        return ImagePatch(env={"HEADER": "Bearer swordfish-swordfish"})""",
        says=("(it is the value of TORPOR_TEST_TOKEN)",),
    ),
    "bare engine argument": Case(
        rule="test_engine_args_begin_with_a_flag",
        plugin="""@value
class Broken(Plugin):
    @hookimpl
    def prepare_image(self, deployment):
        return ImagePatch(engine_args=("dummy",))""",
        says=("begin with 'dummy'", 'write ("--flag", "value", ...)'),
    ),
    "relative mount": Case(
        rule="test_volumes_are_mounted_at_absolute_paths",
        plugin="""@value
class Broken(Plugin):
    @hookimpl
    def prepare_image(self, deployment):
        return ImagePatch(volumes={"my-cache": "/vol/my-cache"})""",
        says=("mounts the volume '/vol/my-cache' at 'my-cache' (ImagePatch.volumes)", "the path comes first"),
    ),
    "relative mount of a step": Case(
        rule="test_volumes_are_mounted_at_absolute_paths",
        plugin="""@value
class Broken(Plugin):
    @hookimpl
    def compile_kernels(self, deployment):
        step = BuildStep(name="get", argv=("get",), order=10, timeout_s=1, volumes={"/vol/../etc": "c"})
        return BuildPlan(steps=(step,))""",
        says=("at '/vol/../etc' (volumes of the step 'get')",),
    ),
    "missing script": Case(
        rule="test_scripts_are_modules_on_this_machine",
        plugin="""@value
class Broken(Plugin):
    @hookimpl
    def compile_kernels(self, deployment):
        return BuildPlan(steps=(BuildStep(name="get", argv=(), order=10, timeout_s=1, script="broken.no_such"),))""",
        says=("step 'get'", "broken.no_such", "ship it in the plugin's package"),
    ),
}

ENGINE_CASES = {
    "no launch": Case(
        rule="test_launches",
        plugin="@value\nclass Broken(Plugin):\n    plugin_name = 'broken'",
        says=("Broken does not implement launch", "use PluginContract"),
    ),
    "free-standing engine": Case(
        rule="test_launches",
        plugin="""@value
class Broken:
    public_paths = ("/v1/models",)
    @hookimpl
    def launch(self, deployment, recipe):
        return start_engine(("true",))""",
        says=("Broken does not derive from torpor.EnginePlugin", "derive it from torpor.EnginePlugin"),
    ),
    "another engine": Case(
        rule="test_is_the_engine_of_its_deployment",
        plugin="@value\nclass Broken(StandIn):\n    plugin_name = 'broken'",
        extra="""
    @pytest.fixture
    def deployment(self):
        from torpor import Deployment, Model
        from torpor.testing import StandIn
        return Deployment(name="other", model=Model(path="/models/x"), plugins=(StandIn(),))
""",
        says=("The engine of the fixture `deployment` is 'standin'", "list no other engine"),
    ),
    "no public path": Case(
        rule="test_public_paths_are_exact",
        plugin="@value\nclass Broken(StandIn):\n    public_paths = ()",
        says=("Broken.public_paths is ()", "without patterns, queries and final slashes"),
    ),
    "pattern": Case(
        rule="test_public_paths_are_exact",
        plugin="@value\nclass Broken(StandIn):\n    public_paths = ('/v1/models', '/v1/*', '/health')",
        says=("look at ['/v1/*', '/health']",),
    ),
    "relative ready path": Case(
        rule="test_public_paths_are_exact",
        plugin="@value\nclass Broken(StandIn):\n    ready_path = 'v1/models'",
        says=("Broken.ready_path is 'v1/models'", 'write e.g. "/v1/models"'),
    ),
    "unknown task": Case(
        rule="test_tasks_are_known_and_asked_where_they_are_open",
        plugin="@value\nclass Broken(StandIn):\n    tasks = ('chat', 'draw')",
        says=("Broken.tasks is ('chat', 'draw')", "name tasks out of chat, generate"),
    ),
    "task asked elsewhere": Case(
        rule="test_tasks_are_known_and_asked_where_they_are_open",
        plugin="@value\nclass Broken(StandIn):\n    def public_routes(self, task):\n        return ('/v1/models',)",
        says=(
            "is asked for the task 'chat' at /v1/chat/completions, which is not among",
            "let public_routes(task) name",
        ),
    ),
    "sleep not declared": Case(
        rule="test_sleep_is_declared_and_implemented",
        plugin="@value\nclass Broken(StandIn):\n    supports_sleep = False",
        says=("supports_sleep is False", "implements pre_snapshot and post_restore", "set supports_sleep"),
    ),
    "sleep not implemented": Case(
        rule="test_sleep_is_declared_and_implemented",
        plugin="""@value
class Broken(EnginePlugin):
    supports_sleep = True
    @hookimpl
    def launch(self, deployment, recipe):
        return start_engine(("true",))""",
        says=("supports_sleep is True", "implements neither", "implement both"),
    ),
    "sleep not told": Case(
        rule="test_a_sleep_loses_nothing",
        plugin="@value\nclass Broken(StandIn):\n    def sleep_parts(self, deployment):\n        return ()",
        says=("Broken.sleep_parts names []", 'SleepPart(what="weights"'),
    ),
    "weights lost": Case(
        rule="test_a_sleep_loses_nothing",
        plugin="""from torpor.engine_plugins import SleepPart
@value
class Broken(StandIn):
    def sleep_parts(self, deployment):
        return (SleepPart(what="weights", option="level=2", dropped=True),)""",
        says=("the weights are dropped (level=2), and restored_by is empty", "restore it in post_restore"),
    ),
    "two answers": Case(
        rule="test_a_sleep_loses_nothing",
        plugin="""from torpor.engine_plugins import RankSleep
@value
class Broken(StandIn):
    def rank_sleep(self, deployment):
        return RankSleep(released=("weights",), weights="snapshot")""",
        says=(
            "says that a sleep frees ('weights',), and sleep_parts ('weights', 'KV cache')",
            "compute RankSleep.released",
        ),
    ),
    "wakes late": Case(
        rule="test_sleeps_last_and_wakes_first",
        plugin="""@value
class Broken(StandIn):
    @hookimpl
    def post_restore(self, client):
        client.post("/resume")""",
        says=("Broken.post_restore is not marked tryfirst", "@hookimpl(tryfirst=True)"),
    ),
    "caches elsewhere": Case(
        rule="test_answers_other_plugins",
        plugin="""@value
class Broken(StandIn):
    def kernel_cache_env(self, deployment):
        return {"TRITON_CACHE_DIR": "/root/.triton"}""",
        says=("kernel_cache_env puts {'TRITON_CACHE_DIR': '/root/.triton'} elsewhere", "/opt/torpor/kernels"),
    ),
    "command line as text": Case(
        rule="test_answers_other_plugins",
        plugin="""@value
class Broken(StandIn):
    def kernel_compile_argv(self, deployment):
        return "compile --all" """,
        says=("kernel_compile_argv returned 'compile --all'", "a tuple of strings"),
    ),
    "swallows arguments": Case(
        rule="test_passes_other_plugins_arguments_on",
        plugin="""@value
class Broken(StandIn):
    def engine_argv(self, deployment, recipe):
        return ("engine",)""",
        says=("leaves ('--torpor-contract-probe', '1') out: ('engine',)", "*recipe.engine_args"),
    ),
    "loads no adapter": Case(
        rule="test_loads_the_adapters_of_its_model",
        plugin="""@value
class Broken(StandIn):
    def engine_argv(self, deployment, recipe):
        return ("engine", *recipe.engine_args)""",
        says=(
            "leaves the adapter 'contract-adapter' in /adapters/contract out",
            "torpor.engine_plugins.adapter_folders",
        ),
    ),
}

LIVE = """
    @pytest.fixture
    def live_deployment(self, plugin, free_port):
        from torpor import Deployment, Model
        return Deployment(name="live", model=Model(path="/models/x"), plugins=(plugin,), port=free_port, startup_timeout_s=20,
                          wake_timeout_s=5, sleep_timeout_s=5, stop_timeout_s=1)
"""
UNGUARDED = """@value
class Broken(StandIn):
    @hookimpl
    def launch(self, deployment, recipe):
        env = {**recipe.env, "TORPOR_UNGUARDED": "1"}
        return start_engine(self.engine_argv(deployment, recipe), env=env)"""
OBSERVED = (
    LIVE
    + """
    @pytest.fixture
    def life(self):
        from torpor.testing.live import Life
        return Life(stages=["started", "serving", "asleep"], guarded=True, {observed})
"""
)

WOKEN = (
    LIVE
    + """
    @pytest.fixture
    def life(self):
        from torpor.testing.live import Life, Sampled
        return Life(stages=["woke again"], guarded=True, woken=[{woken}] * 2)
"""
)

LIVE_CASES = {
    "cannot start": Case(
        rule="test_starts_and_serves",
        plugin="@value\nclass Broken(StandIn):\n    fault: Fault = Fault.EXIT_AT_START",
        extra=LIVE,
        says=("The cold start failed: EngineExitedError", "exited with code 21", "has to be one that can start here"),
    ),
    "launch that waits": Case(
        rule="test_launch_returns_at_once_in_an_own_session",
        plugin="@value\nclass Broken(StandIn):\n    pass",
        extra=OBSERVED.format(observed="launch_s=1.5, own_session=False"),
        says=("launch took 1.50 s; the engine has no session", "return start_engine(...) right away"),
    ),
    "public path that is not there": Case(
        rule="test_public_paths_are_open_while_serving",
        plugin="@value\nclass Broken(StandIn):\n    public_paths = ('/v1/chat/completions', '/v1/models', '/v1/no_such')",
        extra=LIVE,
        says=(
            "GET and POST without a key give {'/v1/no_such': [404, 404]}",
            "list in public_paths only what the engine has",
        ),
    ),
    "no guard": Case(
        rule="test_everything_else_is_closed_while_serving",
        plugin=UNGUARDED,
        extra=LIVE,
        says=("'POST /flush_cache': 200", "behind torpor.guard.Guard"),
    ),
    "garbled after the wake": Case(
        rule="test_sleeps_and_wakes_twice",
        plugin="@value\nclass Broken(StandIn):\n    fault: Fault = Fault.DIFFERENT_AFTER_WAKE",
        extra=LIVE,
        says=("After 'asleep': CanaryError", "exactly what post_restore wakes"),
    ),
    "samples that repeat": Case(
        rule="test_two_wakes_answer_differently",
        plugin="@value\nclass Broken(StandIn):\n    fault: Fault = Fault.REPEATS_SAMPLES",
        extra=LIVE,
        says=("Two wakes sample the same text, (", "Guard(..., on_wake=...)"),
    ),
    "samples that repeat in vLLM's dialect": Case(
        rule="test_two_wakes_answer_differently",
        plugin="@value\nclass Broken(StandInVLLM):\n    fault: Fault = Fault.REPEATS_SAMPLES",
        extra=LIVE,
        says=("Two wakes sample the same text, (", "Guard(..., on_wake=...)"),
    ),
    "ids that repeat": Case(
        rule="test_two_wakes_answer_differently",
        plugin="@value\nclass Broken(StandIn):\n    fault: Fault = Fault.REPEATS_IDS",
        extra=LIVE,
        says=("Of two wakes answers have the same id: chatcmpl-", "draw ids from uuid.uuid4 or the secrets module"),
    ),
    "replicas of one name": Case(
        rule="test_two_wakes_answer_differently",
        plugin="@value\nclass Broken(StandIn):\n    pass",
        extra=WOKEN.format(woken="Sampled(texts=('a', 'b'), ids=(None, None), replica='f00')"),
        says=("Two wakes both call themselves f00", "draw ids"),
    ),
    "reached asleep": Case(
        rule="test_nobody_reaches_a_sleeping_engine",
        plugin="@value\nclass Broken(StandIn):\n    public_paths = ('/v1/models',)",
        extra=OBSERVED.format(observed="asleep={'GET /v1/models': 200, 'GET /health': 503, 'GET /ready': 503}"),
        says=("While asleep, GET and POST without a key give {'/v1/models': [200]}", "the outermost layer"),
    ),
    "repeats passed on": Case(
        rule="test_repeated_lifecycle_calls_are_refused",
        plugin="@value\nclass Broken(StandIn):\n    pass",
        extra=OBSERVED.format(observed="repeated={'drain while asleep': 200}"),
        says=("calls out of order got {'drain while asleep': 200} in place of 409", "use torpor.guard.Guard as it is"),
    ),
    "left-over process": Case(
        rule="test_leaves_no_process",
        plugin="@value\nclass Broken(StandIn):\n    pass",
        extra=OBSERVED.format(observed="left_over=('4711 (worker)',)"),
        says=("still ran: 4711 (worker)", "keep the engine's children in its session"),
    ),
}


SNAPSHOT_CASES = {
    standin: Case(
        rule="test_two_replicas_of_a_snapshot_answer_differently",
        plugin=f"@value\nclass Broken({standin}):\n    fault: Fault = Fault.{fault}",
        extra=LIVE,
        says=(says, "Guard(..., on_wake=...)"),
    )
    for standin, fault, says in (
        ("StandIn", "REPEATS_IDS", "Of two replicas of one snapshot answers have the same id: chatcmpl-"),
        ("StandInVLLM", "REPEATS_SAMPLES", "Two replicas of one snapshot sample the same text, ("),
    )
}


def run_rule(pytester: pytest.Pytester, contract: str, case: Case) -> str:
    """Run one rule on a broken plugin and return pytest's output."""
    if case.module:
        pytester.makepyfile(**{case.module: ""})
    pytester.makepyfile(broken=HEADER + case.plugin)
    pytester.makepyfile(test_broken=TESTS.format(contract=contract, instance=case.instance) + case.extra)
    result = pytester.runpytest_inprocess(*ONLY_THE_KIT, "-k", case.rule)
    outcomes = result.parseoutcomes()
    assert outcomes.get("failed") == 1, result.stdout.str()
    assert set(outcomes) <= {"failed", "deselected"}, outcomes
    return result.stdout.str()


@pytest.mark.parametrize("name", PLUGIN_CASES)
def test_a_rule_catches_the_plugin_that_breaks_it(pytester: pytest.Pytester, name: str) -> None:
    """The broken plugin fails the rule. The message gives the observation, the rule and what to do."""
    check_message(run_rule(pytester, "PluginContract", PLUGIN_CASES[name]), PLUGIN_CASES[name])


@pytest.mark.parametrize("name", ENGINE_CASES)
def test_a_rule_for_engines_catches_the_plugin_that_breaks_it(pytester: pytest.Pytester, name: str) -> None:
    """The same for the declarations of an engine plugin."""
    check_message(run_rule(pytester, "EngineContract", ENGINE_CASES[name]), ENGINE_CASES[name])


@pytest.mark.parametrize("name", LIVE_CASES)
@pytest.mark.slow
def test_a_live_rule_catches_the_engine_that_breaks_it(pytester: pytest.Pytester, name: str) -> None:
    """The same for the running engine."""
    check_message(run_rule(pytester, "EngineContract", LIVE_CASES[name]), LIVE_CASES[name])


@pytest.mark.criu
@pytest.mark.parametrize("name", SNAPSHOT_CASES)
def test_a_rule_about_replicas_catches_the_engine_that_breaks_it(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The replicas are restored from a real snapshot; state that the engine does not renew is the same in both."""
    monkeypatch.setenv(CACHE_VARIABLE, str(CACHE))  # the inner session has another home
    check_message(run_rule(pytester, "EngineContract", SNAPSHOT_CASES[name]), SNAPSHOT_CASES[name])


@pytest.mark.parametrize(
    ("woken", "says"),
    [
        ("Sampled(refused='400 no temperature')", "the engine gives no answer at temperature 1: 400 no temperature"),
        (
            "Sampled(texts=('a', 'a'), ids=(None, None))",
            "the engine does not sample: at temperature 1 it gives one answer",
        ),
    ],
)
def test_an_engine_that_does_not_sample_is_skipped_with_the_reason(
    pytester: pytest.Pytester, woken: str, says: str
) -> None:
    """Its answers cannot show whether the random state was renewed."""
    pytester.makepyfile(broken=HEADER + "@value\nclass Broken(StandIn):\n    pass")
    source = TESTS.format(contract="EngineContract", instance="Broken()") + WOKEN.format(woken=woken)
    pytester.makepyfile(test_broken=source)
    result = pytester.runpytest_inprocess(*ONLY_THE_KIT, "-rs", "-k", "two_wakes")
    assert set(result.parseoutcomes()) == {"skipped", "deselected"}
    assert says in result.stdout.str()


def check_message(output: str, case: Case) -> None:
    """Check for one paragraph with the observation, `Rule:` and `To do:`, and no traceback of the kit's code."""
    start = next(part for part in case.says)
    message = output[output.index(start) :].partition("=====")[0]
    for part in (*case.says, " Rule: ", " To do: "):
        assert part in message
    assert "Traceback" not in output


def test_every_rule_has_a_broken_plugin() -> None:
    """Every rule is tested with a plugin that breaks it. The entry-point rule needs an installed plugin and has its own test."""
    rules = {name for name in dir(EngineContract) if name.startswith("test_")}
    covered = {
        case.rule for cases in (PLUGIN_CASES, ENGINE_CASES, LIVE_CASES, SNAPSHOT_CASES) for case in cases.values()
    }
    assert rules - covered == {"test_has_the_name_of_its_entry_point"}
    assert {case.rule for case in PLUGIN_CASES.values()} <= set(dir(PluginContract))


def test_a_plugin_name_that_is_not_the_entry_points_is_caught(pytester: pytest.Pytester) -> None:
    """The message of the rule says so for an installed plugin."""
    info = pytester.mkdir("other_name-1.0.dist-info")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-name\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[torpor]\nentry_name = broken:Broken\n")
    case = Case(
        rule="test_has_the_name_of_its_entry_point",
        plugin="@value\nclass Broken(Plugin):\n    plugin_name = 'class_name'",
        says=("plugin_name is 'class_name', its entry point is 'entry_name'", "[project.entry-points.torpor]"),
    )
    check_message(run_rule(pytester, "PluginContract", case), case)


def test_a_contract_without_a_plugin_says_what_is_missing(pytester: pytest.Pytester) -> None:
    """The error names the fixture that a subclass has to override."""
    pytester.makepyfile(
        test_empty="from torpor.testing import PluginContract\nclass TestEmpty(PluginContract):\n    pass"
    )
    output = pytester.runpytest_inprocess(*ONLY_THE_KIT, "-k", "hashable").stdout.str()
    assert "TestEmpty has no fixture `plugin`." in output
    assert "add a method `plugin` with @pytest.fixture" in output


def test_live_rules_are_skipped_with_the_way_to_run_them(pytester: pytest.Pytester) -> None:
    """Without the fixture `live_deployment` the live rules are skipped; the reason says what to provide."""
    pytester.makepyfile(broken=HEADER + "@value\nclass Broken(StandIn):\n    pass")
    pytester.makepyfile(test_static=TESTS.format(contract="EngineContract", instance="Broken()"))
    result = pytester.runpytest_inprocess(*ONLY_THE_KIT, "-rs", "-m", "torpor_live", "--strict-markers")
    assert set(result.parseoutcomes()) == {"skipped", "deselected"}
    assert "TestBroken has no fixture `live_deployment`: add one that returns a Deployment" in result.stdout.str()


def test_rules_of_an_engine_that_never_started_are_skipped_with_its_error(pytester: pytest.Pytester) -> None:
    """The reason is the error of the start, not a later one such as a missing guard."""
    pytester.makepyfile(
        broken=HEADER + "@value\nclass Broken(StandIn):\n    fault: Fault = Fault.EXIT_AT_START",
        test_broken=TESTS.format(contract="EngineContract", instance="Broken()") + LIVE,
    )
    told = "sleeping_engine or repeated or two_wakes or starts_and_serves"
    result = pytester.runpytest_inprocess(*ONLY_THE_KIT, "-rs", "-k", told)
    result.assert_outcomes(failed=1, skipped=3, deselected=result.parseoutcomes()["deselected"])
    reasons = [line for line in result.stdout.lines if line.startswith("SKIPPED")]
    assert {reason.partition("]")[0] for reason in reasons} == {"SKIPPED [1", "SKIPPED [2"}
    for reason in reasons:
        assert "its start failed (EngineExitedError: The engine (pid " in reason
        assert "test_starts_and_serves shows it." in reason


def test_rules_of_an_engine_that_died_asleep_name_the_rule_that_shows_it(pytester: pytest.Pytester) -> None:
    """The message gives the last stage that the engine reached."""
    observed = "failure=RuntimeError('gone')"
    pytester.makepyfile(
        broken=HEADER + "@value\nclass Broken(StandIn):\n    pass",
        test_broken=TESTS.format(contract="EngineContract", instance="Broken()") + OBSERVED.format(observed=observed),
    )
    result = pytester.runpytest_inprocess(*ONLY_THE_KIT, "-rs", "-k", "two_wakes")
    assert (
        "never got as far as 'woke again': after 'asleep' it ended (RuntimeError: gone). test_sleeps_and_wakes_twice shows it."
        in result.stdout.str()
    )


def test_a_plugin_without_a_base_class_keeps_every_rule(pytester: pytest.Pytester) -> None:
    """A plugin need not derive from `torpor.Plugin`, and may take fewer arguments."""
    source = """@value
class Broken:
    plugin_name: ClassVar[str] = "free"
    @hookimpl
    def prepare_image(self):
        return ImagePatch(env={"FREE": "1"}, engine_args=("--x", "1"))
    @hookimpl
    def warmup(self, client):
        client.get("/v1/models")"""
    pytester.makepyfile(broken=HEADER + source)
    pytester.makepyfile(test_free=TESTS.format(contract="PluginContract", instance="Broken()"))
    result = pytester.runpytest_inprocess(*ONLY_THE_KIT)
    assert set(result.parseoutcomes()) == {"passed"}, result.stdout.str()
