"""The noise power of recordings that do not say it."""

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from musicnet.estimation.covariance import sample_covariance

_LARGEST_NOISE = 1.5  # the 99.94 % quantile of Tracy and Widom's law for complex data


def noise_power_of(
    y: Complex[Tensor, "scene block row"], operator: Complex[Tensor, "blocks row element"]
) -> Float[Tensor, " scene"]:
    """Noise power of each scene, from what was heard alone.

    Args:
        y: scenes that were taken with one operator.
        operator: G. With more rows than elements, the rows that no field can explain are noise;
            with one G for several blocks, what the covariance has beside its sources is. In both
            cases the answer has almost no bias.

    Returns:
        E|n|^2 of a row; linear power.

    Raises:
        ValueError: neither of the two.
    """
    n_blocks, n_rows = y.shape[-2:]
    y = y.to(torch.complex128)  # or the rounding of loud sources would pass for noise
    if n_rows > operator.shape[-1]:
        return _power_out_of_reach(y, operator.to(torch.complex128)).float()
    if n_blocks < 2:
        raise ValueError(
            "the noise power of a single snapshot cannot be told from the sources': got "
            f"{n_rows} rows for {operator.shape[-1]} elements and {n_blocks} block. Give it."
        )
    if not bool((operator == operator[:1]).all()):
        raise ValueError(
            "noise cannot be told from sources by fewer rows than elements and an operator that "
            f"changes: got {n_rows} rows for {operator.shape[-1]} elements. Give it."
        )
    values: Tensor = torch.linalg.eigvalsh(sample_covariance(y))
    return _power_beside_sources(values, n_blocks).float()


def _power_out_of_reach(
    y: Complex[Tensor, "scene block row"], operator: Complex[Tensor, "blocks row element"]
) -> Float[Tensor, " scene"]:
    """What no field on the elements can explain, per row that is left."""
    _, n_blocks, n_rows = y.shape
    basis = torch.linalg.qr(operator).Q
    explained = basis.mH @ y.permute(1, 2, 0)  # (block, element, scene)
    residual = y.abs().square().sum((1, 2)) - explained.abs().square().sum((0, 1))
    power: Tensor = residual / (n_blocks * (n_rows - operator.shape[-1]))
    return power


def _power_beside_sources(
    eigenvalues: Float[Tensor, "*batch row"], n_snapshots: int
) -> Float[Tensor, "*batch"]:
    """Takes eigenvalues for sources, the largest first, until one could as well be noise.

    k sources take up noise too: a matrix of rank k can fit k (N + T - k) of the N T numbers, which
    leaves (N - k)(T - k) to divide by. Coherent sources share an eigenvalue and do no harm.

    Source: Kritchman & Nadler (2009), IEEE Transactions on Signal Processing 57(10), for the test.
    """
    n_rows = eigenvalues.shape[-1]
    k = torch.arange(min(n_rows, n_snapshots), device=eigenvalues.device)
    n_beside = n_rows - k
    values = eigenvalues.clamp_min(0.0)
    beside = values.cumsum(-1).flip(-1)[..., : len(k)]  # without the k largest
    power = n_snapshots * beside / (n_beside * (n_snapshots - k))
    # centre and width of the largest eigenvalue of noise alone, Johnstone (2001)
    sides = n_beside.double().sqrt(), float(n_snapshots) ** 0.5
    centre = (sides[0] + sides[1]).square()
    width = (sides[0] + sides[1]) * (1.0 / sides[0] + 1.0 / sides[1]) ** (1.0 / 3.0)
    largest = power * (centre + _LARGEST_NOISE * width) / n_snapshots
    is_source = values.flip(-1)[..., : len(k) - 1] > largest[..., 1:]
    n_sources = is_source.long().cumprod(-1).sum(-1, keepdim=True)
    return power.gather(-1, n_sources).squeeze(-1)
