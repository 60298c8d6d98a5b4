"""How an image is laid out: planes of the search grid, one map per inverse range."""

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from musicnet.estimation.spectrum import SearchGrid
from musicnet.scene.scene import Scene
from musicnet.scene.steering import steering

N_SHARED_MAPS = 3
"""Two coordinates and the level."""

_LOG_FLOOR = 0.05  # of a power in units of the noise: what lies far below the noise looks alike


def grid_steering(scene: Scene, grid: SearchGrid) -> Complex[Tensor, "cell element"]:
    """Steering vectors of all cells.

    Args:
        scene: knows the elements.
        grid: where to look.

    Returns:
        v slowest and rho fastest.
    """
    cells = grid.cells.flatten(0, 2)  # (cell, 3), v slowest and rho fastest
    return steering(scene.positions(), cells, scene.wavelength_m)


def centred_log(
    power: Float[Tensor, "*batch cell"],
) -> tuple[Float[Tensor, "*batch cell"], Float[Tensor, "*batch 1"]]:
    """The logarithm of a power less its mean over the cells.

    Args:
        power: in units of the noise.

    Returns:
        The logarithm, and the level that was taken off.
    """
    logarithm = (power + _LOG_FLOOR).log()
    level = logarithm.mean(-1, keepdim=True)
    return logarithm - level, level


def laid_out(
    planes: tuple[Float[Tensor, "*batch cell"], ...],
    level: Float[Tensor, "*batch 1"],
    shape: tuple[int, int, int],
) -> Float[Tensor, "*batch v u map"]:
    """Maps of an image: planes, then two coordinates and the level.

    Args:
        planes: the score first.
        level: that the score was centred by.
        shape: cells along v, u and rho.

    Returns:
        The image.
    """
    n_v, n_u, _ = shape
    batch = level.shape[:-1]
    along_v, along_u = (torch.linspace(-1.0, 1.0, n, device=level.device) for n in (n_v, n_u))
    shared = (along_v[:, None], along_u, level[..., None])
    parts = [plane.reshape(*batch, *shape) for plane in planes]
    parts += [one.expand(*batch, n_v, n_u)[..., None] for one in shared]
    return torch.cat(parts, dim=-1)
