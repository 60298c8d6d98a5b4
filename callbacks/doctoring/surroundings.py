"""What surrounds a run: its folder, its processes, the words that it ends with."""

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy

from musicnet.diagnosis.evidence import Length, Processes, RunEvidence
from musicnet.records import provenance
from musicnet.records.provenance import read_provenance


def run_id_of(folder: Path) -> str | None:
    """Whose folder it is; None if nobody has said."""
    if not (folder / provenance.FILE_NAME).exists():
        return None
    return read_provenance(folder).run_id


def quarrel_of(exception: BaseException) -> str:
    """What a vote of ranks that disagree has said; empty if it was not that."""
    lines = f"{type(exception).__name__}: {exception}".splitlines()
    told = [line for line in lines if "RankMismatchError: " in line]
    return told[-1].partition("RankMismatchError: ")[2] if told else ""


def config_text(folder: Path, module: LightningModule) -> str | None:
    """The configuration of the run, else the hyper-parameters of the module."""
    path = folder / "config.yaml"
    if path.exists():
        return path.read_text(encoding="utf-8")
    return "\n".join(f"{key}: {value}" for key, value in module.hparams.items()) or None


def unwatched(trainer: Trainer) -> RunEvidence:
    """What is known of a run that cannot be watched."""
    return RunEvidence(
        length=Length(steps=trainer.global_step),
        processes=Processes(n=trainer.world_size, is_sharded=True),
        unseen=("weights: they are sharded, no process holds them whole",),
    )


def is_sharded(trainer: Trainer) -> bool:
    """Whether no process holds whole weights; what views of them would show is not theirs."""
    return isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy)
