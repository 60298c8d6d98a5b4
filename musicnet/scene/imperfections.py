r"""What a real aperture does that its drawing does not say.

The field that arrives, A s, passes through the elements' errors before the operator sees it:

.. math:: y = G \, C \, \Gamma \, A(p_n + \delta_n) \, s + L n

with displaced elements, \Gamma a gain and phase per element (of a sensor, or of a cell of the
surface: there the same for all codes), C mutual coupling, and L L^H the colour of the noise at the
receivers. An estimator that is not told works with G and A(p_n), and with white noise.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from musicnet.scene.draws import draw_complex_normal, draw_normal
from musicnet.shapes import Positions

Redrawn = Literal["never", "block", "scene"]


@dataclass(frozen=True)
class ElementErrors:
    """One draw of imperfections; leading axes are (channel or 1, scene or 1).

    Args:
        displacement: of each element; metres.
        response: gain and phase of each element; the diagonal of Gamma.
        coupling: C, or None.
        colour: L, lower triangular with unit mean power, or None for white noise.
    """

    displacement: Float[Tensor, "channels scenes element 3"]
    response: Complex[Tensor, "channels scenes element"]
    coupling: Complex[Tensor, "channels scenes element element"] | None
    colour: Complex[Tensor, "channels scenes receiver receiver"] | None

    def mix(
        self, field: Complex[Tensor, "channel scene fields element"]
    ) -> Complex[Tensor, "channel scene fields element"]:
        """C Gamma applied to fields at the elements."""
        mixed = field * self.response[..., None, :]
        return mixed if self.coupling is None else mixed @ self.coupling.mT


@dataclass(frozen=True)
class Imperfections:
    """How far elements and receivers are from ideal: standard deviations, drawn independently.

    Args:
        position_wavelengths: Gaussian displacement of each element per axis, in wavelengths.
        gain_db: Gaussian gain error of each element.
        phase_deg: Gaussian phase error of each element; of a surface, its unknown phase offsets.
        coupling_db: size of the coupling between nearest neighbours, below the direct field; it
            falls as one over distance, with the phase of the path and one random phase in all.
            None is no coupling.
        quantised_bits: a surface really takes 2^bits phases only, while G has the codes as they
            were asked for. None is exact.
        noise_correlation: of the noise at neighbouring receivers, falling as its powers.
        noise_spread_db: Gaussian spread of the receivers' noise powers, the mean power kept.
        redrawn: "never" is one draw for training and test, a miscalibrated device; "block" and
            "scene" draw anew.
        is_known: the estimator gets the true positions, responses and coupling as part of G, and
            whitened noise. For errors that are never redrawn.
        seed: of what is never redrawn.

    Raises:
        ValueError: numbers out of range, or known errors that are redrawn.
    """

    position_wavelengths: float = 0.0
    gain_db: float = 0.0
    phase_deg: float = 0.0
    coupling_db: float | None = None
    quantised_bits: int | None = None
    noise_correlation: float = 0.0
    noise_spread_db: float = 0.0
    redrawn: Redrawn = "never"
    is_known: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("position_wavelengths", "gain_db", "phase_deg", "noise_spread_db"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(
                    f"imperfections.{name} is a standard deviation, finite and >= 0: got {value}."
                )
        if self.coupling_db is not None and not -200.0 <= self.coupling_db < 0.0:
            raise ValueError(
                "imperfections.coupling_db must be negative, at least -200, or null: got "
                f"{self.coupling_db}. -20 is a tenth of the field."
            )
        if self.quantised_bits is not None and not 1 <= self.quantised_bits <= 16:
            raise ValueError(
                f"imperfections.quantised_bits must be from 1 to 16: got {self.quantised_bits}."
            )
        if not 0.0 <= self.noise_correlation < 1.0:
            raise ValueError(
                "imperfections.noise_correlation must be from 0 to less than 1: got "
                f"{self.noise_correlation}."
            )
        if self.redrawn not in get_args(Redrawn):
            known = ", ".join(get_args(Redrawn))
            raise ValueError(f"imperfections.redrawn must be one of {known}: got {self.redrawn!r}.")
        if self.is_known and self.redrawn != "never":
            raise ValueError(
                "errors are known if they were measured once: got is_known=True with "
                f"redrawn={self.redrawn!r}. Set redrawn='never'."
            )

    def draw(
        self,
        positions: Positions,
        wavelength: float,
        n_receivers: int,
        n_scenes: int,
        generators: Sequence[torch.Generator],
    ) -> ElementErrors:
        """Draws the errors of several blocks, or returns those that last.

        Args:
            positions: nominal ones; metres.
            wavelength: metres.
            n_receivers: rows whose noise hangs together: sensors, or antennas of the base station.
            n_scenes: S, scenes of a block.
            generators: one per block; they decide what is redrawn, and where the answer lives.

        Returns:
            Errors with axes (channel, scene), of length 1 where all share them.
        """
        if self.redrawn == "never":
            return _lasting(self, _hashable(positions), wavelength, n_receivers, positions.device)
        return self._draw(
            positions,
            wavelength,
            n_receivers,
            n_scenes if self.redrawn == "scene" else 1,
            generators,
        )

    def _draw(
        self,
        positions: Positions,
        wavelength: float,
        n_receivers: int,
        n_scenes: int,
        generators: Sequence[torch.Generator],
    ) -> ElementErrors:
        n_elements = positions.shape[0]
        normal = draw_normal((n_scenes, n_elements, 5), generators)
        spread = draw_normal((n_scenes, n_receivers), generators)
        common = draw_complex_normal((n_scenes, 1, 1), generators)
        nepers = (math.log(10.0) / 20.0 * self.gain_db) * normal[..., 3]
        phase = math.radians(self.phase_deg) * normal[..., 4]
        displacement = self.position_wavelengths * wavelength * normal[..., :3]
        response = torch.polar(nepers.exp(), phase)
        return ElementErrors(
            displacement,
            response,
            self._coupling(positions, wavelength, common.sgn()),
            self._colour(spread),
        )

    def _coupling(self, positions: Positions, wavelength: float, phasor: Tensor) -> Tensor | None:
        """I plus what neighbours radiate into each other; symmetric, since space is reciprocal."""
        if self.coupling_db is None:
            return None
        distance = torch.linalg.vector_norm(positions[:, None] - positions, dim=-1)
        identity = torch.eye(len(positions), device=positions.device)
        distance = distance + identity * distance.max()  # itself is no neighbour
        nearest = distance.min()
        size = 10.0 ** (self.coupling_db / 20.0) * nearest / distance * (1.0 - identity)
        path = 2.0 * math.pi / wavelength * (nearest - distance)
        return identity + phasor * torch.polar(size, path)

    def _colour(self, spread: Tensor) -> Tensor | None:
        """A triangular root of the noise covariance, which keeps the mean power at one."""
        if self.noise_correlation == 0.0 and self.noise_spread_db == 0.0:
            return None
        power = (math.log(10.0) / 10.0 * self.noise_spread_db * spread).exp()
        power = power / power.mean(-1, keepdim=True)
        index = torch.arange(spread.shape[-1], device=spread.device)
        together = self.noise_correlation ** (index[:, None] - index).abs()
        deviation = power.sqrt()
        covariance = deviation[..., :, None] * together * deviation[..., None, :]
        root: Tensor = torch.linalg.cholesky(covariance).to(torch.complex64)
        return root


def by_receivers(
    matrix: Complex[Tensor, "*channel receiver receiver"],
    rows: Complex[Tensor, "*batch row column"],
) -> Complex[Tensor, "*batch row column"]:
    """Applies a matrix to the receivers of every code, of which rows are a stack.

    Args:
        matrix: receiver by receiver.
        rows: as many as receivers, or a multiple.

    Returns:
        The rows, mixed within each code.
    """
    n_receivers = matrix.shape[-1]
    n_columns = rows.shape[-1]
    stacked = rows.reshape(*rows.shape[:-2], -1, n_receivers, n_columns)
    mixed: Tensor = matrix[..., None, :, :] @ stacked
    return mixed.reshape(rows.shape)


def _hashable(positions: Positions) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, positions.tolist()))


@lru_cache(maxsize=8)
def _lasting(
    imperfections: Imperfections,
    places: tuple[tuple[float, ...], ...],
    wavelength: float,
    n_receivers: int,
    device: torch.device,
) -> ElementErrors:
    """Errors that are never redrawn: from the CPU on every device, so that all see the same."""
    with torch.inference_mode(mode=False):
        generator = torch.Generator().manual_seed(imperfections.seed)
        drawn = imperfections._draw(torch.tensor(places), wavelength, n_receivers, 1, [generator])
        return ElementErrors(
            drawn.displacement.to(device),
            drawn.response.to(device),
            None if drawn.coupling is None else drawn.coupling.to(device),
            None if drawn.colour is None else drawn.colour.to(device),
        )
