import numpy as np
import torch

from musicnet.estimation.likelihood import fit_amplitudes
from musicnet.scene.array import ArrayGeometry
from musicnet.scene.scene import Scene
from musicnet.scene.snapshots import draw_blocks
from musicnet.scene.sources import SourceLaw
from musicnet.scene.steering import steering
from musicnet.scene.surface import Surface

SCENE = Scene(ArrayGeometry(6, 6), SourceLaw(n_min=2), surface=Surface(6, 12), symbols="data")


def test_amplitudes_are_least_squares():
    heard, truth = draw_blocks(SCENE, [0, 1], 3, "cpu", 0, "train", 0)
    fit = fit_amplitudes(heard, truth)
    for c in range(2):
        for s in range(3):
            there = truth.resolved[c, s]
            field = steering(heard.positions, truth.parameters[c, s][there], heard.wavelength)
            for q in range(12):
                signatures = (heard.operator[c, q] @ field.mT).numpy()
                expected = np.linalg.lstsq(signatures, heard.y[c, s, q].numpy(), rcond=None)[0]
                got = fit.amplitudes[c, s, q][there].numpy()
                np.testing.assert_allclose(got, expected, rtol=2e-3, atol=2e-3)


def test_slots_that_are_not_resolved_have_no_amplitude():
    heard, truth = draw_blocks(SCENE, [0], 32, "cpu", 0, "train", 0)
    amplitudes = fit_amplitudes(heard, truth).amplitudes
    silent = ~truth.resolved[..., None, :].expand_as(amplitudes)
    assert silent.any()
    assert (amplitudes[silent] == 0).all()


def test_residual_is_orthogonal_to_every_source():
    heard, truth = draw_blocks(SCENE, [0], 8, "cpu", 0, "train", 0)
    fit = fit_amplitudes(heard, truth)
    filled = truth.parameters.nan_to_num(0.0)
    field = steering(heard.positions, filled, heard.wavelength) * truth.resolved[..., None]
    signatures = torch.einsum("cqrn,cskn->csqrk", heard.operator, field)
    overlap = torch.einsum("csqrk,csqr->csqk", signatures.conj(), fit.residual)
    assert overlap.abs().max() < 1e-3
