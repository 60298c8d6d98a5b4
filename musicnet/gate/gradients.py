"""What the gate measures: gradients by group, their one global norm, and how they are scaled.

Gradients go in as the optimisers hold them (dense, sparse, complex, half, on several devices);
a norm or the names of the broken ones come out.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Gradients:
    """The gradients that optimisers hold, by named parameter group.

    Args:
        groups: Gradients per group; empty where nothing in the group has one.
        rates: Learning rate per group.
    """

    groups: dict[str, list[Tensor]]
    rates: dict[str, float]

    @classmethod
    def of(cls, optimizers: Sequence[Optimizer]) -> "Gradients":
        """Collect what is there; nothing is copied, so that scaling these scales the gradients.

        Args:
            optimizers: Raw optimisers; groups are named as by `groups_by_name`.
        """
        named = groups_by_name(optimizers)
        return cls(
            {
                name: [stored_values(p) for p in group["params"] if p.grad is not None]
                for name, group in named.items()
            },
            {name: float(group["lr"]) for name, group in named.items()},
        )

    @property
    def tensors(self) -> list[Tensor]:
        """All gradients of all groups."""
        return [gradient for group in self.groups.values() for gradient in group]

    def norms(self) -> dict[str, float]:
        """Give the norm of every group that has gradients. Waits for the device once."""
        return group_norms({name: group for name, group in self.groups.items() if group})

    @torch.no_grad()
    def scale(self, factor: float) -> None:
        """Multiply every gradient by the factor, in place."""
        for alike in kinds(self.tensors):
            torch._foreach_mul_(alike, factor)


def groups_by_name(optimizers: Iterable[Optimizer]) -> dict[str, dict[str, Any]]:
    """Give the parameter groups of optimisers under the names that reports and logs use.

    Args:
        optimizers: Raw optimisers.

    Returns:
        Groups in order, by their ``name``, else ``group<i>``; a name that several optimisers use
        gets the number of the optimiser in front.

    Example:
        >>> weight, bias = nn.Linear(3, 1).parameters()
        >>> groups = [{"params": [weight], "name": "head"}, {"params": [bias]}]
        >>> list(groups_by_name([torch.optim.SGD(groups, lr=0.1)]))
        ['head', 'group1']
    """
    named: dict[str, dict[str, Any]] = {}
    for i, optimizer in enumerate(optimizers):
        for j, group in enumerate(optimizer.param_groups):
            name = str(group.get("name", f"group{j}"))
            named[f"{i}.{name}" if name in named else name] = group
    return named


@torch.no_grad()
def global_norm(tensors: Sequence[Tensor], order: float = 2.0) -> Float[Tensor, ""]:
    """Norm of all tensors as one long vector, without waiting for the device.

    Args:
        tensors: At least one; any dtype, shape and device. Half precision is summed in float32.
        order: 2 or infinity.

    Returns:
        The norm, on the device of the first tensor. It may under- or overflow where `exact_norm`
        does not.

    Example:
        >>> global_norm([torch.tensor([3.0]), torch.tensor([[4.0]])]).item()
        5.0
    """
    norms: list[Tensor] = []
    for alike in kinds(tensors):
        wider = torch.float32 if alike[0].dtype in _HALF else None
        found = torch._foreach_norm(alike, order, dtype=wider)
        if isinstance(alike[0], DTensor):
            # the norm of a sharded gradient (FSDP2) is a sharded scalar until it is gathered
            together = cast(DTensor, torch.linalg.vector_norm(torch.stack(found), order))
            norms.append(together.full_tensor())
        else:
            norms += found
    if len({(norm.device, norm.dtype) for norm in norms}) > 1:
        widest = torch.float64 if any(n.dtype == torch.float64 for n in norms) else torch.float32
        norms = [norm.to(norms[0].device, widest) for norm in norms]
    return cast(Tensor, torch.linalg.vector_norm(torch.stack(norms), order))


def kinds(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Sort tensors into lists of one device, one dtype, and all of them sharded or none.

    Operations on many tensors at once take no others.

    Example:
        >>> [len(kind) for kind in kinds([torch.ones(1), torch.ones(2), torch.ones(1).double()])]
        [2, 1]
    """
    sorted_: dict[tuple[torch.device, torch.dtype, bool], list[Tensor]] = {}
    for tensor in tensors:
        key = (tensor.device, tensor.dtype, isinstance(tensor, DTensor))
        sorted_.setdefault(key, []).append(tensor)
    return list(sorted_.values())


@torch.no_grad()
def largest_magnitude(tensors: Sequence[Tensor]) -> float:
    """Give the largest magnitude of any entry; inf or nan if an entry is. Waits for the device.

    Args:
        tensors: Any dtype, shape and device; of a shard that is empty on this rank, too.

    Example:
        >>> largest_magnitude([torch.tensor([3.0, -4.0]), torch.empty(0)])
        4.0
    """
    here = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    filled = [tensor for tensor in here if tensor.numel()]
    largest = float(global_norm(filled, math.inf).item()) if filled else 0.0
    for mesh in {tensor.device_mesh for tensor in tensors if isinstance(tensor, DTensor)}:
        # a maximum may lose a nan on its way between ranks, a flag is not lost
        ballot = [math.inf if math.isnan(largest) else largest, float(math.isnan(largest))]
        shared = torch.tensor(ballot, dtype=torch.float64, device=here[0].device)
        for group in mesh.get_all_groups():
            dist.all_reduce(shared, dist.ReduceOp.MAX, group=group)
        largest, is_nan = shared.tolist()
        largest = math.nan if is_nan else largest
    return largest


@torch.no_grad()
def exact_norm(tensors: Sequence[Tensor]) -> float:
    """Norm of all tensors as a number that is 0, inf or nan only if the tensors are.

    Waits for the device once. float32 squares vanish below 1e-23 and overflow above 1e19, yet such
    gradients can be stepped on: only where the fast norm under- or overflowed is it taken again,
    as ``m * ||g / m||`` with m the largest magnitude.

    Args:
        tensors: At least one.

    Returns:
        The norm.

    Example:
        >>> exact_norm([torch.tensor([3e25]), torch.tensor([4e25])])
        5e+25
    """
    norm = global_norm(tensors).item()
    if 0 < norm < math.inf:
        return norm
    largest = largest_magnitude(tensors)
    if not 0 < largest < math.inf:
        return largest
    wide = [t.float() if t.dtype in _HALF else t for t in tensors]
    return largest * global_norm([t / largest for t in wide]).item()


@torch.no_grad()
def group_norms(groups: Mapping[str, Sequence[Tensor]]) -> dict[str, float]:
    """Norm of every group as one long vector, as exact as that of `exact_norm`.

    Waits for the device once, and again for a group whose fast norm is 0 or not finite.

    Args:
        groups: Tensors of any dtype, shape, layout and device by group; an empty group has norm 0.

    Example:
        >>> group_norms({"head": [torch.tensor([3.0]), torch.tensor([[4.0]])], "tail": []})
        {'head': 5.0, 'tail': 0.0}
    """
    filled = {
        name: [t.coalesce().values() if t.is_sparse else t for t in group]
        for name, group in groups.items()
        if group
    }
    norms = dict.fromkeys(groups, 0.0)
    fast = [global_norm(group) for group in filled.values()]
    together = [norm.to(fast[0].device, torch.float32) for norm in fast]
    numbers = torch.stack(together).tolist() if together else []
    for name, norm in zip(filled, numbers, strict=True):
        norms[name] = norm if 0 < norm < math.inf else exact_norm(filled[name])
    return norms


def nonfinite_names(
    named_parameters: Iterable[tuple[str, nn.Parameter]], limit: int = 5
) -> list[str]:
    """Find the first parameters whose gradient is not finite. Waits for the device per parameter.

    Args:
        named_parameters: As `torch.nn.Module.named_parameters` gives them.
        limit: How many names are enough.

    Returns:
        At most `limit` names, in order.
    """
    names: list[str] = []
    for name, parameter in named_parameters:
        if parameter.grad is None:
            continue
        if not torch.isfinite(stored_values(parameter)).all():
            names.append(name)
            if len(names) == limit:
                break
    return names


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Tell whether every entry of every tensor is finite. Waits for the device once."""
    return math.isfinite(largest_magnitude(tensors))


def stored_values(parameter: nn.Parameter) -> Tensor:
    """Give the gradient of a parameter, or what a sparse one stores."""
    gradient = parameter.grad
    if gradient is None or not gradient.is_sparse:
        return cast(Tensor, gradient)
    # duplicate indices are one entry: 3 and 4 at the same row are 7, not 5
    parameter.grad = gradient.coalesce()
    return parameter.grad._values()
