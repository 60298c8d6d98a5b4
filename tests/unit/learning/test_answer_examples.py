"""What the judge learns from: the density of the truth, and batches of many lengths."""

import math

import pytest
import torch

from musicnet.estimation.answers import N_ANSWER_CLUES, Answers
from musicnet.estimation.problem import compress
from musicnet.learning.answer_examples import AnswerExample, answer_examples, answer_loss
from musicnet.learning.batches import SceneBatch
from musicnet.learning.data import SceneData
from musicnet.learning.module import MusicNet
from musicnet.learning.phases import Phase
from musicnet.networks.judge import Judge
from musicnet.networks.neural_music import NetworkSettings
from musicnet.scene.snapshots import block_generator, draw_blocks


def student(error, spread):
    """Density of Student's distribution with 5 degrees of freedom, times the spread's inverse."""
    constant = math.gamma(3.0) / (math.gamma(2.5) * math.sqrt(5.0 * math.pi))
    return constant * (1.0 + (error / spread) ** 2 / 5.0) ** -3.0 / spread


def test_the_loss_is_the_density_of_the_mixture(line_scene):
    observation, _ = draw_blocks(line_scene, [0], 1, "cpu", 0, "test", 0)
    problem = compress(observation, line_scene.region)
    width = float(problem.box[1, 0] - problem.box[0, 0])
    truth = torch.tensor([[[[-0.3, 0.0, 0.0], [0.2, 0.0, 0.0]]]])
    moved = torch.tensor([0.01, -0.02])
    parameters = torch.stack((truth, truth), dim=2)
    parameters[0, 0, 1, :, 0] += moved
    answers = Answers(
        parameters=parameters,
        spread=torch.full((1, 1, 2, 2, 3), 0.01),
        present=torch.ones((1, 1, 2), dtype=torch.bool),
        clues=torch.zeros((1, 1, 2, N_ANSWER_CLUES)),
        misfit=torch.tensor([[[0.0, 1.0]]]),
        is_there=torch.ones((1, 1, 2), dtype=torch.bool),
    )
    judge = Judge(8)
    price, widened = float(judge.price.detach()), 1.0 + math.log(2.0)
    scores = [1.0, math.exp(-price), math.exp(-4.0)]
    weights = [score / sum(scores) for score in scores]
    spread = 0.01 / width * widened
    exact = student(0.0, spread) ** 2
    beside = student(0.01 / width, spread) * student(0.02 / width, spread)
    density = weights[0] * exact + weights[1] * beside + weights[2] * 2.0
    loss = answer_loss(judge, [AnswerExample(answers, truth, problem)])
    least = 2.0 * math.log(student(0.0, 1e-4))  # both sources known to a ten-thousandth
    assert loss.item() == pytest.approx((least - math.log(density)) / 2.0, rel=1e-4)


def test_examples_hold_the_truth_beside_answers_that_are_near_it(line_scene):
    observation, truth = draw_blocks(line_scene, [0, 1], 32, "cpu", 0, "test", 0)
    first, more = answer_examples(Judge(8), observation, truth, line_scene.region)
    is_pair = (first.answers.present.sum(-1) == 2)[..., None]
    error = (first.answers.parameters[:, :, 0, :, 0] - first.truth[..., 0]).abs()
    assert float(error[is_pair.expand_as(error)].median()) < 0.02
    assert more.answers.is_there.shape[-1] > first.answers.is_there.shape[-1]
    assert bool((more.answers.present.sum(-1) == 2).any())


def test_a_judge_learns_from_a_batch(line_scene):
    torch.manual_seed(0)
    settings = NetworkSettings(n_channels=8, dilations=(1,), n_u=11, n_judge=8)
    weights = {"spectrum": 1.0, "answers": 1.0}
    module = MusicNet(
        line_scene,
        lambda groups: torch.optim.AdamW(groups, lr=1e-2),
        settings,
        phases=[Phase(weights)],
    )
    observation, truth = draw_blocks(line_scene, [0], 64, "cpu", 0, "test", 0)
    flat = type(truth)(truth.parameters[0], truth.resolved[0])
    loss = module.compute_loss(SceneBatch((observation,), flat), 0)["loss"]
    loss.backward()
    gradients = [one.grad for one in module.network.head.judge.parameters()]
    assert all(one is not None for one in gradients)
    assert float(module.network.head.judge.price.grad.abs()) > 0


def test_a_judge_and_its_loss_need_each_other(line_scene):
    with pytest.raises(ValueError, match=r"got network\.n_judge=8"):
        MusicNet(
            line_scene,
            torch.optim.AdamW,
            NetworkSettings(n_u=11, n_judge=8),
        )


def test_batches_have_as_many_snapshots_as_their_lot_says(line_scene):
    data = SceneData(line_scene, batch_size=32, batches_per_epoch=40, n_snapshots_min=5, seed=0)
    cpu = torch.device("cpu")
    plan = data.plan("train")
    lengths = [data.load(entry, 0, cpu).observations[0].y.shape[-2] for entry in plan]
    assert min(lengths) >= 5
    assert max(lengths) <= line_scene.n_snapshots
    assert len(set(lengths)) > 5
    again = data.load(plan[3], 0, cpu).observations[0]
    assert torch.equal(again.y, data.load(plan[3], 0, cpu).observations[0].y)
    assert again.y.shape[-2] == lengths[3]
    lot = torch.rand((), generator=block_generator(0, "train, snapshots", 0, 3)).item()
    assert lengths[3] == round(5 * (line_scene.n_snapshots / 5) ** lot)


@pytest.mark.parametrize("fewest", [0, 21])
def test_fewer_snapshots_than_one_or_more_than_the_scene_has_are_refused(line_scene, fewest):
    with pytest.raises(ValueError, match=f"20 snapshots: got {fewest}"):
        SceneData(line_scene, n_snapshots_min=fewest)
