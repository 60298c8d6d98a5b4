"""Which objective holds when, and lists of phases that are refused."""

import math

import pytest

from musicnet.learning.phases import Phase, check_phases, joint, phase_index

GROUPS = ["backbone", "head"]


def test_phases_follow_one_another_and_the_last_goes_on():
    phases = [
        Phase({"spectrum": 1.0}, epochs=1),
        Phase({"offsets": 1.0}, epochs=3),
        Phase({"spectrum": 1.0, "offsets": 0.5}, epochs=1),
    ]
    assert [phase_index(phases, epoch) for epoch in range(7)] == [0, 1, 1, 1, 2, 2, 2]


def test_a_total_weighs_the_terms_that_have_a_weight():
    phase = Phase({"spectrum": 2.0, "offsets": 0.0})
    # a term without weight must not spoil the total, not even by being infinite
    assert phase.total({"spectrum": 3.0, "offsets": math.inf}) == 6.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": {"spectrm": 1.0}}, "got 'spectrm'. Did you mean 'spectrum'"),
        ({"weights": {"spectrum": math.nan}}, "got spectrum=nan"),
        ({"weights": {"spectrum": -1.0}}, "got spectrum=-1.0"),
        ({"weights": {"spectrum": 0.0}}, r"got weights=\{'spectrum': 0.0\}"),
        ({"weights": {}}, r"got weights=\{\}"),
        ({"weights": {"spectrum": 1.0}, "epochs": 0}, "got epochs=0"),
    ],
)
def test_phases_that_say_nothing_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Phase(**arguments)


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ([], r"got phases=\[\]"),
        ([*joint(), *joint()], "got epochs=None in phase 0 of 2"),
        ([Phase({"spectrum": 1.0}, frozen=["hed"])], r"got \['hed'\] in phase 0"),
        ([Phase({"spectrum": 1.0}, frozen=["head", "backbone"])], "frozen in phase 0"),
    ],
)
def test_lists_that_cannot_be_trained_are_refused(phases, message):
    with pytest.raises(ValueError, match=message):
        check_phases(phases, GROUPS)
