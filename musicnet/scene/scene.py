"""The physics of a task in one frozen record: who listens, what is out there, how it is heard."""

import math
from dataclasses import dataclass

import torch

from musicnet.scene.array import ArrayGeometry
from musicnet.scene.imperfections import Imperfections
from musicnet.scene.sources import SearchRegion, SourceLaw
from musicnet.scene.surface import Surface, Symbols
from musicnet.shapes import Positions


@dataclass(frozen=True)
class Scene:
    """Everything that decides how an observation comes about; plain data.

    Args:
        array: the elements: sensors of an array, or cells of the surface.
        sources: how sources are drawn.
        wavelength_m: of the carrier.
        surface: the receiver behind the surface; None means that the elements are the receivers.
        n_snapshots: T, of a plain array. A surface observes once per code; with data symbols it
            may hold each code for T snapshots, one after the other.
        symbols: "pilot" keeps each source's amplitude over the observation, "data" draws new
            Gaussian amplitudes in every snapshot, or for every code.
        coherent_share: share of a data task's scenes in which all sources send the same symbols,
            each with a complex gain of its own.
        correlation: of the symbols of any two sources of such a scene; 1 is fully coherent.
        imperfections: what the elements do that the estimator's G does not say; None is nothing.

    Raises:
        ValueError: numbers out of range, or parts that do not fit together.
    """

    array: ArrayGeometry
    sources: SourceLaw
    wavelength_m: float = 0.3
    surface: Surface | None = None
    n_snapshots: int = 1
    symbols: Symbols = "pilot"
    coherent_share: float = 0.0
    correlation: float = 1.0
    imperfections: Imperfections | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.wavelength_m) and self.wavelength_m > 0):
            raise ValueError(
                f"wavelength_m must be finite and positive: got {self.wavelength_m}. "
                "It is 0.3 at 1 GHz."
            )
        if self.n_snapshots < 1:
            raise ValueError(f"n_snapshots must be at least 1: got {self.n_snapshots}.")
        if self.symbols not in ("pilot", "data"):
            raise ValueError(f"symbols must be 'pilot' or 'data': got {self.symbols!r}.")
        if not 0.0 <= self.coherent_share <= 1.0:
            raise ValueError(f"coherent_share must be from 0 to 1: got {self.coherent_share}.")
        if self.coherent_share > 0 and self.symbols == "pilot":
            raise ValueError(
                f"coherent_share is about data symbols: got {self.coherent_share} with "
                "symbols='pilot', where all sources are coherent anyway. Set symbols='data', or "
                "coherent_share=0."
            )
        if not 0.0 <= self.correlation <= 1.0:
            raise ValueError(f"correlation must be from 0 to 1: got {self.correlation}.")
        self._check_surface()
        self._check_visibility()

    def _check_surface(self) -> None:
        """Refuses what does not go together with a surface, or without one."""
        if self.surface is not None:
            self.surface.check_array(self.array)
            if self.n_snapshots != 1 and self.symbols == "pilot":
                raise ValueError(
                    "a surface observes pilots once per code: got "
                    f"n_snapshots={self.n_snapshots} with a surface. Set surface.n_codes instead."
                )
        elif self.imperfections is not None and self.imperfections.quantised_bits is not None:
            raise ValueError(
                "quantised phases are those of a surface: got imperfections.quantised_bits="
                f"{self.imperfections.quantised_bits} without one. Set it to null."
            )

    def _check_visibility(self) -> None:
        """Refuses scenes whose sources no estimator could tell apart."""
        blind = self._blind_angle()
        if blind is not None:
            low, high = getattr(self.sources, blind)
            raise ValueError(
                f"a linear array cannot see sources.{blind}, so that it must be one value: got "
                f"({low}, {high}). Set it to (0, 0), or use a planar array."
            )
        if self.sources.n_max >= self.n_rows:
            raise ValueError(
                "a scene needs fewer sources than rows, so that something is left for the noise: "
                f"got sources.n_max={self.sources.n_max} with {self.n_rows} rows. Use a larger "
                f"array, or n_max <= {self.n_rows - 1}."
            )

    def _blind_angle(self) -> str | None:
        """The angle that is drawn but that the elements cannot see."""
        drawn = {
            name: bounds[0] != bounds[1]
            for name in ("azimuth_deg", "elevation_deg")
            if (bounds := getattr(self.sources, name))
        }
        if not any(drawn.values()) or not self.array.is_line:
            return None
        first, *_, last = self.array.positions(1.0).double().tolist()
        along_y = abs(last[1] - first[1]) > abs(last[0] - first[0])
        blind = "azimuth_deg" if along_y else "elevation_deg"
        return blind if drawn[blind] else None

    @property
    def n_elements(self) -> int:
        """N, elements of the aperture."""
        return self.array.n_elements

    @property
    def n_rows(self) -> int:
        """R, received numbers per block."""
        if self.surface is None:
            return self.n_elements
        n_codes = self.surface.n_codes if self.symbols == "pilot" else 1
        return n_codes * self.surface.n_antennas

    @property
    def n_blocks(self) -> int:
        """Q, vectors of amplitudes in one observation."""
        if self.surface is None:
            return self.n_snapshots
        return 1 if self.symbols == "pilot" else self.surface.n_codes * self.n_snapshots

    @property
    def n_receivers(self) -> int:
        """Receivers with noise of their own: sensors, or antennas behind the surface."""
        return self.n_elements if self.surface is None else self.surface.n_antennas

    @property
    def far_field(self) -> bool:
        """Whether sources have a direction only."""
        return self.sources.range_m is None

    @property
    def region(self) -> SearchRegion:
        """The box in which sources are; it bounds every estimator."""
        return self.sources.region

    @property
    def is_alike(self) -> bool:
        """Whether the sources of a coherent scene arrive in phase and equally loud, always."""
        law = self.sources
        is_loudness_shared = law.snr_of == "total" or law.snr_db[0] == law.snr_db[1]
        return (
            self.symbols == "data"
            and self.coherent_share > 0
            and self.correlation == 1.0
            and law.phase_deg[0] == law.phase_deg[1]
            and law.path_loss_exponent == 0.0
            and is_loudness_shared
        )

    @property
    def active(self) -> tuple[bool, bool, bool]:
        """Which of (u, v, rho) are searched."""
        return self.region.active

    def positions(self, device: torch.device | str = "cpu") -> Positions:
        """Places the elements.

        Args:
            device: where the answer lives.

        Returns:
            Metres; shared, do not write on it.
        """
        return self.array.positions(self.wavelength_m, device)
