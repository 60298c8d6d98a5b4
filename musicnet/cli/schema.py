"""The arguments of a run and their types, and what is wrong with a tree that does not fit them."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from jsonargparse import get_loader
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.cli import OptimizerCallable
from yaml import YAMLError  # type: ignore[import-untyped]

from musicnet.cli.objective import Objective
from musicnet.cli.preflight_bounds import PreflightBounds
from musicnet.cli.refusals import ConfigurationError, first_fault, nearest, one_line
from musicnet.cli.threads import AUTO
from musicnet.cli.trainer_settings import trainer_fault
from musicnet.gate.gated_module import GatedModule
from musicnet.gate.step_gate import StepGate
from musicnet.learning.phases import Phase
from musicnet.scene.scene import Scene

OWN_ARGUMENTS: dict[str, Any] = {
    "experiment": str,
    "objective": Objective,
    "callbacks": dict[str, Callback | None],
    "threads": int | Literal["auto"],
    "ckpt_path": str | None,
    "resume": str | None,
    "preflight": bool,
    "preflight_bounds": PreflightBounds | None,
}
"""What a run has beside trainer, model and data."""

DEFAULTS: dict[str, Any] = {
    "experiment": "unnamed",
    "callbacks": {},
    "threads": AUTO,
    "preflight": False,
}
"""Of these, where they are not None."""

SHARED: dict[str, Any] = {
    "scene": Scene,
    "optimizer": OptimizerCallable,
    "gate": StepGate,
    "phases": list[Phase],
}
"""Groups that conf/ passes on whole into model and data; a composed tree holds them beside."""

ACCEPTED: dict[str, Any] = {
    "seed_everything": bool | int,
    "trainer": Trainer,
    "model": GatedModule,
    "data": LightningDataModule,
    **OWN_ARGUMENTS,
}


def shared_first(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A composed tree in such an order that a key is found under the name that its user knows."""
    return dict(sorted(tree.items(), key=lambda item: item[0] not in SHARED))


def fault_in_tree(tree: Any) -> str | None:
    """What is wrong with a composed tree, in one line; None where the signatures show nothing."""
    fault = first_fault(shared_first(tree), {**ACCEPTED, **SHARED})
    return fault or trainer_fault(tree.get("trainer", {}))


def fault_in_words(args: Sequence[str]) -> str | None:
    """What is wrong with command-line arguments, read as a tree; None where nothing shows."""
    return first_fault(read_words(args), ACCEPTED)


def callbacks_in_files(args: Sequence[str]) -> list[str]:
    """The names that the configuration files among command-line arguments give to callbacks."""
    return list(read_words(args, only_files=True).get("callbacks") or {})


def check_switched_off(callbacks: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuse null under a name that no callback has: the one that was meant would run on."""
    for name in [name for name, value in callbacks.items() if value is None]:
        if name not in known:
            near = nearest(f"callbacks.{name}", [f"callbacks.{entry}" for entry in known])
            raise ConfigurationError(f"no callback to switch off: got callbacks.{name}. {near}")


def read_words(args: Sequence[str], *, only_files: bool = False) -> dict[str, Any]:
    """Command-line arguments as a tree."""
    tree: dict[str, Any] = {}
    words = iter(args)
    read_yaml = get_loader("yaml")
    for word in words:
        name, equals, text = word.removeprefix("--").partition("=")
        text = text if equals else next(words, "")
        if only_files and name != "config":
            continue
        try:
            value = read_yaml(Path(text).read_text("utf-8") if name == "config" else text)
        except YAMLError as error:
            raise ConfigurationError(f"{word} {text} is no YAML: {one_line(error)}") from error
        if name == "config":
            tree = _merged(tree, value)
            continue
        for key in reversed(name.split(".")):
            value = {key: value}
        tree = _merged(tree, value)
    return tree


def _merged(old: Any, new: Any) -> Any:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}
