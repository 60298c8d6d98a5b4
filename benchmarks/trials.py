"""Scenes for measuring estimators: everything that is true about them is known, bounds included.

Drawn independently of `musicnet.scene.snapshots`, as a second witness; noise has unit power. SNR is
per source and sensor (behind a surface: per row, on average over channels).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from musicnet.coordinates import direction_cosines
from musicnet.estimation.bounds import deterministic_bound
from musicnet.estimation.stochastic_bounds import stochastic_bound
from musicnet.scene.array import ArrayGeometry
from musicnet.scene.snapshots import Observation
from musicnet.scene.sources import SearchRegion, Sources
from musicnet.scene.steering import steering
from musicnet.scene.surface import Surface

Symbols = Literal["incoherent", "coherent", "in phase", "pilot"]
BoundKind = Literal["deterministic", "stochastic"]
Bounds = tuple[float, float]

SCENES_PER_CHANNEL = 32


@dataclass(frozen=True)
class Trial:
    """A kind of scene.

    Args:
        name: for tables.
        array: elements.
        n_sources: K.
        snr_db: lowest and highest; drawn uniformly.
        symbols: "pilot" holds amplitudes; "incoherent" draws new ones for each source in every
            snapshot or code; "coherent" draws one waveform and a phase for each source; "in
            phase" leaves the phases equal.
        surface: what the receivers are behind; None for sensors.
        n_snapshots: T of sensors.
        wavelength: metres.
        azimuth_deg: where sources are.
        elevation_deg: where sources are.
        range_m: where sources are; None is the far field.
        separation_deg: least distance in azimuth.
        searched: box that every estimator is given; None is where sources are.
        equal_powers: one SNR for all sources of a scene, or one for each.
        bound: what errors are held against: with the amplitudes as they are, or with Gaussian ones
            of unknown covariance ("incoherent" only).
    """

    name: str
    array: ArrayGeometry
    n_sources: int
    snr_db: Bounds
    symbols: Symbols
    surface: Surface | None = None
    n_snapshots: int = 1
    wavelength: float = 0.3
    azimuth_deg: Bounds = (-60.0, 60.0)
    elevation_deg: Bounds = (0.0, 0.0)
    range_m: Bounds | None = None
    separation_deg: float = 0.0
    searched: SearchRegion | None = None
    equal_powers: bool = True
    bound: BoundKind = "deterministic"

    @property
    def region(self) -> SearchRegion:
        """The box that every estimator is given."""
        if self.searched is not None:
            return self.searched
        return SearchRegion.from_angles(self.azimuth_deg, self.elevation_deg, self.range_m)


@dataclass(frozen=True)
class Drawn:
    """Scenes of one trial, batch (channel, scene).

    Args:
        observation: what was heard.
        truth: sources, all slots resolved.
        amplitudes: s of each block.
        bound: Cramér-Rao bound, covariance of (u, v, rho) of each source.
    """

    observation: Observation
    truth: Sources
    amplitudes: Tensor
    bound: Tensor

    @property
    def n_scenes(self) -> int:
        """All scenes."""
        return self.truth.resolved.shape[:-1].numel()

    def batches(self, most: int) -> Iterator["Drawn"]:
        """Whole channels, or scenes of the only one, ``most`` scenes at a time."""
        n_channels, n_scenes = self.truth.resolved.shape[:2]
        axis, size = (0, max(1, most // n_scenes)) if n_channels > 1 else (1, most)
        for start in range(0, self.truth.resolved.shape[axis], size):
            yield self._cut(axis, slice(start, start + size))

    def _cut(self, axis: int, some: slice) -> "Drawn":
        index = (slice(None),) * axis + (some,)
        heard = self.observation
        return Drawn(
            Observation(
                y=heard.y[index],
                operator=heard.operator[some] if axis == 0 else heard.operator,
                noise_power=heard.noise_power[index],
                positions=heard.positions,
                wavelength=heard.wavelength,
            ),
            Sources(self.truth.parameters[index], self.truth.resolved[index]),
            self.amplitudes[index],
            self.bound[index],
        )


def draw(trial: Trial, n_scenes: int, seed: int = 0) -> Drawn:
    """Draws scenes, in double precision; estimators are given single.

    Args:
        trial: what to draw.
        n_scenes: how many; rounded up to whole channels behind a surface.
        seed: decides everything.

    Returns:
        One channel for sensors, one for every 32 scenes behind a surface.
    """
    generator = torch.Generator().manual_seed(seed)
    per_channel = SCENES_PER_CHANNEL if trial.surface is not None else n_scenes
    n_channels = math.ceil(n_scenes / per_channel)
    positions = trial.array.positions(trial.wavelength)
    operator = _draw_operator(trial, n_channels, generator)  # (channel, blocks, row, element)
    batch = (n_channels, per_channel)
    parameters = _draw_parameters(trial, batch, generator)
    n_blocks = operator.shape[1] if trial.surface is not None else trial.n_snapshots
    amplitudes, loudness = _draw_amplitudes(trial, batch, n_blocks, generator)
    field = amplitudes @ steering(positions.double(), parameters, trial.wavelength)
    clean = (operator[:, None] @ field[..., None]).squeeze(-1)
    heard = clean + _complex_normal(clean.shape, generator)
    noise_power = torch.ones(batch)
    known = (operator[:, None], positions, trial.wavelength, parameters)
    active = trial.region.active
    if trial.bound == "stochastic":
        power = torch.diag_embed(loudness.square().expand(parameters.shape[:-1])) + 0j
        bound = stochastic_bound(*known, power, noise_power, n_blocks, active)
    else:
        bound = deterministic_bound(*known, amplitudes, noise_power, active)
    resolved = torch.ones(parameters.shape[:-1], dtype=torch.bool)
    observation = Observation(
        heard.to(torch.complex64),
        operator.to(torch.complex64),
        noise_power,
        positions,
        trial.wavelength,
    )
    return Drawn(observation, Sources(parameters.float(), resolved), amplitudes, bound)


def _draw_operator(trial: Trial, n_channels: int, generator: torch.Generator) -> Tensor:
    if trial.surface is None:
        return torch.eye(trial.array.n_elements, dtype=torch.complex128)[None, None]
    surface, n_elements = trial.surface, trial.array.n_elements
    shape = (n_channels, surface.n_antennas, n_elements)
    channel = _complex_normal(shape, generator) / math.sqrt(n_elements)
    states = torch.randint(
        2**surface.phase_bits, (n_channels, surface.n_codes, n_elements), generator=generator
    )
    codes = torch.exp(2j * math.pi * states.double() / 2**surface.phase_bits)
    operator = codes[:, :, None, :] * channel[:, None]  # (channel, code, antenna, element)
    return operator.flatten(1, 2)[:, None] if trial.symbols == "pilot" else operator


def _draw_parameters(trial: Trial, batch: tuple[int, int], generator: torch.Generator) -> Tensor:
    shape = (*batch, trial.n_sources)

    def uniform(bounds: Bounds) -> Tensor:
        low, high = bounds
        return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)

    # with the least distances taken out, azimuths are uniform again
    low, high = trial.azimuth_deg
    gap = trial.separation_deg
    azimuth = uniform((low, high - gap * (trial.n_sources - 1)))
    if gap:
        azimuth = azimuth.sort(-1).values + gap * torch.arange(trial.n_sources)
    elevation = uniform(trial.elevation_deg)
    u, v = direction_cosines(azimuth.deg2rad(), elevation.deg2rad())
    rho = torch.zeros_like(u) if trial.range_m is None else 1.0 / uniform(trial.range_m)
    # what estimators are compared with is single precision, too
    return torch.stack((u, v, rho), dim=-1).float().double()


def _draw_amplitudes(
    trial: Trial, batch: tuple[int, int], n_blocks: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Amplitude of each block, and the root mean square of each source."""
    n_sources = trial.n_sources
    n_lots = 1 if trial.equal_powers else n_sources
    low, high = trial.snr_db
    lots = torch.rand((*batch, 1, n_lots), generator=generator, dtype=torch.float64)
    loudness = 10.0 ** ((low + (high - low) * lots) / 20.0)
    turns = torch.rand((*batch, 1, n_sources), generator=generator, dtype=torch.float64)
    phases = torch.exp(2j * math.pi * turns)
    if trial.symbols == "pilot":
        return loudness * phases, loudness[..., 0, :]
    if trial.symbols == "incoherent":
        symbols = _complex_normal((*batch, n_blocks, n_sources), generator)
        return loudness * symbols, loudness[..., 0, :]
    waveform = _complex_normal((*batch, n_blocks, 1), generator)
    shared = phases if trial.symbols == "coherent" else torch.ones_like(phases)
    return loudness * shared * waveform, loudness[..., 0, :]


def _complex_normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Independent CN(0, 1)."""
    return torch.randn(shape, generator=generator, dtype=torch.complex128)
