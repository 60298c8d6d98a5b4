"""The folder of a run, read with suspicion: whose log is it, is it whole, is it of this code?

A folder comes in; what can be said of its run goes out, or the reason why nothing can. A log that
is empty, mixed, cut or of another run gets no verdict, whatever else lies beside it, and one
of older code only on request. What a log tells of the time after the last look of a doctor counts
as well.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from musicnet.diagnosis import saved, verdict
from musicnet.diagnosis.evidence import Losses, RunEvidence
from musicnet.diagnosis.findings import Finding, Judgement, in_order
from musicnet.diagnosis.judging import diagnose, held_against, judge_run
from musicnet.diagnosis.log_evidence import curves_of, evidence_of, losses_by_step, vetoes_of
from musicnet.diagnosis.run_files import OLDER_CODE, Asked, RunFiles, read_files
from musicnet.diagnosis.saved import Curve, Diagnosis
from musicnet.diagnosis.verdict import Verdict
from musicnet.records.plain_data import to_plain
from musicnet.records.provenance import Provenance


@dataclass(frozen=True)
class Reading:
    """What a run folder says.

    Args:
        folder: of the run.
        origin: where the run comes from; None if only a doctor has left something.
        diagnosis: findings and verdict.
        stale: how the run differs from what is asked; empty if it does not.
        notes: what else is to be known.
        logged: losses by epoch over optimiser steps, under the names of the log.
    """

    folder: Path
    origin: Provenance | None
    diagnosis: Diagnosis
    stale: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    logged: tuple[Curve, ...] = ()

    @property
    def judgement(self) -> Judgement:
        """The verdict; "could not tell" of a run that is stale."""
        if self.stale:
            return Judgement("could not tell", f"stale: {'; '.join(self.stale)}.")
        return self.diagnosis.judgement

    @property
    def is_only_older(self) -> bool:
        """Whether nothing but its code makes it stale."""
        return bool(self.stale) and all(one.startswith(OLDER_CODE) for one in self.stale)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What was found; nothing in a run that is stale."""
        return () if self.stale else self.diagnosis.findings


def read_run(folder: Path, asked: Asked) -> Reading:
    """Read what a run has left, finished or killed.

    Args:
        folder: of the run.
        asked: what it must be of.

    Raises:
        FileNotFoundError: there is no such folder.
        UnreadableRun: nothing can be said of the run.
    """
    files = read_files(folder, asked)
    told, left = evidence_of(files.rows), files.left
    if left is None:
        seen = told
    elif _tells_more(told, left.evidence, files.rows_since):
        seen = _brought_on(left.evidence, told)
    else:
        seen = left.evidence
    judged = files.judged
    if judged is not None and judged.steps < seen.length.steps:
        judged = None
    diagnosis = _diagnosis(files, seen, told, judged)
    return Reading(
        folder=folder,
        origin=files.origin,
        diagnosis=diagnosis,
        stale=files.stale,
        notes=tuple(_notes(files, seen, diagnosis.judgement)),
        logged=losses_by_step(files.rows),
    )


def _tells_more(told: RunEvidence, seen: RunEvidence, rows_since: int) -> bool:
    """Whether the log goes further than the doctor, or the doctor has followed no loss at all."""
    if seen.losses.last is None and not seen.losses.n_nonfinite:
        return True  # the run was taken up again, or its weights are sharded
    return rows_since > 0 and told.length.steps > seen.length.steps


def _brought_on(seen: RunEvidence, told: RunEvidence) -> RunEvidence:
    """What a doctor saw, with what the log tells of the time after."""
    length, later = seen.length, told.length
    return replace(
        seen,
        length=replace(
            length,
            batches=max(length.batches, later.batches),
            steps=max(length.steps, later.steps),
            attempts=max(length.attempts, later.attempts),
            epochs=max(length.epochs, later.epochs),
        ),
        losses=_losses(seen.losses, told.losses) if later.epochs else seen.losses,
    )


def _losses(seen: Losses, told: Losses) -> Losses:
    """The losses of the log, which goes on, and of the doctor what the log does not have."""
    if told.n < 2:
        return seen
    is_same = bool(told.val_key) and seen.val_key == told.val_key
    return replace(
        told,
        zero_terms=seen.zero_terms,
        val_first=seen.val_first if is_same else told.val_first,
    )


def _diagnosis(
    files: RunFiles, seen: RunEvidence, told: RunEvidence, judged: Verdict | None
) -> Diagnosis:
    """What the doctor left, judged anew; without one, what the log alone tells."""
    left = files.left
    found = {(one.code, one.where): one for one in (left.findings if left else ())}
    for finding in (*diagnose(seen), *diagnose(told)):
        known = any(code == finding.code for code, _ in found)
        if not known:
            found[finding.code, finding.where] = finding
    findings = tuple(in_order(found.values()))
    judgement = held_against(judge_run(seen, findings), judged)
    if left is None:
        run_id = None if files.origin is None else files.origin.run_id
        curves = curves_of(files.rows)
        return Diagnosis(run_id, seen, findings, judgement, curves, vetoes_of(files.rows))
    # a run that was killed early may have lines in its log alone
    curves = left.curves if seen is left.evidence else curves_of(files.rows)
    return replace(left, evidence=seen, findings=findings, judgement=judgement, curves=curves)


def _notes(files: RunFiles, seen: RunEvidence, judgement: Judgement) -> Iterator[str]:
    if files.origin is not None and files.origin.git_dirty:
        yield "the code had changes that no commit holds"
    if files.left is None:
        yield (
            f"no {saved.FILE_NAME}: no doctor was there, or the run ended before its first step; "
            "findings rest on the log alone"
        )
    else:
        steps = files.left.evidence.length.steps
        if seen.length.steps > steps:
            yield (
                f"the doctor last looked at step {steps}, and the log goes on to step "
                f"{seen.length.steps}: findings on the time after rest on the log alone"
            )
        for line in files.left.evidence.unseen:
            yield f"not seen: {line}"
    judged = files.judged
    if judged is None:
        return
    if judged.steps < seen.length.steps:
        yield f"{verdict.FILE_NAME} is of step {judged.steps}, and the run went on: passed over"
    elif judged.verdict == "pass":
        yield f"{verdict.FILE_NAME}: pass"
    else:
        reasons = "; ".join(reason.rstrip(".") for reason in judged.reasons)
        if reasons not in judgement.because:
            yield f"{verdict.FILE_NAME}: {judged.verdict}: {reasons}"


def dumped(reading: Reading) -> dict[str, Any]:
    """A reading as JSON types."""
    return {
        "format": "musicnet.doctor/1",
        "run": str(reading.folder),
        "run_id": None if reading.origin is None else reading.origin.run_id,
        "outcome": reading.judgement.outcome,
        "because": reading.judgement.because,
        "stale": list(reading.stale),
        "notes": list(reading.notes),
        "findings": [
            {
                "code": one.code,
                "severity": one.severity,
                "where": one.where,
                "evidence": one.evidence,
                "cure": one.cure,
                "confidence": one.confidence,
                "step": one.step,
            }
            for one in reading.findings
        ],
        "evidence": to_plain(reading.diagnosis.evidence),
    }
