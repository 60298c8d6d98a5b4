"""Error bars and likelihoods, against closed forms and slow ones."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from musicnet.coordinates import angles, to_xyz
from musicnet.estimation.bounds import deterministic_bound, position_bound
from musicnet.estimation.likelihood import fit_amplitudes
from musicnet.estimation.problem import compress
from musicnet.localization.confidence import assess
from musicnet.localization.estimates import Estimates
from musicnet.localization.task import with_slots
from musicnet.scene.array import ArrayGeometry
from musicnet.scene.scene import Scene
from musicnet.scene.snapshots import block_generator, draw_block
from musicnet.scene.sources import SearchRegion, SourceLaw, Sources
from musicnet.scene.surface import Surface

SURFACE = Scene(
    array=ArrayGeometry(5, 5),
    sources=SourceLaw(n_min=2, n_max=2, snr_db=(15.0, 15.0)),
    surface=Surface(n_antennas=5, n_codes=8),
)
LINE = Scene(
    array=ArrayGeometry(6),
    sources=SourceLaw(
        n_min=2, n_max=2, elevation_deg=(0.0, 0.0), range_m=None, snr_db=(10.0, 10.0)
    ),
    n_snapshots=40,
    symbols="data",
)
NEAR_LINE = replace(LINE, sources=replace(LINE.sources, range_m=(1.0, 5.0)))
SCENES = pytest.mark.parametrize("scene", [SURFACE, LINE, NEAR_LINE], ids=["ris", "far", "near"])


def drawn(scene, n_scenes=4):
    return draw_block(scene, block_generator(1, "confidence", 0, 0), n_scenes)


@SCENES
def test_the_covariance_is_the_bound_at_the_estimate(scene):
    heard, truth = drawn(scene)
    stated = assess(compress(heard, scene.region), truth).covariance
    bound = deterministic_bound(
        heard.operator,
        heard.positions,
        heard.wavelength,
        truth.parameters,
        fit_amplitudes(heard, truth).amplitudes,
        heard.noise_power,
        scene.active,
    )
    torch.testing.assert_close(stated.double(), bound, rtol=2e-3, atol=1e-9)


@SCENES
def test_the_likelihood_is_that_of_the_residual(scene):
    heard, truth = drawn(scene)
    heard = replace(heard, noise_power=torch.tensor([0.7, 1.0, 1.3, 2.0]))
    stated = assess(compress(heard, scene.region), truth).log_likelihood
    residual = fit_amplitudes(heard, truth).residual.numpy()
    for index, power in enumerate(heard.noise_power.tolist()):
        exact = -np.sum(np.abs(residual[index]) ** 2) / power
        exact -= residual[index].size * np.log(np.pi * power)
        assert stated[index].item() == pytest.approx(exact, rel=1e-4)


def test_empty_slots_have_no_error_bar_and_do_not_count():
    heard, truth = drawn(SURFACE)
    problem = compress(heard, SURFACE.region)
    whole = assess(problem, truth)
    padded = Sources(
        torch.cat((torch.full_like(truth.parameters[:, :1], math.nan), truth.parameters), 1),
        torch.cat((torch.zeros_like(truth.resolved[:, :1]), truth.resolved), 1),
    )
    found = assess(problem, padded)
    assert found.covariance[:, 0].isnan().all()
    torch.testing.assert_close(found.covariance[:, 1:], whole.covariance, rtol=1e-4, atol=1e-12)
    torch.testing.assert_close(found.log_likelihood, whole.log_likelihood)


@SCENES
def test_slots_that_only_other_scenes_fill_do_not_count_to_the_last_bit(scene):
    heard, truth = drawn(scene, n_scenes=8)
    # two sources that are hard to tell apart, so that roundings show
    close = torch.stack((truth.parameters[:, 0], truth.parameters[:, 0] + 2e-3), dim=1)
    narrow = Sources(scene.region.clamp(close), truth.resolved)
    wide = with_slots(narrow, 4)
    third = scene.region.clamp(close[-1, :1] + 0.1)[0]
    parameters, resolved = wide.parameters.clone(), wide.resolved.clone()
    parameters[-1, 2], resolved[-1, 2] = third, True  # the last scene is full
    problem = compress(heard, scene.region)
    found, alone = assess(problem, Sources(parameters, resolved)), assess(problem, narrow)
    assert torch.equal(found.covariance[:-1, :2], alone.covariance[:-1])
    assert torch.equal(found.log_likelihood[:-1], alone.log_likelihood[:-1])
    assert found.covariance[:-1, 2:].isnan().all()


def test_error_bars_grow_where_a_source_was_missed():
    heard, truth = drawn(SURFACE)
    problem = compress(heard, SURFACE.region)
    only_first = Sources(truth.parameters[:, :1], truth.resolved[:, :1])
    whole, part = assess(problem, truth), assess(problem, only_first)
    assert (part.log_likelihood < whole.log_likelihood - 20.0).all()
    trace = part.covariance[:, 0].diagonal(dim1=-2, dim2=-1)
    assert (trace > whole.covariance[:, 0].diagonal(dim1=-2, dim2=-1)).all()


def test_sources_in_one_place_have_endless_error_bars_and_nothing_breaks():
    heard, truth = drawn(SURFACE)
    twins = Sources(truth.parameters[:, :1].expand(-1, 2, -1), truth.resolved)
    covariance = assess(compress(heard, SURFACE.region), twins).covariance
    assert not covariance.isnan().any()
    alone = assess(
        compress(heard, SURFACE.region), Sources(truth.parameters[:, :1], truth.resolved[:, :1])
    ).covariance
    smallest = covariance.diagonal(dim1=-2, dim2=-1).amin((1, 2))
    assert (smallest > 100.0 * alone.diagonal(dim1=-2, dim2=-1)[:, 0].amin(-1)).all()


def estimates_at(parameters, covariance):
    sources = Sources(parameters, ~parameters.isnan().any(-1))
    n_sources = sources.n_sources
    return Estimates(sources, covariance, torch.zeros(n_sources.shape), n_sources, "nomp")


def test_deviations_move_with_the_coordinates():
    parameters = torch.tensor([[[0.3, -0.2, 0.5], [-0.6, 0.1, 1.25]]])
    root = torch.randn(1, 2, 3, 3, generator=torch.manual_seed(0)) * 1e-2
    covariance = root @ root.mT
    found = estimates_at(parameters, covariance)
    # to first order what derivatives say; beyond, what happens a deviation away
    in_space = position_bound(parameters, covariance.double()).diagonal(dim1=-2, dim2=-1).sqrt()
    torch.testing.assert_close(found.std_xyz.double(), in_space, rtol=1e-3, atol=0.0)
    narrow = estimates_at(parameters, 1e-2 * covariance)
    torch.testing.assert_close(narrow.std_xyz.double(), 0.1 * in_space, rtol=1e-5, atol=0.0)
    drawn_too = torch.distributions.MultivariateNormal(parameters, covariance).sample((20000,))
    azimuth, elevation = angles(drawn_too)
    torch.testing.assert_close(found.std_angles[0], azimuth.std(0), rtol=0.03, atol=0.0)
    torch.testing.assert_close(found.std_angles[1], elevation.std(0), rtol=0.03, atol=0.0)
    torch.testing.assert_close(
        found.std_range, covariance[..., 2, 2].sqrt() / parameters[..., 2].square()
    )


def test_far_sources_have_no_range_to_be_sure_of():
    parameters = torch.tensor([[[0.3, 0.0, 0.0], [math.nan] * 3]])
    covariance = torch.zeros(1, 2, 3, 3)
    covariance[..., 0, 0] = 1e-6
    found = estimates_at(parameters, covariance)
    assert found.std_range.isnan().all()
    assert found.std_angles[0][0, 0].item() == pytest.approx(1e-3 / math.sqrt(1 - 0.09), rel=1e-4)
    assert found.std_xyz[0, 0].tolist() == pytest.approx(
        [0.001, 0.0, 0.001 * 0.3 / 0.953939], rel=1e-4
    )


@pytest.mark.parametrize("place", [(0.97, 0.0), (0.99, 0.0), (0.0, -0.99), (0.7, 0.7), (0.0, 0.0)])
@pytest.mark.parametrize("rho", [0.0, 0.5])
def test_error_bars_at_the_rim_are_as_wide_as_errors(place, rho):
    """Estimates of deviation 0.01 that stay in the unit disc, as those of a search do."""
    truth = torch.tensor([*place, rho], dtype=torch.float64)
    drawn_ones = truth.repeat(4000, 1)
    drawn_ones[:, :2] += 0.01 * torch.randn(4000, 2, generator=torch.manual_seed(0)).double()
    drawn_ones[:, :2] /= drawn_ones[:, :2].norm(dim=-1, keepdim=True).clamp_min(1.0)
    covariance = torch.diag(torch.tensor([1e-4, 1e-4, 0.0])).expand(4000, 1, 3, 3)
    found = estimates_at(drawn_ones[:, None], covariance.double())
    pairs = zip(angles(drawn_ones), angles(truth[None]), found.std_angles, strict=True)
    for ours, theirs, std in pairs:
        assert 0.7 < ((ours - theirs) / std[:, 0]).square().mean() < 1.4
    height = found.sources.xyz[:, 0, 2] - to_xyz(truth[None])[0, 2]
    if any(place):  # straight ahead z does not move at all, to first order
        assert 0.7 < (height / found.std_xyz[:, 0, 2]).square().mean() < 1.4


def test_an_angle_that_is_not_determined_has_the_deviation_of_any_angle():
    """52 degrees of half a turn, 104 of a whole one: never more, never nothing."""
    places = [[0.3, 0.2, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.5], [0.0, 0.0, 0.0]]
    parameters = torch.tensor([*places, [math.nan] * 3])[None]
    half, whole = math.pi / math.sqrt(12.0), 2.0 * math.pi / math.sqrt(12.0)
    for variance in (0.0, 1e-12, 1e-2, 1.0, 1e30, math.inf, math.nan):
        covariance = torch.diag(torch.full((3,), variance)).expand(1, 5, 3, 3).clone()
        found = estimates_at(parameters, covariance)
        for std in found.std_angles:
            assert (std[0, :4] <= half + 1e-6).all()
        assert (found.std_bearing[0, :4] <= whole + 1e-6).all()
        assert (found.std_xyz[0, [0, 1, 3]] <= 2.0 / math.sqrt(12.0) + 1e-6).all()
        if variance > 0.5 or math.isnan(variance):
            torch.testing.assert_close(found.std_angles[0][0, :4], torch.full((4,), half))
        assert all(one[0, 4].isnan() for one in (*found.std_angles, found.std_bearing))
    zenith = estimates_at(parameters, torch.eye(3).expand(1, 5, 3, 3) * 1e-6)
    assert zenith.std_angles[0][0, 1].item() == pytest.approx(half)  # any azimuth
    assert zenith.std_angles[1][0, 1] < 0.05  # but one elevation
    assert zenith.std_bearing[0, 3].item() == pytest.approx(whole)


def test_what_the_region_fixes_has_no_error_bar():
    region = SearchRegion((-0.5, 0.5), (0.0, 0.0), (0.0, 0.0))
    heard, truth = drawn(LINE)
    covariance = assess(compress(heard, region), truth).covariance
    assert (covariance[..., 0, 0] > 0).all()
    assert (covariance[..., 1:, :] == 0).all()
