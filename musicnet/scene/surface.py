"""A base station that hears the sources by way of a reconfigurable surface (RIS)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from musicnet.coordinates import direction_cosines
from musicnet.scene.array import ArrayGeometry
from musicnet.scene.draws import draw_complex_normal, draw_states, draw_uniform
from musicnet.scene.steering import steering
from musicnet.shapes import Operator, Positions

Symbols = Literal["pilot", "data"]
Codebook = Literal["random", "dft", "custom"]


@dataclass(frozen=True)
class Surface:
    """The receiver behind the surface, the surface's codes, and the channel between the two.

    Args:
        n_antennas: M, receivers of the base station: a half-wavelength line.
        n_codes: L, settings of the surface that one observation walks through.
        phase_bits: each cell takes one of 2^bits phases; None takes any phase.
        rician_factor: kappa, linear power of the line of sight over that of the scattered paths;
            0 is Rayleigh fading.
        codebook: "random" draws the phases anew for every channel. "dft" steers k x k beams over
            the whole square of spatial frequencies, k^2 = n_codes (on a line k = n_codes). "custom"
            takes ``code_phases_deg``.
        code_phases_deg: of each cell, one list per code; rounded to the states of the cells.

    Raises:
        ValueError: a count below one, a factor that is negative or not finite, or custom phases
            that do not fit.
    """

    n_antennas: int = 8
    n_codes: int = 16
    phase_bits: int | None = 3
    rician_factor: float = 0.0
    codebook: Codebook = "random"
    code_phases_deg: tuple[tuple[float, ...], ...] | None = None

    def __post_init__(self) -> None:
        if min(self.n_antennas, self.n_codes) < 1:
            raise ValueError(
                "a surface needs at least one antenna and one code: got "
                f"n_antennas={self.n_antennas}, n_codes={self.n_codes}."
            )
        if self.phase_bits is not None and not 1 <= self.phase_bits <= 16:
            raise ValueError(f"phase_bits must be from 1 to 16: got {self.phase_bits}.")
        if not (math.isfinite(self.rician_factor) and self.rician_factor >= 0):
            raise ValueError(
                "rician_factor must be finite and >= 0 (linear, not dB): got "
                f"{self.rician_factor}. 0 is Rayleigh fading."
            )
        if self.codebook not in get_args(Codebook):
            known = ", ".join(get_args(Codebook))
            raise ValueError(f"surface.codebook must be one of {known}: got {self.codebook!r}.")
        self._check_custom_codes()

    def _check_custom_codes(self) -> None:
        """Refuses custom phases that are absent, unasked for, ragged or not finite."""
        phases = self.code_phases_deg
        if (self.codebook == "custom") != (phases is not None):
            raise ValueError(
                "code_phases_deg hold the codes of codebook='custom', and of that alone: got "
                f"{'none' if phases is None else 'some'} with codebook={self.codebook!r}."
            )
        if phases is None:
            return
        lengths = sorted({len(code) for code in phases})
        if len(phases) != self.n_codes or len(lengths) != 1:
            raise ValueError(
                f"code_phases_deg must hold n_codes={self.n_codes} lists of one length: got "
                f"{len(phases)} lists of lengths {lengths}."
            )
        if not all(math.isfinite(phase) for code in phases for phase in code):
            raise ValueError("code_phases_deg must be finite: got NaN or infinity among them.")

    def check_array(self, array: ArrayGeometry) -> None:
        """Refuses cells that the codebook does not fit.

        Args:
            array: the cells.

        Raises:
            ValueError: beams that make no square, cells that make no grid, or codes of another
                length.
        """
        if self.code_phases_deg is not None and len(self.code_phases_deg[0]) != array.n_elements:
            raise ValueError(
                "each custom code needs one phase per cell: got "
                f"{len(self.code_phases_deg[0])} phases for {array.n_elements} cells."
            )
        if self.codebook != "dft":
            return
        if array.kind != "rectangle":
            raise ValueError(
                f"a DFT codebook needs cells on a rectangle: got array.kind={array.kind!r}. Set "
                "codebook='random'."
            )
        if min(array.n_horizontal, array.n_vertical) > 1 and math.isqrt(self.n_codes) ** 2 != (
            self.n_codes
        ):
            raise ValueError(
                "a DFT codebook of a planar surface needs k x k beams: got n_codes="
                f"{self.n_codes}. Set n_codes={math.isqrt(self.n_codes) ** 2}."
            )

    def draw_channels(
        self, positions: Positions, wavelength: float, generators: Sequence[torch.Generator]
    ) -> Complex[Tensor, "channel antenna element"]:
        r"""Draws channels from the surface to the base station.

        .. math:: H = N^{-1/2} (\sqrt{\kappa/(\kappa+1)} a_{BS} a_{RIS}^H + \sqrt{1/(\kappa+1)} W)

        with unit-modulus steering vectors towards random directions and W of independent CN(0, 1).

        Args:
            positions: cells of the surface; metres.
            wavelength: metres.
            generators: one per channel; they decide everything.

        Returns:
            H with E|H_mn|^2 = 1/N: independent unit fields on the cells arrive with unit power.
        """
        n_elements = positions.shape[0]
        scattered_power = 1.0 / (n_elements * (self.rician_factor + 1.0))
        shape = (self.n_antennas, n_elements)
        scattered = draw_complex_normal(shape, generators, scattered_power)
        if self.rician_factor == 0:
            return scattered
        at_station, azimuth, elevation = (
            draw_uniform((3, 1), generators).sub_(0.5).mul_(math.pi).unbind(1)
        )
        antennas = torch.arange(self.n_antennas, device=positions.device)
        arriving = math.pi * antennas * at_station.sin()  # (channel, antenna)
        u, v = direction_cosines(azimuth, elevation)
        directions = torch.stack((u, v, torch.zeros_like(u)), dim=-1)  # (channel, 1, 3)
        leaving = steering(positions, directions, wavelength).conj()  # (channel, 1, element)
        sight = torch.exp(1j * arriving)[..., None] * leaving
        return scattered.add_(sight, alpha=math.sqrt(self.rician_factor * scattered_power))

    def codes(
        self, array: ArrayGeometry, generators: Sequence[torch.Generator]
    ) -> Complex[Tensor, "channel code element"]:
        """The settings of the surface: fresh ones for every channel, or those of its codebook.

        Args:
            array: the cells.
            generators: one per channel; they decide random codes, and where the answer lives.

        Returns:
            Unit modulus; phases are states of the cells.
        """
        if self.codebook == "random":
            return self.draw_codes(array.n_elements, generators)
        fixed = _fixed_codes(self, array, generators[0].device)
        return fixed.expand(len(generators), -1, -1)

    def draw_codes(
        self, n_elements: int, generators: Sequence[torch.Generator]
    ) -> Complex[Tensor, "channel code element"]:
        """Draws random settings of the surface.

        Args:
            n_elements: N, cells.
            generators: one per channel; they decide everything.

        Returns:
            Unit modulus, phases a multiple of 2 pi / 2^bits, or any.
        """
        shape = (self.n_codes, n_elements)
        if self.phase_bits is None:
            turns = draw_uniform(shape, generators)
            return torch.polar(torch.ones_like(turns), turns.mul_(2.0 * math.pi))
        states = draw_states(2**self.phase_bits, shape, generators)
        return torch.take(_phasors(self.phase_bits, states.device), states)

    def operator(
        self,
        channel: Complex[Tensor, "*channel antenna element"],
        codes: Complex[Tensor, "*channel code element"],
        symbols: Symbols = "pilot",
    ) -> Operator:
        """How the field on the cells becomes rows: H diag(c_l) for each code.

        Args:
            channel: H.
            codes: c_l, one a row.
            symbols: pilots stack all codes in one block of L M rows, code by code; data symbols
                change with the code and make L blocks of M rows.

        Returns:
            G.
        """
        operator = codes[..., :, None, :] * channel[..., None, :, :]
        return operator if symbols == "data" else operator.flatten(-3, -2)[..., None, :, :]


@lru_cache(maxsize=32)
def _phasors(phase_bits: int, device: torch.device) -> Complex[Tensor, " state"]:
    """The states that a cell can take."""
    # the first caller may be a validation loop, and its inference tensors would outlive it
    with torch.inference_mode(mode=False):
        turns = torch.arange(2**phase_bits, dtype=torch.float64) / 2**phase_bits
        phasors = torch.polar(torch.ones_like(turns), 2.0 * math.pi * turns)
        return phasors.to(device=device, dtype=torch.complex64)


def quantise_phases(
    codes: Complex[Tensor, "*batch element"], phase_bits: int | None
) -> Complex[Tensor, "*batch element"]:
    """Moves phasors to the nearest state that a cell can take.

    Args:
        codes: unit modulus.
        phase_bits: the states are 2^bits; None leaves the codes alone.

    Returns:
        Unit modulus.

    Example:
        >>> quantise_phases(torch.tensor([0.9 + 0.2j]) / 0.922, phase_bits=1).real.item()
        1.0
    """
    if phase_bits is None:
        return codes
    turns = codes.angle() / (2.0 * math.pi)
    states = (turns * 2**phase_bits).round().long() % 2**phase_bits
    return torch.take(_phasors(phase_bits, codes.device), states)


@lru_cache(maxsize=8)
def _fixed_codes(
    surface: Surface, array: ArrayGeometry, device: torch.device
) -> Complex[Tensor, "code element"]:
    """Custom or DFT codes, kept."""
    with torch.inference_mode(mode=False):
        if surface.code_phases_deg is not None:
            phases = torch.tensor(surface.code_phases_deg, dtype=torch.float64).deg2rad()
        else:
            phases = _beam_phases(surface, array)
        codes = torch.polar(torch.ones_like(phases), phases).to(device, torch.complex64)
        return quantise_phases(codes, surface.phase_bits)


def _beam_phases(surface: Surface, array: ArrayGeometry) -> Float[Tensor, "code element"]:
    """Phases of beams at frequencies 2 pi ((i + .5)/k - .5) per cell, along both axes."""
    is_planar = min(array.n_horizontal, array.n_vertical) > 1
    k = math.isqrt(surface.n_codes) if is_planar else surface.n_codes
    frequencies = 2.0 * math.pi * ((torch.arange(k, dtype=torch.float64) + 0.5) / k - 0.5)
    along_x, along_y = (
        frequencies[:, None] * (torch.arange(n, dtype=torch.float64) - (n - 1) / 2)
        if n > 1
        else torch.zeros((1, 1), dtype=torch.float64)
        for n in (array.n_horizontal, array.n_vertical)
    )
    beams = along_y[:, None, :, None] + along_x[None, :, None, :]  # (y beam, x beam, y, x)
    return beams.reshape(surface.n_codes, array.n_elements)
