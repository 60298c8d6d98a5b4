"""A look at the model that leaves no trace: weights, statistics, numbers and counters as before."""

import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torchmetrics import Metric

_SILENCED = ("log", "log_dict")


@contextmanager
def undisturbed(module: LightningModule, *, training: bool = False) -> Iterator[dict[str, Tensor]]:
    """Run something of the module's inside; afterwards all is as it was.

    Random numbers, training modes, buffers, metrics, and numbers and containers among the
    attributes of every submodule come back; what the module logs goes nowhere but into the yield.

    Args:
        module: whose methods are called inside.
        training: the mode that it is in meanwhile.

    Yields:
        What the module logged inside, by key.
    """
    modes = [(part, part.training) for part in module.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    undo = [_remembered(part) for part in module.modules()]
    logged: dict[str, Tensor] = {}
    for name in _SILENCED:
        module.__dict__[name] = _recorder(logged)
    module.train(training)
    try:
        with isolate_rng(), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield logged
    finally:
        for name in _SILENCED:
            module.__dict__.pop(name, None)
        for restore in undo:
            restore()
        for part, mode in modes:
            part.training = mode
        with torch.no_grad():
            for buffer, value in buffers:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


def _recorder(logged: dict[str, Tensor]) -> Callable[..., None]:
    def record(name: Any, value: Any = None, *_: Any, **__: Any) -> None:
        values = name if isinstance(name, dict) else {name: value}
        for key, one in values.items():
            if isinstance(one, Tensor) and one.numel() == 1:
                logged[str(key)] = one.detach()
            elif isinstance(one, int | float):
                logged[str(key)] = torch.tensor(float(one))

    return record


def _remembered(part: nn.Module) -> Callable[[], None]:
    """What puts the attributes of a module back."""
    if isinstance(part, Metric):
        return _remembered_metric(part)
    attributes = {name: value for name, value in vars(part).items() if name not in _TORCHS_OWN}
    contents = {
        name: _copied(value) for name, value in attributes.items() if isinstance(value, _CONTAINERS)
    }
    generators = [
        (value, value.get_state()) for value in attributes.values() if _is_generator(value)
    ]

    def restore() -> None:
        for name in [name for name in vars(part) if name not in _TORCHS_OWN]:
            if name not in attributes:
                del part.__dict__[name]
        part.__dict__.update(attributes)
        for name, content in contents.items():
            _refill(attributes[name], content)
        for generator, state in generators:
            generator.set_state(state)

    return restore


_TORCHS_OWN = {"_parameters", "_buffers", "_modules", "training"}
_CONTAINERS = (list, dict, set, deque)


def _is_generator(value: object) -> bool:
    return isinstance(value, torch.Generator)


def _copied(container: Any) -> Any:
    return list(container.items()) if isinstance(container, dict) else list(container)


def _refill(container: Any, content: list[Any]) -> None:
    """Put the old content back if it is another now; hooks and the like are left alone."""
    if _copied_ids(container) == [id(one) for one in _flat(content)]:
        return
    container.clear()
    if isinstance(container, list | deque):
        container.extend(content)
    else:
        container.update(content)


def _copied_ids(container: Any) -> list[int]:
    return [id(one) for one in _flat(_copied(container))]


def _flat(content: list[Any]) -> list[Any]:
    return [part for one in content for part in (one if isinstance(one, tuple) else (one,))]


def _remembered_metric(metric: Metric) -> Callable[[], None]:
    """What puts the state of a metric back."""
    states = {
        name: [one.detach().clone() for one in value]
        if isinstance(value, list)
        else value.detach().clone()
        for name in metric._defaults
        if isinstance(value := getattr(metric, name), list | Tensor)
    }
    counters = {
        name: vars(metric).get(name) for name in ("_update_count", "_computed", "_forward_cache")
    }

    def restore() -> None:
        for name, value in states.items():
            setattr(metric, name, value)
        metric.__dict__.update(counters)

    return restore
