"""A scene's answer is its own, to the last bit, whatever else is in its batch."""

from pathlib import Path

import pytest
import torch

from musicnet.localization import localize
from musicnet.networks.pretrained import load_shipped, shipped
from musicnet.recordings.observation_files import read_observations
from musicnet.scene.snapshots import Observation

DATA = Path(__file__).parents[2] / "data"
FAR, NEAR, SURFACE = "ula_far_24", "ula_near_16", "ris_pilot_48"
WEIGHTS = {15: "near_ula", 128: "ris"}  # by rows
N_SCENES = 8


def heard(recording, index):
    operator = recording.operator[int(recording.operator_index[index[0]])]
    return Observation(
        recording.y[index],
        operator,
        recording.noise_power[index],
        recording.positions,
        recording.wavelength,
    )


def of_one_operator(name):
    recording = read_observations(DATA / f"{name}.npz")
    index = (recording.operator_index == recording.operator_index[0]).nonzero().squeeze(-1)
    return recording, index[:N_SCENES]


def answer(recording, index, method, known):
    found = localize(
        heard(recording, index),
        method,
        recording.truth.n_sources[index] if known else None,
        region=recording.region,
        pretrained=load_shipped(shipped()[WEIGHTS[recording.y.shape[-1]]])
        if method == "neural"
        else None,
    )
    numbers = (found.sources.parameters, found.covariance, found.log_likelihood)
    return [values.nan_to_num(9.0) for values in numbers]


@pytest.mark.parametrize("known", [False, True], ids=["counted", "known"])
@pytest.mark.parametrize(
    ("name", "method"),
    [(FAR, m) for m in ("multistart", "music", "mvdr", "esprit", "root-music", "bartlett")]
    + [(NEAR, "multistart"), (SURFACE, "nomp")]
    + [(one, "neural") for one in (NEAR, SURFACE)],
)
def test_answers_do_not_depend_on_company_to_the_last_bit(name, method, known):
    recording, index = of_one_operator(name)
    together = answer(recording, index, method, known)
    for part in (slice(0, 1), slice(1, 4), slice(4, N_SCENES)):
        apart = answer(recording, index[part], method, known)
        for ours, theirs in zip(together, apart, strict=True):
            both = (ours[part], theirs)
            if ours.ndim > 1:  # as many slots as the fullest scene of each has
                n_slots = min(one.shape[1] for one in both)
                both = tuple(one[:, :n_slots] for one in both)
            assert torch.equal(*both)
