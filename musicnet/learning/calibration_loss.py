r"""How badly known sources explain what was heard: what a calibration is trained by.

With the sources of a calibration recording in their known places, amplitudes are least squares and
what is left over tells how far the steering is from the hardware's:

.. math:: \frac{\sum_b \|y_b - G_b A(p_b) \hat s_b\|^2 / \sigma_b^2}{\sum_b (R - K_b) Q}

over scenes b. It is the negative log-likelihood but for constants, and one where noise alone is
left.
"""

from collections.abc import Iterable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from musicnet.estimation.likelihood import fit_amplitudes
from musicnet.scene.snapshots import Observation
from musicnet.scene.sources import Sources


def calibration_loss(heard: Iterable[tuple[Observation, Sources]]) -> Float[Tensor, ""]:
    """Power that known sources leave over, in units of the noise.

    Args:
        heard: calibrated observations, batch (channel, scene), and the sources of each.

    Returns:
        Linear power; a scene without a source counts as noise.
    """
    left, freedom = [], []
    for observation, truth in heard:
        exact = _in_double(observation)
        known = Sources(truth.parameters.double(), truth.resolved)
        cost = fit_amplitudes(exact, known).cost
        n_blocks, n_rows = exact.y.shape[-2:]
        left.append((cost / exact.noise_power).sum())
        freedom.append(n_blocks * (n_rows - truth.n_sources).sum())
    return (torch.stack(left).sum() / torch.stack(freedom).sum()).float()


def _in_double(observation: Observation) -> Observation:
    """Sources that stand close together are all but one in single precision."""
    return replace(
        observation,
        y=observation.y.to(torch.complex128),
        operator=observation.operator.to(torch.complex128),
        noise_power=observation.noise_power.double(),
        positions=observation.positions.double(),
    )
