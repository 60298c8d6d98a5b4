"""Says in one line what is wrong with a tree of configuration.

The parser decides *whether* a tree is refused; its own reasons run to a hundred lines. A refused
tree comes in; out goes the first fault that the signatures of its classes show: an unknown key with
its nearest right name, a wrong type, a missing argument, a class that cannot be had.
"""

import difflib
import importlib
import inspect
import math
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

ALLOWED_IMPORTS = (
    "musicnet",
    "callbacks",
    "torch.optim",
    "torch.optim.lr_scheduler",
    "lightning.pytorch",
    "torchmetrics",
)
"""What a configuration may name; nothing else is imported on its behalf."""

_CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")


class ConfigurationError(ValueError):
    """A configuration that cannot be run; its text is one line for the user."""


def first_fault(tree: Mapping[str, Any], accepted: Mapping[str, Any]) -> str | None:
    """The first fault of a tree.

    Args:
        tree: nested configuration, as read.
        accepted: type of each top-level key.

    Returns:
        One line, or None where the signatures show no fault.

    Example:
        >>> first_fault({"sed": 5}, {"seed": int})
        "unknown key 'sed'. Did you mean 'seed'?"
        >>> first_fault({"seed": "five"}, {"seed": int})
        "seed must be int: got 'five'."
    """
    return next(_member_faults(tree, accepted, ""), None)


def nonfinite(tree: Any) -> str | None:
    """The first number of a tree that is not finite, as one line.

    Example:
        >>> nonfinite({"optimizer": {"lr": float("nan")}})
        'optimizer.lr must be finite: got nan.'
    """
    for key, value in _nodes(tree):
        if isinstance(value, float) and not math.isfinite(value):
            return f"{key} must be finite: got {value}."
    return None


def nearest(name: str, known: Sequence[str]) -> str:
    """The known name closest to a misspelt one, as a sentence; else all that are known.

    Example:
        >>> nearest("widht", ["width", "depth"])
        "Did you mean 'width'?"
        >>> nearest("x", ["width", "depth"])
        'Known here: depth, width.'
    """
    # Of `init_args.lr` the last part decides; a beginning of a long name is near to it as well.
    tail = name.rpartition(".")[2]
    tails = {entry.rpartition(".")[2]: entry for entry in known}
    beginnings = {key[: len(tail) + 1]: entry for key, entry in tails.items() if len(tail) > 2}
    for candidates in (tails, beginnings):
        if close := difflib.get_close_matches(tail, candidates, n=1):
            return f"Did you mean {candidates[close[0]]!r}?"
    return f"Known here: {', '.join(sorted(known))}."


def one_line(error: BaseException) -> str:
    """The reason of an error, on one line.

    Where a type allows several kinds, the parser wraps the error of a constructor in many lines.
    """
    while "\n" in str(error) and error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__


def with_key(reason: str, tree: Any) -> str:
    """A class's refusal of a value, with the whole key that holds it where the tree shows one.

    Example:
        >>> with_key("max_norm must be > 0: got -1.0.", {"gate": {"max_norm": -1}})
        'gate.max_norm must be > 0: got -1.0.'
    """
    # torch writes "Invalid momentum value: -1" and spells one argument out
    found = re.match(r"(Invalid )?`?(\w+)`?", reason.replace("learning rate", "lr"))
    for key, value in _nodes(tree) if found else ():
        if found and key.endswith(f".{found[2]}") and _numbers(repr(value)) <= _numbers(reason):
            return f"{key}: {reason}" if found[1] else f"{key}{reason[found.end() :]}"
    return reason


def _numbers(text: str) -> set[float]:
    return {float(number) for number in re.findall(r"-?\d+(?:\.\d*)?(?:e[-+]?\d+)?", text)}


def _member_faults(
    node: Mapping[str, Any], accepted: Mapping[str, Any], path: str
) -> Iterator[str]:
    for name, value in node.items():
        if name not in accepted:
            yield _unknown(path, name, list(accepted))
        else:
            yield from _value_faults(value, accepted[name], _join(path, name))


def _value_faults(value: Any, hint: Any, path: str) -> Iterator[str]:
    if isinstance(value, Mapping) and "class_path" in value:
        yield from _class_faults(value, path)
    elif isinstance(value, Mapping) and typing.get_origin(hint) is dict:
        for name, item in value.items():
            yield from _value_faults(item, typing.get_args(hint)[1], _join(path, str(name)))
    elif isinstance(value, Mapping) and (owner := _class_in(hint)) is not None:
        parameters = _parameters(owner)
        if parameters is not None:
            yield from _member_faults(value, parameters, path)
    elif isinstance(value, list) and (owner := _class_in(hint)) is not None:
        for index, item in enumerate(value):
            yield from _value_faults(item, owner, _join(path, str(index)))
    elif not _fits(value, hint):
        yield f"{path} must be {_spoken(hint)}: got {value!r}."


def _class_faults(node: Mapping[str, Any], path: str) -> Iterator[str]:
    name = node["class_path"]
    if not isinstance(name, str) or "." not in name:
        yield f"{path}.class_path must name a class as package.module.Class: got {name!r}."
        return
    if not name.startswith(tuple(f"{package}." for package in ALLOWED_IMPORTS)):
        yield (
            f"{path}.class_path must lie in one of {', '.join(ALLOWED_IMPORTS)}, and nothing else "
            f"is imported: got {name!r}."
        )
        return
    module_name, _, class_name = name.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        yield f"{path}.class_path cannot be imported: got {name!r} ({error})."
        return
    if not isinstance(owner := getattr(module, class_name, None), type):
        known = [f"{module_name}.{entry}" for entry in dir(module) if entry[0].isupper()]
        yield f"{path}.class_path names no class: got {name!r}. {nearest(name, known)}"
        return
    parameters = _parameters(owner)
    if parameters is None:
        return
    for key in set(node) - set(_CLASS_KEYS):
        yield _unknown(path, key, [*(f"init_args.{entry}" for entry in parameters), "class_path"])
    init_args = node.get("init_args") or {}
    yield from _member_faults(init_args, parameters, _join(path, "init_args"))


def _parameters(owner: type) -> dict[str, Any] | None:
    """Name and type of what a class takes; None where it takes anything."""
    parameters = inspect.signature(owner).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    try:
        hints = typing.get_type_hints(owner.__init__)  # type: ignore[misc]
    except (NameError, TypeError):  # a name that only a type checker imports
        hints = {}
    return {parameter.name: hints.get(parameter.name, Any) for parameter in parameters}


def _class_in(hint: Any) -> type | None:
    """The one class with members of its own that a hint such as `list[Phase] | None` speaks of."""
    if isinstance(hint, type) and typing.get_origin(hint) is None:
        return None if hint.__module__ == "builtins" else hint
    found = [owner for part in typing.get_args(hint) if (owner := _class_in(part)) is not None]
    return found[0] if len(found) == 1 else None


def _fits(value: Any, hint: Any) -> bool:
    """Whether the parser takes a value, alone, for a type."""
    parser = ArgumentParser(exit_on_error=False)
    try:
        parser.add_argument("--value", type=hint)
        parser.parse_object({"value": value})
    except ArgumentError:
        return False
    except ValueError:  # a type that the parser cannot check alone: not this value's fault
        return True
    return True


def _spoken(hint: Any) -> str:
    """A type in words: `int | None`, `'pilot' or 'data'`."""
    if hint is type(None):
        return "null"
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(repr(choice) for choice in typing.get_args(hint))
    if typing.get_args(hint) and typing.get_origin(hint) in (typing.Union, _UNION):
        return " or ".join(map(_spoken, typing.get_args(hint)))
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


_UNION = type(int | None)


def _unknown(path: str, name: str, known: Sequence[str]) -> str:
    known = [_join(path, entry) for entry in known]
    return f"unknown key {_join(path, name)!r}. {nearest(name, known)}"


def _items(tree: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(tree, Mapping):
        yield from tree.items()
    elif isinstance(tree, (list, tuple)):
        yield from enumerate(tree)


def _nodes(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Key and value of everything in a tree, from the top."""
    for name, value in _items(tree):
        key = _join(path, str(name))
        yield key, value
        yield from _nodes(value, key)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
