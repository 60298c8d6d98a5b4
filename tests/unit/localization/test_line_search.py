"""Weighed answers of arrays, against scenes whose sources are known."""

import pytest
import torch

from musicnet.estimation.dictionary import Dictionary
from musicnet.estimation.found import Found
from musicnet.estimation.linearization import explain
from musicnet.estimation.problem import compress
from musicnet.localization import localize
from musicnet.localization.line_search import first_answers, is_explained, more_answers, weigh
from musicnet.networks.judge import Judge
from musicnet.networks.neural_music import NetworkSettings, NeuralMusic
from musicnet.networks.pretrained import Pretrained
from musicnet.scene.array import ArrayGeometry
from musicnet.scene.scene import Scene
from musicnet.scene.snapshots import block_generator, draw_block
from musicnet.scene.sources import SourceLaw


def drawn(n_sources, snr_db, range_m=None, n_scenes=100, coherent_share=0.5, n_snapshots=30):
    law = SourceLaw(
        n_min=n_sources,
        n_max=n_sources,
        elevation_deg=(0.0, 0.0),
        range_m=range_m,
        snr_db=(snr_db, snr_db),
        min_separation_deg=12.0,
    )
    scene = Scene(
        ArrayGeometry(15 if range_m else 8),
        law,
        wavelength_m=1.0,
        n_snapshots=n_snapshots,
        symbols="data",
        coherent_share=coherent_share,
    )
    observation, truth = draw_block(scene, block_generator(0, "test", 0, 0), n_scenes)
    return scene, observation, truth


@torch.no_grad()
def weighed(scene, observation, n_sources):
    problem = compress(observation, scene.region)
    counts = torch.full(problem.y.shape[:2], n_sources)
    return weigh(Judge(8), problem, counts)


@pytest.mark.parametrize("range_m", [None, (8.0, 48.0)])
@pytest.mark.parametrize("n_sources", [1, 2, 3])
def test_where_sources_are_loud_they_are_found(n_sources, range_m):
    scene, observation, truth = drawn(n_sources, 25.0, range_m)
    found = weighed(scene, observation, n_sources)
    u, wanted = (one[..., 0].sort(-1).values for one in (found.parameters[0], truth.parameters))
    assert float(((u - wanted).abs() < 0.02).float().mean()) > 0.98


def test_a_scene_does_not_depend_on_its_batch():
    scene, observation, _ = drawn(3, 0.0, n_scenes=24, n_snapshots=12)
    together = weighed(scene, observation, 3).parameters[0]
    alone = [
        weighed(scene, _one(observation, index), 3).parameters[0, 0] for index in range(0, 24, 6)
    ]
    torch.testing.assert_close(torch.stack(alone), together[::6], atol=1e-3, rtol=0)


def test_the_mean_of_doubtful_answers_is_within_them():
    scene, observation, _ = drawn(2, -5.0, n_snapshots=10)
    problem = compress(observation, scene.region)
    counts = torch.full((1, 100), 2)
    dictionary = Dictionary.over(problem, None)
    answers = first_answers(problem, dictionary, counts)
    answers = more_answers(problem, dictionary, answers, counts > 0, counts > 0)
    there = torch.stack([one.is_there for one in answers], -1)[..., None]
    u = torch.stack([one.found.parameters[..., 0].sort(-1).values for one in answers], 2)
    mean = weigh(Judge(8), problem, counts).parameters[..., 0]
    low = u.masked_fill(~there, torch.inf).amin(2)
    high = u.masked_fill(~there, -torch.inf).amax(2)
    assert bool(((mean > low - 1e-4) & (mean < high + 1e-4)).all())


def test_a_wrong_coherent_answer_is_not_explained():
    scene, observation, truth = drawn(3, 20.0, coherent_share=1.0, n_snapshots=200)
    problem = compress(observation, scene.region)
    present = truth.resolved[None]

    def share_explained(parameters):
        cost = explain(problem, parameters, present).cost
        return float(is_explained(problem, Found(parameters, present, cost)).float().mean())

    right, wrong = truth.parameters[None], truth.parameters[None].clone()
    wrong[..., 0, 0] += 0.04
    assert share_explained(right) > 0.6  # refined ones are explained more often
    assert share_explained(wrong) == 0.0


def test_localize_answers_with_a_judge_and_leaves_bad_scenes_out():
    scene, observation, truth = drawn(2, 20.0, n_scenes=8)
    torch.manual_seed(0)
    settings = NetworkSettings(n_channels=4, dilations=(1,), n_u=11, n_judge=8)
    network = NeuralMusic(scene, settings).requires_grad_(requires_grad=False).eval()
    observation.y[3] = torch.nan
    found = localize(
        observation,
        "neural",
        2,
        region=scene.region,
        pretrained=Pretrained("some", network, scene, {}, settings),
    )
    assert found.sources.resolved.all(-1).tolist() == [index != 3 for index in range(8)]
    u, wanted = (
        one[..., 0].sort(-1).values for one in (found.sources.parameters, truth.parameters)
    )
    good = torch.arange(8) != 3
    torch.testing.assert_close(u[good], wanted[good], atol=0.02, rtol=0)


def _one(observation, index):
    return type(observation)(
        observation.y[index : index + 1],
        observation.operator,
        observation.noise_power[index : index + 1],
        observation.positions,
        observation.wavelength,
    )
