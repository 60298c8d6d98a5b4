import math
from dataclasses import replace

import pytest
import torch

from musicnet.scene.array import ArrayGeometry
from musicnet.scene.scene import Scene
from musicnet.scene.sources import SourceLaw
from musicnet.scene.surface import Surface

LINE = SourceLaw(elevation_deg=(0.0, 0.0), range_m=None)


def test_elements_are_centred_and_x_runs_fastest():
    positions = ArrayGeometry(3, 2, spacing_wavelengths=0.5).positions(wavelength=2.0)
    expected = [[x, y, 0.0] for y in (-0.5, 0.5) for x in (-1.0, 0.0, 1.0)]
    assert positions.tolist() == expected


def test_positions_first_made_in_inference_mode_can_still_be_trained_with():
    array = ArrayGeometry(7, 3)
    with torch.inference_mode():
        array.positions(0.123)
    weight = torch.ones(3, requires_grad=True)
    (array.positions(0.123) * weight).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize(
    ("scene", "blocks", "rows", "active"),
    [
        (Scene(ArrayGeometry(8, 8), SourceLaw(), surface=Surface()), 1, 128, (True, True, True)),
        (
            Scene(ArrayGeometry(8, 8), SourceLaw(), surface=Surface(), symbols="data"),
            16,
            8,
            (True, True, True),
        ),
        (Scene(ArrayGeometry(8), LINE, n_snapshots=50), 50, 8, (True, False, False)),
        (
            Scene(ArrayGeometry(15), SourceLaw(elevation_deg=(0.0, 0.0)), n_snapshots=9),
            9,
            15,
            (True, False, True),
        ),
        (Scene(ArrayGeometry(4, 4), SourceLaw(range_m=None)), 1, 16, (True, True, False)),
    ],
)
def test_scenes_know_their_shape_and_what_can_be_searched(scene, blocks, rows, active):
    assert (scene.n_blocks, scene.n_rows, scene.active) == (blocks, rows, active)
    assert scene.far_field == (not active[2])


@pytest.mark.parametrize(
    ("arguments", "got"),
    [
        ({"wavelength_m": 0.0}, "got 0.0"),
        ({"wavelength_m": math.nan}, "got nan"),
        ({"n_snapshots": 0}, "got 0"),
        ({"symbols": "morse"}, "got 'morse'"),
        ({"coherent_share": 1.5, "symbols": "data"}, "got 1.5"),
        ({"coherent_share": math.nan, "symbols": "data"}, "got nan"),
        ({"coherent_share": 0.5}, "got 0.5 with symbols='pilot'"),
        ({"sources": SourceLaw(range_m=None)}, r"elevation_deg.* got \(-30.0, 30.0\)"),
        (
            {"sources": SourceLaw(n_max=8, elevation_deg=(0.0, 0.0))},
            "got sources.n_max=8 with 8 rows",
        ),
        ({"surface": Surface(), "n_snapshots": 4}, "got n_snapshots=4"),
    ],
)
@pytest.mark.bad_shape
def test_impossible_scenes_are_refused(arguments, got):
    with pytest.raises(ValueError, match=got):
        Scene(**{"array": ArrayGeometry(8), "sources": LINE, **arguments})


@pytest.mark.parametrize(
    ("arguments", "got"),
    [
        ({"n_horizontal": 0}, "got n_horizontal=0"),
        ({"n_horizontal": 1}, "n_vertical=1"),
        ({"spacing_wavelengths": -0.5}, "got -0.5"),
        ({"spacing_wavelengths": math.inf}, "got inf"),
    ],
)
def test_impossible_arrays_are_refused(arguments, got):
    with pytest.raises(ValueError, match=got):
        ArrayGeometry(**arguments)


ALIKE = Scene(
    ArrayGeometry(8),
    SourceLaw(
        elevation_deg=(0.0, 0.0),
        range_m=None,
        phase_deg=(0.0, 0.0),
        snr_db=(0.0, 20.0),
        snr_of="total",
    ),
    n_snapshots=20,
    symbols="data",
    coherent_share=0.5,
)


def test_sources_are_alike_where_nothing_but_their_waveform_is_left_to_chance():
    assert ALIKE.is_alike
    law = ALIKE.sources
    for other in (
        replace(ALIKE, coherent_share=0.0),
        replace(ALIKE, correlation=0.9),
        replace(ALIKE, sources=replace(law, phase_deg=(0.0, 90.0))),
        replace(ALIKE, sources=replace(law, snr_of="source")),
    ):
        assert not other.is_alike
    loud = replace(law, snr_of="source", snr_db=(20.0, 20.0))
    assert replace(ALIKE, sources=loud).is_alike
