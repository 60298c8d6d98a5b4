"""The page itself: verdict, findings, charts, provenance and configuration in one file."""

import base64
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from html import escape, unescape
from pathlib import Path

from musicnet.diagnosis.findings import Finding, Outcome
from musicnet.diagnosis.report.charts import Chart, Line, figure
from musicnet.diagnosis.report.style import STYLE
from musicnet.diagnosis.saved import AS_LOGGED, Curve, Diagnosis
from musicnet.records.atomic_files import write_text
from musicnet.records.provenance import Provenance

FILE_NAME = "report.html"
_MEANING: dict[Outcome, str] = {
    "learns": "This run learns.",
    "does not learn": "This run does not learn.",
    "could not tell": "Whether this run learns cannot be told.",
}
_KINDS = ("image/png", "image/svg+xml")
_PICTURE = re.compile(
    r'<img src="data:(?P<kind>[\w/+]+);base64,(?P<content>[\w+/=]+)" alt="(?P<told>[^"]+)">'
)


@dataclass(frozen=True)
class Picture:
    """A picture that somebody else has drawn.

    Args:
        content: the bytes of the file.
        kind: "image/png" or "image/svg+xml".
        told: what it shows, for who cannot see it.

    Raises:
        ValueError: another kind, or nothing told.
    """

    content: bytes
    kind: str
    told: str

    def __post_init__(self) -> None:
        if self.kind not in _KINDS or not self.told:
            raise ValueError(
                f"a picture must be one of {_KINDS} and be told in words: got {self.kind!r}, "
                f"{self.told!r}."
            )


def write_report(
    folder: str | Path,
    diagnosis: Diagnosis,
    *,
    title: str,
    origin: Provenance | None = None,
    config: str | None = None,
    picture: Picture | None = None,
) -> Path:
    """Write `report.html` into a run folder, whole or not at all.

    Args:
        folder: of the run.
        diagnosis: what the doctor has.
        title: what the run is called.
        origin: where it comes from.
        config: its configuration as text.
        picture: of what the network makes.

    Returns:
        The file.
    """
    path = Path(folder) / FILE_NAME
    page = report(diagnosis, title=title, origin=origin, config=config, picture=picture)
    write_text(path, page)
    return path


def picture_in(folder: str | Path) -> Picture | None:
    """The picture in the page of a run, so that a newer page need not lose it; None without one."""
    path = Path(folder) / FILE_NAME
    page = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    found = _PICTURE.search(page)
    if found is None:
        return None
    try:
        content = base64.b64decode(found["content"], validate=True)
        return Picture(content, found["kind"], unescape(found["told"]))
    except ValueError:
        return None


def report(
    diagnosis: Diagnosis,
    *,
    title: str,
    origin: Provenance | None = None,
    config: str | None = None,
    picture: Picture | None = None,
) -> str:
    """The page as text; the arguments are those of `write_report`."""
    outcome = diagnosis.judgement.outcome
    charts = "".join(figure(chart) for chart in charts_of(diagnosis))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}: {escape(outcome)}</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<p class="verdict {outcome.split()[0]}"><strong>{_MEANING[outcome]}</strong>
{escape(_sentence(diagnosis.judgement.because))}</p>
{_numbers(diagnosis)}
</header>
<main>
<section aria-labelledby="findings"><h2 id="findings">Findings</h2>
{_findings(diagnosis.findings)}</section>
<section aria-labelledby="curves"><h2 id="curves">Curves</h2>
<div class="charts">{charts}</div>
{_vetoes(diagnosis)}</section>
{_pictured(picture)}
<section aria-labelledby="origin"><h2 id="origin">Where it comes from</h2>
{_origin(origin)}</section>
<section aria-labelledby="configuration"><h2 id="configuration">Configuration</h2>
{_config(config)}</section>
</main>
</body>
</html>
"""


def charts_of(diagnosis: Diagnosis) -> list[Chart]:
    """What is drawn, in order."""
    curves = {curve.name: curve for curve in diagnosis.curves}
    vetoes = tuple(veto.attempt for veto in diagnosis.vetoes)
    return [
        Chart(
            "loss",
            "Training loss",
            "batches",
            "loss",
            _training_lines(curves, diagnosis.evidence.losses.key),
            logarithmic=True,
        ),
        Chart(
            "validation",
            "Validation loss",
            "steps",
            "loss",
            _lines(curves, "validation loss"),
            logarithmic=True,
        ),
        Chart(
            "gradient",
            "Gradient norm, before clipping",
            "attempts",
            "norm",
            _lines(curves, "gradient norm"),
            marks=vetoes,
            mark_name="vetoed attempts",
            logarithmic=True,
        ),
        Chart("rates", "Learning rate", "steps", "rate", _lines(curves, "learning rate: ")),
        Chart(
            "ratios",
            "Update ratio: step over weights",
            "steps",
            "ratio",
            _lines(curves, "update ratio: "),
            logarithmic=True,
        ),
        Chart(
            "time",
            "Time of a step",
            "batches",
            "ms",
            _lines(curves, "step time [ms]"),
            logarithmic=True,
        ),
        Chart("memory", "Resident memory", "batches", "MB", _lines(curves, "memory [MB]")),
    ]


def _lines(curves: Mapping[str, Curve], prefix: str) -> tuple[Line, ...]:
    """The curves whose names begin so, under what follows."""
    return tuple(
        Line(name.removeprefix(prefix) or name, curve.x, curve.y)
        for name, curve in curves.items()
        if name.startswith(prefix)
    )


def _training_lines(curves: Mapping[str, Curve], key: str) -> tuple[Line, ...]:
    """What went backward; where that cannot be compared over the run, after what was logged."""
    backward, logged = curves.get("training loss"), curves.get(AS_LOGGED)
    lines = []
    if key and logged is not None:
        lines.append(Line(f"{key}, by epoch", logged.x, logged.y))
    if backward is not None:
        name = "objective of the phase, by batch" if lines else "training loss"
        lines.append(Line(name, backward.x, backward.y))
    return tuple(lines)


def _numbers(diagnosis: Diagnosis) -> str:
    seen = diagnosis.evidence
    vetoed = seen.gating.n_vetoes
    wait, step = seen.pace.wait_ms, seen.pace.step_ms
    told = {
        "steps": f"{seen.length.steps}",
        "batches": f"{seen.length.batches}",
        "vetoes": f"{vetoed}" if seen.length.attempts else "no gate",
        seen.losses.key or "training loss": _pair(seen.losses.first, seen.losses.last),
        seen.losses.val_key or "validation loss": _pair(
            seen.losses.val_first, seen.losses.val_last
        ),
        "time of a step": "not seen" if step is None else f"{step:.1f} ms",
        "waiting for data": "not seen" if wait is None else f"{wait:.1f} ms",
    }
    return f'<dl class="numbers">{_pairs(told)}</dl>'


def _pair(first: float | None, last: float | None) -> str:
    if first is None and last is None:
        return "not seen"
    ends = ("unknown" if one is None else f"{one:.4g}" for one in (first, last))
    return " → ".join(ends)


def _pairs(told: Mapping[str, str]) -> str:
    return "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in told.items()
    )


def _findings(findings: Iterable[Finding]) -> str:
    items = "".join(
        f'<li class="{finding.severity}"><h3>{escape(finding.code)}'
        f"{f' <span>in {escape(finding.where)}</span>' if finding.where else ''}</h3>"
        f'<p class="sure">{finding.severity}, {100 * finding.confidence:.0f} % sure, first seen at '
        f"step {finding.step}</p><p>{escape(_sentence(finding.evidence))}</p>"
        f"<p><b>What to do.</b> {escape(finding.cure)}</p></li>"
        for finding in findings
    )
    return f'<ol class="findings">{items}</ol>' if items else "<p>Nothing was found.</p>"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _vetoes(diagnosis: Diagnosis) -> str:
    counts = Counter({veto.name: veto.count for veto in diagnosis.evidence.gating.vetoes})
    if not counts:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(reason)}</th><td>{count}</td></tr>'
        for reason, count in counts.most_common()
    )
    return (
        "<table><caption>Why steps were skipped</caption><thead><tr>"
        '<th scope="col">reason</th><th scope="col">attempts</th></tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )


def _pictured(picture: Picture | None) -> str:
    if picture is None:
        return ""
    content = base64.b64encode(picture.content).decode("ascii")
    return (
        '<section aria-labelledby="picture"><h2 id="picture">What the network makes</h2>'
        f'<img src="data:{picture.kind};base64,{content}" alt="{escape(picture.told)}">'
        f"<p>{escape(picture.told)}</p></section>"
    )


def _origin(origin: Provenance | None) -> str:
    if origin is None:
        return "<p>The run has no provenance.</p>"
    tree = asdict(origin)
    versions = tree.pop("versions")
    told = {name.replace("_", " "): "none" if v is None else str(v) for name, v in tree.items()}
    told |= {f"version of {name}": version for name, version in versions.items()}
    return f'<dl class="origin">{_pairs(told)}</dl>'


def _config(config: str | None) -> str:
    if not config:
        return "<p>The run has left no configuration.</p>"
    return f'<pre tabindex="0" role="region" aria-label="configuration">{escape(config)}</pre>'
