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

from musicnet.cli.objective import ObjectiveWatch
from musicnet.cli.refusals import ALLOWED_IMPORTS, ConfigurationError, nonfinite, one_line
from musicnet.cli.schema import ACCEPTED, OWN_ARGUMENTS, SHARED, fault_in_tree, fault_in_words
from musicnet.cli.trained_weights import check_checkpoint, differences
from musicnet.gate.gated_module import GatedModule
from musicnet.records.atomic_files import write_text
from musicnet.records.run_folder import make_run_folder, new_run_id

Verb = Literal["fit", "validate", "test", "predict"]
_VERBS_WITH_FOLDER: tuple[Verb, ...] = ("fit", "predict")


class SaveRunConfig(SaveConfigCallback):
    """Leaves `config.yaml`, resolved and replayable, in the run folder of a fit."""

    @override
    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write it; a checkpoint that this fit went on from is no part of it."""
        if stage == "fit":
            config = self.config.clone()
            config["ckpt_path"] = None
            content = self.parser.dump(config, skip_unset=False)
            write_text(Path(trainer.default_root_dir) / self.config_filename, content)


class MusicCLI(LightningCLI):
    """A LightningCLI that builds and does not run: `musicnet.cli.run_verb` does.

    Args:
        args: the whole tree, or command-line arguments without the verb.
        verb: what shall be run; what leaves files gets a run folder below
            `trainer.default_root_dir`.
        run_folder: a folder that is there already: another rank of this run has made it.

    Raises:
        ConfigurationError: something in `args` cannot be run; one line says what.
    """

    def __init__(
        self,
        args: Mapping[str, Any] | Sequence[str],
        verb: Verb = "fit",
        run_folder: Path | None = None,
    ) -> None:
        self.verb = verb
        self.run_folder = run_folder
        self.run_id = new_run_id()
        self.objective: ObjectiveWatch | None = None
        set_parsing_settings(
            import_path_denylist=["*"], import_path_allowlist=list(ALLOWED_IMPORTS)
        )
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
            raise ConfigurationError(one_line(error)) from error

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Declare what a run has beside trainer, model and data."""
        defaults = {"experiment": "unnamed", "callbacks": {}}
        for name, kind in OWN_ARGUMENTS.items():
            parser.add_argument(f"--{name}", type=kind, default=defaults.get(name))

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
        if fault := (stray and fault_in_tree(args)) or nonfinite(self.config.as_dict()):
            raise ConfigurationError(fault)

    @override
    def before_instantiate_classes(self) -> None:
        """Refuse what no single class can see."""
        _check_trainer(self.config.trainer)
        self._dump_config()
        model, data = self.config_dump["model"], self.config_dump["data"]
        scenes = [part["init_args"].get("scene") for part in (model, data)]
        if None not in scenes and scenes[0] != scenes[1]:
            raise ConfigurationError(
                "model and data must speak of the same scene: got different ones "
                f"({', '.join(differences(*scenes))}). Set scene once, for both."
            )
        if self.config.ckpt_path is not None:
            check_checkpoint(Path(self.config.ckpt_path), model)
        elif self.verb != "fit":
            raise ConfigurationError(
                f"{self.verb} needs trained weights: got no checkpoint. "
                "Add --ckpt_path <run>/checkpoints/last.ckpt."
            )

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Give the trainer the callbacks and the run its folder."""
        # A file that does not fit is found now, before there is a folder. Lightning does it again.
        self.datamodule.setup(self.verb)
        chosen = self.config_init["callbacks"] or {}
        callbacks = [callback for callback in chosen.values() if callback is not None]
        if self.verb != "fit":
            # No weights are saved, so nobody shall look for a place to save them.
            callbacks = [entry for entry in callbacks if not isinstance(entry, Checkpoint)]
            kwargs["enable_checkpointing"] = False
        elif self.config_init["objective"] is not None:
            self.objective = ObjectiveWatch(self.config_init["objective"])
            callbacks.append(self.objective)
        if self.verb not in _VERBS_WITH_FOLDER:
            return super().instantiate_trainer(**kwargs, callbacks=callbacks)
        with self._new_folder() as folder:
            for callback in callbacks:
                if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                    callback.dirpath = str(folder / "checkpoints")
            return super().instantiate_trainer(
                **kwargs, callbacks=callbacks, default_root_dir=folder
            )

    @contextlib.contextmanager
    def _new_folder(self) -> Iterator[Path]:
        """The run's folder; gone again if the trainer cannot be built."""
        if self.run_folder is not None:
            yield self.run_folder
            return
        root = self.config.trainer.default_root_dir or "runs"
        now = datetime.now().astimezone()
        folder = make_run_folder(Path(root).absolute(), self.config.experiment, now, self.run_id)
        try:
            yield folder
        except BaseException:
            folder.rmdir()
            raise
        self.run_folder = folder


def _check_trainer(settings: Any) -> None:
    """Refuse what Lightning would refuse only after the run has begun."""
    for name, unset, instead in (
        ("gradient_clip_val", (None, 0), "gate.max_norm"),
        ("accumulate_grad_batches", (1,), "model.init_args.accumulate"),
        ("callbacks", (None, []), "callbacks.<name>"),
    ):
        if settings[name] not in unset:
            raise ConfigurationError(
                f"trainer.{name} must not be set here: got {settings[name]}. Set {instead} instead."
            )
