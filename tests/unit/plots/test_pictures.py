"""What pictures show: the numbers that were given, where they belong."""

import math
import sys

import pytest
import torch

from musicnet.estimation.spectrum import SearchGrid
from musicnet.plots.error_curves import draw_error_curves, draw_share_curves
from musicnet.plots.figures import new_figure, save
from musicnet.plots.spectra import Panel, draw_spectra, draw_spectrum
from musicnet.scene.sources import SearchRegion, Sources

pytest.importorskip("matplotlib")

LINE = SearchGrid.over(SearchRegion((-0.5, 0.5), (0.0, 0.0), (0.0, 0.0)), 1, 5, 1)
SQUARE = SearchGrid.over(SearchRegion((-0.5, 0.5), (-0.2, 0.2), (0.0, 0.0)), 3, 5, 1)
CUBE = SearchGrid.over(SearchRegion((-0.5, 0.5), (-0.2, 0.2), (0.2, 1.0)), 3, 5, 4)


def sources(*parameters):
    values = torch.tensor(parameters)
    return Sources(values, ~values.isnan().any(-1))


TRUTH = sources([0.25, 0.1, 0.5], [math.nan] * 3)


def test_one_coordinate_is_a_curve_over_azimuth_in_decibels():
    power = torch.tensor([0.1, 1.0, 10.0, 1.0, 0.0]).reshape(LINE.shape)
    figure = draw_spectrum(power, LINE, truth=TRUTH, estimates=sources([-0.25, 0.0, 0.0]))
    curve, truth, estimate = figure.axes[0].lines
    degrees = [math.degrees(math.asin(u)) for u in (-0.5, -0.25, 0.0, 0.25, 0.5)]
    assert curve.get_xdata() == pytest.approx(degrees, abs=1e-4)
    assert curve.get_ydata() == pytest.approx([-20.0, -10.0, 0.0, -10.0, -40.0])
    # azimuth of (u, v) = (.25, .1): atan2(u, w)
    expected = math.degrees(math.atan2(0.25, math.sqrt(1 - 0.0625 - 0.01)))
    assert truth.get_xdata()[0] == pytest.approx(expected, abs=1e-4)
    assert estimate.get_xdata() == pytest.approx([math.degrees(math.asin(-0.25))], abs=1e-4)


@pytest.mark.parametrize("grid", [SQUARE, CUBE])
def test_two_coordinates_are_a_map_and_a_third_shows_its_highest_value(grid):
    power = torch.rand(grid.shape, generator=torch.manual_seed(0)) + 0.1
    figure = draw_spectrum(power, grid, truth=TRUTH)
    axes = figure.axes[0]
    highest = power.amax(2)
    expected = 10 * (highest / highest.max()).log10()
    shown = torch.as_tensor(axes.images[0].get_array().data)
    torch.testing.assert_close(shown, expected.double(), atol=1e-4, rtol=0.0)
    # cells are centred where the grid has them
    left, right, bottom, top = axes.images[0].get_extent()
    assert (left, right) == pytest.approx((-0.625, 0.625))
    assert (bottom, top) == pytest.approx((-0.3, 0.3))
    (marks,) = axes.collections
    assert marks.get_offsets().tolist() == [pytest.approx([0.25, 0.1])]


def test_a_spectrum_of_another_grid_is_refused():
    with pytest.raises(ValueError, match=r"\(1, 5, 1\): got \(1, 4, 1\)"):
        draw_spectrum(torch.ones(1, 4, 1), LINE)


def test_a_single_cell_is_no_picture():
    grid = SearchGrid.over(SearchRegion((0.1, 0.1), (0.0, 0.0), (0.0, 0.0)), 1, 1, 1)
    with pytest.raises(ValueError, match="a single cell"):
        draw_spectrum(torch.ones(1, 1, 1), grid)


def test_error_curves_show_every_method_and_the_bound():
    errors = {"nomp": [0.3, 0.1], "music": [1.0, math.nan]}
    figure = draw_error_curves([0.0, 10.0], errors, [0.2, 0.09], "RMSE (degrees)")
    axes = figure.axes[0]
    assert [curve.get_label() for curve in axes.lines] == ["nomp", "music", "Cramér-Rao bound"]
    assert list(axes.lines[0].get_ydata()) == [0.3, 0.1]
    assert list(axes.lines[2].get_ydata()) == [0.2, 0.09]
    assert axes.get_yscale() == "log"


def test_curves_must_be_as_long_as_their_axis():
    with pytest.raises(
        ValueError, match="nomp must have one value for each of the 2 ratios: got 3"
    ):
        draw_error_curves([0.0, 10.0], {"nomp": [1.0, 2.0, 3.0]}, [1.0, 1.0], "")


def test_spectra_side_by_side_each_lie_below_their_own_peak():
    power = torch.tensor([0.1, 1.0, 10.0, 1.0, 0.0]).reshape(LINE.shape)
    panels = [Panel(power, LINE, title="one"), Panel(7.0 * power, LINE, TRUTH, "other")]
    figure = draw_spectra(panels, TRUTH)
    one, other = figure.axes
    assert (one.get_title(), other.get_title()) == ("one", "other")
    assert list(one.lines[0].get_ydata()) == pytest.approx(list(other.lines[0].get_ydata()))
    assert [len(axes.lines) for axes in (one, other)] == [2, 3]  # curve, truth; estimate
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["truth", "estimate"]


def test_no_spectra_are_no_picture():
    with pytest.raises(ValueError, match="got none"):
        draw_spectra([])


def test_shares_of_zero_are_drawn_at_zero():
    figure = draw_share_curves([0.0, 10.0], {"nomp": [0.3, 0.0]}, "share", least=0.01)
    axes = figure.axes[0]
    assert list(axes.lines[0].get_ydata()) == [0.3, 0.0]
    assert axes.get_yscale() == "symlog"
    low, high = axes.get_ylim()
    assert low < 0.0 < 1.0 < high


def test_a_least_share_must_be_a_share():
    with pytest.raises(ValueError, match=r"got 0\.0"):
        draw_share_curves([0.0], {"nomp": [0.0]}, "share", least=0.0)


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_pictures_are_saved_as_their_suffix_says(tmp_path, suffix, start):
    figure, _ = new_figure()
    save(figure, tmp_path / "new" / f"picture.{suffix}")
    assert (tmp_path / "new" / f"picture.{suffix}").read_bytes().startswith(start)


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r"musicnet\[plots\]"):
        new_figure()
