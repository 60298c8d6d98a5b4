"""A reverberant room that somebody else renders, and somebody else's methods in it."""

import warnings

import numpy as np
import pytest

from benchmarks.sound import contestants, errors_deg, room

pytest.importorskip("pyroomacoustics")


def test_two_talkers_are_found_within_three_degrees_and_no_worse_than_by_the_peers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        samples, positions, truth = room(7, 2, snr_db=10.0, reverberation_s=0.3, seconds=1.0)
        methods = contestants(samples, positions, 2)
        errors = {
            name: errors_deg(methods[name](), truth).max()
            for name in ("music", "pyroomacoustics MUSIC", "pyroomacoustics SRP")
        }
    assert errors["music"] < 3.0
    # the peers answer on a grid of one degree
    assert errors["music"] <= min(errors.values()) + 0.5


def test_errors_are_those_of_the_best_order():
    assert errors_deg([350.0, 100.0], np.array([100.0, 10.0])).tolist() == [0.0, 20.0]
    assert errors_deg([100.0], np.array([100.0, 10.0])).tolist() == [0.0, 180.0]
