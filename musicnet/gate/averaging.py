"""Averages of the weights over real steps: exponential (EMA) and stochastic (SWA).

They change what is evaluated, or at which rate is trained, hence they are no callbacks. The trained
weights are never overwritten by an average, and an average that does not exist is never used.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from musicnet.gate.running_statistics import running_statistics
from musicnet.gate.schedules import Schedule
from musicnet.gate.settings import check_count

_WIDER = {torch.float16: torch.float32, torch.bfloat16: torch.float32}


@dataclass(frozen=True)
class Averaging:
    """Which average of the weights is kept.

    Args:
        kind: "ema" weighs recent steps more; "swa" weighs all steps since its start alike and
            trains at a rate of its own from there on.
        start_fraction: Share of the run before the average starts; None is 0 for "ema" and 0.75
            for "swa".
        every_steps: Real steps between two updates of the average.
        decay: EMA only: weight of the past, reached gradually as ``(1 + n) / (10 + n)``.
        rate_factor: SWA only: factor of the learning rate that replaces the main schedule.
        annealing_steps: SWA only: real steps from the factor of the main schedule to that one.

    Raises:
        ValueError: a number is not finite, not whole where it counts, or out of range.
    """

    kind: Literal["ema", "swa"] = "ema"
    start_fraction: float | None = None
    every_steps: int = 1
    decay: float = 0.999
    rate_factor: float = 0.5
    annealing_steps: int = 10

    def __post_init__(self) -> None:
        if self.kind not in ("ema", "swa"):
            raise ValueError(f"kind must be 'ema' or 'swa': got {self.kind!r}.")
        if self.start_fraction is not None and not 0 <= self.start_fraction < 1:
            raise ValueError(f"start_fraction must be in 0 to below 1: got {self.start_fraction}.")
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must be in 0 to below 1: got {self.decay}.")
        if not 0 < self.rate_factor <= 1:
            raise ValueError(f"rate_factor must be above 0, at most 1: got {self.rate_factor}.")
        check_count("every_steps", self.every_steps, least=1)
        check_count("annealing_steps", self.annealing_steps, least=0)

    def start_step(self, total: int) -> int:
        """Give the real steps of a run that pass before the average starts."""
        usual = 0.0 if self.kind == "ema" else 0.75
        share = usual if self.start_fraction is None else self.start_fraction
        return int(share * total)

    def new_share(self, n_averaged: int) -> float:
        """Give the weight of the newest weights in an average of so many earlier ones."""
        if self.kind == "swa" or n_averaged == 0:
            return 1 / (n_averaged + 1)
        return 1 - min(self.decay, (1 + n_averaged) / (10 + n_averaged))


def rate_factor(
    schedule: Schedule, averaging: Averaging | None, total: int
) -> Callable[[int], float]:
    """Join the main schedule and the one of SWA, which replaces it once SWA has started.

    Args:
        schedule: The main schedule.
        averaging: Only "swa" has a schedule.
        total: Real steps of the whole run.

    Returns:
        Factor of the learning rate by the number of real steps taken before.
    """
    swa = averaging if averaging is not None and averaging.kind == "swa" else None
    start = swa.start_step(total) if swa else 0

    def factor(step: int) -> float:
        if swa is None or step < start:
            return schedule.factor(step, total)
        progress = min((step - start) / swa.annealing_steps, 1.0) if swa.annealing_steps else 1.0
        return (1 - progress) * schedule.factor(start, total) + progress * swa.rate_factor

    return factor


class WeightAverage:
    """The average of a module's weights and running statistics, kept beside the module.

    Args:
        settings: Which average.

    Example:
        >>> layer, average = nn.Linear(1, 1), WeightAverage(Averaging("swa"))
        >>> for value in (1.0, 3.0):
        ...     _ = nn.init.constant_(layer.weight, value)
        ...     average.update(layer)
        >>> with average.applied(layer):
        ...     print(layer.weight.item())
        2.0
        >>> layer.weight.item()
        3.0
    """

    def __init__(self, settings: Averaging) -> None:
        self.settings = settings
        self.n_averaged = 0
        self._weights: dict[str, Tensor] = {}

    def follow(self, module: nn.Module, step: int, total: int) -> None:
        """Take in the weights after a real step, if this step is due.

        Args:
            module: Has just stepped.
            step: Real steps so far.
            total: Real steps of the whole run.
        """
        since = step - self.settings.start_step(total)
        if since > 0 and since % self.settings.every_steps == 0:
            self.update(module)

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take in the weights as they are now."""
        current = _averaged_tensors(module)
        if not self._weights:
            self._weights = {
                n: t.to(_WIDER.get(t.dtype, t.dtype), copy=True) for n, t in current.items()
            }
        else:
            share = self.settings.new_share(self.n_averaged)
            averages = [self._weights[name] for name in current]
            now = [t.to(a) for a, t in zip(averages, current.values(), strict=True)]
            torch._foreach_lerp_(averages, now, share)
        self.n_averaged += 1

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """Evaluate with the average in place of the trained weights, which come back after.

        Raises:
            RuntimeError: nothing has been averaged yet.
        """
        if self.n_averaged == 0:
            raise RuntimeError(
                "averaged weights exist only after a real step past the start of the average: "
                "got n_averaged=0. Evaluate the trained weights until then."
            )
        current = _averaged_tensors(module)
        trained = [tensor.detach().clone() for tensor in current.values()]
        with torch.no_grad():
            for name, tensor in current.items():
                tensor.copy_(self._weights[name])
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(list(current.values()), trained)

    def state_dict(self) -> dict[str, Any]:
        """Give the count and the average as plain data and tensors."""
        return {"n_averaged": self.n_averaged, "weights": dict(self._weights)}

    def load_state_dict(self, state: dict[str, Any], module: nn.Module) -> None:
        """Take the average up where `state_dict` left it.

        Raises:
            ValueError: the state is of a module with other parameters.
        """
        weights: dict[str, Tensor] = state["weights"]
        strangers = set(weights) ^ set(_averaged_tensors(module)) if weights else set()
        if strangers:
            raise ValueError(
                "an average must have the parameters of the module: got a difference in "
                f"{', '.join(sorted(strangers)[:5])}. Load it into the module that it was made of."
            )
        self.n_averaged = int(state["n_averaged"])
        self._weights = {name: tensor.clone() for name, tensor in weights.items()}


def _averaged_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Find what an average is made of; the statistics belong to the weights that made them."""
    statistics = running_statistics(module).items()
    return {
        **dict(module.named_parameters()),
        **{name: buffer for name, buffer in statistics if buffer.is_floating_point()},
    }
