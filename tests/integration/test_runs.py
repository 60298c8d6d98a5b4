"""What a run leaves and how it comes back: replay, evaluation, checkpoints, sweeps, exit codes."""

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
import torch
import yaml
from omegaconf import OmegaConf

import train
from musicnet.cli import MusicCLI
from musicnet.learning.data import SceneData
from musicnet.learning.module import MusicNet
from musicnet.records.provenance import hash_config, hash_file, read_provenance

pytestmark = pytest.mark.integration

ROOT = Path(train.__file__).parent
EXPERIMENTS = sorted(path.stem for path in (train.CONF / "experiment").glob("*.yaml"))
LEARNED = (  # bars that any run passes
    "callbacks.overfit_sanity.init_args.min_loss_drop=null",
    "callbacks.overfit_sanity.init_args.min_recall=null",
    "callbacks.overfit_sanity.init_args.max_median_m=null",
)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def command(*words: str | Path) -> list[str]:
    return [sys.executable, *map(str, words)]


@pytest.mark.parametrize("trainer", ["auto", "cpu", "ddp", "fsdp"])
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_and_builds(
    experiment: str, trainer: str, tmp_path: Path
) -> None:
    words = [f"experiment={experiment}", f"trainer={trainer}", "trainer.accelerator=cpu"]
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(train.CONF)):
        cfg = hydra.compose("train", [*words, f"trainer.default_root_dir={tmp_path}"])
    tree = OmegaConf.to_container(cfg, resolve=True)
    with train.console(), train.launch_environment():
        cli = MusicCLI(tree)
    assert isinstance(cli.model, MusicNet)
    assert cli.run_folder is not None
    assert cli.run_folder.parent == tmp_path / experiment


def test_a_run_leaves_what_is_needed_to_know_and_repeat_it(finished_run: Path) -> None:
    left = {path.name for path in finished_run.iterdir()}
    assert left == {
        *("config.yaml", "provenance.json", "train.log", "metrics.jsonl", "checkpoints"),
        *("verdict.json", "outcome.json", "diagnosis.json", "report.html"),
    }
    origin = read_provenance(finished_run)
    config = yaml.safe_load((finished_run / "config.yaml").read_text())
    assert finished_run.name.endswith(f"_{origin.run_id}")
    assert origin.config_hash == hash_config(config)
    assert str(finished_run) not in (finished_run / "config.yaml").read_text()
    rows = map(json.loads, (finished_run / "metrics.jsonl").read_text().splitlines())
    assert {row["run_id"] for row in rows} == {origin.run_id}
    assert json.loads((finished_run / "verdict.json").read_text())["run_id"] == origin.run_id
    said = (finished_run / "train.log").read_text().splitlines()
    assert said[-2].startswith("verdict: fail (recall ")
    assert said[-1].startswith("run: ")
    saved = {path.name for path in (finished_run / "checkpoints").iterdir()}
    assert saved == {"last.ckpt", "previous.ckpt", "best-epoch=001.ckpt", "manifest.json"}
    assert json.loads((finished_run / "outcome.json").read_text()) == {
        "run_id": origin.run_id,
        "exit_code": 3,
    }


def test_a_replay_without_hydra_gives_the_same_weights_to_the_last_bit(
    lightning: Callable[..., Any], finished_run: Path, runs: Path
) -> None:
    config = finished_run / "config.yaml"
    answer = lightning("fit", "--config", config, f"--trainer.default_root_dir={runs}")
    assert answer.exit_code == 3
    assert same(weights(answer.run), weights(finished_run))
    losses = [
        json.loads((run / "verdict.json").read_text())["loss_last"]
        for run in (answer.run, finished_run)
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_a_run_is_evaluated_from_its_own_config(
    lightning: Callable[..., Any], finished_run: Path, runs: Path, verb: str
) -> None:
    before = sorted(finished_run.parent.rglob("*"))
    answer = lightning(
        verb,
        *("--config", finished_run / "config.yaml"),
        *("--ckpt_path", finished_run / "checkpoints" / "last.ckpt"),
        f"--trainer.default_root_dir={runs}",
    )
    assert answer.exit_code == 0
    assert answer.err == ""
    assert sorted(finished_run.parent.rglob("*")) == before
    if verb == "predict":
        predictions = np.load(answer.run / "predictions.npz")
        assert predictions["xyz_m"].shape == (64, 4, 3)
        assert np.isfinite(predictions["xyz_m"][predictions["resolved"]]).all()
    else:
        assert not answer.new
        assert {"validate": "val/recall", "test": "test/recall"}[verb] in answer.out


def test_validation_finds_the_loss_that_training_ended_with(
    lightning: Callable[..., Any], finished_run: Path
) -> None:
    last = json.loads((finished_run / "verdict.json").read_text())["loss_last"]
    config, ckpt = finished_run / "config.yaml", finished_run / "checkpoints" / "last.ckpt"
    answer = lightning("validate", "--config", config, "--ckpt_path", ckpt)
    (found,) = re.findall(r"val/loss\D+([\d.]+)", answer.out)
    assert float(found) == pytest.approx(last, rel=1e-5)


def test_a_checkpoint_builds_its_module_again(finished_run: Path) -> None:
    checkpoint = finished_run / "checkpoints" / "last.ckpt"
    module = MusicNet.load_from_checkpoint(checkpoint, weights_only=True)
    assert same(dict(module.state_dict()), weights(finished_run))
    assert module.network.backbone is not None
    assert [group.rate_scale for group in module.parameter_groups] == [1.0, 4.0]


def test_each_line_is_printed_once_and_as_it_is(hydra_door: Callable[..., Any]) -> None:
    lines = hydra_door().out.splitlines()
    assert [line for line in lines if line.startswith("[LR]")] == [
        "[LR] epoch=1 groups=['backbone', 'head'] lr=[0.001, 0.004]",
        "[LR] epoch=2 groups=['backbone', 'head'] lr=[0.000505, 0.00202]",
    ]
    for beginning in (
        "[GRAD] ||g||_2=",
        "[STEP] Δparam ||·||₂ = ",
        "Epoch 001/002 [phase=0] train ",
    ):
        assert len([line for line in lines if line.startswith(beginning)]) == 1
    assert len([line for line in lines if "GPU available" in line]) == 1
    assert not [line for line in lines if "litlogger" in line]
    assert lines[-2].startswith("verdict: fail (recall ")
    assert lines[-1].startswith("run: ")


@pytest.mark.parametrize(
    ("words", "exit_code"),
    [
        (LEARNED, 0),
        ((), 3),
        (("trainer.num_sanity_val_steps=0",), 4),
        # a rate that throws the weights beyond float32, so that the second gradient is no number
        (
            (
                "optimizer.init_args.lr=1e+30",
                "gate.max_consecutive_skips=1",
                "trainer.max_epochs=4",
            ),
            5,
        ),
    ],
)
def test_the_exit_code_tells_how_it_ended(
    hydra_door: Callable[..., Any], words: tuple[str, ...], exit_code: int
) -> None:
    answer = hydra_door(*words)
    assert answer.exit_code == exit_code
    assert (answer.run / "verdict.json").exists()


@pytest.mark.parametrize(
    ("value", "reason"), [(float("nan"), "nonfinite"), (float("inf"), "nonfinite")]
)
def test_a_run_on_broken_data_ends_with_the_reason(
    hydra_door: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, value: float, reason: str
) -> None:
    load = SceneData.load

    def spoilt(self: SceneData, *arguments: Any) -> Any:
        batch = load(self, *arguments)
        heard = tuple(replace(one, y=one.y * value) for one in batch.observations)
        return replace(batch, observations=heard)

    monkeypatch.setattr(SceneData, "load", spoilt)
    words = ("trainer.max_epochs=100", "gate.max_consecutive_skips=6")
    answer = hydra_door(*words, "trainer.num_sanity_val_steps=0", "callbacks.checkpoint=null")
    assert answer.exit_code == 5
    assert f"got 7 vetoes in a row, the last for reason={reason}, after 0 real steps" in answer.out
    assert json.loads((answer.run / "verdict.json").read_text())["verdict"] == "unknown"


def test_a_run_that_trains_nothing_is_not_taken_for_one_that_has_learned(
    hydra_door: Callable[..., Any],
) -> None:
    assert hydra_door("trainer.max_epochs=0").exit_code == 4


def test_a_verdict_stands_though_the_objective_was_never_logged(
    hydra_door: Callable[..., Any],
) -> None:
    words = ("objective.metric=train/los", "callbacks.checkpoint=null")
    answer = hydra_door(*words, "callbacks.savepoints=null", "trainer.max_epochs=1")
    assert answer.exit_code == 3
    assert "got 'train/los'. Did you mean 'train/loss'?" in answer.out
    assert not (answer.run / "checkpoints").exists()  # nobody else saves instead


def test_an_objective_that_no_validation_logs_ends_the_run_at_the_first(
    hydra_door: Callable[..., Any],
) -> None:
    answer = hydra_door("objective.metric=val/los", "trainer.num_sanity_val_steps=0")
    assert answer.exit_code == 1
    assert "Did you mean 'val/loss'?" in answer.err
    assert "Epoch 001/" not in answer.out
    assert answer.run.exists()  # it has trained


def test_a_sweep_runs_every_job_in_a_folder_of_its_own(
    hydra_door: Callable[..., Any], finished_run: Path
) -> None:
    """The second job cannot be built; the third is the finished run again."""
    answer = hydra_door(
        "-m", "seed_everything=1,0", "optimizer.init_args.lr=1e-3,abc", *LEARNED[1:]
    )
    assert answer.exit_code == 3  # the worst: two that failed their bar, two that were refused
    assert answer.err.count("error: optimizer.init_args.lr must be float") == 2
    assert len(answer.new) == 2
    seeds = [
        yaml.safe_load((run / "config.yaml").read_text())["seed_everything"] for run in answer.new
    ]
    assert sorted(seeds) == [0, 1]
    by_seed = dict(zip(seeds, answer.new, strict=True))
    assert same(weights(by_seed[0]), weights(finished_run))
    assert not same(weights(by_seed[1]), weights(finished_run))


def test_a_job_returns_its_objective_whatever_its_verdict(
    hydra_door: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    returned: list[Any] = []
    main = hydra.main

    def recording_main(**options: Any) -> Any:
        def decorate(job: Any) -> Any:
            def recorded(cfg: Any) -> Any:
                returned.append(job(cfg))
                return returned[-1]

            return main(**options)(recorded)

        return decorate

    monkeypatch.setattr(hydra, "main", recording_main)
    answer = hydra_door("objective.metric=val/recall", "objective.mode=max")
    verdict = json.loads((answer.run / "verdict.json").read_text())
    assert answer.exit_code == 3
    assert returned == [pytest.approx(verdict["recall"])]


def test_a_job_leaves_the_process_as_it_found_it(hydra_door: Callable[..., Any]) -> None:
    logger = logging.getLogger("lightning")
    before = (dict(os.environ), list(sys.argv), list(logger.handlers), logger.propagate)
    before[0].setdefault("HYDRA_FULL_ERROR", "1")
    hydra_door()
    current = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"}
    before[0].pop("PYTEST_CURRENT_TEST")
    assert (current, sys.argv, logger.handlers, logger.propagate) == before


def test_two_ranks_share_one_folder_and_a_sweep_starts_them_for_each_job(
    tiny: list[str], tmp_path: Path
) -> None:
    tiny.remove("trainer=cpu")
    tiny.remove("data.init_args.n_scenes=32")
    words = ["-m", *tiny, "trainer=ddp", "trainer.accelerator=cpu", "data.init_args.n_scenes=64"]
    words += ["seed_everything=0,1", f"trainer.default_root_dir={tmp_path}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    answer = subprocess.run(
        command(ROOT / "train.py", *words),
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert answer.returncode == 3, answer.stderr
    assert len([*tmp_path.glob("overfit/*")]) == 2
    assert len([*tmp_path.glob("sweeps/*")]) == 1
    assert answer.stdout.count("verdict: fail") == 2
    for line in ("[LR] epoch=1", "[GRAD]", "Epoch 001/002", "Epoch 002/002", "Run "):
        assert answer.stdout.count(f"\n{line}") == 2, line  # once a job, not once a rank
    for folder in tmp_path.glob("overfit/*"):
        rows = [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [row["epoch"] for row in rows if row["event"] == "epoch"] == [1, 2]
        assert {row["run_id"] for row in rows} == {read_provenance(folder).run_id}


@pytest.mark.slow
@pytest.mark.parametrize("door", ["hydra", "lightning"])
def test_what_all_ranks_refuse_is_said_once_and_in_one_line(
    door: str, finished_run: Path, tmp_path: Path
) -> None:
    """Only when the weights are to be shared out does it show that an average needs them whole."""
    words: list[str | Path] = [ROOT / "train.py", "experiment=overfit", "trainer=fsdp"]
    settings = ["trainer.accelerator=cpu", f"trainer.default_root_dir={tmp_path / 'runs'}"]
    words += [*settings, "model.init_args.averaging={kind: ema}"]
    if door == "lightning":
        tree = yaml.safe_load((finished_run / "config.yaml").read_text())
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(train.CONF)):
            cfg = hydra.compose("train", ["trainer=fsdp"])
        tree["trainer"] |= OmegaConf.to_container(cfg.trainer, resolve=True)
        tree["model"]["init_args"]["averaging"] = {"kind": "ema"}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
        words = ["-m", "musicnet", "fit", "--config", tmp_path / "config.yaml"]
        words += [f"--{setting}" for setting in settings]
    answer = subprocess.run(
        command(*words),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert answer.returncode == 1
    assert answer.stderr.startswith("error: an average of the weights needs them whole on every")
    assert answer.stderr.count("\n") == 1
    assert not [*tmp_path.glob("runs/*/*")]


def test_a_recorded_file_is_memorised_by_the_same_experiment(
    hydra_door: Callable[..., Any], lightning: Callable[..., Any]
) -> None:
    recording = ROOT / "tests" / "data" / "ris_pilot_48.npz"
    fitted = hydra_door("data=recorded", f"data.init_args.path={recording}", *LEARNED)
    assert fitted.exit_code == 0
    assert read_provenance(fitted.run).data_hash == hash_file(recording)
    config, ckpt = fitted.run / "config.yaml", fitted.run / "checkpoints" / "last.ckpt"
    tested = lightning("test", "--config", config, "--ckpt_path", ckpt)
    assert tested.exit_code == 0
    assert "test/recall" in tested.out


def test_a_recorded_file_trains_the_default_experiment_trust_included(
    hydra_door: Callable[..., Any],
) -> None:
    """What only simulated data know, as the length of an epoch, must not be in the way."""
    recording = ROOT / "tests" / "data" / "ris_pilot_48.npz"
    answer = hydra_door(
        *("experiment=ris", "data=recorded", f"data.init_args.path={recording}"),
        *("trainer.max_epochs=1", *LEARNED),
    )
    assert answer.exit_code == 0, answer.err
    assert any("head.trust" in name for name in weights(answer.run))


def test_a_recorded_line_is_trained_on_by_the_ula_experiment(
    hydra_door: Callable[..., Any],
) -> None:
    recording = ROOT / "tests" / "data" / "ula_far_24.npz"
    answer = hydra_door(
        *("experiment=ula", "data=recorded", f"data.init_args.path={recording}"),
        *("data.init_args.n_scenes=24", "scene.wavelength_m=1.0", "trainer.max_epochs=1"),
        *("scene.sources.azimuth_deg=[-90, 90]", "scene.n_snapshots=50"),
    )
    assert answer.exit_code == 0


@pytest.mark.parametrize(
    "experiment",
    # examples of two tasks behind the surface take as long as all else: one is enough by default
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name == "ris_data_symbols"))
        for name in EXPERIMENTS
    ],
)
def test_a_few_batches_of_any_experiment_are_repeated_and_judged(
    hydra_door: Callable[..., Any], experiment: str
) -> None:
    words = (f"experiment={experiment}", "trainer.overfit_batches=1")
    answer = hydra_door(*words, "data.init_args.n_scenes=null", "trainer.max_epochs=3")
    assert answer.exit_code == 3  # three steps do not memorise, but the loss falls
    verdict = json.loads((answer.run / "verdict.json").read_text())
    assert verdict["steps"] == 3
    assert verdict["val_last"] < verdict["val_first"]


@pytest.mark.gpu
def test_the_overfit_experiment_passes_on_a_gpu(runs: Path) -> None:
    words = ["experiment=overfit", "trainer=gpu", f"trainer.default_root_dir={runs}"]
    assert train.run(words) == 0
