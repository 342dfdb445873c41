"""Checks the types of a dataclass's fields when an instance is made, by the annotations of the class.

    @dataclass(frozen=True, kw_only=True)
    class LongPrompts(Plugin):
        words: tuple[int, ...] = (1000, 4000)

        def __post_init__(self) -> None:
            check_types(self)   # LongPrompts(words="8") is a ConfigurationError that names LongPrompts.words

A bool is not a number; a number is finite and fits 64 bits. A list is accepted for a tuple, and becomes one. Other
annotations (a Protocol, a name that only type checkers know) are not checked.
"""

from __future__ import annotations

import ast
import functools
import math
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal, Protocol, cast, get_args, get_origin

from torpor.errors import ConfigurationError

if TYPE_CHECKING:
    from dataclasses import Field

    from _typeshed import DataclassInstance

__all__ = ["article", "check_types", "shown"]

_SHOWN_CHARACTERS = 100
_LARGEST = 2**63


def check_types(value: DataclassInstance, *, called: str = "", hidden: Iterable[str] = ()) -> None:
    """Refuse an instance whose fields do not fit their annotations; lists become tuples where a tuple is annotated.

    Call it first in `__post_init__`. The class checks ranges, and the values of a Literal, itself.

    Args:
        value: the instance.
        called: which instance it is, for the message, e.g. the name of a build step.
        hidden: fields whose values no message may show.

    Raises:
        ConfigurationError: names class and field, what it holds, and what is allowed.
    """
    for name, default, kind in _kinds(type(value)):
        given = getattr(value, name)
        if given is default:
            continue
        try:
            taken = kind.take(given)
        except _UnfitError as unfit:
            where = f"{type(value).__name__}.{name}{f' of {shown(called)}' if called else ''}"
            raise ConfigurationError(_refusal(where, given, kind, unfit, hide=name in hidden)) from None
        if taken is not given:
            object.__setattr__(value, name, taken)


def shown(value: object) -> str:
    """A value as a message may show it: one line, not long, and nothing that looks like a secret."""
    from torpor.values.secret_shapes import secret_value  # noqa: PLC0415 - regular expressions: 2.6 ms of a restore

    try:
        text = repr(value)
    except Exception:  # a foreign __repr__ may raise anything; an int of thousands of digits has no repr
        return f"{article(value)} that cannot be shown"
    if secret_value(text):
        return f"{article(value)} that looks like a secret"
    text = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def article(value: object) -> str:
    """The name of a value's type with its article: `an int`."""
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def _refusal(where: str, given: object, kind: _Kind, unfit: _UnfitError, *, hide: bool) -> str:
    """The message about a field with an unfit value."""
    if isinstance(given, Mapping) and str(unfit):
        return f"{where}: {unfit}; it has to be {kind.text}."
    verb = "is"
    if unfit.kind is not None:
        verb, given, kind = "holds", unfit.item, unfit.kind
    number = isinstance(given, int | float) and not isinstance(given, bool)
    unit = " seconds" if number and where.partition(" of ")[0].endswith("_s") else ""
    seen = article(given) if hide else f"{shown(given)}{unit}, {article(given)}"
    if given is None:
        seen = "None"
    elif isinstance(given, float):
        seen = f"{given}{unit}"
    cure = f" {unfit}" if str(unfit) else ""
    if isinstance(given, str) and isinstance(kind, _Tuple):
        text = "..." if hide else shown(given)
        return f"{where} is {'a string' if hide else f'the string {text}'}; write a tuple: ({text},)."
    if isinstance(given, os.PathLike):
        cure = " Write str(...) around it."
    return f"{where} {verb} {seen}; it has to be {kind.text}.{cure}"


class _UnfitError(Exception):
    """A value is not of the kind.

    Args:
        told: more detail for the message, if any.
        item: the one item of a tuple that does not fit.
        kind: what that item has to be.
    """

    def __init__(self, told: str = "", *, item: object = None, kind: _Kind | None = None) -> None:
        super().__init__(told)
        self.item = item
        self.kind = kind


class _Kind(Protocol):
    """What a field may hold."""

    @property
    def text(self) -> str:
        """Its name in messages, e.g. `a whole number`."""

    def take(self, value: object) -> object:
        """The value as the field will hold it.

        Raises:
            _UnfitError: it is of another kind.
        """


@dataclass(frozen=True, kw_only=True)
class _Anything:
    text: str = "anything"

    def take(self, value: object) -> object:
        return value


@dataclass(frozen=True, kw_only=True)
class _Instance:
    kinds: tuple[type, ...]
    text: str

    def take(self, value: object) -> object:
        if not isinstance(value, self.kinds) or (isinstance(value, bool) and bool not in self.kinds):
            raise _UnfitError
        return value


@dataclass(frozen=True, kw_only=True)
class _Number:
    whole: bool

    @property
    def text(self) -> str:
        return "a whole number" if self.whole else "a finite number"

    def take(self, value: object) -> object:
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            raise _UnfitError
        if isinstance(value, float) and not math.isfinite(value):
            raise _UnfitError
        if isinstance(value, int) and abs(value) >= _LARGEST:
            raise _UnfitError(f"The largest number allowed is {_LARGEST - 1}.")
        return value


@dataclass(frozen=True, kw_only=True)
class _Tuple:
    item: _Kind

    @property
    def text(self) -> str:
        return "a tuple" if isinstance(self.item, _Anything) else f"a tuple ({self.item.text} each)"

    def take(self, value: object) -> object:
        if not isinstance(value, tuple | list):
            raise _UnfitError
        taken = tuple(map(self._taken, value))
        return value if isinstance(value, tuple) and taken == value else taken

    def _taken(self, item: object) -> object:
        try:
            return self.item.take(item)
        except _UnfitError as unfit:
            if unfit.kind is not None:
                raise
            raise _UnfitError(str(unfit), item=item, kind=self.item) from None


@dataclass(frozen=True, kw_only=True)
class _Mapping:
    text: str = "a mapping of text to text, e.g. {'NAME': 'value'}"

    def take(self, value: object) -> object:
        if not isinstance(value, Mapping):
            raise _UnfitError
        for name, item in value.items():
            if not isinstance(name, str):
                raise _UnfitError(f"a key of it is {article(name)}")
            if not isinstance(item, str):
                raise _UnfitError(f"{shown(name)} holds {article(item)}")
        return value


@dataclass(frozen=True, kw_only=True)
class _Union:
    kinds: tuple[_Kind, ...]

    @property
    def text(self) -> str:
        return " or ".join(kind.text for kind in self.kinds)

    def take(self, value: object) -> object:
        told = _UnfitError()
        for kind in self.kinds:
            try:
                return kind.take(value)
            except _UnfitError as unfit:
                told = unfit if str(unfit) or unfit.kind is not None else told
        raise told


_PLAIN: Mapping[str, _Kind] = {
    "str": _Instance(kinds=(str,), text="text"),
    "bool": _Instance(kinds=(bool,), text="True or False"),
    "int": _Number(whole=True),
    "float": _Number(whole=False),
    "None": _Instance(kinds=(type(None),), text="None"),
}


@functools.lru_cache
def _kinds(owner: type[DataclassInstance]) -> tuple[tuple[str, object, _Kind], ...]:
    """Name, default and kind of every field."""
    return tuple((item.name, item.default, _kind_of(item, owner)) for item in fields(owner))


def _kind_of(item: Field[object], owner: type) -> _Kind:
    """What a field may hold, from its annotation, read in the module of the class that declares it."""
    home = next((base for base in owner.__mro__ if item.name in vars(base).get("__annotations__", {})), owner)
    names = vars(sys.modules.get(home.__module__, sys))
    if not isinstance(item.type, str):
        return _of_object(item.type)
    try:
        return _of_syntax(ast.parse(item.type, mode="eval").body, names)
    except SyntaxError:
        return _Anything()


def _of_syntax(node: ast.expr, names: Mapping[str, object]) -> _Kind:  # noqa: PLR0911 - one line per form
    match node:
        case ast.Constant(value=None):
            return _PLAIN["None"]
        case ast.Name(id=name):
            return _PLAIN.get(name) or _of_object(names.get(name))
        case ast.BinOp(op=ast.BitOr(), left=left, right=right):
            return _union(_of_syntax(left, names), _of_syntax(right, names))
        case ast.Subscript(value=ast.Name(id="tuple"), slice=ast.Tuple(elts=[item, ast.Constant(value=end)])):
            return _Tuple(item=_of_syntax(item, names)) if end is ... else _Anything()
        case ast.Subscript(value=ast.Name(id="Mapping" | "dict"), slice=ast.Tuple(elts=[key, item])):
            texts = all(isinstance(part, ast.Name) and part.id == "str" for part in (key, item))
            return _Mapping() if texts else _Anything()
        case ast.Subscript(value=ast.Name(id="Literal"), slice=values):
            listed = values.elts if isinstance(values, ast.Tuple) else [values]
            return _literal(tuple(item.value for item in listed if isinstance(item, ast.Constant)))
    return _Anything()


def _of_object(annotation: object) -> _Kind:
    """What an annotation that is an object allows: a class, or the values of a Literal."""
    if get_origin(annotation) is Literal:
        return _literal(get_args(annotation))
    if not isinstance(annotation, type) or getattr(annotation, "_is_protocol", False):
        return _Anything()
    if annotation.__name__ in _PLAIN and annotation.__module__ == "builtins":
        return _PLAIN[annotation.__name__]
    if issubclass(annotation, str):  # an enum of strings may be given by value; its class checks the value
        return _PLAIN["str"]
    return _Instance(
        kinds=(annotation,), text=f"{'an' if annotation.__name__[0] in 'AEIOU' else 'a'} {annotation.__name__}"
    )


def _literal(values: tuple[object, ...]) -> _Kind:
    kinds = tuple(dict.fromkeys(type(value) for value in values))
    return (
        _Instance(kinds=cast("tuple[type, ...]", kinds), text=f"one of {', '.join(map(repr, values))}")
        if kinds
        else _Anything()
    )


def _union(left: _Kind, right: _Kind) -> _Kind:
    if isinstance(left, _Anything) or isinstance(right, _Anything):
        return _Anything()
    return _Union(kinds=(*(left.kinds if isinstance(left, _Union) else (left,)), right))
