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
        # the middle: what lies at the edge of an image is often never moved
        self._places = [max(0, (one.numel() - ELEMENTS_EACH) // 2) for one in self._chosen]

    @torch.no_grad()
    def read(self) -> Tensor:
        """The elements as they are now: a copy, on the device of the first."""
        pieces = [
            one.detach().reshape(-1)[place : place + ELEMENTS_EACH]
            for one, place in zip(self._chosen, self._places, strict=True)
        ]
        if not pieces:
            return torch.zeros(0)
        first = pieces[0]
        if any(piece.dtype != first.dtype or piece.device != first.device for piece in pieces):
            pieces = [piece.to(first.device, torch.float32) for piece in pieces]
        return torch.cat(pieces)


def _spread(items: Sequence[Tensor], most: int) -> list[Tensor]:
    """At most so many of them, evenly spaced, the first and the last included."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def is_finite(values: Tensor) -> bool:
    """Whether every element is finite. Waits for the device."""
    return bool(torch.isfinite(values).all())
