"""What moved between two results of one benchmark.

    python -m benchmarks.compare NEW.json [OLD.json]

Without OLD, NEW is compared with the newest committed result of the same kind: the field `kind`, else the file's name without its
date. Every figure with a unit in its name is compared by its median. A figure moved if it changed by more than its tolerance (5%)
and by more than three times the standard error of both medians, which the single runs tell. A figure of one run only has no spread:
it moved if it changed by more than 25%. Results of different machines are compared by ratios alone; seconds are shown.

Exit code 0: nothing got worse; 1: something did; 2: the files cannot be compared.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["Change", "changes", "figures", "kind_of", "latest"]

HERE = Path(__file__).resolve().parent
TOLERANCE, OF_ONE_RUN = 0.05, 0.25
_FEW = 3
_ERRORS = 3.0
_MAD_TO_SIGMA, _MEDIAN_TO_MEAN = 1.4826, 1.2533
"""For a normal distribution: from the median deviation to the standard deviation, and from the mean's error to the median's."""
_DATED = re.compile(r"^(?P<kind>.+?)-(?P<date>\d{4}-\d{2}-\d{2})(?P<letter>[a-z]?)$")
_LOWER = {"s": 0.005, "ms": 1.0, "us": 1.0, "mb": 1.0, "mib": 8.0, "gb": 0.01, "bytes": 1e6, "percent": 0.5}
"""Units of figures that should be low, and the least change that anybody would notice."""
_HIGHER = ("per_s", "rate", "ratio")
_NO_FIGURES = ("at", "load", "machine", "versions", "options", "engine_args", "env", "took_s", "log", "ran")
_NAMES = ("name", "kind", "stage", "streams", "replicas")
_DIFFERENT = ("machine", "versions", "options", "engine_args", "env", "http", "app")
_MACHINE = ("cpu", "cpus", "gpu", "gpus", "machine")


@dataclass(frozen=True)
class Figure:
    """The runs of one figure.

    Attributes:
        samples: one for each run.
        least: changes below it do not count.
        higher: whether more is better.
        ratio: whether it means the same on every machine.
    """

    least: float
    higher: bool = False
    ratio: bool = False
    samples: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Of its runs."""
        return statistics.median(self.samples)

    def error(self) -> float:
        """The standard error of the median; 0 for too few runs."""
        if len(self.samples) < _FEW:
            return 0.0
        deviation = statistics.median(abs(one - self.median) for one in self.samples)
        return _MEDIAN_TO_MEAN * _MAD_TO_SIGMA * deviation / math.sqrt(len(self.samples))


@dataclass(frozen=True)
class Change:
    """How one figure changed.

    Attributes:
        name: its path in the JSON.
        old: its median then.
        new: its median now.
        share: of the old median by which it changed.
        bound: the share above which it counts as moved.
        moved: whether it did.
        worse: whether it moved in the wrong direction.
        ratio: see `Figure`.
    """

    name: str
    old: float
    new: float
    share: float
    bound: float
    moved: bool
    worse: bool
    ratio: bool


def figures(result: Mapping[str, object]) -> dict[str, Figure]:
    """All figures of a result by their paths, such as `medians_s/none/launch`."""
    found: dict[str, Figure] = {}
    for path, value in _numbers(result, ()):
        unit = next((known for name in reversed(path) if (known := _unit(name))), None)
        if unit is None:
            continue
        name = "/".join(path)
        higher = unit in _HIGHER
        found.setdefault(name, Figure(0.0 if higher else _LOWER[unit], higher, unit == "ratio")).samples.append(value)
    return found


def _unit(name: str) -> str | None:
    """The unit at the end of a name, such as `s` of `ready_s`."""
    for unit in (*_HIGHER, *_LOWER):
        if (name == unit and unit in _HIGHER) or name.endswith(f"_{unit}"):
            return unit
    return "s" if name == "seconds" else None


def _numbers(value: object, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], float]]:
    """All numbers with their paths. The runs of a list share one path."""
    if isinstance(value, bool):
        return
    if isinstance(value, int | float):
        if math.isfinite(value):
            yield path, float(value)
    elif isinstance(value, dict):
        for name, inner in value.items():
            if name not in _NO_FIGURES:
                yield from _numbers(inner, (*path, str(name)))
    elif isinstance(value, list):
        for inner in value:
            named = [str(inner[name]) for name in _NAMES if name in inner] if isinstance(inner, dict) else []
            yield from _numbers(inner, (*path, *named))


def changes(new: Mapping[str, object], old: Mapping[str, object], tolerance: float = TOLERANCE) -> list[Change]:
    """How each figure changed that both results have.

    Args:
        new: a result.
        old: an older one of the same kind.
        tolerance: share of the old median that is never a change.
    """
    before = figures(old)
    return [_change(name, now, before[name], tolerance) for name, now in figures(new).items() if name in before]


def _change(name: str, new: Figure, old: Figure, tolerance: float) -> Change:
    difference = new.median - old.median
    scale = abs(old.median) or abs(new.median) or 1.0
    told = min(len(new.samples), len(old.samples)) >= _FEW
    noise = _ERRORS * math.hypot(new.error(), old.error()) / scale
    bound = max(tolerance, noise) if told else max(tolerance, OF_ONE_RUN)
    moved = abs(difference) > max(bound * scale, new.least)
    return Change(
        name=name,
        old=old.median,
        new=new.median,
        share=difference / scale,
        bound=bound,
        moved=moved,
        worse=moved and (difference < 0) == new.higher,
        ratio=new.ratio,
    )


def kind_of(file: Path, result: Mapping[str, object]) -> str:
    """Which benchmark a result is of."""
    named = _DATED.match(file.stem)
    return str(result.get("kind") or (named["kind"] if named else file.stem))


def latest(kind: str, folders: Sequence[Path], *, but: Path) -> Path | None:
    """The newest dated result of a kind in these folders; None if there is none.

    Args:
        kind: of `kind_of`.
        folders: where to look.
        but: a file that does not count.
    """
    found: list[tuple[str, str, Path]] = []
    for folder in folders:
        for file in folder.glob("*.json"):
            named = _DATED.match(file.stem)
            if named and file.resolve() != but.resolve() and kind_of(file, _read(file)) == kind:
                found.append((named["date"], named["letter"], file))
    return max(found)[-1] if found else None


def _read(file: Path) -> dict[str, object]:
    try:
        read: object = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise SystemExit2(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(read, dict):
        raise SystemExit2(f"{file} holds no JSON object; give the result of a benchmark.")
    return cast("dict[str, object]", read)


class SystemExit2(SystemExit):
    """The files cannot be compared; says why."""

    def __init__(self, said: str) -> None:
        print(said, file=sys.stderr)
        super().__init__(2)


def different(new: Mapping[str, object], old: Mapping[str, object]) -> list[str]:
    """What differs in machine, versions and flags, a line each."""
    pairs = [(name, new.get(name), old.get(name)) for name in _DIFFERENT if name in new and name in old]
    lines = []
    for name, now, before in pairs:
        if isinstance(now, dict) and isinstance(before, dict):
            keys = [
                key for key in now if key in before and now[key] != before[key] and key not in ("cpu_mhz", "gpu_clocks")
            ]
            lines += [f"{name} {key}: {before[key]} -> {now[key]}" for key in keys]
        elif now != before:
            lines.append(f"{name}: {before} -> {now}")
    return lines


def _elsewhere(new: Mapping[str, object], old: Mapping[str, object]) -> bool:
    """Whether the machines are of different kinds, as far as both results tell."""
    now, before = new.get("machine"), old.get("machine")
    if isinstance(now, dict) and isinstance(before, dict):
        return any(now[name] != before[name] for name in _MACHINE if name in now and name in before)
    return now != before


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, print, return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("new", type=Path, metavar="NEW")
    parser.add_argument(
        "old", type=Path, nargs="?", metavar="OLD", help="by default the newest committed one of the same kind"
    )
    parser.add_argument(
        "--tolerance", type=float, default=TOLERANCE, help="share that is never a change (default 0.05)"
    )
    options = parser.parse_args(argv)
    new = _read(options.new)
    kind = kind_of(options.new, new)
    old_file = options.old or latest(kind, (HERE, HERE / "gpu"), but=options.new)
    if old_file is None:
        raise SystemExit2(f"There is no older result of the kind {kind!r} in {HERE}; name one: compare NEW OLD.")
    old = _read(old_file)
    if (other := kind_of(old_file, old)) != kind:
        raise SystemExit2(
            f"{options.new} is of the kind {kind!r}, {old_file} of {other!r}; they have no figure in common."
        )
    found = changes(new, old, options.tolerance)
    if not found:
        raise SystemExit2(f"{options.new} and {old_file} have no figure in common.")
    print(f"{kind}: {options.new.name} against {old_file.name}")
    return _shown(found, different(new, old), elsewhere=_elsewhere(new, old))


def _shown(found: Sequence[Change], differs: Sequence[str], *, elsewhere: bool) -> int:
    """Print what moved; the exit code."""
    for line in differs:
        print(f"  differs: {line}")
    if elsewhere:
        print("  another machine: only ratios count")
    moved = sorted((one for one in found if one.moved), key=lambda one: -abs(one.share))
    for one in moved:
        verdict = "WORSE" if one.worse else "better"
        counts = "" if one.ratio or not elsewhere else "  (not counted)"
        print(
            f"  {verdict:<7}{one.name:<60}{one.old:>12.4g} -> {one.new:<12.4g}{one.share:>+8.1%}  noise {one.bound:.1%}{counts}"
        )
    print(f"  {len(found) - len(moved)} of {len(found)} figures did not move")
    return int(any(one.worse and (one.ratio or not elsewhere) for one in found))


if __name__ == "__main__":
    sys.exit(main())
