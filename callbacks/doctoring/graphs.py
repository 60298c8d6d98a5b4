"""Which graphs of old losses are still alive: somebody keeps what should be gone."""

from collections import deque
from typing import Any
from weakref import ref

from torch import Tensor

WATCHED = 64
DEPTH = 4
YOUNG = 3


class _Token:
    """Lives as long as the node of a graph that holds it."""

    __slots__ = ("__weakref__",)


class GraphWatch:
    """Leaves a token in the graph of every loss, and counts those that outlive their step.

    Example:
        >>> import torch
        >>> watch, weight, kept = GraphWatch(), torch.ones(1, requires_grad=True), []
        >>> for _ in range(20):
        ...     loss = (2 * weight).sum()
        ...     watch.mark(loss)
        ...     kept.append(loss)
        >>> watch.count()
        (17, 17)
        >>> kept.clear()
        >>> watch.count()
        (0, 17)
    """

    def __init__(self) -> None:
        self._tokens: deque[list[ref[_Token]]] = deque(maxlen=WATCHED + YOUNG)

    def mark(self, loss: Tensor) -> None:
        """Leave a token in the last nodes of the graph: what is kept may hang a little deeper."""
        tokens = []
        node = loss.grad_fn
        for _ in range(DEPTH):
            if node is None or getattr(node, "variable", None) is not None:
                break
            token = _Token()
            # a node's own place for notes, which dies with it; torch declares it as a method
            notes: Any = node.metadata
            notes["watched"] = token
            tokens.append(ref(token))
            node = node.next_functions[0][0] if node.next_functions else None
        self._tokens.append(tokens)

    def count(self) -> tuple[int, int]:
        """Graphs that are alive, and graphs watched; the last few may still be in use."""
        old = list(self._tokens)[:-YOUNG]
        return sum(any(one() is not None for one in tokens) for tokens in old), len(old)
