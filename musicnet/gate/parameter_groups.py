"""Named parameter groups: who trains at which rate, with nobody left out and nobody twice."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import nn


@dataclass(frozen=True)
class ParameterGroup:
    """One named group of parameters.

    Args:
        name: What logs and checkpoints call the group.
        prefixes: Names of submodules or parameters; each takes everything below it.
        rate_scale: Learning rate of the group over that of the optimiser.

    Raises:
        ValueError: the name or the prefixes are empty, or the scale is not finite and > 0.
    """

    name: str
    prefixes: list[str]
    rate_scale: float = 1.0

    def __post_init__(self) -> None:
        if not self.name or not self.prefixes or not all(self.prefixes):
            raise ValueError(
                "a parameter group needs a name and at least one prefix: got "
                f"name={self.name!r}, prefixes={self.prefixes!r}."
            )
        if not 0 < self.rate_scale < math.inf:
            raise ValueError(
                f"rate_scale of group {self.name!r} must be finite and > 0: got "
                f"{self.rate_scale}. Freeze the group instead of giving it no rate."
            )

    def takes(self, parameter_name: str) -> bool:
        """Tell whether a parameter of this dotted name belongs to the group."""
        return any(
            parameter_name == prefix or parameter_name.startswith(f"{prefix}.")
            for prefix in self.prefixes
        )


def backbone_and_head() -> list[ParameterGroup]:
    """Give the usual two groups: `backbone` at the rate itself, `head` at four times the rate."""
    return [ParameterGroup("backbone", ["backbone"]), ParameterGroup("head", ["head"], 4.0)]


def named_groups(
    module: nn.Module, groups: Sequence[ParameterGroup], base_rate: float
) -> list[dict[str, Any]]:
    """Sort the parameters of a module into groups, as an optimiser takes them.

    Parameters that are frozen now are sorted in too, so that they train once they are unfrozen.

    Args:
        module: Owns the parameters.
        groups: Must cover every trainable parameter exactly once.
        base_rate: Learning rate that the groups scale.

    Returns:
        One mapping per group with ``params``, ``name`` and ``lr``.

    Raises:
        ValueError: a trainable parameter is in no group or in several, a group is empty, or two
            groups share a name.

    Example:
        >>> net = nn.ModuleDict({"backbone": nn.Linear(2, 2), "head": nn.Linear(2, 1)})
        >>> [(g["name"], len(g["params"]), g["lr"])
        ...  for g in named_groups(net, backbone_and_head(), 0.5)]
        [('backbone', 2, 0.5), ('head', 2, 2.0)]
    """
    names = [group.name for group in groups]
    if len(set(names)) < len(names):
        raise ValueError(f"parameter groups need different names: got {names}.")
    # torch.compile puts this part into the names of the modules that it wraps
    named = [(n.replace("_orig_mod.", ""), p) for n, p in module.named_parameters()]
    owners = {name: [group.name for group in groups if group.takes(name)] for name, _ in named}
    orphans = [n for n, p in named if p.requires_grad and not owners[n]]
    contested = [f"{n} ({', '.join(owners[n])})" for n, _ in named if len(owners[n]) > 1]
    empty = [name for name in names if not any(name in owner for owner in owners.values())]
    problems = [
        f"{label}: {', '.join(found)}"
        for label, found in (
            ("in no group", orphans),
            ("in several groups", contested),
            ("groups without parameters", empty),
        )
        if found
    ]
    if problems:
        raise ValueError(
            "every trainable parameter must be in exactly one group: got "
            f"{'; '.join(problems)}. Change the prefixes of the groups."
        )
    return [
        {
            "params": [p for n, p in named if group.name in owners[n]],
            "name": group.name,
            "lr": base_rate * group.rate_scale,
        }
        for group in groups
    ]


def base_rate_of(optimizer: OptimizerCallable) -> float:
    """Read the learning rate off an optimiser built for nothing, so that bad numbers show early.

    Raises:
        ValueError: a number of the optimiser is out of range.
    """
    probe = optimizer([nn.Parameter(torch.zeros(1, 1))])
    for name, value in probe.defaults.items():
        numbers = value if isinstance(value, tuple | list) else (value,)
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            raise ValueError(f"optimizer.{name} must be finite: got {value}.")
    return float(probe.param_groups[0]["lr"])
