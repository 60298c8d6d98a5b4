"""Pursuit by coherence: the pursuit that it is, and what is won where scenes are coherent."""

from dataclasses import replace

import pytest
import torch

from musicnet.estimation.dictionary import Dictionary
from musicnet.estimation.problem import compress
from musicnet.estimation.pursuit import nomp
from musicnet.localization import coherent_pursuit, localize
from musicnet.localization.coherent_pursuit import pursue_by_coherence
from musicnet.networks.coherence import CoherenceHead
from musicnet.networks.neural_music import NetworkSettings, NeuralMusic
from musicnet.networks.pretrained import Pretrained
from musicnet.scene.array import ArrayGeometry
from musicnet.scene.scene import Scene
from musicnet.scene.snapshots import block_generator, draw_block
from musicnet.scene.sources import SourceLaw

SETTINGS = NetworkSettings(n_channels=4, dilations=(1,), n_u=9, n_coherence=8)


def line(n_sources, snr_db, coherent_share=0.5, n_snapshots=12):
    law = SourceLaw(
        n_sources,
        n_sources,
        elevation_deg=(0.0, 0.0),
        range_m=None,
        snr_db=(snr_db, snr_db),
        min_separation_deg=12.0,
    )
    return Scene(
        ArrayGeometry(8),
        law,
        n_snapshots=n_snapshots,
        symbols="data",
        coherent_share=coherent_share,
    )


def drawn(scene, n_scenes=100):
    return draw_block(scene, block_generator(0, "test", 0, 0), n_scenes)


def always(log_odds):
    head = CoherenceHead(8, n_max=3, most_snapshots=200)
    torch.nn.init.constant_(head.log_odds.bias, log_odds)
    return head


def squared_error(found, truth):
    u, wanted = (one[..., 0].sort(-1).values for one in (found.parameters[0], truth.parameters))
    return float((u - wanted).square().mean())


def test_where_nothing_passes_for_coherent_it_is_pursuit():
    scene = line(3, 10.0)
    observation, _ = drawn(scene)
    problem = compress(observation, scene.region)
    found, _ = pursue_by_coherence(always(0.0), problem, torch.full((1, 100), 3))
    wanted = nomp(problem, None, 3)
    near = (found.cost < 1.001 * wanted.cost).double().mean()
    assert float(near) > 0.97


@pytest.mark.parametrize("n_sources", [2, 3])
def test_coherent_scenes_are_better_searched_in_their_one_dimension(n_sources):
    scene = line(n_sources, 0.0, coherent_share=1.0)
    observation, truth = drawn(scene, 600)
    problem = compress(observation, scene.region)
    counts = torch.full((1, 600), n_sources)
    sure, unsure = (pursue_by_coherence(always(x), problem, counts)[0] for x in (9.0, 0.0))
    assert squared_error(sure, truth) < 0.9 * squared_error(unsure, truth)


@pytest.mark.parametrize("log_odds", [0.0, 9.0])
def test_a_scene_does_not_depend_on_its_batch(log_odds):
    scene = line(3, 5.0)
    observation, _ = drawn(scene, 9)
    counts = torch.tensor([[0, 1, 2, 3, 3, 2, 1, 0, 3]])
    problem, head = compress(observation, scene.region), always(log_odds)
    together, _ = pursue_by_coherence(head, problem, counts)
    assert torch.equal(together.present.sum(-1), counts)
    for index in (1, 2, 3):
        some = torch.tensor([[index]])
        alone, _ = pursue_by_coherence(head, problem.take(some), counts[:, index : index + 1])
        n = int(counts[0, index])
        torch.testing.assert_close(
            alone.parameters[0, 0, :n], together.parameters[0, index, :n], atol=2e-3, rtol=0
        )


def test_a_single_snapshot_is_no_matter_of_coherence():
    scene = line(2, 20.0, n_snapshots=1)
    observation, _ = drawn(scene, 20)
    problem, counts = compress(observation, scene.region), torch.full((1, 20), 2)
    sure, unsure = (pursue_by_coherence(always(x), problem, counts)[0] for x in (9.0, 0.0))
    assert torch.equal(sure.parameters, unsure.parameters)


def test_more_sources_than_were_learned_are_left_to_pursuit():
    learned = line(2, 20.0, coherent_share=0.0, n_snapshots=100)
    law = replace(learned.sources, n_min=4, n_max=4)
    heard, _ = drawn(replace(learned, sources=law), 12)
    network = NeuralMusic(learned, SETTINGS).eval()
    pretrained = Pretrained("two", network, learned, {}, SETTINGS)
    options = {"region": learned.region, "pretrained": pretrained}
    found = localize(heard, "neural", **options).sources
    pursued = localize(heard, "nomp", region=learned.region).sources
    assert torch.equal(found.n_sources, pursued.n_sources)
    assert int((found.n_sources > 2).sum()) > 8
    u, wanted = (one.u.nan_to_num(9.0).sort(-1).values for one in (found, pursued))
    torch.testing.assert_close(u, wanted, atol=2e-3, rtol=0)


def test_too_many_told_sources_are_refused():
    scene = line(2, 20.0)
    pretrained = Pretrained("two", NeuralMusic(scene, SETTINGS), scene, {}, SETTINGS)
    with pytest.raises(ValueError, match="got sources=3, it was trained for up to 2"):
        localize(drawn(scene, 2)[0], "neural", 3, region=scene.region, pretrained=pretrained)


def alike(n_sources):
    places = tuple((0.5 * n, 0.0, 0.0) for n in range(8))
    law = SourceLaw(
        n_sources,
        n_sources,
        azimuth_deg=(-50.0, 50.0),
        elevation_deg=(0.0, 0.0),
        range_m=None,
        snr_db=(15.0, 15.0),
        phase_deg=(0.0, 0.0),
        min_separation_deg=15.0,
    )
    array = ArrayGeometry(kind="positions", places_wavelengths=places)
    return Scene(array, law, n_snapshots=50, symbols="data", coherent_share=1.0)


def test_sources_that_arrive_alike_are_found_together():
    scene = alike(4)
    assert scene.is_alike
    observation, truth = drawn(scene, 60)
    problem, counts = compress(observation, scene.region), torch.full((1, 60), 4)
    together, apart = (
        pursue_by_coherence(always(9.0), problem, counts, are_alike=alike)[0]
        for alike in (True, False)
    )
    assert squared_error(together, truth) < 0.1 * squared_error(apart, truth)


def test_error_bars_of_sources_that_arrive_alike_are_honest():
    scene = alike(3)
    observation, truth = drawn(scene, 300)
    network = NeuralMusic(scene, SETTINGS).eval()
    torch.nn.init.constant_(network.head.coherence.log_odds.bias, 9.0)
    pretrained = Pretrained("alike", network, scene, {}, SETTINGS)
    found = localize(observation, "neural", 3, region=scene.region, pretrained=pretrained)
    order = found.sources.u.argsort(-1)
    error = found.sources.u.gather(-1, order) - truth.u.sort(-1).values
    variance = found.covariance[..., 0, 0].gather(-1, order)
    surprise = (error.square() / variance).clamp_max(16.0)
    assert 0.85 < float(surprise.mean()) < 1.2


def wide(n_sources, sector_deg):
    scene = line(n_sources, 10.0, coherent_share=0.0, n_snapshots=50)
    law = replace(scene.sources, azimuth_deg=(-sector_deg, sector_deg))
    return replace(scene, sources=law)


def test_in_a_sector_whose_ends_look_alike_fewer_sources_end_up_at_the_wrong_one():
    scene = wide(2, 90.0)
    observation, truth = drawn(scene, 400)
    problem, counts = compress(observation, scene.region), torch.full((1, 400), 2)
    found, _ = pursue_by_coherence(always(0.0), problem, counts)
    pursued = nomp(problem, None, 2)

    def far_off(parameters):
        u, wanted = (one[..., 0].sort(-1).values for one in (parameters[0], truth.parameters))
        return int(((u - wanted).abs().amax(-1) > 0.5).sum())

    assert far_off(pursued.parameters) >= 10
    assert far_off(found.parameters) <= 0.6 * far_off(pursued.parameters)


@pytest.mark.parametrize(("sector_deg", "alike"), [(60.0, False), (80.0, True), (90.0, True)])
def test_ends_look_alike_in_wide_sectors_only(sector_deg, alike):
    scene = wide(2, sector_deg)
    problem = compress(drawn(scene, 2)[0], scene.region)
    assert coherent_pursuit._do_ends_alias(problem, Dictionary.over(problem, None)) is alike
