"""Whether the sources of a scene send one waveform: a small network on clues of the covariance.

A few snapshots in strong noise do not tell by any one number. What has been heard of many scenes
tells how likely it is, which is enough to choose by.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from musicnet.estimation.covariance_clues import N_DISTANCES, CovarianceClues

_TOP = 6  # eigenvalues that are looked at one by one
_LEAST_VALUE, _LEAST_EXCESS, _LEAST_UNEVENNESS = 1e-2, 1e-3, 1e-2


class CoherenceHead(nn.Module):
    """Clues to log-odds.

    Args:
        n_channels: features of a scene.
        n_max: most sources of a scene.
        most_snapshots: that it learns from; longer scenes pass for as long.
    """

    def __init__(self, n_channels: int, n_max: int, most_snapshots: int) -> None:
        super().__init__()
        self.n_max = n_max
        self.most_snapshots = most_snapshots
        self.layers = nn.Sequential(
            nn.Linear(2 * _TOP + 1 + N_DISTANCES + 1 + n_max, n_channels),
            nn.GELU(),
            nn.Linear(n_channels, n_channels),
            nn.GELU(),
        )
        self.log_odds = nn.Linear(n_channels, 1)
        nn.init.zeros_(self.log_odds.weight)
        nn.init.zeros_(self.log_odds.bias)

    def forward(
        self, clues: CovarianceClues, n_snapshots: int, counts: Int[Tensor, "channel scene"]
    ) -> Float[Tensor, "channel scene"]:
        """Judges scenes.

        Args:
            clues: of what was heard.
            n_snapshots: T that went into them.
            counts: sources of each scene; what is said of fewer than two means nothing.

        Returns:
            Log-odds that all sources of a scene send one waveform.
        """
        told = self._told(clues, n_snapshots, counts)
        log_odds: Tensor = self.log_odds(self.layers(told))[..., 0]
        return log_odds

    def _told(
        self, clues: CovarianceClues, n_snapshots: int, counts: Int[Tensor, "channel scene"]
    ) -> Float[Tensor, "channel scene clue"]:
        """Numbers of order one."""
        values = clues.values
        missing = max(0, _TOP + 1 - values.shape[-1])
        values = nn.functional.pad(values, (0, missing))
        top, rest = values[..., :_TOP], values[..., _TOP:].mean(-1, keepdim=True)
        seen = torch.cat((top, rest), dim=-1).clamp_min(_LEAST_VALUE).log()
        excess = (top - 1.0).clamp_min(_LEAST_EXCESS).log()
        length = math.log(min(n_snapshots, self.most_snapshots)) - 4.0
        is_count = nn.functional.one_hot(counts.clamp(0, self.n_max), self.n_max + 1)[..., 1:]
        return torch.cat(
            (
                torch.cat((seen, excess), dim=-1) / 3.0,
                clues.unevenness.clamp_min(_LEAST_UNEVENNESS).log(),
                torch.full_like(rest, length / 1.5),
                is_count.to(rest),
            ),
            dim=-1,
        )
