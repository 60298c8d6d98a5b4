"""Detectors of what stands between gradients and steps: gates, scalers, clipping, ranks."""

from collections.abc import Iterator

from musicnet.diagnosis.evidence import RunEvidence
from musicnet.diagnosis.findings import Finding

FEWEST_ATTEMPTS = 10
FEWEST_FOR_SHARE = 20
FEWEST_NORMS = 6
MANY_BATCHES = 100
STRICT_SHARE = 0.5
VETO_SHARE = 0.05
STUCK_BACK_OFFS = 20
CLIP_RATIO = 10.0


def ranks_diverged(seen: RunEvidence) -> Iterator[Finding]:
    """The processes disagree about weights or gradients."""
    ranks = seen.processes
    if ranks.quarrel:
        yield Finding("RANKS_DIVERGED", ranks.quarrel, confidence=0.95)
    elif ranks.spread > 0.0:
        yield Finding(
            "RANKS_DIVERGED",
            f"weights of {ranks.n} ranks differ by up to {ranks.spread:.3g} "
            f"after {seen.length.steps} steps.",
            confidence=1.0,
        )


def scaler_stuck(seen: RunEvidence) -> Iterator[Finding]:
    """The loss scale only falls."""
    gating = seen.gating
    if gating.scale is None:
        return
    if gating.back_offs >= STUCK_BACK_OFFS or gating.scale < 1.0:
        yield Finding(
            "SCALER_STUCK",
            f"loss scale {gating.scale:g}, from {gating.scale_first or gating.scale:g}, after "
            f"{gating.back_offs} back-offs in a row without a step.",
            where="loss scaler",
            confidence=0.95,
        )


def gate_too_strict(seen: RunEvidence) -> Iterator[Finding]:
    """Gradients are refused that could be stepped on."""
    gating, length = seen.gating, seen.length
    share = gating.refused_finite / max(length.attempts, 1)
    if length.attempts >= FEWEST_ATTEMPTS and share > STRICT_SHARE:
        groups = ", ".join(gating.empty_groups)
        cause = f" zero in group {groups};" if groups else ""
        yield Finding(
            "GATE_TOO_STRICT",
            f"{gating.refused_finite} of {length.attempts} steps vetoed although the norm was "
            f"{_shown(gating.refused_norm)};{cause} the optimiser has stepped {length.steps} "
            "times.",
            where="gate",
            confidence=0.95,
        )
    elif (
        length.attempts == 0
        and length.steps == 0
        and gating.unused_gradients
        # a loop of somebody's own may accumulate over many batches
        and (
            length.batches >= MANY_BATCHES or (length.epochs and length.batches >= FEWEST_FOR_SHARE)
        )
    ):
        yield Finding(
            "GATE_TOO_STRICT",
            f"{length.batches} batches and not one step, though the gradients were finite and "
            f"positive in all {gating.unused_gradients} that were looked at (norm "
            f"{_shown(gating.refused_norm)}).",
            where="the rule in training_step",
            confidence=0.8,
        )


def nonfinite_hidden(seen: RunEvidence) -> Iterator[Finding]:
    """Steps on finite gradients of a broken loss."""
    if seen.gating.hidden:
        yield Finding(
            "NONFINITE_HIDDEN",
            f"the gradients were finite in {seen.gating.hidden} of {seen.losses.n_nonfinite} "
            f"batches with a loss of nan or inf.",
            where="between backward and the step",
            confidence=0.95,
        )


def clip_always(seen: RunEvidence) -> Iterator[Finding]:
    """The gradient is cut to a small part of itself, from the first step on."""
    gating = seen.gating
    # not before a rate that is too high could be seen, which explains what is clipped
    enough = gating.clip_samples >= FEWEST_NORMS and seen.length.steps >= FEWEST_ATTEMPTS
    # gradients that grew on the way were not cut always: a rate, say, has thrown the weights about
    was_so = gating.clip_first is None or gating.clip_first > CLIP_RATIO
    if enough and was_so and gating.clip_ratio is not None and gating.clip_ratio > CLIP_RATIO:
        median = gating.clip_ratio * (gating.max_norm or 1.0)
        yield Finding(
            "CLIP_ALWAYS",
            f"median gradient norm {median:.3g}, clipping norm {_shown(gating.max_norm)}: the "
            f"steps are cut {gating.clip_ratio:.0f} times.",
            where="clipping norm",
        )


def many_vetoes(seen: RunEvidence) -> Iterator[Finding]:
    """Too many batches are lost."""
    gating, length = seen.gating, seen.length
    lost = sum(veto.count for veto in gating.vetoes if veto.name in ("nonfinite", "other_rank"))
    if length.attempts >= FEWEST_FOR_SHARE and lost > max(VETO_SHARE * length.attempts, 2):
        reasons = ", ".join(f"{veto.name} {veto.count}" for veto in gating.vetoes)
        yield Finding(
            "MANY_VETOES",
            f"{100 * lost / length.attempts:.0f} % of {length.attempts} attempts vetoed "
            f"({reasons}).",
            where="training batches",
            confidence=0.95,
        )


def _shown(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"
