"""Why a model does not learn: every cause that the doctor can name, in one table.

The order of the table is the order of the findings: a cause stands before what it brings about.
`docs/diagnosis.md` is made of the same table.
"""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "info"]


@dataclass(frozen=True)
class Code:
    """One cause, and how it is known.

    Args:
        name: what findings, logs and JSON call it.
        severity: "error" keeps the run from learning or its figures from being true; "warning"
            costs something; "info" is harmless and said so that nobody hunts for it.
        cause: what is wrong, in a sentence.
        evidence: what the doctor looks at, and where it draws the line.
        cure: what to do.
    """

    name: str
    severity: Severity
    cause: str
    evidence: str
    cure: str


_TABLE = (
    Code(
        "RANKS_DIVERGED",
        "error",
        "The processes of one run hold different weights: gradients were not exchanged.",
        "A few elements of every part of the model differ between the ranks, or the gate's vote "
        "found different gradient norms.",
        "Synchronise the last micro-batch of every accumulation window, and let no rank step by "
        "itself.",
    ),
    Code(
        "SCALER_STUCK",
        "error",
        "The loss overflows at any loss scale: the scale falls and falls, and nothing steps.",
        "20 back-offs of the scale in a row without a step, or a scale below 1.",
        "The overflow is in the model, not in the scale: compute the loss in float32, or train "
        "with bf16-mixed.",
    ),
    Code(
        "GATE_TOO_STRICT",
        "error",
        "A rule refuses gradients that could be stepped on, such as 'every group must be > 0'.",
        "More than half of the attempts refused although the norm of all gradients was finite and "
        "positive; without a gate's report, gradients of that kind and not one step.",
        "Gate on the norm of all gradients together: a zero-initialised head makes the gradient "
        "of what is before it exactly zero at first.",
    ),
    Code(
        "NOT_IN_OPTIMIZER",
        "error",
        "Trainable tensors that the loss uses belong to no optimiser.",
        "The tensors' identities against those of the optimisers.",
        "Build the optimiser after the last layer was made, or add a parameter group.",
    ),
    Code(
        "GROUP_FROZEN",
        "warning",
        "A whole part of the model has requires_grad off.",
        "Every tensor of the part says so.",
        "Switch it on again, or take this as said if the part is meant to be fixed.",
    ),
    Code(
        "GRAPH_DETACHED",
        "error",
        "A part of the model runs in the forward pass, and no gradient comes back to it.",
        "The graph of the loss does not reach a single tensor of the part in any of the first "
        "backward passes, while other parts are reached.",
        "Look for detach(), no_grad(), .item(), .numpy() or an argmax between that part and the "
        "loss.",
    ),
    Code(
        "NONFINITE_HIDDEN",
        "error",
        "The loss overflows, and something rewrites the gradients, so that nobody backs off.",
        "Gradients that a gate found finite, or that were stepped on and left finite weights, of a "
        "loss that was nan or inf.",
        "Remove nan_to_num and masked zeros from between backward and the step; veto the step "
        "instead.",
    ),
    Code(
        "INPUT_UNSCALED",
        "error",
        "What the first layer sees is constant, or of a size that no initialisation expects.",
        "Root mean square of the first layer's input above 1000 or below 1e-5, or all items of a "
        "batch equal.",
        "Normalise the inputs; if they are constant, look at the loader.",
    ),
    Code(
        "RATE_NOT_AS_ASKED",
        "warning",
        "The learning rate that was set is not the one that the optimiser has.",
        "The rate among the hyper-parameters (or given to the doctor) against the rates at which "
        "the parameter groups start.",
        "Find out which key configure_optimizers reads; a resumed optimiser brings its old rate. "
        "If the rate is scaled on purpose, give RunDoctor(rate=...) what is meant.",
    ),
    Code(
        "SCHEDULE_PER_EPOCH",
        "error",
        "A schedule that is laid out in steps is stepped once an epoch.",
        "Its horizon is of the order of all steps of the run, and it moves once an epoch.",
        'Return {"scheduler": ..., "interval": "step"}, or lay it out in epochs.',
    ),
    Code(
        "WARMUP_TOO_LONG",
        "error",
        "The warm-up is longer than the run: the learning rate never comes to its value.",
        "The schedule rises up to the last step of the run, and beyond.",
        "Shorten the warm-up to a few per cent of the steps, or let it follow the run's length.",
    ),
    Code(
        "STEPPED_NOT_MOVED",
        "error",
        "The optimiser steps, and the weights stay as they are.",
        "No element of any weight changed across the measured steps, or less than a tenth of "
        "them where weights are of half precision.",
        "Keep the weights in float32 (bf16-mixed instead of bf16-true), or raise a rate of zero.",
    ),
    Code(
        "RATE_TOO_HIGH",
        "error",
        "The learning rate throws the weights about.",
        "Steps of more than 5 % of the norm of the weights, or weights that grew tenfold, while "
        "the loss does not fall or bursts; steps of more than 10 % and weights that grew fivefold.",
        "Divide the rate by ten, and again until the loss falls; warm up; clip the gradient norm, "
        "if nothing does.",
    ),
    Code(
        "CLIP_ALWAYS",
        "warning",
        "The gradient is clipped at every step, to a small part of itself.",
        "Gradient norm more than ten times the clipping norm, at the first steps and in the "
        "median; gradients that grew on the way have another cause.",
        "Raise the clipping norm to about the median. SGD, with momentum or without, has learned "
        "at a rate smaller by that factor, so lower a rate that was found under this clipping; "
        "Adam and its kin, whose steps do not depend on the size of the gradient, hardly notice.",
    ),
    Code(
        "RATE_TOO_LOW",
        "error",
        "The learning rate is so small that the run cannot get anywhere.",
        "The largest step, taken as often as the run has steps, would move the weights by less "
        "than 3 %, and the loss does not fall.",
        "Raise the rate tenfold, and again.",
    ),
    Code(
        "INPUT_IGNORED",
        "error",
        "The predictions do not depend on the input.",
        "After the first steps the outputs of all items of a batch are equal, and the loss does "
        "not change if labels are dealt to other items.",
        "Look for a layer that is fed zeros, a dead activation, or a head that only has a bias.",
    ),
    Code(
        "LABELS_SHUFFLED",
        "error",
        "The labels do not belong to their inputs.",
        "The model depends on its input and has moved, and its loss is the same whichever item "
        "gets which label.",
        "Check that inputs and labels go through the same shuffle, filter and sort.",
    ),
    Code(
        "MOVED_WITHOUT_STEP",
        "error",
        "Something other than the optimiser writes the weights.",
        "A few elements of the weights differ between the end of one step and the beginning of "
        "the next.",
        "Look for callbacks that copy averaged weights in and not back, or load a checkpoint.",
    ),
    Code(
        "EVAL_WEIGHTS_DIFFER",
        "error",
        "Validation does not run on the trained weights, but on a copy that never changes.",
        "The weights that the layers had while a validation batch went through them.",
        "Update the average after every step, and evaluate the trained weights beside it.",
    ),
    Code(
        "BUFFER_NONFINITE",
        "error",
        "A buffer, such as a running mean, became nan or inf: evaluation gives nan.",
        "Every buffer that was finite at the start is looked at around every validation.",
        "Restore the buffers of a vetoed batch, as a step gate does; drop broken items earlier.",
    ),
    Code(
        "WEIGHTS_NONFINITE",
        "error",
        "Weights became nan or inf: a gradient that was not finite has been stepped on.",
        "A few elements of every part of the model.",
        "Put a step gate before the optimiser; go back to the last whole checkpoint.",
    ),
    Code(
        "VALIDATION_CONSTANT",
        "error",
        "Validation gives the same figures again and again although the weights move.",
        "All validation metrics equal to the last digit three times in a row.",
        "Look for cached outputs, a metric that is never reset, or a loader of nothing.",
    ),
    Code(
        "LOSS_TERM_ZERO",
        "warning",
        "A term of the loss is always exactly zero: it teaches nothing.",
        "Every value that was logged or returned under its name, over 20 batches and more.",
        "Look for a weight of zero, an empty mask, or a branch that is never taken.",
    ),
    Code(
        "MANY_VETOES",
        "warning",
        "Many batches are vetoed: their gradients are not finite.",
        "More than 5 % of at least 20 attempts.",
        "Find the items: metrics.jsonl has a row for every veto; check the loader for nan.",
    ),
    Code(
        "TRAIN_VAL_LEAK",
        "warning",
        "The same items are in training and in validation.",
        "Hashes of the items of both; more than 5 % of those of validation were trained on.",
        "Split by item before anything is copied or augmented.",
    ),
    Code(
        "DATA_STARVED",
        "warning",
        "The step waits for data longer than it computes.",
        "Median time from the end of a batch to the start of the next, above that of a step.",
        "More workers, less work per item, or data made on the device.",
    ),
    Code(
        "MEMORY_GROWS",
        "warning",
        "Something keeps the graphs of old losses, so that memory grows with every step.",
        "Graphs of losses that are still alive many steps later; resident memory.",
        "Keep loss.detach() or loss.item(), not loss.",
    ),
    Code(
        "ZERO_INIT_HEAD",
        "info",
        "The last part starts at zero, so that the gradient of what is before it is zero at first.",
        "Gradient norm of zero in a part that the graph reaches, and a later part whose weights "
        "are all zero, at the first step.",
        "Nothing: it is harmless, and gone after the first step.",
    ),
)

CODES: dict[str, Code] = {code.name: code for code in _TABLE}
"""Name -> code, causes first."""

RANKS: dict[str, int] = {name: rank for rank, name in enumerate(CODES)}
"""Name -> place among findings."""
