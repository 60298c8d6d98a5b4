"""Other places of coherent sources: which are more probable, and that they are found."""

import math

import torch

from musicnet.estimation.dictionary import Dictionary
from musicnet.estimation.found import Found
from musicnet.estimation.linearization import explain
from musicnet.estimation.problem import compress
from musicnet.estimation.subspace_fitting import fit_subspace
from musicnet.localization import localize
from musicnet.localization.near_search import improbability, look_elsewhere, pursue_near
from musicnet.networks.coherence import CoherenceHead
from musicnet.networks.neural_music import NetworkSettings, NeuralMusic
from musicnet.networks.pretrained import Pretrained
from musicnet.scene.array import ArrayGeometry
from musicnet.scene.scene import Scene
from musicnet.scene.snapshots import block_generator, draw_block
from musicnet.scene.sources import SourceLaw


def strongest(n_sources, snr_db, n_scenes, separation_deg=3.5):
    """The strongest dimension of coherent scenes, where their sources are, and the region."""
    law = SourceLaw(
        n_min=n_sources,
        n_max=n_sources,
        elevation_deg=(0.0, 0.0),
        range_m=(8.0, 48.0),
        snr_db=(snr_db, snr_db),
        min_separation_deg=separation_deg,
    )
    scene = Scene(
        ArrayGeometry(15),
        law,
        wavelength_m=1.0,
        n_snapshots=40,
        symbols="data",
        coherent_share=1.0,
    )
    observation, truth = draw_block(scene, block_generator(0, "test", 0, 0), n_scenes)
    problem = fit_subspace(compress(observation, scene.region), 1)
    return problem, problem.flatten(truth.parameters), problem.flatten(truth.resolved)


def found_at(problem, parameters, present):
    return Found(parameters, present, explain(problem, parameters, present).cost)


def test_improbability_is_what_is_left_and_the_scale_of_amplitudes():
    problem, parameters, present = strongest(2, 10.0, 3)
    said = improbability(problem, found_at(problem, parameters, present))
    for scene in range(3):
        y = problem.y[0, scene, 0, 0].to(torch.complex128)
        columns = []
        for u, _, rho in parameters[0, scene].double().tolist():
            x = problem.positions[:, 0].double()
            distance = torch.sqrt(1.0 / rho**2 - 2.0 * x * u / rho + x**2)
            columns.append(torch.exp(2j * math.pi * (1.0 / rho - distance)))
        signatures = torch.stack(columns, dim=-1)
        amplitudes = torch.linalg.lstsq(signatures, y[:, None]).solution[:, 0]
        left = float((y - signatures @ amplitudes).abs().square().sum())
        wanted = left + 2 * math.log(float(amplitudes.abs().square().sum()))
        assert math.isclose(float(said[0, scene]), wanted, rel_tol=1e-3)


def test_nothing_gets_less_probable_and_what_is_not_wanted_stays():
    problem, parameters, present = strongest(3, 5.0, 40)
    generator = torch.Generator().manual_seed(0)
    somewhere = parameters + 0.05 * torch.randn(parameters.shape, generator=generator)
    low, high = problem.box.unbind(0)
    before = found_at(problem, torch.minimum(torch.maximum(somewhere, low), high), present)
    wanted = torch.arange(40)[None] % 4 != 0
    after = look_elsewhere(problem, Dictionary.over(problem, None), before, wanted)
    assert torch.equal(after.parameters[~wanted], before.parameters[~wanted])
    gain = improbability(problem, before) - improbability(problem, after)
    assert float(gain.min()) > -1e-2
    assert float((gain[wanted] > 1.0).float().mean()) > 0.8


def test_a_source_that_stands_elsewhere_is_found_again():
    problem, parameters, present = strongest(2, 20.0, 60, separation_deg=12.0)
    low, high = problem.box.unbind(0)
    wrong = parameters.clone()
    wrong[..., 1, :] = low + high - wrong[..., 1, :]
    before = found_at(problem, wrong, present)
    everywhere = torch.ones_like(present[..., 0])
    after = look_elsewhere(problem, Dictionary.over(problem, None), before, everywhere)
    u, wanted = (one[..., 0].sort(-1).values for one in (after.parameters, parameters))
    assert float(((u - wanted).abs() < 0.02).float().mean()) > 0.97
    assert float(after.cost.median()) < 0.05 * float(before.cost.median())


def test_localize_settles_ranges_and_leaves_bad_scenes_out():
    law = SourceLaw(
        n_max=2,
        elevation_deg=(0.0, 0.0),
        range_m=(8.0, 48.0),
        snr_db=(-3.0, -3.0),
        min_separation_deg=10.0,
    )
    scene = Scene(ArrayGeometry(15), law, wavelength_m=1.0, n_snapshots=10, symbols="data")
    settings = NetworkSettings(n_channels=4, dilations=(1,), n_u=9, n_rho=3, n_coherence=8)
    network = NeuralMusic(scene, settings).requires_grad_(requires_grad=False).eval()
    heard, truth = draw_block(scene, block_generator(0, "test", 1, 0), 200)
    heard.y[5] = torch.nan
    counts = truth.resolved.sum(-1)
    asked = {"region": scene.region, "pretrained": Pretrained("some", network, scene, {}, settings)}
    settled = localize(heard, "neural", counts, **asked)
    likeliest = localize(heard, "nomp", counts, region=scene.region)
    good = torch.arange(200) != 5
    assert torch.equal(settled.sources.resolved[good], truth.resolved[good])
    assert not settled.sources.resolved[5].any()
    low, high = scene.region.inverse_range
    for found in (settled, likeliest):
        rho = found.sources.parameters[good][..., 2][truth.resolved[good]]
        assert bool(((rho >= low - 1e-6) & (rho <= high + 1e-6)).all())

    def error(found):
        one = good & (counts == 1)
        wanted = truth.parameters[one][:, 0, 2]
        return float((wanted / found.sources.parameters[one][:, 0, 2] - 1.0).square().mean())

    assert error(settled) < 0.85 * error(likeliest)
    unknown = localize(heard, "neural", **asked)
    assert not unknown.sources.resolved[5].any()
    assert bool(unknown.sources.parameters[unknown.sources.resolved].isfinite().all())


def near_scene(coherent_share, snr_db):
    law = SourceLaw(
        n_min=2,
        n_max=3,
        elevation_deg=(0.0, 0.0),
        range_m=(8.0, 48.0),
        snr_db=(snr_db, snr_db),
        min_separation_deg=3.5,
    )
    return Scene(
        ArrayGeometry(15),
        law,
        wavelength_m=1.0,
        n_snapshots=12,
        symbols="data",
        coherent_share=coherent_share,
    )


def head_that_says(log_odds):
    head = CoherenceHead(8, n_max=3, most_snapshots=100)
    torch.nn.init.constant_(head.log_odds.bias, log_odds)
    return head


class SecondValue(CoherenceHead):
    """Sure of one waveform where the second eigenvalue is small."""

    def forward(self, clues, n_snapshots, counts):
        return 20.0 - clues.values[..., 1]


def test_a_scene_does_not_depend_on_its_batch():
    heard, truth = draw_block(near_scene(0.5, 5.0), block_generator(0, "test", 2, 0), 24)
    problem = compress(heard, near_scene(0.5, 5.0).region)
    counts = problem.flatten(truth.resolved.sum(-1))
    head = SecondValue(8, n_max=3, most_snapshots=100)
    found, is_coherent = pursue_near(head, problem, counts)
    assert 4 < int(is_coherent.sum()) < 20
    for scene in (0, 5, 11):
        some = torch.tensor([[scene]])
        alone, is_alone = pursue_near(head, problem.take(some), counts[:, some[0]])
        n_slots = int(counts[0, scene])
        assert bool(is_alone[0, 0] == is_coherent[0, scene])
        torch.testing.assert_close(
            alone.parameters[0, 0], found.parameters[0, scene, :n_slots], rtol=0.0, atol=1e-3
        )
        assert found.present[0, scene].sum() == n_slots


def test_one_waveform_is_searched_better_than_all_snapshots():
    scene = near_scene(1.0, 0.0)
    heard, truth = draw_block(scene, block_generator(0, "test", 3, 0), 300)
    problem = compress(heard, scene.region)
    counts = problem.flatten(truth.resolved.sum(-1))
    two = counts[0] == 2

    def error(log_odds):
        found, is_coherent = pursue_near(head_that_says(log_odds), problem, counts)
        assert bool(is_coherent.all()) == (log_odds > 0)
        u = found.parameters[0, two, :2, 0].sort(-1).values
        return float((u - truth.parameters[two, :2, 0].sort(-1).values).square().mean())

    assert error(9.0) < 0.8 * error(-9.0)
