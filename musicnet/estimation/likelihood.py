"""Sources and their amplitudes against what was heard: least squares and what it leaves over.

With Gaussian noise the best amplitudes of given sources are least squares, so that positions alone
are left to be searched: the cost is the residual's power (variable projection).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from musicnet.scene.snapshots import Observation
from musicnet.scene.sources import Sources
from musicnet.scene.steering import steering
from musicnet.shapes import Received


@dataclass(frozen=True)
class AmplitudeFit:
    """The best amplitudes of given sources.

    Args:
        amplitudes: s of each block; 0 for slots that are not resolved.
        residual: what the sources do not explain, y - G A s.
    """

    amplitudes: Complex[Tensor, "*batch block source"]
    residual: Received

    @property
    def cost(self) -> Float[Tensor, "*batch"]:
        """Residual power summed over blocks and rows; noise alone leaves (R - K) Q sigma^2."""
        return self.residual.abs().square().sum((-2, -1))


def fit_amplitudes(observation: Observation, sources: Sources) -> AmplitudeFit:
    """Solves for the amplitudes of given sources.

    Args:
        observation: batch (*channel, scene) or (scene,), operators (*channel).
        sources: of the same batch.

    Returns:
        Least-squares amplitudes and the residual.
    """
    present = sources.resolved[..., None]
    filled = sources.parameters.where(present, torch.zeros_like(sources.parameters))
    field = steering(observation.positions, filled, observation.wavelength)
    dtype = torch.promote_types(field.dtype, observation.y.dtype)
    field = field.to(dtype) * present  # (..., scene, source, element)
    operator = observation.operator.to(dtype)[..., None, :, :, :]  # beside the scenes
    signatures = operator @ field.mT[..., None, :, :]  # (..., scene, blocks, row, source)
    gram = signatures.mH @ signatures
    # slots that are not resolved have no signature, and sources in one place have the same: a one
    # keeps the system solvable, and a ridge far below rounding of y
    power = gram.diagonal(dim1=-2, dim2=-1).real.mean(-1, keepdim=True)
    absent = (~sources.resolved).to(power.dtype)[..., None, :]
    loading = absent + 10.0 * torch.finfo(power.dtype).eps * power
    gram = gram + torch.diag_embed(loading)
    y = observation.y.to(dtype)[..., None]
    amplitudes = torch.linalg.solve(gram, signatures.mH @ y)  # (..., block, source, 1)
    residual = (y - signatures @ amplitudes).squeeze(-1)
    return AmplitudeFit(amplitudes.squeeze(-1), residual)
