"""A run so small that every door can be tried, and the doors themselves as functions."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

import train
from musicnet import __main__ as lightning_door

TINY = (
    "experiment=overfit",
    "trainer=cpu",
    "trainer.max_epochs=2",
    "trainer.enable_progress_bar=false",
    "trainer.enable_model_summary=false",
    "data.init_args.n_scenes=32",
    "data.init_args.passes_per_epoch=1",
    "data.init_args.n_val=64",
    "model.init_args.network={n_channels: 4, dilations: [1], n_v: 5, n_u: 7, n_rho: 3}",
    "model.init_args.start=null",
)


class Answer(NamedTuple):
    """What a door gave back: exit code, what it said, and the run folders that it made."""

    exit_code: int
    out: str
    err: str
    new: list[Path]

    @property
    def run(self) -> Path:
        (folder,) = self.new
        return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def tiny() -> list[str]:
    return list(TINY)


@pytest.fixture
def hydra_door(runs: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """`python train.py` with a tiny run's overrides before those that are given."""

    def ask(*words: str) -> Answer:
        replaced = {word.partition("=")[0] for word in words}
        if "data=recorded" in words:
            replaced.add("data.init_args.n_val")  # a file has no scenes of its own to validate on
        tiny = [word for word in TINY if word.partition("=")[0] not in replaced]
        argv = [*tiny, f"trainer.default_root_dir={runs}", *words]
        argv.sort(key=lambda word: not word.startswith("-"))  # Hydra takes flags in one place only
        return _ask(lambda: train.run(argv), runs, capfd)

    return ask


@pytest.fixture
def lightning(runs: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """`python -m musicnet` with the words that are given."""
    return lambda *words: _ask(lambda: lightning_door.run([*map(str, words)]), runs, capfd)


def _ask(door: Callable[[], int], runs: Path, capfd: pytest.CaptureFixture[str]) -> Answer:
    before = set(runs.glob("*/*"))
    capfd.readouterr()
    exit_code = door()
    said = capfd.readouterr()
    made = sorted(set(runs.glob("*/*")) - before)
    return Answer(exit_code, said.out, said.err, [f for f in made if f.parent.name != "sweeps"])


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one tiny run that came to its end; not to be written on."""
    runs = tmp_path_factory.mktemp("finished") / "runs"
    train.run([*TINY, f"trainer.default_root_dir={runs}"])
    (folder,) = runs.glob("overfit/*")
    return folder


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two epochs of four batches, saved after each; not to be written on."""
    runs = tmp_path_factory.mktemp("whole") / "runs"
    words = [word for word in TINY if "passes_per_epoch" not in word]
    saving = "callbacks.savepoints.init_args.every_n_batches=1"
    train.run(
        [*words, saving, "data.init_args.passes_per_epoch=4", f"trainer.default_root_dir={runs}"]
    )
    (folder,) = runs.glob("overfit/*")
    return folder
