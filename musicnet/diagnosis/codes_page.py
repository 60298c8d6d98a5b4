"""docs/diagnosis.md, made of the table of codes: `python -m musicnet.diagnosis.codes_page`."""

import sys
from collections.abc import Iterator

from musicnet.diagnosis.codes import CODES

_HEAD = """# Why does it not learn?

<!-- Made by `python -m musicnet.diagnosis.codes_page > docs/diagnosis.md`: edit codes.py. -->

`RunDoctor` watches a run, under manual or automatic optimisation, and names what it sees as soon as
it sees it; `python -m musicnet doctor RUN` asks again afterwards, also of a run that was killed;
`report.html` in the run's folder shows it. In any Lightning project:

```python
from callbacks import RunDoctor

doctor = RunDoctor()
Trainer(callbacks=[doctor]).fit(module, data)
print(doctor.judgement, doctor.findings)
```

A run *learns*, *does not learn* because of the first finding, or it *could not be told*: a log that
is empty, cut, mixed or of another run or older code gets no verdict (a half-written last line is
left out), and `diagnosis.json`
counts only beside the log that it was drawn from. Of a run that went on after the doctor's last
look, the rest is judged by the log; one that has missed the bars of its `verdict.json` does not
learn; a sharded run (FSDP) is not watched. The loss is what went backward; where phases change that
figure, it is the one that the module logs as `train/loss`. `--compare RUN RUN` holds losses of one
name and one task together, at the last step that both runs have come to, and else says what is
unlike. Findings stand in the order of the table: a cause before what it brings about. An error
keeps the run from learning or its figures from being true; a warning costs something; what is
harmless is said, so that nobody hunts for it. [An overfit run](overfit.md), or the one that
`preflight=true` makes before a run, gives its first finding as the reason when it fails.

What goes by in every step is nearly free: the gate's reports, a few elements of the weights, rates,
times. At validations and at the end one batch is evaluated a few times, with its labels where they
are and dealt to other items; random numbers, modes, buffers, metrics and counters are put back, so
that the weights are the same to the last bit with and without the doctor. A batch is taken as
(inputs, ..., labels) or as a mapping with a label key; a module with batches of its own may have
`batch_inputs(batch)`, which gives a tensor with one row per item, and `deal_labels(batch, shift)`,
which gives the batch with the label of item i at item i + shift. What could not be looked at is
listed as not seen.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([_HEAD, *_rows(), "", *_sections()])


def _rows() -> Iterator[str]:
    yield "| code | severity | cause |"
    yield "|---|---|---|"
    for code in CODES.values():
        anchor = code.name.lower()
        yield f"| [`{code.name}`](#{anchor}) | {code.severity} | {code.cause} |"


def _sections() -> Iterator[str]:
    for code in CODES.values():
        yield f"## {code.name}"
        yield ""
        yield code.cause
        yield ""
        yield f"- Evidence: {code.evidence}"
        yield f"- Cure: {code.cure}"
        yield ""


if __name__ == "__main__":
    sys.stdout.write(page().rstrip("\n") + "\n")
