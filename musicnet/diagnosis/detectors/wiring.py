"""Detectors of how the model hangs together: what trains, what the loss reaches, who writes."""

from collections.abc import Iterator
from itertools import pairwise

from musicnet.diagnosis.evidence import Part, RunEvidence
from musicnet.diagnosis.findings import Finding

FEWEST_TRACES = 8


def not_in_optimizer(seen: RunEvidence) -> Iterator[Finding]:
    """Trainable tensors that the loss uses and no optimiser has."""
    for part in seen.wiring.parts:
        if part.strays:
            outside = seen.wiring.n_outside
            extra = f" {outside} of the optimiser's are not in the model." if outside else ""
            yield Finding(
                "NOT_IN_OPTIMIZER",
                f"{len(part.strays)} trainable tensors are in no optimiser: "
                f"{_few(part.strays)}.{extra}",
                where=part.name,
                confidence=1.0,
            )


def group_frozen(seen: RunEvidence) -> Iterator[Finding]:
    """A part that cannot train, beside one that can."""
    parts = seen.wiring.parts
    if not any(part.n_trainable for part in parts):
        parts = parts[:1]
    for part in parts:
        if part.n_tensors and not part.n_trainable and part.was_called is not False:
            yield Finding(
                "GROUP_FROZEN",
                f"none of its {part.n_tensors} tensors has requires_grad.",
                where=part.name,
                confidence=0.9,
            )


def graph_detached(seen: RunEvidence) -> Iterator[Finding]:
    """A part that ran, could train, and that no loss reaches."""
    wiring = seen.wiring
    if wiring.n_traced < FEWEST_TRACES:
        return
    for part in wiring.parts:
        if part.n_trainable and part.n_reached == 0 and part.was_called:
            yield Finding(
                "GRAPH_DETACHED",
                f"no gradient reached it: 0 of {part.n_trainable} tensors in the graphs of "
                f"{wiring.n_traced} losses, though its layers ran.",
                where=part.name,
                confidence=0.95,
            )


def zero_init_head(seen: RunEvidence) -> Iterator[Finding]:
    """A head that starts at zero, and a part before it whose gradient is zero for that reason."""
    parts = seen.wiring.parts
    for before, after in pairwise(parts):
        if _is_still(before) and after.first_norm == 0.0 and (after.first_gradient or 0.0) > 0.0:
            yield Finding(
                "ZERO_INIT_HEAD",
                f"its weights are zero, so that the gradient of {before.name} was zero at the "
                f"first step; its own was {after.first_gradient:.3g}.",
                where=after.name,
                confidence=0.95,
            )


def moved_without_step(seen: RunEvidence) -> Iterator[Finding]:
    """Weights that changed between two steps."""
    motion = seen.motion
    if motion.foreign:
        yield Finding(
            "MOVED_WITHOUT_STEP",
            f"weights changed {motion.foreign} times without a step, first after step "
            f"{motion.foreign_step}.",
            where="weights",
            confidence=0.95,
        )


def weights_nonfinite(seen: RunEvidence) -> Iterator[Finding]:
    """Weights that are lost."""
    for name in seen.motion.nonfinite:
        yield Finding(
            "WEIGHTS_NONFINITE",
            f"weights are nan or inf by step {seen.length.steps}.",
            where=name,
            confidence=1.0,
        )


def buffer_nonfinite(seen: RunEvidence) -> Iterator[Finding]:
    """Buffers that are lost."""
    validation = seen.validation
    if validation.nonfinite_buffers:
        yield Finding(
            "BUFFER_NONFINITE",
            f"nan or inf since step {validation.buffer_step} at the latest, in "
            f"{len(validation.nonfinite_buffers)} buffers: {_few(validation.nonfinite_buffers)}.",
            where=validation.nonfinite_buffers[0],
            confidence=1.0,
        )


def _is_still(part: Part) -> bool:
    return part.n_reached > 0 and part.first_gradient == 0.0


def _few(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
