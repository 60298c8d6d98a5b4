"""What validation ran on, and what it gave."""

import math
import re
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from callbacks.doctoring import batches
from callbacks.doctoring.fingerprints import is_finite
from callbacks.doctoring.motion import MotionWatch
from callbacks.doctoring.parts import Anatomy, heard
from callbacks.doctoring.series import Series
from musicnet.diagnosis.evidence import Validation
from musicnet.diagnosis.loss_names import loss_name

_VALIDATION_KEY = re.compile(r"^(val|valid|validation|dev|eval)([/_.-]|$)")
MOST_HASHES = 8192
MOST_BUFFERS = 8


class ValidationWatch:
    """Follows every validation of a fit.

    Args:
        module: that is validated.
        anatomy: of the module.
        motion: knows the trained weights.
    """

    def __init__(self, module: LightningModule, anatomy: Anatomy, motion: MotionWatch) -> None:
        self.curve = Series()
        self.val_first: float | None = None
        self.val_last: float | None = None
        self.key = ""
        self._module = module
        self._anatomy = anatomy
        self._motion = motion
        self._n = self._equal = 0
        self._figures: dict[str, float] = {}
        self._weights_then: Tensor | None = None
        self._listening = ExitStack()
        self._used: dict[str, Tensor] = {}
        self._trained_was_used = False
        self._start = {name: _first_weights(layer) for name, layer in anatomy.layers.items()}
        self._used_before: dict[str, Tensor] = self._start
        self._trained_before: Tensor | None = None
        self._on_other = self._stuck = 0
        self._other = ""
        self._good_buffers = {n for n, b in _float_buffers(module) if is_finite(b)}
        self._bad_buffers: tuple[str, ...] = ()
        self._buffer_step = 0
        self._trained_on: set[int] = set()
        self._validated: set[int] = set()

    def see_training(self, batch: Any) -> None:
        """Remember the items of a training batch."""
        if len(self._trained_on) < MOST_HASHES:
            inputs = batches.inputs_of(self._module, batch)
            if inputs is not None:
                self._trained_on.update(batches.hashes(inputs))

    def see_validation(self, batch: Any) -> None:
        """Remember the items of a validation batch."""
        if len(self._validated) < MOST_HASHES:
            inputs = batches.inputs_of(self._module, batch)
            if inputs is not None:
                self._validated.update(batches.hashes(inputs))

    def listen(self) -> None:
        """Note the weights of every layer while a batch goes through it."""
        self._used, self._trained_was_used = {}, False
        trained = self._motion.trained()
        trainable = self._anatomy.trainable_layers()

        def tell(name: str, layer: nn.Module, given: Any, output: Any) -> None:  # noqa: ARG001
            self._used[name] = _first_weights(layer)
            if trained is not None and not self._trained_was_used and name in trainable:
                self._trained_was_used = torch.equal(self._motion.read(), trained)

        self._listening.enter_context(heard(self._anatomy.layers, tell))

    def hear_out(self) -> None:
        """The batch has gone through."""
        self._listening.close()
        trained = self._motion.trained()
        if trained is None or not self._used or not self._anatomy.called:
            return
        same_as_before = all(
            name in self._used_before and torch.equal(value, self._used_before[name])
            for name, value in self._used.items()
        )
        has_moved = self._trained_before is None or not torch.equal(trained, self._trained_before)
        if self._trained_was_used:
            self._on_other = self._stuck = 0
        else:
            self._on_other += 1
            self._stuck = self._stuck + 1 if same_as_before and has_moved else 0
            self._other = _common_prefix(list(self._used))
        self._used_before, self._trained_before = dict(self._used), trained

    def look_at_buffers(self, step: int) -> None:
        """Find buffers that were finite at the start and are not now."""
        if self._bad_buffers or not self._good_buffers:
            return
        bad = [
            name
            for name, buffer in _float_buffers(self._module)
            if name in self._good_buffers and not is_finite(buffer)
        ]
        if bad:
            self._bad_buffers, self._buffer_step = tuple(bad[:MOST_BUFFERS]), step

    def ends(self, metrics: Mapping[str, Any], step: int) -> None:
        """Compare the figures with the last ones."""
        figures = {
            key: float(value)
            for key, value in metrics.items()
            if _VALIDATION_KEY.match(key) and torch.as_tensor(value).numel() == 1
        }
        if not figures:
            return
        self._n += 1
        weights = self._motion.read()
        moved = self._weights_then is None or not torch.equal(weights, self._weights_then)
        is_same = repr(figures) == repr(self._figures)  # nan, too, is the same as before
        if is_same and moved:
            self._equal += 1
        elif not is_same:
            self._equal = 1
        self._figures, self._weights_then = figures, weights
        self._see_loss(figures, step)

    def _see_loss(self, figures: Mapping[str, float], step: int) -> None:
        """Follow one and the same loss, the usual one if it is there."""
        if not self.key:
            some = (key for key in figures if "loss" in key)
            self.key = loss_name(figures, "val") or next(some, "")
        loss = figures.get(self.key, math.nan)
        if not math.isnan(loss):
            self.val_first = loss if self.val_first is None else self.val_first
            self.val_last = loss
            self.curve.add(step, loss)

    def _has_loss(self) -> bool:
        """Whether a figure is continuous: a share may well be the same by chance."""
        return any(_CONTINUOUS.search(key) for key in self._figures)

    def validation(self, *, shares_by_intent: bool) -> Validation:
        """What is known now."""
        key, value = next(iter(self._figures.items()), ("", 0.0))
        return Validation(
            n=self._n,
            equal=self._equal if self._has_loss() else self._equal // 2,
            figure=f"{key} = {value:.7g}" if key else "",
            on_other=self._on_other,
            stuck=self._stuck,
            other=self._other,
            nonfinite_buffers=self._bad_buffers,
            buffer_step=self._buffer_step,
            n_items=len(self._validated),
            n_shared=len(self._validated & self._trained_on),
            shares_by_intent=shares_by_intent,
        )


_CONTINUOUS = re.compile(r"loss|mse|mae|rmse|nll|error|perplexity", re.IGNORECASE)


def _first_weights(layer: nn.Module) -> Tensor:
    """A few elements of the weights of a layer."""
    pieces = [p.detach().reshape(-1)[:8].float().cpu() for p in layer.parameters(recurse=False)]
    return torch.cat(pieces) if pieces else torch.zeros(0)


def _float_buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [(n, b) for n, b in module.named_buffers() if b.is_floating_point() and b.numel()]


def _common_prefix(names: list[str]) -> str:
    """The submodule that all names are below, else the first of them."""
    shared = names[0].split(".")
    for name in names[1:]:
        parts = name.split(".")
        n_equal = next(
            (i for i, (a, b) in enumerate(zip(shared, parts, strict=False)) if a != b),
            min(len(shared), len(parts)),
        )
        shared = shared[:n_equal]
    return ".".join(shared) or names[0]
