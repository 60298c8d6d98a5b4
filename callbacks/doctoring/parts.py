"""The parts of a model: which layers ran, what the loss reaches, what the optimisers have."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from musicnet.diagnosis.evidence import Inputs, Part, Wiring
from musicnet.gate.step_gate import group_norms

TRACED_LOSSES = 12
ENOUGH_TRACES = 8
MOST_NAMES = 8
_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm)


def parts_of(module: nn.Module) -> dict[str, nn.Module]:
    """The submodules that a reader would call the parts of the model.

    Args:
        module: the whole.

    Returns:
        The children that have weights, by dotted name; where there is but one, its children.

    Example:
        >>> list(parts_of(nn.ModuleDict({"net": nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))})))
        ['net.0', 'net.1']
    """
    prefix, whole = "", module
    while True:
        children = [
            (n, c) for n, c in whole.named_children() if next(c.parameters(), None) is not None
        ]
        own = any(True for _ in whole.parameters(recurse=False))
        if len(children) != 1 or own:
            break
        name, child = children[0]
        if not any(next(c.parameters(), None) is not None for c in child.children()):
            break
        prefix, whole = f"{prefix}{name}.", child
    found = {f"{prefix}{name}": child for name, child in children}
    return found or ({prefix.rstrip("."): whole} if prefix else {"model": whole})


def layers_of(module: nn.Module) -> dict[str, nn.Module]:
    """The layers that have weights of their own, by name; a compiled module counts as one layer."""
    found: dict[str, nn.Module] = {}

    def walk(name: str, part: nn.Module) -> None:
        is_compiled = isinstance(part, torch._dynamo.OptimizedModule)
        has_own = any(True for _ in part.parameters(recurse=False))
        if name and (has_own or (is_compiled and next(part.parameters(), None) is not None)):
            found[name] = part
        for child_name, child in () if is_compiled else part.named_children():
            walk(f"{name}.{child_name}" if name else child_name, child)

    walk("", module)
    return found


@contextmanager
def heard(
    layers: Mapping[str, nn.Module], tell: Callable[[str, nn.Module, tuple[Any, ...], Any], None]
) -> Iterator[None]:
    """Tell of every call of these layers inside: name, layer, positional arguments, output."""
    handles = [
        layer.register_forward_hook(
            lambda one, given, output, name=name: tell(name, one, given, output)
        )
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def reached_by(loss: Tensor) -> set[int]:
    """Identities of the leaf tensors that the graph of a loss reaches."""
    found: set[int] = set()
    waiting = [loss.grad_fn]
    seen: set[Any] = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None:
            found.add(id(variable))
        waiting.extend(following for following, _ in node.next_functions)
    return found


class Anatomy:
    """Gathers what is known of every part.

    Args:
        module: the whole model.
        optimizers: that train it.
    """

    def __init__(self, module: nn.Module, optimizers: Iterable[Optimizer]) -> None:
        self.module = module
        self.parts = parts_of(module)
        self.layers = layers_of(module)
        self.called: set[str] = set()
        self.n_traced = 0
        self._traces = dict.fromkeys(self.parts, 0)
        self.inputs = Inputs()
        self._optimizers = list(optimizers)
        self._reached: set[int] = set()
        self._constant: list[bool] = []
        self._first: dict[str, _FirstLook] = {}
        self._was_heard = False

    def hear(self, name: str, layer: nn.Module, given: tuple[Any, ...], output: Any) -> None:  # noqa: ARG002
        """Note that a layer ran in training, and what the first one of a batch saw."""
        self._was_heard = True
        self.called.add(name)
        self._is_first_call = getattr(self, "_is_first_call", True)
        seen = given[0] if given and isinstance(given[0], Tensor) else None
        if seen is None or not self._is_first_call or not seen.is_floating_point():
            return
        self._is_first_call = False
        with torch.no_grad():
            values = seen.detach().float()
            rms = float(values.square().mean().sqrt())
            n_items = int(values.shape[0]) if values.dim() > 1 else 0
            self._constant.append(n_items > 1 and bool((values == values[:1]).all()))
        self.inputs = Inputs(
            layer=name,
            rms=rms if rms < float("inf") else None,
            is_constant=all(self._constant),
            is_normalised=isinstance(layer, _NORMS),
            n_items=n_items,
        )

    def new_batch(self) -> None:
        """The next layer that runs is the first of a batch."""
        self._is_first_call = True

    def trace(self, loss: Tensor) -> None:
        """Follow the graph of a loss, if enough has not been traced yet."""
        if self.n_traced >= TRACED_LOSSES and not self._has_news():
            return
        self.n_traced += 1
        self._reached |= reached_by(loss)
        for name, part in self.parts.items():
            self._traces[name] += any(p.requires_grad for p in part.parameters())

    def _has_news(self) -> bool:
        """Whether a part trains now that did not when graphs were traced."""
        return any(
            self._traces[name] < TRACED_LOSSES and any(p.requires_grad for p in part.parameters())
            for name, part in self.parts.items()
        )

    @property
    def is_first_look(self) -> bool:
        """Whether no gradient has been looked at yet."""
        return not self._first

    def look_at_gradients(self, scale: float = 1.0) -> None:
        """Note the norms of every part at the first gradients that there are."""
        for name, part in self.parts.items():
            weights = [p for p in part.parameters() if p.requires_grad]
            gradients = [p.grad for p in weights if p.grad is not None and not p.grad.is_sparse]
            self._first[name] = _FirstLook(
                gradient=group_norms({"": gradients})[""] / scale if gradients else None,
                norm=group_norms({"": [p.detach() for p in weights]})[""] if weights else None,
            )

    def trainable_layers(self) -> set[str]:
        """Layers that ran in training and that some optimiser trains."""
        held = self._held()
        return {
            name
            for name in self.called
            if any(id(p) in held and p.requires_grad for p in self.layers[name].parameters())
        }

    def wiring(self) -> Wiring:
        """What is known now."""
        held = self._held()
        own = {id(p) for p in self.module.parameters()}
        knows_graph = bool(self._reached & own)
        return Wiring(
            parts=tuple(self._part(name, held) for name in self.parts),
            n_traced=self.n_traced if knows_graph else 0,
            n_outside=len(held - own),
        )

    def _held(self) -> set[int]:
        return {
            id(p) for one in self._optimizers for group in one.param_groups for p in group["params"]
        }

    def _part(self, name: str, held: set[int]) -> Part:
        named = list(self.parts[name].named_parameters())
        trainable = [(n, p) for n, p in named if p.requires_grad]
        reached = [(n, p) for n, p in trainable if id(p) in self._reached]
        strays = [f"{name}.{n}" for n, p in reached if id(p) not in held]
        ran = any(layer == name or layer.startswith(f"{name}.") for layer in self.called)
        # of a part that was frozen while graphs were traced they say nothing
        is_known = self._traces[name] >= ENOUGH_TRACES
        first = self._first.get(name, _FirstLook(None, None))
        return Part(
            name=name,
            n_tensors=len(named),
            n_trainable=len(trainable),
            n_reached=len(reached),
            strays=tuple(strays[:MOST_NAMES]) if held else (),
            was_called=ran if self._was_heard and (not trainable or is_known) else None,
            first_gradient=_finite(first.gradient),
            first_norm=_finite(first.norm),
        )


@dataclass(frozen=True)
class _FirstLook:
    gradient: float | None
    norm: float | None


def _finite(value: float | None) -> float | None:
    return value if value is not None and abs(value) < float("inf") else None
