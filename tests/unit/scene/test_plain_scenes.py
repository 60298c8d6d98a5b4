"""Scenes as plain data: what a weights file says a network was trained for."""

import json
from pathlib import Path

import pytest
import yaml

from musicnet.records.plain_data import from_plain, to_plain
from musicnet.scene.array import ArrayGeometry
from musicnet.scene.imperfections import Imperfections
from musicnet.scene.scene import Scene
from musicnet.scene.sources import SourceLaw
from musicnet.scene.surface import Surface

CONF = Path(__file__).parents[3] / "conf" / "scene"
FILES = sorted(CONF.glob("*.yaml"))
FLAT = SourceLaw(elevation_deg=(0.0, 0.0), range_m=None, n_max=2)
PLACES = ((0.0, 0.0, 0.0), (0.5, 0.1, 0.0), (1.2, 0.0, 0.3), (0.1, 0.9, 0.0))
CUSTOM = ((0.0, 90.0, 180.0, 270.0), (45.0, 0.0, 0.0, 10.0))


def tree_of(path):
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    for name in tree.pop("defaults", []):  # one level of composition is all there is
        tree = tree_of(path.with_name(f"{name}.yaml")) | tree
    return tree


def from_file(path):
    return from_plain(Scene, tree_of(path), "scene")


@pytest.mark.parametrize(
    "scene",
    [
        *map(from_file, FILES),
        Scene(ArrayGeometry(kind="nested", sparse_levels=(3, 3)), FLAT),
        Scene(ArrayGeometry(kind="coprime", sparse_levels=(2, 3)), FLAT, n_snapshots=7),
        Scene(ArrayGeometry(kind="positions", places_wavelengths=PLACES), SourceLaw(n_max=2)),
        Scene(ArrayGeometry(6, kind="ring"), SourceLaw(n_max=2)),
        Scene(
            ArrayGeometry(8),
            FLAT,
            symbols="data",
            coherent_share=0.25,
            imperfections=Imperfections(
                phase_deg=10.0, position_wavelengths=0.02, coupling_db=-20.0
            ),
        ),
        Scene(
            ArrayGeometry(4, 4),
            SourceLaw(),
            surface=Surface(n_codes=9, codebook="dft", phase_bits=None),
            imperfections=Imperfections(quantised_bits=2, redrawn="block"),
        ),
        Scene(
            ArrayGeometry(2, 2),
            SourceLaw(n_max=1),
            surface=Surface(4, 2, codebook="custom", code_phases_deg=CUSTOM),
        ),
    ],
)
def test_a_scene_comes_back_through_json(scene):
    plain = json.loads(json.dumps(to_plain(scene)))
    assert from_plain(Scene, plain, "scene") == scene


def test_there_are_scenes_in_conf():
    assert len(FILES) >= 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: tree.update(wavelenght_m=0.3), "Did you mean 'wavelength_m'"),
        (lambda tree: tree["array"].pop("kind"), "scene.array lacks the key 'kind'"),
        (lambda tree: tree["sources"].update(n_max=64), "scene: a scene needs fewer sources"),
        (lambda tree: tree["array"].update(kind="disc"), "scene.array.kind must be one of"),
        (lambda tree: tree["surface"].update(n_codes="16"), "scene.surface.n_codes must be int"),
    ],
)
def test_what_is_no_scene_is_refused_in_one_line(change, message):
    tree = to_plain(Scene(ArrayGeometry(4, 4), SourceLaw(), surface=Surface(n_codes=4)))
    change(tree)
    with pytest.raises(ValueError, match=message):
        from_plain(Scene, tree, "scene")
