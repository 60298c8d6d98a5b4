"""Which network may be used on what was heard."""

from dataclasses import replace

import pytest
import torch

from musicnet.networks import pretrained as module
from musicnet.networks.fitting import about_its_origin, choose, find_weights, fits
from musicnet.networks.neural_music import NetworkSettings, NeuralMusic
from musicnet.networks.pretrained import Pretrained, load_shipped, save_pretrained, shipped
from musicnet.scene.array import ArrayGeometry
from musicnet.scene.imperfections import Imperfections
from musicnet.scene.scene import Scene
from musicnet.scene.snapshots import block_generator, draw_block
from musicnet.scene.sources import SearchRegion, SourceLaw
from musicnet.scene.surface import Surface

TINY = NetworkSettings(n_channels=4, dilations=(1,), n_v=5, n_u=7, n_rho=3)


@pytest.fixture
def ship(tmp_path, monkeypatch):
    """Puts networks of scenes, by name, where those that ship are."""
    monkeypatch.setattr(module, "WEIGHTS", tmp_path)

    def put(**scenes):
        for name, scene in scenes.items():
            path = tmp_path / f"{name}.safetensors"
            save_pretrained(path, NeuralMusic(scene, TINY), scene, TINY, {})
        return tmp_path

    return put


def trained_for(scene):
    return Pretrained("tiny", NeuralMusic(scene, TINY), scene, {})


def heard_in(scene):
    return draw_block(scene, block_generator(0, "test", 0, 0), n_scenes=3)[0]


def reason(scene, heard, region=None, n_sources=None):
    return fits(trained_for(scene), heard, region or scene.region, n_sources)


def test_its_own_scenes_fit(surface_scene, line_scene):
    for scene in (surface_scene, line_scene):
        assert reason(scene, heard_in(scene)) is None
        assert reason(scene, heard_in(scene), n_sources=2) is None


def test_an_array_may_take_any_number_of_snapshots(line_scene):
    assert reason(line_scene, heard_in(replace(line_scene, n_snapshots=3))) is None


@pytest.mark.parametrize(("range_m", "fits_one"), [(None, False), ((4.0, 20.0), True)])
def test_of_one_snapshot_there_is_nothing_to_say_but_ranges(line_scene, range_m, fits_one):
    scene = replace(line_scene, sources=replace(line_scene.sources, range_m=range_m))
    scene = replace(scene, n_snapshots=4, symbols="data")
    sizes = replace(TINY, n_coherence=4)
    network = Pretrained("tiny", NeuralMusic(scene, sizes), scene, {})
    for n_snapshots in (1, 2):
        heard = heard_in(replace(scene, n_snapshots=n_snapshots))
        said = fits(network, heard, scene.region)
        assert (said is None) == (fits_one or n_snapshots > 1)
        assert said in (None, "got snapshots=1, it was trained for 2 and more")


def test_another_channel_of_the_surface_fits(surface_scene):
    surface = Surface(n_antennas=4, n_codes=6, rician_factor=3.0, phase_bits=None)
    assert reason(surface_scene, heard_in(replace(surface_scene, surface=surface))) is None


def test_in_the_far_field_only_wavelengths_count(line_scene):
    assert reason(line_scene, heard_in(replace(line_scene, wavelength_m=0.1))) is None


def test_in_the_near_field_metres_count(surface_scene):
    said = reason(surface_scene, heard_in(replace(surface_scene, wavelength_m=0.1)))
    assert said == "got wavelength_m=0.1, it was trained for 0.3"


def test_small_differences_of_positions_do_not_matter(line_scene):
    heard = heard_in(line_scene)
    near = replace(heard, positions=heard.positions + 0.5e-3 * heard.wavelength)
    moved = heard.positions.clone()
    moved[0, 0] += 4e-3 * heard.wavelength
    assert reason(line_scene, near) is None
    said = reason(line_scene, replace(heard, positions=moved))
    assert said.startswith("got element_positions=up to 0.0035 wavelengths off, it was")


@pytest.mark.parametrize("shift", [0.5, -7.25, 1000.0])
def test_in_the_far_field_positions_may_refer_to_any_origin(line_scene, shift):
    law = line_scene.sources
    steps = tuple((0.5 * i, 0.0, 0.0) for i in range(8))
    from_first = Scene(ArrayGeometry(8, kind="positions", places_wavelengths=steps), law)
    for scene in (line_scene, from_first):
        heard = heard_in(replace(scene, wavelength_m=0.1))
        moved = replace(heard, positions=heard.positions + shift * torch.tensor([0.1, 0.02, -0.1]))
        assert reason(scene, moved) is None
        # phases that sources have in common refer to the scene's own origin
        back = about_its_origin(trained_for(scene), moved).positions
        torch.testing.assert_close(back, heard.positions, atol=1e-6 + 1e-7 * abs(shift), rtol=0.0)
        assert about_its_origin(trained_for(scene), heard) is heard
    # the same line, whose names for it differ by the origin alone
    assert reason(from_first, heard_in(line_scene)) is None


def test_in_the_near_field_ranges_are_those_from_the_origin(surface_scene):
    heard = heard_in(surface_scene)
    moved = replace(heard, positions=heard.positions + 0.5 * heard.wavelength)
    assert "all alike: they refer to another origin" in reason(surface_scene, moved)
    assert about_its_origin(trained_for(surface_scene), moved) is moved


def test_other_elements_do_not_fit(line_scene):
    other = replace(line_scene, array=ArrayGeometry(9))
    assert reason(line_scene, heard_in(other)) == (
        "got elements=9, it was trained for 8; got rows=9, it was trained for 8"
    )


def test_positions_that_are_not_finite_do_not_fit(line_scene):
    heard = heard_in(line_scene)
    spoilt = replace(heard, positions=heard.positions * torch.nan)
    assert "element_positions" in reason(line_scene, spoilt)


def test_a_surface_with_other_rows_does_not_fit(surface_scene):
    other = replace(surface_scene, surface=Surface(n_antennas=4, n_codes=8))
    assert reason(surface_scene, heard_in(other)) == "got rows=32, it was trained for 24"


def test_pilots_are_one_block(surface_scene):
    other = replace(surface_scene, surface=Surface(n_antennas=24, n_codes=2), symbols="data")
    assert reason(surface_scene, heard_in(other)) == (
        "got blocks=2, it was trained for 1 (pilot symbols); got operators=2, it was trained for 1"
    )


@pytest.mark.parametrize("symbols", ["pilot", "data"])
def test_pilots_and_data_do_not_fit_each_other(surface_scene, symbols):
    """As many numbers from the same surface, in one block or in one for each code."""
    scenes = {kind: replace(surface_scene, symbols=kind) for kind in ("pilot", "data")}
    own = scenes.pop(symbols)
    (other,) = scenes.values()
    assert reason(own, heard_in(own)) is None
    said = reason(own, heard_in(other))
    n_own, n_other = own.n_blocks, other.n_blocks
    assert f"got blocks={n_other}, it was trained for {n_own} ({symbols} symbols)" in said


def test_what_was_heard_behind_a_surface_does_not_fit_an_array():
    law = SourceLaw(n_max=2)
    array = Scene(ArrayGeometry(4, 4), law)
    surface = replace(array, surface=Surface(n_antennas=4, n_codes=4))
    assert "the identity of a plain array" in reason(array, heard_in(surface))


def test_the_region_must_lie_within_the_networks_own(line_scene):
    heard, own = heard_in(line_scene), line_scene.region
    low, high = own.u
    assert reason(line_scene, heard, replace(own, u=(-0.1, 0.3))) is None
    assert reason(line_scene, heard, replace(own, u=(low - 5e-4, high))) is None
    said = reason(line_scene, heard, replace(own, u=(low - 0.01, high)))
    assert said == "got u=[-0.876,0.866], it was trained for [-0.866,0.866]"
    assert "got v=[0.1,0.1]" in reason(line_scene, heard, replace(own, v=(0.1, 0.1)))


def test_the_nearest_range_bounds_the_region_in_the_near_field(surface_scene):
    heard, own = heard_in(surface_scene), surface_scene.region
    assert reason(surface_scene, heard, replace(own, inverse_range=(0.3, 1.0))) is None
    said = reason(surface_scene, heard, replace(own, inverse_range=(0.3, 4.0)))
    assert said == "got inverse_range=[0.3,4], it was trained for [0.2,2]"


def test_the_field_must_be_the_same(surface_scene, line_scene):
    far = SearchRegion((-0.1, 0.1), (-0.1, 0.1), (0.0, 0.0))
    near = SearchRegion((-0.1, 0.1), (0.0, 0.0), (0.2, 0.3))
    said = reason(surface_scene, heard_in(surface_scene), far)
    assert said == "got field=far, it was trained for near"
    assert "got field=near" in reason(line_scene, heard_in(line_scene), near)


def test_more_sources_than_it_has_slots_do_not_fit(line_scene):
    said = reason(line_scene, heard_in(line_scene), n_sources=3)
    assert said == "got sources=3, it was trained for up to 2"


def test_single_scenes_and_several_operators_are_judged_alike(surface_scene):
    heard = heard_in(surface_scene)
    one = replace(heard, y=heard.y[0], noise_power=heard.noise_power[0])
    many = replace(heard, operator=torch.stack([heard.operator] * 3))
    assert reason(surface_scene, one) is None
    assert reason(surface_scene, many) is None


def test_the_first_that_fits_is_chosen_and_kept(ship, surface_scene, line_scene):
    ship(b_line=line_scene, c_line=line_scene, a_surface=surface_scene)
    heard = heard_in(line_scene)
    found = choose(heard, line_scene.region)
    assert found.name == "b_line"
    assert choose(heard, line_scene.region) is found
    assert choose(heard, line_scene.region, n_sources=3) is None
    assert choose(heard_in(surface_scene), surface_scene.region).name == "a_surface"


def test_where_nothing_ships_nothing_is_chosen(ship, line_scene):
    ship()
    assert choose(heard_in(line_scene), line_scene.region) is None


def test_weights_for_one_array_with_its_errors_are_taken_by_name_alone(ship, line_scene):
    own = replace(line_scene, imperfections=Imperfections(phase_deg=10.0))
    ship(miscalibrated=own)
    assert choose(heard_in(line_scene), line_scene.region) is None
    assert fits(find_weights("miscalibrated"), heard_in(line_scene), line_scene.region) is None


def test_weights_for_sources_in_phase_are_taken_by_name_alone(ship, line_scene):
    law = replace(line_scene.sources, phase_deg=(0.0, 0.0), snr_db=(20.0, 20.0))
    ship(alike=replace(line_scene, sources=law, coherent_share=0.5))
    assert choose(heard_in(line_scene), line_scene.region) is None
    assert fits(find_weights("alike"), heard_in(line_scene), line_scene.region) is None


def test_a_damaged_file_is_never_passed_over(ship, line_scene):
    path = ship(line=line_scene) / "line.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"line\.safetensors fails its checksum"):
        choose(heard_in(line_scene), line_scene.region)


def test_weights_are_found_by_name_or_file(ship, line_scene, surface_scene):
    folder = ship(ula=line_scene, ris=surface_scene)
    assert find_weights("ula").scene == line_scene
    assert find_weights(str(folder / "ris.safetensors")).scene == surface_scene
    with pytest.raises(ValueError, match=r"ris, ula\) or a file: got .riz.\. Did you mean .ris."):
        find_weights("riz")
    with pytest.raises(FileNotFoundError, match="no such file"):
        find_weights(str(folder / "riz.safetensors"))
    with pytest.raises(ValueError, match="local files only"):
        find_weights("https://somewhere/ris.safetensors")


def test_without_any_shipped_a_name_says_so(ship):
    ship()
    with pytest.raises(ValueError, match="none ships with this version"):
        find_weights("ris")


@pytest.mark.parametrize("name", ["ris", "ris_data_symbols"])
def test_shipped_weights_are_chosen_by_how_symbols_are_sent(name):
    own = load_shipped(shipped()[name])
    chosen = choose(heard_in(own.scene), own.scene.region)
    assert chosen is not None
    assert chosen.name == name
