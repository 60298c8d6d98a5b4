"""What the doctor says: findings, their order, and the verdict on a whole run."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from musicnet.diagnosis.codes import CODES, RANKS, Severity

Outcome = Literal["learns", "does not learn", "could not tell"]
EXIT_CODES: dict[Outcome, int] = {"learns": 0, "does not learn": 3, "could not tell": 4}


@dataclass(frozen=True)
class Finding:
    """One cause that was seen in a run.

    Args:
        code: a key of `musicnet.diagnosis.codes.CODES`.
        evidence: what was seen, with its numbers.
        where: part of the model, parameter or configuration key; empty for the run as a whole.
        confidence: how sure the doctor is, in (0, 1].
        step: optimiser steps when it was first seen.
    """

    code: str
    evidence: str
    where: str = ""
    confidence: float = 0.9
    step: int = 0

    def __post_init__(self) -> None:
        if self.code not in CODES:
            raise ValueError(f"code must be one of {', '.join(CODES)}: got {self.code!r}.")
        if not 0.0 < self.confidence <= 1.0:
            raise ValueError(f"confidence must be in (0, 1]: got {self.confidence}.")

    @property
    def severity(self) -> Severity:
        """That of its code."""
        return CODES[self.code].severity

    @property
    def cure(self) -> str:
        """What to do."""
        return CODES[self.code].cure

    def line(self) -> str:
        """One line for a log."""
        place = f" in {self.where}" if self.where else ""
        return f"{self.code}{place}: {self.evidence} {self.cure}"


@dataclass(frozen=True)
class Judgement:
    """The verdict on a run.

    Args:
        outcome: learns, does not learn, or could not tell.
        because: why, in a sentence.
    """

    outcome: Outcome
    because: str

    @property
    def exit_code(self) -> int:
        """0 learns, 3 does not learn, 4 could not tell."""
        return EXIT_CODES[self.outcome]


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """Findings as they are to be read: causes before what they bring about, harmless ones last.

    Example:
        >>> found = [Finding("DATA_STARVED", "wait."), Finding("GROUP_FROZEN", "off.")]
        >>> [finding.code for finding in in_order(found)]
        ['GROUP_FROZEN', 'DATA_STARVED']
    """
    return sorted(findings, key=lambda one: (one.severity == "info", RANKS[one.code], one.where))


def alarms(findings: Iterable[Finding]) -> list[Finding]:
    """Those that are more than information, in order."""
    return [finding for finding in in_order(findings) if finding.severity != "info"]
