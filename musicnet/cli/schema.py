"""The arguments of a run and their types, and what is wrong with a tree that does not fit them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import get_loader
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.cli import OptimizerCallable

from musicnet.cli.objective import Objective
from musicnet.cli.refusals import first_fault
from musicnet.gate.gated_module import GatedModule
from musicnet.gate.step_gate import StepGate
from musicnet.learning.phases import Phase
from musicnet.scene.scene import Scene

OWN_ARGUMENTS: dict[str, Any] = {
    "experiment": str,
    "objective": Objective,
    "callbacks": dict[str, Callback | None],
    "ckpt_path": str | None,
}
"""What a run has beside trainer, model and data."""

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


def fault_in_tree(tree: Any) -> str | None:
    """What is wrong with a composed tree, in one line; None where the signatures show nothing."""
    # The shared groups first: there a key has the name under which the user knows it.
    shared = {key: value for key, value in tree.items() if key in SHARED}
    own = {key: value for key, value in tree.items() if key not in SHARED}
    return first_fault(shared, SHARED) or first_fault(own, {**ACCEPTED, **SHARED})


def fault_in_words(args: Sequence[str]) -> str | None:
    """What is wrong with command-line arguments, read as a tree; None where nothing shows."""
    tree: dict[str, Any] = {}
    words = iter(args)
    read_yaml = get_loader("yaml")
    for word in words:
        name, equals, text = word.removeprefix("--").partition("=")
        text = text if equals else next(words, "")
        value = read_yaml(Path(text).read_text("utf-8") if name == "config" else text)
        if name == "config":
            tree = _merged(tree, value)
            continue
        for key in reversed(name.split(".")):
            value = {key: value}
        tree = _merged(tree, value)
    return first_fault(tree, ACCEPTED)


def _merged(old: Any, new: Any) -> Any:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}
