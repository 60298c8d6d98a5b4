"""What the benchmark of recordings says of answers that are known."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

from musicnet.recordings.observation_files import read_observations
from musicnet.recordings.streams import open_observations

ROOT = Path(__file__).parents[3]
DATA = ROOT / "tests" / "data"


@pytest.fixture(scope="module")
def recordings():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield importlib.import_module("recordings")
    sys.path.remove(str(ROOT / "benchmarks"))
    for name in ("recordings", "recordings_size"):
        sys.modules.pop(name, None)


def answered(recording, std, scale=1.0):
    """Entries with the labels as answers, off by noise of a deviation; stated ones are scaled."""
    lot = torch.Generator().manual_seed(0)
    entries = []
    for points, present in zip(recording.truth.xyz, recording.truth.resolved, strict=True):
        rows = []
        for point in points[present].double():
            off = point + std * torch.randn(3, generator=lot).double()
            row = dict(zip("xyz", off.tolist(), strict=True))
            row |= {f"std_{axis}": scale * std for axis in "xyz"}
            rows.append({**row, "resolved": True})
        entries.append({"sources": rows[::-1]})
    return entries


def test_figures_of_answers_are_those_that_were_made(recordings):
    recording = read_observations(DATA / "ris_pilot_48.npz")
    std = 1e-3
    figures = recordings.judged(answered(recording, std), recording)
    assert (figures["scenes"], figures["count_right"], figures["outliers"]) == (48, 1.0, 0.0)
    assert figures["rmse"] == pytest.approx(std * 3**0.5, rel=0.1)
    assert figures["nees"] == pytest.approx(1.0, abs=0.15)
    assert figures["nees_of_position"] == pytest.approx(figures["nees"])
    low, high = figures["nees_interval"]
    assert low < figures["nees"] < high < low + 0.5
    boasting = recordings.judged(answered(recording, std, 0.5), recording)
    assert boasting["nees"] == pytest.approx(4.0 * figures["nees"])


def test_missed_and_misplaced_sources_are_counted_and_not_averaged(recordings):
    recording = read_observations(DATA / "ula_far_24.npz")
    entries = answered(recording, 1e-4)
    n_sources = int(recording.truth.resolved.sum())
    entries[0]["sources"].pop()
    entries[1]["sources"][0]["x"] += 0.5
    figures = recordings.judged(entries, recording)
    assert figures["count_right"] == pytest.approx(23 / 24)
    assert figures["outliers"] == pytest.approx(2 / n_sources, rel=1e-5)
    assert figures["error"] == "azimuth_deg"
    assert figures["rmse"] < 0.1


def test_a_file_that_no_memory_held_is_a_good_one(recordings, tmp_path):
    recordings.recordings_size.write_scenes(tmp_path / "a.npz", 5, 6)
    with open_observations(tmp_path / "a.npz") as stream:
        (chunk,) = stream.chunks()
    assert (chunk.good, chunk.faults) == ((0, 1, 2, 3, 4), {})
    assert chunk.recording.y.shape == (5, 6, 8)
