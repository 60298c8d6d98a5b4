"""Folders of recordings as one."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from musicnet.learning.data import RecordedData
from musicnet.recordings.archives import RecordingError
from musicnet.recordings.manifests import write_manifest
from musicnet.recordings.observation_files import read_observations, write_observations
from musicnet.recordings.shards import read_recording

DATA = Path(__file__).parents[2] / "data"
SURFACE = DATA / "ris_pilot_48.npz"


def cut(recording, start, stop):
    """Some scenes, with the operators that they need."""
    some = torch.zeros(recording.n_scenes, dtype=torch.bool)
    some[start:stop] = True
    part = recording.scenes(some)
    used, index = part.operator_index.unique(return_inverse=True)
    return replace(part, operator=part.operator[used], operator_index=index)


@pytest.fixture
def folder(tmp_path):
    whole = read_observations(SURFACE)
    for number, (start, stop) in enumerate([(0, 10), (10, 30), (30, 48)]):
        write_observations(tmp_path / f"{number}.npz", cut(whole, start, stop))
    write_manifest(tmp_path)
    return tmp_path


def test_a_folder_is_what_its_files_were_cut_from(folder):
    whole, large = read_observations(SURFACE), read_recording(folder)
    known = large.known
    assert known.y.shape == whole.y.shape
    assert torch.equal(large.received([47, 3, 12, 10]), whole.y[[47, 3, 12, 10]])
    ours, theirs = (one.operator[one.operator_index] for one in (known, whole))
    assert torch.equal(ours, theirs)
    assert torch.equal(known.noise_power, whole.noise_power)
    torch.testing.assert_close(known.truth.parameters, whole.truth.parameters, equal_nan=True)
    assert len(known.sha256) == 64


def test_nothing_received_is_kept_in_memory(folder):
    y = read_recording(folder).known.y
    assert y.untyped_storage().nbytes() == y[0].numel() * y.element_size()


def test_a_limit_keeps_the_first_scenes(folder):
    large = read_recording(folder, limit=12)
    assert large.known.n_scenes == 12
    assert large.known.truth.resolved.shape[0] == 12


def test_a_folder_trains_as_the_file_does(folder, surface_scene_of_file):
    def batches(path):
        data = RecordedData(surface_scene_of_file, path=str(path), batch_size=16, seed=0)
        data.setup("fit")
        return [data.load(entry, 0, torch.device("cpu")) for entry in data.plan("train")]

    ours, theirs = batches(folder), batches(SURFACE)
    received = [
        torch.cat([one.y.flatten(0, 1) for batch in some for one in batch.observations])
        for some in (ours, theirs)
    ]
    # as many operators, since each shard has its own: the order may differ, the scenes may not
    sums = [torch.view_as_real(y).flatten(1).double().sum(1).sort().values for y in received]
    assert torch.equal(*sums)


@pytest.fixture
def surface_scene_of_file():
    from musicnet.cli.scenes import experiment_scene

    return experiment_scene("ris")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda one: replace(one, wavelength=0.31), "1.npz:wavelength is 0.31"),
        (lambda one: replace(one, positions=one.positions + 0.01), "1.npz:element_positions"),
        (lambda one: replace(one, truth=None), "labels in some of its shards"),
        (lambda one: replace(one, range_m=(0.5, 6.0)), "1.npz:range_m"),
    ],
)
def test_shards_that_do_not_fit_together_are_refused(folder, change, reason):
    path = folder / "1.npz"
    write_observations(path, change(read_observations(path)))
    write_manifest(folder)
    with pytest.raises(RecordingError, match=reason):
        read_recording(folder)
