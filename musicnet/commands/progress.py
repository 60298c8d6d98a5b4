"""How far a long command has come, on a terminal alone."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int, int, str], None]
"""Takes the scenes that are done, how many there are, and of which file."""


@contextmanager
def progress_bar() -> Iterator[Advance]:
    """A bar on standard error while the block lasts; nothing where that is no terminal.

    Yields:
        What to call after each part of the work.
    """
    if not sys.stderr.isatty():
        yield lambda *_: None
        return
    # takes its time to load
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        tasks = {}

        def advance(done: int, of: int, name: str) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(name, total=of)
            progress.advance(tasks[name], done)

        yield advance
