"""What a gate has to know of the strategies that spread weights over processes."""

from collections.abc import Sequence
from functools import partial

import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from musicnet.gate.listeners import trainer_of
from musicnet.gate.parameter_groups import ParameterGroup


def check_strategy(trainer: Trainer | None, *, decides: bool) -> None:
    """Refuse a gate where it could not know, or not hold, what it decides on.

    Args:
        trainer: None has no strategy.
        decides: Whether the gate vetoes, or only observes.

    Raises:
        ValueError: the engine steps by itself, or shards are flat pieces of many parameters.
    """
    strategy = trainer.strategy if trainer is not None else None
    if isinstance(strategy, DeepSpeedStrategy) and decides:
        raise ValueError(
            "a gate cannot veto what DeepSpeed's engine decides by itself: got mode='decide' with "
            "a DeepSpeedStrategy. Set gate.mode=observe."
        )
    if isinstance(strategy, FSDPStrategy):
        raise ValueError(
            "a gate needs gradients that know which parameter they belong to: got an FSDPStrategy, "
            "whose shards are flat. Use a ModelParallelStrategy (FSDP2), as trainer=fsdp does."
        )


def shard(
    module: LightningModule, groups: Sequence[ParameterGroup], *, keeps_average: bool
) -> None:
    """Spread the modules that parameter groups name over the ranks of a sharded run (FSDP2).

    Under any other strategy nothing happens.

    Args:
        module: Is being set up by its trainer, or loaded without one, which shards nothing.
        groups: Their prefixes that name modules are what is sharded, each as one unit.
        keeps_average: Whether an average of the weights is kept, which needs them whole.

    Raises:
        ValueError: weights would be sharded, and an average is kept.
    """
    trainer = trainer_of(module, ())
    strategy = trainer.strategy if trainer is not None else None
    if not isinstance(strategy, ModelParallelStrategy):
        return
    if keeps_average:
        raise ValueError(
            "an average of the weights needs them whole on every rank: got averaging in a sharded "
            "run. Use trainer=ddp, or averaging=null."
        )
    mesh = strategy.device_mesh["data_parallel"]
    for part in _named_modules(module, groups):
        if not isinstance(part, FSDPModule):
            scalars = {parameter for parameter in part.parameters() if parameter.ndim == 0}
            fully_shard(part, mesh=mesh, ignored_params=scalars)
            for scalar in scalars:
                hook = partial(_average, mesh.get_group())
                scalar.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]


def settle_foreach(optimizer: Optimizer) -> None:
    """Let an optimiser step one parameter at a time if only some of them are sharded.

    Scalars cannot be, and torch's operations on many tensors at once take all or none.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if len({isinstance(parameter, DTensor) for parameter in parameters}) > 1:
        for group in optimizer.param_groups:
            if "foreach" in group:
                group["foreach"] = False


def _average(group: dist.ProcessGroup, parameter: nn.Parameter) -> None:
    """Give every rank the mean gradient; what was accumulated before is a mean already."""
    dist.all_reduce(parameter.grad, group=group)
    if parameter.grad is not None:
        parameter.grad /= group.size()


def _named_modules(module: nn.Module, groups: Sequence[ParameterGroup]) -> list[nn.Module]:
    """Find the modules behind the prefixes; some prefixes name single parameters."""
    named = dict(module.named_modules())
    prefixes = [prefix for group in groups for prefix in group.prefixes]
    return [named[prefix] for prefix in prefixes if prefix in named]
