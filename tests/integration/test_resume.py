"""A run that was broken off is taken up, in its own folder or in a new one, as if nothing had been.

What real signals and kills do to real processes is counted by `benchmarks/faults.py`; here it runs
with a few of them, and the doors are tried without.
"""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import train
from musicnet.cli import threads
from musicnet.diagnosis.reading import Asked, read_run
from musicnet.learning.module import MusicNet
from musicnet.recordings.manifest_writing import write_manifest
from musicnet.records import atomic_files
from musicnet.records.append_log import read_rows
from musicnet.records.provenance import hash_config, read_provenance
from musicnet.records.run_lock import RunLock

pytestmark = pytest.mark.integration

ROOT = Path(train.__file__).parent
SAVING = ("data.init_args.passes_per_epoch=4", "callbacks.savepoints.init_args.every_n_batches=1")


class BrokenOffError(BaseException):
    """What breaks a run off, without a word to anybody."""


@pytest.fixture
def break_off(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """Let a run end in its n-th training batch, before anything of that batch is done."""
    whole = MusicNet.compute_loss

    def at(n: int | None) -> None:
        seen = 0

        def compute_loss(self: MusicNet, batch: Any, batch_idx: int) -> Any:
            nonlocal seen
            seen += 1
            if seen == n:
                raise BrokenOffError
            return whole(self, batch, batch_idx)

        monkeypatch.setattr(MusicNet, "compute_loss", compute_loss)

    return at


@pytest.fixture
def broken_run(
    hydra_door: Callable[..., Any], break_off: Callable[[int | None], None], runs: Path
) -> Path:
    """The folder of a run of 2 epochs of 4 batches that was broken off in the seventh."""
    break_off(7)
    with pytest.raises(BrokenOffError):
        hydra_door(*SAVING)
    break_off(None)
    (folder,) = runs.glob("overfit/*")
    return folder


def state(run: Path) -> dict[str, Any]:
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return {name: saved[name] for name in ("state_dict", "optimizer_states", "lr_schedulers")} | {
        "gate": saved["step_gate"]
    }


def rows(run: Path) -> list[str]:
    found = read_rows(run / "metrics.jsonl", run_id=read_provenance(run).run_id)
    # the order of keys is that in which metrics were first told of, which a resumption may change
    return [repr(sorted((k, v) for k, v in row.items() if k != "run_id")) for row in found]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def on_a_larger_machine(monkeypatch: pytest.MonkeyPatch) -> int:
    """Let a new run take more threads than runs have had so far; give the number of those."""
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "usable_processors", lambda: before + 1)
    return before


def saved_threads(run: Path) -> int:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["run_state"]["threads"]


def test_resume_auto_goes_on_in_the_folder_of_the_run(
    hydra_door: Callable[..., Any],
    broken_run: Path,
    whole_run: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = {name: (broken_run / name).read_bytes() for name in ("config.yaml", "provenance.json")}
    assert not (broken_run / "outcome.json").exists()
    n_threads = on_a_larger_machine(monkeypatch)
    (broken_run / "checkpoints" / ".last.ckpt.0123abcd.tmp").touch()
    answer = hydra_door(*SAVING, "resume=auto")
    assert answer.exit_code == 3
    assert answer.new == []
    assert same(state(broken_run), state(whole_run))
    assert rows(broken_run) == rows(whole_run)
    assert {n: (broken_run / n).read_bytes() for n in kept} == kept
    assert json.loads((broken_run / "outcome.json").read_text())["exit_code"] == 3
    assert not list(broken_run.rglob("*.tmp"))
    assert saved_threads(broken_run) == n_threads == read_provenance(broken_run).threads
    # killed after its last save, it has nothing left to do but to say how it ended
    (broken_run / "outcome.json").unlink()
    verdict = (broken_run / "verdict.json").read_bytes()
    again = hydra_door(*SAVING, "resume=auto")
    assert (again.exit_code, again.new) == (3, [])
    assert same(state(broken_run), state(whole_run))
    assert rows(broken_run) == rows(whole_run)
    assert (broken_run / "verdict.json").read_bytes() == verdict
    # it has ended now, and is not taken up again
    new = hydra_door(*SAVING, "resume=auto").run
    assert saved_threads(new) == n_threads + 1 == read_provenance(new).threads


def test_the_lightning_door_takes_it_up_as_well(
    lightning: Callable[..., Any], broken_run: Path, whole_run: Path, runs: Path
) -> None:
    config = broken_run / "config.yaml"
    answer = lightning("fit", "--config", config, "--resume", "auto")
    assert (answer.exit_code, answer.new) == (3, []), answer.err
    assert same(state(broken_run), state(whole_run))
    assert rows(broken_run) == rows(whole_run)


def test_ckpt_path_goes_on_in_a_new_folder(
    hydra_door: Callable[..., Any],
    broken_run: Path,
    whole_run: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = {path: path.read_bytes() for path in broken_run.rglob("*") if path.is_file()}
    n_threads = on_a_larger_machine(monkeypatch)
    last = broken_run / "checkpoints" / "last.ckpt"
    answer = hydra_door(*SAVING, f"ckpt_path={last}")
    assert answer.exit_code == 3
    assert saved_threads(answer.run) == n_threads
    assert same(state(answer.run), state(whole_run))
    own = rows(answer.run)
    assert own
    assert own == rows(whole_run)[-len(own) :]
    assert {path: path.read_bytes() for path in before} == before
    # the same configuration, as its file and a doctor have it
    origin = read_provenance(answer.run)
    assert origin.ckpt_path == str(last)
    stored = [yaml.safe_load((one / "config.yaml").read_text()) for one in (answer.run, broken_run)]
    assert [hash_config(one) for one in stored] == [origin.config_hash] * 2
    assert read_run(answer.run, Asked(config_hash=origin.config_hash)).stale == ()


def test_what_began_with_a_checkpoint_begins_with_it_again(
    hydra_door: Callable[..., Any],
    break_off: Callable[[int | None], None],
    broken_run: Path,
    whole_run: Path,
    runs: Path,
) -> None:
    last = broken_run / "checkpoints" / "last.ckpt"
    break_off(1)  # before it has one of its own
    with pytest.raises(BrokenOffError):
        hydra_door(*SAVING, f"ckpt_path={last}")
    break_off(None)
    (second,) = set(runs.glob("overfit/*")) - {broken_run}
    assert not (second / "checkpoints" / "last.ckpt").exists()
    last.rename(last.with_name("away.ckpt"))
    answer = hydra_door(*SAVING, f"resume={second}")
    assert (answer.exit_code, answer.new) == (1, [])
    assert f"ckpt_path must be a local file: got {last}" in answer.err
    RunLock(second).release()  # this process holds nothing of a run that it refused
    last.with_name("away.ckpt").rename(last)
    answer = hydra_door(*SAVING, f"resume={second}")
    assert (answer.exit_code, answer.new) == (3, [])
    assert same(state(second), state(whole_run))
    own = rows(second)
    assert own == rows(whole_run)[-len(own) :]


def test_a_run_that_broke_off_before_its_first_checkpoint_begins_anew(
    hydra_door: Callable[..., Any], broken_run: Path, whole_run: Path
) -> None:
    shutil.rmtree(broken_run / "checkpoints")
    answer = hydra_door(*SAVING, "resume=auto")
    assert (answer.exit_code, answer.new) == (3, [])
    assert same(state(broken_run), state(whole_run))
    assert rows(broken_run) == rows(whole_run)


def test_of_a_damaged_checkpoint_the_one_before_is_taken_aloud(
    hydra_door: Callable[..., Any], broken_run: Path, whole_run: Path
) -> None:
    last = broken_run / "checkpoints" / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    answer = hydra_door(*SAVING, "resume=auto")
    assert (answer.exit_code, answer.new) == (3, [])
    assert f"{last} fails its checksum" in answer.out
    assert f"going on from {last.with_name('previous.ckpt')}" in answer.out
    assert last.with_name("last.ckpt.damaged").read_bytes() == content
    assert same(state(broken_run), state(whole_run))
    assert rows(broken_run) == rows(whole_run)


def test_a_damaged_checkpoint_is_refused_by_name(
    hydra_door: Callable[..., Any], broken_run: Path
) -> None:
    last = broken_run / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-1])
    answer = hydra_door(*SAVING, f"ckpt_path={last}")
    assert (answer.exit_code, answer.new) == (1, [])
    assert re.fullmatch(f"error: ckpt_path .*{last} fails its checksum.*\n", answer.err)


def test_weights_alone_cannot_be_resumed_from(
    hydra_door: Callable[..., Any], broken_run: Path, tmp_path: Path
) -> None:
    checkpoint = torch.load(broken_run / "checkpoints" / "last.ckpt", weights_only=True)
    del checkpoint["optimizer_states"]
    alone = tmp_path / "weights.ckpt"
    torch.save(checkpoint, alone)
    answer = hydra_door(*SAVING, f"ckpt_path={alone}")
    assert (answer.exit_code, answer.new) == (1, [])
    assert re.fullmatch(f"error: ckpt_path .*{alone} .*no optimiser state.*\n", answer.err)


def test_auto_takes_nothing_that_is_not_the_same_run_or_is_in_work(
    hydra_door: Callable[..., Any], broken_run: Path
) -> None:
    other = hydra_door(*SAVING, "resume=auto", "optimizer.init_args.lr=2e-3")
    assert len(other.new) == 1
    lock = RunLock(broken_run)
    try:
        answer = hydra_door(*SAVING, "resume=auto")
    finally:
        lock.release()
    assert len(answer.new) == 1
    assert f"passes over {broken_run}" in answer.out


def test_a_folder_that_cannot_be_taken_up_is_refused(
    hydra_door: Callable[..., Any], broken_run: Path, whole_run: Path, tmp_path: Path
) -> None:
    def refusal(*words: str) -> str:
        answer = hydra_door(*SAVING, *words)
        assert (answer.exit_code, answer.new) == (1, [])
        assert answer.err.count("\n") == 1
        return answer.err

    before = sorted(broken_run.rglob("*"))
    assert "has no provenance" in refusal(f"resume={tmp_path}")
    assert "came to its end" in refusal(f"resume={whole_run}")
    other = "optimizer.init_args.lr=2e-3"
    assert "which has another one" in refusal(f"resume={broken_run}", other)
    lock = RunLock(broken_run)
    assert "another process is at work" in refusal(f"resume={broken_run}")
    lock.release()
    other = whole_run / "checkpoints" / "last.ckpt"
    assert "which began anew" in refusal(f"resume={broken_run}", f"ckpt_path={other}")
    assert sorted(broken_run.rglob("*")) == before
    assert hydra_door(*SAVING, f"resume={broken_run}").exit_code == 3


def test_a_run_on_a_full_disk_says_so_and_keeps_what_was_saved(
    hydra_door: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, runs: Path, whole_run: Path
) -> None:
    sync, synced = os.fsync, 0

    def fsync(descriptor: int) -> None:
        nonlocal synced
        synced += 1
        if synced > 40:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(atomic_files.os, "fsync", fsync)
    answer = hydra_door(*SAVING)
    assert answer.exit_code == 1
    assert re.fullmatch("error: .*No space left on device.*resume=auto.*\n", answer.err)
    monkeypatch.setattr(atomic_files.os, "fsync", sync)
    (folder,) = runs.glob("overfit/*")
    assert not list(folder.rglob("*.tmp"))
    assert hydra_door(*SAVING, "resume=auto").new == []
    assert same(state(folder), state(whole_run))


def test_another_recording_under_the_same_name_is_refused(
    hydra_door: Callable[..., Any],
    break_off: Callable[[int | None], None],
    tmp_path: Path,
    runs: Path,
) -> None:
    recording = tmp_path / "heard.npz"
    shutil.copy(ROOT / "tests" / "data" / "ris_pilot_48.npz", recording)
    words = ("data=recorded", f"data.init_args.path={recording}")
    break_off(2)
    with pytest.raises(BrokenOffError):
        hydra_door(*words)
    break_off(None)
    (folder,) = runs.glob("overfit/*")
    tree = json.loads((folder / "provenance.json").read_text())
    (folder / "provenance.json").write_text(json.dumps(tree | {"data_hash": "0" * 64}))
    answer = hydra_door(*words, "resume=auto")
    assert (answer.exit_code, answer.new) == (1, [])
    assert "must be the file that the run began with" in answer.err


@pytest.mark.slow
def test_a_recorded_run_goes_on_with_the_same_scenes_or_not_at_all(
    hydra_door: Callable[..., Any],
    break_off: Callable[[int | None], None],
    tmp_path: Path,
    runs: Path,
) -> None:
    """A folder of two files, one of which has a bad scene; other workers than the whole run's."""
    folder = tmp_path / "heard"
    folder.mkdir()
    source = ROOT / "tests" / "data" / "ris_pilot_48.npz"
    shutil.copy(source, folder / "a.npz")
    with np.load(source) as archive:
        arrays = dict(archive)
    arrays["y"][7] = np.nan
    np.savez(folder / "b.npz", **arrays)
    write_manifest(folder)
    words = ("data=recorded", f"data.init_args.path={folder}", "data.init_args.n_scenes=null")
    words += SAVING[1:]
    whole = hydra_door(*words)
    assert whole.exit_code in (0, 3), whole.err
    named = f"{folder}/b.npz:y is not finite at index (7, 0, 0) (scene 7); the scene is left out"
    assert whole.out.count(named) == 1
    assert whole.out.count("left out 1 of 96 scenes") == 1
    break_off(3)
    with pytest.raises(BrokenOffError):
        hydra_door(*words, "data.init_args.n_workers=2")
    break_off(None)
    (broken,) = set(runs.glob("overfit/*")) - {whole.run}
    kept, listed = (folder / "b.npz").read_bytes(), (folder / "manifest.json").read_bytes()
    arrays["y"][8] = np.nan
    np.savez(folder / "b.npz", **arrays)
    write_manifest(folder)
    answer = hydra_door(*words, "data.init_args.n_workers=2", "resume=auto")
    assert (answer.exit_code, answer.new) == (1, [])
    assert "must be the file that the run began with" in answer.err
    (folder / "b.npz").write_bytes(kept)
    (folder / "manifest.json").write_bytes(listed)
    answer = hydra_door(*words, "data.init_args.n_workers=2", "resume=auto")
    assert (answer.exit_code, answer.new) == (whole.exit_code, []), answer.err
    assert same(state(broken), state(whole.run))
    assert rows(broken) == rows(whole.run)


@pytest.mark.parametrize("words", [(), ("callbacks.savepoints=null",)])
def test_a_run_that_is_asked_to_leave_saves_and_says_so(
    hydra_door: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
) -> None:
    whole = MusicNet.compute_loss

    def compute_loss(self: MusicNet, batch: Any, batch_idx: int) -> Any:
        if self.gate.attempts == 1:
            os.kill(os.getpid(), signal.SIGHUP)
        return whole(self, batch, batch_idx)

    before = signal.getsignal(signal.SIGHUP)
    monkeypatch.setattr(MusicNet, "compute_loss", compute_loss)
    with pytest.raises(SystemExit) as end:  # past Hydra, so that it ends a sweep as well
        hydra_door("data.init_args.passes_per_epoch=4", "seed_everything=5", *words)
    assert end.value.code == 128 + signal.SIGHUP
    assert signal.getsignal(signal.SIGHUP) == before


def faults(*campaigns: str, limit_s: int = 1200) -> list[str]:
    """The last line of each campaign; all in one process, so that one import is enough."""
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'benchmarks')!r}); import faults; "
        f"sys.exit(max(faults.main(words.split()) for words in {campaigns!r}))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    names = {campaign.partition(" ")[0] for campaign in campaigns}
    lines = [line for line in answer.stdout.splitlines() if line.partition(":")[0] in names]
    return [line for line in lines if ";" in line or line.startswith(("resume", "signals"))]


@pytest.mark.slow
def test_row_46_kills_signals_and_damage_are_outlived() -> None:
    """Real runs that are killed, or signalled twice in a row; writers that are killed."""
    said = faults(
        "resume --n 2 --chains 0 --kinds 1",
        "signals --n 4 --kinds 1",
        "writing --n 4 --disks 3 --flips 40",
    )
    assert said == [
        "resume: 2 of 2",
        "signals: 4 of 4",
        "writing: 4 of 4; full disks 3 of 3; damaged files 40 of 40",
    ]


@pytest.mark.slow
def test_two_ranks_leave_together_and_are_taken_up_together(
    tiny: list[str], tmp_path: Path
) -> None:
    """The signal reaches the first rank alone."""
    words = [word for word in tiny if not word.startswith(("trainer=cpu", "data.init_args.n_sc"))]
    words = ["trainer=ddp", "trainer.accelerator=cpu", "data.init_args.n_scenes=64", *words]
    words += ["data.init_args.passes_per_epoch=8", "trainer.max_epochs=6"]
    words.remove("trainer.max_epochs=2")
    command = [sys.executable, str(ROOT / "train.py"), *words, "resume=auto"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    said = tmp_path / "said.txt"

    def start(name: str) -> "subprocess.Popen[bytes]":
        folder = f"trainer.default_root_dir={tmp_path / name}"
        with said.open("ab") as out:
            return subprocess.Popen([*command, folder], env=environment, stdout=out, stderr=out)

    assert start("whole").wait(timeout=600) == 3
    first = start("broken")
    while not list(tmp_path.glob("broken/*/*/checkpoints/last.ckpt")):
        assert first.poll() is None, said.read_text()
        time.sleep(0.02)
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=600) == 128 + signal.SIGTERM, said.read_text()
    assert start("broken").wait(timeout=600) == 3, said.read_text()
    (whole,), (broken,) = tmp_path.glob("whole/overfit/*"), tmp_path.glob("broken/overfit/*")
    assert same(state(broken), state(whole))
    assert rows(broken) == rows(whole)


@pytest.mark.slow
def test_many_faults_of_every_kind_are_outlived() -> None:
    said = faults(
        "resume --n 12 --chains 1 --seed 7", "signals --n 12 --kinds 3 --seed 7", limit_s=7200
    )
    assert said == ["resume: 12 of 12; chains of five kills 1 of 1", "signals: 12 of 12"]
