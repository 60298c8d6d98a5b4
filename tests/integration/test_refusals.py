"""What cannot be run is refused in one line, before anything is trained or written."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.integration

NEAREST = {
    "scene.wavelenght_m=0.2": "scene.wavelength_m",
    "+gate.max_nrom=1": "gate.max_norm",
    "optimizer.lr=1e-3": "optimizer.init_args.lr",
    "+optimizer.init_args.lrr=1": "optimizer.init_args.lr",
    "+phases.0.epoch=1": "phases.0.epochs",
    "+model.init_args.shedule=1": "model.init_args.schedule",
    "+model.networks=1": "model.init_args.network",
    "+data.init_args.n_scens=3": "data.init_args.n_scenes",
    "trainer.max_epoch=3": "trainer.max_epochs",
    "callbacks.checkpoint.init_args.moniter=x": "callbacks.checkpoint.init_args.monitor",
    "+callbacks.x.class_path=callbacks.RunLogg": "callbacks.RunLog",
    "+sed=5": "seed_everything",
    "optimizr=sgd": "optimizer",
    "optimizer=sgdd": "sgd",
    "experiment=overfitt": "overfit",
    "objective.metric=val/los": "val/loss",
    "callbacks.checkpoint.init_args.monitor=val/los": "val/loss",
    "+callbacks.run_logg=null": "callbacks.run_log",
}

REFUSED = {
    # a key that is like none
    "+scene.x=1": "unknown key 'scene.x'",
    "+gate.x=1": "unknown key 'gate.x'",
    "+optimizer.x=1": "unknown key 'optimizer.x'",
    "+phases.x=1": r"\+phases.x=1 cannot be set",
    "+model.x=1": "unknown key 'model.x'",
    "+x=1": "unknown key 'x'",
    # a wrong type
    "optimizer.init_args.lr=abc": "optimizer.init_args.lr must be float .*got 'abc'",
    "optimizer.init_args.lr=": "optimizer.init_args.lr must be float .*got ''",
    "scene.sources.n_max=two": "scene.sources.n_max must be int: got 'two'",
    "scene.symbols=pilots": "scene.symbols must be 'pilot' or 'data': got 'pilots'",
    "gate.zero=skp": "gate.zero must be .*got 'skp'",
    "callbacks.checkpoint.init_args.save_last=flase": "save_last must be .*got 'flase'",
    "gate=null": "gate=null cannot be set",
    "trainer.max_epochs=many": "trainer.max_epochs must be int or null: got 'many'",
    "seed_everything=abc": "seed_everything must be bool or int: got 'abc'",
    "+callbacks.x=3": "callbacks.x must be Callback or null: got 3",
    # not a number, or out of range
    "gate.max_norm=nan": "^error: gate.max_norm must be finite: got nan",
    "optimizer.init_args.lr=nan": "lr must be finite: got nan",
    "scene.wavelength_m=inf": "wavelength_m must be finite: got inf",
    "optimizer.init_args.lr=-1": "^error: optimizer.init_args.lr: Invalid learning rate: -1",
    "scene.wavelength_m=-1": "wavelength_m must be finite and positive: got -1",
    "gate.max_consecutive_skips=0": "^error: gate.max_consecutive_skips must be >= 1: got 0",
    # what nobody may import
    "data.class_path=os.system": "data.class_path must lie in one of musicnet, .*got 'os.system'",
    "+callbacks.x.class_path=torch.load": "callbacks.x.class_path must lie .*got 'torch.load'",
    "+callbacks.x.class_path=callbacks.run_log.os.system": "callbacks.x.class_path cannot",
    # what does not go together
    "+trainer.gradient_clip_val=1.0": "Set gate.max_norm",
    "trainer.gradient_clip_val=1.0": "Set gate.max_norm",
    "trainer.accumulate_grad_batches=2": "Set model.init_args.accumulate",
    "trainer.overfit_batches=1e9": "trainer.overfit_batches must be",
    "trainer.num_sanity_val_steps=-2": "trainer.num_sanity_val_steps must be >= -1",
    "trainer.precision=16-true": "trainer.precision must be mixed or 32-true",
    "+trainer.limit_train_batches=0": "trainer.limit_train_batches must be > 0",
    "+trainer.limit_val_batches=0": "objective.metric must be .*nothing is validated",
    "model.init_args.groups=[{name:all,prefixes:[network.backbon]}]": "exactly one group",
    "phases=[{weights:{spectrum:1.0}}]": "a file of .*coherence, joint, staged, trusted",
    "data=recorded": "data.init_args.path must be given",
    "data=recorded data.init_args.path=nothing.npz": "nothing.npz",
    "phases=trusted": "need each other: got network.n_trust=0",
    "experiment=ris phases=joint": "need each other: got network.n_trust=32",
    "experiment=ris scene.sources.snr_of=total": "bounds of their own: got snr_of='total'",
    "experiment=ris scene=ula scene.sources.count_weights=[1,2,4]": "got n_trust=32 .*no surface",
    "experiment=ris scene.sources.n_max=3": "count_weights must hold one .*n_min=1 to n_max=3",
    "phases=calibrated": "got all of .'backbone', 'head'. frozen in phase 0",
    "experiment=ris model.init_args.network.calibrates=true": "got network.calibrates=True",
    "model.init_args.start=riss": "start: .*one of .*got 'riss'. Did you mean 'ris'",
    "experiment=miscalibrated model.init_args.start=ris": "start: .*sizes: got .ris., lacks",
    "model.init_args.network.n_trust=6": "n_trust must be .*multiple of 4: got 6",
    "scene.sources.count_weights=[1,1,-1,1]": "count_weights must hold .*got .1.0, 1.0, -1.0, 1.0",
    "~gate": "gate",
    "optimizer.init_args.lr=${nothing}": "Interpolation key 'nothing' not found",
    "model.init_args.schedule=${oc.env:HOME}": "schedule must not come from the env",
    "threads=0": "threads must be 'auto' or from 1 to 1024: got 0",
    "threads=few": "threads must be int or 'auto': got 'few'",
    "nonsense": "Error parsing override 'nonsense'",
    "trainer.accelerator=gpuu": "gpuu",
}


@pytest.mark.parametrize("word", NEAREST)
def test_a_misspelt_name_is_refused_with_the_nearest_right_one(
    hydra_door: Callable[..., Any], word: str
) -> None:
    answer = hydra_door(word)
    assert answer.exit_code == 1
    assert f"Did you mean '{NEAREST[word]}'?" in answer.err.splitlines()[0]
    assert not answer.new


@pytest.mark.parametrize("words", REFUSED)
def test_bad_values_are_refused_in_one_line_before_anything_is_written(
    hydra_door: Callable[..., Any], words: str, runs: Path
) -> None:
    answer = hydra_door(*words.split())
    assert answer.exit_code == 1
    (line,) = [line for line in answer.err.splitlines() if not line.startswith("Seed set")]
    assert line.startswith("error: ")
    assert re.search(REFUSED[words], line), line
    assert not answer.new


def test_a_stray_key_of_an_experiment_file_is_refused(
    hydra_door: Callable[..., Any], tmp_path: Path
) -> None:
    """Hydra composes it without a word."""
    (tmp_path / "experiment").mkdir()
    stray = tmp_path / "experiment" / "stray.yaml"
    stray.write_text("# @package _global_\nexperiment: stray\nmodle: {init_args: {}}\n")
    answer = hydra_door(f"--config-dir={tmp_path}", "experiment=stray")
    assert answer.exit_code == 1
    assert answer.err == "error: unknown key 'modle'. Did you mean 'model'?\n"
    assert not answer.new


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "the first word must say what to do"),
        (["fitt"], "Did you mean 'fit'?"),
        (["fit", "--model.init_args.acumulate=2"], "Did you mean 'model.init_args.accumulate'?"),
        (["fit", "--trainer.max_epochs=two"], "trainer.max_epochs must be int or null: got 'two'"),
        (["fit", "--seed=3"], "Did you mean 'seed_everything'?"),
        (["fit", "--callbacks.run_logg=null"], "Did you mean 'callbacks.run_log'?"),
        (["test"], "needs trained weights"),
        (["predict", "--ckpt_path=nothing.ckpt"], "ckpt_path must be a local file: got nothing"),
        (["fit", "--model.init_args.scene.wavelength_m=0.2"], "model and data must speak of the"),
    ],
)
def test_the_lightning_door_refuses_as_well(
    lightning: Callable[..., Any], finished_run: Path, words: list[str], reason: str
) -> None:
    verb = words[:1]
    config = ["--config", finished_run / "config.yaml"] if verb and verb != ["fitt"] else []
    before = set(finished_run.parent.iterdir())
    answer = lightning(*verb, *config, *words[1:])
    assert answer.exit_code == 1
    assert answer.err.splitlines()[-1].startswith("error: ")
    assert reason in answer.err
    assert set(finished_run.parent.iterdir()) == before


def test_a_stray_key_of_a_config_file_is_refused(
    lightning: Callable[..., Any], finished_run: Path, tmp_path: Path
) -> None:
    tree = yaml.safe_load((finished_run / "config.yaml").read_text())
    tree["model"]["init_args"]["gate"]["init_args"]["max_nrom"] = 1.0
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    answer = lightning("fit", "--config", tmp_path / "config.yaml")
    assert answer.exit_code == 1
    wanted = "Did you mean 'model.init_args.gate.init_args.max_norm'?"
    assert wanted in answer.err


def test_a_config_file_that_is_no_yaml_is_refused(
    lightning: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text(": : [\n")
    answer = lightning("fit", "--config", tmp_path / "config.yaml")
    assert answer.exit_code == 1
    (line,) = answer.err.splitlines()
    assert "config.yaml is no YAML" in line


@pytest.mark.parametrize("damage", ["cut", "text", "other scene"])
def test_a_checkpoint_that_does_not_fit_is_refused(
    lightning: Callable[..., Any], finished_run: Path, tmp_path: Path, damage: str
) -> None:
    good, bad = finished_run / "checkpoints" / "last.ckpt", tmp_path / "bad.ckpt"
    content = good.read_bytes()
    bad.write_bytes({"cut": content[:-2000], "text": b"weights", "other scene": content}[damage])
    words = []
    if damage == "other scene":
        words = [f"--{part}.init_args.scene.wavelength_m=0.2" for part in ("model", "data")]
    config = finished_run / "config.yaml"
    answer = lightning("test", "--config", config, "--ckpt_path", bad, *words)
    assert answer.exit_code == 1
    (line,) = [line for line in answer.err.splitlines() if line.startswith("error: ")]
    assert ("scene.wavelength_m" if words else "whole checkpoint") in line
