"""What trains when: weights of the loss terms and frozen groups, by epoch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import reduce
from operator import add
from typing import TypeVar

from torch import Tensor

from musicnet.learning.losses import LOSS_TERMS, LossTerm

Term = TypeVar("Term", float, Tensor)


@dataclass(frozen=True)
class Phase:
    """A stretch of training with one objective.

    Args:
        weights: of the loss terms, by name; terms that are not named do not count.
        epochs: how long it lasts; None lasts to the end of the run, as the last phase always does.
        frozen: names of the parameter groups that stay as they are.

    Raises:
        ValueError: an unknown term, a weight below zero or not finite, or no epoch at all.

    Example:
        >>> Phase({"spectrum": 1.0, "offsets": 0.5}).total({"spectrum": 2.0, "offsets": 4.0})
        4.0
    """

    weights: dict[str, float]
    epochs: int | None = None
    frozen: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            if name not in LOSS_TERMS:
                near = get_close_matches(name, LOSS_TERMS, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise ValueError(
                    f"the weights of a phase name loss terms, {', '.join(LOSS_TERMS)}: got "
                    f"{name!r}.{hint}"
                )
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(
                    f"the weight of a loss term must be finite and >= 0: got {name}={weight}."
                )
        if not any(self.weights.values()):
            raise ValueError(
                f"a phase needs a loss term with a weight above 0, or nothing can be learned: got "
                f"weights={self.weights}."
            )
        if self.epochs is not None and self.epochs < 1:
            raise ValueError(f"a phase must last at least one epoch: got epochs={self.epochs}.")

    def total(self, terms: Mapping[str, Term]) -> Term:
        """Adds up weighted terms.

        Args:
            terms: at least those that have a weight.

        Returns:
            The objective of this phase.
        """
        weighted = [weight * terms[name] for name, weight in self.weights.items() if weight]
        return reduce(add, weighted)


def joint() -> list[Phase]:
    """One phase for the whole run, offsets at half the weight of the spectrum."""
    return [Phase({"spectrum": 1.0, "offsets": 0.5})]


def phase_index(phases: Sequence[Phase], epoch: int) -> int:
    """Which phase an epoch belongs to.

    Args:
        phases: in order.
        epoch: from 0.

    Returns:
        Index into ``phases``; the last one goes on for ever.

    Example:
        >>> phases = [Phase({"spectrum": 1.0}, epochs=2), *joint()]
        >>> [phase_index(phases, epoch) for epoch in range(4)]
        [0, 0, 1, 1]
    """
    end = 0
    for index, phase in enumerate(phases[:-1]):
        if phase.epochs is None:
            return index
        end += phase.epochs
        if epoch < end:
            return index
    return len(phases) - 1


def weighs(phases: Sequence[Phase], term: LossTerm) -> bool:
    """Whether a loss term counts in any phase."""
    return any(phase.weights.get(term, 0.0) > 0 for phase in phases)


def frozen_throughout(phases: Sequence[Phase]) -> set[str]:
    """Names of the parameter groups that no phase trains."""
    return set.intersection(*(set(phase.frozen) for phase in phases))


def check_phases(phases: Sequence[Phase], group_names: Sequence[str]) -> None:
    """Refuses lists of phases that cannot be trained.

    Args:
        phases: in order.
        group_names: of the parameter groups.

    Raises:
        ValueError: no phase, a phase after an endless one, an unknown or every group frozen.
    """
    if not phases:
        raise ValueError("training needs at least one phase: got phases=[].")
    for number, phase in enumerate(phases):
        if phase.epochs is None and number < len(phases) - 1:
            raise ValueError(
                f"only the last phase may be without epochs: got epochs=None in phase {number} of "
                f"{len(phases)}. Say how many epochs it lasts."
            )
        unknown = sorted(set(phase.frozen) - set(group_names))
        if unknown:
            raise ValueError(
                f"frozen names parameter groups, {', '.join(group_names)}: got {unknown} in phase "
                f"{number}."
            )
        if set(phase.frozen) == set(group_names):
            raise ValueError(
                f"a phase needs a group that trains: got all of {sorted(phase.frozen)} frozen in "
                f"phase {number}."
            )
