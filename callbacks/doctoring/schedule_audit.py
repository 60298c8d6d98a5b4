"""Learning rates before they are used: what was asked for, and where the schedule leads."""

import copy
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from musicnet.diagnosis.evidence import Rates

RATE_KEYS = ("lr", "learning_rate")
MOST_SIMULATED = 2000
POINTS = 48
SETTLED = 0.95
FEWEST_STEPS = 20


def asked_rates(tree: Any, path: str = "hparams") -> list[tuple[str, float]]:
    """Every learning rate among hyper-parameters, with its key.

    Example:
        >>> asked_rates({"optimizer": {"init_args": {"lr": 0.1}}, "width": 3})
        [('hparams.optimizer.init_args.lr', 0.1)]
    """
    found: list[tuple[str, float]] = []
    for key, value in tree.items() if isinstance(tree, Mapping) else ():
        if key in RATE_KEYS and isinstance(value, int | float) and not isinstance(value, bool):
            found.append((f"{path}.{key}", float(value)))
        else:
            found += asked_rates(value, f"{path}.{key}")
    return found


def used_rates(optimizers: Sequence[Optimizer]) -> tuple[float, ...]:
    """The rates at which the groups start, the peaks of schedules that know one included."""
    found: list[float] = []
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            names = ("initial_lr", "max_lr") if "initial_lr" in group else ("lr",)
            found += [float(group[name]) for name in names if name in group]
    return tuple(dict.fromkeys(rate for rate in found if math.isfinite(rate)))


def audit(
    optimizers: Sequence[Optimizer],
    schedulers: Sequence[tuple[LRScheduler, str | None]],
    planned: int | None,
    epochs: int | None,
    asked: Sequence[tuple[str, float]],
) -> Rates:
    """Look where the schedules lead, before the run takes them there.

    Args:
        optimizers: raw.
        schedulers: each with "step" or "epoch", or None where its user steps it.
        planned: steps of the run.
        epochs: of the run.
        asked: rates that were set, with their keys.

    Returns:
        What is known at the start.
    """
    used = used_rates(optimizers)
    wanted = [one for one in asked if any(math.isclose(one[1], u, rel_tol=1e-6) for u in used)]
    key, rate = next(iter([*wanted, *asked]), ("", None))
    rises, factor, horizon = False, None, None
    for scheduler, interval in schedulers:
        if planned is None or planned < FEWEST_STEPS or interval is None:
            continue
        if interval == "epoch" and epochs is not None:
            horizon = horizon or per_epoch_horizon(scheduler, planned, epochs)
        length = planned if interval == "step" else epochs
        if length is not None and horizon is None and length >= FEWEST_STEPS:
            path = factors(scheduler, [*(i * (length - 1) // 8 for i in range(9)), 2 * length])
            if path is not None and _rises_to_end(path):
                rises, factor = True, path[-2]
    return Rates(
        asked=rate,
        asked_as=key,
        used=used,
        rises_to_end=rises,
        last_factor=factor,
        per_epoch_horizon=horizon,
    )


def per_epoch_horizon(scheduler: LRScheduler, planned: int, epochs: int) -> int | None:
    """Moves after which a schedule has settled, if that is of the order of all steps.

    Args:
        scheduler: moves once an epoch.
        planned: steps of the run.
        epochs: of the run.

    Returns:
        None if it may well be meant so.
    """
    horizon = _own_horizon(scheduler)
    if horizon is None and isinstance(scheduler, LambdaLR):
        places = sorted({round(i * 2 * planned / POINTS) for i in range(POINTS + 1)} | {epochs})
        path = factors(scheduler, places)
        if path is None:
            return None
        way = [abs(b - a) for a, b in pairwise(path)]
        total = sum(way)
        if total == 0.0 or sum(way[: places.index(epochs)]) > 0.5 * total:
            return None
        so_far = 0.0
        for place, part in zip(places[1:], way, strict=True):
            so_far += part
            if so_far >= SETTLED * total:
                horizon = place
                break
    is_of_steps = horizon is not None and horizon >= 0.3 * planned and horizon > 4 * epochs
    return horizon if is_of_steps else None


def factors(scheduler: LRScheduler, places: Sequence[int]) -> list[float] | None:
    """The rate of the first group at these moves, over its base; None if it cannot be foreseen."""
    if isinstance(scheduler, ReduceLROnPlateau):
        return None
    try:
        if isinstance(scheduler, LambdaLR):
            return [float(scheduler.lr_lambdas[0](place)) for place in places]
        return _simulated(scheduler, places)
    except Exception:  # a schedule of somebody's own may do anything
        return None


def _simulated(scheduler: LRScheduler, places: Sequence[int]) -> list[float] | None:
    """Step a copy that drives nothing; a OneCycleLR has an end and stays there."""
    if max(places) > 4 * MOST_SIMULATED:
        return None
    real = scheduler.optimizer
    groups = []
    for group in real.param_groups:
        numbers = {key: value for key, value in group.items() if key != "params"}
        groups.append({**copy.deepcopy(numbers), "params": [torch.nn.Parameter(torch.zeros(0))]})
    stand_in = SGD(groups, lr=0.1)
    twin = copy.deepcopy(scheduler, memo={id(real): stand_in})
    base = float(groups[0].get("max_lr", groups[0].get("initial_lr", groups[0]["lr"]))) or 1.0
    rates = [float(stand_in.param_groups[0]["lr"]) / base]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(max(places)):
            try:
                twin.step()
            except ValueError:
                break
            rates.append(float(stand_in.param_groups[0]["lr"]) / base)
    return [rates[min(place, len(rates) - 1)] for place in places]


def _own_horizon(scheduler: LRScheduler) -> int | None:
    """The moves that a schedule of torch is laid out for, by its own word."""
    for name in ("T_max", "total_steps", "total_iters"):
        value = getattr(scheduler, name, None)
        if isinstance(value, int):
            return value
    milestones = getattr(scheduler, "_milestones", None) or getattr(scheduler, "milestones", None)
    return max(map(int, milestones)) if milestones else None


def _rises_to_end(path: Sequence[float]) -> bool:
    """Whether the factors of a whole run, and one of beyond it, only rise."""
    *run, beyond = path
    rises = all(a <= b for a, b in pairwise(run)) and run[0] < run[-1]
    return rises and (run[-1] < 0.9 or beyond > 1.02 * run[-1])


def with_moves(rates: Rates, moves: int) -> Rates:
    """The audit with what schedulers have moved by now."""
    return replace(rates, per_epoch_moves=max(moves, 0))
