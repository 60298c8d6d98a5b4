"""The neural method: trust, second looks, and what no scene may do to another."""

import math
import re
from dataclasses import replace
from functools import partial

import pytest
import torch

from musicnet.estimation.dictionary import Dictionary
from musicnet.estimation.found import Found
from musicnet.estimation.linearization import explain
from musicnet.estimation.posterior import Loudness, misfit
from musicnet.estimation.problem import compress
from musicnet.estimation.range_posterior import settle_range
from musicnet.localization import localize, neural_methods, second_look
from musicnet.localization.confidence import assess
from musicnet.localization.neural_methods import NeuralSearch
from musicnet.localization.second_look import first_answer
from musicnet.localization.task import make_task, with_slots
from musicnet.networks.neural_music import NetworkSettings, NeuralMusic
from musicnet.networks.pretrained import Pretrained
from musicnet.scene.array import ArrayGeometry
from musicnet.scene.scene import Scene
from musicnet.scene.snapshots import draw_blocks
from musicnet.scene.sources import SourceLaw, Sources
from musicnet.scene.surface import Surface

SURE, NEVER = 100.0, -100.0
LINE = Scene(
    ArrayGeometry(8),
    SourceLaw(n_max=2, elevation_deg=(0.0, 0.0), range_m=None, snr_db=(10.0, 20.0)),
    n_snapshots=20,
    symbols="data",
)


def surface_scene(n_max=3, snr_db=(0.0, 20.0)):
    law = SourceLaw(n_max=n_max, snr_db=snr_db)
    return Scene(ArrayGeometry(6, 6), law, surface=Surface(n_antennas=6, n_codes=10))


SCENE = surface_scene()
MISFIT = partial(misfit, loudness=Loudness.of(SCENE.sources))


@pytest.fixture
def proposing(monkeypatch):
    """Rounds of which the first starts anew from the network's peaks."""
    first = replace(second_look._ROUNDS[0], n_out=0)
    monkeypatch.setattr(second_look, "_ROUNDS", (first, *second_look._ROUNDS))


def pretrained(scene=SCENE, trust=None, log_widening=0.0):
    """An untrained network, which is the matched filter; its head says always the same."""
    torch.manual_seed(0)
    settings = NetworkSettings(
        n_channels=8, dilations=(1,), n_v=5, n_u=9, n_rho=3, n_trust=0 if trust is None else 8
    )
    network = NeuralMusic(scene, settings).eval().requires_grad_(requires_grad=False)
    if trust is not None:
        torch.nn.init.zeros_(network.head.trust.out.weight)
        network.head.trust.out.bias.copy_(torch.tensor([trust, log_widening]))
    return Pretrained("untrained", network, scene, {}, settings)


def draw(scene=SCENE, n_channels=2, n_scenes=6, seed=0):
    return draw_blocks(scene, list(range(n_channels)), n_scenes, "cpu", seed, "neural", 0)


def counts_of(truth):
    """Those of the truth but for one scene: none is asked for there, and none is in doubt."""
    counts = truth.n_sources.clone()
    counts[0, -1] = 0
    return counts


def ask(heard, counts, trust, scene=SCENE, **options):
    network = pretrained(scene, trust)
    return localize(heard, "neural", counts, region=scene.region, pretrained=network, **options)


def search(heard, counts, trust, scene=SCENE, most_sources=None):
    task = make_task(heard, scene.region, counts, most_sources)
    return NeuralSearch(task, pretrained(scene, trust))


def likeliest(heard, counts, trust, scene=SCENE):
    """What is found before ranges are settled by how they are drawn."""
    searching = search(heard, counts, trust, scene)
    return searching.find(searching.count() if counts is None else counts)


def alone(heard, channel, scene):
    """One scene of a batch, in a batch of its own."""
    return replace(
        heard,
        y=heard.y[channel : channel + 1, scene : scene + 1],
        operator=heard.operator[channel : channel + 1],
        noise_power=heard.noise_power[channel : channel + 1, scene : scene + 1],
    )


def as_found(problem, sources):
    """An answer as a search holds it."""
    parameters = torch.where(sources.resolved[..., None], sources.parameters, problem.box.mean(0))
    parameters, present = problem.flatten(parameters), problem.flatten(sources.resolved)
    return Found(parameters, present, explain(problem, parameters, present).cost)


def same(ours, theirs, atol=1e-3):
    torch.testing.assert_close(ours, theirs, atol=atol, rtol=0.0, equal_nan=True)


def test_a_head_that_trusts_everything_leaves_the_first_answer_as_it_is():
    heard, truth = draw()
    answer = likeliest(heard, truth.n_sources, SURE)
    problem = compress(heard, SCENE.region)
    dictionary = Dictionary.over(problem)
    for k in truth.n_sources.unique().tolist():
        some = truth.n_sources == k
        alike = truth.n_sources.where(some, 0)
        first = first_answer(problem, dictionary, alike).sources(problem)
        assert torch.equal(answer.resolved[some][:, :k], first.resolved[some])
        assert torch.equal(answer.parameters[some][:, :k], first.parameters[some])


def rise_of_misfit(seed):
    """By how much a second look at every scene changes how improbable its answer is; nepers."""
    heard, truth = draw(n_channels=4, n_scenes=24, seed=seed)
    counts = counts_of(truth)
    problem = compress(heard, SCENE.region)
    first, second = (
        MISFIT(problem, as_found(problem, likeliest(heard, counts, trust)))
        for trust in (SURE, NEVER)
    )
    return second - first


def test_a_head_that_trusts_nothing_makes_no_scene_less_probable(monkeypatch):
    # of what is started anew: what the last refinement does is another test's
    monkeypatch.setattr(second_look, "finished", lambda problem, found, misfit: found)
    rise = rise_of_misfit(seed=1)
    assert rise.max() < 1e-3  # of several hundred: rounding
    assert (rise < -1.0).sum() >= 4


def test_the_last_refinement_makes_no_scene_less_probable():
    """Likelihood alone would, by 44 nepers: a pair that all but cancels, far too loud."""
    assert rise_of_misfit(seed=5).max() < 0.05


def test_a_first_answer_that_is_nonsense_is_mended(monkeypatch):
    """Proposals come from the network's peaks, scene by scene; mixed up they would not fit."""
    scene = surface_scene(n_max=1, snr_db=(20.0, 25.0))
    heard, truth = draw(scene, n_channels=3)

    def nonsense(problem, dictionary, n_sources):
        good = first_answer(problem, dictionary, n_sources)
        parameters = good.parameters.clone()
        parameters[..., 0] = torch.where(parameters[..., 0] > 0, -0.6, 0.6)
        return Found(parameters, good.present, explain(problem, parameters, good.present).cost)

    monkeypatch.setattr(neural_methods, "first_answer", nonsense)
    # nothing is taken out: what is mended is mended by proposals
    monkeypatch.setattr(second_look, "_ROUNDS", (replace(second_look._ROUNDS[0], n_out=0),))
    wanted = counts_of(truth)
    spoilt = likeliest(heard, wanted, SURE, scene)
    mended = likeliest(heard, wanted, NEVER, scene)
    there = wanted == 1
    assert ((spoilt.u - truth.u).abs()[there] > 0.3).all()
    assert ((mended.u - truth.u).abs()[there] < 0.05).float().mean() > 0.9


def test_proposals_are_those_of_each_scene_alone():
    heard, truth = draw()
    counts = truth.n_sources
    some = torch.zeros_like(counts, dtype=torch.bool)
    places = [(0, 1), (0, 4), (0, 5), (1, 2)]
    for place in places:
        some[place] = True
    together = search(heard, counts, NEVER)._from_peaks(some, counts)
    assert together.parameters.shape[:2] == (4, 1)
    for number, (channel, scene) in enumerate(places):
        k = counts[channel : channel + 1, scene : scene + 1]
        searching = search(alone(heard, channel, scene), k, NEVER)
        one = searching._from_peaks(torch.ones(1, 1).bool(), k)
        n = int(k)
        assert int(together.present[number].sum()) == n
        same(together.parameters[number, 0, :n], one.parameters[0, 0, :n])


@pytest.mark.usefixtures("proposing")
@pytest.mark.parametrize("n_sources", ["known", None])
@pytest.mark.parametrize(("n_channels", "n_scenes"), [(2, 4), (1, 4), (4, 1), (1, 1)])
def test_all_scenes_may_be_in_doubt(n_channels, n_scenes, n_sources):
    heard, truth = draw(n_channels=n_channels, n_scenes=n_scenes)
    counts = truth.n_sources if n_sources else None
    answer = likeliest(heard, counts, NEVER)
    first = likeliest(heard, counts, SURE)
    assert torch.equal(answer.n_sources, first.n_sources)
    problem = compress(heard, SCENE.region)
    ours, theirs = (MISFIT(problem, as_found(problem, one)) for one in (answer, first))
    assert (ours <= theirs + 0.05).all()


@pytest.mark.usefixtures("proposing")
def test_scenes_of_one_operator_may_be_looked_at_again():
    """As every recording is: the singled-out scenes share one dictionary."""
    heard, truth = draw(n_channels=1, n_scenes=10)
    counts = counts_of(truth)
    answer = ask(heard, counts, NEVER)
    assert torch.equal(answer.sources.n_sources, counts)
    flat = replace(
        heard, y=heard.y[0], operator=heard.operator[0], noise_power=heard.noise_power[0]
    )
    without_axis = ask(flat, counts[0], NEVER)
    assert torch.equal(
        without_axis.sources.parameters.nan_to_num(9.0),
        answer.sources.parameters[0].nan_to_num(9.0),
    )


@pytest.mark.usefixtures("proposing")
@pytest.mark.parametrize("trust", [SURE, NEVER])
def test_a_scene_that_is_not_finite_harms_no_other(trust):
    heard, truth = draw()
    counts = counts_of(truth)
    whole = ask(heard, counts, trust)
    y = heard.y.clone()
    y[0, 2, 0, 3] = math.nan
    found = ask(replace(heard, y=y), counts, trust)
    assert not found.sources.resolved[0, 2].any()
    assert found.sources.parameters[0, 2].isnan().all()
    others = torch.ones_like(counts, dtype=torch.bool)
    others[0, 2] = False
    ours, theirs = (one.sources.parameters[others].nan_to_num(9.0) for one in (found, whole))
    assert torch.equal(ours, theirs)


def count_searches(monkeypatch):
    """A list that grows with every search for a first answer."""
    calls = []

    def watch(name, says):
        original = getattr(neural_methods, name)

        def watched(*arguments):
            calls.append(says)
            return original(*arguments)

        monkeypatch.setattr(neural_methods, name, watched)

    watch("first_answer", "asked for")
    watch("append", "greedy")
    return calls


@pytest.mark.usefixtures("proposing")
@pytest.mark.parametrize("trust", [SURE, NEVER])
def test_a_scene_that_is_not_finite_does_not_change_how_others_are_counted(trust, monkeypatch):
    heard, _ = draw()
    whole = ask(heard, None, trust)
    calls = count_searches(monkeypatch)
    y = heard.y.clone()
    y[0, 2] = math.inf
    found = ask(replace(heard, y=y), None, trust)
    # one for each number of sources, and none afterwards: the silenced scene was counted empty
    assert calls == ["greedy"] * 3
    expected = whole.n_sources.clone()
    expected[0, 2] = 0
    assert torch.equal(found.n_sources, expected)
    others = torch.ones_like(expected, dtype=torch.bool)
    others[0, 2] = False
    ours, theirs = (one.sources.parameters[others].nan_to_num(9.0) for one in (found, whole))
    assert torch.equal(ours, theirs)


@pytest.mark.usefixtures("proposing")
@pytest.mark.parametrize("trust", [None, SURE, NEVER])
def test_the_order_of_scenes_and_channels_does_not_matter(trust):
    heard, truth = draw()
    counts = counts_of(truth)
    whole = ask(heard, counts, trust)
    order = torch.tensor([3, 5, 0, 1, 4, 2])
    turned = replace(
        heard,
        y=heard.y.flip(0)[:, order],
        operator=heard.operator.flip(0),
        noise_power=heard.noise_power.flip(0)[:, order],
    )
    found = ask(turned, counts.flip(0)[:, order], trust)
    same(found.sources.parameters, whole.sources.parameters.flip(0)[:, order])


@pytest.mark.usefixtures("proposing")
@pytest.mark.parametrize("trust", [None, SURE, NEVER])
def test_scenes_are_answered_as_in_smaller_batches(trust):
    heard, truth = draw()
    counts = counts_of(truth)
    whole = ask(heard, counts, trust)
    for channel, scene in ((0, 0), (0, 3), (1, 5)):
        # with a neighbour that is not in doubt
        pair = replace(
            heard,
            y=heard.y[channel : channel + 1, [scene, scene]],
            operator=heard.operator[channel : channel + 1],
            noise_power=heard.noise_power[channel : channel + 1, [scene, scene]],
        )
        k = counts[channel : channel + 1, [scene, scene]].clone()
        k[0, 1] = 0
        found = ask(pair, k, trust)
        n = int(k[0, 0])
        same(found.sources.parameters[0, 0, :n], whole.sources.parameters[channel, scene, :n])


@pytest.mark.usefixtures("proposing")
def test_large_batches_are_looked_at_in_portions(monkeypatch):
    heard, truth = draw()
    counts = counts_of(truth)
    whole = ask(heard, counts, NEVER)
    monkeypatch.setattr("musicnet.localization.second_look._AT_ONCE", 3)
    same(ask(heard, counts, NEVER).sources.parameters, whole.sources.parameters)


@pytest.mark.usefixtures("proposing")
@pytest.mark.parametrize("trust", [SURE, NEVER])
def test_double_precision_is_answered_in_double(trust):
    heard, truth = draw()
    counts = counts_of(truth)
    double = replace(
        heard,
        y=heard.y.to(torch.complex128),
        operator=heard.operator.to(torch.complex128),
        noise_power=heard.noise_power.double(),
        positions=heard.positions.double(),
    )
    found = ask(double, counts, trust)
    assert found.sources.parameters.dtype == torch.float64
    assert torch.equal(found.sources.n_sources, counts)


def test_more_sources_of_all_scenes_than_it_was_trained_for_are_refused():
    heard, _ = draw(n_scenes=2)
    with pytest.raises(ValueError, match="got sources=4, it was trained for up to 3") as caught:
        ask(heard, 4, None)
    assert not re.search("\n", str(caught.value))


@pytest.mark.parametrize("trust", [None, SURE])
def test_no_sources_may_be_asked_for(trust):
    heard, truth = draw(n_scenes=2)
    found = ask(heard, torch.zeros_like(truth.n_sources), trust)
    assert not found.sources.resolved.any()


@pytest.mark.usefixtures("proposing")
@pytest.mark.parametrize("n_max", [1, 2])
@pytest.mark.parametrize("trust", [None, SURE, NEVER])
def test_few_slots_are_enough(n_max, trust):
    """Pairs cannot be taken out of one source."""
    scene = surface_scene(n_max)
    heard, truth = draw(scene)
    counts = counts_of(truth)
    found = ask(heard, counts, trust, scene)
    assert torch.equal(found.sources.n_sources, counts)


@pytest.mark.parametrize("trust", [None, SURE])
def test_sources_are_counted_behind_a_surface(trust):
    scene = surface_scene(snr_db=(10.0, 20.0))
    heard, truth = draw(scene, n_scenes=16)
    found = ask(heard, None, trust, scene)
    assert (found.n_sources == truth.n_sources).float().mean() > 0.9
    assert torch.equal(found.sources.n_sources, found.n_sources)
    fewer = ask(heard, None, trust, scene, most_sources=2)
    assert fewer.sources.resolved.shape[-1] == 2
    assert int(fewer.n_sources.max()) == 2
    more = ask(heard, None, trust, scene, most_sources=5)
    assert more.sources.resolved.shape[-1] == 5
    assert not more.sources.resolved[..., 3:].any()


def test_counted_sources_are_those_of_asking_for_as_many():
    heard, _ = draw()
    counted = ask(heard, None, SURE)
    asked = ask(heard, counted.n_sources, SURE)
    n_slots = asked.sources.resolved.shape[-1]
    assert torch.equal(counted.sources.n_sources, asked.sources.n_sources)
    same(counted.sources.parameters[..., :n_slots, :], asked.sources.parameters)


@pytest.mark.parametrize("n_channels", [1, 3])
def test_a_plain_array_is_searched_and_counted(n_channels):
    heard, truth = draw(LINE, n_channels=n_channels)
    for counts in (truth.n_sources, None):
        found = ask(heard, counts, None, LINE)
        assert found.sources.parameters.shape[:2] == (n_channels, 6)
        apart = (truth.u[..., 0] - truth.u[..., 1]).abs().nan_to_num(1.0) > 0.3
        right = apart & (found.n_sources == truth.n_sources)
        assert right.sum() >= 0.9 * apart.sum()
        ours, theirs = (
            one.nan_to_num(2.0).sort(-1).values[..., :2][right]
            for one in (found.sources.u, truth.u)
        )
        same(ours, theirs, atol=0.05)


def test_with_a_network_auto_is_neural():
    heard, truth = draw(n_scenes=2)
    network = pretrained(trust=SURE)
    found = localize(heard, n_sources=truth.n_sources, region=SCENE.region, pretrained=network)
    assert found.method == "neural"
    with pytest.raises(ValueError, match="got pretrained=None"):
        localize(heard, "neural", 1, region=SCENE.region)


def test_a_head_without_an_opinion_does_no_harm():
    """Log-odds that are no number: the first answer stands."""
    heard, truth = draw(n_scenes=2)
    found = ask(heard, truth.n_sources, math.nan)
    first = ask(heard, truth.n_sources, SURE)
    assert isinstance(found.sources, Sources)
    assert torch.equal(
        found.sources.parameters.nan_to_num(9.0), first.sources.parameters.nan_to_num(9.0)
    )


def noise_alone(heard, scenes):
    """The observation with nothing but noise in some of its scenes."""
    generator = torch.Generator().manual_seed(7)
    y = torch.view_as_real(heard.y)
    noise = (
        torch.randn(y.shape, generator=generator)
        * (heard.noise_power / 2.0).sqrt()[..., None, None, None]
    )
    y = torch.where(scenes[..., None, None, None], noise, y)
    return replace(heard, y=torch.view_as_complex(y.contiguous()))


def loud(n_scenes=12):
    """Scenes of 0 to 3 sources, loud and apart."""
    law = replace(SCENE.sources, snr_db=(15.0, 25.0), min_separation_deg=15.0)
    scene = replace(SCENE, sources=law)
    heard, truth = draw(scene, n_scenes=n_scenes)
    empty = torch.zeros_like(truth.n_sources, dtype=torch.bool)
    empty[:, ::4] = True
    return scene, noise_alone(heard, empty), truth.n_sources.masked_fill(empty, 0)


@pytest.mark.parametrize("trust", [SURE, NEVER])
def test_loud_scenes_are_counted_right(trust, monkeypatch):
    scene, heard, expected = loud()
    assert set(expected.flatten().tolist()) == {0, 1, 2, 3}
    calls = count_searches(monkeypatch)
    searching = search(heard, None, trust, scene)
    counts = searching.count()
    assert torch.equal(counts, expected)
    assert calls == ["greedy"] * 3
    found = searching.find(counts)
    assert torch.equal(found.n_sources, counts)
    assert calls == ["greedy"] * 3  # what counting found is not looked for again
    fewer = searching.find(counts.clamp_max(1))
    assert torch.equal(fewer.n_sources, counts.clamp_max(1))
    assert calls[3:] == ["asked for"]


@pytest.mark.parametrize("trust", [SURE, NEVER])
@pytest.mark.parametrize("most", [1, 2, 3, 5])
def test_no_more_sources_are_counted_than_may_be(trust, most):
    scene, heard, expected = loud(n_scenes=8)
    searching = search(heard, None, trust, scene, most_sources=most)
    counts = searching.count()
    assert int(counts.max()) == min(most, 3)  # the law knows no more than three
    below = expected < most
    assert torch.equal(counts[below], expected[below])
    assert torch.equal(searching.find(counts).n_sources, counts)


def curved(searching, found):
    return assess(searching.problem, found).covariance


def with_opinions(searching, seed=0):
    """Another widening for every source that was found; nonsense in empty slots."""
    judged = searching._final
    generator = torch.Generator().manual_seed(seed)
    says = torch.randn(judged.log_widening.shape, generator=generator)
    searching._final = replace(judged, log_widening=says)
    return says.exp()


@pytest.mark.parametrize("is_counted", [False, True])
def test_far_sources_stay_and_their_error_bars_widen_one_by_one(is_counted):
    heard, truth = draw()
    searching = search(heard, None if is_counted else truth.n_sources, SURE)
    found = searching.find(searching.count() if is_counted else truth.n_sources)
    searching.law = replace(searching.law, range_m=None)
    widening = with_opinions(searching)
    n_found = widening.shape[-1]
    found = with_slots(found, n_found + 2)  # as many as a task has
    covariance = curved(searching, found)
    polished, widened = searching.polish(found, covariance)
    assert polished is found
    same(widened[:, :, :n_found], covariance[:, :, :n_found] * widening[..., None, None], atol=0.0)
    assert torch.equal(widened.isnan(), ~found.resolved[..., None, None].expand_as(widened))


def test_near_sources_are_settled_by_their_own_error_bars_and_stated_with_wider_ones():
    heard, truth = draw()
    searching = search(heard, truth.n_sources, SURE)
    found = searching.find(truth.n_sources)
    covariance, widening = curved(searching, found), with_opinions(searching)
    polished, widened = searching.polish(found, covariance)
    law = SCENE.sources.range_m
    expected = settle_range(found.parameters, covariance, law, widening)
    unmoved = settle_range(found.parameters, covariance, law)
    torch.testing.assert_close(expected[0], unmoved[0], equal_nan=True)
    assert torch.equal(polished.resolved, found.resolved)
    same(polished.parameters, SCENE.region.clamp(expected[0]), atol=1e-6)
    torch.testing.assert_close(widened, expected[1], equal_nan=True)
    assert ((polished.parameters - found.parameters).abs()[found.resolved] > 1e-3).any()
    empty = ~found.resolved
    assert empty.any()
    assert polished.parameters[empty].isnan().all()
    assert widened[empty].isnan().all()


def test_a_network_without_trust_polishes_nothing():
    heard, truth = draw(n_scenes=2)
    searching = search(heard, truth.n_sources, None)
    found = searching.find(truth.n_sources)
    covariance = curved(searching, found)
    polished, widened = searching.polish(found, covariance)
    assert polished is found
    assert widened is covariance


@pytest.mark.parametrize("log_widening", [0.0, 1.0])
def test_settled_sources_stay_in_the_region(log_widening):
    """Be it narrower than ranges are drawn; directions at the edge move along."""
    heard, truth = draw(n_channels=4, n_scenes=16)
    network = pretrained(SCENE, SURE, log_widening)
    for inverse_range in (SCENE.region.inverse_range, (0.5, 1.0)):
        region = replace(SCENE.region, inverse_range=inverse_range)
        found = localize(heard, "neural", truth.n_sources, region=region, pretrained=network)
        inside = found.sources.parameters[found.sources.resolved]
        torch.testing.assert_close(region.clamp(inside), inside, atol=1e-6, rtol=0.0)


def test_a_source_of_which_nothing_was_heard_is_still_a_place():
    heard, truth = draw(n_scenes=2)
    y = heard.y.clone()
    y[0, 0] = 0.0
    found = ask(replace(heard, y=y), torch.ones_like(truth.n_sources), SURE)
    assert found.sources.resolved.all()
    assert found.sources.parameters.isfinite().all()
    assert (found.std_parameters[0, 0] == math.inf).all()
    assert found.std_parameters[1].isfinite().all()


def numbers(found, some=...):
    values = (found.sources.parameters, found.covariance, found.log_likelihood, found.n_sources)
    return [value[some].double().nan_to_num(9.0) for value in values]


def are_same_bits(ours, theirs):
    return all(torch.equal(*both) for both in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("trust", [None, SURE])
def test_scenes_with_more_sources_than_were_learned_are_nomps(trust):
    scene = surface_scene(snr_db=(15.0, 25.0))
    heard, truth = draw(scene, n_scenes=8)
    few = surface_scene(n_max=2, snr_db=(15.0, 25.0))
    found = ask(heard, None, trust, few)
    beyond = found.left_to_nomp
    assert torch.equal(beyond, found.n_sources > 2)
    assert ((truth.n_sources > 2) == beyond).float().mean() > 0.9
    assert set(found.methods) == {"neural", "nomp"}
    nomp = localize(heard, "nomp", None, region=few.region)
    assert are_same_bits(numbers(found, beyond), numbers(nomp, beyond))
    # the others do not notice: as if nobody looked for more
    within = ask(heard, None, trust, few, most_sources=2)
    theirs = with_slots(within.sources, 6)
    assert torch.equal(
        found.sources.parameters[~beyond].nan_to_num(9.0),
        theirs.parameters[~beyond].nan_to_num(9.0),
    )
    ours, theirs = (one.covariance[~beyond][:, :2].nan_to_num(9.0) for one in (found, within))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("scene", "trust"), [(SCENE, SURE), (LINE, None)])
def test_scenes_of_which_too_many_are_asked_for_are_nomps_and_the_others_stay(scene, trust):
    few = replace(scene, sources=replace(scene.sources, n_max=2))
    heard, _ = draw(scene, n_channels=2, n_scenes=4)
    counts = torch.tensor([[1, 3, 2, 0], [2, 2, 4, 3]])
    beyond = counts > 2
    found = ask(heard, counts, trust, few)
    assert torch.equal(found.left_to_nomp, beyond)
    assert torch.equal(found.sources.n_sources, counts)
    nomp = localize(heard, "nomp", counts, region=few.region)
    assert are_same_bits(numbers(found, beyond), numbers(nomp, beyond))
    within = ask(heard, counts.masked_fill(beyond, 0), trust, few)
    ours, theirs = (
        [values[~beyond][:, :2] if values.ndim > 2 else values[~beyond] for values in numbers(one)]
        for one in (found, within)
    )
    assert are_same_bits(ours, theirs)


@pytest.mark.parametrize("trust", [None, SURE])
def test_what_is_left_to_nomp_does_not_depend_on_company(trust):
    few = surface_scene(n_max=1, snr_db=(15.0, 25.0))
    heard, _ = draw(surface_scene(snr_db=(15.0, 25.0)), n_channels=1)
    whole = ask(heard, None, trust, few)
    assert whole.left_to_nomp.any()
    for scene in range(6):
        found = ask(alone(heard, 0, scene), None, trust, few)
        assert found.methods == [whole.methods[scene]]
        assert are_same_bits(numbers(found, (0, 0)), numbers(whole, (0, scene)))


def test_where_noise_may_have_any_power_pursuit_counts():
    heard, _ = draw(surface_scene(snr_db=(10.0, 20.0)))
    wrong = replace(heard, noise_power=heard.noise_power * 50.0)
    ours = ask(wrong, None, SURE, is_noise_known=False).n_sources
    theirs = localize(wrong, "nomp", None, region=SCENE.region, is_noise_known=False).n_sources
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, ask(wrong, None, SURE).n_sources)


def test_directions_do_not_depend_on_the_origin_of_positions():
    heard, truth = draw(LINE, n_channels=1, n_scenes=8)
    moved = replace(heard, positions=heard.positions - heard.positions[0])
    ours, theirs = (
        localize(one, "neural", truth.n_sources, region=LINE.region, pretrained=pretrained(LINE))
        for one in (moved, heard)
    )
    same(ours.sources.parameters, theirs.sources.parameters, atol=1e-4)
    torch.testing.assert_close(
        ours.covariance, theirs.covariance, rtol=0.05, atol=0.0, equal_nan=True
    )


@pytest.mark.parametrize("method", ["neural", "auto"])
def test_a_network_that_does_not_fit_is_refused_in_one_line(method):
    heard, truth = draw()
    with pytest.raises(ValueError, match=r"'untrained' must fit: got"):
        localize(heard, method, truth.n_sources, region=SCENE.region, pretrained=pretrained(LINE))
