"""`preflight=true` behind both doors: what it keeps from training, and that it leaves no trace."""

import functools
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import train
from musicnet.diagnosis.run_files import config_hash_of
from musicnet.learning.module import MusicNet
from musicnet.records.append_log import read_rows
from musicnet.records.provenance import read_provenance

pytestmark = [pytest.mark.integration, pytest.mark.slow]

EASY = ("preflight=true", "preflight_bounds.min_loss_drop=0.01", "preflight_bounds.max_steps=20")


def saved(run: Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return checkpoint


def same(one: Path, other: Path) -> bool:
    """Whether weights, optimiser, rates and gate of two runs are the same to the last bit."""
    names = ("state_dict", "optimizer_states", "lr_schedulers", "step_gate")
    torch.set_printoptions(profile="full", precision=17)
    try:
        return repr([saved(one)[n] for n in names]) == repr([saved(other)[n] for n in names])
    finally:
        torch.set_printoptions(profile="default")


def rows(run: Path) -> list[dict[str, Any]]:
    own = read_rows(run / "metrics.jsonl", run_id=read_provenance(run).run_id)
    return [{key: value for key, value in row.items() if key != "run_id"} for row in own]


def configured(run: Path) -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    return tree | {"trainer": tree["trainer"] | {"default_root_dir": None}}


def verdict(folder: Path) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads((folder / "verdict.json").read_text(encoding="utf-8"))
    return tree


@pytest.fixture
def detached(monkeypatch: pytest.MonkeyPatch) -> None:
    """A MusicNet with a detach between backbone and head."""
    whole = MusicNet.__init__

    @functools.wraps(whole)
    def init(self: MusicNet, *args: Any, **settings: Any) -> None:
        whole(self, *args, **settings)
        self.network.backbone.register_forward_hook(lambda *seen: seen[-1].detach())

    monkeypatch.setattr(MusicNet, "__init__", init)


def test_each_job_of_a_sweep_is_tried_and_trains_as_if_it_had_not_been(
    hydra_door: Callable[..., Any], finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first job is the finished run again; the second one's rate moves nothing."""
    whole = MusicNet.compute_loss

    def compute_loss(self: MusicNet, batch: Any, batch_idx: int) -> Any:
        if Path(self.trainer.default_root_dir).name == "preflight":
            random.random(), np.random.rand(), torch.rand(())  # noqa: NPY002
        return whole(self, batch, batch_idx)

    monkeypatch.setattr(MusicNet, "compute_loss", compute_loss)
    answer = hydra_door("-m", *EASY, "optimizer.init_args.lr=1e-3,1e-9")
    assert answer.exit_code == 3
    assert "preflight: pass (loss " in answer.out
    assert "preflight: fail, nothing is trained. " in answer.out
    by_verdict = {verdict(run / "preflight")["verdict"]: run for run in answer.new}
    trained, kept = by_verdict["pass"], by_verdict["fail"]

    # or resume=auto would find another run with preflight=true than without
    assert (config := configured(trained)) == configured(finished_run)
    assert not {"preflight", "preflight_bounds"} & config.keys()
    assert read_provenance(trained).config_hash == config_hash_of(trained / "config.yaml")
    names = {path.name for path in kept.iterdir()}
    assert names == {"config.yaml", "outcome.json", "preflight", "provenance.json"}
    assert json.loads((kept / "outcome.json").read_text())["exit_code"] == 3
    assert len(rows(trained / "preflight")) > 0
    assert (trained / "preflight" / "report.html").exists()

    assert same(trained, finished_run)
    assert rows(trained) == rows(finished_run)
    known = {"seconds": 0, "run_id": ""}
    assert verdict(trained) | known == verdict(finished_run) | known


def test_the_lightning_door_names_the_first_finding_too(
    lightning: Callable[..., Any], finished_run: Path, runs: Path, detached: None
) -> None:
    config = (*("fit", "--config", finished_run / "config.yaml"),)
    words = ("--preflight", "true", "--preflight_bounds.max_steps", "40")
    answer = lightning(*config, *words, f"--trainer.default_root_dir={runs}")
    assert answer.exit_code == 3
    told = "preflight: fail, nothing is trained. GRAPH_DETACHED in network.backbone: no gradient"
    assert told in answer.out
    assert verdict(answer.run / "preflight")["reasons"][0].startswith("GRAPH_DETACHED in")
    assert not (answer.run / "metrics.jsonl").exists()
    assert "Epoch" not in answer.out  # a line or two, not a whole run's


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("preflight=often",), "preflight must be bool: got 'often'."),
        (("preflight_bounds.max_step=3",), "Did you mean 'preflight_bounds.max_steps'?"),
        (("preflight=true", "trainer=fsdp"), "got trainer.strategy ModelParallelStrategy"),
        (("preflight=true", "objective.metric=val/los"), "Did you mean 'val/loss'?"),
    ],
)
def test_what_cannot_be_tried_is_refused_in_a_line_and_leaves_nothing(
    hydra_door: Callable[..., Any], words: tuple[str, ...], told: str
) -> None:
    answer = hydra_door(*words)
    assert answer.exit_code == 1
    assert answer.err.count("\n") == 1
    assert told in answer.err
    assert answer.new == []


def test_one_process_tries_for_all_ranks(tiny: list[str], tmp_path: Path) -> None:
    words = [word for word in tiny if word not in ("trainer=cpu", "data.init_args.n_scenes=32")]
    words += ["trainer=ddp", "trainer.accelerator=cpu", "data.init_args.n_scenes=64", *EASY]
    for name, more in (("tried", words), ("not", [*words, "preflight=false"])):
        answer = subprocess.run(
            [sys.executable, train.__file__, *more, f"trainer.default_root_dir={tmp_path / name}"],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert answer.returncode == 3, answer.stderr
        assert answer.stdout.count("preflight: pass") == (name == "tried")
    runs = [next((tmp_path / name / "overfit").iterdir()) for name in ("tried", "not")]
    assert rows(runs[0]) == rows(runs[1])
    assert same(*runs)
