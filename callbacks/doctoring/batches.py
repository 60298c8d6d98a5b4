"""What is in a batch: inputs, labels, items. Projects with batches of their own can say it.

A module may have two methods, both optional: `batch_inputs(batch)` gives a tensor with one row per
item, and `deal_labels(batch, shift)` gives the batch with the label of item i at item i + shift.
Without them a batch is (inputs, ..., labels), or a mapping with a label key.
"""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

LABEL_KEYS = ("labels", "label", "targets", "target", "y")
HASHED_VALUES = 64


def inputs_of(module: LightningModule, batch: Any) -> Tensor | None:
    """The inputs of a batch, one row per item; None where they are not known."""
    own = getattr(module, "batch_inputs", None)
    if own is not None:
        given = own(batch)
        return given if isinstance(given, Tensor) else None
    if isinstance(batch, Mapping):
        candidates = [value for key, value in batch.items() if key not in LABEL_KEYS]
    elif isinstance(batch, tuple | list):
        candidates = list(batch[:1])
    else:
        candidates = [batch]
    found = [one for one in candidates if isinstance(one, Tensor) and one.dim() > 1]
    return found[0] if found else None


def dealt(module: LightningModule, batch: Any, shift: int) -> Any | None:
    """The batch with every label at another item; None where labels are not known or all alike."""
    own = getattr(module, "deal_labels", None)
    if own is not None:
        return own(batch, shift)
    if isinstance(batch, Mapping):
        key = next((key for key in LABEL_KEYS if isinstance(batch.get(key), Tensor)), None)
        moved = None if key is None else _rolled(batch[key], shift)
        return None if moved is None else {**batch, key: moved}
    if isinstance(batch, tuple | list) and len(batch) > 1 and isinstance(batch[-1], Tensor):
        moved = _rolled(batch[-1], shift)
        return None if moved is None else type(batch)([*batch[:-1], moved])
    return None


def _rolled(labels: Tensor, shift: int) -> Tensor | None:
    if labels.dim() == 0 or labels.shape[0] < 2:
        return None
    moved = labels.roll(shift, 0)
    return None if torch.equal(moved, labels) else moved


def hashes(inputs: Tensor) -> list[int]:
    """One number per item that is the same for the same item; items without content have none."""
    rows = inputs.detach().flatten(1)
    if rows.is_complex():
        rows = torch.view_as_real(rows).flatten(1)
    n_values = rows.shape[1]
    if n_values > HASHED_VALUES:
        columns = torch.arange(HASHED_VALUES, device=rows.device) * n_values // HASHED_VALUES
        rows = rows[:, columns]
    values = rows.cpu()
    if values.dtype == torch.bfloat16:
        values = values.float()
    has_content = (values != values[:, :1]).any(1).tolist()
    table = values.numpy()
    return [hash(table[i].tobytes()) for i, some in enumerate(has_content) if some]
