"""A plan as lines of text for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from torpor.values.plain_text import one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torpor.plan.values import Plan, SleepPlan
    from torpor.values.findings import Finding

__all__ = ["Page", "write_plan"]

_WEIGHTS = {
    "snapshot": "stay in its host memory, and so in the snapshot",
    "file": "stay in a file outside of the snapshot",
    "memory": "stay in pinned host memory, for a process that stays",
    "model": "are read from the model's files again",
    "gpu": "stay on the GPU, and so go into the snapshot",
}
"""Where a sleeping rank's weights are, by `RankSleep.weights`."""


class Page(Protocol):
    """What takes the lines: `torpor.cli.layout.Layout`, which fits them to the terminal."""

    def heading(self, text: str) -> None:
        """A line on its own."""

    def row(self, text: str) -> None:
        """A line of a table."""

    def blank(self) -> None:
        """An empty line."""

    def field(self, before: str, text: str, style: str = "") -> None:
        """A paragraph with what stands before its first line."""

    def finding(self, finding: Finding) -> None:
        """What was found, with its cure."""

    def command(self, indent: str, argv: Sequence[str]) -> None:
        """A command line."""


def write_plan(plan: Plan, page: Page) -> None:
    """Write the whole plan."""
    _write_head(plan, page)
    _write_image(plan, page)
    _write_steps(plan, page)
    _write_command(plan, page)
    _write_stages(plan, page)
    if plan.warnings:
        page.blank()
        page.heading("warnings")
        for finding in plan.warnings:
            page.finding(finding)


def _write_head(plan: Plan, page: Page) -> None:
    engine, model = plan.engine, plan.model
    revision = f" @ {model.revision[:12]}" if model.revision else ""
    page.field(f"{plan.deployment}: ", f"{model.source}{revision}, served as {model.served_name}", "bold")
    guard = "behind the guard" if engine.guarded else "WITHOUT a guard: every route of it is public"
    page.field(
        "  engine    ", f"{engine.plugin} {engine.version} on {plan.gpu or 'the CPU'}, port {plan.port}, {guard}"
    )
    for name, adapter in model.adapters.items():
        revision = f" @ {adapter.revision[:12]}" if adapter.revision else ""
        page.field("  adapter   ", f"{name}: {adapter.source}{revision}")
    if draft := model.draft:
        revision = f" @ {draft.revision[:12]}" if draft.revision else ""
        of = f" {draft.source}{revision}" if draft.source else ""
        page.field("  draft     ", f"{draft.method}{of}, {draft.tokens} tokens for each step")
    page.field("  serves    ", f"{plan.task}: {', '.join(engine.public_paths)}")
    page.field("  scaling   ", _scaling(plan))
    page.field("  snapshot  ", f"memory {_on(plan.memory_snapshot)}, GPU {_on(plan.gpu_snapshot)}")
    if plan.sleep:
        page.field("  asleep    ", _asleep(plan.sleep))
        page.field("  size      ", _size(plan.sleep))
    for part in plan.sleep_parts:
        page.field("  sleep     ", part.told())
    page.field("  start     ", _start_limits(plan))
    for label, options in (("modal", plan.modal), ("ray", plan.ray)):
        if options:
            page.field(f"  {label:<10}", ", ".join(f"{name}={value!r}" for name, value in options.items()))
    page.blank()


def _asleep(sleep: SleepPlan) -> str:
    rank = "the engine" if sleep.ranks == 1 else f"each of {sleep.ranks} ranks"
    if not sleep.weights:
        return f"{rank} frees what its plugin does not say"
    freed = f"frees {', '.join(sleep.released)}" if sleep.released else "frees nothing"
    return f"{rank} {freed}; its weights {_WEIGHTS[sleep.weights]}"


def _size(sleep: SleepPlan) -> str:
    gpus = "the GPU" if sleep.ranks == 1 else f"{sleep.ranks} GPUs"
    weights = "plus the weights" if sleep.weights_inside else "without the weights"
    return (
        f"about {sleep.snapshot_bytes / 1e9:.1f} GB of snapshot and as much host memory, {weights}; "
        f"{sleep.on_gpus_bytes / 1e9:.1f} GB of it from {gpus} (an estimate by Qwen3-8B-FP8)"
    )


def _scaling(plan: Plan) -> str:
    scaling = plan.scaling
    return (
        f"{scaling.target_concurrency} requests target, {scaling.max_concurrency} at most per replica; replicas "
        f"from {scaling.min_containers} to {scaling.max_containers or 'what the platform allows'}, "
        f"{scaling.buffer_containers} kept ahead, each idle for {scaling.scaledown_window_s} s at most"
    )


def _start_limits(plan: Plan) -> str:
    limits = ", ".join(f"{stage} {seconds:g} s" for stage, seconds in plan.start_limits_s.items() if seconds)
    return f"at most {limits}; Modal gives a start {plan.modal_start_limit_s:g} s in all"


def _write_image(plan: Plan, page: Page) -> None:
    recipe, origins = plan.recipe, plan.recipe.origins
    page.heading("image")
    page.field("  base      ", recipe.image.base or "(the platform default)")
    if recipe.image.python_link:
        page.field("  python    ", "linked to python3 where the base image has none")
    for name in recipe.image.apt:
        page.field("  apt       ", name)
    for line in recipe.image.pip:
        page.field("  pip       ", line)
    for path, volume in recipe.volumes.items():
        page.field("  volume    ", f"{path} <- {volume}  [{origins[f'volume:{path}']}]")
    for name, value in recipe.env.items():
        page.field("  env       ", f"{name}={value}  [{origins[f'env:{name}']}]")
    page.blank()


def _write_steps(plan: Plan, page: Page) -> None:
    recipe, origins = plan.recipe, plan.recipe.origins
    page.heading("build steps")
    for number, step in enumerate(recipe.steps, start=1):
        needs = ", ".join(["gpu"] * step.gpu + [f"secret {name}" for name in step.secrets] + list(step.volumes))
        told = "; ".join(filter(None, (f"at most {step.timeout_s:g} s", needs)))
        page.field(f"  {number}. ", f"{step.name}  [{origins[f'step:{step.name}']}]  {told}")
        page.command("     ", [*([f"<{step.script}>"] if step.script else []), *step.argv])
    for check in recipe.preflight:
        page.field("  before each launch: ", f"{check.name}  [{origins[f'preflight:{check.name}']}]")
    page.blank()


def _write_command(plan: Plan, page: Page) -> None:
    page.heading("engine command")
    page.command("  ", plan.engine.command)
    page.blank()
    page.heading("why each flag")
    for name, flag in plan.engine.flags.items():
        page.field(f"  {one_line(name)}{' ' * bool(flag.value)}", flag.value)
        page.field("      ", flag.reason)
    page.blank()


def _write_stages(plan: Plan, page: Page) -> None:
    """A table: which plugin each stage calls, and its place in the order."""
    widths = [len(name) for name in plan.plugins]
    rows = {"stages": plan.plugins}
    for hook, called in plan.hooks.items():
        rows[f"  {hook}"] = tuple(str(called.index(name) + 1) if name in called else "-" for name in plan.plugins)
    for stage, cells in rows.items():
        row = f"{stage:<18}  {'  '.join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))}".rstrip()
        page.heading(row) if stage == "stages" else page.row(row)


def _on(switch: bool | None) -> str:
    return "on" if switch else "off"
