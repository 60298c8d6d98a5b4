"""The catalogue of bad input, row by row: one line, exit code 1, nothing written, nothing run.

Rows whose place is elsewhere are listed in `ELSEWHERE`, with the test that holds them.
"""

import hashlib
import io
import json
import os
import pickle
import re
import stat
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from musicnet.commands import inspect, localize
from musicnet.estimation.search import music_beams
from musicnet.estimation.subspace import noise_subspace
from musicnet.networks.neural_music import NetworkSettings, NeuralMusic
from musicnet.networks.pretrained import save_pretrained
from musicnet.networks.weights_file import read_weights, write_weights
from musicnet.scene.array import ArrayGeometry
from musicnet.scene.scene import Scene
from musicnet.scene.sources import SourceLaw

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
FAR = ROOT / "tests" / "data" / "ula_far_24.npz"


class Payload:
    """Unpickling it leaves a folder behind."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def arrays(**changes):
    with np.load(FAR) as archive:
        found = {key: archive[key] for key in archive.files}
    found |= changes
    return {key: value for key, value in found.items() if value is not None}


def npz(folder, name="bad.npz", **changes):
    np.savez(folder / name, **arrays(**changes))
    return folder / name


def poisoned(folder, key, index, value):
    array = arrays()[key].copy()
    array[index] = value
    return npz(folder, **{key: array})


def written(folder, content, name="bad.npz"):
    (folder / name).write_bytes(content)
    return folder / name


def flipped(content, place):
    content = bytearray(content)
    content[place] ^= 4
    return bytes(content)


def hdf5(folder, change=None, **options):
    path = folder / "bad.h5"
    with h5py.File(path, "w") as file:
        for key, value in arrays().items():
            if value.dtype.kind == "U":
                file[key] = str(value)
            elif key != "y":
                file[key] = value
        (change or (lambda file: file.create_dataset("y", data=arrays()["y"], **options)))(file)
    return path


def external_storage(folder):
    other = written(folder, arrays()["y"].tobytes(), "other.bin")

    def change(file):
        shape = arrays()["y"].shape
        file.create_dataset("y", shape, "c8", external=[(str(other), 0, h5py.h5f.UNLIMITED)])

    return hdf5(folder, change)


def external_link(folder):
    with h5py.File(folder / "other.h5", "w") as other:
        other["y"] = arrays()["y"]
    return hdf5(folder, lambda file: file.__setitem__("y", h5py.ExternalLink("other.h5", "/y")))


def object_array(folder):
    payload = np.empty(1, dtype=object)
    payload[0] = Payload(folder / "ran")
    return npz(folder, snr_db=payload)


def liar(folder):
    header = io.BytesIO()
    facts = {"descr": "<c8", "fortran_order": False, "shape": (2**40, 2**10)}
    np.lib.format.write_array_header_1_0(header, facts)
    with zipfile.ZipFile(folder / "bad.npz", "w") as archive:
        archive.writestr("y.npy", header.getvalue())
    return folder / "bad.npz"


def bomb(folder):
    """An entry that says that it expands to four gigabytes, as a thousandth of that could."""
    size = 1_000_003
    with zipfile.ZipFile(folder / "bad.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("a0.npy", b"\0" * size)
    packed = (folder / "bad.npz").read_bytes()
    # the directory says it, and nothing is unpacked to find out
    return written(folder, packed.replace(size.to_bytes(4, "little"), b"\xf0\xff\xff\xff"))


def pipe(folder):
    os.mkfifo(folder / "bad.npz")
    return folder / "bad.npz"


def unreadable(folder):
    path = npz(folder)
    path.chmod(stat.S_IWUSR)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    return path


def listed(folder, change=None, spoil=None):
    """A folder of two files with a manifest."""
    inside = folder / "shards"
    inside.mkdir()
    for name in ("a.npz", "b.npz"):
        (inside / name).write_bytes(FAR.read_bytes())
    assert inspect.run([str(inside), "--write-manifest"]) == 0
    path = inside / "manifest.json"
    tree = json.loads(path.read_text())
    (change or (lambda shards: None))(tree["shards"])
    path.write_text(json.dumps(tree))
    (spoil or (lambda inside: None))(inside)
    return inside


def listed_hdf5(folder):
    inside = folder / "shards"
    inside.mkdir()
    path = hdf5(inside)
    assert inspect.run([str(inside), "--write-manifest"]) == 0
    path.write_bytes(flipped(path.read_bytes(), path.stat().st_size - 5000))
    return inside


def listed_npy(folder):
    """A bare array has no checksum of its own; its manifest has."""
    np.save(folder / "a.npy", arrays()["y"].reshape(-1, 8))
    inside = listed(folder, lambda shards: shards[0].update(file="a.npy"))
    content = (folder / "a.npy").read_bytes()
    (inside / "a.npy").write_bytes(flipped(content, 5000))
    return inside


STRICT = ["--strict"]
FILES = {
    "D1": (lambda f: f / "gone.npz", [], "no such file: .*gone.npz"),
    "D2": (lambda f: written(f, b""), [], r"bad.npz is empty \(0 bytes\)"),
    "D3": (lambda f: written(f, FAR.read_bytes()[:9000]), [], "truncated or not an npz"),
    "D4": (lambda f: written(f, flipped(FAR.read_bytes(), 9000)), [], "fails its checksum"),
    "D5": (listed_npy, [], "a.npy fails its checksum: .* manifest.json says"),
    "D6": (object_array, [], "bad.npz:snr_db holds pickled objects; refused"),
    "D7": (lambda f: npz(f, wavelength=None), [], r"bad.npz lacks 'wavelength'; has \['azimuth"),
    "D8": (lambda f: npz(f, noise_powr=np.ones(3)), STRICT, "noise_powr is no key .*noise_power"),
    "D9": (liar, [], "bad.npz:y declares 9007199254740992 bytes but has"),
    "D10": (bomb, [], r"bad.npz expands to 4294967\d+ bytes, the limit is 2147483648"),
    "D11": (lambda f: written(f, b"azimuth,elevation\n1,2\n"), [], "truncated or not an npz"),
    "D12": (pipe, [], "bad.npz is not a regular file"),
    "D12 folder": (lambda f: f, [], "is not a regular file"),
    "D13": (unreadable, [], "permission denied: .*bad.npz"),
    "D14": (
        lambda f: written(f, hdf5(f).read_bytes()[:60_000], "cut.h5"),
        [],
        "cut.h5 cannot be opened: truncated",
    ),
    "D15": (external_storage, [], "bad.h5:y is external data; refused"),
    "D15 link": (external_link, [], "bad.h5:y is external data; refused"),
    "D16": (listed_hdf5, [], "bad.h5 fails its checksum: .* manifest.json says"),
    "D17": (
        lambda f: listed(f, lambda shards: shards[0].update(file="../../secret.npz")),
        [],
        r"shards\[0\] '../../secret.npz' is outside the data folder",
    ),
    "D18": (
        lambda f: listed(f, lambda shards: shards.append(shards[0])),
        [],
        r"shards\[2\] lists 'a.npz' twice",
    ),
    "D18 hash": (
        lambda f: listed(f, spoil=lambda inside: npz(inside, "b.npz", coherent=None)),
        [],
        "b.npz fails its checksum: .* manifest.json says",
    ),
    "S1": (
        lambda f: npz(f, y=arrays()["y"].real.copy()),
        [],
        "bad.npz:y has dtype float32, want complex",
    ),
    "S2": (
        lambda f: npz(f, y=np.ones((24, 50, 8), np.int16)),
        [],
        "bad.npz:y has dtype int16, want complex",
    ),
    "S5": (
        lambda f: npz(f, y=arrays()["y"][:, 0]),
        [],
        r"bad.npz:y has shape \(24, 8\), want \(scene, block, row\)",
    ),
    "S6": (
        lambda f: npz(f, y=arrays()["y"][..., :7].copy()),
        [],
        "bad.npz:y has 7 rows, operator has 8",
    ),
    "S6 geometry": (lambda f: FAR, ["--array", "ula:7:0.5w"], "has 8 elements, --array .* has 7"),
    "S7": (
        lambda f: npz(f, y=arrays()["y"][:, :8].swapaxes(1, 2)[:, :, :7].copy()),
        [],
        "y has 7 rows, operator has 8.*look swapped",
    ),
    "S8": (lambda f: npz(f, y=np.ones((0, 50, 8), np.complex64)), [], "bad.npz:y has 0 scenes"),
    "S9": (lambda f: npz(f, y=np.ones((24, 0, 8), np.complex64)), [], "bad.npz:y has 0 blocks"),
    "S10": (
        lambda f: npz(f, truth_xyz=np.ones((23, 3, 3))),
        [],
        r"truth_xyz has shape \(23, 3, 3\), want \(24, source, 3\)",
    ),
    "S11": (lambda f: FAR, ["--n-sources", "8"], "got n_sources=8, n_sensors=8"),
    "S12": (
        lambda f: npz(f, y=arrays()["y"][:, :1].copy(), noise_power=None),
        [],
        "noise power of a single snapshot cannot be told",
    ),
    "N1": (lambda f: poisoned(f, "y", (3, 2, 1), np.nan), STRICT, r"y is not finite at index \(3,"),
    "N2": (lambda f: poisoned(f, "y", (3, 2, 1), np.inf), STRICT, r"y is not finite at index \(3,"),
    "N3": (lambda f: poisoned(f, "y", 3, 0), STRICT, "y is silent: every row is zero at index 3"),
    "N4": (
        lambda f: poisoned(f, "y", 3, arrays()["y"][3, 0]),
        STRICT,
        "y is the same in every block, a covariance of rank 1, at index 3",
    ),
    "N5": (
        lambda f: npz(f, y=arrays()["y"].astype(complex) * 1e38),
        STRICT,
        r"y is .*(finite|outside).* index",
    ),
    "N5 faint": (
        lambda f: npz(f, y=arrays()["y"] * np.float32(1e-38)),
        STRICT,
        r"outside \[1e-30, 1e\+30\] in power, scale it, at index 0",
    ),
    "N12": (
        lambda f: poisoned(f, "truth_xyz", (2, 0, 1), np.nan),
        STRICT,
        r"truth_xyz is NaN in part at index \(2, 0\)",
    ),
    "N13": (
        lambda f: npz(f, azimuth_deg=np.array([-600.0, 600.0])),
        [],
        r"azimuth_deg is \(-600.0, 600.0\), want degrees in \[-90, 90\]",
    ),
    "N13 label": (
        lambda f: poisoned(f, "truth_xyz", (2, 0), (0.0, 1.0, 0.0)),
        STRICT,
        r"truth_xyz is outside the file's elevation_deg \(.*\) at index \(2, 0\)",
    ),
    "N14": (
        lambda f: poisoned(f, "truth_xyz", (3, 1), arrays()["truth_xyz"][3, 0]),
        STRICT,
        r"truth_xyz is where another source of the scene is at index \(3, 1\)",
    ),
    "N15": (
        lambda f: poisoned(f, "y", (3, slice(None), 5), 0),
        STRICT,
        r"y is dead: a row that is always zero at index \(3, 5\)",
    ),
}


def row(words, folder, capsys, source):
    """Runs a row; the one line that it says."""
    target = folder / "out" / "positions.json"
    before = set(folder.rglob("*")) | ({source} if source else set())
    capsys.readouterr()
    assert localize.run([*words, "--output", str(target)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith("error: ")
    assert set(folder.rglob("*")) <= before
    assert not (folder / "ran").exists()
    return line


@pytest.mark.parametrize("identity", FILES)
def test_a_bad_file_is_one_line_and_nothing_is_written(identity, tmp_path, capsys):
    make, words, reason = FILES[identity]
    path = make(tmp_path)
    line = row([str(path), "--method", "bartlett", *words], tmp_path, capsys, path)
    assert re.search(reason, line), line


def answers(folder, path):
    target = folder / "answers.json"
    words = ["--method", "esprit", "--output", str(target)]
    assert localize.run([str(path), *words]) == 0
    return [
        {**scene, "file": None, "cpu_ms": None}
        for scene in json.loads(target.read_text())["scenes"]
    ]


@pytest.mark.parametrize(
    ("identity", "change"),
    [("S3", lambda y: y.astype(np.complex128)), ("S4", lambda y: y.astype(">c8"))],
)
def test_other_representations_of_the_same_numbers_give_the_same(identity, change, tmp_path):
    assert answers(tmp_path, npz(tmp_path, y=change(arrays()["y"]))) == answers(tmp_path, FAR)


def test_d8_an_extra_key_is_a_warning_where_it_is_not_forbidden(tmp_path, capsys):
    path = npz(tmp_path, noise_powr=np.ones(3))
    answers(tmp_path, path)
    assert "warning: " in capsys.readouterr().err


def test_s12_a_single_snapshot_of_known_noise_is_answered(tmp_path):
    found = answers(tmp_path, npz(tmp_path, y=arrays()["y"][:, :1].copy()))
    assert all(np.isfinite(scene["log_likelihood"]) for scene in found)


def covariance(change):
    """Two scenes, of which the second is changed."""
    one = torch.diag(torch.tensor([3.0, 2.0, 1.0, 1.0])).to(torch.complex64)
    both = torch.stack((one, one.clone()))
    change(both[1])
    return both


MATRICES = {
    "N6": (lambda r: r[0, 1].fill_(0.5), "must be Hermitian: .* scene 1"),
    "N7": (lambda r: r[0, 0].fill_(3 + 1j), "must be Hermitian: .* scene 1"),
    "N10": (lambda r: r[3, 3].fill_(-1.0), "no negative eigenvalue: got -1 in scene 1"),
}


@pytest.mark.parametrize("identity", MATRICES)
def test_what_is_no_covariance_is_refused_with_its_scene(identity):
    change, reason = MATRICES[identity]
    for use in (noise_subspace, music_beams):
        with pytest.raises(ValueError, match=reason):
            use(covariance(change), 2)


@pytest.mark.parametrize(
    ("identity", "change"),
    [("N8", lambda r: r[0, 1].fill_(torch.nan)), ("N9", lambda r: r[0, 0].fill_(torch.inf))],
)
def test_a_matrix_that_is_not_finite_is_found_and_harms_no_other(identity, change):
    spoilt = noise_subspace(covariance(change), 2)
    assert spoilt[1].isnan().any()
    assert torch.equal(spoilt[0], noise_subspace(covariance(lambda r: r), 2)[0])


def test_n11_repeated_eigenvalues_have_finite_gradients():
    matrix = torch.eye(4, dtype=torch.complex64).requires_grad_()
    noise_subspace(matrix, 2).abs().sum().backward()
    assert torch.view_as_real(matrix.grad).isfinite().all()


LAW = SourceLaw(n_max=3, azimuth_deg=(-90.0, 90.0), elevation_deg=(0.0, 0.0), range_m=None)
SCENE, SETTINGS = Scene(ArrayGeometry(8), LAW), NetworkSettings(n_channels=4, n_u=11)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "own.safetensors"
    save_pretrained(path, NeuralMusic(SCENE, SETTINGS), SCENE, SETTINGS, {"minutes": 0})
    return path


def changed(folder, weights, change):
    """The same weights with other content, sealed anew."""
    file = read_weights(weights)
    tensors, description = dict(file.tensors), file.description
    change(tensors, description)
    path = folder / "bad.safetensors"
    write_weights(path, tensors, description)
    return path


def newer(folder, weights):
    """Another version, sealed as its writer would."""
    content = weights.read_bytes().replace(b"musicnet.weights/1", b"musicnet.weights/9")
    seal = re.search(rb"[0-9a-f]{64}", content).group()
    opened = content.replace(seal, b"0" * 64, 1)
    own = hashlib.sha256(opened).hexdigest().encode()
    return written(folder, opened.replace(b"0" * 64, own, 1), "bad.safetensors")


def first_tensor(change):
    def apply(tensors, _):
        name = next(key for key, value in tensors.items() if value.ndim > 1)
        tensors[name] = change(tensors[name])

    return apply


def pickled(folder, _):
    return written(folder, pickle.dumps(Payload(folder / "ran")), "bad.safetensors")


def spoilt_wavelength(tensors, description):
    description["scene"]["array"]["spacing_wavelengths"] = 0.25


def cut_weights(folder, weights):
    return written(folder, weights.read_bytes()[:900], "bad.safetensors")


def flipped_weights(folder, weights):
    content = weights.read_bytes()
    return written(folder, flipped(content, len(content) - 99), "bad.safetensors")


CHECKPOINTS = {
    "C1": (lambda f, w: f / "gone.safetensors", "no such file: .*gone.safetensors"),
    "C2": (lambda f, w: written(f, b"", "bad.safetensors"), r"bad.safetensors is empty \(0 bytes"),
    "C3": (cut_weights, "bad.safetensors must be a whole safetensors file: got what is truncated"),
    "C4": (flipped_weights, "bad.safetensors fails its checksum"),
    "C5": (
        lambda f, w: written(f, b"weights, trust me\n" * 9, "bad.safetensors"),
        "must be a whole safetensors file",
    ),
    "C6": (pickled, "must be a whole safetensors file"),
    "C7": (lambda f, w: "https://example.org/own.safetensors", "local files only: got https://"),
    "C8": (
        lambda f, w: changed(f, w, lambda tensors, _: tensors.clear()),
        "bad.safetensors: lacks parameters 'backbone",
    ),
    "C9": (
        lambda f, w: changed(f, w, first_tensor(lambda one: one[:1].clone())),
        r"parameter '.* must have shape \(.*\): got \(1,",
    ),
    "C10": (
        lambda f, w: changed(f, w, first_tensor(lambda one: one * torch.nan)),
        "parameter 'backbone.* must be finite: got NaN",
    ),
    "C11": (newer, "format must be 'musicnet.weights/1', .*: got 'musicnet.weights/9'"),
    "C12": (
        lambda f, w: changed(f, w, spoilt_wavelength),
        "--weights .* must fit the recording: got ",
    ),
}


@pytest.mark.parametrize("identity", CHECKPOINTS)
def test_bad_weights_are_one_line_and_nothing_is_written(identity, weights, tmp_path, capsys):
    make, reason = CHECKPOINTS[identity]
    path = make(tmp_path, weights)
    line = row([str(FAR), "--method", "neural", "--weights", str(path)], tmp_path, capsys, None)
    assert re.search(reason, line), line


ELSEWHERE = {
    "C13": ("tests/integration/test_refusals.py", '(["test"], "needs trained weights")'),
    "H1": ("tests/integration/test_refusals.py", '"+gate.max_nrom=1": "gate.max_norm"'),
    "H2": ("tests/integration/test_refusals.py", '"optimizer.init_args.lr=abc"'),
    "H3": ("tests/integration/test_refusals.py", '"optimizer.init_args.lr=nan"'),
    "H4": ("tests/integration/test_refusals.py", '"gate.zero=skp"'),
    "H5": ("tests/integration/test_refusals.py", '"gate=null"'),
    "H6": ("tests/integration/test_refusals.py", '"+callbacks.x.class_path=torch.load"'),
    "H7": ("tests/integration/test_refusals.py", "oc.env:"),
    "H8": ("tests/integration/test_resume.py", '"another process is at work"'),
    "L1": ("tests/unit/commands/test_doctor_command.py", '"line 1: only a torn line"'),
    "L2": ("tests/unit/commands/test_doctor_command.py", '"got run deadbeef"'),
    "L3": ("tests/unit/commands/test_doctor_command.py", "comes after 40: two runs are mixed"),
    "C14": ("tests/integration/test_resume.py", '"optimizer_states"'),
    "C15": ("tests/integration/test_resume.py", '"which has another one"'),
    "H9": ("tests/integration/test_refusals.py", '"+trainer.limit_train_batches=0"'),
}


@pytest.mark.parametrize("identity", ELSEWHERE)
def test_rows_that_are_tested_elsewhere_are_there(identity):
    path, words = ELSEWHERE[identity]
    assert words in (ROOT / path).read_text(encoding="utf-8")


def test_no_row_of_the_catalogue_is_forgotten():
    numbers = {"D": 18, "S": 12, "N": 15, "C": 15, "H": 9, "L": 3}
    every = {f"{letter}{n + 1}" for letter, count in numbers.items() for n in range(count)}
    assert len(every) == 72
    here = {name.split()[0] for name in (*FILES, *MATRICES, *CHECKPOINTS, *ELSEWHERE)}
    here |= {"S3", "S4", "N8", "N9", "N11"}
    assert here == every
