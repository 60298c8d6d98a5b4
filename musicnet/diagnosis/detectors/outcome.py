"""Detectors of what goes in and what comes out: inputs, labels, loss terms, validation."""

from collections.abc import Iterator

from musicnet.diagnosis.evidence import Deal, RunEvidence
from musicnet.diagnosis.findings import Finding

LARGEST_RMS = 1e3
SMALLEST_RMS = 1e-5
FEWEST_ITEMS = 4
EQUAL_OUTPUTS = 1e-6
EQUAL_LOSSES = 1e-6
STEPS_BEFORE_INPUT = 10
STEPS_BEFORE_LABELS = 40
LABELS_SHARE_OF_RUN = 20
CHANCE = 4.0
CHANCE_SHARE = 0.1
EQUAL_VALIDATIONS = 3
ZERO_BATCHES = 20
LEAK_SHARE = 0.05


def input_unscaled(seen: RunEvidence) -> Iterator[Finding]:
    """Inputs of a size that no initialisation expects, or without any content."""
    inputs = seen.inputs
    if inputs.is_constant and inputs.n_items >= FEWEST_ITEMS:
        yield Finding(
            "INPUT_UNSCALED",
            f"all {inputs.n_items} items of a batch are equal to it.",
            where=inputs.layer,
            confidence=0.95,
        )
        return
    rms = inputs.rms or 0.0
    if not inputs.is_normalised and (rms > LARGEST_RMS or 0.0 < rms < SMALLEST_RMS):
        yield Finding(
            "INPUT_UNSCALED",
            f"the root mean square of what it sees is {rms:.3g}.",
            where=inputs.layer,
            confidence=0.85,
        )


def input_ignored(seen: RunEvidence) -> Iterator[Finding]:
    """The same prediction for every item."""
    if not seen.deals or seen.inputs.is_constant:
        return
    deal = seen.deals[-1]
    if deal.step >= STEPS_BEFORE_INPUT and _ignores_input(deal):
        shown = "" if deal.output_spread is None else f" (spread {deal.output_spread:.1g})"
        yield Finding(
            "INPUT_IGNORED",
            f"predictions are the same for {deal.n_items} different inputs{shown}; the loss is "
            f"{deal.loss:.6g}, and {deal.dealt:.6g} with labels dealt to other items.",
            where="model",
            confidence=0.95,
        )


def labels_shuffled(seen: RunEvidence) -> Iterator[Finding]:
    """Predictions that have nothing to do with the labels."""
    motion = seen.motion
    # a hard task takes its time: the longer the run, the later it is judged
    earliest = max(STEPS_BEFORE_LABELS, (seen.length.planned_steps or 0) // LABELS_SHARE_OF_RUN)
    late = [deal for deal in seen.deals if deal.step >= earliest]
    late = [deal for deal in late if deal.split == late[-1].split][-2:]
    if len(late) < 2 or any(_ignores_input(deal) for deal in late):
        return
    way = (motion.ratio_median or 0.0) * seen.length.steps
    if way > 0.02 and all(map(_is_chance, late)):
        deal = late[-1]
        yield Finding(
            "LABELS_SHUFFLED",
            f"after {deal.step} steps the loss on {deal.n_items} {deal.split} items is "
            f"{deal.loss:.5g}, and {deal.dealt:.5g} with labels dealt to other items (spread "
            f"{deal.spread:.2g}): no better than chance.",
            where="labels",
            confidence=0.8,
        )


def eval_weights_differ(seen: RunEvidence) -> Iterator[Finding]:
    """Validation on weights that stand still."""
    validation = seen.validation
    if validation.stuck and seen.length.steps:
        yield Finding(
            "EVAL_WEIGHTS_DIFFER",
            f"the last {validation.on_other} validations ran on weights that are not the trained "
            f"ones and have not changed: those of {validation.other}.",
            where=validation.other,
            confidence=0.95,
        )


def validation_constant(seen: RunEvidence) -> Iterator[Finding]:
    """The same figures again and again."""
    validation = seen.validation
    if validation.equal >= EQUAL_VALIDATIONS:
        yield Finding(
            "VALIDATION_CONSTANT",
            f"{validation.figure} {validation.equal} times in a row although weights moved.",
            where=validation.figure.partition(" ")[0],
            confidence=0.9,
        )


def loss_term_zero(seen: RunEvidence) -> Iterator[Finding]:
    """A term that was never anything but zero."""
    for term in seen.losses.zero_terms:
        if term.count >= ZERO_BATCHES:
            yield Finding(
                "LOSS_TERM_ZERO",
                f"exactly 0 over {term.count} batches.",
                where=term.name,
                confidence=0.9,
            )


def train_val_leak(seen: RunEvidence) -> Iterator[Finding]:
    """Validation on items that were trained on, though nobody said so."""
    validation = seen.validation
    if validation.shares_by_intent or validation.n_items < FEWEST_ITEMS:
        return
    if validation.n_shared > max(LEAK_SHARE * validation.n_items, 1):
        yield Finding(
            "TRAIN_VAL_LEAK",
            f"{validation.n_shared} of {validation.n_items} validation items were trained on.",
            where="validation data",
            confidence=0.95,
        )


def _ignores_input(deal: Deal) -> bool:
    if deal.n_items < FEWEST_ITEMS:
        return False
    scale = max(abs(deal.loss), 1e-12)
    same_loss = abs(deal.dealt - deal.loss) <= EQUAL_LOSSES * scale and deal.spread <= (
        EQUAL_LOSSES * scale
    )
    return same_loss and (deal.output_spread is None or deal.output_spread < EQUAL_OUTPUTS)


def _is_chance(deal: Deal) -> bool:
    """Whether the loss is one that any deal of the labels could have."""
    gain = deal.dealt - deal.loss
    return gain < CHANCE * deal.spread and gain < CHANCE_SHARE * abs(deal.loss)
