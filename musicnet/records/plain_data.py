"""Frozen dataclasses to JSON types and back, without a class's name ever being read from a file.

`to_plain` takes any record; `from_plain` builds the record that its caller names, by the types of
its fields. What the fields mean is checked by the record itself.
"""

import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from difflib import get_close_matches
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

Record = TypeVar("Record")


def to_plain(value: Any) -> Any:
    """A record as JSON types.

    Args:
        value: a dataclass, or anything that one is made of: numbers, text, None, tuples, lists,
            mappings with text as keys.

    Returns:
        Dicts and lists.

    Raises:
        TypeError: a part of another type.

    Example:
        >>> to_plain({"levels": (2, 3), "name": None})
        {'levels': [2, 3], 'name': None}
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: to_plain(one) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(one) for one in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"plain data are JSON types: got {type(value).__name__}.")


def from_plain(kind: type[Record], tree: Any, where: str, *, fill_defaults: bool = False) -> Record:
    """A record from JSON types; the inverse of `to_plain`.

    Args:
        kind: the dataclass to build.
        tree: what `to_plain` gave, perhaps by way of a file.
        where: what the tree is called, for messages.
        fill_defaults: whether a key may be missing that has a default.

    Returns:
        The record, equal to the one that `to_plain` was given.

    Raises:
        ValueError: a key is unknown or missing, a value is of another type or out of range; one
            line that names the key.
    """
    if not isinstance(tree, Mapping):
        raise ValueError(f"{where} must be a mapping: got {_shown(tree)}.")
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    _check_keys(known, tree, where, fill_defaults=fill_defaults)
    hints = get_type_hints(kind)
    values = {
        name: _read(hints[name], value, f"{where}.{name}", fill_defaults=fill_defaults)
        for name, value in tree.items()
    }
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _check_keys(
    known: dict[str, Field[Any]], tree: Mapping[str, Any], where: str, *, fill_defaults: bool
) -> None:
    for key in tree:
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{where} has an unknown key {key!r}.{hint}")
    for name, field in known.items():
        has_default = field.default is not MISSING or field.default_factory is not MISSING
        if name not in tree and not (fill_defaults and has_default):
            raise ValueError(f"{where} lacks the key {name!r}; it has {', '.join(tree) or 'none'}.")


def _read(hint: Any, value: Any, where: str, *, fill_defaults: bool) -> Any:
    """A value as its annotation wants it."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _read_either(inner, value, where, fill_defaults=fill_defaults)
    if origin is Literal:
        if value in inner:
            return value
        raise ValueError(f"{where} must be one of {inner}: got {_shown(value)}.")
    if origin in (tuple, list):
        return _read_sequence(origin, inner, value, where, fill_defaults=fill_defaults)
    if origin is dict:
        return _read_mapping(inner, value, where, fill_defaults=fill_defaults)
    if is_dataclass(hint):
        return from_plain(cast(type[Any], hint), value, where, fill_defaults=fill_defaults)
    return _read_leaf(hint, value, where)


def _read_leaf(hint: Any, value: Any, where: str) -> Any:
    """A number, a text, a truth value or nothing; a whole number may stand for a float."""
    if hint is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if hint is not float and type(value) is hint:
        return value
    wanted = "a finite number" if hint is float else getattr(hint, "__name__", str(hint))
    raise ValueError(f"{where} must be {wanted}: got {_shown(value)}.")


def _read_either(inner: tuple[Any, ...], value: Any, where: str, *, fill_defaults: bool) -> Any:
    """The first kind that takes the value; the last one says why none does."""
    if value is None and type(None) in inner:
        return None
    *others, last = [kind for kind in inner if kind is not type(None)]
    for kind in others:
        try:
            return _read(kind, value, where, fill_defaults=fill_defaults)
        except ValueError:
            continue
    return _read(last, value, where, fill_defaults=fill_defaults)


def _read_sequence(
    origin: Any, inner: tuple[Any, ...], value: Any, where: str, *, fill_defaults: bool
) -> Any:
    if not isinstance(value, tuple | list):
        raise ValueError(f"{where} must be a list: got {_shown(value)}.")
    any_length = origin is list or inner[1:] == (...,)
    kinds = (inner[0],) * len(value) if any_length else inner
    if len(kinds) != len(value):
        raise ValueError(f"{where} must hold {len(kinds)} values: got {len(value)}.")
    return origin(
        _read(kind, one, f"{where}[{index}]", fill_defaults=fill_defaults)
        for index, (kind, one) in enumerate(zip(kinds, value, strict=True))
    )


def _read_mapping(
    inner: tuple[Any, ...], value: Any, where: str, *, fill_defaults: bool
) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} must be a mapping: got {_shown(value)}.")
    return {
        _read_leaf(inner[0], key, where): _read(
            inner[1], one, f"{where}.{key}", fill_defaults=fill_defaults
        )
        for key, one in value.items()
    }


def _shown(value: Any) -> str:
    """A value, not too long for a line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
