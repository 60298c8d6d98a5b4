"""Random numbers of several blocks at once, each block from a generator of its own.

What a block gets does not depend on which other blocks are drawn beside it.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor


def child_generators(generators: Sequence[torch.Generator]) -> list[torch.Generator]:
    """Fresh sources of randomness for draws whose number is not known beforehand.

    Args:
        generators: one per block; each gives one number.

    Returns:
        One per block, on the same device.
    """
    seeds = draw_states(2**62, (1,), generators).flatten().tolist()
    return [
        torch.Generator(g.device).manual_seed(s) for g, s in zip(generators, seeds, strict=True)
    ]


def draw_uniform(
    shape: Sequence[int], generators: Sequence[torch.Generator]
) -> Float[Tensor, "channel ..."]:
    """Numbers from 0 to 1.

    Args:
        shape: of one block.
        generators: one per block, all on the device of the answer.

    Returns:
        One block per generator.
    """
    blocks = torch.empty((len(generators), *shape), device=generators[0].device)
    for block, generator in zip(blocks, generators, strict=True):
        block.uniform_(generator=generator)
    return blocks


def draw_states(
    n_states: int, shape: Sequence[int], generators: Sequence[torch.Generator]
) -> Int[Tensor, "channel ..."]:
    """Whole numbers below ``n_states``, all equally likely.

    Args:
        n_states: how many there are.
        shape: of one block.
        generators: one per block, all on the device of the answer.

    Returns:
        One block per generator.
    """
    device = generators[0].device
    blocks = torch.empty((len(generators), *shape), device=device, dtype=torch.int64)
    for block, generator in zip(blocks, generators, strict=True):
        block.random_(n_states, generator=generator)
    return blocks


def draw_normal(
    shape: Sequence[int], generators: Sequence[torch.Generator]
) -> Float[Tensor, "channel ..."]:
    """Standard normal numbers.

    Args:
        shape: of one block.
        generators: one per block, all on the device of the answer.

    Returns:
        One block per generator.
    """
    blocks = torch.empty((len(generators), *shape), device=generators[0].device)
    for block, generator in zip(blocks, generators, strict=True):
        block.normal_(generator=generator)
    return blocks


def draw_complex_normal(
    shape: Sequence[int], generators: Sequence[torch.Generator], power: float = 1.0
) -> Complex[Tensor, "channel ..."]:
    """Circular Gaussian numbers.

    Args:
        shape: of one block.
        generators: one per block, all on the device of the answer.
        power: E|x|^2, both parts together.

    Returns:
        One block per generator.
    """
    device = generators[0].device
    parts = torch.empty((len(generators), *shape, 2), device=device)
    for block, generator in zip(parts, generators, strict=True):
        block.normal_(0.0, math.sqrt(power / 2.0), generator=generator)
    return torch.view_as_complex(parts)
