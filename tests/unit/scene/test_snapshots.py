import math

import pytest
import torch

from musicnet.estimation.likelihood import fit_amplitudes
from musicnet.scene.array import ArrayGeometry
from musicnet.scene.scene import Scene
from musicnet.scene.snapshots import (
    Observation,
    block_generator,
    draw_block,
    draw_blocks,
    draw_known_blocks,
)
from musicnet.scene.sources import SourceLaw, Sources
from musicnet.scene.steering import steering
from musicnet.scene.surface import Surface

LINE = SourceLaw(n_max=3, elevation_deg=(0.0, 0.0), range_m=None)
SCENES = {
    "surface with pilots": Scene(ArrayGeometry(8, 8), SourceLaw(), surface=Surface()),
    "surface with data": Scene(
        ArrayGeometry(8, 8), SourceLaw(), surface=Surface(rician_factor=3.0), symbols="data"
    ),
    "line with data": Scene(
        ArrayGeometry(8), LINE, n_snapshots=20, symbols="data", coherent_share=0.5
    ),
    "line with pilots": Scene(ArrayGeometry(8), LINE, n_snapshots=3),
}
every_scene = pytest.mark.parametrize("scene", SCENES.values(), ids=SCENES.keys())


def blocks(scene, keys, *, seed=0, split="train", epoch=0, n_scenes=8):
    return draw_blocks(scene, keys, n_scenes, "cpu", seed, split, epoch)


def loud(**law):
    return SourceLaw(**{"n_min": 2, "n_max": 2, "snr_db": (60.0, 60.0), **law})


@every_scene
def test_batches_are_channels_by_scenes(scene):
    heard, truth = blocks(scene, [0, 1, 2], n_scenes=4)
    assert heard.y.shape == (3, 4, scene.n_blocks, scene.n_rows)
    assert heard.operator.shape[:1] == (3,)
    assert heard.operator.shape[2:] == (scene.n_rows, scene.n_elements)
    assert heard.operator.shape[1] in (1, scene.n_blocks)
    assert heard.noise_power.shape == (3, 4)
    assert truth.parameters.shape == (3, 4, scene.sources.n_max, 3)
    assert heard.y.dtype == torch.complex64


@every_scene
def test_a_block_does_not_depend_on_its_neighbours(scene):
    together, truth = blocks(scene, [5, 9, 2])
    for i, key in enumerate([5, 9, 2]):
        alone, sources = blocks(scene, [key])
        assert torch.equal(alone.y[0], together.y[i])
        assert torch.equal(alone.operator[0], together.operator[i])
        torch.testing.assert_close(
            sources.parameters[0], truth.parameters[i], rtol=0, atol=0, equal_nan=True
        )


@every_scene
def test_a_single_block_is_a_batch_of_one(scene):
    heard, truth = draw_block(scene, block_generator(3, "val", 1, 4), 8)
    batch, sources = blocks(scene, [4], seed=3, split="val", epoch=1)
    assert torch.equal(heard.y, batch.y[0])
    assert torch.equal(heard.operator, batch.operator[0])
    assert torch.equal(truth.resolved, sources.resolved[0])


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"split": "val"}, {"epoch": 1}, {"keys": [1]}], ids=str
)
def test_every_part_of_the_key_matters(other):
    scene = SCENES["surface with pilots"]
    first, _ = blocks(scene, [0])
    second, _ = blocks(scene, **{"keys": [0], **other})
    assert not torch.equal(first.y, second.y)
    assert not torch.equal(first.operator, second.operator)


def test_global_randomness_is_neither_used_nor_moved():
    scene = SCENES["surface with pilots"]
    torch.manual_seed(0)
    first, _ = blocks(scene, [0])
    after = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(3), after)
    assert torch.equal(blocks(scene, [0])[0].y, first.y)


@every_scene
def test_truth_leaves_nothing_but_unit_noise(scene):
    heard, truth = blocks(scene, range(12), n_scenes=16)
    fit = fit_amplitudes(heard, truth)
    expected = scene.n_blocks * (scene.n_rows - truth.n_sources)
    assert fit.cost.sum().item() / expected.sum().item() == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("rician_factor", [0.0, 4.0])
def test_each_source_arrives_with_the_power_that_was_asked_for(rician_factor):
    law = loud(n_min=1, n_max=1, snr_db=(30.0, 30.0))
    scene = Scene(ArrayGeometry(8, 8), law, surface=Surface(rician_factor=rician_factor))
    heard, _ = blocks(scene, range(60), n_scenes=16)
    power = heard.y.abs().square().mean().item() - 1.0
    assert power == pytest.approx(1000.0, rel=0.05)


def test_sensors_of_an_array_hear_the_power_that_was_asked_for():
    law = loud(n_min=1, n_max=1, snr_db=(10.0, 10.0), elevation_deg=(0.0, 0.0), range_m=None)
    scene = Scene(ArrayGeometry(8), law, n_snapshots=50, symbols="data")
    heard, _ = blocks(scene, range(10), n_scenes=32)
    assert heard.y.abs().square().mean().item() == pytest.approx(11.0, rel=0.05)


def test_noise_is_circular_and_white():
    law = SourceLaw(snr_db=(-100.0, -100.0))
    heard, _ = blocks(Scene(ArrayGeometry(8, 8), law, surface=Surface()), range(20), n_scenes=32)
    rows = heard.y.reshape(-1, 128)
    covariance = rows.mT @ rows.conj() / len(rows)
    assert (covariance - torch.eye(128)).abs().max() < 6 / math.sqrt(len(rows))
    pseudo = rows.mT @ rows / len(rows)
    assert pseudo.abs().max() < 6 / math.sqrt(len(rows))


def test_pilots_keep_their_amplitude_over_snapshots():
    scene = Scene(ArrayGeometry(8), loud(elevation_deg=(0.0, 0.0), range_m=None), n_snapshots=5)
    heard, truth = blocks(scene, [0])
    amplitudes = fit_amplitudes(heard, truth).amplitudes / 1000
    torch.testing.assert_close(
        amplitudes, amplitudes[..., :1, :].expand_as(amplitudes), atol=0.05, rtol=0
    )


@pytest.mark.parametrize(("share", "coherent"), [(0.0, 0.0), (0.4, 0.4), (1.0, 1.0)])
def test_the_asked_share_of_scenes_is_coherent(share, coherent):
    law = loud(
        azimuth_deg=(-60.0, 60.0), elevation_deg=(0.0, 0.0), range_m=None, snr_db=(40.0, 40.0)
    )
    scene = Scene(ArrayGeometry(8), law, n_snapshots=20, symbols="data", coherent_share=share)
    heard, _ = blocks(scene, range(20), n_scenes=32)
    second, first = torch.linalg.svdvals(heard.y)[..., :2].unbind(-1)[::-1]
    assert (second < 0.02 * first).float().mean().item() == pytest.approx(coherent, abs=0.1)


def test_scenes_of_an_empty_batch_are_refused():
    with pytest.raises(ValueError, match=r"got keys=\[\]"):
        blocks(SCENES["line with data"], [])


def test_observations_move_to_a_device_whole():
    heard, _ = blocks(SCENES["line with data"], [0])
    moved = heard.to("cpu")
    assert isinstance(moved, Observation)
    assert torch.equal(moved.y, heard.y)
    assert moved.wavelength == heard.wavelength


@pytest.mark.gpu
@every_scene
def test_scenes_are_made_on_the_device(scene):
    heard, truth = draw_blocks(scene, [0, 1], 8, "cuda", 0, "train", 0)
    again, _ = draw_blocks(scene, [1], 8, "cuda", 0, "train", 0)
    assert heard.y.is_cuda
    assert truth.parameters.is_cuda
    torch.testing.assert_close(again.y[0], heard.y[1])
    fit = fit_amplitudes(heard, truth)
    assert fit.cost.isfinite().all()


def test_fit_ignores_slots_that_are_not_resolved():
    heard, truth = blocks(SCENES["surface with pilots"], [0])
    more = Sources(
        torch.cat((truth.parameters, torch.full_like(truth.parameters, math.nan)), dim=-2),
        torch.cat((truth.resolved, torch.zeros_like(truth.resolved)), dim=-1),
    )
    torch.testing.assert_close(fit_amplitudes(heard, more).cost, fit_amplitudes(heard, truth).cost)


@every_scene
def test_amplitudes_explain_what_was_heard_up_to_unit_noise(scene):
    known = draw_known_blocks(scene, [3, 4], 8, "cpu", seed=0, split="test", epoch=0)
    heard, truth = known.observation, known.truth
    assert known.amplitudes.shape == (2, 8, scene.n_blocks, scene.sources.n_max)
    assert not known.amplitudes.mT[~truth.resolved].any()
    places = truth.parameters.nan_to_num(0.0).double()
    field = known.amplitudes.to(torch.complex128) @ steering(
        heard.positions.double(), places, heard.wavelength
    )
    clean = (heard.operator[:, None].to(field) @ field[..., None]).squeeze(-1)
    noise = (heard.y - clean).abs().square()
    assert noise.mean().item() == pytest.approx(1.0, abs=5.0 / noise.numel() ** 0.5)


def test_known_blocks_are_the_blocks():
    scene = SCENES["line with data"]
    heard, truth = blocks(scene, [3])
    known = draw_known_blocks(scene, [3], 8, "cpu", seed=0, split="train", epoch=0)
    assert torch.equal(known.observation.y, heard.y)
    assert torch.equal(known.truth.resolved, truth.resolved)


@pytest.mark.parametrize(("share", "correlation"), [(0.0, 1.0), (1.0, 1.0), (1.0, 0.99)])
def test_scenes_of_one_waveform_are_known(share, correlation):
    law = SourceLaw(2, 3, elevation_deg=(0.0, 0.0), range_m=None, snr_db=(-5.0, 20.0))
    scene = Scene(
        ArrayGeometry(8),
        law,
        n_snapshots=10,
        symbols="data",
        coherent_share=share,
        correlation=correlation,
    )
    known = draw_known_blocks(scene, [0], 200, "cpu", seed=0, split="test", epoch=0)
    assert bool((known.is_coherent == (share * correlation == 1.0)).all())
