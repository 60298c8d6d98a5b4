"""From features to the pseudo-spectrum: a logit and a sub-cell offset for every cell."""

from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from musicnet.networks.coherence import CoherenceHead
from musicnet.networks.trust import TrustHead
from musicnet.shapes import Map

INITIAL_LOGIT = -4.0  # sources are rare: about two in a hundred cells before training
_INITIAL_SPREAD = 0.01
_N_OUTPUTS = 4  # logit, then offsets along v, u, rho


@dataclass(frozen=True)
class PseudoSpectrum:
    """How likely each cell holds a source, and where in the cell.

    Args:
        logits: log-odds per cell.
        offsets: (v, u, rho) from the cell's centre, in cells.
    """

    logits: Map
    offsets: Float[Tensor, "*batch v u rho 3"]


class Head(nn.Module):
    """One linear map per cell, plus the classical score times a learned weight.

    The weight of the score starts at one and the other weights near zero, so that the untrained
    network *is* the classical method; without that it would first have to rediscover it.

    Args:
        n_channels: of the features.
        n_rho: planes of the grid.
        n_trust: features of the trust head; 0 goes without.
        coherence: says which scenes are coherent; None goes without.
    """

    def __init__(
        self,
        n_channels: int,
        n_rho: int,
        n_trust: int = 0,
        coherence: CoherenceHead | None = None,
    ) -> None:
        super().__init__()
        self.outputs = nn.Conv2d(n_channels, n_rho * _N_OUTPUTS, kernel_size=1)
        self.score_weight = nn.Parameter(torch.ones(()))
        nn.init.normal_(self.outputs.weight, std=_INITIAL_SPREAD)
        with torch.no_grad():
            bias = cast("Tensor", self.outputs.bias)  # convolutions have one by default
            bias.zero_()[::_N_OUTPUTS] = INITIAL_LOGIT
        self.trust = TrustHead(n_trust) if n_trust else None
        self.coherence = coherence

    def forward(
        self,
        features: Float[Tensor, "scene channel v u"],
        score: Float[Tensor, "scene v u rho"],
    ) -> PseudoSpectrum:
        """Reads the features.

        Args:
            features: of the backbone.
            score: centred log power of the classical method.

        Returns:
            The pseudo-spectrum, in single precision whatever the features' is.
        """
        outputs = self.outputs(features).movedim(1, -1).unflatten(-1, (-1, _N_OUTPUTS)).float()
        return PseudoSpectrum(outputs[..., 0] + self.score_weight * score, outputs[..., 1:])
