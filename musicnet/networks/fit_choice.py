"""Which signal subspace to fit, before anything is searched: a small network on eigenvalues.

Fitting all snapshots is best where sources are incoherent and the noise is strong; where they are
coherent, a subspace of fewer dimensions leaves out freedom that would explain noise. A few
eigenvalues of a few snapshots do not say which it is, but they say which costs less on average.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

_TOP = 6  # eigenvalues that are looked at one by one
_LEAST = 1e-2  # of an eigenvalue, in units of noise
_LEAST_EXCESS = 1e-3


class FitChoice(nn.Module):
    """Eigenvalues to the cost of each fit.

    Args:
        n_channels: features.
        n_max: most sources of a scene, and dimensions of a subspace.
        most_snapshots: that it learns from; more are taken for as many.
    """

    def __init__(self, n_channels: int, n_max: int, most_snapshots: int) -> None:
        super().__init__()
        self.n_max = n_max
        self.most_snapshots = most_snapshots
        self.layers = nn.Sequential(
            nn.Linear(2 * _TOP + 2 + n_max, n_channels),
            nn.GELU(),
            nn.Linear(n_channels, n_channels),
            nn.GELU(),
        )
        self.cost = nn.Linear(n_channels, n_max)
        # untrained it fits all snapshots: every subspace costs as much
        nn.init.zeros_(self.cost.weight)
        nn.init.zeros_(self.cost.bias)

    def forward(
        self,
        values: Float[Tensor, "channel scene row"],
        n_snapshots: int,
        counts: Int[Tensor, "channel scene"],
    ) -> Float[Tensor, "channel scene option"]:
        """Foretells costs.

        Args:
            values: eigenvalues of the covariance, in units of noise, falling.
            n_snapshots: T that went into it.
            counts: sources of each scene.

        Returns:
            How much more than fitting all snapshots it costs to fit 0 (all snapshots), 1, 2 ...
            dimensions; infinite for more dimensions than sources or snapshots.
        """
        if n_snapshots < 2:  # one snapshot is its only dimension
            costs = values.new_zeros((*counts.shape, self.n_max))
        else:
            costs = self.cost(self.layers(self._told(values, n_snapshots, counts)))
        rank = torch.arange(1, self.n_max + 1, device=values.device)
        most = counts.clamp_max(min(n_snapshots - 1, values.shape[-1]))[..., None]
        costs = costs.masked_fill(rank > most, math.inf)
        return torch.cat((torch.zeros_like(costs[..., :1]), costs), dim=-1)

    def _told(
        self,
        values: Float[Tensor, "channel scene row"],
        n_snapshots: int,
        counts: Int[Tensor, "channel scene"],
    ) -> Float[Tensor, "channel scene clue"]:
        """Numbers of order one."""
        top = nn.functional.pad(values[..., :_TOP], (0, max(0, _TOP - values.shape[-1])))
        rest = (
            values[..., _TOP:].mean(-1, keepdim=True) if values.shape[-1] > _TOP else top[..., -1:]
        )
        seen = torch.cat((top, rest), dim=-1).clamp_min(_LEAST).log()
        excess = (top - 1.0).clamp_min(_LEAST_EXCESS).log()
        length = math.log(min(n_snapshots, self.most_snapshots)) - 4.0
        is_count = nn.functional.one_hot(counts.clamp(0, self.n_max), self.n_max + 1)[..., 1:]
        return torch.cat(
            (
                torch.cat((seen, excess), dim=-1) / 3.0,
                torch.full_like(rest, length / 1.5),
                is_count.to(rest),
            ),
            dim=-1,
        )
