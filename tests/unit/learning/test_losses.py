"""The loss terms against hand arithmetic, and what they must not depend on."""

import math

import pytest
import torch

from musicnet.estimation.spectrum import SearchGrid
from musicnet.learning.losses import (
    SPECTRUM_TERMS,
    Targets,
    loss_terms,
    offset_loss,
    spectrum_loss,
    spectrum_target,
)
from musicnet.networks.head import PseudoSpectrum
from musicnet.scene.sources import SearchRegion, Sources

SHAPE = (3, 5, 4)


@pytest.fixture
def grid():
    return SearchGrid.over(SearchRegion((-1.0, 1.0), (-0.5, 0.5), (0.0, 3.0)), 3, 5, 4)


def sources_at(grid, *coordinates, n_slots=3):
    parameters = torch.full((1, n_slots, 3), math.nan)
    for slot, coordinate in enumerate(coordinates):
        parameters[0, slot] = grid.parameters_at(torch.tensor(coordinate))
    return Sources(parameters, ~parameters.isnan().any(-1))


def spectrum_like(grid, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, *grid.shape, generator=generator, requires_grad=True)
    offsets = torch.randn(1, *grid.shape, 3, generator=generator, requires_grad=True)
    return PseudoSpectrum(logits, offsets)


def test_targets_are_the_nearest_cells(grid):
    truth = sources_at(grid, (1.2, 2.6, 0.0), (2.4, -0.3, 3.0))
    targets = Targets.on_grid(truth, grid)
    assert targets.cells[0, :2].tolist() == [[1, 3, 0], [2, 0, 3]]
    wanted = torch.tensor([[0.2, -0.4, 0.0], [0.4, -0.3, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(targets.offsets[0], wanted, atol=1e-5, rtol=0)
    assert targets.n_sources == 2


def test_the_target_is_one_at_sources_and_a_gaussian_around_them(grid):
    target = spectrum_target(Targets.on_grid(sources_at(grid, (1.0, 2.0, 1.0)), grid), SHAPE)[0]
    assert target[1, 2, 1] == 1.0
    assert target[1, 3, 1].item() == pytest.approx(math.exp(-0.5 / 0.36))
    assert target[0, 3, 2].item() == pytest.approx(math.exp(-1 / 0.36 - 0.5 / 0.49))
    assert (target == 1).sum() == 1


def test_where_bumps_meet_the_larger_one_counts(grid):
    both = Targets.on_grid(sources_at(grid, (1.0, 1.0, 1.0), (1.0, 2.0, 1.0)), grid)
    target = spectrum_target(both, SHAPE)[0]
    assert target[1, 1, 1] == target[1, 2, 1] == 1.0
    assert target.max() == 1.0


def test_the_focal_loss_agrees_with_hand_arithmetic(grid):
    targets = Targets.on_grid(sources_at(grid, (1.0, 2.0, 1.0), (0.0, 0.0, 3.0)), grid)
    logits = spectrum_like(grid).logits.detach().double()
    target = spectrum_target(targets, SHAPE).double()
    total = 0.0
    for x, t in zip(logits.flatten().tolist(), target.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-x))
        if t == 1:
            total -= (1 - p) ** 2 * math.log(p)
        else:
            total -= (1 - t) ** 4 * p**2 * math.log(1 - p)
    assert spectrum_loss(logits, targets).item() == pytest.approx(total / 2, rel=1e-6)


def test_sure_logits_leave_finite_loss_and_gradient(grid):
    targets = Targets.on_grid(sources_at(grid, (1.0, 2.0, 1.0)), grid)
    for sign in (200.0, -200.0):
        logits = torch.full((1, *SHAPE), sign, requires_grad=True)
        loss = spectrum_loss(logits, targets)
        loss.backward()
        assert loss.isfinite()
        assert logits.grad.isfinite().all()


def test_a_perfect_spectrum_costs_nothing(grid):
    truth = sources_at(grid, (1.2, 2.4, 0.7), (0.0, 4.0, 3.0))
    targets = Targets.on_grid(truth, grid)
    logits = torch.where(spectrum_target(targets, SHAPE) == 1.0, 30.0, -30.0)
    offsets = torch.zeros(1, *SHAPE, 3)
    for cell, offset in zip(targets.cells[0, :2].tolist(), targets.offsets[0, :2], strict=True):
        offsets[0][tuple(cell)] = offset
    terms = loss_terms(PseudoSpectrum(logits, offsets), truth, grid)
    assert tuple(terms) == SPECTRUM_TERMS
    assert terms["spectrum"] < 1e-6
    assert terms["offsets"] < 1e-5


def test_the_offset_loss_adds_up_coordinates_and_averages_sources(grid):
    targets = Targets.on_grid(sources_at(grid, (1.0, 2.0, 1.0), (0.2, 0.0, 3.0)), grid)
    offsets = torch.zeros(1, *SHAPE, 3)
    offsets[0, 1, 2, 1] = torch.tensor([0.5, -0.25, 1.0])  # off by 1.75 cells, the other by 0.2
    assert offset_loss(offsets, targets).item() == pytest.approx(1.95 / 2)


def test_offsets_of_a_fixed_coordinate_do_not_count():
    grid = SearchGrid.over(SearchRegion((-1.0, 1.0), (0.0, 0.0), (0.0, 0.0)), 3, 5, 4)
    targets = Targets.on_grid(sources_at(grid, (0.0, 2.0, 0.0)), grid)
    offsets = torch.zeros(1, 1, 5, 1, 3)
    offsets[0, 0, 2, 0] = torch.tensor([7.0, 0.5, 7.0])
    assert offset_loss(offsets, targets).item() == pytest.approx(0.5)


def test_a_step_copies_nothing_from_the_host(grid, monkeypatch):
    """A tensor made of Python numbers would make the device wait, in every step."""
    spectrum, truth = spectrum_like(grid), sources_at(grid, (1.2, 2.4, 0.7), (0.0, 4.0, 3.0))
    with torch.inference_mode():  # as in the validation before the first step
        first = loss_terms(spectrum, truth, grid)

    def refuse(*_args, **_options):
        raise AssertionError("a tensor was made of Python numbers")

    monkeypatch.setattr(torch, "tensor", refuse)
    again = loss_terms(spectrum, truth, grid)
    sum(again.values()).backward()
    assert again["offsets"].item() == first["offsets"].item()


def test_the_order_of_sources_does_not_matter(grid):
    spectrum = spectrum_like(grid)
    one = loss_terms(spectrum, sources_at(grid, (1.2, 2.4, 0.7), (0.0, 4.0, 3.0)), grid)
    other = loss_terms(spectrum, sources_at(grid, (0.0, 4.0, 3.0), (1.2, 2.4, 0.7)), grid)
    for name in SPECTRUM_TERMS:
        torch.testing.assert_close(one[name], other[name])


def test_empty_slots_leave_no_trace(grid):
    spectrum = spectrum_like(grid)
    few = loss_terms(spectrum, sources_at(grid, (1.2, 2.4, 0.7), n_slots=1), grid)
    many = loss_terms(spectrum, sources_at(grid, (1.2, 2.4, 0.7), n_slots=4), grid)
    for name in SPECTRUM_TERMS:
        torch.testing.assert_close(few[name], many[name])


def test_scenes_without_sources_teach_silence_and_nothing_else(grid):
    spectrum = spectrum_like(grid)
    terms = loss_terms(spectrum, sources_at(grid), grid)
    sum(terms.values()).backward()
    assert terms["offsets"] == 0
    assert (spectrum.logits.grad > 0).all()
    assert not spectrum.offsets.grad.any()


def test_gradients_agree_with_finite_differences(grid):
    truth = sources_at(grid, (1.2, 2.4, 0.7), (0.0, 4.0, 3.0))
    targets = Targets.on_grid(truth, grid)
    logits = spectrum_like(grid).logits.detach().double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: spectrum_loss(x, targets), (logits,))
