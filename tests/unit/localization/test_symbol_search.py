"""The neural method where symbols are unknown and change with every code of a surface."""

from dataclasses import replace

import pytest
import torch

from musicnet.estimation.range_posterior import settle_range
from musicnet.localization import localize
from musicnet.localization.confidence import assess
from musicnet.localization.contestants import Question, from_truth
from musicnet.localization.neural_methods import NeuralSearch, symbols_of
from musicnet.localization.task import make_task
from musicnet.metrics.matching import match
from musicnet.networks.neural_music import NetworkSettings, NeuralMusic
from musicnet.networks.pretrained import Pretrained
from musicnet.scene.array import ArrayGeometry
from musicnet.scene.scene import Scene
from musicnet.scene.snapshots import draw_blocks
from musicnet.scene.sources import SourceLaw
from musicnet.scene.surface import Surface

SURE, NEVER = 100.0, -100.0
SCENE = Scene(
    ArrayGeometry(6, 6),
    SourceLaw(n_max=3, snr_db=(0.0, 20.0), min_separation_deg=10.0),
    surface=Surface(n_antennas=6, n_codes=10),
    symbols="data",
)
LOUD = replace(SCENE, sources=replace(SCENE.sources, snr_db=(15.0, 20.0)))


def pretrained(scene=SCENE, trust=SURE, n_trust=8):
    """An untrained network; its head says always the same."""
    torch.manual_seed(0)
    settings = NetworkSettings(n_channels=8, dilations=(1,), n_v=5, n_u=9, n_rho=3, n_trust=n_trust)
    network = NeuralMusic(scene, settings).eval().requires_grad_(requires_grad=False)
    if n_trust:
        torch.nn.init.zeros_(network.head.trust.out.weight)
        network.head.trust.out.bias.copy_(torch.tensor([trust, 0.0]))
    return Pretrained("untrained", network, scene, {}, settings)


def draw(scene=SCENE, n_scenes=6):
    return draw_blocks(scene, [0, 1], n_scenes, "cpu", 0, "symbols", 0)


def right_share(found, truth):
    distance = match(found.sources, truth).distance[truth.resolved]
    return float((distance.nan_to_num(9.0) < 0.5).float().mean())


@pytest.mark.parametrize("trust", [SURE, NEVER])
def test_loud_sources_are_found_and_counted(trust):
    heard, truth = draw(LOUD, n_scenes=8 if trust == SURE else 3)
    network = pretrained(LOUD, trust)
    found = localize(heard, "neural", truth.n_sources, region=LOUD.region, pretrained=network)
    assert right_share(found, truth) > 0.9
    assert torch.equal(found.sources.n_sources, truth.n_sources)
    counted = localize(heard, "neural", None, region=LOUD.region, pretrained=network)
    assert (counted.n_sources == truth.n_sources).float().mean() > 0.9


def test_a_network_for_data_knows_between_which_bounds_powers_lie():
    heard, truth = draw()
    problem = make_task(heard, SCENE.region, truth.n_sources, None).problem
    low, high = symbols_of(pretrained(), problem).log_powers
    assert (low, high) == pytest.approx((0.0, 20.0 * 0.2302585), abs=1e-5)
    assert symbols_of(pretrained(n_trust=0), problem).log_powers is None


def test_error_bars_are_those_of_symbols_before_ranges_are_settled():
    heard, truth = draw()
    searching = NeuralSearch(make_task(heard, SCENE.region, truth.n_sources, None), pretrained())
    found = searching.find(truth.n_sources)
    searching.law = replace(searching.law, range_m=None)
    ignored = torch.zeros(*found.resolved.shape, 3, 3)
    polished, covariance = searching.polish(found, ignored)
    assert polished is found
    expected = assess(searching.problem, found).covariance
    torch.testing.assert_close(covariance, expected, equal_nan=True)


def test_ranges_are_settled_by_error_bars_that_are_not_widened():
    heard, truth = draw()
    searching = NeuralSearch(make_task(heard, SCENE.region, truth.n_sources, None), pretrained())
    found = searching.find(truth.n_sources)
    generator = torch.Generator().manual_seed(0)
    says = torch.randn(found.resolved.shape, generator=generator)
    searching._final = replace(searching._final, log_widening=says)
    covariance = assess(searching.problem, found).covariance
    law = SCENE.sources.range_m
    parameters, settled = settle_range(found.parameters, covariance, law, says.exp())
    polished, widened = searching.polish(found, covariance)
    expected = SCENE.region.clamp(parameters)
    torch.testing.assert_close(polished.parameters, expected, equal_nan=True)
    torch.testing.assert_close(widened, settled, equal_nan=True)


def test_a_second_look_makes_answers_more_probable():
    law = replace(SCENE.sources, n_min=3, snr_db=(-5.0, 5.0))
    scene = replace(SCENE, sources=law)
    heard, truth = draw(scene, n_scenes=8)
    task = make_task(heard, scene.region, truth.n_sources, None)
    costs = []
    for trust in (SURE, NEVER):
        searching = NeuralSearch(task, pretrained(scene, trust))
        searching.find(truth.n_sources)
        costs.append(searching._final.found.cost)
    assert (costs[1] <= costs[0] + 1e-3).all()
    assert (costs[1] < costs[0] - 1.0).any()


@pytest.mark.parametrize("trust", [SURE, NEVER])
def test_scenes_are_answered_as_alone(trust):
    heard, truth = draw(n_scenes=6)
    network = pretrained(trust=trust)
    whole = localize(heard, "neural", truth.n_sources, region=SCENE.region, pretrained=network)
    for channel, scene in ((0, 0), (1, 5)):
        one = replace(
            heard,
            y=heard.y[channel : channel + 1, scene : scene + 1],
            operator=heard.operator[channel : channel + 1],
            noise_power=heard.noise_power[channel : channel + 1, scene : scene + 1],
        )
        n = int(truth.n_sources[channel, scene])
        found = localize(one, "neural", n, region=SCENE.region, pretrained=network)
        torch.testing.assert_close(
            found.sources.parameters[0, 0],
            whole.sources.parameters[channel, scene, :n],
            atol=1e-3,
            rtol=0.0,
        )


def test_a_spoilt_scene_harms_no_other_and_has_no_answer():
    heard, truth = draw()
    y = heard.y.clone()
    y[0, 2] = torch.nan
    spoilt = replace(heard, y=y)
    given = {"n_sources": truth.n_sources, "region": SCENE.region, "pretrained": pretrained()}
    whole, found = (localize(one, "neural", **given) for one in (heard, spoilt))
    assert not found.sources.resolved[0, 2].any()
    others = torch.ones_like(truth.n_sources, dtype=torch.bool)
    others[0, 2] = False
    torch.testing.assert_close(
        found.sources.parameters[others],
        whole.sources.parameters[others],
        atol=1e-5,
        rtol=0.0,
        equal_nan=True,
    )


def test_pilots_are_refused_and_data_refused_by_pilots():
    pilots = replace(SCENE, symbols="pilot")
    for own, other in ((SCENE, pilots), (pilots, SCENE)):
        heard, truth = draw(other, n_scenes=2)
        network = pretrained(own)
        for method in ("neural", "auto"):
            with pytest.raises(ValueError, match=rf"got blocks={other.n_blocks}, it was trained"):
                localize(heard, method, truth.n_sources, region=other.region, pretrained=network)


def test_from_the_truth_what_is_known_of_symbols_is_used():
    heard, truth = draw(n_scenes=12)
    errors = []
    for network in (pretrained(), pretrained(n_trust=0)):
        reply = from_truth(Question(heard, None, SCENE, network, truth))
        errors.append((reply.sources.xyz - truth.xyz).norm(dim=-1)[truth.resolved])
    assert not torch.equal(*errors)
    assert all(error.median() < 0.3 for error in errors)
