"""Folders of recordings as one."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from musicnet.learning.data import RecordedData
from musicnet.recordings.archives import RecordingError
from musicnet.recordings.lazy_arrays import sha256_of
from musicnet.recordings.manifest_writing import write_manifest
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


@pytest.fixture(scope="module")
def whole_folder(tmp_path_factory):
    place, whole = tmp_path_factory.mktemp("whole"), read_observations(SURFACE)
    for number, (start, stop) in enumerate([(0, 10), (10, 30), (30, 48)]):
        write_observations(place / f"{number}.npz", cut(whole, start, stop))
    write_manifest(place)
    return place


@pytest.fixture
def folder(whole_folder, tmp_path):
    return Path(shutil.copytree(whole_folder, tmp_path / "folder"))


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
    assert y.untyped_storage().nbytes() <= y[0].numel() * y.element_size()
    y = read_recording(folder, limit=12).known.y
    assert y.untyped_storage().nbytes() <= y[0].numel() * y.element_size()


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


POISON = {"0.npz": (2,), "1.npz": (0, 19)}


@pytest.fixture(scope="module")
def poisoned_folder(whole_folder, tmp_path_factory):
    """The folder with three bad scenes of 48 in two files: numbers 2, 10 and 29 of all."""
    place = Path(shutil.copytree(whole_folder, tmp_path_factory.mktemp("bad") / "folder"))
    for name, bad in POISON.items():
        recording = read_observations(place / name)
        y = recording.y.clone()
        y[list(bad), 0, 3] = torch.nan
        write_observations(place / name, replace(recording, y=y))
    write_manifest(place)
    return place


@pytest.fixture
def poisoned(poisoned_folder, tmp_path):
    return Path(shutil.copytree(poisoned_folder, tmp_path / "poisoned"))


def test_bad_scenes_are_named_and_left_out(poisoned):
    whole, large = read_observations(SURFACE), read_recording(poisoned, max_bad_share=0.07)
    assert [line.partition(f"{poisoned}/")[2] for line in large.left_out] == [
        "0.npz:y is not finite at index (2, 0, 3) (scene 2)",
        "1.npz:y is not finite at index (0, 0, 3) (scene 0)",
        "1.npz:y is not finite at index (19, 0, 3) (scene 19)",
    ]
    good = [scene for scene in range(48) if scene not in (2, 10, 29)]
    assert large.known.n_scenes == 45
    assert torch.equal(large.received(range(45)), whole.y[good])
    assert torch.equal(large.received([44, 2, 8, 9]), whole.y[[47, 3, 9, 11]])
    assert torch.equal(large.known.noise_power, whole.noise_power[good])
    ours = large.known.operator[large.known.operator_index]
    assert torch.equal(ours, whole.operator[whole.operator_index[good]])
    torch.testing.assert_close(
        large.known.truth.parameters, whole.truth.parameters[good], equal_nan=True
    )
    assert read_recording(poisoned, 40, 0.07).known.n_scenes == 40


def test_too_many_bad_scenes_refuse_the_folder(poisoned):
    reason = r"0\.npz:y is not finite .*2, 0, 3\) \(3 of 48, max_bad_share=0\.05 allows 2\)\.$"
    with pytest.raises(RecordingError, match=reason):
        read_recording(poisoned, max_bad_share=0.05)


def test_a_file_alone_leaves_out_what_a_folder_does(poisoned):
    path = poisoned / "1.npz"
    large, whole = read_recording(path, max_bad_share=0.1), read_observations(SURFACE)
    assert len(large.left_out) == 2
    assert torch.equal(large.received(range(18)), whole.y[11:29])


def test_the_hash_says_what_was_left_out(folder):
    """A run that goes on must leave out the same scenes."""
    path = folder / "1.npz"
    assert read_recording(path).known.sha256 == read_observations(path).sha256
    recording = read_observations(path)
    y = recording.y.clone()
    y[4] = 0
    write_observations(path, replace(recording, y=y))
    with pytest.raises(RecordingError) as caught:
        read_recording(path)
    assert "y is silent: every row is zero at index 4" in str(caught.value)
    left = read_recording(path, max_bad_share=0.05).known.sha256
    assert left == read_recording(path, 7, max_bad_share=0.5).known.sha256
    assert left != sha256_of(path)


def test_a_manifest_says_which_scenes_are_bad_and_is_held_to_it(poisoned):
    path = poisoned / "manifest.json"
    tree = json.loads(path.read_text())
    assert [shard["bad_scenes"] for shard in tree["shards"]] == [[2], [0, 19], []]

    def refusal(**changes):
        shards = [tree["shards"][0] | changes, *tree["shards"][1:]]
        path.write_text(json.dumps(tree | {"shards": shards}))
        with pytest.raises(RecordingError) as caught:
            read_recording(poisoned, max_bad_share=0.1)
        return str(caught.value)

    assert "0.npz has the bad scenes [2], manifest.json says [3]" in refusal(bad_scenes=[3])
    assert "0.npz has the bad scenes [2], manifest.json says []" in refusal(bad_scenes=[])
    assert "0.npz holds 10 scenes, manifest.json says 9" in refusal(n_scenes=9)
    assert "shards[0] bad_scenes must be numbers: got 'all'" in refusal(bad_scenes="all")
    assert "shards[0] must hold file, sha256, n_scenes" in refusal(bad_scene=[2])
    for shard in tree["shards"]:
        del shard["bad_scenes"]  # nobody has looked
    path.write_text(json.dumps(tree))
    assert read_recording(poisoned, max_bad_share=0.1).known.n_scenes == 45


def test_a_shard_that_changes_during_training_is_refused(folder):
    large = read_recording(folder)
    (folder / "2.npz").write_bytes((folder / "0.npz").read_bytes())
    assert large.received([0, 11]).isfinite().all()
    with pytest.raises(RecordingError, match=r"2\.npz has changed since it was opened"):
        large.received([0, 47])


@pytest.mark.parametrize("n_workers", [0, 1, 2])
def test_batches_of_a_poisoned_folder_do_not_depend_on_workers(
    poisoned, surface_scene_of_file, n_workers, caplog
):
    def batches(n_workers):
        data = RecordedData(
            surface_scene_of_file,
            path=str(poisoned),
            batch_size=16,
            seed=0,
            n_workers=n_workers,
            max_bad_share=0.1,
        )
        data.setup("fit")
        data.setup("fit")
        loader = data.train_dataloader()
        return [data.transfer_batch_to_device(key, torch.device("cpu"), 0) for key in loader]

    ours, theirs = batches(n_workers), batches(0)
    assert sum(batch.n_scenes for batch in ours) == 45
    for one, other in zip(ours, theirs, strict=True):
        pairs = zip(one.observations, other.observations, strict=True)
        assert all(torch.equal(a.y, b.y) for a, b in pairs)
    # named once for each of the two, however often Lightning sets them up
    assert caplog.text.count("0.npz:y is not finite") == 2
    assert caplog.text.count("left out 3 of 48 scenes") == 2


@pytest.fixture(scope="module")
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
    path, manifest = folder / "1.npz", folder / "manifest.json"
    write_observations(path, change(read_observations(path)))
    before = manifest.read_text()
    with pytest.raises(RecordingError, match=reason):
        write_manifest(folder)
    assert manifest.read_text() == before
    tree = json.loads(before)
    tree["shards"][1]["sha256"] = sha256_of(path)
    manifest.write_text(json.dumps(tree))
    with pytest.raises(RecordingError, match=reason):
        read_recording(folder)
