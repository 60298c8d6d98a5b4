"""The network before training, and how sources are read from what it draws."""

import pytest
import torch

from musicnet.networks.head import INITIAL_LOGIT, PseudoSpectrum
from musicnet.networks.neural_music import NetworkSettings, NeuralMusic
from musicnet.scene.array import ArrayGeometry
from musicnet.scene.scene import Scene
from musicnet.scene.snapshots import block_generator, draw_block
from musicnet.scene.sources import SourceLaw
from musicnet.scene.surface import Surface


@pytest.fixture
def network(surface_scene):
    torch.manual_seed(0)
    return NeuralMusic(surface_scene, NetworkSettings(n_channels=8, n_v=5, n_u=7, n_rho=3))


def spectrum_with(network, cells, offset=(0.0, 0.0, 0.0)):
    logits = torch.full((1, *network.grid.shape), -9.0)
    offsets = torch.zeros(*logits.shape, 3)
    for rank, cell in enumerate(cells):
        logits[0][cell] = 9.0 - rank
        offsets[0][cell] = torch.tensor(offset)
    return PseudoSpectrum(logits, offsets)


def test_the_default_task_has_the_size_that_was_measured():
    scene = Scene(ArrayGeometry(8, 8), SourceLaw(), surface=Surface())
    network = NeuralMusic(scene, NetworkSettings())
    assert network.grid.shape == (11, 19, 8)
    assert sum(p.numel() for p in network.parameters()) == 85_473


def test_every_parameter_is_in_backbone_or_head(network):
    names = {name.split(".")[0] for name, _ in network.named_parameters()}
    assert names == {"backbone", "head"}
    # the dictionary can be computed again
    assert {name.split(".")[0] for name in network.state_dict()} == {"backbone", "head"}


def test_the_untrained_network_is_the_matched_filter(network, surface_scene):
    observation, _ = draw_block(surface_scene, block_generator(0, "test", 0, 0), n_scenes=4)
    score = network.image(observation)[..., : network.grid.n_rho]
    torch.nn.init.zeros_(network.head.outputs.weight)
    spectrum = network(observation)
    torch.testing.assert_close(spectrum.logits, score + INITIAL_LOGIT)
    assert not spectrum.offsets.any()


def test_the_score_reaches_the_logits_of_its_own_cell(network):
    torch.nn.init.zeros_(network.head.outputs.weight)
    image = torch.zeros(5, 7, network.image.n_maps)
    image[3, 2, 1] = 1.0  # v, u, plane 1
    logits = (network.spectrum(image).logits - INITIAL_LOGIT).detach()
    assert logits[3, 2, 1] == pytest.approx(1.0)
    assert logits.abs().sum() == pytest.approx(1.0, abs=1e-4)


def test_scenes_of_a_batch_do_not_see_one_another(network, surface_scene):
    observation, _ = draw_block(surface_scene, block_generator(0, "test", 0, 0), n_scenes=3)
    image = network.image(observation)
    together = network.spectrum(image)
    for scene in range(3):
        alone = network.spectrum(image[scene])
        torch.testing.assert_close(alone.logits, together.logits[scene], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(alone.offsets, together.offsets[scene], atol=1e-5, rtol=1e-4)


def test_gradients_reach_every_parameter(network, surface_scene):
    observation, _ = draw_block(surface_scene, block_generator(0, "test", 0, 0), n_scenes=2)
    spectrum = network(observation)
    (spectrum.logits.square().sum() + spectrum.offsets.sum()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_a_peak_is_read_at_its_cell_plus_its_offset(network):
    cell, offset = (2, 3, 1), (0.25, -0.5, 0.5)
    sources = network.decode(spectrum_with(network, [cell], offset), torch.tensor([1]))
    coordinates = network.grid.coordinates(sources.parameters[0, 0])
    torch.testing.assert_close(coordinates, torch.tensor([2.25, 2.5, 1.5]), atol=1e-5, rtol=0)
    assert sources.resolved.tolist() == [[True, False]]
    assert sources.parameters[0, 1].isnan().all()


def test_offsets_and_sources_stay_in_bounds(network):
    far = spectrum_with(network, [(2, 3, 1)], (9.0, -9.0, 0.0))
    coordinates = network.grid.coordinates(network.decode(far, torch.tensor([1])).parameters)
    torch.testing.assert_close(coordinates[0, 0, :2], torch.tensor([3.5, 1.5]))
    edge = spectrum_with(network, [(0, 0, 0)], (-1.0, -1.0, -1.0))
    coordinates = network.grid.coordinates(network.decode(edge, torch.tensor([1])).parameters)
    torch.testing.assert_close(coordinates[0, 0], torch.zeros(3), atol=1e-5, rtol=0)


def test_without_a_number_the_likely_ones_are_read(network):
    spectrum = spectrum_with(network, [(1, 1, 1)])
    assert network.decode(spectrum).resolved.tolist() == [[True, False]]
    both = spectrum_with(network, [(1, 1, 1), (4, 5, 2)])
    assert network.decode(both).resolved.tolist() == [[True, True]]


def test_a_scene_with_a_nan_has_no_sources_and_spares_the_others(network):
    spectrum = spectrum_with(network, [(1, 1, 1), (4, 5, 2)])
    logits = torch.cat([spectrum.logits, spectrum.logits])
    logits[0, 0, 0, 0] = torch.nan
    poisoned = PseudoSpectrum(logits, torch.cat([spectrum.offsets] * 2))
    sources = network.decode(poisoned, torch.tensor([2, 2]))
    assert sources.resolved.tolist() == [[False, False], [True, True]]


def test_a_fixed_coordinate_reads_its_only_value(line_scene):
    network = NeuralMusic(line_scene, NetworkSettings(n_channels=8, n_u=21))
    assert network.grid.shape == (1, 21, 1)
    sources = network.decode(spectrum_with(network, [(0, 4, 0)], (1.0, 0.5, 1.0)))
    assert sources.parameters[0, 0, 1:].tolist() == [0.0, 0.0]
    assert float(network.grid.coordinates(sources.parameters)[0, 0, 1]) == pytest.approx(4.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_channels": 6}, "got 6"),
        ({"dilations": (1, 0)}, r"got \(1, 0\)"),
        ({"n_u": 1}, "n_u=1"),
        ({"n_channels": 4096}, "1024: got 4096"),
        ({"dilations": (1,) * 1025}, "1025 blocks"),
        ({"n_v": 10**9, "n_u": 10**9}, "at most 1048576 cells"),
    ],
)
def test_sizes_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        NetworkSettings(**settings)
