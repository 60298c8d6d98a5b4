"""Sound that is broken or spoilt: one line, an exit code, and the good windows kept."""

import csv
import json
import math

import numpy as np
import pytest

from musicnet.commands import inspect, localize
from tests.unit.estimation.test_wideband import RATE, plane_waves

soundfile = pytest.importorskip("soundfile")
N_WINDOWS, WINDOW = 4, 4000
BAND = ("--frequency", "1000")
RING = ("--array", "uca:8:0.1m", "--n-sources", "1")
WORDS = (*RING, "--window", "0.25", "--band", "300", "2000")


@pytest.fixture(scope="module")
def samples():
    heard = plane_waves([math.radians(40.0)], n_samples=N_WINDOWS * WINDOW, seed=3)
    found = heard.samples.numpy().T
    return (0.5 * found / np.abs(found).max()).astype(np.float64)


@pytest.fixture
def run(tmp_path, capsys):
    """Localises a file into another: the exit code, the scenes, and the lines of stderr."""

    def go(path, *words, usual=WORDS):
        target = tmp_path / "out.json"
        target.unlink(missing_ok=True)
        code = localize.run([str(path), *usual, *words, "--output", str(target)])
        scenes = json.loads(target.read_text())["scenes"] if target.exists() else None
        return code, scenes, capsys.readouterr().err.splitlines()

    return go


def written(folder, samples, name="talk.wav", rate=RATE, subtype="FLOAT"):
    soundfile.write(folder / name, samples, int(rate), subtype=subtype)
    return folder / name


def with_channel(samples, channel, values):
    changed = samples.copy()
    changed[:, channel] = values
    return changed


def cut(path, share):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    return path


BROKEN = {
    "one channel": (lambda d, x: written(d, x[:, :1]), "1 channels, want 2 to 1024"),
    "no samples": (lambda d, x: written(d, x[:0]), "has 0 samples"),
    "one sample": (lambda d, x: written(d, x[:1]), "holds 1 samples"),
    "a quarter of a frame": (lambda d, x: written(d, x[:128]), "holds 128 samples (0.008 s)"),
    "64 channels": (lambda d, x: written(d, np.tile(x, 8)), "64 channels, --array uca:8:0.1m has"),
    "6 channels of 24 bits": (lambda d, x: written(d, x[:, :6], subtype="PCM_24"), "6 channels"),
    "text": (lambda d, x: (d / "a.wav").write_text("not a sound") and d / "a.wav", "not a WAV"),
    "an empty file": (lambda d, x: (d / "a.wav").write_bytes(b"") or d / "a.wav", "0 bytes"),
    "a cut WAV": (lambda d, x: cut(written(d, x), 0.5), "is truncated: it declares 512000 bytes"),
    "a WAV without sound": (lambda d, x: cut(written(d, x), 0.0001), "truncated or no sound"),
    "a cut FLAC": (lambda d, x: cut(written(d, x, "a.flac", subtype="PCM_16"), 0.5), "at sample"),
    "silence": (lambda d, x: written(d, 0 * x), "silent throughout"),
    "no numbers": (lambda d, x: written(d, x + np.nan), "channel 0 is not finite at sample 0"),
    "a dead microphone": (lambda d, x: written(d, with_channel(x, 3, 0.0)), "channel 3 is dead"),
    "two alike": (lambda d, x: written(d, with_channel(x, 3, x[:, 5])), "channels 3 and 5 are id"),
    "too faint": (lambda d, x: written(d, 1e-30 * x), "too faint: want 1e-15"),
    "too loud": (lambda d, x: written(d, 1e200 * x, subtype="DOUBLE"), "above 1e+15"),
    "a low rate": (lambda d, x: written(d, x, rate=1000), "half the sampling rate, 500 Hz"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one_line_and_nothing_is_written(name, samples, run, tmp_path):
    make, reason = BROKEN[name]
    path = make(tmp_path, samples)
    code, scenes, said = run(path)
    assert (code, scenes, len(said)) == (1, None, 1)
    assert reason in said[0]
    assert said[0].startswith("error: ")
    assert str(path) in said[0]
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture(scope="module")
def clean(samples, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clean")
    target = folder / "out.json"
    assert localize.run([str(written(folder, samples)), *WORDS, "--output", str(target)]) == 0
    return [{**one, "file": "", "cpu_ms": 0} for one in json.loads(target.read_text())["scenes"]]


@pytest.mark.parametrize(
    ("value", "reason"),
    [(np.nan, "not finite at sample 4000"), (0.0, "dead (one value only) in window 1 (from 0.25")],
)
def test_the_good_windows_keep_every_bit(value, reason, samples, run, clean, tmp_path):
    changed = samples.copy()
    changed[WINDOW : 2 * WINDOW, 3] = value
    code, scenes, said = run(written(tmp_path, changed))
    assert code == 1
    assert len(said) == 1
    assert reason in said[0]
    assert said[0].endswith("the scene is left out")
    bad = scenes.pop(1)
    assert (bad["n_sources"], bad["sources"], bad["time_s"]) == (None, [], 0.375)
    assert reason in bad["error"]
    assert [{**one, "file": "", "cpu_ms": 0} for one in scenes] == [clean[0], *clean[2:]]


def test_a_file_with_a_bad_window_is_refused_strictly(samples, run, tmp_path):
    changed = samples.copy()
    changed[9, 2] = np.inf
    code, scenes, said = run(written(tmp_path, changed), "--strict")
    assert (code, scenes, len(said)) == (1, None, 1)
    assert "channel 2 is not finite at sample 9" in said[0]


def test_silence_between_is_a_window_without_sources(samples, run, clean, tmp_path):
    changed = samples.copy()
    changed[WINDOW : 2 * WINDOW] = 0.25  # a constant is heard as little
    code, scenes, said = run(written(tmp_path, changed))
    assert (code, said) == (0, [])
    assert [one["n_sources"] for one in scenes] == [1, 0, 1, 1]
    assert not scenes[1]["sources"][0]["resolved"]
    assert scenes[2]["sources"] == clean[2]["sources"]


def test_tracks_go_on_after_a_bad_window(samples, run, tmp_path):
    changed = samples.copy()
    changed[WINDOW + 5, 0] = np.nan
    code, scenes, _ = run(written(tmp_path, changed), "--track", "1")
    assert code == 1
    assert "error" in scenes[1]
    for scene in (0, 2, 3):
        assert scenes[scene]["sources"][0]["bearing_deg"] == pytest.approx(40.0, abs=1.0)


def test_a_clipped_channel_is_a_warning(samples, run, tmp_path):
    changed = with_channel(samples, 2, np.clip(20.0 * samples[:, 2], -1.0, 1.0))
    code, scenes, said = run(written(tmp_path, changed, subtype="PCM_16"))
    assert code == 0
    assert len(scenes) == N_WINDOWS
    assert len(said) == 1
    assert "talk.wav: channel 2 is clipped" in said[0]


def test_a_narrow_band_is_not_cut_out_of_spoilt_sound(samples, run, tmp_path):
    code, scenes, said = run(
        written(tmp_path, with_channel(samples, 3, samples[:, 5])), *BAND, usual=RING
    )
    assert (code, scenes, len(said)) == (1, None, 1)
    assert "channels 3 and 5 are identical throughout" in said[0]
    clipped = with_channel(samples, 2, np.clip(20.0 * samples[:, 2], -1.0, 1.0))
    code, scenes, said = run(written(tmp_path, clipped), *BAND, usual=RING)
    assert code == 0
    assert ["channel 2 is clipped" in line for line in said] == [True]


def test_a_rest_that_is_not_heard_is_said(samples, run, tmp_path):
    path = written(tmp_path, samples[: 2 * WINDOW + 1500])
    code, scenes, said = run(path)
    assert (code, len(scenes), len(said)) == (0, 2, 1)
    assert said[0].startswith(f"{path}: the last 0.09375 s are less than a window and not used")


def test_a_microphone_that_lets_go_for_a_while_is_named(samples, run, tmp_path, capsys):
    changed = samples.copy()
    changed[WINDOW + 900 : WINDOW + 2900, 3] = 0.0
    path = written(tmp_path, changed)
    held = "channel 3 holds one value for 2000 samples from sample 4900"
    code, scenes, (line,) = run(path)
    assert (code, len(scenes), "error" in scenes[1], held in line) == (1, N_WINDOWS, True, True)
    code, _, said = run(path, *BAND, usual=RING)
    assert (code, [held in line for line in said]) == (0, [True])
    assert inspect.run([str(path)]) == 1
    assert held in capsys.readouterr().err


def test_a_bad_file_stops_nothing_but_itself(samples, tmp_path, capsys):
    good = written(tmp_path, samples)
    bad = written(tmp_path, 0 * samples, "silent.wav")
    target = tmp_path / "out.csv"
    assert localize.run([str(bad), str(good), *WORDS, "--output", str(target)]) == 1
    assert [line.count("silent.wav") for line in capsys.readouterr().err.splitlines()] == [1]
    rows = list(csv.DictReader(target.read_text(encoding="utf-8").splitlines()))
    assert {(row["method"], row["weights"]) for row in rows} == {("music", "")}
    assert len(rows) == N_WINDOWS


def test_inspection_says_what_sound_holds(samples, tmp_path, capsys):
    path = written(tmp_path, 2 * samples, subtype="PCM_24")
    assert inspect.run([str(path)]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    for wanted in (
        "talk.wav: sound, sha256",
        "16000 samples per second, 8 channels, 16000 samples each (1 s), stored as PCM_24",
        "holds frequencies to 8000 Hz; the usual band is 300 to 7200 Hz",
        f"level {20 * math.log10(2 * samples[:, 4].std()):.1f} dB",
        "not said: --array",
        "nothing is wrong",
    ):
        assert wanted in said.out
    assert inspect.run([str(path), "--array", "uca:8:0.1m"]) == 0
    assert "fits: 8 microphones; above 2241 Hz" in capsys.readouterr().out
    assert inspect.run([str(path), "--array", "uca:8:0.1m", "--speed", "300"]) == 0
    assert "above 1960 Hz" in capsys.readouterr().out


def test_inspection_says_what_is_wrong_with_sound(samples, tmp_path, capsys):
    changed = with_channel(samples, 3, 0.0)
    changed[:, 6] = changed[:, 1]
    changed[:, 2] = np.clip(20.0 * changed[:, 2], -1.0, 1.0)
    path = written(tmp_path, changed)
    assert inspect.run([str(path), "--array", "uca:7:0.1m"]) == 1
    said = capsys.readouterr()
    for wanted in ("channel 3   dead", "channels 1 and 6 are identical", ", clipped ("):
        assert wanted in said.out
    warning, *errors = said.err.splitlines()
    assert "channel 2 is clipped" in warning
    assert [line.partition("talk.wav")[2].partition(" throughout")[0] for line in errors] == [
        ": channel 3 is dead (one value only), channels 1 and 6 are identical",
        " has 8 channels, --array uca:7:0.1m has 7 microphones.",
    ]


def test_inspection_names_bad_windows(samples, tmp_path, capsys):
    changed = samples.copy()
    changed[15999, 7] = np.nan
    assert inspect.run([str(written(tmp_path, changed))]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "channel 7 is not finite at sample 15999, in window 0 (from 0 s)" in line


def test_inspection_of_text_that_says_it_is_sound(tmp_path, capsys):
    (tmp_path / "a.wav").write_text("not a sound")
    assert inspect.run([str(tmp_path / "a.wav")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "not a WAV file" in line
