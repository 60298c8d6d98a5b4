"""What batches hold: drawn scenes, and scenes of a file."""

from ast import literal_eval
from dataclasses import replace

import pytest
import torch

from musicnet.learning.data import RecordedData, SceneData
from musicnet.recordings.observation_files import ObservationFile, write_observations
from musicnet.scene.array import ArrayGeometry
from musicnet.scene.snapshots import block_generator, draw_block

CPU = torch.device("cpu")


def batches_of(data, loader):
    return [data.transfer_batch_to_device(key, CPU, 0) for key in loader]


def received(batch):
    return torch.cat([one.y.flatten(0, 1) for one in batch.observations])


def test_a_fixed_set_has_the_scenes_that_were_asked_for(surface_scene):
    data = SceneData(surface_scene, n_scenes=200, batch_size=64, seed=0)
    batches = batches_of(data, data.val_dataloader())
    assert sum(batch.n_scenes for batch in batches) == 200
    assert max(batch.n_scenes for batch in batches) <= 64
    for batch in batches:
        assert batch.truth.parameters.shape == (batch.n_scenes, 2, 3)
        for one in batch.observations:
            n_channels, n_scenes = one.y.shape[:2]
            assert one.operator.shape[0] == n_channels
            assert n_scenes <= 32


def test_a_fixed_set_comes_again_and_validation_looks_at_it(surface_scene):
    data = SceneData(surface_scene, n_scenes=100, batch_size=32, seed=0)
    train = data.train_dataloader()
    train.batch_sampler.sampler.set_epoch(5)
    seen = {id(batch) for batch in batches_of(data, train)}
    # the same objects, so that what hangs on them is computed once
    assert {id(batch) for batch in batches_of(data, data.val_dataloader())} == seen


def test_scenes_follow_from_the_seed_alone(surface_scene):
    def first(seed):
        data = SceneData(surface_scene, n_scenes=64, batch_size=32, seed=seed)
        return received(batches_of(data, data.val_dataloader())[0])

    assert torch.equal(first(7), first(7))
    assert not torch.equal(first(7), first(8))


def test_without_a_seed_the_one_of_the_run_counts(surface_scene):
    torch.manual_seed(11)
    assert SceneData(surface_scene).seed == 11


def test_a_batch_is_made_of_the_blocks_that_it_names(surface_scene):
    data = SceneData(surface_scene, batches_per_epoch=3, batch_size=64, seed=5)
    batch = data.load(data.plan("train")[1], epoch=4, device=CPU)
    for channel, number in enumerate((2, 3)):
        block, truth = draw_block(
            surface_scene, block_generator(5, "train", 4, number), n_scenes=32
        )
        assert torch.equal(batch.observations[0].y[channel], block.y)
        found = batch.truth.parameters.unflatten(0, (2, 32))[channel]
        assert torch.equal(found.nan_to_num(), truth.parameters.nan_to_num())


def test_splits_and_epochs_have_nothing_in_common(surface_scene):
    data = SceneData(surface_scene, batches_per_epoch=1, batch_size=32, n_val=32, seed=0)
    drawn = [
        received(data.load(data.plan(split)[0], epoch, CPU))
        for split, epoch in (("train", 0), ("train", 1), ("val", 0), ("test", 0))
    ]
    for i, one in enumerate(drawn):
        assert all(not torch.equal(one, other) for other in drawn[:i])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_scenes": 0}, "n_scenes must be at least 1: got 0"),
        ({"n_val": 0}, "n_val must be at least 1: got 0"),
        ({"batches_per_epoch": 0}, "batches_per_epoch must be at least 1: got 0"),
        ({"batch_size": 48}, "multiple of scenes_per_channel=32: got 48"),
        ({"passes_per_epoch": 2}, "got passes_per_epoch=2 without n_scenes"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(surface_scene, options, message):
    with pytest.raises(ValueError, match=message):
        SceneData(surface_scene, **options)


@pytest.fixture
def recording(surface_scene):
    """Twenty scenes of three operators, in no order."""
    index = torch.tensor([2, 0, 1, 1, 2, 0, 0, 0, 2, 1, 0, 0, 0, 1, 2, 2, 0, 0, 1, 0])
    blocks = [draw_block(surface_scene, block_generator(0, "file", 0, b), 20) for b in range(3)]
    scenes = range(20)
    truth = blocks[0][1]
    return ObservationFile(
        y=torch.stack([blocks[index[s]][0].y[s] for s in scenes]),
        operator=torch.stack([heard.operator for heard, _ in blocks]),
        operator_index=index,
        noise_power=torch.ones(20),
        positions=surface_scene.positions(),
        wavelength=surface_scene.wavelength_m,
        field="near",
        azimuth_deg=(-60.0, 60.0),
        elevation_deg=(-30.0, 30.0),
        range_m=(0.5, 5.0),
        truth=replace(
            truth,
            parameters=torch.stack([blocks[index[s]][1].parameters[s] for s in scenes]),
            resolved=torch.stack([blocks[index[s]][1].resolved[s] for s in scenes]),
        ),
        sha256="",
    )


@pytest.fixture
def recorded(recording, surface_scene, tmp_path):
    def make(scene=surface_scene, recording=recording, **options):
        path = tmp_path / "scenes.npz"
        write_observations(path, recording)
        data = RecordedData(scene, str(path), **({"seed": 0} | options))
        data.setup("fit")
        return data

    return make


def test_a_recording_is_grouped_by_operator_and_complete(recorded, recording):
    data = recorded(batch_size=7)
    seen = []
    for entry in data.plan("train"):
        assert sum(map(len, entry)) <= 7
        for group in entry:
            assert len(set(recording.operator_index[list(group)].tolist())) == 1
            seen += group
    assert sorted(seen) == list(range(20))


def test_recorded_scenes_keep_their_operator_and_their_truth(recorded, recording):
    data = recorded(batch_size=7)
    for entry in data.plan("train"):
        batch = data.load(entry, 0, CPU)
        scenes = [scene for group in entry for scene in group]
        assert torch.equal(received(batch), recording.y[scenes])
        torch.testing.assert_close(
            batch.truth.parameters, recording.truth.parameters[scenes], equal_nan=True
        )
        for group, one in zip(entry, batch.observations, strict=True):
            wanted = recording.operator[recording.operator_index[group[0]]]
            assert torch.equal(one.operator[0], wanted)


def test_the_first_scenes_of_a_recording_can_be_taken(recorded):
    groups = [group for entry in recorded(n_scenes=9).plan("test") for group in entry]
    assert sorted(scene for group in groups for scene in group) == list(range(9))


@pytest.mark.parametrize(("batch_size", "sizes"), [(9, [6, 7, 7]), (18, [10, 10]), (20, [20])])
def test_no_batch_of_a_recording_is_left_small(recorded, batch_size, sizes):
    """Packing whole operators would leave one of 2 scenes for a batch size of 18."""
    plan = recorded(batch_size=batch_size).plan("train")
    assert sorted(sum(map(len, entry)) for entry in plan) == sizes


def test_a_recording_of_another_scene_is_refused(recorded, surface_scene, line_scene):
    with pytest.raises(ValueError, match=r"got field=near, the scene has far.*range_m=\[0.5,5\]"):
        recorded(scene=line_scene)
    longer = replace(surface_scene.surface, n_codes=7)
    with pytest.raises(ValueError, match=r"got rows=24, the scene has 28\. Choose the scene"):
        recorded(scene=replace(surface_scene, surface=longer))
    with pytest.raises(ValueError, match="got elements=16, the scene has 20"):
        recorded(scene=replace(surface_scene, array=ArrayGeometry(5, 4)))
    with pytest.raises(ValueError, match="got element_positions=up to 1 wavelengths off"):
        recorded(scene=replace(surface_scene, array=ArrayGeometry(8, 2)))


@pytest.mark.parametrize(
    "law",
    [
        {"n_max": 1},
        {"azimuth_deg": (-30.0, 30.0)},
        {"elevation_deg": (-30.0, 31.0), "range_m": (0.5, 9.0)},
    ],
)
def test_the_keys_that_a_refusal_names_make_the_recording_fit(recorded, surface_scene, law):
    other = replace(surface_scene, sources=replace(surface_scene.sources, **law), wavelength_m=0.6)
    with pytest.raises(ValueError, match=r"wavelength_m=0\.3, the scene has 0\.6.* Set ") as caught:
        recorded(scene=other)
    settings = dict(one.split("=") for one in str(caught.value).split(" Set ")[1][:-1].split(" "))
    assert settings.pop("scene.wavelength_m") == "0.3"
    assert set(settings) == {f"scene.sources.{name}" for name in law}
    values = {key.rpartition(".")[2]: literal_eval(value) for key, value in settings.items()}
    mended = {k: tuple(map(float, v)) if isinstance(v, list) else v for k, v in values.items()}
    sources = replace(other.sources, **mended)
    assert recorded(scene=replace(other, sources=sources, wavelength_m=0.3)).recording


def test_bounds_may_be_rounded(recorded, recording):
    narrow = tuple(torch.tensor([-59.99999, 60.00001]).tolist())
    assert recorded(recording=replace(recording, azimuth_deg=narrow)).recording


def test_another_region_is_taken_with_a_warning_where_sources_are_not_known(recorded, recording):
    unlabelled = replace(recording, truth=None, azimuth_deg=(-45.0, 80.0))
    with pytest.warns(UserWarning, match=r"azimuth_deg=\[-45,80\], the scene has \[-60,60\]"):
        assert recorded(recording=unlabelled).recording.truth is None


def test_a_source_outside_the_region_is_refused_by_number(recorded, recording):
    parameters = recording.truth.parameters.clone()
    parameters[7, 0] = torch.tensor([0.95, 0.0, 1.0])
    with pytest.raises(ValueError, match=r"truth_xyz is outside .*azimuth_deg .* index \(7, 0\)"):
        recorded(
            recording=replace(recording, truth=replace(recording.truth, parameters=parameters)),
            max_bad_share=0.0,
        )


def test_a_share_of_bad_scenes_must_be_a_share(recorded):
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"max_bad_share must be in \[0, 1\): got"):
            recorded(max_bad_share=share)


def test_labels_without_any_source_are_refused(recorded, recording):
    nothing = replace(
        recording.truth,
        parameters=torch.full_like(recording.truth.parameters, torch.nan),
        resolved=torch.zeros_like(recording.truth.resolved),
    )
    with pytest.raises(ValueError, match=r"truth_xyz must name a source .* got none in 20 scenes"):
        recorded(recording=replace(recording, truth=nothing))


def test_more_scenes_than_a_recording_has_are_refused(recorded):
    with pytest.raises(ValueError, match="n_scenes=21 scenes: got 20"):
        recorded(n_scenes=21)
