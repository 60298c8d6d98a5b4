"""Second moments of what was heard, and ways to make few or coherent snapshots count for more."""

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from musicnet.shapes import Covariance, Received


def sample_covariance(y: Received) -> Covariance:
    """Average outer product of the blocks.

    Args:
        y: snapshots as blocks, sensors as rows.

    Returns:
        R = (1/Q) sum_q y_q y_q^H, Hermitian; linear power.

    Example:
        >>> sample_covariance(torch.tensor([[1 + 0j, 1j]]))[0].tolist()
        [(1+0j), -1j]
    """
    return y.mT @ y.conj() / y.shape[-2]


def forward_backward(covariance: Covariance) -> Covariance:
    """Averages a covariance with its mirror image, which decorrelates coherent pairs.

    Args:
        covariance: R of an array whose elements in reverse order are its mirror image, see
            `musicnet.scene.array.is_mirrored`; or of a smoothed one.

    Returns:
        (R + X R* X) / 2, X the exchange matrix.
    """
    return 0.5 * (covariance + covariance.conj().flip(-2, -1))


def smoothed(covariance: Covariance, n_sub: int) -> Complex[Tensor, "*batch sub sub"]:
    """Averages over the shifted subarrays of a uniform line, which decorrelates coherent sources.

    K coherent sources need K subarrays; about K/2 where `forward_backward` follows.

    Args:
        covariance: R, sensors in order.
        n_sub: sensors of a subarray; more than there are sources.

    Returns:
        Covariance of one subarray.

    Raises:
        ValueError: a subarray without sensors, or longer than the line.

    Source: Shan, Wax & Kailath (1985), IEEE Transactions on ASSP 33(4); Pillai & Kwon (1989), IEEE
    Transactions on ASSP 37(1), with forward-backward averaging.
    """
    n_rows = covariance.shape[-1]
    if not 1 <= n_sub <= n_rows:
        raise ValueError(
            f"a subarray must have from 1 to all of the {n_rows} sensors: got n_sub={n_sub}."
        )
    windows = covariance.unfold(-2, n_sub, 1).unfold(-2, n_sub, 1)  # (..., start, start, sub, sub)
    averaged: Tensor = windows.diagonal(dim1=-4, dim2=-3).mean(-1)
    return averaged


def smoothed_rectangle(
    covariance: Covariance, n_horizontal: int, n_vertical: int, n_sub: tuple[int, int]
) -> Complex[Tensor, "*batch sub sub"]:
    """Averages over the shifted rectangles of a rectangular array.

    Args:
        covariance: R, sensors with x running fastest.
        n_horizontal: sensors along x.
        n_vertical: sensors along y.
        n_sub: sensors of a subarray along x and along y.

    Returns:
        Covariance of one subarray, x running fastest.

    Raises:
        ValueError: another number of sensors, or a subarray that does not fit.
    """
    sub_x, sub_y = n_sub
    if n_horizontal * n_vertical != covariance.shape[-1]:
        raise ValueError(
            f"a rectangle of {n_horizontal} x {n_vertical} sensors needs a covariance of as many "
            f"rows: got {covariance.shape[-1]}."
        )
    if not (1 <= sub_x <= n_horizontal and 1 <= sub_y <= n_vertical):
        raise ValueError(
            f"a subarray must fit into {n_horizontal} x {n_vertical} sensors: got n_sub={n_sub}."
        )
    sides = (n_vertical, n_horizontal, n_vertical, n_horizontal)
    windows = covariance.reshape(*covariance.shape[:-2], *sides)
    for side in (sub_y, sub_x, sub_y, sub_x):  # the oldest axis of starts goes first
        windows = windows.unfold(-4, side, 1)
    # (..., y, x, y', x' starts, then sub y, sub x, sub y', sub x')
    shared = windows.diagonal(dim1=-8, dim2=-6).diagonal(dim1=-7, dim2=-6)
    averaged: Tensor = shared.mean((-2, -1))
    n_rows = sub_x * sub_y
    return averaged.reshape(*averaged.shape[:-4], n_rows, n_rows)


def shrunk(
    covariance: Covariance, share: float | Float[Tensor, "*batch"]
) -> Complex[Tensor, "*batch row row"]:
    """Moves a covariance towards white noise of the same power.

    Args:
        covariance: R; linear power.
        share: from 0, R itself, to 1, white noise.

    Returns:
        (1 - share) R + share tr(R)/n I.
    """
    identity = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    power = covariance.diagonal(dim1=-2, dim2=-1).real.mean(-1)
    weight = torch.as_tensor(share, dtype=power.dtype, device=power.device)
    return torch.lerp(covariance, power[..., None, None] * identity, weight[..., None, None] + 0j)


def ledoit_wolf_share(y: Received) -> Float[Tensor, "*batch"]:
    """How far to shrink a sample covariance for the least mean square error: for few snapshots.

    Args:
        y: snapshots as blocks, sensors as rows; zero mean.

    Returns:
        Share for `shrunk`, from 0 to 1.

    Source: Ledoit & Wolf (2004), Journal of Multivariate Analysis 88(2), for complex data.
    """
    n_blocks, n_rows = y.shape[-2:]
    covariance = sample_covariance(y)
    total = covariance.abs().square().sum((-2, -1))
    power = covariance.diagonal(dim1=-2, dim2=-1).real.sum(-1)
    # ||R - mu I||^2, and the mean of ||y y^H - R||^2 over T
    spread = total - power.square() / n_rows
    error = (y.abs().square().sum(-1).square().sum(-1) / n_blocks - total) / n_blocks
    tiny = torch.finfo(spread.dtype).tiny
    return (error / spread.clamp_min(tiny)).clamp(0.0, 1.0)


def element_covariance(
    y: Received, operator: Complex[Tensor, "*channel blocks row element"], loading: float = 1e-2
) -> Complex[Tensor, "*batch element element"]:
    """Second moments of the field on a surface, from what the receivers behind it heard.

    Each block is inverted by loaded least squares. With pilots the answer has rank one; with data
    symbols and fewer receivers than cells each inversion is blurred, and so is the answer: a
    reference for methods that live on covariances, not more.

    Args:
        y: batch (*channel, scene) or (scene,).
        operator: G, one block or one for every block of y.
        loading: of G^H G, over its mean diagonal.

    Returns:
        Covariance of the field on the cells.
    """
    gram = operator.mH @ operator
    power = gram.diagonal(dim1=-2, dim2=-1).real.mean(-1)
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    inverse = torch.linalg.solve(gram + loading * power[..., None, None] * identity, operator.mH)
    field = (inverse[..., None, :, :, :] @ y[..., None]).squeeze(-1)  # (..., block, element)
    return sample_covariance(field)


def whitened_blocks(y: Received) -> Complex[Tensor, "*batch row row"]:
    """Trades many snapshots for as many as there are rows, with the same outer product.

    Args:
        y: T snapshots as blocks, N sensors as rows, T >= N.

    Returns:
        Z as blocks, [row, row]: sum_q z_q z_q^H = sum_q y_q y_q^H, so that every cost of maximum
        likelihood, its gradient and its Gauss-Newton matrix are the same.
    """
    triangle: Tensor = torch.linalg.qr(y, mode="r").R
    return triangle
