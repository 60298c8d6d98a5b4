import math
from dataclasses import replace

import pytest
import torch

from musicnet.coordinates import to_xyz
from musicnet.scene.array import ArrayGeometry
from musicnet.scene.scene import Scene
from musicnet.scene.snapshots import draw_blocks
from musicnet.scene.sources import SourceLaw

LINE_LAW = SourceLaw(n_min=3, n_max=3, elevation_deg=(0.0, 0.0), range_m=None)
LINE = Scene(ArrayGeometry(8), LINE_LAW, n_snapshots=20, symbols="data")


def draw(law, n=2000, seeds=(0,)):
    return law.draw(n, [torch.Generator().manual_seed(s) for s in seeds])


def test_total_ratio_is_shared_by_all_sources_of_a_scene():
    law = SourceLaw(n_min=1, n_max=4, snr_db=(7.0, 7.0), snr_of="total")
    drawn = draw(law)
    power = drawn.amplitude.square()
    torch.testing.assert_close(power.sum(-1), torch.full((1, 2000), 10**0.7))
    count = drawn.resolved.sum(-1, keepdim=True)
    torch.testing.assert_close(power, drawn.resolved * 10**0.7 / count)


def test_path_loss_shares_by_inverse_square_of_range():
    law = SourceLaw(n_min=3, n_max=3, snr_of="total", path_loss_exponent=2.0)
    drawn = draw(law)
    rho = drawn.parameters[..., 2]
    expected = rho.square() / rho.square().sum(-1, keepdim=True)
    power = drawn.amplitude.square()
    torch.testing.assert_close(power / power.sum(-1, keepdim=True), expected)


def test_sources_in_phase_have_the_same_phase():
    drawn = draw(replace(LINE_LAW, phase_deg=(30.0, 30.0)))
    torch.testing.assert_close(drawn.phase, torch.full((1, 2000, 3), math.pi / 6))


@pytest.mark.parametrize(
    ("law", "least"),
    [(LINE_LAW, 15.0), (SourceLaw(n_min=4, n_max=4), 10.0), (SourceLaw(n_min=2, n_max=2), 40.0)],
)
def test_sources_keep_their_distance(law, least):
    drawn = draw(replace(law, min_separation_deg=least), 500, (0, 1))
    towards = to_xyz(drawn.parameters * torch.tensor([1.0, 1.0, 0.0]))
    cosines = (towards @ towards.mT).clamp(-1, 1)
    cosines.diagonal(dim1=-2, dim2=-1).fill_(-1)
    assert cosines.acos().rad2deg().min() > least - 0.05
    free = draw(law, 500, (0, 1)).parameters
    assert (drawn.parameters == free).all(-1).all(-1).float().mean() > 0.1  # the rest is untouched


def test_keeping_distance_in_one_block_does_not_change_another():
    law = replace(LINE_LAW, min_separation_deg=25.0)
    together, alone = draw(law, 50, (0, 1)), draw(law, 50, (1,))
    torch.testing.assert_close(together.parameters[1], alone.parameters[0])
    torch.testing.assert_close(together.phase[1], alone.phase[0])


def test_distances_that_do_not_fit_are_refused():
    law = SourceLaw(
        n_min=4,
        n_max=4,
        azimuth_deg=(-10.0, 10.0),
        elevation_deg=(0.0, 0.0),
        min_separation_deg=15.0,
    )
    with pytest.raises(ValueError, match=r"4 sources at least 15 degrees apart"):
        draw(law, 20)


@pytest.mark.parametrize("correlation", [0.0, 0.6, 1.0])
def test_coherent_symbols_are_as_correlated_as_said(correlation):
    law = replace(
        LINE_LAW,
        n_min=2,
        n_max=2,
        phase_deg=(0.0, 0.0),
        snr_db=(40.0, 40.0),
        azimuth_deg=(-60.0, 60.0),
        min_separation_deg=40.0,
    )
    scene = replace(
        LINE, sources=law, n_snapshots=3000, coherent_share=1.0, correlation=correlation
    )
    observation, truth = draw_blocks(scene, [0], 8, "cpu", 0, "train", 0)
    steps = torch.arange(8) - 3.5
    for y, u in zip(observation.y[0], truth.u[0], strict=True):
        response = torch.exp(1j * math.pi * u * steps[:, None])  # (element, source)
        symbols = y @ torch.linalg.pinv(response).mT
        together = torch.corrcoef(symbols.mT)[0, 1]
        assert together.real.item() == pytest.approx(correlation, abs=0.05)
        assert abs(together.imag.item()) < 0.05


@pytest.mark.parametrize(
    ("arguments", "got"),
    [
        ({"snr_of": "each"}, "got 'each'"),
        ({"path_loss_exponent": 2.0}, "snr_of='source'"),
        ({"path_loss_exponent": 2.0, "snr_of": "total", "range_m": None}, "range_m=None"),
        ({"path_loss_exponent": math.nan}, "got nan"),
        ({"phase_deg": (0.0, math.inf)}, "phase_deg"),
        ({"min_separation_deg": -1.0}, "got -1.0"),
    ],
)
@pytest.mark.bad_shape
def test_contradictions_are_refused(arguments, got):
    with pytest.raises(ValueError, match=got):
        SourceLaw(**arguments)


@pytest.mark.parametrize("correlation", [-0.1, math.nan])
def test_correlation_has_its_limits(correlation):
    with pytest.raises(ValueError, match=f"got {correlation}"):
        replace(LINE, correlation=correlation)


@pytest.mark.parametrize(
    ("n_min", "n_max", "weights"),
    [
        (1, 4, (1.0, 1.0, 2.0, 4.0)),
        (2, 4, (0.5, 0.0, 1.5)),
        (1, 3, (0.0, 0.0, 7.0)),
        (2, 3, (3.0, 0.0)),
        (3, 3, (0.1,)),
    ],
)
def test_numbers_of_sources_come_as_often_as_weighed(n_min, n_max, weights):
    n = 20_000
    drawn = draw(SourceLaw(n_min=n_min, n_max=n_max, count_weights=weights), n)
    # from the first slot on
    assert (drawn.resolved.int().diff(dim=-1) <= 0).all()
    counts = torch.bincount(drawn.sources.n_sources.flatten(), minlength=n_max + 1)
    assert counts[:n_min].sum() == 0
    for count, weight in zip(counts[n_min:].tolist(), weights, strict=True):
        share = weight / sum(weights)
        four_sigma = 4.0 * math.sqrt(n * share * (1.0 - share))
        assert abs(count - n * share) <= four_sigma


@pytest.mark.parametrize(("n_min", "n_max"), [(1, 4), (2, 5), (3, 9), (4, 4)])
@pytest.mark.parametrize("weight", [1.0, 0.1, 7.3])
def test_equal_weights_draw_what_no_weights_draw(n_min, n_max, weight):
    law = SourceLaw(n_min=n_min, n_max=n_max)
    plain = draw(law)
    weighed = draw(replace(law, count_weights=(weight,) * (n_max - n_min + 1)))
    for value in ("parameters", "resolved", "amplitude", "phase"):
        assert torch.equal(getattr(plain, value), getattr(weighed, value))


def test_weights_change_the_number_of_sources_and_nothing_else():
    law = SourceLaw(n_max=4)
    plain, weighed = draw(law), draw(replace(law, count_weights=(0.0, 0.0, 0.0, 1.0)))
    assert weighed.resolved.all()
    assert torch.equal(plain.parameters, weighed.parameters)
    assert torch.equal(plain.phase, weighed.phase)
    assert torch.equal(plain.amplitude[plain.resolved], weighed.amplitude[plain.resolved])


@pytest.mark.parametrize(
    "weights",
    [
        (1.0, 1.0, 1.0),
        (1.0,) * 5,
        (),
        (1.0, 1.0, 1.0, -0.1),
        (1.0, 1.0, 1.0, math.nan),
        (1.0, 1.0, 1.0, math.inf),
        (0.0, 0.0, 0.0, 0.0),
        (1e308, 1e308, 1e308, 1e308),
    ],
)
def test_weights_that_weigh_nothing_are_refused(weights):
    with pytest.raises(ValueError, match=r"count_weights .*n_min=1 to n_max=4.* got \(") as caught:
        SourceLaw(n_max=4, count_weights=weights)
    assert str(weights) in str(caught.value)
    assert "\n" not in str(caught.value)
