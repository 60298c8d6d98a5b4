"""Where to look, and the classical pseudo-spectra: Bartlett, Capon, MUSIC, matched filter.

Spectra take steering vectors as columns of any dictionary and know nothing of geometry;
`SearchGrid` lays out the directions and ranges.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from musicnet.estimation.hermitian import check_covariance
from musicnet.scene.sources import SearchRegion
from musicnet.shapes import Covariance, Positions

# radius of the disc of directions in which cells are: 2.6 degrees off the plane of the aperture
_RIM = 0.999


@dataclass(frozen=True)
class SearchGrid:
    """Cells that cover a search region, its edges included; maps have axes (v, u, rho).

    Args:
        region: the box.
        n_v: cells along v.
        n_u: cells along u.
        n_rho: cells along inverse range.

    A coordinate that the region fixes has one cell.

    Example:
        >>> region = SearchRegion((-1.0, 1.0), (0.0, 0.0), (0.0, 0.0))
        >>> grid = SearchGrid.over(region, n_v=5, n_u=3, n_rho=4)
        >>> grid.shape, grid.cells[0, :, 0, 0].tolist()
        ((1, 3, 1), [-1.0, 0.0, 1.0])
    """

    region: SearchRegion
    n_v: int
    n_u: int
    n_rho: int

    def __post_init__(self) -> None:
        for name, n_cells, bounds in zip(("v", "u", "rho"), self.shape, self._bounds, strict=True):
            fixed = bounds[0] == bounds[1]
            if (fixed and n_cells != 1) or (not fixed and n_cells < 2):
                raise ValueError(
                    f"a grid needs one cell along a fixed coordinate and at least two along a "
                    f"searched one: got n_{name}={n_cells} over {bounds}. "
                    "SearchGrid.over sets fixed coordinates to one cell."
                )

    @classmethod
    def over(cls, region: SearchRegion, n_v: int, n_u: int, n_rho: int) -> "SearchGrid":
        """Lays cells over a region; coordinates that it fixes get one, whatever was asked.

        Args:
            region: the box.
            n_v: cells along v where v is searched.
            n_u: cells along u where u is searched.
            n_rho: cells along inverse range where that is searched.

        Returns:
            The grid.
        """
        searches_u, searches_v, searches_rho = region.active
        return cls(
            region,
            n_v if searches_v else 1,
            n_u if searches_u else 1,
            n_rho if searches_rho else 1,
        )

    @classmethod
    def dense(
        cls,
        region: SearchRegion,
        positions: Positions,
        wavelength: float,
        cells_per_beam: float = 6.0,
    ) -> "SearchGrid":
        """Lays cells as closely as the aperture can tell apart, for any array.

        Args:
            region: the box.
            positions: of the elements; metres.
            wavelength: metres.
            cells_per_beam: along u and v to the reciprocal of the aperture in wavelengths; along
                inverse range to what bends the wave front by one cycle less.

        Returns:
            The grid; at least three cells along every searched coordinate.
        """
        span = (positions.amax(0) - positions.amin(0)).tolist()
        across = [side / wavelength for side in span]
        depth = max(span) ** 2 / (8.0 * wavelength)  # cycles per inverse metre, at the ends
        cells = []
        for (low, high), beams in zip(
            region.bounds.values(), (across[0], across[1], depth), strict=True
        ):
            cells.append(max(3, 1 + math.ceil((high - low) * beams * cells_per_beam)))
        n_u, n_v, n_rho = cells
        return cls.over(region, n_v, n_u, n_rho)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Cells along v, u and rho."""
        return self.n_v, self.n_u, self.n_rho

    @property
    def n_cells(self) -> int:
        """All cells of the grid."""
        return self.n_v * self.n_u * self.n_rho

    @property
    def steps(self) -> tuple[float, float, float]:
        """Distance of neighbouring cells along v, u and rho (1/m); 0 where there is one cell."""
        step_v, step_u, step_rho = (
            (high - low) / max(n_cells - 1, 1)
            for (low, high), n_cells in zip(self._bounds, self.shape, strict=True)
        )
        return step_v, step_u, step_rho

    @property
    def cells(self) -> Float[Tensor, "v u rho 3"]:
        """(u, v, rho) at the centre of each cell; float32, made anew at each call, on the CPU."""
        v, u, rho = (
            torch.linspace(low, high, n_cells, dtype=torch.float64)
            for (low, high), n_cells in zip(self._bounds, self.shape, strict=True)
        )
        mesh_v, mesh_u, mesh_rho = torch.meshgrid(v, u, rho, indexing="ij")
        return torch.stack((mesh_u, mesh_v, mesh_rho), dim=-1).float()

    @property
    def visible_cells(self) -> Float[Tensor, "v u rho 3"]:
        """The cells, those beyond the unit disc of directions brought just inside its edge.

        A box may have corners out there, where no field has a phase. At the very edge elements off
        the plane have no derivative, and a search that starts there could not leave it.
        """
        return self.region.onto_disc(self.cells, rim=_RIM)

    def coordinates(self, parameters: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
        """Where parameters lie on the grid.

        Args:
            parameters: (u, v, rho).

        Returns:
            Fractional (v, u, rho) index, 0 at the first cell's centre; 0 along single cells.
        """
        columns = zip((1, 0, 2), self._bounds, self.steps, strict=True)
        return torch.stack(
            [
                (parameters[..., column] - low) / step if step else 0.0 * parameters[..., column]
                for column, (low, _), step in columns
            ],
            dim=-1,
        )

    def parameters_at(self, coordinates: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
        """What lies at a fractional index: the inverse of `coordinates`.

        Args:
            coordinates: fractional (v, u, rho) index.

        Returns:
            (u, v, rho); a fixed coordinate reads its only value.
        """
        v, u, rho = (
            low + step * column
            for column, (low, _), step in zip(
                coordinates.unbind(-1), self._bounds, self.steps, strict=True
            )
        )
        return torch.stack((u, v, rho), dim=-1)

    @property
    def _bounds(self) -> tuple[tuple[float, float], ...]:
        return self.region.v, self.region.u, self.region.inverse_range


def bartlett_spectrum(
    covariance: Covariance, steering: Complex[Tensor, "*dictionary grid row"]
) -> Float[Tensor, "*batch grid"]:
    r"""Power that a delay-and-sum beam collects.

    .. math:: P(g) = a_g^H R a_g / \|a_g\|^4

    Args:
        covariance: R; linear power.
        steering: a_g, one a line, any norm but zero; leading axes broadcast against the batch.

    Returns:
        Linear power >= 0; a lone unit source on the grid reads 1 there.

    Raises:
        ValueError: no covariance.

    Source: Krim & Viberg (1996), IEEE Signal Processing Magazine 13(4), conventional beamformer.

    Example:
        >>> steering = torch.tensor([[1 + 0j, 1 + 0j], [1 + 0j, -1 + 0j]])
        >>> source = steering[:1].mT
        >>> bartlett_spectrum(source @ source.mH, steering).tolist()
        [1.0, 0.0]
    """
    check_covariance(covariance)
    norm = steering.abs().square().sum(-1)
    return quadratic_form(covariance, steering).clamp_min(0.0) / norm.square()


def capon_spectrum(
    covariance: Covariance,
    steering: Complex[Tensor, "*dictionary grid row"],
    loading: float = 1e-3,
) -> Float[Tensor, "*batch grid"]:
    r"""Power that the minimum-variance (MVDR) beam collects.

    .. math:: P(g) = 1 / (a_g^H (R + \epsilon I)^{-1} a_g)

    Args:
        covariance: R; linear power.
        steering: a_g, one a line.
        loading: epsilon over the mean power of a row; keeps a rank-one R invertible.

    Returns:
        Linear power > 0.

    Raises:
        ValueError: no covariance.

    Source: Capon (1969), Proceedings of the IEEE 57(8).
    """
    check_covariance(covariance)
    inverse = torch.linalg.inv(load_diagonal(covariance, loading))
    floor = torch.finfo(inverse.real.dtype).tiny
    return quadratic_form(inverse, steering).clamp_min(floor).reciprocal()


def music_spectrum(
    noise_subspace: Complex[Tensor, "*batch row noise"],
    steering: Complex[Tensor, "*dictionary grid row"],
) -> Float[Tensor, "*batch grid"]:
    r"""How orthogonal each steering vector is to the noise.

    .. math:: P(g) = \|a_g\|^2 / \|U_n^H a_g\|^2

    Args:
        noise_subspace: U_n, orthonormal columns; see `musicnet.estimation.subspace`.
        steering: a_g, one a line.

    Returns:
        At least 1, no unit; large where a source is.

    Source: Schmidt (1986), IEEE Transactions on Antennas and Propagation 34(3).
    """
    leaked = (steering.conj() @ noise_subspace).abs().square().sum(-1)
    power = steering.abs().square().sum(-1)
    # exact covariances leave no leakage at a source: rounding is its floor
    return power / leaked.clamp_min(torch.finfo(leaked.dtype).eps ** 2)


def quadratic_form(
    matrix: Covariance, steering: Complex[Tensor, "*dictionary grid row"]
) -> Float[Tensor, "*batch grid"]:
    """a^H M a for every line of a dictionary.

    Args:
        matrix: M, Hermitian.
        steering: a, one a line.

    Returns:
        Real part; the rest is rounding.
    """
    weighted = steering.conj() @ matrix  # (..., grid, row)
    return (torch.view_as_real(weighted) * _mirrored(steering)).sum((-2, -1))


def load_diagonal(covariance: Covariance, loading: float) -> Covariance:
    """Adds a share of the mean row power to the diagonal.

    Args:
        covariance: R; linear power.
        loading: share, no unit.

    Returns:
        R + loading * tr(R) / n * I.
    """
    mean_power = covariance.diagonal(dim1=-2, dim2=-1).real.mean(-1)
    # an all-zero observation stays invertible too
    step = (loading * mean_power).clamp_min(torch.finfo(mean_power.dtype).tiny ** 0.5)
    identity = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    return covariance + step[..., None, None] * identity


def _mirrored(steering: Complex[Tensor, "*shape"]) -> Float[Tensor, "*shape 2"]:
    """(re, -im), so that a real product takes the real part of a complex one."""
    return torch.view_as_real(steering.conj().resolve_conj())
