"""Matrix products that round alike however many there are in a batch."""

import torch
from torch import Tensor


def product(left: Tensor, right: Tensor) -> Tensor:
    """Batched ``left @ right``.

    A lone matrix goes to another routine than a batch of them, and is rounded otherwise: a scene's
    answer would depend on the company it is in. It is multiplied as one of two.

    Args:
        left: [..., row, inner].
        right: [..., inner, column], of the same leading axes.

    Returns:
        [..., row, column].

    Example:
        >>> product(torch.ones(1, 2, 3), torch.ones(1, 3, 1))[0, :, 0].tolist()
        [3.0, 3.0]
    """
    if left.shape[:-2].numel() != 1:
        return left @ right
    return (left.expand(2, *left.shape) @ right.expand(2, *right.shape))[0]


def product_of_rows(rows: Tensor, right: Tensor) -> Tensor:
    """``rows @ right`` where there are as many rows as a batch happens to hold.

    A single row goes to another routine, as a lone matrix does in `product`.

    Args:
        rows: [..., row, inner].
        right: [..., inner, column].

    Returns:
        [..., row, column].
    """
    if rows.shape[-2] != 1:
        return rows @ right
    return (torch.cat((rows, rows), dim=-2) @ right)[..., :1, :]
