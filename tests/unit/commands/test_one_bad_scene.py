"""One bad scene among 32, in 40 ways: it is named, and the answers to the others keep every bit."""

from pathlib import Path

import numpy as np
import pytest

from musicnet.commands.scene_answers import answers
from musicnet.recordings.streams import open_observations

FAR = Path(__file__).parents[2] / "data" / "ula_far_24.npz"
N_SCENES, BAD = 32, 13


def scenes():
    """32 scenes, the first eight twice."""
    with np.load(FAR) as archive:
        found = dict(archive)
    index = np.arange(N_SCENES) % 24
    for key in ("y", "operator_index", "noise_power", "truth_xyz", "snr_db", "coherent"):
        found[key] = found[key][index]
    return found


def set_at(key, *index, value):
    def change(arrays):
        arrays[key][(BAD, *index)] = value

    return change


NOT_FINITE = {"NaN": np.nan, "infinity": np.inf, "minus infinity": -np.inf, "j NaN": 1j * np.nan}
PLACES = {"first": (0, 0), "middle": (20, 3), "last": (-1, -1), "snapshot": (7,), "all": ()}
WAYS = {
    **{
        f"{what} in {place}": set_at("y", *index, value=value)
        for what, value in NOT_FINITE.items()
        for place, index in PLACES.items()
    },
    "silence": set_at("y", value=0),
    "a dead row": set_at("y", slice(None), 5, value=0),
    "two dead rows": set_at("y", slice(None), slice(2, 4), value=0),
    "identical snapshots": set_at("y", value=1 + 1j),
    "too faint": lambda arrays: arrays["y"].__setitem__(BAD, arrays["y"][BAD] * 1e-30),
    "too loud": lambda arrays: arrays["y"].__setitem__(BAD, arrays["y"][BAD] * 1e30),
    "one loud number": set_at("y", 3, 3, value=1e30),
    "noise of zero": set_at("noise_power", value=0),
    "negative noise": set_at("noise_power", value=-1),
    "noise NaN": set_at("noise_power", value=np.nan),
    "noise infinite": set_at("noise_power", value=np.inf),
    "noise too faint": set_at("noise_power", value=1e-35),
    "noise too loud": set_at("noise_power", value=1e35),
    "an operator that is not there": set_at("operator_index", value=7),
    "a negative operator": set_at("operator_index", value=-1),
    "half a label": set_at("truth_xyz", 0, 1, value=np.nan),
    "an infinite label": set_at("truth_xyz", 0, 2, value=np.inf),
    "a label behind": set_at("truth_xyz", 0, value=(0, 0, -1)),
    "a label at the centre": set_at("truth_xyz", 0, value=(0, 0, 0)),
    "a label that is no direction": set_at("truth_xyz", 0, value=(0, 0, 2)),
}


def localised(folder, arrays):
    np.savez(folder / "scenes.npz", **arrays)
    with open_observations(folder / "scenes.npz") as stream:
        (chunk,) = stream.chunks()
    found = answers(chunk.recording, "auto", None)
    return chunk, {
        scene: {**entry, "cpu_ms": None} for scene, entry in zip(chunk.good, found, strict=True)
    }


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return localised(tmp_path_factory.mktemp("clean"), scenes())[1]


def test_there_are_forty():
    assert len(WAYS) == 40


@pytest.mark.parametrize("way", WAYS)
def test_the_bad_scene_is_named_alone(way, tmp_path):
    arrays = scenes()
    WAYS[way](arrays)
    np.savez(tmp_path / "scenes.npz", **arrays)
    with open_observations(tmp_path / "scenes.npz") as stream:
        (chunk,) = stream.chunks()
    assert list(chunk.faults) == [BAD]
    assert f"{BAD}" in chunk.faults[BAD]
    good = [scene for scene in range(N_SCENES) if scene != BAD]
    assert chunk.good == tuple(good)
    # nothing of the others has changed
    assert np.array_equal(chunk.recording.y.numpy(), scenes()["y"][good])
    assert np.array_equal(chunk.recording.noise_power.numpy(), scenes()["noise_power"][good])
    assert not chunk.recording.operator_index.any()


def test_answers_to_the_others_keep_every_bit(clean, tmp_path):
    """All 40 ways leave the same 31 scenes; see the test before."""
    arrays = scenes()
    WAYS["NaN in middle"](arrays)
    _, found = localised(tmp_path, arrays)
    assert found == {scene: entry for scene, entry in clean.items() if scene != BAD}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_answers_to_the_others_keep_every_bit_in_every_way(way, clean, tmp_path):
    arrays = scenes()
    WAYS[way](arrays)
    _, found = localised(tmp_path, arrays)
    assert found == {scene: entry for scene, entry in clean.items() if scene != BAD}
