"""A plan: what an app will do, as one value. `torpor.plan.text` shows it to people, `Plan.as_json` to programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torpor.deployment import Model, Scaling
    from torpor.recipe import Recipe
    from torpor.values.findings import Finding
    from torpor.values.sleep_parts import SleepPart

__all__ = ["EnginePlan", "Flag", "Plan"]


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One flag of the engine's command line.

    Attributes:
        value: all its values; empty for a switch.
        reason: why it is set.
    """

    value: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class EnginePlan:
    """The engine that is started.

    Attributes:
        plugin: the plugin that starts it.
        version: the engine's.
        guarded: whether Torpor's guard stands before its routes.
        public_paths: the routes that clients may use.
        command: its command line.
        flags: what is in the command line, by the flag's name.
    """

    plugin: str
    version: str
    guarded: bool
    public_paths: tuple[str, ...]
    command: tuple[str, ...]
    flags: Mapping[str, Flag]


@dataclass(frozen=True, kw_only=True)
class SleepPlan:
    """What a sleep on GPUs frees and what a snapshot takes.

    Attributes:
        ranks: processes of the engine that each have a GPU.
        released: what each rank frees on its GPU; empty if the engine's plugin does not say.
        weights: where each rank's weights are meanwhile (`RankSleep.weights`); empty if the plugin does not say.
        on_gpus_bytes: estimate of what all ranks still hold on their GPUs, which moves to host memory.
        snapshot_bytes: estimate of the snapshot, of which host memory holds as much during a capture; without the weights.
        weights_inside: whether the weights come on top of it.
    """

    ranks: int
    released: tuple[str, ...]
    weights: str
    on_gpus_bytes: int
    snapshot_bytes: int
    weights_inside: bool


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What an app will do.

    Attributes:
        deployment: its name.
        task: what it serves.
        model: what it serves.
        engine: what serves it.
        gpu: as in the deployment.
        port: as in the deployment.
        scaling: how many requests and replicas.
        memory_snapshot: whether the replica's memory is captured.
        gpu_snapshot: whether the GPU's memory is, too.
        sleep: what a sleep frees and a snapshot takes; None without a GPU snapshot.
        sleep_parts: what a sleep drops and who restores it; empty if the engine's plugin does not say.
        modal: options for Modal that differ from their defaults.
        ray: options for Ray that differ from their defaults.
        timeouts_s: the deployment's time-outs, by name.
        start_limits_s: the deadline of each stage of a start.
        modal_start_limit_s: what Modal gives a whole start.
        recipe: image, build steps and preflight checks, with the plugin that asks for each.
        plugins: names of all plugins, in the deployment's order.
        hooks: the plugins that each hook calls, in order.
        warnings: what is known to fail, or to cost time.
    """

    deployment: str
    task: str
    model: Model
    engine: EnginePlan
    gpu: str | None
    port: int
    scaling: Scaling
    memory_snapshot: bool
    gpu_snapshot: bool | None
    sleep: SleepPlan | None
    sleep_parts: tuple[SleepPart, ...]
    modal: Mapping[str, object]
    ray: Mapping[str, object]
    timeouts_s: Mapping[str, float]
    start_limits_s: Mapping[str, float]
    modal_start_limit_s: float
    recipe: Recipe
    plugins: tuple[str, ...]
    hooks: Mapping[str, tuple[str, ...]]
    warnings: tuple[Finding, ...]

    def as_json(self) -> dict[str, object]:
        """Plain values, ready for JSON."""
        recipe, origins = self.recipe, self.recipe.origins
        return {
            "deployment": self.deployment,
            "task": self.task,
            "model": _model_as_json(self.model),
            "engine": asdict(self.engine),
            "gpu": self.gpu,
            "port": self.port,
            "scaling": asdict(self.scaling),
            "snapshot": {"memory": self.memory_snapshot, "gpu": self.gpu_snapshot},
            "sleep": asdict(self.sleep) if self.sleep else None,
            "sleep_parts": [asdict(part) for part in self.sleep_parts],
            "modal": dict(self.modal),
            "ray": dict(self.ray),
            "timeouts_s": dict(self.timeouts_s),
            "start_limits_s": {**self.start_limits_s, "modal": self.modal_start_limit_s},
            "image": {**asdict(recipe.image), "origins": dict(origins)},
            "steps": [{**asdict(step), "plugin": origins[f"step:{step.name}"]} for step in recipe.steps],
            "preflight": [
                {**asdict(check), "plugin": origins[f"preflight:{check.name}"]} for check in recipe.preflight
            ],
            "hooks": dict(self.hooks),
            "warnings": [asdict(finding) for finding in self.warnings],
        }


def _model_as_json(model: Model) -> dict[str, object]:
    fields = {name: getattr(model, name) for name in ("repo_id", "revision", "path", "served_name")}
    draft = asdict(model.draft) if model.draft is not None else None
    return {**fields, "draft": draft, "adapters": {name: asdict(adapter) for name, adapter in model.adapters.items()}}
