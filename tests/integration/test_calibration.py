"""From a calibration recording to positions, as a user of one piece of hardware goes."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from musicnet.commands import localize as command

pytestmark = pytest.mark.integration

RECORDING = Path(__file__).parents[1] / "data" / "ris_pilot_48.npz"


@pytest.fixture
def turned(tmp_path: Path) -> Path:
    """The recording as a surface makes it whose cells turn the field by up to a radian each."""
    with np.load(RECORDING) as archive:
        arrays = dict(archive)
    turn = np.exp(1j * np.random.default_rng(0).uniform(-1.0, 1.0, 64))
    # y is what the true G made of the field; what is handed on is G as it was drawn
    arrays["operator"] = (arrays["operator"] * turn.conj()).astype(np.complex64)
    np.savez(tmp_path / "calibration.npz", **arrays)
    return tmp_path / "calibration.npz"


@pytest.mark.slow
def test_a_recording_of_known_sources_calibrates_the_hardware_that_made_it(
    hydra_door: Callable[..., Any], turned: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trained = hydra_door(
        *("experiment=miscalibrated", "data=recorded", f"data.init_args.path={turned}"),
        *("data.init_args.n_scenes=null", "data.init_args.passes_per_epoch=60"),
        "trainer.max_epochs=1",
    )
    assert trained.exit_code == 0, trained.err
    checkpoint = trained.run / "checkpoints" / "last.ckpt"
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    turn = torch.polar(torch.ones(64), state["network.calibration.phase"])
    true = torch.from_numpy(np.exp(1j * np.random.default_rng(0).uniform(-1.0, 1.0, 64)))
    agreement = (turn.conj() * true).mean().abs()
    assert float(agreement) > 0.9  # an untrained one has 0.84
    recording = shutil.copy(turned, tmp_path / "later.npz")
    fit = {}
    for name, words in {"learned": ("--weights", str(checkpoint)), "drawn": ()}.items():
        target = tmp_path / f"{name}.json"
        asked = ("--method", "auto", "--n-sources", "truth", "--output", str(target))
        assert command.run([str(recording), *asked, *words]) == 0
        tree = json.loads(target.read_text(encoding="utf-8"))
        fit[name] = np.mean([scene["log_likelihood"] for scene in tree["scenes"]])
    said = capfd.readouterr().err
    assert "weights: last, calibrated for one piece of hardware\n" in said
    assert fit["learned"] > fit["drawn"]


@pytest.mark.slow
def test_the_benchmark_runs_and_writes_its_figures(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    words = ["benchmarks/miscalibrated.py", "--quick", "--json", str(figures)]
    subprocess.run([sys.executable, *words], cwd=RECORDING.parents[2], check=True)
    tree = json.loads(figures.read_text(encoding="utf-8"))
    methods = {row["method"] for row in tree["rows"]}
    assert {"nomp", "neural", "nomp, true", "neural, 32 task"} <= methods
