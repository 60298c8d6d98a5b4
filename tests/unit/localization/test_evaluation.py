"""Whole cells: who is asked what, about which scenes."""

import math
from dataclasses import replace

import pytest
import torch

from musicnet.localization.contestants import (
    CONTESTANTS,
    FROM_TRUTH,
    Contestant,
    Question,
    Reply,
    ask,
    without_learning,
)
from musicnet.localization.evaluation import (
    EVALUATION_SEEDS,
    Cell,
    Plan,
    cells_of,
    draw_cell,
    evaluate_cell,
    truth_of,
)
from musicnet.networks.head import INITIAL_LOGIT
from musicnet.networks.neural_music import NetworkSettings, NeuralMusic
from musicnet.networks.pretrained import Pretrained
from musicnet.scene.array import ArrayGeometry
from musicnet.scene.scene import Scene
from musicnet.scene.snapshots import draw_blocks
from musicnet.scene.sources import SourceLaw
from musicnet.scene.surface import Surface

SURFACE = Scene(ArrayGeometry(6, 6), SourceLaw(n_max=2), surface=Surface(n_antennas=6, n_codes=8))
SMALL = Plan(seeds=(1, 2), n_scenes=16, scenes_per_channel=4, n_draws=10)


@pytest.fixture(scope="module")
def pretrained():
    torch.manual_seed(0)
    settings = NetworkSettings(n_channels=8, dilations=(1,), n_v=7, n_u=11, n_rho=4)
    return Pretrained("tiny", NeuralMusic(SURFACE, settings).eval(), SURFACE, {})


@pytest.fixture(scope="module")
def rows(pretrained):
    return {row["method"]: row for row in evaluate_cell(pretrained, Cell(2, 20.0), SMALL)}


def test_everybody_has_a_row_of_the_same_columns(rows):
    assert list(rows) == list(CONTESTANTS)
    columns = {tuple(row) for row in rows.values()}
    assert len(columns) == 1
    for row in rows.values():
        assert (row["n_scenes"], row["n_channels"]) == (16, 4)
        assert row["cpu_ms_per_scene"] > 0


def test_only_who_can_count_is_asked_to(rows):
    counting = {name for name, row in rows.items() if row["count_right"] is not None}
    assert counting == {"net", "neural", "nomp", "multistart"}
    assert all((rows[name]["gospa"] is not None) == (name in counting) for name in rows)


def test_the_truth_as_start_leaves_noise_alone(rows):
    assert rows[FROM_TRUTH]["outliers"] == 0.0
    assert 0.6 < rows[FROM_TRUTH]["efficiency"] < 1.5
    assert 0.5 < rows[FROM_TRUTH]["nees_xyz"] < 1.7


def test_an_untrained_network_ties_with_the_matched_filter(rows):
    learned, blind = rows["neural"], rows["matched-filter"]
    assert learned["outliers"] == pytest.approx(blind["outliers"], abs=0.15)


def test_the_baseline_is_level_with_itself(rows):
    assert rows["nomp"]["cpu_over_nomp"] == 1.0
    assert rows["nomp"]["median_over_nomp_interval"] == [1.0, 1.0]


def test_scenes_of_a_cell_have_its_number_and_its_ratio():
    cell = Cell(2, 5.0)
    blocks = list(draw_cell(SURFACE, cell, SMALL))
    assert sum(b.truth.resolved.shape[0] for b in blocks) == 4
    for known in blocks:
        assert known.truth.resolved.shape[1:] == (4, 2)
        assert bool(known.truth.resolved.all())
        loud = known.amplitudes.abs()
        torch.testing.assert_close(loud, torch.full_like(loud, 10.0 ** (5.0 / 20.0)))


def test_cells_seeds_and_splits_share_no_channel():
    first = [b.observation.operator for b in draw_cell(SURFACE, Cell(1, 0.0), SMALL)]
    other = [b.observation.operator for b in draw_cell(SURFACE, Cell(1, 5.0), SMALL)]
    channels = torch.cat([*first, *other])
    for split in ("train", "val", "test"):
        heard, _ = draw_blocks(SURFACE, [0, 1], 4, "cpu", 1, split, epoch=0)
        channels = torch.cat((channels, heard.operator))
    lines = channels.flatten(1)
    apart = (lines[:, None] - lines[None]).abs().amax(-1)
    apart.fill_diagonal_(math.inf)
    assert float(apart.min()) > 0.1


def test_scenes_are_the_same_every_time():
    first, again = (next(draw_cell(SURFACE, Cell(2, 0.0), SMALL)) for _ in range(2))
    assert torch.equal(first.observation.y, again.observation.y)


def test_the_cells_of_a_scene_are_all_its_numbers_at_all_ratios():
    assert cells_of(SURFACE, (0.0, 10.0)) == [
        Cell(1, 0.0),
        Cell(1, 10.0),
        Cell(2, 0.0),
        Cell(2, 10.0),
    ]


def test_the_bound_is_that_of_the_true_amplitudes():
    quiet, loud = (
        truth_of(next(draw_cell(SURFACE, Cell(1, snr), SMALL)), SURFACE).bound
        for snr in (0.0, 20.0)
    )
    assert quiet.shape == (2, 4, 1, 3, 3)
    assert float(quiet.median() / loud.median()) == pytest.approx(100.0, rel=0.9)


def test_one_more_variant_is_one_more_entry(pretrained):
    asked = []

    def lazy(question: Question) -> Reply:
        asked.append(question.n_sources)
        truth = question.truth
        return Reply(truth)

    few = {"lazy": Contestant(lazy, counts=True), "nomp": CONTESTANTS["nomp"]}
    plan = replace(SMALL, contestants=few)
    row = evaluate_cell(pretrained, Cell(1, 0.0), plan)[0]
    assert (row["method"], row["outliers"], row["recall"]) == ("lazy", 0.0, 1.0)
    assert row["gospa"] == pytest.approx(0.0, abs=1e-6)
    # the warm-up, then each of the two seeds: known, and to be counted
    assert asked == [1, None] * 3


def test_the_classical_score_alone_is_what_no_learning_leaves(pretrained):
    heard, _ = draw_blocks(SURFACE, [0], 4, "cpu", 1, "test", epoch=0)
    network = pretrained.network
    blind = without_learning(network)
    with torch.no_grad():
        score = network.image(heard)[..., : network.grid.n_rho]
        spectrum = blind(heard)
    torch.testing.assert_close(spectrum.logits, score)
    assert not spectrum.offsets.any()
    assert network.head.outputs.bias[0] == INITIAL_LOGIT  # the original is as it was


def test_no_learning_is_of_the_spectrum_alone_and_trust_stays_as_trained():
    torch.manual_seed(3)
    settings = NetworkSettings(n_channels=8, dilations=(1,), n_v=7, n_u=11, n_rho=4, n_trust=8)
    network = NeuralMusic(SURFACE, settings).eval()
    with torch.no_grad():
        network.head.score_weight.fill_(0.7)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    blind = without_learning(network).state_dict()
    assert any(name.startswith("head.trust.out") for name in blind)
    changed = {name for name, value in blind.items() if not torch.equal(value, before[name])}
    assert changed == {"head.outputs.weight", "head.outputs.bias", "head.score_weight"}
    assert not blind["head.outputs.weight"].any()
    assert not blind["head.outputs.bias"].any()
    assert blind["head.score_weight"] == 1.0
    after = network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_no_gradients_are_kept(pretrained):
    known = next(draw_cell(SURFACE, Cell(1, 0.0), SMALL))
    question = Question(known.observation, 1, SURFACE, pretrained, known.truth)
    for contestant in CONTESTANTS.values():
        assert not ask(contestant, question).sources.parameters.requires_grad


def test_the_fixed_seeds_are_two():
    assert len(set(EVALUATION_SEEDS)) == 2


@pytest.mark.parametrize(
    ("options", "got"),
    [
        ({"seeds": ()}, r"got \(\)"),
        ({"seeds": (3, 3)}, r"got \(3, 3\)"),
        ({"n_scenes": 0}, "n_scenes must be at least 1: got 0"),
        ({"contestants": {}}, "needs nomp"),
    ],
)
def test_plans_that_cannot_be_are_refused(options, got):
    with pytest.raises(ValueError, match=got):
        Plan(**options)


def test_more_sources_than_the_weights_know_are_refused(pretrained):
    with pytest.raises(ValueError, match="got n_sources=3"):
        evaluate_cell(pretrained, Cell(3, 0.0), SMALL)
