"""Builds a run from configuration: module, data, callbacks and trainer, or one line why not.

A nested dict or a list of command-line arguments comes in. The signatures of the classes that it
names are the schema; nothing is written before everything is built.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentError, set_parsing_settings
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from typing_extensions import override

from musicnet.cli.objective import MetricWatch
from musicnet.cli.preflight_bounds import PreflightBounds, check_preflight
from musicnet.cli.refusals import (
    ALLOWED_IMPORTS,
    ConfigurationError,
    nonfinite,
    one_line,
    with_key,
)
from musicnet.cli.resumption import TakenUp, Wanted, take_up
from musicnet.cli.schema import (
    ACCEPTED,
    DEFAULTS,
    OWN_ARGUMENTS,
    SHARED,
    callbacks_in_files,
    check_switched_off,
    fault_in_tree,
    fault_in_words,
    shared_first,
)
from musicnet.cli.threads import settle_threads
from musicnet.cli.trained_weights import differences, fitting_checkpoint
from musicnet.cli.trainer_settings import trainer_fault
from musicnet.gate.checkpoint_files import WholeCheckpoints
from musicnet.gate.gated_module import GatedModule
from musicnet.gate.savepoints import Savepoints
from musicnet.learning.data import RecordedData
from musicnet.records.atomic_files import write_text
from musicnet.records.run_folder import make_run_folder, new_run_id
from musicnet.records.run_lock import RunLock

Verb = Literal["fit", "validate", "test", "predict"]
_VERBS_WITH_FOLDER: tuple[Verb, ...] = ("fit", "predict")


class SaveRunConfig(SaveConfigCallback):
    """Leaves `config.yaml`, resolved and replayable, in the run folder of a fit."""

    @override
    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write it."""
        if stage == "fit":
            content = self.parser.dump(self.config, skip_unset=False)
            write_text(Path(trainer.default_root_dir) / self.config_filename, content)


class MusicCLI(LightningCLI):
    """A LightningCLI that builds and does not run: `musicnet.cli.run_verb` does.

    Args:
        args: the whole tree, or command-line arguments without the verb.
        verb: what shall be run; what leaves files gets a run folder below
            `trainer.default_root_dir`.
        run_folder: a folder that is there already: another rank of this run has made it.
        checkpoint: what that rank goes on from, if the run is taken up again.

    Attributes:
        taken_up: the run that goes on in its own folder; None in a new run.
        checkpoint: what the run starts from; None starts anew.
        start: the checkpoint that it was told to start from, in a folder of its own.
        savepoints: the callback that saves.
        preflight: what goes before training; None trains at once.

    Raises:
        ConfigurationError: something in `args` cannot be run; one line says what.
    """

    def __init__(
        self,
        args: Mapping[str, Any] | Sequence[str],
        verb: Verb = "fit",
        run_folder: Path | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        self.verb = verb
        self.run_folder = run_folder
        self.checkpoint = checkpoint
        self.start: Path | None = None
        self.run_id = new_run_id()
        self.taken_up: TakenUp | None = None
        self.savepoints: Savepoints | None = None
        self.preflight: PreflightBounds | None = None
        self._resume: str | None = None
        self._lock: RunLock | None = None
        self.watch: MetricWatch | None = None
        self._tree = shared_first(args) if isinstance(args, Mapping) else {}
        set_parsing_settings(
            import_path_denylist=["*"], import_path_allowlist=list(ALLOWED_IMPORTS)
        )
        with contextlib.ExitStack() as refused:
            refused.callback(self.release)  # a run that was taken up is nobody's again
            try:
                super().__init__(
                    GatedModule,
                    LightningDataModule,
                    save_config_callback=SaveRunConfig,
                    save_config_kwargs={"save_to_log_dir": False},
                    subclass_mode_model=True,
                    subclass_mode_data=True,
                    parser_kwargs={"exit_on_error": False, "allow_abbrev": False},
                    args=dict(args) if isinstance(args, Mapping) else list(args),
                    run=False,
                    auto_configure_optimizers=False,
                )
            except ConfigurationError:
                raise
            except (ValueError, TypeError, OSError, MisconfigurationException) as error:
                raise ConfigurationError(with_key(one_line(error), self._tree)) from error
            refused.pop_all()

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Declare what a run has beside trainer, model and data."""
        for name, kind in OWN_ARGUMENTS.items():
            parser.add_argument(f"--{name}", type=kind, default=DEFAULTS.get(name))

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; say what is wrong before a seed is set or anything is built."""
        try:
            if isinstance(args, dict):
                own = {key: value for key, value in args.items() if key not in SHARED}
                self.config = parser.parse_object(own)
            else:
                self.config = parser.parse_args(args)
        except ArgumentError as error:
            fault = fault_in_tree(args) if isinstance(args, dict) else fault_in_words(args)
            raise ConfigurationError(fault or one_line(error)) from None
        # The parser overlooks a stray key that has an empty mapping.
        stray = set(args) - {*SHARED, *ACCEPTED} if isinstance(args, dict) else ()
        self._tree = self._tree or self.config.as_dict()
        for fault in (
            fault_in_tree(args) if stray else None,
            nonfinite(self._tree),
            nonfinite(self.config.as_dict()),  # text may have become a number
        ):
            if fault:
                raise ConfigurationError(fault)
        # How a run is started is no part of what it is: a resumed one is the same run.
        self._resume, self.config["resume"] = self.config.resume, None
        start, self.config["ckpt_path"] = self.config.ckpt_path, None
        if self.run_folder is None and start is not None:
            self.checkpoint, self.start = Path(start), Path(start).absolute()
        self._take_preflight()
        callbacks = self.config.callbacks or {}
        if not isinstance(args, dict) and None in callbacks.values():
            check_switched_off(callbacks, callbacks_in_files(args))

    def _take_preflight(self) -> None:
        """Take it out of the configuration, whose hash tells which run is which."""
        asked, bounds = self.config.pop("preflight"), self.config.pop("preflight_bounds")
        if asked and self.verb != "fit":
            raise ConfigurationError(
                f"preflight goes before training: got preflight=true for {self.verb}. Leave it out."
            )
        checked = PreflightBounds(**({} if bounds is None else bounds.as_dict()))
        self.preflight = checked if asked else None

    @override
    def before_instantiate_classes(self) -> None:
        """Refuse what no single class can see."""
        if fault := trainer_fault(self.config.trainer.as_dict()):
            raise ConfigurationError(fault)
        self._dump_config()
        model, data = self.config_dump["model"], self.config_dump["data"]
        scenes: list[Any] = [(part.get("init_args") or {}).get("scene") for part in (model, data)]
        if None not in scenes and scenes[0] != scenes[1]:
            raise ConfigurationError(
                "model and data must speak of the same scene: got different ones "
                f"({', '.join(differences(*scenes))}). Set scene once, for both."
            )
        if self.verb == "fit" and self._resume is not None:
            self._take_up(self._resume)
        held = None
        if self.checkpoint is not None:
            held = fitting_checkpoint(self.checkpoint, model, resumes=self.verb == "fit")
        elif self.verb != "fit":
            raise ConfigurationError(
                f"{self.verb} needs trained weights: got no checkpoint. "
                "Add --ckpt_path <run>/checkpoints/last.ckpt."
            )
        saved = held if self.verb == "fit" else None
        settle_threads(self.config.threads, self.config.trainer.devices, saved)

    def _take_up(self, word: str) -> None:
        """Go on in the folder of a run that was broken off, if there is one."""
        root = Path(self.config.trainer.default_root_dir or "runs").absolute()
        wanted = Wanted(self.config.experiment, self.config_dump, self.start)
        self.taken_up = take_up(word, root, wanted)
        if self.taken_up is not None:
            self.run_folder, self._lock = self.taken_up.folder, self.taken_up.lock
            self.run_id = self.taken_up.origin.run_id
            self.checkpoint = self.taken_up.checkpoint or self.taken_up.start

    def _check_data(self) -> None:
        """Refuse to go on with a recording that is not the one that the run began with."""
        if self.taken_up is None or not isinstance(self.datamodule, RecordedData):
            return
        before, now = self.taken_up.origin.data_hash, self.datamodule.recording.sha256
        if before != now:
            raise ConfigurationError(
                f"data.init_args.path must be the file that the run began with: got "
                f"{self.datamodule.path} with sha256 {now}, not {before}. Restore it."
            )

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Give the trainer the callbacks and the run its folder."""
        # A file that does not fit is found now, before there is a folder. Lightning does it again.
        self.datamodule.setup(self.verb)
        self._check_data()
        chosen = self.config_init["callbacks"] or {}
        callbacks = [callback for callback in chosen.values() if callback is not None]
        if self.verb != "fit":
            # No weights are saved, so nobody shall look for a place to save them.
            callbacks = [entry for entry in callbacks if not isinstance(entry, Checkpoint)]
            kwargs["enable_checkpointing"] = False
        else:
            self.watch = MetricWatch(self._awaited_metrics(chosen))
            callbacks.insert(0, self.watch)
            found = [entry for entry in callbacks if isinstance(entry, Savepoints)]
            # without any, a signal must find somebody who saves all the same
            self.savepoints = found[0] if found else Savepoints(None, None, only_on_request=True)
            callbacks += [] if found else [self.savepoints]
            if not any(isinstance(entry, Checkpoint) for entry in callbacks):
                # else Lightning puts one of its own in the place of one that was switched off
                kwargs["enable_checkpointing"] = bool(self.config.trainer.enable_checkpointing)
        plugins = self.config_init.trainer.get("plugins") or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        kwargs["plugins"] = [*plugins, WholeCheckpoints()]
        if self.verb not in _VERBS_WITH_FOLDER:
            return super().instantiate_trainer(**kwargs, callbacks=callbacks)
        with self._new_folder() as folder:
            for callback in callbacks:
                if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                    callback.dirpath = str(folder / "checkpoints")
            trainer = super().instantiate_trainer(
                **kwargs, callbacks=callbacks, default_root_dir=folder
            )
            if self.preflight is not None:
                check_preflight(trainer, self.model)
            return trainer

    def _awaited_metrics(self, chosen: Mapping[str, Any]) -> dict[str, str]:
        """Metric by the key that names it: the objective, and what callbacks monitor."""
        objective = self.config_init["objective"]
        metrics = {} if objective is None else {"objective.metric": objective.metric}
        for name, callback in chosen.items():
            if isinstance(monitor := getattr(callback, "monitor", None), str):
                metrics[f"callbacks.{name}.init_args.monitor"] = monitor
        return metrics

    @contextlib.contextmanager
    def _new_folder(self) -> Iterator[Path]:
        """The run's folder; gone again if the trainer cannot be built."""
        if self.run_folder is not None:
            yield self.run_folder
            return
        root = self.config.trainer.default_root_dir or "runs"
        now = datetime.now().astimezone()
        folder = make_run_folder(Path(root).absolute(), self.config.experiment, now, self.run_id)
        self._lock = RunLock(folder)
        try:
            yield folder
        except BaseException:
            folder.rmdir()
            raise
        self.run_folder = folder

    def keep_config(self) -> None:
        """Leave `config.yaml`, as a fit does when it begins."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, SaveRunConfig):
                callback.save_config(self.trainer, self.model, "fit")

    def release(self) -> None:
        """Let other processes have the run folder."""
        if self._lock is not None:
            self._lock.release()
