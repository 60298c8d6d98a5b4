"""Lists of folders: what is written is what its reader takes."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from musicnet.commands import inspect
from musicnet.recordings.archives import RecordingError
from musicnet.recordings.manifest_writing import write_manifest
from musicnet.recordings.manifests import read_manifest

FAR = Path(__file__).parents[2] / "data" / "ula_far_24.npz"
NEAR = FAR.with_name("ris_pilot_48.npz")


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "folder"
    (place / "sub").mkdir(parents=True)
    shutil.copy(FAR, place / "sub" / "b.npz")
    return place


def silent(path):
    with np.load(FAR) as archive:
        arrays = dict(archive)
    arrays["y"][:] = 0
    np.savez(path, **arrays)


def test_links_inside_a_folder_list_nothing_twice(folder):
    (folder / "a.npz").symlink_to("sub/b.npz")
    (folder / "kept").write_bytes(FAR.read_bytes())
    (folder / "c.npz").symlink_to("kept")
    (folder / "d.npz").symlink_to("c.npz")
    assert [shard.file for shard in write_manifest(folder)] == ["c.npz", "sub/b.npz"]
    found = [place for place, _ in read_manifest(folder)]
    assert found == [(folder / name).resolve() for name in ("kept", "sub/b.npz")]


UNFIT = {
    "a link to outside": (
        lambda folder: (folder / "a.npz").symlink_to(FAR),
        r"a\.npz is a link to .*ula_far_24\.npz, outside the data folder\. Put the file",
    ),
    "a link to itself": (
        lambda folder: (folder / "a.npz").symlink_to("a.npz"),
        r"a\.npz (is a link that leads nowhere|.*[Ss]ymbolic link).*",
    ),
    "a link to nothing": (
        lambda folder: (folder / "a.npz").symlink_to("gone"),
        r"no such file: .*gone",
    ),
    "near and far": (
        lambda folder: shutil.copy(NEAR, folder / "a.npz"),
        r"b\.npz:\w+ is .*, the first shard of the folder has .*",
    ),
    "none good": (
        lambda folder: silent(folder / "sub" / "b.npz"),
        r"b\.npz:y is silent.* \(24 of 24, none is good\)\.",
    ),
    "a name that no reader takes": (
        lambda folder: shutil.copy(FAR, folder / "a\\b.npz"),
        r"manifest\.json:shards\[0\] 'a.*b\.npz' is outside the data folder\.",
    ),
    "a name of bytes that are no text": (
        lambda folder: shutil.copy(FAR, folder / os.fsdecode(b"a\xff.npz")),
        r"folder: 'a\\udcff\.npz' is no text\. Rename it\.",
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_a_folder_that_its_reader_would_refuse_is_refused(name, folder, capsys):
    spoil, reason = UNFIT[name]
    spoil(folder)
    assert inspect.run([str(folder), "--write-manifest"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    with pytest.raises((RecordingError, OSError), match=reason):
        write_manifest(folder)
    assert not (folder / "manifest.json").exists()


@pytest.mark.parametrize("path", [FAR, FAR / "gone"])
def test_only_folders_are_listed(path, capsys):
    assert inspect.run([str(path), "--write-manifest"]) == 1
    said = f"error: a manifest.json lists the recordings of a folder: got {path}, which is no"
    assert capsys.readouterr().err == f"{said} folder.\n"


@pytest.mark.parametrize("file", ["\ud800.npz", "x" * 5000, "x/" * 4000, "a\0b", "loop", "loop/a"])
def test_what_cannot_be_a_name_is_refused_in_a_short_line(file, folder, capsys):
    (folder / "loop").symlink_to("loop")
    shard = {"file": file, "sha256": "0" * 64, "n_scenes": 1}
    tree = {"format": "musicnet.manifest/1", "shards": [shard]}
    (folder / "manifest.json").write_text(json.dumps(tree))
    assert inspect.run([str(folder)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {folder}/manifest.json:shards[0] '")
    assert said.endswith(" cannot be the name of a file.\n")
    assert len(said) < len(str(folder)) + 160
