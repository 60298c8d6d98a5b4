"""Optimisers that evaluate the loss themselves (LBFGS), made safe for the gate.

The gate has to see a gradient before it allows a step, and a line search may still run into a
region without finite values after that.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from musicnet.gate.gradients import all_finite


def evaluated(closure: Callable[[], Any]) -> Callable[[], Any]:
    """Evaluate the closure now and hand its result to the first caller, so that none is wasted.

    Args:
        closure: Clears the gradients, runs backward and returns the loss.

    Returns:
        A closure that costs nothing the first time and evaluates from the second time on.
    """
    with torch.enable_grad():
        ready = [closure()]

    def replay() -> Any:
        return ready.pop() if ready else closure()

    return replay


class Rewind:
    """Parameters and optimiser state as they are now, to go back to.

    Args:
        optimizers: Raw optimisers whose step may have to be undone.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self._optimizers = list(optimizers)
        self._parameters = [p for o in optimizers for g in o.param_groups for p in g["params"]]
        self._values: list[Tensor] = [p.detach().clone() for p in self._parameters]
        self._states = [copy.deepcopy(optimizer.state_dict()) for optimizer in optimizers]

    def undo_unless_finite(self) -> bool:
        """Restore everything if any parameter is non-finite; tell whether the step stands."""
        if all_finite(self._parameters):
            return True
        with torch.no_grad():
            torch._foreach_copy_(self._parameters, self._values)
        for optimizer, state in zip(self._optimizers, self._states, strict=True):
            optimizer.load_state_dict(state)
        return False
