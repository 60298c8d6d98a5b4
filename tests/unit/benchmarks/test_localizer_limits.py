"""Limits of the benchmark of the localizer, against rows made by hand."""

import importlib.util
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from musicnet.localization.evaluation import SNR_DB

FILE = Path(__file__).parents[3] / "benchmarks" / "localizer_limits.py"


@pytest.fixture(scope="module")
def limits():
    """The script, which is in no package."""
    spec = importlib.util.spec_from_file_location(FILE.stem, FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[FILE.stem] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[FILE.stem]


def rows(n_sources, snr_db, **neural):
    nomp = {
        "n_sources": n_sources,
        "snr_db": snr_db,
        "outliers": 0.04,
        "median": 0.1,
        "cpu_ms_per_scene": 10.0,
        "count_right": 0.9,
        "gospa": 0.5,
        "efficiency": 1.0,
        "nees_xyz": 1.0,
        "outliers_less_nomp_interval": [0.0, 0.0],
        "median_over_nomp_interval": [1.0, 1.0],
    }
    good = {
        "outliers": 0.01,
        "median": 0.09,
        "cpu_ms_per_scene": 6.0,
        "gospa": 0.4,
    }
    multistart = {**nomp, "outliers": 0.015}
    return {"nomp": nomp, "multistart": multistart, "neural": {**nomp, **good, **neural}}


def test_all_cells_are_bound_and_a_good_method_keeps_all_limits(limits):
    for n_sources in (1, 2, 3, 4):
        for snr_db in SNR_DB:
            said = limits.verdict(rows(n_sources, snr_db))
            assert said["limits"]
            assert said["holds"] is True


@pytest.mark.parametrize(
    ("cell", "neural", "broken"),
    [
        ((4, 10.0), {"outliers": 0.011}, "outliers <= 0.25 x nomp"),
        ((4, 10.0), {"outliers": 0.016}, "outliers <= 1 x multistart"),
        ((4, 5.0), {"cpu_ms_per_scene": 6.1}, "cpu_ms_per_scene <= 0.6 x nomp"),
        ((3, 20.0), {"outliers": 0.021}, "outliers <= 0.5 x nomp"),
        ((3, 0.0), {"outliers": 0.041}, "outliers <= 1 x nomp"),
        ((4, -5.0), {"median": 0.1}, "median < 1 x nomp"),
        ((2, 10.0), {"efficiency": 1.09}, "efficiency <= 1.08"),
        ((1, -5.0), {"count_right": 0.89}, "count_right >= 1 x nomp"),
        ((3, -5.0), {"gospa": 0.5}, "gospa < 1 x nomp"),
        ((1, 5.0), {"nees_xyz": 1.3}, "nees_xyz >= 0.85 and <= 1.2"),
        ((1, 5.0), {"nees_xyz": 0.8}, "nees_xyz >= 0.85 and <= 1.2"),
        ((1, 5.0), {"nees_xyz": None}, "nees_xyz >= 0.85 and <= 1.2"),
        (
            (2, 0.0),
            {"outliers_less_nomp_interval": [0.001, 0.01]},
            "outliers_less_nomp <= 0, beyond the interval",
        ),
    ],
)
def test_every_limit_can_be_broken(limits, cell, neural, broken):
    said = limits.verdict(rows(*cell, **neural))
    assert said["holds"] is False
    assert broken in {one["limit"] for one in said["limits"] if not one["holds"]}


def test_no_outliers_at_all_are_kept_beside_none(limits):
    cell = rows(4, 20.0, outliers=0.0)
    for row in cell.values():
        row["outliers"] = 0.0
    assert limits.verdict(cell)["holds"] is True


def test_noise_alone_does_not_break_what_is_meant_beyond_the_interval(limits):
    worse = rows(1, 0.0, outliers_less_nomp_interval=[-0.001, 0.02])
    assert limits.verdict(worse)["holds"] is True
    none = rows(1, 0.0, median_over_nomp_interval=[math.nan, math.nan])
    assert limits.verdict(none)["holds"] is True


def test_other_cells_are_not_bound(limits):
    assert limits.verdict(rows(4, 7.0), ())["holds"] is None


def test_scenes_have_limits_of_their_own(limits):
    law = replace(limits.DEFAULT_TASK.sources, count_weights=(1.0, 1.0, 2.0, 4.0))
    pilots = replace(limits.DEFAULT_TASK, sources=law)
    data = replace(pilots, symbols="data")
    assert limits.limits_of(pilots) == limits.LIMITS
    assert limits.limits_of(data) == limits.DATA_LIMITS
    assert limits.limits_of(replace(data, n_snapshots=2)) == ()
    # a machine that takes twice as long may take twice as many milliseconds, and no more outliers
    for one, slow in zip(
        limits.DATA_LIMITS, limits.limits_of(data, 2.0 * limits.EIGH64_MS), strict=True
    ):
        is_time = one.column == "cpu_ms_per_scene" and one.of is None
        assert slow == (replace(one, high=2.0 * one.high) if is_time else one)


@pytest.mark.parametrize(
    ("cell", "neural", "broken"),
    [
        ((4, 20.0), {"outliers": 0.101}, "outliers <= 0.1"),
        ((4, 0.0), {"cpu_ms_per_scene": 20.5}, "cpu_ms_per_scene <= 20"),
        ((3, -5.0), {"outliers": 0.016}, "outliers <= 1 x multistart"),
        ((1, -5.0), {"median": 0.1}, "median < 1 x nomp"),
        ((2, 10.0), {"outliers_less_nomp_interval": [0.001, 0.01]}, "outliers_less_nomp <= 0"),
        ((4, 10.0), {"cpu_ms_per_scene": 10.5}, "cpu_ms_per_scene <= 1 x multistart"),
    ],
)
def test_limits_of_data_symbols_are_broken_one_by_one(limits, cell, neural, broken):
    good = limits.verdict(rows(*cell), limits.DATA_LIMITS)
    assert good["holds"] is True
    said = limits.verdict(rows(*cell, **neural), limits.DATA_LIMITS)
    failing = [one["limit"] for one in said["limits"] if not one["holds"]]
    assert any(broken in one for one in failing)
