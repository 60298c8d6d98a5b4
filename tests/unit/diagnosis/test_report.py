"""The page of a run: whole in itself, told in words, readable in light and dark, nothing cut."""

import json
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from musicnet.diagnosis.evidence import Gating, Length, Losses, RunEvidence, Tally
from musicnet.diagnosis.findings import Finding, Judgement
from musicnet.diagnosis.report.charts import Chart, Line, figure
from musicnet.diagnosis.report.page import Picture, picture_in, report, write_report
from musicnet.diagnosis.report.style import STYLE
from musicnet.diagnosis.saved import Curve, Diagnosis, Veto
from musicnet.records.provenance import collect_provenance

VOID = {"meta", "path", "circle", "img", "br", "link", "input"}
DOT = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c63f8cf"
    "c0f01f0005050201cf0e06420000000049454e44ae426082"
)


def a_curve(name: str, scale: float = 1.0) -> Curve:
    xs = tuple(float(n) for n in range(1, 400, 3))
    return Curve(name, xs, tuple(scale * (1.0 + 50.0 / x) for x in xs))


DIAGNOSIS = Diagnosis(
    "c0ffee00",
    RunEvidence(
        length=Length(batches=400, steps=390, attempts=400),
        gating=Gating(vetoes=(Tally("nonfinite", 9), Tally("zero", 1))),
        losses=Losses(n=400, first=2.3, last=0.4),
    ),
    (
        Finding("LABELS_SHUFFLED", "loss <script>alert(1)</script> & no better.", "labels"),
        Finding("MANY_VETOES", "3 % of 400 attempts vetoed.", "a.very.long.name." * 12),
    ),
    Judgement("does not learn", "LABELS_SHUFFLED in labels: no better than chance."),
    (
        a_curve("training loss"),
        a_curve("validation loss", 1e-7),
        a_curve("gradient norm", 1e4),
        *(a_curve(f"learning rate: group{n}", 1e-3 * n) for n in range(1, 9)),
        *(a_curve(f"update ratio: {n}", 1e-4) for n in ("backbone", "head")),
        a_curve("step time [ms]", 12.0),
        Curve("memory [MB]", (1.0, 2.0), (1234567.0, 1234568.5)),
    ),
    tuple(Veto(float(n), "nonfinite") for n in range(1, 400, 40)),
)


def page() -> str:
    return report(
        DIAGNOSIS,
        title="MusicNet, run c0ffee00",
        origin=collect_provenance({"seed": 0}, run_id="c0ffee00", device="cpu"),
        config="optimizer:\n  lr: 0.001 # <b>not bold</b>\n" + "long: " + "x" * 300,
        picture=Picture(DOT, "image/png", "one dot"),
    )


class Reader(HTMLParser):
    """Keeps all tags with their attributes, and checks that they close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_it_is_whole_in_itself() -> None:
    text = page()
    assert not re.search(r"https?:|//[a-z]|url\(|@import", text.replace("<!doctype", ""))
    reader = Reader(text)
    assert reader.open == []
    assert not reader.all("script")
    assert not reader.all("link")
    assert all((img["src"] or "").startswith("data:image/png;base64,") for img in reader.all("img"))


def test_ids_are_unique_and_labels_point_to_them() -> None:
    reader = Reader(page())
    ids = [a["id"] for _, a in reader.tags if "id" in a]
    assert len(ids) == len(set(ids))
    asked = {a["aria-labelledby"] for _, a in reader.tags if "aria-labelledby" in a}
    assert asked <= set(ids)


def test_pictures_are_told_in_words() -> None:
    text = page()
    reader = Reader(text)
    drawn = [svg for svg in reader.all("svg") if svg.get("role") == "img"]
    assert len(drawn) == 7
    titles = re.findall(r"<title id=[^>]*>([^<]*)</title>", text)
    assert "Training loss: training loss from 51 to 1.13, between 1.13 and 51." in titles
    assert all(img["alt"] for img in reader.all("img"))
    assert all(a.get("aria-hidden") for a in reader.all("svg") if a.get("role") != "img")


def test_the_verdict_stands_before_everything_else() -> None:
    body = page().partition("<body>")[2]
    places = [
        body.index(words)
        for words in (
            "This run does not learn.",
            "<h3>LABELS_SHUFFLED",
            "Training loss",
            "git commit",
        )
    ]
    assert places == sorted(places)


def test_what_comes_from_outside_is_never_markup() -> None:
    text = page()
    assert "<script" not in text
    assert "<b>not bold" not in text
    assert "<script>alert(1)</script>" in unescape(text)


def test_an_empty_run_has_a_page_too(tmp_path: Path) -> None:
    empty = Diagnosis(None, RunEvidence(), (), Judgement("could not tell", "0 steps."))
    path = write_report(tmp_path, empty, title="nothing")
    text = path.read_text(encoding="utf-8")
    assert text.count("Nothing was seen.") == 7
    assert "Nothing was found." in text
    assert "Why steps were skipped" not in text


@pytest.mark.parametrize("value", [0.0, 5.0, -3.0, 1e-12])
def test_a_flat_line_is_drawn_inside_its_frame(value: float) -> None:
    drawn = figure(Chart("flat", "Flat", "x", "y", (Line("one", (1.0, 2.0), (value, value)),)))
    places = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", drawn)]
    assert places
    assert all(0.0 <= y <= 260.0 for y in places)


def luminance(colour: str) -> float:
    channels = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_lines_stand_out_from_paper_and_card(scheme: str) -> None:
    light, dark = STYLE.split("@media (prefers-color-scheme:dark)")
    colours = dict(re.findall(r"--(\w+):(#\w{6})", light))
    if scheme == "dark":
        colours |= dict(re.findall(r"--(\w+):(#\w{6})", dark))
    for ground in ("paper", "card"):
        for name, colour in colours.items():
            if name in ("paper", "card", "rule"):
                continue
            pair = sorted((luminance(colour), luminance(colours[ground])), reverse=True)
            assert (pair[0] + 0.05) / (pair[1] + 0.05) >= 4.5, (name, ground)


@pytest.mark.parametrize(("kind", "told"), [("image/gif", "a dot"), ("image/png", "")])
def test_a_picture_has_a_known_kind_and_words(kind: str, told: str) -> None:
    with pytest.raises(ValueError, match="told in words"):
        Picture(DOT, kind, told)


def test_a_page_gives_its_picture_back(tmp_path: Path) -> None:
    assert picture_in(tmp_path) is None
    drawn = Picture(DOT, "image/png", 'a "dot" & <no more>')
    path = write_report(tmp_path, DIAGNOSIS, title="one", picture=drawn)
    assert picture_in(tmp_path) == drawn
    text = path.read_text(encoding="utf-8")
    for damage in (("image/png", "image/gif"), (";base64,", ";base64,=")):
        path.write_text(text.replace(*damage), encoding="utf-8")
        assert picture_in(tmp_path) is None


MEASURE = """
const problems = [];
const root = document.documentElement;
if (root.scrollWidth > root.clientWidth + 1) problems.push("wider than the window");
const boxes = list => [...list].map(e => [e, e.getBoundingClientRect()]);
const meet = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
  && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1;
const apart = (pairs, what) => pairs.forEach(([e, a], i) => pairs.slice(i + 1).forEach(([f, b]) => {
  if (!e.contains(f) && !f.contains(e) && meet(a, b))
    problems.push(`${what}: ${e.textContent.slice(0, 30)} | ${f.textContent.slice(0, 30)}`);
}));
const blocks = "h1,h2,.verdict,.numbers div,.findings li,figure,table,pre,img,.origin div";
apart(boxes(document.querySelectorAll(blocks)), "blocks");
document.querySelectorAll("figure > svg").forEach(svg => {
  const frame = svg.getBoundingClientRect(), texts = boxes(svg.querySelectorAll("text"));
  apart(texts, "labels");
  texts.forEach(([e, b]) => {
    if (b.left < frame.left - 1 || b.right > frame.right + 1 || b.bottom > frame.bottom + 1)
      problems.push(`cut: ${e.textContent}`);
  });
});
document.querySelectorAll("dd,p,li,h3").forEach(e => {
  if (e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display !== "inline")
    problems.push(`cut: ${e.textContent.slice(0, 30)}`);
});
parent.postMessage(JSON.stringify(problems), "*");
"""


def browser() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


@pytest.mark.integration
@pytest.mark.skipif(
    browser() is None,
    reason="no browser on the PATH: install one as `chromium`, `chromium-browser` or "
    "`google-chrome`, for instance by `apt-get install chromium`",
)
@pytest.mark.parametrize("width", [360, 1200])
def test_in_a_browser_nothing_is_cut_and_nothing_overlaps(width: int, tmp_path: Path) -> None:
    asked = page().replace("</body>", f"<script>{MEASURE}</script></body>")
    (tmp_path / "page.html").write_text(asked, encoding="utf-8")
    frame = (
        f'<iframe src="page.html" style="width:{width}px;height:6000px"></iframe><pre></pre>'
        "<script>onmessage = e => document.querySelector('pre').textContent = e.data</script>"
    )
    (tmp_path / "frame.html").write_text(frame, encoding="utf-8")
    seen = subprocess.run(
        [
            browser() or "",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--window-size=1300,6200",
            "--virtual-time-budget=5000",
            f"--screenshot={tmp_path / 'page.png'}",
            "--dump-dom",
            (tmp_path / "frame.html").as_uri(),
        ],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    (told,) = re.findall(r"<pre>(.*?)</pre>", seen.stdout, flags=re.DOTALL)
    assert json.loads(unescape(told)) == []
