"""Detectors of learning rates: not as asked, not as planned, too high, too low, without effect."""

import math
from collections.abc import Iterator

from musicnet.diagnosis.evidence import RunEvidence
from musicnet.diagnosis.findings import Finding

FEWEST_STEPS = 10
HIGH_RATIO = 0.05
GROWTH = 10.0
LEAST_FALL = 0.1
BURST = 2.0
BURST_GROWTH = 3.0
THROWN, THROWN_GROWTH = 0.1, 5.0
LOW_WAY = 0.03
LOW_FALL = 0.02
STILL_SHARE = 0.1


def rate_not_as_asked(seen: RunEvidence) -> Iterator[Finding]:
    """The rate that was set is none of those that are used."""
    rates = seen.rates
    if rates.asked is None or not rates.used:
        return
    if not any(math.isclose(rates.asked, used, rel_tol=1e-6) for used in rates.used):
        used = ", ".join(f"{rate:g}" for rate in rates.used)
        yield Finding(
            "RATE_NOT_AS_ASKED",
            f"{rates.asked:g} was asked for, the parameter groups start at {used}.",
            where=rates.asked_as,
            confidence=0.8,
        )


def schedule_per_epoch(seen: RunEvidence) -> Iterator[Finding]:
    """A schedule in steps that moves once an epoch."""
    rates, planned = seen.rates, seen.length.planned_steps
    if rates.per_epoch_horizon is not None:
        yield Finding(
            "SCHEDULE_PER_EPOCH",
            f"the schedule has moved {rates.per_epoch_moves} times in {seen.length.steps} steps; "
            f"it settles after {rates.per_epoch_horizon} moves, and the run has "
            f"{planned if planned is not None else 'endless'} steps.",
            where="lr_scheduler.interval",
            confidence=0.9,
        )


def warmup_too_long(seen: RunEvidence) -> Iterator[Finding]:
    """A rate that still rises when the run ends."""
    rates = seen.rates
    if rates.rises_to_end:
        factor = "" if rates.last_factor is None else f", at {rates.last_factor:.0%} of its value"
        yield Finding(
            "WARMUP_TOO_LONG",
            f"the learning rate still rises at the last of {seen.length.planned_steps} "
            f"steps{factor}.",
            where="schedule",
            confidence=0.9,
        )


def stepped_not_moved(seen: RunEvidence) -> Iterator[Finding]:
    """Steps that change no weight."""
    motion = seen.motion
    if motion.nonfinite or motion.n_still < 2:
        half = motion.is_half and motion.n_measured >= 2 and motion.moved_share is not None
        if not half or (motion.moved_share or 0.0) > STILL_SHARE:
            return
    share = 100.0 * (motion.moved_share or 0.0)
    kind = "half precision" if motion.is_half else "float32"
    yield Finding(
        "STEPPED_NOT_MOVED",
        f"{motion.n_measured} steps measured, and the last changed {share:.2g} % of the weights, "
        f"which are of {kind}; rates {', '.join(f'{rate:g}' for rate in seen.rates.used)}.",
        where="weights",
        confidence=0.95,
    )


def rate_too_high(seen: RunEvidence) -> Iterator[Finding]:
    """Steps that are large beside the weights, for nothing."""
    motion, losses = seen.motion, seen.losses
    if seen.length.steps < FEWEST_STEPS or losses.first is None:
        return
    is_large = (motion.ratio_median or 0.0) > HIGH_RATIO or (motion.growth or 0.0) > GROWTH
    has_burst = (losses.highest or 0.0) > BURST * losses.first or losses.last is None
    was_large = (motion.ratio_largest or 0.0) > HIGH_RATIO and has_burst
    has_blown_up = is_large and has_burst and (motion.growth or 0.0) > BURST_GROWTH
    is_thrown = (motion.ratio_median or 0.0) > THROWN and (motion.growth or 0.0) > THROWN_GROWTH
    if is_thrown or has_blown_up or ((is_large or was_large) and _has_not_fallen(seen)):
        yield Finding(
            "RATE_TOO_HIGH",
            f"a step moves the weights by {_percent(motion.ratio_median)} of their norm "
            f"(at most {_percent(motion.ratio_largest)}), their norm is {motion.growth or 1.0:.3g} "
            f"times the first; loss {losses.first:.4g} at first, up to {_loss(losses.highest)}, "
            f"{_loss(losses.last)} now.",
            where="learning rate",
            confidence=0.85,
        )


def rate_too_low(seen: RunEvidence) -> Iterator[Finding]:
    """Steps that lead nowhere within the run."""
    motion, losses, length = seen.motion, seen.losses, seen.length
    if length.steps < 2 * FEWEST_STEPS or motion.n_measured < 3 or length.planned_steps is None:
        return
    if motion.ratio_largest is None or losses.first is None or losses.last is None:
        return
    way = motion.ratio_largest * length.planned_steps
    if 0.0 < way < LOW_WAY and (losses.fall or 0.0) < LOW_FALL:
        yield Finding(
            "RATE_TOO_LOW",
            f"the largest step moved the weights by {_percent(motion.ratio_largest)} of their "
            f"norm: {_percent(way)} over all {length.planned_steps} steps; loss "
            f"{losses.first:.4g} at first, {losses.last:.4g} now.",
            where="learning rate",
            confidence=0.85,
        )


def _has_not_fallen(seen: RunEvidence) -> bool:
    losses = seen.losses
    return losses.last is None or losses.fall is None or losses.fall < LEAST_FALL


def _percent(share: float | None) -> str:
    if share is None:
        return "an unknown share"
    return f"{100 * share:.0f} %" if share > 0.1 else f"{100 * share:.2g} %"


def _loss(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"
