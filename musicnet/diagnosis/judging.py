"""From evidence to findings and a verdict: does the run learn, and if not, why?"""

from collections.abc import Iterable
from dataclasses import replace

from musicnet.diagnosis.detectors import DETECTORS
from musicnet.diagnosis.evidence import RunEvidence
from musicnet.diagnosis.findings import Finding, Judgement, alarms, in_order
from musicnet.diagnosis.verdict import Verdict

CLEAR_FALL = 0.05
FEWEST_STEPS = 10


def diagnose(seen: RunEvidence) -> list[Finding]:
    """All findings that the evidence supports.

    Args:
        seen: of one run.

    Returns:
        Causes before what they bring about.

    Example:
        >>> from musicnet.diagnosis.evidence import Length, Pace
        >>> starved = RunEvidence(length=Length(batches=50), pace=Pace(50, 30.0, 4.0))
        >>> [finding.code for finding in diagnose(starved)]
        ['DATA_STARVED']
    """
    step = seen.length.steps
    found = [replace(one, step=step) for detect in DETECTORS.values() for one in detect(seen)]
    return in_order(found)


def judge_run(seen: RunEvidence, findings: Iterable[Finding]) -> Judgement:
    """The verdict on a run: three values, for what was not seen is no answer.

    Args:
        seen: of the run.
        findings: of the same run, also those that were seen only once.

    Returns:
        "does not learn" if an error was found, or a warning while the loss did not fall;
        "learns" if the loss fell clearly; else "could not tell".
    """
    found = alarms(findings)
    losses = seen.losses
    fall = None if losses.last is None else losses.fall
    stands_still = fall is not None and fall < CLEAR_FALL
    is_wrong = any(one.severity == "error" for one in found)
    blamed = found[:1] if is_wrong or stands_still else []
    if blamed:
        first = blamed[0]
        place = f" in {first.where}" if first.where else ""
        return Judgement("does not learn", f"{first.code}{place}: {first.evidence}")
    if seen.processes.is_sharded and losses.last is None:
        return Judgement(
            "could not tell",
            "sharded: the weights are shared out over processes, and such runs are not watched.",
        )
    if seen.length.steps < FEWEST_STEPS:
        told = f"{seen.length.steps} optimiser step{'s' if seen.length.steps != 1 else ''}"
        return Judgement("could not tell", f"{told}: too few.")
    if losses.last is None and losses.n_nonfinite:
        return Judgement("could not tell", "the last losses are not finite, and no cause was seen.")
    if fall is None:
        return Judgement("could not tell", "no loss was seen at first and at last.")
    told = f"{losses.key or 'training'} {_shown(losses.first)} to {_shown(losses.last)}"
    if losses.val_last is not None:
        name = losses.val_key or "validation"
        told += f", {name} {_shown(losses.val_first)} to {_shown(losses.val_last)}"
    if fall >= CLEAR_FALL:
        return Judgement("learns", f"the loss fell by {100 * fall:.0f} %: {told}.")
    return Judgement(
        "could not tell",
        f"the loss did not fall clearly ({told}), and no known cause was seen.",
    )


def held_against(judgement: Judgement, verdict: Verdict | None) -> Judgement:
    """What can be said of a run that was judged by its bars as well.

    Args:
        judgement: of the doctor.
        verdict: on the same run, at the same step; None if nobody has judged it.

    Returns:
        The judgement; but a run that missed its bars is not said to learn.

    Example:
        >>> from musicnet.diagnosis.verdict import Bars, Evidence, judge
        >>> missed = Evidence(recall=0.2, steps=50, delta_total=1.0)
        >>> bars = Bars(min_loss_drop=None, min_recall=0.9)
        >>> verdict = judge(missed, bars, seconds=1.0, run_id=None)
        >>> held_against(Judgement("learns", "the loss fell by 50 %."), verdict)
        Judgement(outcome='does not learn', because='its verdict is fail: recall is 0.2000, 0.9 was
        asked for.')
    """
    if verdict is None or verdict.verdict != "fail" or judgement.outcome != "learns":
        return judgement
    missed = "; ".join(reason.rstrip(".") for reason in verdict.reasons)
    return Judgement("does not learn", f"its verdict is fail: {missed}.")


def _shown(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}"
