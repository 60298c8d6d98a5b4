import math

import pytest
import torch

from musicnet.coordinates import angles
from musicnet.scene.sources import SearchRegion, SourceLaw, Sources


def draw(law, n=4000, seed=0):
    return law.draw(n, [torch.Generator().manual_seed(seed)])


def test_drawn_sources_fill_their_bounds_and_no_more():
    law = SourceLaw(
        azimuth_deg=(-40.0, 20.0),
        elevation_deg=(-10.0, 25.0),
        range_m=(1.0, 4.0),
        snr_db=(0.0, 10.0),
    )
    drawn = draw(law)
    azimuth, elevation = (a.rad2deg() for a in angles(drawn.parameters))
    snr_db = 20 * drawn.amplitude[drawn.resolved].log10()
    columns = {
        (-40, 20): azimuth,
        (-10, 25): elevation,
        (1, 4): 1 / drawn.parameters[..., 2],
        (0, 10): snr_db,
        (0, 2 * math.pi): drawn.phase,
    }
    for (low, high), column in columns.items():
        span = high - low
        assert low - 1e-3 <= column.min() < low + 0.01 * span
        assert high - 0.01 * span < column.max() <= high + 1e-3
        assert column.mean().item() == pytest.approx((low + high) / 2, abs=0.03 * span)


def test_every_number_of_sources_is_equally_likely():
    drawn = draw(SourceLaw(n_min=2, n_max=5))
    counts = torch.bincount(drawn.sources.n_sources.flatten(), minlength=6)
    assert counts[:2].sum() == 0
    torch.testing.assert_close(counts[2:] / 4000, torch.full((4,), 0.25), atol=0.03, rtol=0)


def test_a_fixed_number_of_sources_is_met_in_every_scene():
    assert draw(SourceLaw(n_min=3, n_max=3)).resolved.all()


def test_empty_slots_are_silent_and_nan():
    drawn = draw(SourceLaw())
    assert (drawn.amplitude[~drawn.resolved] == 0).all()
    assert (drawn.amplitude[drawn.resolved] > 0).all()
    sources = drawn.sources
    assert torch.equal(sources.parameters.isnan().all(-1), ~sources.resolved)
    assert sources.xyz[sources.resolved].isfinite().all()


def test_far_field_sources_have_zero_inverse_range():
    law = SourceLaw(elevation_deg=(0.0, 0.0), range_m=None)
    drawn = draw(law)
    assert (drawn.parameters[..., 2] == 0).all()
    assert law.region.active == (True, False, False)


def test_region_is_the_box_of_everything_drawn():
    law = SourceLaw(azimuth_deg=(-50.0, 80.0), elevation_deg=(-5.0, 40.0), range_m=(0.5, 8.0))
    parameters = draw(law).parameters.flatten(0, 2)
    clamped = law.region.clamp(parameters)
    torch.testing.assert_close(clamped, parameters, atol=1e-6, rtol=0)
    bounds = torch.tensor(list(law.region.bounds.values()))
    torch.testing.assert_close(parameters.amin(0), bounds[:, 0], atol=0.05, rtol=0)
    torch.testing.assert_close(parameters.amax(0), bounds[:, 1], atol=0.05, rtol=0)


def test_region_away_from_boresight_uses_the_right_corners():
    region = SearchRegion.from_angles((20.0, 40.0), (10.0, 30.0), (2.0, 4.0))
    sine, cosine = math.sin, math.cos
    low = sine(math.radians(20)) * cosine(math.radians(30))
    high = sine(math.radians(40)) * cosine(math.radians(10))
    assert region.u == pytest.approx((low, high))
    assert region.inverse_range == (0.25, 0.5)


def test_clamping_keeps_nan():
    region = SearchRegion((-0.5, 0.5), (0.0, 0.0), (0.0, 0.0))
    clamped = region.clamp(torch.tensor([[2.0, 1.0, 1.0], [math.nan, math.nan, math.nan]]))
    assert clamped[0].tolist() == [0.5, 0.0, 0.0]
    assert clamped[1].isnan().all()


@pytest.mark.parametrize(
    ("arguments", "got"),
    [
        ({"n_min": 0}, "got n_min=0"),
        ({"n_min": 3, "n_max": 2}, "n_max=2"),
        ({"azimuth_deg": (-100.0, 0.0)}, r"azimuth_deg .* got \(-100.0, 0.0\)"),
        ({"elevation_deg": (10.0, 0.0)}, "elevation_deg"),
        ({"range_m": (0.0, 5.0)}, r"range_m .* got \(0.0, 5.0\)"),
        ({"range_m": (1.0, math.inf)}, "range_m"),
        ({"snr_db": (math.nan, 5.0)}, r"got \(nan, 5.0\)"),
    ],
)
def test_impossible_laws_are_refused(arguments, got):
    with pytest.raises(ValueError, match=got):
        SourceLaw(**arguments)


def test_sources_move_to_a_device_unchanged():
    sources = draw(SourceLaw(), 5).sources
    moved = sources.to("cpu")
    assert isinstance(moved, Sources)
    torch.testing.assert_close(moved.parameters, sources.parameters, equal_nan=True)


@pytest.mark.parametrize(
    "region",
    [
        SearchRegion((-1.0, 1.0), (-1.0, 1.0), (0.0, 1.0)),
        SearchRegion((0.5, 0.9), (0.5, 0.95), (0.0, 0.0)),
        SearchRegion((-1.0, 1.0), (0.6, 0.6), (0.0, 0.0)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_clamping_stays_in_the_box_and_in_the_unit_disc(region, dtype):
    generator = torch.Generator().manual_seed(0)
    clamped = region.clamp(4.0 * torch.rand(1000, 3, generator=generator, dtype=dtype) - 2.0)
    for column, (low, high) in zip(clamped.unbind(-1), region.bounds.values(), strict=True):
        assert column.min() >= low - 1e-6
        assert column.max() <= high + 1e-6
    assert clamped[:, :2].square().sum(-1).max() <= 1.0
    torch.testing.assert_close(region.clamp(clamped), clamped)
