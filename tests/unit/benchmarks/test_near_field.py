"""The neural peers' measures, against scenes made by hand."""

import importlib.util
import math
import sys
from pathlib import Path

import pytest
import torch

from musicnet.scene.sources import Sources

FILE = Path(__file__).parents[3] / "benchmarks" / "near_field.py"


@pytest.fixture(scope="module")
def near_field():
    """The script, which is in no package, beside those that it needs."""
    before = set(sys.modules)
    sys.path.insert(0, str(FILE.parent))
    spec = importlib.util.spec_from_file_location(FILE.stem, FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(FILE.parent))
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "").parent == FILE.parent:
            del sys.modules[name]


def sources(*places):
    """One scene of (azimuth in degrees, range in metres), NaN where there is none."""
    azimuth, distance = torch.tensor(places, dtype=torch.float64).unbind(-1)
    u = azimuth.deg2rad().sin()
    parameters = torch.stack((u, 0.0 * u, 1.0 / distance), dim=-1)[None, None]
    return Sources(parameters, parameters.isfinite().all(-1))


def test_sources_are_told_apart_by_place_and_errors_are_theirs(near_field):
    truth = sources((10.0, 20.0), (-30.0, 12.0))
    found = sources((-30.0, 13.0), (12.0, 20.0))
    squared = near_field.errors(found, truth, 40.0)
    torch.testing.assert_close(squared["angle"][0], torch.tensor([4.0, 0.0]).double())
    torch.testing.assert_close(squared["range"][0], torch.tensor([0.0, 1.0]).double())
    chord = (2.0 * 20.0 * math.sin(math.radians(1.0))) ** 2
    torch.testing.assert_close(squared["place"][0], torch.tensor([chord, 1.0]).double())


def test_angles_are_measured_modulo_half_a_turn(near_field):
    squared = near_field.errors(sources((89.0, 20.0)), sources((-89.0, 20.0)), 40.0)
    assert float(squared["angle"]) == pytest.approx(4.0)


def test_a_missing_source_counts_as_the_worst_and_is_not_filled_in(near_field):
    truth = sources((10.0, 20.0), (-30.0, 12.0))
    squared = near_field.errors(sources((10.0, 20.0), (math.nan, math.nan)), truth, 40.0)
    assert squared["angle"][0].tolist() == pytest.approx([0.0, 90.0**2])
    assert squared["range"][0].tolist() == pytest.approx([0.0, 40.0**2])
    assert squared["place"][0].tolist() == pytest.approx([0.0, 40.0**2])
