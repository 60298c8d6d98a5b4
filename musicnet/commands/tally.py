"""What the answers of a call come to: numbers, who answered, and what a user should be told."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from musicnet.localization.task import MOST_COUNTED


@dataclass
class Tally:
    """Counts of entries.

    Args:
        n_scenes: good and bad.
        n_resolved: sources.
        bad: a line on each scene that was left out.
        answered: the methods that have found some of a file's sources.
        full: how many scenes of a file have as many sources as are ever counted.
    """

    n_scenes: int = 0
    n_resolved: int = 0
    bad: list[str] = field(default_factory=list)
    answered: dict[str, set[str]] = field(default_factory=dict)
    full: Counter[str] = field(default_factory=Counter)

    def warning(self, file: str) -> str | None:
        """A line on scenes that may have more sources than were looked for; None without any."""
        n_full = self.full[file]
        if n_full == 0:
            return None
        scenes = f"{n_full} {'scene has' if n_full == 1 else 'scenes have'}"
        return (
            f"warning: {file}: {scenes} {MOST_COUNTED} sources, the most that are counted. Give "
            "--n-sources if there may be more."
        )


def tally_of(entries: Iterator[dict[str, Any]]) -> Tally:
    """Counts what scenes have.

    Args:
        entries: of the scenes, one by one.

    Returns:
        The sums.
    """
    tally = Tally()
    for entry in entries:
        file = entry["file"]
        tally.n_scenes += 1
        tally.n_resolved += sum(source["resolved"] for source in entry["sources"])
        methods = (source["method"] for source in entry["sources"])
        tally.answered.setdefault(file, set()).update(methods)
        tally.full[file] += entry["n_sources"] == MOST_COUNTED
        if "error" in entry:
            tally.bad.append(f"{file}:{entry['error']}; the scene is left out")
    return tally
