"""Second moments of what was heard."""

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
        covariance: R of an array that is symmetric about its centre, elements in order.

    Returns:
        (R + X R* X) / 2, X the exchange matrix.
    """
    return 0.5 * (covariance + covariance.conj().flip(-2, -1))


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


def estimate_noise_power(
    y: Received, operator: Complex[Tensor, "*batch blocks row element"]
) -> Float[Tensor, "*batch"]:
    """Noise power of data that do not say it.

    Args:
        y: what was heard.
        operator: G of each scene. With more rows than elements the rows that no field can explain
            are noise, without bias; else the smaller half of the covariance's eigenvalues is:
            low (by 40 % for 50 blocks of 15 rows), and high if there are more than half as many
            sources as rows.

    Returns:
        E|n|^2 of a row; linear power.

    Raises:
        ValueError: a plain array with a single snapshot, which leaves nothing to compare.
    """
    n_blocks, n_rows = y.shape[-2:]
    n_elements = operator.shape[-1]
    if n_rows > n_elements:
        basis = torch.linalg.qr(operator).Q  # (..., blocks, row, element)
        explained = (basis.mH @ y[..., None]).squeeze(-1)
        residual = y.abs().square().sum((-2, -1)) - explained.abs().square().sum((-2, -1))
        power: Tensor = residual / (n_blocks * (n_rows - n_elements))
        return power
    if n_blocks < 2:
        raise ValueError(
            "the noise power of a single snapshot cannot be told from the sources': got "
            f"{n_rows} rows for {n_elements} elements and {n_blocks} block. Give noise_power."
        )
    values: Tensor = torch.linalg.eigvalsh(sample_covariance(y))
    return values[..., : n_rows // 2 or 1].clamp_min(0.0).mean(-1)
