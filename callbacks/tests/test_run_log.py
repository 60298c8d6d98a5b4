import json
import logging
import math
import re
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from callbacks import GradientNorm, RunLog
from musicnet.gate.schedules import Schedule
from musicnet.records.append_log import read_rows
from musicnet.records.provenance import collect_provenance, read_provenance

LINE = re.compile(r"Epoch (\d{3})/(\d{3}) \[phase=0\] train (\d+\.\d{6})  val (\d+\.\d{6})")


def rows_of(folder: Path) -> list[dict]:
    return read_rows(folder / "metrics.jsonl", run_id=read_provenance(folder).run_id)


class Metrics(Callback):
    def __init__(self) -> None:
        self.epochs = []

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        metrics = trainer.callback_metrics
        self.epochs.append([float(metrics[key]) for key in ("train/loss", "val/loss")])


@pytest.mark.parametrize("kind", ["gated", "plain"])
def test_the_epoch_line_shows_this_epoch_s_losses(kind, request, fit, lines) -> None:
    metrics = Metrics()
    fit(request.getfixturevalue(kind)(), RunLog(), metrics, max_epochs=3)
    shown = [LINE.fullmatch(line).groups() for line in lines("Epoch")]
    wanted = [
        (f"{epoch:03d}", "003", f"{train:.6f}", f"{val:.6f}")
        for epoch, (train, val) in enumerate(metrics.epochs, start=1)
    ]
    assert shown == wanted


def test_the_line_names_the_module_s_phase(gated, fit, lines) -> None:
    module = gated()
    module.phase_index = 2
    fit(module, RunLog())
    assert lines("Epoch 001/001 [phase=2] train ")


def test_an_epoch_without_validation_shows_none_and_keeps_no_older_one(
    gated, fit, lines, tmp_path
) -> None:
    fit(gated(), RunLog(), max_epochs=3, check_val_every_n_epoch=2)
    assert ["  val " in line for line in lines("Epoch")] == [False, True, False]
    epochs = [row for row in rows_of(tmp_path) if row["event"] == "epoch"]
    assert ["val/loss" in row for row in epochs] == [False, True, False]


def test_an_epoch_without_a_real_step_does_not_show_an_older_loss(
    gated, fit, lines, tmp_path
) -> None:
    fit(gated(poisoned=set(range(8, 16))), RunLog(), max_epochs=2)
    first, second = lines("Epoch")
    assert "train nan" not in first
    assert "train nan" in second
    vetoes = [row for row in rows_of(tmp_path) if row["event"] == "veto"]
    assert [row["batch"] for row in vetoes] == list(range(9, 17))
    assert {row["reason"] for row in vetoes} == {"nonfinite"}


def test_no_training_metric_of_an_older_epoch_is_shown(gated, fit, tmp_path) -> None:
    module = gated(poisoned=set(range(8, 16)))
    compute_loss = module.compute_loss
    module.compute_loss = lambda *batch: {"loss": (loss := compute_loss(*batch)), "twice": 2 * loss}
    fit(module, RunLog(), max_epochs=2)
    first, second = [row for row in rows_of(tmp_path) if row["event"] == "epoch"]
    assert first["train/twice"] == pytest.approx(2 * first["train/loss"])
    assert math.isnan(second["train/loss"])
    assert math.isnan(second["train/twice"])
    assert second["gate/vetoed_fraction"] == 1


def test_rows_carry_the_run_and_both_axes(gated, fit, tmp_path) -> None:
    fit(gated(poisoned={2}), RunLog(every_n=4), max_epochs=1)
    rows = rows_of(tmp_path)
    axes = [(row["event"], row["batch"], row["step"]) for row in rows]
    assert axes == [("step", 1, 1), ("veto", 3, 2), ("step", 5, 4), ("epoch", 8, 7)]
    assert rows[0]["optim/lr/head"] == pytest.approx(0.2)
    assert len({row["run_id"] for row in rows}) == 1


def test_it_takes_the_provenance_that_the_folder_has(gated, fit, tmp_path) -> None:
    collect_provenance(run_id="c0ffee00").write(tmp_path)
    fit(gated(), RunLog())
    assert {row["run_id"] for row in rows_of(tmp_path)} == {"c0ffee00"}


def test_without_one_it_writes_its_own(gated, fit, tmp_path) -> None:
    fit(gated(), RunLog())
    origin = read_provenance(tmp_path)
    assert origin.versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert origin.device == "cpu"


def test_two_runs_never_share_a_folder(gated, fit, tmp_path) -> None:
    fit(gated(), RunLog())
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match=f"got {re.escape(str(tmp_path))}, which has the log"):
        fit(gated(), RunLog())
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


@pytest.mark.filterwarnings("ignore:the schedule is laid out for total_steps")
def test_a_resumed_run_goes_on_with_its_own_log(gated, fit, tmp_path) -> None:
    schedule = Schedule(warmup_steps=0, shape="constant", total_steps=16)
    trainer = fit(gated(schedule=schedule), RunLog(), max_epochs=1)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    fit(gated(schedule=schedule), RunLog(), max_epochs=2, ckpt_path=tmp_path / "last.ckpt")
    epochs = [row["epoch"] for row in rows_of(tmp_path) if row["event"] == "epoch"]
    assert epochs == [1, 2]


def test_the_text_log_has_the_lines_of_the_other_callbacks_too(gated, fit, tmp_path) -> None:
    logging.getLogger("callbacks").setLevel(logging.NOTSET)
    handlers = list(logging.getLogger().handlers)
    fit(gated(), RunLog(), GradientNorm())
    text = (tmp_path / "train.log").read_text(encoding="utf-8").splitlines()
    assert [line.split(" ")[0] for line in text] == ["Run", "[GRAD]", "Epoch"]
    assert logging.getLogger().handlers == handlers
    assert logging.getLogger("callbacks").level == logging.NOTSET


def test_an_exception_leaves_a_row_and_no_open_file(gated, fit, tmp_path) -> None:
    class Failing(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            raise RuntimeError("the disk is on fire")

    handlers = list(logging.getLogger().handlers)
    with pytest.raises(RuntimeError, match="on fire"):
        fit(gated(), RunLog(), Failing())
    assert rows_of(tmp_path)[-1]["message"] == "the disk is on fire"
    assert logging.getLogger().handlers == handlers


def test_a_metric_cannot_take_the_name_of_an_axis(gated, fit, tmp_path) -> None:
    module = gated()
    module.on_train_epoch_start = lambda: module.log("batch", 12345.0)
    fit(module, RunLog())
    epoch = rows_of(tmp_path)[-1]
    assert (epoch["event"], epoch["batch"]) == ("epoch", 8)


def test_every_line_of_the_log_is_json_that_any_program_reads(gated, fit, tmp_path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    fit(gated(poisoned={0}), RunLog())
    for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        json.loads(line, parse_constant=refuse)
