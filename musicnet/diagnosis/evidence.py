"""What was seen of a run, as plain numbers: the record that the detectors read.

A callback fills it while the run goes on, or a reader from the log that a run left. `None` and
empty stand for what was not seen; numbers that are not finite are counted, never kept, so that
every record can be written as JSON and read back.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Length:
    """How far the run is.

    Args:
        batches: training batches so far.
        steps: optimiser steps so far.
        attempts: times that a gate or a loss scaler was asked; 0 without either.
        epochs: epochs that ended.
        planned_steps: steps of the whole run; None if it has no end.
    """

    batches: int = 0
    steps: int = 0
    attempts: int = 0
    epochs: int = 0
    planned_steps: int | None = None


@dataclass(frozen=True)
class Tally:
    """How often something was seen, by its name."""

    name: str
    count: int


@dataclass(frozen=True)
class Gating:
    """What stood between gradients and steps.

    Args:
        vetoes: attempts that did not step, by reason.
        refused_finite: vetoes although the norm was finite and positive.
        refused_norm: the norm at the last of those.
        empty_groups: groups whose norm was zero then.
        unused_gradients: batches that left a finite, positive gradient in a run without any step.
        clip_ratio: median of the gradient norm over the clipping norm; None if nothing clips.
        clip_samples: steps that the median is of.
        clip_first: the same ratio at the first steps, before the weights have gone anywhere.
        max_norm: the clipping norm.
        scale: last loss scale; None without a scaler.
        scale_first: first loss scale.
        back_offs: most back-offs of the scale in a row without a step.
        hidden: steps on finite gradients of a loss that was not.
    """

    vetoes: tuple[Tally, ...] = ()
    refused_finite: int = 0
    refused_norm: float | None = None
    empty_groups: tuple[str, ...] = ()
    unused_gradients: int = 0
    clip_ratio: float | None = None
    clip_samples: int = 0
    clip_first: float | None = None
    max_norm: float | None = None
    scale: float | None = None
    scale_first: float | None = None
    back_offs: int = 0
    hidden: int = 0

    @property
    def n_vetoes(self) -> int:
        """Of all reasons."""
        return sum(veto.count for veto in self.vetoes)


@dataclass(frozen=True)
class Part:
    """One part of the model: a submodule that has weights.

    Args:
        name: of the submodule.
        n_tensors: parameters.
        n_trainable: those with requires_grad.
        n_reached: trainable ones that the graph of some loss reached.
        strays: trainable, reached, and in no optimiser.
        was_called: whether its layers ran in a training batch; None if that was not seen.
        first_gradient: norm of its gradient at the first look; None if it had none.
        first_norm: norm of its weights then.
    """

    name: str
    n_tensors: int
    n_trainable: int
    n_reached: int = 0
    strays: tuple[str, ...] = ()
    was_called: bool | None = None
    first_gradient: float | None = None
    first_norm: float | None = None


@dataclass(frozen=True)
class Wiring:
    """The parts of the model in the order of the forward pass, and how many losses were traced."""

    parts: tuple[Part, ...] = ()
    n_traced: int = 0
    n_outside: int = 0
    """Tensors that an optimiser has and the model has not."""


@dataclass(frozen=True)
class Motion:
    """How the weights moved, over the steps that were measured.

    Args:
        n_measured: steps measured.
        n_still: how many of the last ones in a row moved nothing.
        moved_share: share of the elements that the last measured step changed.
        is_half: whether weights are of half precision.
        ratio_largest: largest norm of a step over the norm of the weights.
        ratio_median: median of the same.
        growth: norm of the weights over what it was at first.
        foreign: times that weights changed between two steps.
        foreign_step: step after which that was first seen.
        nonfinite: parts with weights that are not finite.
    """

    n_measured: int = 0
    n_still: int = 0
    moved_share: float | None = None
    is_half: bool = False
    ratio_largest: float | None = None
    ratio_median: float | None = None
    growth: float | None = None
    foreign: int = 0
    foreign_step: int = 0
    nonfinite: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rates:
    """Learning rates: asked for, used, planned.

    Args:
        asked: the rate that was set; None if nobody said.
        asked_as: where it was set.
        used: at which the parameter groups start.
        rises_to_end: the schedule still rises at the last step of the run and beyond.
        last_factor: what it comes to at that step.
        per_epoch_horizon: steps until a schedule that moves once an epoch has settled.
        per_epoch_moves: how often it had moved when that was seen.
    """

    asked: float | None = None
    asked_as: str = ""
    used: tuple[float, ...] = ()
    rises_to_end: bool = False
    last_factor: float | None = None
    per_epoch_horizon: int | None = None
    per_epoch_moves: int = 0


@dataclass(frozen=True)
class Losses:
    """The training loss.

    As backward got it, batch by batch; where the objective has changed on the way, so that its
    figures cannot be compared, as the module logged it under one name, epoch by epoch; the first
    batches then in the measure of the log.

    Args:
        n: losses seen.
        n_nonfinite: those that were nan or inf.
        first: median of the first three that are finite.
        last: median of the last fifth; None if the last are not finite.
        highest: of the medians of five in a row: one batch may be an odd one.
        zero_terms: terms that were exactly zero every time, with the batches that they cover.
        val_first: validation loss before the first step, or the first seen.
        val_last: the last one.
        key: under which first, last and highest were logged; empty for what went backward.
        val_key: the name of the validation loss.
    """

    n: int = 0
    n_nonfinite: int = 0
    first: float | None = None
    last: float | None = None
    highest: float | None = None
    zero_terms: tuple[Tally, ...] = ()
    val_first: float | None = None
    val_last: float | None = None
    key: str = ""
    val_key: str = ""

    @property
    def fall(self) -> float | None:
        """Share of the first loss that is gone, of training or of validation, whichever fell more.

        Example:
            >>> Losses(first=2.0, last=1.9, val_first=2.0, val_last=0.5).fall
            0.75
        """
        pairs = ((self.first, self.last), (self.val_first, self.val_last))
        falls = [(first - last) / abs(first) for first, last in pairs if first and last is not None]
        return max(falls, default=None)


@dataclass(frozen=True)
class Inputs:
    """What the first layer with weights saw in the first batches.

    Args:
        layer: its name.
        rms: root mean square.
        is_constant: all items of every batch were equal.
        is_normalised: the layer itself normalises.
        n_items: items of a batch.
    """

    layer: str = ""
    rms: float | None = None
    is_constant: bool = False
    is_normalised: bool = False
    n_items: int = 0


@dataclass(frozen=True)
class Deal:
    """One batch evaluated as it is, and with its labels dealt to other items.

    Args:
        step: steps at that time.
        split: "train" or "val".
        loss: as it is.
        dealt: mean over several deals.
        spread: standard deviation over them.
        output_spread: spread of the outputs over the items, over their own size; None if the
            outputs were not seen.
        n_items: of the batch.
    """

    step: int
    split: str
    loss: float
    dealt: float
    spread: float
    output_spread: float | None = None
    n_items: int = 0


@dataclass(frozen=True)
class Validation:
    """What validation ran on and what it gave.

    Args:
        n: validations, the one before the first step included.
        equal: the last so many gave the same figures although the weights moved.
        figure: one of them.
        on_other: the last so many ran on weights that are not the trained ones.
        stuck: how many of those on weights that had not changed since the last validation.
        other: what those weights belong to.
        nonfinite_buffers: buffers that became nan or inf.
        buffer_step: steps when that was first seen.
        n_items: items whose hashes were compared.
        n_shared: those of them that were trained on.
        shares_by_intent: the run is meant to validate on what it trains on.
    """

    n: int = 0
    equal: int = 0
    figure: str = ""
    on_other: int = 0
    stuck: int = 0
    other: str = ""
    nonfinite_buffers: tuple[str, ...] = ()
    buffer_step: int = 0
    n_items: int = 0
    n_shared: int = 0
    shares_by_intent: bool = False


@dataclass(frozen=True)
class Pace:
    """Time and memory.

    Args:
        n: batches timed.
        wait_ms: median wait for a batch.
        step_ms: median time of a step.
        kept_graphs: losses among the watched whose graph is alive long after its step.
        watched_graphs: losses watched.
        memory_first_mb: resident memory after the first steps.
        memory_last_mb: resident memory now.
    """

    n: int = 0
    wait_ms: float | None = None
    step_ms: float | None = None
    kept_graphs: int = 0
    watched_graphs: int = 0
    memory_first_mb: float | None = None
    memory_last_mb: float | None = None


@dataclass(frozen=True)
class Processes:
    """The ranks of a distributed run.

    Args:
        n: ranks.
        n_compared: how often their weights were compared.
        spread: largest difference of an element of the weights, at the last comparison.
        quarrel: what a vote on the gradients said; empty if they agreed.
        is_sharded: no rank holds whole weights, so that none can be watched.
    """

    n: int = 1
    n_compared: int = 0
    spread: float = 0.0
    quarrel: str = ""
    is_sharded: bool = False


@dataclass(frozen=True)
class RunEvidence:
    """All that was seen of one run.

    Args:
        unseen: what could not be looked at, and why.
    """

    length: Length = field(default_factory=Length)
    gating: Gating = field(default_factory=Gating)
    wiring: Wiring = field(default_factory=Wiring)
    motion: Motion = field(default_factory=Motion)
    rates: Rates = field(default_factory=Rates)
    losses: Losses = field(default_factory=Losses)
    inputs: Inputs = field(default_factory=Inputs)
    deals: tuple[Deal, ...] = ()
    validation: Validation = field(default_factory=Validation)
    pace: Pace = field(default_factory=Pace)
    processes: Processes = field(default_factory=Processes)
    unseen: tuple[str, ...] = ()
