"""What a checkpoint keeps of the harness, as plain data that `weights_only=True` loads."""

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from musicnet.gate.averaging import WeightAverage
from musicnet.gate.parameter_groups import ParameterGroup
from musicnet.gate.step_gate import StepGate

KEY = "step_gate"


@dataclass(frozen=True)
class RunShape:
    """What a resumed run should share with the run that was saved.

    Args:
        groups: Per group name a fingerprint of the names of its parameters.
        total_steps: Real steps that the schedule is laid out for.
        accumulate: Batches per attempt.
        world_size: Ranks of the run.
    """

    groups: dict[str, str]
    total_steps: int
    accumulate: int
    world_size: int


@dataclass(frozen=True)
class EpochCounts:
    """Where the epoch that is going on began.

    Args:
        is_open: Whether a batch of it was trained on.
        steps_before: Real steps of the run before it.
        attempts_before: Attempts of the run before it.
        has_told_of_loss: Whether the run has warned of a loss that is not finite.
    """

    is_open: bool
    steps_before: int
    attempts_before: int
    has_told_of_loss: bool


def fingerprints(module: nn.Module, groups: Sequence[ParameterGroup]) -> dict[str, str]:
    """Tell parameter groups apart by the names of their parameters.

    Args:
        module: Owns the parameters.
        groups: As the optimiser has them.

    Returns:
        Per group name the first 16 hexadecimal digits of a SHA-256 over its parameter names.
    """
    names = [name.replace("_orig_mod.", "") for name, _ in module.named_parameters()]
    texts = {g.name: "\n".join(name for name in names if g.takes(name)) for g in groups}
    return {name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in texts.items()}


def save_harness(
    checkpoint: dict[str, Any],
    gate: StepGate,
    average: WeightAverage | None,
    shape: RunShape,
    open_batches: int,
) -> None:
    """Write the harness into a checkpoint.

    Args:
        checkpoint: Gets the entry ``step_gate``.
        gate: Its counters are saved.
        average: Saved with its count, if one is kept.
        shape: For the comparison on resume.
        open_batches: Batches of an accumulation window whose gradients are not in the checkpoint.
    """
    checkpoint[KEY] = {
        "gate": gate.state_dict(),
        "average": average.state_dict() if average is not None else None,
        "shape": asdict(shape),
        "open_batches": open_batches,
    }


def load_harness(
    checkpoint: dict[str, Any], module: nn.Module, gate: StepGate, average: WeightAverage | None
) -> RunShape | None:
    """Take the harness up from a checkpoint.

    Args:
        checkpoint: With or without the entry ``step_gate``; without it the counters start anew.
        module: The average must fit its parameters.
        gate: Gets its counters.
        average: Gets its weights, if the checkpoint has any.

    Returns:
        The shape of the run that was saved.
    """
    state = checkpoint.get(KEY)
    if state is None:
        warnings.warn(
            "the checkpoint has no state of a step gate: steps and vetoes are counted from 0",
            stacklevel=2,
        )
        return None
    gate.load_state_dict(state["gate"])
    if average is not None and state["average"] is not None:
        average.load_state_dict(state["average"], module)
    if state["open_batches"]:
        warnings.warn(
            f"the checkpoint was saved inside an accumulation window: the gradients of "
            f"{state['open_batches']} batches are lost",
            stacklevel=2,
        )
    return RunShape(**state["shape"])


def save_epoch(checkpoint: dict[str, Any], counts: EpochCounts) -> None:
    """Add the counts of the epoch that is going on to the entry of `save_harness`."""
    checkpoint[KEY]["epoch"] = asdict(counts)


def load_epoch(checkpoint: dict[str, Any], gate: StepGate) -> EpochCounts:
    """Give the counts of the epoch that was going on; without any, as if it began now."""
    state = checkpoint.get(KEY, {}).get("epoch")
    if state is None:
        return EpochCounts(
            is_open=False,
            steps_before=gate.steps,
            attempts_before=gate.attempts,
            has_told_of_loss=False,
        )
    return EpochCounts(**state)


def compare_shapes(saved: RunShape, now: RunShape) -> None:
    """Refuse to resume with other parameter groups; warn of another horizon or world.

    Raises:
        ValueError: the optimiser state would be given to other parameters.
    """
    if saved.groups != now.groups:
        changed = ", ".join(sorted({n for n, _ in saved.groups.items() ^ now.groups.items()}))
        raise ValueError(
            "a resumed run must have the parameter groups it was saved with, since the optimiser "
            f"state goes by their order: got other parameters in {changed}. Restore "
            "the groups, or load the weights alone."
        )
    for name in ("total_steps", "accumulate", "world_size"):
        before, after = getattr(saved, name), getattr(now, name)
        if before != after:
            warnings.warn(
                f"the run was saved with {name}={before} and goes on with {after}: "
                "learning rates follow the new number",
                stacklevel=2,
            )
