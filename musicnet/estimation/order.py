r"""How many sources: information criteria on the eigenvalues of a covariance.

All three see incoherent sources only; coherent ones share an eigenvalue. Comes in: eigenvalues,
ascending, as the eigensolver gives them. Goes out: a count per scene, 0 for a scene of NaN.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

Eigenvalues = Float[Tensor, "*batch row"]


def akaike(
    eigenvalues: Eigenvalues, n_snapshots: int, *, is_forward_backward: bool = False
) -> Int[Tensor, "*batch"]:
    """Akaike's criterion (AIC): likes one source too many, at any number of snapshots.

    Args:
        eigenvalues: of a sample covariance, ascending; linear power.
        n_snapshots: T that went into it.
        is_forward_backward: the covariance was averaged with its mirror image, which halves what
            a source has free.

    Returns:
        Sources per scene, at most one fewer than rows and than snapshots.

    Source: Wax & Kailath (1985), IEEE Transactions on ASSP 33(2).

    Example:
        >>> akaike(torch.tensor([1.0, 1.0, 1.0, 9.0]), n_snapshots=100).item()
        1
    """
    penalty = _free_numbers(eigenvalues, n_snapshots, is_mirrored=is_forward_backward)
    return _cheapest(_misfit(eigenvalues, n_snapshots) + penalty)


def minimum_description_length(
    eigenvalues: Eigenvalues, n_snapshots: int, *, is_forward_backward: bool = False
) -> Int[Tensor, "*batch"]:
    """The minimum description length (MDL): right for many snapshots.

    Args:
        eigenvalues: of a sample covariance, ascending; linear power.
        n_snapshots: T that went into it.
        is_forward_backward: see `akaike`.

    Returns:
        Sources per scene, at most one fewer than rows and than snapshots.

    Source: Wax & Kailath (1985), IEEE Transactions on ASSP 33(2); Xu, Roy & Kailath (1994), IEEE
    Transactions on Signal Processing 42(1), for forward-backward averages.

    Example:
        >>> minimum_description_length(torch.tensor([1.0, 1.0, 8.0, 9.0]), n_snapshots=100).item()
        2
    """
    penalty = _free_numbers(eigenvalues, n_snapshots, is_mirrored=is_forward_backward)
    half_log = 0.5 * torch.tensor(float(n_snapshots)).log().item()
    return _cheapest(_misfit(eigenvalues, n_snapshots) + half_log * penalty)


def second_order_statistic(eigenvalues: Eigenvalues) -> Int[Tensor, "*batch"]:
    """SORTE: where the gaps between eigenvalues become even. Needs no number of snapshots.

    Args:
        eigenvalues: ascending; linear power.

    Returns:
        Sources per scene, from 1 to rows - 3.

    Raises:
        ValueError: fewer than four eigenvalues.

    Source: He, Cichocki, Xie & Choi (2010), IEEE Transactions on PAMI 32(11).

    Example:
        >>> second_order_statistic(torch.tensor([1.0, 1.1, 1.2, 1.3, 8.0, 9.0])).item()
        2
    """
    n_rows = eigenvalues.shape[-1]
    if n_rows < 4:
        raise ValueError(
            f"SORTE compares gaps and needs at least 4 eigenvalues: got {n_rows}. Use the minimum "
            "description length."
        )
    gaps = eigenvalues.diff(dim=-1)  # smallest eigenvalues first
    count = torch.arange(1, n_rows, device=gaps.device)
    mean = gaps.cumsum(-1) / count
    spread = (gaps.square().cumsum(-1) / count - mean.square()).clamp_min(0.0)
    # spread[i] is over the i + 1 lowest gaps: k sources leave n_rows - 1 - k of them
    after, before = spread[..., 1:-1].flip(-1), spread[..., 2:].flip(-1)
    tiny = torch.finfo(spread.dtype).tiny
    # gaps that are even already say nothing; those of NaN must not pass for even ones
    ratio = torch.where(before <= tiny, torch.inf, after / before.clamp_min(tiny))
    return _cheapest(ratio, first=1)


def _misfit(eigenvalues: Eigenvalues, n_snapshots: int) -> Float[Tensor, "*batch count"]:
    """-log likelihood for every k: T (P - k) log of arithmetic over geometric mean of the rest."""
    n_used = _n_used(eigenvalues, n_snapshots)
    values = eigenvalues[..., -n_used:].double()  # a covariance has no more rank than snapshots
    floor = torch.finfo(torch.float32).eps * values[..., -1:].abs().clamp_min(1e-30)
    values = values.clamp_min(floor)
    count = torch.arange(1, n_used + 1, device=values.device)
    arithmetic = (values.cumsum(-1) / count).log()
    geometric = values.log().cumsum(-1) / count
    # the i + 1 lowest eigenvalues are noise where n_used - 1 - i sources are
    return (n_snapshots * count * (arithmetic - geometric)).flip(-1)


def _free_numbers(
    eigenvalues: Eigenvalues, n_snapshots: int, *, is_mirrored: bool
) -> Float[Tensor, " count"]:
    """How many real numbers k sources are free to choose."""
    k = torch.arange(
        _n_used(eigenvalues, n_snapshots), dtype=torch.float64, device=eigenvalues.device
    )
    n_rows = eigenvalues.shape[-1]
    return 0.5 * k * (2 * n_rows - k + 1) if is_mirrored else k * (2 * n_rows - k)


def _n_used(eigenvalues: Eigenvalues, n_snapshots: int) -> int:
    if n_snapshots < 1:
        raise ValueError(f"an order needs at least one snapshot: got n_snapshots={n_snapshots}.")
    return min(eigenvalues.shape[-1], n_snapshots)


def _cheapest(criterion: Float[Tensor, "*batch count"], first: int = 0) -> Int[Tensor, "*batch"]:
    spoilt = criterion.isnan().any(-1)
    return (criterion.argmin(-1) + first).masked_fill(spoilt, 0)
