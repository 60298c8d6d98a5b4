"""Which of several answers to one scene to believe, and how far: a small network that weighs them.

It starts from the classical choice, the answer that fits its symbols best, and learns from clues
when that is wrong. Weights are those of a mixture that is trained to hold the truth, so that the
mean under them is the estimate of the least square error.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from musicnet.estimation.answers import N_ANSWER_CLUES, Answers

_HIDDEN = -1e4
_BROAD_BIAS = -4.0  # answers are mostly right
_FIRST_PRICE = 0.7  # of a neper of misfit: below 1, since answers are not all there could be


@dataclass(frozen=True)
class Verdict:
    """What the judge makes of the answers to each scene.

    Args:
        log_weights: of each answer, and last of none of them; they add up to one.
        widening: by how much an answer's errors exceed those that it states, >= 0.
    """

    log_weights: Float[Tensor, "channel scene option"]
    widening: Float[Tensor, "channel scene answer"]


class Judge(nn.Module):
    """Clues to weights.

    Args:
        n_channels: features per answer.
    """

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.embed = _steps(N_ANSWER_CLUES, n_channels)
        self.weigh = _steps(3 * n_channels, n_channels)
        self.weight = nn.Linear(n_channels, 2)
        self.none = nn.Sequential(nn.Linear(2 * n_channels, n_channels), nn.GELU())
        self.none_weight = nn.Linear(n_channels, 1)
        self.price = nn.Parameter(torch.tensor(_FIRST_PRICE))
        for last, bias in ((self.weight, 0.0), (self.none_weight, _BROAD_BIAS)):
            nn.init.zeros_(last.weight)
            nn.init.constant_(last.bias, bias)

    def forward(self, answers: Answers) -> Verdict:
        """Weighs answers.

        Args:
            answers: to each scene.

        Returns:
            Weights; those of answers that are not there are zero.
        """
        precise = self.weight.weight.dtype
        features = self.embed(answers.clues.to(precise))
        is_there = answers.is_there[..., None]
        mean = (features * is_there).sum(-2) / is_there.sum(-2).clamp_min(1)
        highest = features.masked_fill(~is_there, _HIDDEN).amax(-2)
        scene = torch.cat((mean, highest), dim=-1)
        beside = scene[..., None, :].expand(*features.shape[:-1], -1)
        weighed = self.weigh(torch.cat((features, beside), dim=-1))
        weight, widening = self.weight(weighed).unbind(-1)
        weight = (weight - self.price * answers.misfit).masked_fill(~answers.is_there, _HIDDEN)
        options = torch.cat((weight, self.none_weight(self.none(scene))), dim=-1)
        given = answers.clues.dtype
        log_weights, widening = options.log_softmax(-1), functional.softplus(widening)
        return Verdict(log_weights.to(given), widening.to(given))


def _steps(n_in: int, n_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(n_in, n_channels), nn.GELU(), nn.Linear(n_channels, n_channels), nn.GELU()
    )
