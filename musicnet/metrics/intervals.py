"""How far a figure can be trusted: bootstrap intervals over channels.

Scenes that share a channel are one draw, so that whole channels are drawn again, never scenes.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor

Statistic = Callable[[Int[Tensor, " channel"]], float]
"""A figure of some channels, given by number; one may come several times."""


def channel_interval(
    statistic: Statistic, n_channels: int, n_draws: int = 400, level: float = 0.95
) -> tuple[float, float]:
    """Where a figure lies if the channels are drawn anew, by percentiles.

    The draws are the same whenever there are as many channels: differences and ratios of two
    methods that heard the same channels are paired.

    Args:
        statistic: the figure, of channels by number.
        n_channels: how many there are.
        n_draws: more make the interval itself less random.
        level: share of the draws inside.

    Returns:
        Lowest and highest; NaN where the figure is none in every draw.

    Raises:
        ValueError: no channels, no draws, or a level that is no share.

    Source: Efron & Tibshirani (1993), An Introduction to the Bootstrap, percentile interval.

    Example:
        >>> channel_interval(lambda channels: 3.0, n_channels=5)
        (3.0, 3.0)
    """
    if n_channels < 1 or n_draws < 1 or not 0.0 < level < 1.0:
        raise ValueError(
            "an interval needs channels, draws and a level between 0 and 1: got "
            f"n_channels={n_channels}, n_draws={n_draws}, level={level}."
        )
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(n_channels, (n_draws, n_channels), generator=generator)
    values = torch.tensor([statistic(channels) for channels in drawn], dtype=torch.float64)
    values = values[~values.isnan()].sort().values
    if len(values) == 0:
        return math.nan, math.nan
    # no interpolation: a ratio over nothing is infinite, and infinity less infinity is no number
    outside = 0.5 * (1.0 - level)
    low = math.floor(outside * (len(values) - 1))
    high = math.ceil((1.0 - outside) * (len(values) - 1))
    return float(values[low]), float(values[high])
