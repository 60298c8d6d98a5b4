import numpy as np
import pytest
import torch

from musicnet.estimation.found import Found
from musicnet.estimation.problem import compress
from musicnet.estimation.subspace_fitting import symbol_misfit
from musicnet.scene.array import ArrayGeometry
from musicnet.scene.snapshots import Observation
from musicnet.scene.sources import SearchRegion
from tests.reference.slow_likelihood import (
    slow_coherent_misfit,
    slow_gaussian_misfit,
    slow_independent_misfit,
    slow_rank_covariance,
    slow_signatures,
)

POSITIONS = ArrayGeometry(6).positions(0.3)
REGION = SearchRegion(u=(-0.9, 0.9), v=(0.0, 0.0), inverse_range=(0.0, 0.0))
U = np.array([-0.4, 0.1, 0.35])
NOISE = 0.7
KINDS = (slow_independent_misfit, slow_coherent_misfit)


def signatures_at(u):
    parameters = np.stack((u, 0 * u, 0 * u), axis=-1)
    return slow_signatures(np.eye(6)[None], POSITIONS.double().numpy(), parameters, 0.3)[0]


def heard(coherent, n_snapshots, loudness):
    rng = np.random.default_rng(7)
    shape = (n_snapshots, 1 if coherent else 3)
    symbols = (rng.normal(size=shape) + 1j * rng.normal(size=shape)) * np.array([1.0, 1j, 0.8])
    noise = rng.normal(size=(n_snapshots, 6)) + 1j * rng.normal(size=(n_snapshots, 6))
    return loudness * symbols @ signatures_at(U).T + np.sqrt(NOISE / 2) * noise


def misfit_at(y, u):
    observation = Observation(
        torch.tensor(y)[None],
        torch.eye(6, dtype=torch.complex128)[None],
        torch.tensor([NOISE], dtype=torch.float64),
        POSITIONS.double(),
        0.3,
    )
    problem = compress(observation, REGION)
    parameters = torch.tensor(np.stack((u, 0 * u, 0 * u), axis=-1))[None, None]
    present = torch.ones(1, 1, len(u), dtype=torch.bool)
    found = Found(parameters, present, torch.zeros(1, 1, dtype=torch.float64))
    return float(symbol_misfit(problem, found))


@pytest.mark.parametrize("coherent", [True, False])
@pytest.mark.parametrize("n_snapshots", [4, 12])
@pytest.mark.parametrize("loudness", [0.3, 30.0])
def test_symbol_misfit_agrees_with_densities_of_all_rows(coherent, n_snapshots, loudness):
    y = heard(coherent, n_snapshots, loudness)
    scaled = y / np.sqrt(NOISE)
    for u in (U, U + 0.02, np.array([-0.4, 0.2, 0.22])):
        kinds = [misfit(scaled, signatures_at(u)) for misfit in KINDS]
        np.testing.assert_allclose(misfit_at(y, u), min(kinds), rtol=1e-7)


@pytest.mark.parametrize("coherent", [True, False])
def test_the_kind_that_symbols_are_of_is_the_likelier_one(coherent):
    independent, shared = (kind(heard(coherent, 12, 3.0), signatures_at(U)) for kind in KINDS)
    assert (shared < independent) == coherent


@pytest.mark.parametrize("rank", [1, 2])
def test_no_symbols_of_a_rank_are_likelier_than_the_likeliest(rank):
    y, signatures = heard(False, 12, 1.0), signatures_at(U)
    best = slow_rank_covariance(y, signatures, rank)
    values, vectors = np.linalg.eigh(best)
    root = vectors[:, -rank:] * np.sqrt(values[-rank:])
    rng = np.random.default_rng(1)

    def misfit(root):
        field = signatures @ root
        return slow_gaussian_misfit(y, np.eye(6) + field @ field.conj().T)

    for _ in range(100):
        shift = rng.normal(size=root.shape) + 1j * rng.normal(size=root.shape)
        assert misfit(root + 0.05 * shift) > misfit(root)
