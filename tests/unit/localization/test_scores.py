"""Figures of a cell against answers that were made by hand."""

import math

import pytest
import torch

from musicnet.coordinates import angles, from_xyz
from musicnet.localization.contestants import Reply
from musicnet.localization.scores import Truth, compared, figures_of, joined, score
from musicnet.scene.sources import SourceLaw, Sources

N_CHANNELS, N_SCENES = 3, 4
NEAR, FAR = SourceLaw(n_max=2), SourceLaw(n_max=2, elevation_deg=(0.0, 0.0), range_m=None)


def truth_of(law, deviation=0.01):
    """Two sources in every scene, and one bound for all of them."""
    places = torch.tensor([[0.3, 0.1, 0.5], [-0.4, 0.2, 0.8]])
    if law.range_m is None:
        places = places * torch.tensor([1.0, 0.0, 0.0])
    parameters = places.expand(N_CHANNELS, N_SCENES, 2, 3)
    variance = torch.tensor(law.region.active).double() * deviation**2
    bound = torch.diag_embed(variance.expand(N_CHANNELS, N_SCENES, 2, 3))
    resolved = torch.ones(N_CHANNELS, N_SCENES, 2, dtype=torch.bool)
    return Truth(Sources(parameters, resolved), bound, law)


def figures(reply, truth, counted=None):
    given = score(reply, truth, cpu_ms=6.0, counted=counted)
    return figures_of(given, truth.error, N_CHANNELS * N_SCENES, n_draws=20)


def without_the_second(sources):
    resolved = sources.resolved.clone()
    resolved[..., 1] = False
    return Sources(sources.parameters.masked_fill(~resolved[..., None], math.nan), resolved)


def moved(sources, offset):
    return Sources(from_xyz(sources.xyz + torch.tensor(offset)), sources.resolved)


@pytest.mark.parametrize("law", [NEAR, FAR])
def test_the_perfect_estimator_has_nothing_to_blame(law):
    truth = truth_of(law)
    reply = Reply(Sources(truth.sources.parameters.flip(-2), truth.sources.resolved))
    row = figures(reply, truth, counted=(reply, 12.0))
    assert row["outliers"] == 0.0
    assert row["outliers_interval"] == [0.0, 0.0]
    assert row["recall"] == (None if law is FAR else 1.0)
    assert row["gospa"] == pytest.approx(0.0, abs=1e-6)
    assert row["count_right"] == row["resolved"] == 1.0
    assert row["median"] == row["rmse"] == row["efficiency"] == 0.0
    assert row["nees_xyz"] is None
    assert row["cpu_ms_per_scene"] == pytest.approx(0.5)
    assert row["cpu_ms_per_scene_counting"] == pytest.approx(1.0)
    assert (row["n_scenes"], row["n_channels"]) == (12, 3)


@pytest.mark.parametrize("law", [NEAR, FAR])
def test_a_source_that_is_missed_is_counted_as_missed(law):
    truth = truth_of(law)
    reply = Reply(without_the_second(truth.sources))
    row = figures(reply, truth, counted=(reply, 1.0))
    assert row["outliers"] == row["resolved"] == 0.5
    assert row["recall"] == (None if law is FAR else 0.5)
    assert row["count_right"] == 0.0
    # one of two missed, c = 1, p = 2
    assert row["gospa"] == pytest.approx(math.sqrt(0.5))
    assert row["median"] == 0.0


def test_an_estimator_without_any_answer_has_no_error():
    truth = truth_of(NEAR)
    nothing = Sources(torch.full_like(truth.sources.parameters, math.nan), ~truth.sources.resolved)
    row = figures(Reply(nothing), truth)
    assert (row["outliers"], row["recall"], row["resolved"]) == (1.0, 0.0, 0.0)
    assert math.isnan(row["median"])
    assert row["count_right"] is row["gospa"] is row["cpu_ms_per_scene_counting"] is None


def test_errors_in_space_are_held_against_the_bound_in_space():
    truth = truth_of(NEAR, deviation=0.01)
    reply = Reply(moved(truth.sources, (0.03, -0.04, 0.0)))
    row = figures(reply, truth)
    assert row["error"] == "position_m"
    assert row["median"] == pytest.approx(0.05, rel=1e-4)
    assert row["rmse"] == pytest.approx(0.05, rel=1e-4)
    # r = 2 and 1.25: (r du)^2 + (r dv)^2 and so on, by differences
    places = truth.sources.parameters[0, 0].double()
    steps = 1e-6 * torch.eye(3, dtype=torch.float64)
    base = Sources(places, truth.sources.resolved[0, 0]).xyz
    slopes = torch.stack(
        [(Sources(places + s, truth.sources.resolved[0, 0]).xyz - base) / 1e-6 for s in steps]
    )
    expected = 1e-4 * slopes.square().sum((0, 2)).mean()
    assert row["bound"] == pytest.approx(expected.sqrt().item(), rel=1e-4)


def test_errors_in_the_far_field_are_degrees_of_azimuth():
    truth = truth_of(FAR, deviation=0.001)
    turned = truth.sources.parameters + torch.tensor([0.02, 0.0, 0.0])
    row = figures(Reply(Sources(turned, truth.sources.resolved)), truth)
    azimuth = angles(turned)[0] - angles(truth.sources.parameters)[0]
    assert row["error"] == "azimuth_deg"
    expected = azimuth.rad2deg().square().mean().sqrt().item()
    assert row["rmse"] == pytest.approx(expected, rel=1e-4)
    assert row["outliers"] == 1.0  # 20 deviations


def test_honest_error_bars_read_one_and_short_ones_more():
    truth = truth_of(NEAR, deviation=0.1)
    offset = torch.tensor([0.01, -0.02, 0.03])
    found = moved(truth.sources, offset.tolist())
    stated = offset.abs().expand_as(found.xyz)
    assert figures(Reply(found, stated), truth)["nees_xyz"] == pytest.approx(1.0, rel=1e-3)
    assert figures(Reply(found, 0.5 * stated), truth)["nees_xyz"] == pytest.approx(4.0, rel=1e-3)


def test_error_bars_of_outliers_and_of_what_is_fixed_do_not_count():
    truth = truth_of(NEAR, deviation=0.1)
    found = moved(truth.sources, (0.01, 0.01, 0.01))
    parameters = found.parameters.clone()
    parameters[..., 1, :] = torch.tensor([0.5, -0.4, 0.2])  # far from its source
    stated = torch.full_like(found.xyz, 0.01)
    row = figures(Reply(Sources(parameters, found.resolved), stated), truth)
    assert row["outliers"] == 0.5
    assert row["nees_xyz"] == pytest.approx(1.0, rel=1e-3)
    stated[..., 1] = 0.0  # a coordinate that was not searched
    row = figures(Reply(Sources(parameters, found.resolved), stated), truth)
    assert row["nees_xyz"] == pytest.approx(1.0, rel=1e-3)


def test_methods_are_compared_channel_by_channel():
    truth = truth_of(NEAR)
    half = truth.sources.resolved.clone()
    half[0, :, 1] = False  # the first channel's second sources
    missing = Sources(truth.sources.parameters.masked_fill(~half[..., None], math.nan), half)
    given = score(Reply(missing), truth, cpu_ms=3.0)
    other = score(Reply(without_the_second(truth.sources)), truth, cpu_ms=6.0)
    row = compared(given, other, "nomp", n_draws=100)
    assert row["outliers_over_nomp"] == pytest.approx(1 / 3)
    assert row["outliers_less_nomp"] == pytest.approx(1 / 6 - 1 / 2)
    assert row["cpu_over_nomp"] == pytest.approx(0.5)
    assert row["cpu_over_nomp_interval"] == pytest.approx([0.5, 0.5])
    low, high = row["outliers_over_nomp_interval"]
    assert (low, high) == (0.0, 1.0)  # the first channel never, or every time


def test_a_method_beside_itself_is_level_and_beside_nothing_infinite():
    truth = truth_of(NEAR)
    missed = score(Reply(without_the_second(truth.sources)), truth, cpu_ms=1.0)
    perfect = score(Reply(truth.sources), truth, cpu_ms=1.0)
    level = compared(missed, missed, "nomp", n_draws=20)
    assert level["outliers_over_nomp"] == 1.0
    assert level["outliers_over_nomp_interval"] == [1.0, 1.0]
    assert level["outliers_less_nomp_interval"] == [0.0, 0.0]
    assert compared(missed, perfect, "nomp", n_draws=20)["outliers_over_nomp"] == math.inf
    assert math.isnan(compared(perfect, perfect, "nomp", n_draws=20)["outliers_over_nomp"])


def test_batches_join_into_one_score():
    truth = truth_of(NEAR)
    reply = Reply(without_the_second(truth.sources))
    one = score(reply, truth, 3.0, counted=(reply, 1.0))
    both = joined([one, one])
    assert both.error.shape == (6, 8)
    assert both.count_right.shape == (6, N_SCENES)
    assert both.cpu_ms.tolist() == [1.0] * 6
    assert joined([score(reply, truth, 3.0)]).gospa is None
