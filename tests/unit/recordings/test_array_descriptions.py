import json

import numpy as np
import pytest

from musicnet.recordings.archives import RecordingError
from musicnet.recordings.array_descriptions import read_array
from musicnet.scene.array import ArrayGeometry


@pytest.mark.parametrize(
    ("word", "array"),
    [
        ("ula:8:0.5w", ArrayGeometry(8)),
        ("ura:4x3:0.5w", ArrayGeometry(4, 3)),
        ("uca:6:0.5w", ArrayGeometry(6, kind="ring", spacing_wavelengths=0.5)),
    ],
)
def test_words_mean_what_the_scenes_mean(word, array):
    """A ring of six has the radius of its sides."""
    places = array.positions(wavelength=0.2).numpy()
    np.testing.assert_allclose(read_array(word).positions(0.2), places, atol=1e-6)


def test_metres_do_not_stretch_with_the_wave():
    ring = read_array("uca:8:0.10m")
    assert np.array_equal(ring.positions(1.0), ring.positions(2.0))
    np.testing.assert_allclose(np.linalg.norm(ring.positions(1.0), axis=1), 0.1)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", json.dumps({"positions_m": [[0, 0], [0.1, 0], [0.3, 0.5]]})),
        ("a.json", json.dumps([[0, 0, 0], [0.1, 0, 0], [0.3, 0.5, 0]])),
        ("a.yaml", "positions_m:\n- [0, 0]\n- [0.1, 0]\n- [0.3, 0.5]\n"),
        ("a.csv", "x_m,y_m,z_m\n0,0,0\n0.1,0,0\n0.3,0.5,0\n"),
        ("a.csv", "sensor,y_m,x_m\n1,0,0\n2,0,0.1\n3,0.5,0.3\n"),
    ],
)
def test_files_of_places(name, text, tmp_path):
    (tmp_path / name).write_text(text)
    found = read_array(str(tmp_path / name)).positions(7.0)
    np.testing.assert_array_equal(found, [[0, 0, 0], [0.1, 0, 0], [0.3, 0.5, 0]])


@pytest.mark.parametrize(
    "word",
    [
        *("", "ula", "ula:8", "ula:8:0.5", "ula:8:w", "ula:8:-1w", "ula:8:1e999w", "ula:1:0.5w"),
        *("ura:8:0.5w", "ula:8x8:0.5w", "uca:8:0.1km", "ula:99999999:0.5w", "ura:999x999:0.5w"),
        *("ula:8:0.5w; rm", "ula:8:..5w", "circle:8:0.5w"),
    ],
)
def test_words_that_mean_nothing_are_refused(word):
    with pytest.raises(RecordingError, match="--array must"):
        read_array(word)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.json", "{", "is no json"),
        ("a.json", "[" * 100_000, "is no json"),
        ("a.json", '{"positions": []}', "must hold one of positions_m"),
        ("a.json", "[[0, 0]]", "at least two elements"),
        ("a.json", "[[0, 0], [0, NaN]]", r"\[1\] must be"),
        ("a.json", "[[0, 0], [0, 1e999]]", r"\[1\] must be"),
        ("a.json", f"[[0, 0], [0, {10**400}]]", r"\[1\] must be"),
        ("a.json", "[[0, 0], [0, 0]]", "two elements at one place"),
        ("a.json", '[[0, 0], ["0", 1]]', r"\[1\] must be"),
        ("a.yaml", "!!python/object/apply:os.system ['true']", "is no yaml"),
        ("a.yaml", "positions_m: 3", "at least two elements"),
        ("a.csv", "a,b\n1,2\n", "names the columns"),
        ("a.csv", "x_m,y_m\n1,2\n1,x\n", "a.csv:3 must hold numbers"),
        ("a.csv", "", "is empty"),
    ],
)
def test_files_that_hold_no_places_are_refused(name, text, reason, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises((RecordingError, OSError), match=reason):
        read_array(str(tmp_path / name))
