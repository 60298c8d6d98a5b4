"""Limits on lines against rows made by hand, and the published figure of many coherent sources."""

import importlib
import itertools
import math
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[3] / "benchmarks"
NAMES = ("line_limits", "many_coherent", "localizer_limits", "trials", "lines")


@pytest.fixture(scope="module")
def scripts():
    """The scripts, which are in no package, and import each other by name."""
    known = set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    yield {name: importlib.import_module(name) for name in NAMES}
    sys.path.remove(str(FOLDER))
    for name in set(NAMES) - known:
        sys.modules.pop(name, None)


def judged(scripts, symbols, snr_db, **changed):
    trial = scripts["trials"].Trial(
        "line", None, n_sources=2, snr_db=(snr_db, snr_db), symbols=symbols
    )
    row = {
        "n_sources": 2,
        "snr_db": snr_db,
        "rmse_over_nomp": 0.9,
        "rmse_over_nomp_interval": [0.8, 1.0],
        "median_over_nomp_interval": [0.9, 1.1],
        "outliers_less_nomp_interval": [-0.01, 0.01],
        "cpu_over_nomp": 0.9,
    }
    rows = {"neural": row | changed, "nomp": row}
    return scripts["localizer_limits"].verdict(rows, scripts["line_limits"].limits_of(trial))


@pytest.mark.parametrize("symbols", ["incoherent", "coherent"])
@pytest.mark.parametrize("snr_db", [-5.0, 20.0])
def test_a_good_method_keeps_all_limits_of_lines(scripts, symbols, snr_db):
    assert judged(scripts, symbols, snr_db)["holds"] is True


@pytest.mark.parametrize(
    "worse",
    [
        {"rmse_over_nomp_interval": [1.01, 1.2]},
        {"median_over_nomp_interval": [1.01, 1.2]},
        {"outliers_less_nomp_interval": [0.001, 0.01]},
        {"cpu_over_nomp": 1.01},
    ],
)
def test_what_is_worse_beyond_the_interval_or_slower_is_missed(scripts, worse):
    assert judged(scripts, "incoherent", 10.0, **worse)["holds"] is False


def test_coherent_sources_in_strong_noise_must_be_better(scripts):
    level = {"rmse_over_nomp": 1.0}
    assert judged(scripts, "coherent", -5.0, **level)["holds"] is False
    assert judged(scripts, "coherent", 10.0, **level)["holds"] is True
    assert judged(scripts, "incoherent", -5.0, **level)["holds"] is True


def test_the_scene_error_is_that_of_the_best_assignment_wrapped_to_half_a_turn(scripts):
    truth = torch.tensor([[-1.5, 0.1, 0.9], [-0.5, 0.0, 0.5]], dtype=torch.float64)
    estimate = torch.tensor([[0.11, 1.55, 0.9], [-0.5, math.nan, 0.6]], dtype=torch.float64)
    errors = scripts["many_coherent"].scene_errors(estimate, truth)
    best = math.inf
    for order in itertools.permutations(range(3)):
        apart = [float(estimate[0, i] - truth[0, j]) for j, i in enumerate(order)]
        wrapped = [math.remainder(one, math.pi) for one in apart]
        best = min(best, math.sqrt(sum(one**2 for one in wrapped) / 3.0))
    assert errors[0].item() == pytest.approx(best)
    # a missing source counts as a quarter turn
    missing = math.sqrt(((0.5 * math.pi) ** 2 + 0.1**2) / 3.0)
    assert errors[1].item() == pytest.approx(missing)


def test_the_scenes_of_many_coherent_sources_are_those_that_were_published(scripts):
    observation, azimuth = scripts["many_coherent"].draw(50, seed=1)
    gaps = azimuth.rad2deg().diff(dim=-1)
    assert float(gaps.min()) > 15.0
    assert float(azimuth.abs().max()) <= 0.5 * math.pi
    values = torch.linalg.svdvals(observation.y[0].to(torch.complex128)).square() / 100.0
    # one waveform of 20 dB from five sources: one dimension above the noise
    assert float(values[:, 1].max()) < 3.0
    wanted = 100.0 * _signature_power(azimuth)
    torch.testing.assert_close(values[:, 0], wanted + 1.0, rtol=0.5, atol=3.0)


def _signature_power(azimuth):
    phase = math.pi * torch.arange(8) * azimuth.sin()[..., None]
    return torch.exp(1j * phase).sum(1).abs().square().sum(-1)
