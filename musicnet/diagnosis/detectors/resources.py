"""Detectors of time and memory."""

from collections.abc import Iterator

from musicnet.diagnosis.evidence import RunEvidence
from musicnet.diagnosis.findings import Finding

FEWEST_TIMED = 15
LEAST_WAIT_MS = 10.0
RANKS_FACTOR = 3.0
FEWEST_GRAPHS = 10
KEPT_SHARE = 0.5


def data_starved(seen: RunEvidence) -> Iterator[Finding]:
    """The step waits for its data."""
    pace = seen.pace
    if pace.n < FEWEST_TIMED or pace.wait_ms is None or pace.step_ms is None:
        return
    # between two batches ranks wait for each other, too
    factor = 1.0 if seen.processes.n == 1 else RANKS_FACTOR
    if pace.wait_ms > factor * max(pace.step_ms, LEAST_WAIT_MS):
        share = pace.wait_ms / (pace.wait_ms + pace.step_ms)
        yield Finding(
            "DATA_STARVED",
            f"{pace.wait_ms:.1f} ms of waiting for each batch, {pace.step_ms:.1f} ms of work: "
            f"{share:.0%} of the time is lost.",
            where="training loader",
            confidence=0.9,
        )


def memory_grows(seen: RunEvidence) -> Iterator[Finding]:
    """Old graphs that somebody keeps."""
    pace = seen.pace
    if pace.watched_graphs < FEWEST_GRAPHS:
        return
    if pace.kept_graphs > KEPT_SHARE * pace.watched_graphs:
        memory = ""
        if pace.memory_first_mb is not None and pace.memory_last_mb is not None:
            memory = (
                f"; resident memory {pace.memory_first_mb:.0f} MB after the first steps, "
                f"{pace.memory_last_mb:.0f} MB now"
            )
        yield Finding(
            "MEMORY_GROWS",
            f"the graphs of {pace.kept_graphs} of the last {pace.watched_graphs} losses are still "
            f"alive{memory}.",
            where="losses",
            confidence=0.95,
        )
