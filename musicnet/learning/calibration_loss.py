r"""How badly known sources explain what was heard: what a calibration is trained by.

With the sources of a calibration recording in their known places, amplitudes are least squares and
what is left over tells how far the steering is from the hardware's:

.. math:: \frac{\sum_b \|y_b - G_b A(p_b) \hat s_b\|^2 / \sigma_b^2}{\sum_b (R - K_b) Q}

over scenes b. It is the negative log-likelihood but for constants, and one where noise alone is
left. Where places were noted with an error, each source stands where it is most probable given
both what was heard and what was noted, and pays for the way there.
"""

from collections.abc import Iterable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from musicnet.estimation.anchored import settle_near
from musicnet.estimation.likelihood import fit_amplitudes
from musicnet.estimation.problem import compress
from musicnet.scene.snapshots import Observation
from musicnet.scene.sources import SearchRegion, Sources

_SETTLING_STEPS = 4


def calibration_loss(
    heard: Iterable[tuple[Observation, Sources]], region: SearchRegion, place_error_m: float = 0.0
) -> Float[Tensor, ""]:
    """Power that known sources leave over, in units of the noise.

    Args:
        heard: calibrated observations, batch (channel, scene), and the sources of each.
        region: where sources may be.
        place_error_m: rms error of their noted places along each axis, metres; 0 where they are
            exact.

    Returns:
        Linear power; a scene without a source counts as noise.
    """
    left, freedom = [], []
    for observation, truth in heard:
        exact = _in_double(observation)
        known = Sources(truth.parameters.double(), truth.resolved)
        charge = torch.zeros_like(exact.noise_power)
        if place_error_m > 0.0:
            known, charge = _settled(exact, known, region, place_error_m)
        cost = fit_amplitudes(exact, known).cost
        n_blocks, n_rows = exact.y.shape[-2:]
        left.append((cost / exact.noise_power + charge).sum())
        freedom.append(n_blocks * (n_rows - truth.n_sources).sum())
    return (torch.stack(left).sum() / torch.stack(freedom).sum()).float()


@torch.no_grad()
def _settled(
    observation: Observation, noted: Sources, region: SearchRegion, place_error_m: float
) -> tuple[Sources, Float[Tensor, "channel scene"]]:
    """Where sources are, given the steering of now, and what their way there costs.

    No gradient passes through the places: at the most probable ones there is none.
    """
    problem = compress(observation, region)
    middle = problem.box.mean(0)
    places = noted.parameters.where(noted.resolved[..., None], middle)
    settled, charge = settle_near(
        problem, region.clamp(places), noted.resolved, place_error_m, _SETTLING_STEPS
    )
    return Sources(settled, noted.resolved), charge


def _in_double(observation: Observation) -> Observation:
    """Sources that stand close together are all but one in single precision."""
    return replace(
        observation,
        y=observation.y.to(torch.complex128),
        operator=observation.operator.to(torch.complex128),
        noise_power=observation.noise_power.double(),
        positions=observation.positions.double(),
    )
