import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf_shrinkage

from musicnet.estimation.covariance import (
    element_covariance,
    forward_backward,
    ledoit_wolf_share,
    sample_covariance,
    shrunk,
    smoothed,
    smoothed_rectangle,
)


def random_complex(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.complex128)


def random_covariance(*batch, n=6, seed=0):
    y = random_complex(*batch, 3 * n, n, seed=seed)
    return sample_covariance(y)


def test_smoothing_averages_the_subarrays():
    covariance = random_covariance(2)
    expected = sum(covariance[:, i : i + 4, i : i + 4] for i in range(3)) / 3
    torch.testing.assert_close(smoothed(covariance, 4), expected)


def test_smoothing_over_the_whole_line_changes_nothing():
    covariance = random_covariance(2)
    torch.testing.assert_close(smoothed(covariance, 6), covariance)


def test_rectangles_are_smoothed_over_all_their_subarrays():
    n_x, n_y, sub_x, sub_y = 4, 3, 3, 2
    covariance = random_covariance(2, n=12)
    total = np.zeros((2, 6, 6), dtype=complex)
    for y, x in itertools.product(range(n_y - sub_y + 1), range(n_x - sub_x + 1)):
        rows = [(y + b) * n_x + x + a for b in range(sub_y) for a in range(sub_x)]
        total += covariance.numpy()[:, rows][:, :, rows]
    fast = smoothed_rectangle(covariance, n_x, n_y, (sub_x, sub_y))
    np.testing.assert_allclose(fast.numpy(), total / 4, atol=1e-12)


def test_a_line_is_a_rectangle_of_one_row():
    covariance = random_covariance(n=6)
    torch.testing.assert_close(
        smoothed_rectangle(covariance, 6, 1, (4, 1)), smoothed(covariance, 4)
    )


def test_smoothing_gives_coherent_sources_their_rank_back():
    u = torch.tensor([-0.4, 0.1, 0.5], dtype=torch.float64)
    a = torch.exp(1j * math.pi * u * (torch.arange(8)[:, None] - 3.5))
    field = a @ torch.tensor([1.0, 0.8j, -0.5 + 0.2j], dtype=torch.complex128)
    coherent = torch.outer(field, field.conj())
    ranks = [
        int(torch.linalg.matrix_rank(r, rtol=1e-9))
        for r in (coherent, smoothed(coherent, 5), forward_backward(smoothed(coherent, 7)))
    ]
    assert ranks == [1, 3, 3]


@pytest.mark.parametrize("n_sub", [0, 7])
def test_subarrays_must_fit_a_line(n_sub):
    with pytest.raises(ValueError, match=f"got n_sub={n_sub}"):
        smoothed(random_covariance(), n_sub)


@pytest.mark.parametrize(
    ("sides", "n_sub", "got"), [((3, 3), (2, 2), "got 6"), ((3, 2), (2, 3), r"got n_sub=\(2, 3\)")]
)
def test_subarrays_must_fit_a_rectangle(sides, n_sub, got):
    with pytest.raises(ValueError, match=got):
        smoothed_rectangle(random_covariance(), *sides, n_sub)


def test_shrinking_keeps_the_power_and_moves_to_white_noise():
    covariance = random_covariance(2)
    half = shrunk(covariance, 0.5)
    power = covariance.diagonal(dim1=-2, dim2=-1).real.mean(-1)
    white = power[:, None, None] * torch.eye(6)
    torch.testing.assert_close(half, 0.5 * (covariance + white))
    torch.testing.assert_close(shrunk(covariance, 0.0), covariance)
    each = shrunk(covariance, torch.tensor([0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(each, torch.stack((covariance[0], white[1] + 0j)))


@pytest.mark.parametrize("n_snapshots", [4, 12, 200])
def test_ledoit_and_wolf_agree_with_scikit_learn_on_real_data(n_snapshots):
    y = np.random.default_rng(0).normal(size=(n_snapshots, 8)) * np.linspace(0.5, 2, 8)
    expected = ledoit_wolf_shrinkage(y, assume_centered=True)
    share = ledoit_wolf_share(torch.from_numpy(y) + 0j)
    assert share.item() == pytest.approx(expected, abs=1e-9)


def test_shrinking_as_far_as_ledoit_and_wolf_say_comes_closer_to_the_truth():
    deviation = torch.linspace(0.5, 1.5, 12, dtype=torch.float64)
    y = random_complex(300, 10, 12) * deviation
    truth = torch.diag(deviation.square()) + 0j
    plain = sample_covariance(y)

    def error(estimate):
        return (estimate - truth).abs().square().sum((-2, -1)).mean().item()

    best = error(shrunk(plain, ledoit_wolf_share(y)))
    assert best < 0.6 * error(plain)
    assert best < 1.2 * min(error(shrunk(plain, share / 20)) for share in range(21))


def test_the_field_on_a_surface_is_found_where_it_can_be_inverted():
    operator = random_complex(2, 3, 12, 5)
    field = random_complex(2, 4, 3, 5, seed=1)
    y = (operator[:, None] @ field[..., None]).squeeze(-1)
    found = element_covariance(y, operator, loading=1e-12)
    torch.testing.assert_close(found, sample_covariance(field), atol=1e-8, rtol=1e-8)
    shared = element_covariance(y[:, :, :1], operator[:, :1], loading=1e-12)
    torch.testing.assert_close(shared, sample_covariance(field[:, :, :1]), atol=1e-8, rtol=1e-8)
