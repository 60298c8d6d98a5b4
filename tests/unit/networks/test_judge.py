"""The judge: the classical choice before training, and weights that are weights."""

import pytest
import torch

from musicnet.estimation.answers import N_ANSWER_CLUES, Answers
from musicnet.networks.judge import Judge
from musicnet.networks.neural_music import NetworkSettings, NeuralMusic


def some_answers(n_answers=4):
    generator = torch.Generator().manual_seed(0)
    shape = (1, 5, n_answers)
    is_there = torch.ones(shape, dtype=torch.bool)
    is_there[..., -1] = False
    return Answers(
        parameters=torch.rand((*shape, 2, 3), generator=generator),
        spread=torch.ones((*shape, 2, 3)),
        present=torch.ones((1, 5, 2), dtype=torch.bool),
        clues=torch.randn((*shape, N_ANSWER_CLUES), generator=generator),
        misfit=5.0 * torch.rand(shape, generator=generator),
        is_there=is_there,
    )


def trained(n_channels=8):
    """A judge whose last layers say something."""
    torch.manual_seed(1)
    judge = Judge(n_channels)
    torch.nn.init.normal_(judge.weight.weight)
    torch.nn.init.normal_(judge.none_weight.weight)
    return judge


def test_untrained_it_prefers_what_fits_best():
    answers = some_answers()
    weights = Judge(8)(answers).log_weights[..., :-1]
    misfit = answers.misfit.masked_fill(~answers.is_there, torch.inf)
    assert torch.equal(weights.argmax(-1), misfit.argmin(-1))


def test_weights_add_up_to_one_and_missing_answers_have_none():
    weights = trained()(some_answers()).log_weights.exp()
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 5))
    assert bool((weights[..., 3] == 0).all())


def test_the_order_of_answers_does_not_matter():
    answers, order = some_answers(), torch.tensor([2, 3, 0, 1])
    turned = Answers(
        answers.parameters[:, :, order],
        answers.spread[:, :, order],
        answers.present,
        answers.clues[:, :, order],
        answers.misfit[:, :, order],
        answers.is_there[:, :, order],
    )
    judge = trained()
    plain, other = judge(answers), judge(turned)
    torch.testing.assert_close(plain.log_weights[..., order], other.log_weights[..., :-1])
    torch.testing.assert_close(plain.log_weights[..., -1], other.log_weights[..., -1])
    torch.testing.assert_close(plain.widening[..., order], other.widening)


def test_it_is_refused_behind_a_surface(surface_scene):
    with pytest.raises(ValueError, match="got n_judge=8 with symbols='pilot' and a surface"):
        NeuralMusic(surface_scene, NetworkSettings(n_judge=8))
