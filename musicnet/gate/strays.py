"""Parameters of a module that no optimiser holds: their broken gradients veto a step as well."""

from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from torch import nn
from torch.optim import Optimizer


class Strays:
    """Finds the parameters of a module that none of its optimisers holds.

    Its optimisers are all that were ever given with it: an attempt of one player of a GAN does not
    make strays of the other. A module is searched again only when its optimisers change.

    Example:
        >>> import torch
        >>> body, head = nn.Linear(2, 2), nn.Linear(2, 1)
        >>> sgd = torch.optim.SGD(body.parameters(), lr=0.1)
        >>> [tuple(p.shape) for p in Strays().of(nn.Sequential(body, head), [sgd])]
        [(1, 2), (1,)]
    """

    def __init__(self) -> None:
        self._optimizers: WeakKeyDictionary[nn.Module, WeakSet[Optimizer]] = WeakKeyDictionary()
        self._found: WeakKeyDictionary[nn.Module, tuple[int, list[nn.Parameter]]] = (
            WeakKeyDictionary()
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # what was found belongs to objects that a copy does not have
        return type(self), ()

    def of(self, module: nn.Module, optimizers: Iterable[Optimizer]) -> list[nn.Parameter]:
        """Give the strays, frozen ones included, whether or not they have a gradient now.

        Args:
            module: Owns the parameters.
            optimizers: Raw optimisers that step on them.
        """
        known = self._optimizers.setdefault(module, WeakSet())
        known.update(optimizers)
        groups = [group["params"] for optimizer in known for group in optimizer.param_groups]
        n_held = sum(map(len, groups))
        found = self._found.get(module)
        if found is None or found[0] != n_held:
            held = {id(parameter) for group in groups for parameter in group}
            strays = [p for p in module.parameters() if id(p) not in held]
            found = self._found[module] = (n_held, strays)
        return found[1]
