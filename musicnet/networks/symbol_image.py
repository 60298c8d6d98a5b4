r"""What the network sees of symbols that change with every code of a surface.

No amplitude is common to the codes, and a sum of powers over them shows sources as broad hills that
hide each other. So the spectrum is *whitened*: with the power :math:`w_g` of every cell from the
round before, each code has the covariance :math:`R_q = \sum_g w_g d_{qg} d_{qg}^H + \sigma^2 I`,

.. math:: w_g \leftarrow w_g \frac{\sum_q |d_{qg}^H R_q^{-1} y_q|^2}
   {\sum_q d_{qg}^H R_q^{-1} d_{qg}}

a few rounds of sparse Bayesian learning: where the likelihood is flat, powers stay; where other
cells explain what was heard, they fall. The score is what a cell of power w sounds like.
"""

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from musicnet.estimation.spectrum import SearchGrid
from musicnet.networks.maps import N_SHARED_MAPS, centred_log, grid_steering, laid_out
from musicnet.scene.scene import Scene
from musicnet.scene.snapshots import Observation

N_ROUNDS = 2
"""Of whitening; more sharpen further, and cost as much each."""

_LEAST_POWER = 0.1  # of all sources together, over the noise of a row


class SymbolImage(nn.Module):
    """Log powers of the whitened spectrum and of the matched filter, plane by plane.

    Args:
        scene: a surface heard with data symbols.
        grid: where to look.
    """

    dictionary: Tensor

    def __init__(self, scene: Scene, grid: SearchGrid) -> None:
        super().__init__()
        self.shape = grid.shape
        self.n_maps = 2 * grid.n_rho + N_SHARED_MAPS
        self.register_buffer("dictionary", grid_steering(scene, grid), persistent=False)

    def forward(self, observation: Observation) -> Float[Tensor, "*batch v u map"]:
        """Draws the image; work per operator is done once for all scenes that share it.

        Args:
            observation: batch (*channel, scene) beside operators (*channel), one per block.

        Returns:
            The image; no gradient.
        """
        with torch.no_grad(), torch.autocast(observation.y.device.type, enabled=False):
            y = observation.y / observation.noise_power.sqrt()[..., None, None]
            operators = observation.operator.reshape(-1, *observation.operator.shape[-3:])
            per_channel = y.reshape(len(operators), -1, *y.shape[-2:])
            # one channel after the other: outer products of all cells are megabytes
            pieces = [
                _spectra(operator @ self.dictionary.mT, heard)
                for operator, heard in zip(operators, per_channel, strict=True)
            ]
            matched, whitened = (torch.cat(parts) for parts in zip(*pieces, strict=True))
            shape = (*y.shape[:-2], -1)
            score, level = centred_log(whitened.reshape(shape))
            beside, _ = centred_log(matched.reshape(shape))
            return laid_out((score, beside), level, self.shape)


def _spectra(
    cells: Complex[Tensor, "block row cell"], heard: Complex[Tensor, "scene block row"]
) -> tuple[Float[Tensor, "scene cell"], Float[Tensor, "scene cell"]]:
    """Mean power over blocks that the matched filter hears, and the whitened one; noise is 1."""
    n_rows = cells.shape[1]
    y = heard.transpose(0, 1)  # (block, scene, row)
    norm = torch.view_as_real(cells).square().sum((1, 3))  # (block, cell)
    power = _squared(y @ cells.conj()) / norm[:, None]
    matched = power.mean(0)
    # d d^H as real and imaginary parts: real products are half the work
    outer = (cells[:, :, None] * cells.conj()[:, None]).flatten(1, 2)  # (block, row row, cell)
    parts = torch.view_as_real(outer.mT.contiguous()).flatten(2)  # (block, cell, row row part)
    strength = norm.mean(0) / n_rows
    weight = matched / strength
    beyond = torch.view_as_real(heard).square().sum((1, 2, 3)) / heard[0].numel() - 1.0
    total = beyond.clamp_min(_LEAST_POWER)[:, None]
    weight = weight * total / (weight @ strength)[:, None].clamp_min(torch.finfo(weight.dtype).tiny)
    identity = torch.eye(n_rows, dtype=cells.dtype, device=cells.device)
    for _ in range(N_ROUNDS):
        covariance = (weight @ parts).reshape(*y.shape[:2], n_rows, n_rows, 2)
        inverse = torch.linalg.inv(torch.view_as_complex(covariance) + identity)
        filtered = _squared((inverse @ y[..., None])[..., 0] @ cells.conj())
        # d^H W d = Re tr(W^H d d^H), since W is Hermitian
        left = torch.view_as_real(inverse.contiguous()).flatten(2) @ parts.mT
        weight = weight * filtered.sum(0) / left.sum(0)
    return matched, weight * norm.mean(0)


def _squared(values: Complex[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    return torch.view_as_real(values.resolve_conj()).square().sum(-1)
