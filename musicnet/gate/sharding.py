"""What a gate has to know of the strategies that spread weights over processes."""

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy


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
