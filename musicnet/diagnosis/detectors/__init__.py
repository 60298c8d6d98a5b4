"""One function per code: the evidence of a run comes in, findings go out."""

from collections.abc import Callable, Iterable

from musicnet.diagnosis.detectors import outcome, rates, resources, stepping, wiring
from musicnet.diagnosis.evidence import RunEvidence
from musicnet.diagnosis.findings import Finding

Detector = Callable[[RunEvidence], Iterable[Finding]]

DETECTORS: dict[str, Detector] = {
    "RANKS_DIVERGED": stepping.ranks_diverged,
    "SCALER_STUCK": stepping.scaler_stuck,
    "GATE_TOO_STRICT": stepping.gate_too_strict,
    "NOT_IN_OPTIMIZER": wiring.not_in_optimizer,
    "GROUP_FROZEN": wiring.group_frozen,
    "GRAPH_DETACHED": wiring.graph_detached,
    "NONFINITE_HIDDEN": stepping.nonfinite_hidden,
    "INPUT_UNSCALED": outcome.input_unscaled,
    "RATE_NOT_AS_ASKED": rates.rate_not_as_asked,
    "SCHEDULE_PER_EPOCH": rates.schedule_per_epoch,
    "WARMUP_TOO_LONG": rates.warmup_too_long,
    "STEPPED_NOT_MOVED": rates.stepped_not_moved,
    "RATE_TOO_HIGH": rates.rate_too_high,
    "CLIP_ALWAYS": stepping.clip_always,
    "RATE_TOO_LOW": rates.rate_too_low,
    "INPUT_IGNORED": outcome.input_ignored,
    "LABELS_SHUFFLED": outcome.labels_shuffled,
    "MOVED_WITHOUT_STEP": wiring.moved_without_step,
    "EVAL_WEIGHTS_DIFFER": outcome.eval_weights_differ,
    "BUFFER_NONFINITE": wiring.buffer_nonfinite,
    "WEIGHTS_NONFINITE": wiring.weights_nonfinite,
    "VALIDATION_CONSTANT": outcome.validation_constant,
    "LOSS_TERM_ZERO": outcome.loss_term_zero,
    "MANY_VETOES": stepping.many_vetoes,
    "TRAIN_VAL_LEAK": outcome.train_val_leak,
    "DATA_STARVED": resources.data_starved,
    "MEMORY_GROWS": resources.memory_grows,
    "ZERO_INIT_HEAD": wiring.zero_init_head,
}
"""Code -> its detector, in the order of the table."""
