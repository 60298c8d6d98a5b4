"""What a run prints: the harness' lines as they are, each once, and no advertisements.

Nothing comes in but log records; plain lines go to standard output for as long as `console` lasts.
"""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

# Each of these brings a handler of its own, which would print a second copy of every line.
_LIGHTNING_LOGGERS = ("lightning", "lightning.pytorch", "lightning.fabric")

_NOISE_WARNINGS = (
    # Lightning's command line uses names that jsonargparse means to change.
    r"(?s).*was deprecated in v4.* and will be removed in\s+v5.*",
    r"(?s).*JsonargparseDeprecationWarning per type.*",
    ".*LeafSpec.*",  # Lightning walks batches with a torch helper that torch has renamed
    ".*isinstance.treespec.*",
    # The loader yields keys and the device draws the scenes: workers would have nothing to do.
    ".*does not have many workers.*",
    ".*Grad strides do not match bucket view strides.*",
    # of sharded runs; nothing here writes on what a network gave
    ".*FSDP2-wrapped module .* returned a view tensor.*",
    # An evaluation saves nothing, and a fit that goes on from a checkpoint saves in its own folder.
    ".*callbacks used to create the checkpoint need to be provided.*",
    ".*dirpath has changed from.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*number of training batches .* is smaller than the logging interval.*",
)


_NOISE_LINES = (
    "litlogger",  # an advertisement
    "`weights_only` was not set",  # said of writing the whole state, which is what is wanted
)


class _Console(logging.StreamHandler[TextIO]):
    """Writes to the `sys.stdout` of the moment: a live progress bar replaces it while it runs."""

    def __init__(self) -> None:
        super().__init__(sys.stdout)
        self.addFilter(lambda record: not any(n in record.getMessage() for n in _NOISE_LINES))

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stdout
        super().emit(record)


@contextmanager
def console() -> Iterator[None]:
    """Print log lines of level INFO and above as plain text, each once, until the block ends.

    Example:
        >>> with console():
        ...     logging.getLogger("callbacks.run_log").info("[STEP] Δparam ||·||₂ = 1.234e-03")
        [STEP] Δparam ||·||₂ = 1.234e-03
    """
    root = logging.getLogger()
    before = {
        logger: (logger.level, list(logger.handlers), logger.propagate)
        for logger in (root, *map(logging.getLogger, _LIGHTNING_LOGGERS))
    }
    root.setLevel(logging.INFO)
    root.addHandler(_Console())
    for name in _LIGHTNING_LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    try:
        with warnings.catch_warnings():
            for message in _NOISE_WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for logger, (level, handlers, propagate) in before.items():
            logger.setLevel(level)
            logger.handlers[:] = handlers
            logger.propagate = propagate


@contextmanager
def quiet() -> Iterator[None]:
    """Print nothing until the block ends; other handlers, such as files, still get every line.

    Example:
        >>> with console(), quiet():
        ...     logging.getLogger("callbacks.run_log").info("[STEP] Δparam ||·||₂ = 1.234e-03")
    """
    printers = [one for one in logging.getLogger().handlers if isinstance(one, _Console)]
    for printer in printers:
        printer.addFilter(_nothing)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for printer in printers:
            printer.removeFilter(_nothing)


def _nothing(_: logging.LogRecord) -> bool:
    return False
