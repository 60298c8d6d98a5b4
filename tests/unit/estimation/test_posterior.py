"""The posterior against slow integration over amplitudes, and against what it is meant to tell."""

import math
from dataclasses import replace

import pytest
import torch

from musicnet.estimation.found import Found, finish
from musicnet.estimation.linearization import explain
from musicnet.estimation.posterior import Loudness, log_posterior, misfit
from musicnet.estimation.problem import compress
from musicnet.estimation.pursuit import nomp
from musicnet.scene.sources import SourceLaw
from tests.unit.estimation.likelihood_scenes import draw, in_double, surface_scene

BOUNDS = Loudness(10.0**0.25, 10.0**1.25)


def one_source(snr_db=(10.0, 20.0)):
    scene = surface_scene(n_sources=1, snr_db=snr_db)
    observation, truth = draw(scene)
    problem = compress(in_double(observation), scene.region)
    cost = explain(problem, truth.parameters.double(), truth.resolved).cost
    return problem, Found(truth.parameters.double(), truth.resolved, cost)


def log_integral(problem, found, bounds, channel, scene):
    """The likelihood times the prior of the amplitude, summed over a fine polar grid."""
    explained = explain(problem, found.parameters, found.present)
    best = complex(explained.amplitudes[channel, scene, 0, 0, 0])
    # the norm of the signature squared, in units of the noise
    stiffness = float(explained.log_volume[channel, scene].exp())
    radius = torch.linspace(bounds.low, bounds.high, 20001, dtype=torch.float64)
    angle = torch.linspace(-math.pi, math.pi, 401, dtype=torch.float64)[:-1]
    amplitude = torch.polar(radius[:, None], angle + math.atan2(best.imag, best.real))
    exponent = -stiffness * (amplitude - best).abs().square()
    # density 1 / (2 pi r^2 log(high / low)) times the area r dr da
    density = 1.0 / (2.0 * math.pi * radius * math.log(bounds.high / bounds.low))
    steps = (radius[1] - radius[0]) * (angle[1] - angle[0])
    total = (exponent.exp() * density[:, None]).sum() * steps
    return float(total.log() - explained.cost[channel, scene])


def test_amplitudes_are_integrated_out():
    problem, found = one_source()
    assert (problem.noise_power == 1).all()
    bounds = Loudness(1.0, 20.0)
    # Laplace's method leaves pi / det, the density 1 / (2 pi log(high / low))
    constant = -math.log(2.0 * math.log(bounds.high / bounds.low))
    ours = constant - misfit(problem, found, bounds)
    for channel in range(2):
        for scene in range(4):
            expected = log_integral(problem, found, bounds, channel, scene)
            assert float(ours[channel, scene]) == pytest.approx(expected, abs=0.02)


def test_a_modulus_beyond_its_bounds_is_improbable():
    problem, found = one_source(snr_db=(18.0, 20.0))
    within = misfit(problem, found, Loudness(1.0, 20.0))
    too_loud = misfit(problem, found, Loudness(1.0, 2.0))
    too_faint = misfit(problem, found, Loudness(40.0, 80.0))
    assert (too_loud > within + 100.0).all()
    assert (too_faint > within + 100.0).all()


def test_bounds_are_those_of_the_law():
    bounds = Loudness.of(SourceLaw(snr_db=(-20.0, 40.0)))
    assert (bounds.low, bounds.high) == pytest.approx((0.1, 100.0))


@pytest.mark.parametrize("law", [SourceLaw(snr_of="total"), SourceLaw(snr_db=(3.0, 3.0))])
def test_a_law_without_bounds_for_each_source_is_refused(law):
    with pytest.raises(ValueError, match=r"got snr_of="):
        Loudness.of(law)


def test_the_right_number_of_sources_is_the_most_probable():
    scene = surface_scene(n_sources=2, snr_db=(10.0, 20.0))
    observation, _ = draw(scene, n_channels=4, n_scenes=8)
    problem = compress(observation, scene.region)
    bounds = Loudness.of(scene.sources)
    nothing = Found(
        torch.zeros(4, 8, 0, 3),
        torch.zeros(4, 8, 0, dtype=torch.bool),
        problem.y.abs().square().sum((2, 3, 4)),
    )
    probable = [log_posterior(problem, nothing, bounds)]
    for k in (1, 2, 3):
        sources = nomp(problem, None, k)
        probable.append(log_posterior(problem, finish(problem, sources), bounds))
    chosen = torch.stack(probable).argmax(0)
    assert (chosen == 2).float().mean() > 0.9


def test_sources_that_coincide_are_no_better_than_one():
    problem, one = one_source()
    bounds = Loudness(1.0, 10.0)
    twice = Found(one.parameters.repeat(1, 1, 2, 1), one.present.repeat(1, 1, 2), one.cost)
    assert (log_posterior(problem, twice, bounds) <= -one.cost / problem.noise_power).all()


def test_silence_is_nobody():
    """Scenes that were not finite are silenced; whatever is found there lies in one place."""
    problem, one = one_source()
    silent = replace(problem, y=torch.zeros_like(problem.y))
    nobody = Found(one.parameters[:, :, :0], one.present[:, :, :0], torch.zeros_like(one.cost))
    bounds = Loudness(1.0, 10.0)
    best = log_posterior(silent, nobody, bounds)
    for k in (1, 2, 3):
        present = one.present.repeat(1, 1, k)
        some = Found(one.parameters.repeat(1, 1, k, 1), present, torch.zeros_like(one.cost))
        assert (log_posterior(silent, some, bounds) <= best).all()
