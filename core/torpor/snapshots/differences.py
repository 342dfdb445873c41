"""How the captured deployment differs from the one here, field by field.

    sglang.context_length: 4096 -> 8192
    flags: removed --a, added --b
    --context-length: 4096 -> 8192
    env HF_HOME: /a -> /b

A restore imports this module only if something differs.
"""

from __future__ import annotations

import json
import re
import shlex
from typing import TYPE_CHECKING, cast

from torpor.values.changes import changes
from torpor.values.secret_shapes import secret_kind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torpor.snapshots.store.manifest import DeploymentFacts
    from torpor.values.changes import Change

__all__ = ["differences", "options_of"]

_LONGEST = 80
_AROUND = 20
_SHOWN = 8
_DEEPEST = 8
_LONGEST_PLUGIN = 1 << 16
_NOT_SHOWN = "(not shown)"
_CALL = re.compile(r"([A-Za-z_][\w.<>]*)\((.*)\)", re.DOTALL)
_FIELD = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_SCALARS = {
    "torpor": "Torpor",
    "name": "deployment",
    "port": "Deployment.port",
    "task": "Deployment.task",
    "engine": "engine",
    "model": "model",
    "revision": "model revision",
}
_Options = dict[str, "str | _Options"]


def differences(made_of: DeploymentFacts, here: DeploymentFacts) -> tuple[str, ...]:
    """The differences, a sentence each; at most one for each field, plugin option, flag and variable."""
    return (
        *_of_fields(made_of, here),
        *_of_plugins(made_of.plugins, here.plugins),
        *_of_command(made_of.argv, here.argv),
        *_of_env(made_of.env, here.env),
    )


def options_of(text: str) -> tuple[str, str, _Options] | None:
    """Parse a plugin in a manifest: version, class, and options by name. None if the text has another form.

    Args:
        text: version and `repr` of a dataclass, e.g. `0.1.0 SGLang(context_length=4096)`.
    """
    version, _, call = text.partition(" ")
    if "(" in version:
        version, call = "", text
    if len(text) > _LONGEST_PLUGIN or (found := _CALL.fullmatch(call)) is None:
        return None
    if (options := _fields(found[2])) is None:
        return None
    return version, found[1], options


def _of_fields(made_of: DeploymentFacts, here: DeploymentFacts) -> Iterator[str]:
    for name, word in _SCALARS.items():
        then, now = getattr(made_of, name), getattr(here, name)
        if then != now:
            yield f"{word} was {then or 'none'!s} at the capture; now it is {now or 'none'!s}"


def _of_plugins(made_of: Mapping[str, str], here: Mapping[str, str]) -> Iterator[str]:
    yield from _gone_and_come("plugins", [*made_of], [*here])
    for name in made_of:
        if name in here and made_of[name] != here[name]:
            then, now = options_of(made_of[name]), options_of(here[name])
            if then is None or now is None:
                one, other = _shortened(made_of[name], here[name])
                yield f"plugin {name} was {one}; now it is {other}"
                continue
            for what, one, other in (("version", then[0], now[0]), ("class", then[1], now[1])):
                if one != other:
                    yield f"plugin {name}: {what} {one or 'none'} -> {other or 'none'}"
            yield from (_sentence(change, f"{name}.") for change in changes(then[2], now[2]))


def _of_command(made_of: Sequence[str], here: Sequence[str]) -> Iterator[str]:
    if made_of == here:
        return
    (program, then), (program_now, now) = _split(made_of), _split(here)
    if program != program_now:
        one, other = _shortened(shlex.join(program), shlex.join(program_now))
        yield f"the engine's program: {one} -> {other}"
    yield from _gone_and_come("flags", [*then], [*now])
    for flag, values in then.items():
        if flag in now and values != now[flag]:
            yield from _of_flag(flag, values, now[flag])
    if program == program_now and then == now:
        yield "flags: the same, in another order"


def _of_flag(flag: str, then: list[str], now: list[str]) -> Iterator[str]:
    if any(secret_kind(flag.lstrip("-"), value) for value in (*then, *now)):
        yield f"{flag}: {_NOT_SHOWN}"
        return
    before, after = _as_json(then), _as_json(now)
    if before is not None and after is not None:
        yield from (_sentence(change, f"{flag}.") for change in changes(before, after))
        return
    one, other = _shortened(shlex.join(then) or "(no value)", shlex.join(now) or "(no value)")
    yield f"{flag}: {one} -> {other}"


def _of_env(made_of: Mapping[str, str], here: Mapping[str, str]) -> Iterator[str]:
    yield from _gone_and_come("env", sorted(made_of), sorted(here))
    for name in sorted(set(made_of) & set(here)):
        then, now = made_of[name], here[name]
        if then == now:
            continue
        if secret_kind(name, then) or secret_kind(name, now):
            yield f"env {name}: {_NOT_SHOWN}"
        else:
            one, other = _shortened(then or "(empty)", now or "(empty)")
            yield f"env {name}: {one} -> {other}"


def _gone_and_come(what: str, then: Sequence[str], now: Sequence[str]) -> Iterator[str]:
    parts = [
        f"{word} {_some(names)}"
        for word, names in (
            ("removed", [name for name in then if name not in now]),
            ("added", [name for name in now if name not in then]),
        )
        if names
    ]
    if parts:
        yield f"{what}: {', '.join(parts)}"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{' '.join(names[:_SHOWN])}{more}"


def _sentence(change: Change, before: str) -> str:
    path = f"{before}{change.path}"
    name = change.path.rpartition(".")[2]
    then, now = _text(change.before), _text(change.after)
    if any(secret_kind(name, value) for value in (then, now)):
        return f"{path}: {_NOT_SHOWN}"
    if change.kind == "changed":
        one, other = _shortened(then, now)
        return f"{path}: {one} -> {other}"
    return f"{path}: {change.kind} {_shortened(then if change.kind == 'removed' else now, '')[0]}"


def _text(value: object) -> str:
    """A value as text; options are text already."""
    if isinstance(value, str):
        return value
    return json.dumps(value)


def _shortened(then: str, now: str) -> tuple[str, str]:
    """Two texts to show; of long ones only the part that differs, with its surroundings."""
    if max(len(then), len(now)) <= _LONGEST:
        return then, now
    same = 0
    while same < min(len(then), len(now)) and then[same] == now[same]:
        same += 1
    begin = max(0, same - _AROUND)
    return _cut(then, begin), _cut(now, begin)


def _cut(text: str, begin: int) -> str:
    head, tail = "..." if begin else "", "..." if len(text) > begin + _LONGEST else ""
    return f"{head}{text[begin : begin + _LONGEST]}{tail}"


def _split(argv: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """A command line as the program and its flags with all their values."""
    program: list[str] = []
    flags: dict[str, list[str]] = {}
    values = program
    words = iter(argv)
    for word in words:
        if word == "-m" and not flags:
            program += [word, next(words, "")]
        elif word.startswith("--") or (word.startswith("-") and word[1:2].isalpha()):
            flag, equals, value = word.partition("=")
            values = flags.setdefault(flag, [])
            values += [value] if equals else []
        else:
            values.append(word)
    return program, flags


def _as_json(values: Sequence[str]) -> dict[str, object] | None:
    """A flag's value if it is a JSON object, else None."""
    if len(values) != 1 or not values[0].startswith("{"):
        return None
    try:
        value = json.loads(values[0])
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, object]", value) if isinstance(value, dict) else None


def _fields(text: str, depth: int = 0) -> _Options | None:
    """The fields in a dataclass' `repr`; a field that is a dataclass has fields of its own."""
    options: _Options = {}
    for part in _parts(text):
        if (found := _FIELD.fullmatch(part)) is None:
            return None
        inner = _CALL.fullmatch(found[2])
        fields = _fields(inner[2], depth + 1) if inner and depth < _DEEPEST else None
        options[found[1]] = fields or found[2]
    return options


def _parts(text: str) -> Iterator[str]:
    """Split a text at each comma outside of brackets and strings."""
    depth, quote, begin, at = 0, "", 0, 0
    while at < len(text):
        sign = text[at]
        if quote:
            if sign == "\\":
                at += 1
            elif sign == quote:
                quote = ""
        elif sign in "'\"":
            quote = sign
        elif sign in "([{":
            depth += 1
        elif sign in ")]}":
            depth -= 1
        elif sign == "," and depth == 0:
            yield text[begin:at].strip()
            begin = at + 1
        at += 1
    if text[begin:].strip():
        yield text[begin:].strip()
