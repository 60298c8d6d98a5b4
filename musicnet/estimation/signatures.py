r"""What sources sound like at the rows, and how that changes as they move.

A signature is G a(p). It comes with its derivatives along the searched coordinates as further
*lines* of one matrix, derivative by derivative and in each source by source, so that one product
with G and one Gram matrix serve all. `musicnet.scene.steering` has the equations.
"""

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from musicnet.coordinates import depth_cosine
from musicnet.estimation.problem import Problem
from musicnet.estimation.products import product_of_rows
from musicnet.scene.steering import GRAZING_COSINE


def signatures(
    problem: Problem,
    parameters: Float[Tensor, "channel scene source 3"],
    present: Bool[Tensor, "channel scene source"],
) -> Complex[Tensor, "channel scene blocks source row"]:
    """G a of every source.

    Args:
        problem: knows G and the elements.
        parameters: (u, v, rho), finite.
        present: slots that hold a source; the others have the signature 0.

    Returns:
        One line per source.
    """
    _, _, _, excess, stretch = _geometry(problem, parameters)
    phase = excess / (1.0 + stretch) * -problem.wavenumber
    there = present[..., None].to(phase.dtype)
    return _at_rows(problem, torch.complex(phase.cos() * there, phase.sin() * there))


def signatures_and_slopes(
    problem: Problem,
    parameters: Float[Tensor, "channel scene source 3"],
    present: Bool[Tensor, "channel scene source"],
) -> Complex[Tensor, "channel scene blocks line row"]:
    """G a of every source, then G da/du of every source, and so on along what is searched.

    Args:
        problem: knows G, the elements, and which coordinates are searched.
        parameters: (u, v, rho), finite.
        present: slots that hold a source; the lines of the others are 0.

    Returns:
        K (1 + D) lines, D the number of searched coordinates.
    """
    across, u, v, excess, stretch = _geometry(problem, parameters)
    fraction = excess / (1.0 + stretch)
    phase = fraction * -problem.wavenumber
    there = present[..., None].to(phase.dtype)
    cosine, sine = phase.cos().mul_(there), phase.sin().mul_(there)
    pace = problem.wavenumber / stretch
    x, y, z = across.unbind(0)
    tilt = z / depth_cosine(u, v).clamp_min(GRAZING_COSINE)
    shape = (*parameters.shape[:2], 1 + len(problem.active), *phase.shape[2:])
    real, imaginary = phase.new_empty(shape), phase.new_empty(shape)
    real[:, :, 0], imaginary[:, :, 0] = cosine, sine
    for line, coordinate in enumerate(problem.active, start=1):
        if coordinate == 2:
            slope = (fraction.square() - across.square().sum(0)).mul_(0.5)
        else:
            slope = (x - tilt * u) if coordinate == 0 else (y - tilt * v)
        slope = pace * slope
        # the derivative of exp(j psi) is j psi' exp(j psi)
        torch.mul(slope, sine, out=real[:, :, line]).neg_()
        torch.mul(slope, cosine, out=imaginary[:, :, line])
    return _at_rows(problem, torch.complex(real, imaginary).flatten(2, 3))


def _geometry(
    problem: Problem, parameters: Float[Tensor, "channel scene source 3"]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Elements as (3, element), u, v, and w_n and S of `musicnet.scene.steering`."""
    u, v, rho = parameters[..., None].unbind(-2)  # (channel, scene, source, 1)
    across = problem.positions.mT.contiguous()
    x, y, z = (-2.0 * across).unbind(0)
    excess = rho * across.square().sum(0)
    excess.addcmul_(u, x).addcmul_(v, y).addcmul_(depth_cosine(u, v), z)
    stretch = (excess * rho).add_(1.0).sqrt_()
    return across, u, v, excess, stretch


def _at_rows(
    problem: Problem, lines: Complex[Tensor, "channel scene line element"]
) -> Complex[Tensor, "channel scene blocks line row"]:
    """Carries lines from the elements to the rows of every block."""
    operator = problem.operator
    if operator is None:
        return lines[:, :, None]
    n_channels, n_scenes, n_lines, _ = lines.shape
    _, n_operators, n_rows, n_elements = operator.shape
    # one product per channel, all scenes and blocks at once
    wide = operator.reshape(n_channels, n_operators * n_rows, n_elements)
    heard = product_of_rows(lines.flatten(1, 2), wide.mT)
    heard = heard.reshape(n_channels, n_scenes, n_lines, n_operators, n_rows)
    return heard.transpose(2, 3).contiguous()
