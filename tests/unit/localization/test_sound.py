"""Bearings of sound, their error bars, and tracks."""

import math
from dataclasses import replace

import pytest
import torch

from musicnet.estimation.wideband import WIDEBAND_METHODS
from musicnet.localization.sound import Bearings, localize_sound
from musicnet.localization.tracks import smoothed
from musicnet.scene.array import ArrayGeometry
from musicnet.scene.sound import Sound
from tests.unit.estimation.test_wideband import RATE, RING, plane_waves


def degrees_apart(found, wanted):
    """Largest distance on the circle, best order."""
    found = sorted(math.degrees(a) % 360.0 for a in found.tolist())
    pairs = zip(found, sorted(w % 360.0 for w in wanted), strict=True)
    return max(abs((a - b + 180.0) % 360.0 - 180.0) for a, b in pairs)


@pytest.mark.parametrize("method", WIDEBAND_METHODS)
@pytest.mark.parametrize("wanted", [[33.3], [0.2], [80.0, 200.5]])
def test_every_method_finds_bearings(method, wanted):
    found = localize_sound(
        plane_waves(torch.tensor(wanted).deg2rad().tolist()), len(wanted), method
    )
    assert (found.name, found.method) == ("bearing", method)
    assert degrees_apart(found.angles[0], wanted) < (0.3 if len(wanted) == 1 else 1.5)


def test_a_line_gives_lateral_angles():
    ring = ArrayGeometry(6).positions(0.08)
    heard = plane_waves([math.radians(90.0 - 25.0)], ring=ring)  # from +x is endfire
    found = localize_sound(heard, 1)
    assert found.name == "lateral"
    assert math.degrees(float(found.angles)) == pytest.approx(25.0, abs=0.3)


def test_error_bars_are_as_long_as_errors():
    squared = []
    for seed in range(24):
        found = localize_sound(plane_waves([1.0], seed=seed, n_samples=4096, noise=1.0), 1)
        squared.append(((float(found.angles) - 1.0) / float(found.deviations)) ** 2)
    # 15 degrees of freedom make the mean 1.15; its own deviation is 0.35
    assert 0.5 < sum(squared) / len(squared) < 2.2


@pytest.mark.parametrize("band", [(999.0, 1219.0), (999.0, 1470.0)])
def test_error_bars_of_few_frequencies_know_that_neighbours_are_alike(band):
    errors, bars = [], []
    for seed in range(24):
        heard = plane_waves([1.0], seed=seed, n_samples=4096, noise=1.0)
        found = localize_sound(heard, 1, band=band)
        errors.append(float(found.angles) - 1.0)
        bars.append(float(found.deviations))
    # independent frequencies would have bars 0.65 times as long
    assert 0.75 < math.hypot(*bars) / math.hypot(*errors) < 1.33


def test_the_end_of_a_line_is_less_sure_than_its_middle():
    line = ArrayGeometry(6).positions(0.08)
    errors, bars = [], []
    for seed in range(12):
        heard = plane_waves([0.0], seed=seed, n_samples=4096, noise=0.3, ring=line)
        found = localize_sound(heard, 1)
        errors.append(90.0 - math.degrees(float(found.angles)))
        bars.append(math.degrees(float(found.deviations)))
    # a sine that is off by s moves an angle by sqrt(2 s) there
    assert min(bars) > 0.3
    assert max(bars) < 6.0
    assert min(errors) >= -1e-4  # there is nothing beyond
    assert sum(error < 2.0 * bar for error, bar in zip(errors, bars, strict=True)) >= 9


def test_an_unsure_speed_of_sound_widens_what_depends_on_it():
    line = ArrayGeometry(6).positions(0.08)
    heard = plane_waves([math.radians(90.0 - 40.0)], ring=line)
    sure, unsure = (localize_sound(heard, 1, speed_std=std) for std in (0.0, 6.0))
    added = math.sqrt(float(unsure.deviations) ** 2 - float(sure.deviations) ** 2)
    # d asin(c s) = tan(angle) dc / c
    assert added == pytest.approx(math.tan(math.radians(40.0)) * 6.0 / 343.0, rel=0.05)
    ring = localize_sound(plane_waves([1.0]), 1, speed_std=6.0)
    assert float(ring.deviations) < 0.003


def test_windows_are_answered_one_by_one_and_silence_by_none():
    early, late = (plane_waves([math.radians(a)], n_samples=16000) for a in (30.0, 90.0))
    quiet = torch.zeros(8, 8000)
    heard = Sound(torch.cat((early.samples, quiet, late.samples), 1), RATE, early.positions)
    found = localize_sound(heard, 1, window_s=0.25)
    angles = found.angles[:, 0].rad2deg()
    assert angles[:3].tolist() == pytest.approx([30.0] * 3, abs=0.5)
    assert angles[-3:].tolist() == pytest.approx([90.0] * 3, abs=0.5)
    assert bool(found.resolved[found.middles < 0.8].all())
    assert not found.resolved[(found.middles > 1.15) & (found.middles < 1.35)].any()
    assert found.deviations.isnan().equal(found.angles.isnan())


def test_numbers_that_are_none_harm_their_window_alone():
    heard = plane_waves([math.radians(30.0)], n_samples=16000)
    spoilt = heard.samples.clone()
    spoilt[3, 9000] = math.nan
    clean, found = (
        localize_sound(Sound(s, RATE, heard.positions), 1, window_s=0.25)
        for s in (heard.samples, spoilt)
    )
    whole = found.resolved[:, 0]
    assert 0 < int((~whole).sum()) <= 2
    torch.testing.assert_close(found.angles[whole], clean.angles[whole])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"method": "esprit"}, "'esprit'", marks=pytest.mark.bad_shape),
        ({"speed": 0.0}, "between 1 and 100000 m/s, .* got 0 and 0 m/s"),
        ({"speed_std": 400.0}, "got 343 and 400 m/s"),
        ({"speed": 1e30}, r"got 1e\+30 and 0 m/s"),
        ({"elevation": 1.6}, "up to 89 degrees .* got an elevation of 91.67325 degrees"),
        ({"elevation": math.radians(89.9999)}, "got an elevation of 89.9999 degrees"),
        ({"band": (1000.0, 1001.0)}, "8 frequencies or more: got 1 in the band from 1000 to 1001"),
        ({"band": (1000.0, 1210.0)}, "got 7 in .* wider than 250 Hz"),
        ({"band": (3000.0, 5000.0)}, "2241 Hz: got 3000 to 5000"),
        ({"band": (900.0, 800.0)}, "rising frequencies > 0: got 900 to 800"),
        ({"band": (900.0, 8001.0)}, "half the sampling rate, 8000 Hz, .* got 900 to 8001"),
        ({"n_sources": 8}, "n_sources=8"),
        ({"n_sources": 0}, "n_sources=0"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        localize_sound(plane_waves([0.0]), **({"n_sources": 1} | options))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rate", [100.0, 600.0, 666.0])
def test_a_low_rate_is_not_taken_for_spatial_aliasing(rate):
    heard = plane_waves([0.0])
    with pytest.raises(ValueError, match=f"no frequency above {rate / 2:g} Hz") as caught:
        localize_sound(replace(heard, rate=rate), 1)
    assert "aliasing" not in str(caught.value)
    band = (0.05 * rate, 0.5 * rate)
    if rate == 100.0:  # four in a frame of eight samples
        with pytest.raises(ValueError, match="8 frequencies or more: got 4"):
            localize_sound(replace(heard, rate=rate), 1, band=band)
    else:
        assert localize_sound(replace(heard, rate=rate), 1, band=band).band == band


@pytest.mark.parametrize(
    ("scale", "elevation"), [(1e-12, 0.0), (1e-40, 0.0), (1e-3, 0.0), (0.1, 1.55), (100.0, 0.0)]
)
def test_an_array_of_no_sensible_size_is_refused(scale, elevation):
    ring = torch.cat((scale * RING, scale * RING + torch.tensor([1e-3 * scale, 0.0, 0.0])))
    heard = Sound(torch.ones(16, 4096), RATE, ring)
    with pytest.raises(ValueError, match=r"the aperture of the array|all at one") as caught:
        localize_sound(heard, 1, elevation=elevation)
    assert "\n" not in str(caught.value)


def bearings(angles, *, std=1.0, name="bearing"):
    degrees = torch.tensor(angles, dtype=torch.float64)
    seconds = 0.5 * torch.arange(len(angles), dtype=torch.float64)
    deviations = torch.where(degrees.isnan(), math.nan, math.radians(std))
    return Bearings(degrees.deg2rad(), deviations, seconds, name, "music", (300.0, 7e3), 2e3)


def test_tracks_keep_their_sources_whatever_their_order():
    found = smoothed(bearings([[10.0, 100.0], [101.0, 11.0], [12.0, math.nan]]), 0.1)
    degrees = found.angles.rad2deg()
    assert degrees[:, 0].tolist() == pytest.approx([10.0, 11.0, 12.0], abs=1.0)
    assert degrees[:2, 1].tolist() == pytest.approx([100.0, 101.0], abs=1.0)
    assert bool(degrees[2, 1].isnan())


def test_a_still_source_is_averaged_over_time():
    torch.manual_seed(0)
    noisy = 50.0 + torch.randn(200, 1)
    found = smoothed(bearings(noisy.tolist()), math.radians(0.1))
    errors = found.angles.rad2deg()[50:, 0] - 50.0
    assert float(errors.square().nanmean().sqrt()) < 0.45
    # a random walk of 0.1 degrees in a second, read with 1 degree twice a second
    steady = found.deviations.rad2deg()[-1, 0]
    assert float(steady) == pytest.approx(math.sqrt(math.sqrt(0.005) * 1.0), rel=0.1)


def test_tracks_cross_the_seam_of_the_circle():
    walk = [[(178.0 + 0.5 * n + 180.0) % 360.0 - 180.0] for n in range(12)]
    found = smoothed(bearings(walk), math.radians(5.0)).angles.rad2deg()[:, 0]
    apart = (found - torch.tensor(walk)[:, 0] + 180.0) % 360.0 - 180.0
    assert float(apart.abs().max()) < 1.0
    assert float(found.abs().max()) <= 180.0


def test_a_single_stray_angle_moves_nothing_and_a_lasting_one_begins_anew():
    found = smoothed(bearings([[20.0], [20.0], [170.0], [20.0]]), 0.01).angles.rad2deg()[:, 0]
    assert bool(found[2].isnan())
    assert float(found[3]) == pytest.approx(20.0, abs=0.1)
    lasting = smoothed(bearings([[20.0]] + [[170.0]] * 5), 0.01).angles.rad2deg()[:, 0]
    assert float(lasting[-1]) == pytest.approx(170.0, abs=0.1)


def test_a_track_that_forgets_everything_is_as_sure_as_its_last_angle():
    found = smoothed(bearings([[20.0], [170.0], [30.0]], std=2.0), math.radians(3600.0))
    assert found.deviations.rad2deg().flatten().tolist() == pytest.approx([2.0] * 3, rel=1e-3)


@pytest.mark.parametrize("drift", [0.0, math.nan, -1.0, 1e150, 1e300, math.radians(3601.0)])
def test_a_drift_that_is_none_is_refused(drift):
    with pytest.raises(ValueError, match="drift"):
        smoothed(bearings([[1.0]]), drift)
