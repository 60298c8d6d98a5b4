"""Examples of trust: what is called right, what is looked at again, and what is learned from it."""

import math
from dataclasses import replace

import pytest
import torch

from musicnet.estimation import posterior
from musicnet.estimation.clues import N_CLUES, Clues
from musicnet.estimation.found import Found, at_places
from musicnet.estimation.linearization import explain
from musicnet.estimation.posterior import Loudness
from musicnet.estimation.problem import compress
from musicnet.estimation.refinement import refine
from musicnet.learning import trust_examples as module
from musicnet.learning.data import SceneData
from musicnet.learning.module import TRUST_SHARE
from musicnet.learning.phases import Phase
from musicnet.learning.trust_examples import TrustExample, trust_examples, trust_loss
from musicnet.localization.confidence import assess
from musicnet.networks.trust import TrustHead
from musicnet.scene.array import ArrayGeometry
from musicnet.scene.scene import Scene
from musicnet.scene.snapshots import draw_blocks
from musicnet.scene.sources import SourceLaw, Sources
from musicnet.scene.surface import Surface

SCENE = Scene(
    ArrayGeometry(6, 6),
    SourceLaw(n_max=3, snr_db=(0.0, 20.0)),
    surface=Surface(n_antennas=6, n_codes=10),
)
N_CHANNELS, N_SCENES = 2, 20
TRUSTED = [Phase({"spectrum": 1.0, "trust": 1.0})]


@pytest.fixture(scope="module")
def drawn():
    return draw_blocks(SCENE, list(range(N_CHANNELS)), N_SCENES, "cpu", 0, "trust", 0)


def examples_of(drawn, scene=SCENE):
    return trust_examples(*drawn, scene.sources, scene.region)


def plain_truth(problem, truth):
    parameters = torch.where(truth.resolved[..., None], truth.parameters, problem.box.mean(0))
    cost = explain(problem, parameters, truth.resolved).cost
    return Found(parameters, truth.resolved, cost)


def refined_truth(problem, truth):
    refined = refine(problem, plain_truth(problem, truth).parameters, truth.resolved, 10)
    return Found(refined.parameters, truth.resolved, refined.cost)


def misfit_of(problem, found):
    return posterior.misfit(problem, found, Loudness.of(SCENE.sources))


def answered_by(monkeypatch, change):
    """The truth, refined and then changed, in place of the greedy answer."""

    def answer(truth):
        def first_answer(problem, dictionary, n_sources):
            best = refined_truth(problem, truth)
            parameters = change(best.parameters.clone())
            cost = explain(problem, parameters, best.present).cost
            return Found(parameters, best.present, cost)

        monkeypatch.setattr(module, "first_answer", first_answer)

    return answer


def test_the_truth_is_right_in_every_slot(drawn, monkeypatch):
    answered_by(monkeypatch, lambda parameters: parameters)(drawn[1])
    first, second = examples_of(drawn)
    assert first.right[first.clues.present].all()
    assert second.right[second.clues.present].all()
    # nothing was wrong: one scene in sixteen is looked at again all the same
    assert second.clues.present.shape == (math.ceil(N_CHANNELS * N_SCENES / 16), 1, 3)


def test_the_source_that_was_moved_is_wrong_and_the_others_are_not(drawn, monkeypatch):
    moved_scenes = torch.zeros(N_CHANNELS, N_SCENES, dtype=torch.bool)
    moved_scenes[0, 3] = moved_scenes[1, 1] = moved_scenes[1, 19] = True

    def move_first(parameters):
        u = parameters[:, :, 0, 0]
        parameters[:, :, 0, 0] = torch.where(moved_scenes, torch.where(u > 0, -0.7, 0.7), u)
        return parameters

    answered_by(monkeypatch, move_first)(drawn[1])
    first, second = examples_of(drawn)
    assert torch.equal(first.right[:, :, 0], ~moved_scenes)
    others = first.clues.present.clone()
    others[:, :, 0] = False
    assert first.right[others].all()
    # every wrong scene, and those that are looked at in any case: channel by channel
    again = {(0, 3), (1, 1), (1, 19), (0, 0), (0, 16), (1, 12)}
    assert second.clues.present.shape[:2] == (len(again), 1)
    order = sorted(again)
    expected = torch.stack([drawn[1].resolved[place] for place in order])
    assert torch.equal(second.clues.present[:, 0], expected)
    mended = second.right[second.clues.present].float().mean()
    assert mended > 0.7


def test_a_wrong_answer_next_to_the_truth_is_right_source_by_source(drawn, monkeypatch):
    """Of a wrong scene, those sources are right that stand where a true one does."""
    problem = compress(drawn[0], SCENE.region)
    steps = torch.tensor([0.3, 0.4])  # in units of the resolution: near is 0.35

    def shift(parameters):
        parameters[:, :, 0, 0] += steps[0] * problem.resolution[0]
        parameters[:, :, 1, 0] += steps[1] * problem.resolution[0]
        parameters[:, :, 2] = parameters.new_tensor([0.0, 0.0, 0.3])
        return parameters

    answered_by(monkeypatch, shift)(drawn[1])
    first = examples_of(drawn)[0]
    best, plain = refined_truth(problem, drawn[1]), plain_truth(problem, drawn[1])
    parameters = shift(best.parameters.clone())
    best = best.chosen(misfit_of(problem, plain) < misfit_of(problem, best), plain)
    least = misfit_of(problem, best)
    shifted = Found(parameters, best.present, best.cost)
    wrong = misfit_of(problem, shifted) > least + 0.5
    assert wrong.float().mean() > 0.5
    for channel, scene in wrong.nonzero().tolist():
        there = best.present[channel, scene]
        for slot in there.nonzero()[:, 0].tolist():
            apart = (parameters[channel, scene, slot] - best.parameters[channel, scene][there]) / (
                problem.resolution
            )
            expected = bool(apart.square().sum(-1).sqrt().min() < 0.35)
            assert bool(first.right[channel, scene, slot]) == expected
    assert first.right[~wrong].all()


def test_an_answer_is_measured_by_the_truth_and_not_by_what_refinement_makes_of_it(monkeypatch):
    """Close sources run off along the likelihood's ridge: what follows them is not right."""
    law = replace(SCENE.sources, n_min=3, azimuth_deg=(-20.0, 20.0), elevation_deg=(-10.0, 10.0))
    scene = replace(SCENE, sources=law)
    heard, truth = draw_blocks(scene, [0, 1], 32, "cpu", 0, "ridge", 0)
    problem = compress(heard, scene.region)
    plain, refined = (one(problem, truth) for one in (plain_truth, refined_truth))
    run_off = misfit_of(problem, refined) > misfit_of(problem, plain) + 0.5
    assert 3 <= run_off.sum() <= 32
    answered_by(monkeypatch, lambda parameters: parameters)(truth)
    first, second = examples_of((heard, truth), scene)
    assert second.clues.present.shape[0] >= int(run_off.sum())
    apart = ((refined.parameters - plain.parameters) / problem.resolution).norm(dim=-1)
    assert not first.right[run_off & (apart.amin(-1) > 1.0)].any()
    assert not first.right[run_off].all()
    assert first.right[~run_off].all()


def test_empty_slots_of_the_truth_are_no_place_to_stand(drawn, monkeypatch):
    """Empty slots hold the middle of the box: an answer there is not near anything."""
    problem = compress(drawn[0], SCENE.region)
    middle = problem.box.mean(0)

    def to_the_middle(parameters):
        parameters[:, :, 0] = middle
        return parameters

    answered_by(monkeypatch, to_the_middle)(drawn[1])
    first = examples_of(drawn)[0]
    lonely = drawn[1].resolved.sum(-1) == 1
    true = drawn[1].parameters[:, :, 0]
    far = ((true - middle) / problem.resolution).norm(dim=-1) > 3.0
    assert (lonely & far).sum() >= 5
    assert not first.right[lonely & far][:, 0].any()


def test_the_same_batch_gives_the_same_examples(drawn):
    one, other = examples_of(drawn), examples_of(drawn)
    assert len(one) == len(other) == 2
    for ours, theirs in zip(one, other, strict=True):
        assert torch.equal(ours.right, theirs.right)
        assert torch.equal(ours.clues.of_sources, theirs.clues.of_sources)
        assert torch.equal(ours.clues.log_distance, theirs.clues.log_distance)


def test_examples_know_nothing_of_gradients(drawn):
    heard, truth = drawn
    heard = replace(heard, y=heard.y.clone().requires_grad_())
    for example in examples_of((heard, truth)):
        assert not example.clues.of_sources.requires_grad
    assert torch.is_grad_enabled()


def test_second_answers_are_no_less_probable(drawn, monkeypatch):
    """What the second example is made of has a misfit no higher than the first answer's."""
    seen = []
    gather = module.gather_clues

    def watched(problem, dictionary, found):
        seen.append(misfit_of(problem, found))
        return gather(problem, dictionary, found)

    monkeypatch.setattr(module, "gather_clues", watched)
    first, second = examples_of(drawn)
    before, after = seen
    wrong = ~first.right.all(-1)
    again = wrong | (torch.arange(wrong.numel()).reshape(wrong.shape) % 16 == 0)
    assert len(after) == int(again.sum())
    # refinement may trade a little of the volume for cost
    assert (after[:, 0] <= before[again] + 0.3).all()
    assert second.right.shape == second.clues.present.shape


def opinionated(trust, log_widening):
    """A head that says always the same."""
    head = TrustHead(4)
    with torch.no_grad():
        head.out.weight.zero_()
        head.out.bias.copy_(torch.tensor([trust, log_widening]))
    return head


def example(right, squared_errors):
    """One scene; None in empty slots."""
    present = torch.tensor([[[one is not None for one in right]]])
    n = present.shape[-1]
    return TrustExample(
        Clues(torch.zeros(1, 1, n, N_CLUES), torch.zeros(1, 1, n, n), present),
        torch.tensor([[[bool(one) for one in right]]]),
        torch.tensor([[squared_errors]]),
    )


def test_the_loss_is_the_mean_cross_entropy_of_all_sources():
    head = opinionated(math.log(3.0), 0.0)  # trusts three times out of four
    examples = [
        example([True, False, None], [math.nan, math.nan, math.nan]),
        example([True, None], [math.nan, math.nan]),
    ]
    # three sources there, two of them right; what an empty slot says does not count
    expected = -(2.0 * math.log(0.75) + math.log(0.25)) / 3.0
    loss = trust_loss(head, examples).detach()
    assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_the_loss_adds_how_well_the_widening_fits():
    examples = [
        example([True, True, None], [3.0, math.nan, 1e9]),  # a false source has no error
        example([True, None], [0.5, math.nan]),
        example([True], [1e7]),  # counts as a thousand
    ]
    trust = math.log1p(math.exp(-1.0))
    for widening in (1.0, 4.0):
        head = opinionated(1.0, math.log(widening))
        width = math.log(widening) + (3.0 + 0.5 + 1000.0) / 3.0 / widening
        loss = trust_loss(head, examples)
        assert float(loss.detach()) == pytest.approx(trust + 0.1 * width, rel=1e-5)
        loss.backward()
        assert all(parameter.grad.isfinite().all() for parameter in head.parameters())
        # d/d log w of log w + n / w
        expected = 0.1 * (1.0 - (3.0 + 0.5 + 1000.0) / 3.0 / widening)
        assert float(head.out.bias.grad[1]) == pytest.approx(expected, rel=1e-5)


def test_the_widening_that_fits_is_the_mean_of_the_squared_errors():
    examples = [example([True, True], [1.0, 2.0]), example([True], [6.0])]
    losses = [
        float(trust_loss(opinionated(0.0, math.log(w)), examples).detach())
        for w in (2.5, 2.9, 3.0, 3.1, 3.5)
    ]
    assert min(losses) == losses[2]


def test_squared_errors_go_to_the_slots_that_made_them(drawn, monkeypatch):
    """By hand: two true sources that the answer holds in the other order, and a false one."""
    problem = compress(drawn[0], SCENE.region)
    problem = problem.single_out(torch.arange(N_CHANNELS * N_SCENES).reshape(2, -1) == 0)
    places = torch.tensor([[0.1, 0.2, 0.5], [-0.3, 0.1, 1.0], [0.0, 0.0, 0.4]])
    present = torch.tensor([True, True, False])
    truth = Sources(places.where(present[:, None], math.nan)[None, None], present[None, None])
    answer = torch.stack((places[2] + 0.3, places[1], places[0]))[None, None]
    answer[0, 0, 1, 0] += 0.01  # at one metre: x by a centimetre
    found = Found(answer, torch.ones(1, 1, 3).bool(), torch.zeros(1, 1))
    stated = torch.tensor([[0.1, 0.2, 0.5], [0.02, 0.4, 0.1], [0.3, 0.1, 0.7]])[None, None]
    monkeypatch.setattr(module, "_stated", lambda *_: stated)

    def squared(deviation):
        return module._squared_errors(problem, found, truth, torch.tensor([[deviation]]))

    offset = Sources(answer, found.present).xyz[0, 0, 1] - truth.xyz[0, 0, 1]
    assert float(offset[0]) == pytest.approx(0.01, rel=1e-4)
    expected = float((offset / stated[0, 0, 1]).square().mean())
    wide = squared([1.0, 1.0, math.nan])
    assert wide[0, 0, 0].isnan()  # is nobody's
    assert wide[0, 0, 1:].tolist() == pytest.approx([expected, 0.0], rel=1e-4)
    # four deviations are what noise may do
    length = float(offset.norm())
    assert squared([1.0, length / 3.9, math.nan])[0, 0, 1] == wide[0, 0, 1]
    assert squared([1.0, length / 4.1, math.nan])[0, 0, 1].isnan()
    missed = replace(found, present=torch.tensor([[[False, True, False]]]))
    one = module._squared_errors(problem, missed, truth, torch.ones(1, 1, 3))
    assert one.isfinite().tolist() == [[[False, True, False]]]


@pytest.mark.parametrize("size", [0.5, 0.25])
def test_squared_errors_of_honest_noise_are_one_on_average(size):
    """Of less than full size: much more left over than noise leaves would widen what is stated."""
    law = replace(SCENE.sources, snr_db=(18.0, 20.0), min_separation_deg=20.0, range_m=(0.5, 1.5))
    scene = replace(SCENE, sources=law)
    heard, truth = draw_blocks(scene, [0, 1, 2, 3], 150, "cpu", 0, "honest", 0)
    problem = compress(heard, scene.region)
    stated = assess(problem, truth).covariance.double()
    stated = stated.where(truth.resolved[..., None, None], torch.eye(3, dtype=stated.dtype))
    root = torch.linalg.cholesky(stated)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((*truth.parameters.shape, 1), generator=generator, dtype=torch.float64)
    noisy = (truth.parameters + size * (root @ noise)[..., 0]).float()
    order = torch.tensor([2, 0, 1])
    present = truth.resolved[..., order]
    places = noisy[..., order, :].where(present[..., None], problem.box.mean(0))
    found = Found(places, present, torch.zeros(present.shape[:2]))
    anywhere = torch.full(present.shape, math.inf)
    squared = module._squared_errors(problem, found, truth, anywhere)
    assert torch.equal(squared.isfinite(), present)
    assert float(squared[present].mean()) / size**2 == pytest.approx(1.0, abs=0.08)
    # slot by slot: each is that of its own noise
    large = noise[..., 0].square().mean(-1)[..., order][present]
    assert torch.corrcoef(torch.stack((squared[present].double(), large)))[0, 1] > 0.5


@pytest.mark.parametrize("n_empty", [5, N_SCENES])
def test_scenes_without_sources_teach_nothing(drawn, n_empty):
    """As a recording may have them."""
    heard, truth = drawn
    resolved = truth.resolved.clone()
    resolved[:, :n_empty] = False
    hidden = truth.parameters.masked_fill(~resolved[..., None], math.nan)
    examples = examples_of((heard, Sources(hidden, resolved)))
    for example in examples:
        assert example.clues.of_sources.isfinite().all()
    first = examples[0].clues.present
    assert torch.equal(first.sum(-1), resolved.sum(-1))
    torch.manual_seed(0)
    head = TrustHead(8)
    loss = trust_loss(head, examples)
    loss.backward()
    assert loss.isfinite()
    assert bool(loss == 0) == (n_empty == N_SCENES)
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())


def test_a_head_and_its_loss_term_need_each_other(make_module):
    with pytest.raises(ValueError, match=r"got network.n_trust=8 with .*'offsets': 0.5"):
        make_module(SCENE, n_trust=8)
    with pytest.raises(ValueError, match=r"got network.n_trust=8 .*'trust': 0.0"):
        make_module(SCENE, n_trust=8, phases=[Phase({"spectrum": 1.0, "trust": 0.0})])
    with pytest.raises(ValueError, match=r"got network.n_trust=0 .*'trust': 1.0"):
        make_module(SCENE, phases=TRUSTED)
    make_module(SCENE, n_trust=8, phases=TRUSTED)


def trust_of(module):
    trust = module.network.head.trust.named_parameters()
    return {name: value.detach().clone() for name, value in trust}


def test_every_weight_of_the_head_is_trained(make_module, make_trainer):
    net = make_module(SCENE, n_trust=8, phases=TRUSTED)
    before, pulled = trust_of(net), {}
    for name, parameter in net.network.head.trust.named_parameters():
        pulled[name] = 0.0
        parameter.register_hook(
            lambda g, name=name: pulled.__setitem__(name, pulled[name] + float(g.abs().sum()))
        )
    data = SceneData(SCENE, batches_per_epoch=4, batch_size=64, n_val=32, seed=0)
    trainer = make_trainer(max_epochs=1, num_sanity_val_steps=0)
    trainer.fit(net, data)
    assert net.gate.steps == 4
    assert all(pulled.values()), pulled
    assert all(not torch.equal(before[name], after) for name, after in trust_of(net).items())
    assert math.isfinite(float(trainer.callback_metrics["val/trust"]))


def test_training_looks_at_some_channels_and_validation_at_all(make_module):
    net = make_module(SCENE, n_trust=8, phases=TRUSTED)
    data = SceneData(SCENE, n_scenes=80, batch_size=80, scenes_per_channel=16, n_val=32, seed=0)
    batch = data.transfer_batch_to_device(next(iter(data.val_dataloader())), torch.device("cpu"), 0)
    n_channels = batch.observations[0].y.shape[0]
    assert n_channels == 5
    for is_training, n_used in ((True, math.ceil(5 / TRUST_SHARE)), (False, 5)):
        net.train(is_training)
        first = net._examples(batch)[0]
        assert first.clues.present.shape[:2] == (n_used, 16)
        truth = batch.truth.resolved.reshape(5, 16, -1)[:n_used]
        # whose sources they are: as many in every scene
        assert torch.equal(first.clues.present.sum(-1), truth.sum(-1))


@pytest.mark.parametrize("precision", ["bf16-mixed"])
def test_mixed_precision_trains_it_as_well(precision, make_module, make_trainer):
    net = make_module(SCENE, n_trust=8, phases=TRUSTED)
    before = trust_of(net)
    data = SceneData(SCENE, batches_per_epoch=2, batch_size=32, n_val=32, seed=0)
    trainer = make_trainer(max_epochs=1, num_sanity_val_steps=0, precision=precision)
    trainer.fit(net, data)
    assert math.isfinite(float(trainer.callback_metrics["val/trust"]))
    assert any(not torch.equal(before[name], after) for name, after in trust_of(net).items())


def test_data_symbols_are_judged_by_their_own_law(monkeypatch):
    """The likeliest powers and places go together: the truth is right, and what is moved is not."""
    scene = replace(SCENE, symbols="data")
    heard, truth = draw_blocks(scene, [0, 1], N_SCENES, "cpu", 0, "trust", 0)
    seen = []

    def first_answer(problem, dictionary, n_sources):
        seen.append(problem.log_powers)
        best = at_places(problem, plain_truth(problem, truth).parameters, truth.resolved)
        refined = refine(problem, best.parameters, best.present, 10)
        parameters = refined.parameters.clone()
        u = parameters[:, :4, 0, 0]
        parameters[:, :4, 0, 0] = torch.where(u > 0, -0.7, 0.7)
        return at_places(problem, parameters, truth.resolved)

    monkeypatch.setattr(module, "first_answer", first_answer)
    first, second = trust_examples(heard, truth, scene.sources, scene.region, is_data=True)
    assert seen == [Loudness.of(scene.sources).log_powers]
    assert first.right[:, 4:][first.clues.present[:, 4:]].all()
    # a source that is hardly heard at all may be anywhere
    assert first.right[:, :4, 0].float().mean() < 0.3
    there = first.right & first.clues.present
    assert first.squared_errors[there].isfinite().float().mean() > 0.8
    # one scene in sixteen is looked at again all the same
    assert second.clues.present.shape[0] >= 4
