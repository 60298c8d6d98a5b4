r"""What one piece of hardware does that its drawing does not say, learned as weights.

A calibration turns an observation as it was described into one as it came about: G becomes
:math:`G \Gamma`, with a gain and a phase for each element, and the elements move to where they
really stand. Whoever reads operator and positions off the observation, as every estimator and
every error bar does, then works with the true steering.
"""

import math
from dataclasses import replace

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from musicnet.scene.snapshots import Observation


class Calibration(nn.Module):
    """Phase, gain and place of every element; nominal until trained.

    A phase or a gain that all elements share is part of each source's unknown amplitude: it is
    taken out, so that it cannot drift. Where the array as a whole stands and which way it looks
    follow from the known places of the sources that it is trained with.

    Args:
        n_elements: of the aperture.

    Example:
        >>> calibration = Calibration(2)
        >>> _ = calibration.phase.data.copy_(torch.tensor([0.0, math.pi]))
        >>> calibration.response.imag.tolist()
        [-1.0, 1.0]
    """

    def __init__(self, n_elements: int) -> None:
        super().__init__()
        self.phase = nn.Parameter(torch.zeros(n_elements))  # radians
        self.log_gain = nn.Parameter(torch.zeros(n_elements))
        # in radians of the carrier, so that one learning rate suits all
        self.displacement = nn.Parameter(torch.zeros(n_elements, 3))

    @property
    def response(self) -> Complex[Tensor, " element"]:
        """Gain and phase of each element, over the mean of all."""
        phase, log_gain = self.phase.float(), self.log_gain.float()
        return torch.polar((log_gain - log_gain.mean()).exp(), phase - phase.mean())

    def displacement_m(self, wavelength: float) -> Float[Tensor, "element 3"]:
        """From where each element should stand to where it does; metres."""
        return self.displacement * (wavelength / (2.0 * math.pi))

    def forward(self, observation: Observation) -> Observation:
        """Describes an observation as it came about.

        Args:
            observation: with the operator and the positions of the drawing.

        Returns:
            The same numbers heard, with the operator and the positions of the hardware.
        """
        operator, positions = observation.operator, observation.positions
        moved = self.displacement_m(observation.wavelength).to(positions.dtype)
        return replace(
            observation,
            operator=operator * self.response.to(operator.dtype),
            positions=positions + moved,
        )
