"""The coherence head: nothing to say before training, and any line to say it of."""

import pytest
import torch

from musicnet.estimation.covariance_clues import N_DISTANCES, CovarianceClues
from musicnet.networks.coherence import CoherenceHead
from musicnet.networks.neural_music import NetworkSettings, NeuralMusic


def some_clues(n_rows):
    generator = torch.Generator().manual_seed(0)
    return CovarianceClues(
        values=torch.rand((1, 6, n_rows), generator=generator).sort(-1, descending=True).values,
        strongest=torch.zeros((1, 6, n_rows), dtype=torch.complex128),
        unevenness=torch.rand((1, 6, N_DISTANCES), generator=generator),
    )


@pytest.mark.parametrize("n_rows", [3, 7, 15])
def test_untrained_it_says_nothing_of_any_line(n_rows):
    head = CoherenceHead(8, n_max=3, most_snapshots=200)
    said = head(some_clues(n_rows), 20, torch.full((1, 6), 2))
    assert torch.equal(said, torch.zeros(1, 6))


def test_longer_scenes_pass_for_the_longest_that_were_learned():
    head = CoherenceHead(8, n_max=3, most_snapshots=200)
    torch.nn.init.normal_(head.log_odds.weight)
    counts = torch.tensor([[1, 2, 3, 1, 2, 3]])
    longest, longer, short = (head(some_clues(8), n, counts) for n in (200, 5000, 10))
    assert torch.equal(longest, longer)
    assert not torch.equal(longest, short)


def test_it_is_refused_behind_a_surface(surface_scene):
    with pytest.raises(ValueError, match="got n_coherence=8 with symbols='pilot' and a surface"):
        NeuralMusic(surface_scene, NetworkSettings(n_coherence=8))


def test_a_size_below_zero_is_refused():
    with pytest.raises(ValueError, match="got -1"):
        NetworkSettings(n_coherence=-1)
