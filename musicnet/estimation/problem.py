"""Maximum likelihood as one batched least-squares problem, made as small as it gets.

Every observation is brought into one layout, (channel, scene, blocks, snapshot, row): the scenes of
a channel share an operator, so that its products are large; the snapshots of a block share
signatures. What no field can explain is taken out first, and many snapshots are replaced by as many
as there are rows. Costs, gradients and Gauss-Newton matrices stay what they were.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from musicnet.scene.snapshots import Observation
from musicnet.scene.sources import SearchRegion
from musicnet.shapes import Positions


@dataclass(frozen=True)
class Problem:
    """What has to be explained, in the layout of `compress`.

    Args:
        y: what was heard.
        operator: G; None where the elements are the rows.
        positions: elements; metres, in the precision of the search.
        wavelength: metres.
        region: the box that sources are searched in.
        noise_power: E|n|^2 of a row.
        unexplained: power outside the range of G, which no sources can explain.
        n_snapshots: T, snapshots per block before compression.
        n_unexplained: complex numbers per scene that went into ``unexplained``.
        batch_shape: leading axes of the observation.
        log_powers: amplitudes are Gaussian symbols, independent and of one power per source: least
            and most of the logarithm of that power over the noise's; None leaves them free.
    """

    y: Complex[Tensor, "channel scene blocks snapshot row"]
    operator: Complex[Tensor, "channel blocks row element"] | None
    positions: Positions
    wavelength: float
    region: SearchRegion
    noise_power: Float[Tensor, "channel scene"]
    unexplained: Float[Tensor, "channel scene"]
    n_snapshots: int
    n_unexplained: int
    batch_shape: tuple[int, ...]
    log_powers: tuple[float, float] | None = None

    @property
    def n_explicable(self) -> int:
        """Complex numbers per scene that sources may explain; noise alone is as many sigma^2."""
        return self.y.shape[2] * self.n_snapshots * self.y.shape[4]

    @property
    def wavenumber(self) -> float:
        """2 pi over the wavelength; radians per metre."""
        return 2.0 * math.pi / self.wavelength

    @property
    def active(self) -> tuple[int, ...]:
        """Which columns of the parameters are searched."""
        return tuple(i for i, is_active in enumerate(self.region.active) if is_active)

    @property
    def box(self) -> Float[Tensor, "2 3"]:
        """Lowest and highest (u, v, rho)."""
        bounds = torch.tensor(list(self.region.bounds.values()), dtype=torch.float64)
        return bounds.mT.to(self.positions)

    @property
    def resolution(self) -> Float[Tensor, " 3"]:
        """Change of (u, v, rho) that turns the aperture's far ends by one radian against another.

        Infinite where the aperture cannot see a coordinate at all.
        """
        x, y, z = self.positions.unbind(-1)
        curvature = 0.5 * self.positions.square().sum(-1)
        # elements off the plane turn with u and v as well
        depth = z.amax() - z.amin()
        spans = [c.amax() - c.amin() for c in (x, y, curvature)]
        spread = torch.stack((spans[0] + depth, spans[1] + depth, spans[2]))
        return 1.0 / (self.wavenumber * spread)

    @cached_property
    def dimensions(
        self,
    ) -> tuple[
        Float[Tensor, "channel scene dimension"], Complex[Tensor, "channel scene dimension row"]
    ]:
        """Singular values of the first block's snapshots, falling, and their directions in rows.

        In double: strong sources must not hide what is weak. Decomposed once, however many ranks
        are looked at.
        """
        # one scene that is not finite would stop the decomposition of all
        heard = self.y[:, :, 0].to(torch.complex128).nan_to_num()
        _, values, directions = torch.linalg.svd(heard, full_matrices=False)
        return values, directions

    def unflatten(self, values: Tensor) -> Tensor:
        """Brings (channel, scene, ...) back to the leading axes of the observation."""
        return values.reshape(*self.batch_shape, *values.shape[2:])

    def flatten(self, values: Tensor) -> Tensor:
        """Brings the leading axes of the observation to (channel, scene)."""
        return values.reshape(*self.y.shape[:2], *values.shape[len(self.batch_shape) :])

    def take(self, chosen: Int[Tensor, "channel some"]) -> "Problem":
        """The same problem for some scenes of each channel.

        Args:
            chosen: index of each; may repeat.

        Returns:
            A problem whose batch is (channel, some).
        """
        return replace(
            self,
            y=take_scenes(self.y, chosen),
            noise_power=self.noise_power.gather(1, chosen),
            unexplained=self.unexplained.gather(1, chosen),
            batch_shape=tuple(chosen.shape),
        )

    def single_out(self, wanted: Bool[Tensor, "channel scene"]) -> "Problem":
        """The wanted scenes alone, each as a channel of its own.

        Where few scenes of each channel are wanted, nothing is computed for the others.

        Args:
            wanted: which scenes.

        Returns:
            A problem whose batch is (wanted scene, 1), in the order of ``values[wanted]``.
        """
        channels = wanted.nonzero()[:, 0]
        y = self.y[wanted][:, None]
        return replace(
            self,
            y=y,
            operator=None if self.operator is None else self.operator[channels],
            noise_power=self.noise_power[wanted][:, None],
            unexplained=self.unexplained[wanted][:, None],
            batch_shape=tuple(y.shape[:2]),
        )


def compress(observation: Observation, region: SearchRegion) -> Problem:
    r"""Makes an observation a small least-squares problem with the same answer.

    Rows beyond the number of elements go by an orthonormal basis of G's range, once per channel.
    T snapshots of one operator, T above the number of rows, become the rows of a triangle Z with
    :math:`Z^H Z = Y^H Y`.

    Args:
        observation: batch (*channel, *scene), operators (*channel).
        region: where sources may be.

    Returns:
        The problem; its costs count what G can explain only.
    """
    batch_shape = tuple(observation.y.shape[:-2])
    y = observation.y
    n_channels = math.prod(observation.operator.shape[:-3])
    n_operators, n_rows, n_elements = observation.operator.shape[-3:]
    mixing = observation.operator.to(y.dtype).reshape(-1, n_operators, n_rows, n_elements)
    operator: Tensor | None = mixing
    if _is_identity(mixing):
        operator, n_channels = None, 1
    # (channel, scene, blocks, snapshot, row): blocks of y that share an operator are snapshots
    y = y.reshape(n_channels, -1, n_operators, y.shape[-2] // n_operators, n_rows)
    n_snapshots, n_unexplained = y.shape[3], 0
    unexplained = torch.zeros_like(y.real[:, :, 0, 0, 0])
    if operator is not None and n_rows > n_elements:
        heard, factor = _power(y), _triangle(mixing)
        # orthonormal columns of G Z^-1; in double, since Z may be close to singular
        mixing = mixing.to(factor.dtype)
        basis = torch.linalg.solve_triangular(factor, mixing, upper=True, left=False)
        y = y @ basis.to(y.dtype).conj()[:, None]
        operator = factor.to(y.dtype)
        unexplained = (heard - _power(y)).clamp_min(0.0)
        n_unexplained = y.shape[2] * n_snapshots * (n_rows - n_elements)
    if n_snapshots > y.shape[4]:
        y = _triangle(y).to(y.dtype)
    noise_power = observation.noise_power.to(y.real.dtype).expand(batch_shape)
    return Problem(
        y=y.contiguous(),
        operator=operator,
        positions=observation.positions.to(y.real.dtype),
        wavelength=observation.wavelength,
        region=region,
        noise_power=noise_power.reshape(y.shape[:2]),
        unexplained=unexplained,
        n_snapshots=n_snapshots,
        n_unexplained=n_unexplained,
        batch_shape=batch_shape,
    )


def take_scenes(values: Tensor, chosen: Int[Tensor, "channel some"]) -> Tensor:
    """Picks scenes of each channel.

    Args:
        values: (channel, scene, ...).
        chosen: index of each; may repeat.

    Returns:
        (channel, some, ...).
    """
    channels = torch.arange(values.shape[0], device=values.device)[:, None]
    return values[channels, chosen]


def put_scenes(
    values: Tensor,
    new: Tensor,
    some: Int[Tensor, "channel some"],
    chosen: Bool[Tensor, "channel some"] | None = None,
) -> Tensor:
    """Writes some scenes of each channel into a copy.

    Args:
        values: (channel, scene, ...).
        new: (channel, some, ...).
        some: index of each, none twice.
        chosen: which of them to write; None writes all.

    Returns:
        Like ``values``.
    """
    channels = torch.arange(values.shape[0], device=values.device)[:, None]
    if chosen is not None:
        chosen = chosen.reshape(*chosen.shape, *([1] * (new.ndim - 2)))
        new = torch.where(chosen, new, values[channels, some])
    copy = values.clone()
    copy[channels, some] = new
    return copy


def pack_scenes(
    wanted: Bool[Tensor, "channel scene"],
) -> Int[Tensor, "channel some"]:
    """Index of the wanted scenes of each channel, filled up with others to a common number.

    Args:
        wanted: which scenes; the channel with most of them decides how many are packed.

    Returns:
        Wanted scenes first, in order; empty if none is wanted anywhere.
    """
    most = int(wanted.sum(1).max())
    order = torch.sort(wanted.to(torch.uint8), dim=1, descending=True, stable=True).indices
    return order[:, :most]


def _is_identity(operator: Complex[Tensor, "channel blocks row element"]) -> bool:
    _, n_operators, n_rows, n_elements = operator.shape
    if n_operators != 1 or n_rows != n_elements:
        return False
    identity = torch.eye(n_rows, dtype=operator.dtype, device=operator.device)
    return bool((operator == identity).all())


def _power(
    y: Complex[Tensor, "channel scene blocks snapshot row"],
) -> Float[Tensor, "channel scene"]:
    return torch.view_as_real(y).flatten(2).square().sum(-1)


def _triangle(matrix: Complex[Tensor, "*batch line row"]) -> Complex[Tensor, "*batch row row"]:
    """Z with Z^H Z = Y^H Y, by Cholesky: many times as fast as QR.

    In double precision, where squaring Y costs nothing that single precision could see.
    """
    exact = matrix.to(torch.complex128)
    gram = exact.mH @ exact
    power = gram.diagonal(dim1=-2, dim2=-1).real.mean(-1)
    # noise-free data have fewer dimensions than rows
    loading = (1e-14 * power).clamp_min(1e-200)[..., None].expand(gram.shape[:-1])
    factor: Tensor = torch.linalg.cholesky_ex(gram + torch.diag_embed(loading)).L
    # some solvers take no lazy conjugate, which double precision would leave
    return factor.mH.resolve_conj()
