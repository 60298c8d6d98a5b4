"""A few elements of many weights: enough to tell whether they are the same, for almost nothing."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

MOST_TENSORS = 8
ELEMENTS_EACH = 8


class Fingerprint:
    """Reads the same few elements again and again.

    Args:
        parameters: whose; of many, some are taken that are spread over all.

    Example:
        >>> from torch import nn
        >>> layer = nn.Linear(2, 2)
        >>> mark = Fingerprint(layer.parameters())
        >>> before = mark.read()
        >>> _ = nn.init.constant_(layer.bias, 7.0)
        >>> torch.equal(before, mark.read())
        False
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        everything = [one for one in parameters if one.numel() > 0]
        self._chosen = _spread(everything, MOST_TENSORS)
        self._homes: list[int] = []
        self._views: list[Tensor] = []

    @torch.no_grad()
    def read(self) -> Tensor:
        """The elements as they are now: a copy, on the device of the first."""
        homes = [one.data_ptr() for one in self._chosen]
        if homes != self._homes:
            # weights may be swapped for others as a whole; views of the old ones would not see it
            self._homes, self._views = homes, [_middle(one) for one in self._chosen]
        pieces = self._views
        if not pieces:
            return torch.zeros(0)
        first = pieces[0]
        if any(piece.dtype != first.dtype or piece.device != first.device for piece in pieces):
            pieces = [piece.to(first.device, torch.float32) for piece in pieces]
        return torch.cat(pieces)


def _middle(parameter: Tensor) -> Tensor:
    """A view of a few elements: what lies at the edge of an image is often never moved."""
    # of a sharded tensor the own shard: to gather it would ask all ranks
    own: Tensor = getattr(parameter, "to_local", lambda: parameter)()
    place = max(0, (own.numel() - ELEMENTS_EACH) // 2)
    return own.detach().reshape(-1)[place : place + ELEMENTS_EACH]


def _spread(items: Sequence[Tensor], most: int) -> list[Tensor]:
    """At most so many of them, evenly spaced, the first and the last included."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def is_finite(values: Tensor) -> bool:
    """Whether every element is finite. Waits for the device."""
    return bool(torch.isfinite(values).all())
