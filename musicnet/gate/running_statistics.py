"""Buffers that a forward pass changes: the running statistics of normalisation layers.

The gate protects parameters; a vetoed batch has been through the forward pass all the same and
may have left nan in the running mean and variance.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


def normalisation_layers(module: nn.Module) -> dict[str, nn.Module]:
    """Find the layers of a module that keep running statistics, by name."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, _NormBase)}


def running_statistics(module: nn.Module) -> dict[str, Tensor]:
    """Find the running statistics of every normalisation layer by name.

    Args:
        module: Any module; layers without running statistics give nothing.

    Returns:
        The buffers themselves, not copies.

    Example:
        >>> sorted(running_statistics(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))))
        ['1.num_batches_tracked', '1.running_mean', '1.running_var']
    """
    return {
        f"{name}.{key}" if name else key: buffer
        for name, layer in normalisation_layers(module).items()
        for key, buffer in layer.named_buffers(recurse=False)
    }


class StatisticsSnapshot:
    """Running statistics as they were before the first forward pass of a window.

    Args:
        layers: Their buffers are copied now.
    """

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        self._buffers = [b for layer in layers for b in layer.buffers(recurse=False)]
        self._copies = [buffer.clone() for buffer in self._buffers]

    def restore(self) -> None:
        """Put every statistic back, bit by bit."""
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._copies)
